// The most that the memory gives: a copy. For benches only.
// A workgroup copies 1,024 chunks, its threads side by side.

@group(0) @binding(0) var<storage, read> original: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> copied: array<vec4<f32>>;
@group(0) @binding(2) var<uniform> params: CeilingParams;

@compute @workgroup_size(256)
fn ceiling_copy(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let item = linear_idx(workgroup_id, num_workgroups);
    if item >= params.num_items {
        return;
    }
    let first = item * 1024u + thread;
    for (var k = 0u; k < 1024u; k += 256u) {
        copied[first + k] = original[first + k];
    }
}
