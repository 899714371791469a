// The most that the arithmetic gives: chains of f32 multiply-adds in registers. For benches only.
// A thread has 8 independent chains of 4 lanes, enough to hide the latency of one; each step extends them by 4.

@group(0) @binding(0) var<storage, read_write> sums: array<f32>;
@group(0) @binding(1) var<uniform> params: CeilingParams;

@compute @workgroup_size(256)
fn ceiling_fma(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let item = linear_idx(workgroup_id, num_workgroups);
    if item >= params.num_items {
        return;
    }
    // Known at run time only, so that nothing can be computed in advance.
    let a = vec4<f32>(params.factor);
    let b = vec4<f32>(params.summand);
    let start = vec4<f32>(f32(thread), 1.0, 2.0, 3.0);
    var c0 = start;
    var c1 = start + 1.0;
    var c2 = start + 2.0;
    var c3 = start + 3.0;
    var c4 = start + 4.0;
    var c5 = start + 5.0;
    var c6 = start + 6.0;
    var c7 = start + 7.0;
    for (var k = 0u; k < params.num_steps; k++) {
        c0 = fma(fma(fma(fma(c0, a, b), a, b), a, b), a, b);
        c1 = fma(fma(fma(fma(c1, a, b), a, b), a, b), a, b);
        c2 = fma(fma(fma(fma(c2, a, b), a, b), a, b), a, b);
        c3 = fma(fma(fma(fma(c3, a, b), a, b), a, b), a, b);
        c4 = fma(fma(fma(fma(c4, a, b), a, b), a, b), a, b);
        c5 = fma(fma(fma(fma(c5, a, b), a, b), a, b), a, b);
        c6 = fma(fma(fma(fma(c6, a, b), a, b), a, b), a, b);
        c7 = fma(fma(fma(fma(c7, a, b), a, b), a, b), a, b);
    }
    let all = c0 + c1 + c2 + c3 + c4 + c5 + c6 + c7;
    sums[item * 256u + thread] = all.x + all.y + all.z + all.w;
}
