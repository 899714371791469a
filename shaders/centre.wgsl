// Mean of each document's tokens, subtracted by `gram`: a direction common to all tokens would cost precision.
// A workgroup a document, a thread a chunk.

@group(0) @binding(0) var<storage, read> tokens: array<Chunk>;
@group(0) @binding(1) var<storage, read> docs: array<Doc>;
@group(0) @binding(2) var<storage, read_write> centres: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> params: GramParams;

@compute @workgroup_size(64)
fn centre(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let item = linear_idx(workgroup_id, num_workgroups);
    if item >= params.num_items {
        return;
    }
    let doc = docs[item];
    let scale = 1.0 / f32(max(doc.num_tokens, 1u));
    for (var c = thread; c < params.num_chunks; c += 64u) {
        var sums: ChunkF32;
        for (var i = 0u; i < doc.num_tokens; i++) {
            var values = unpack_chunk(tokens[(doc.first_token + i) * params.num_chunks + c]);
            for (var v = 0u; v < CHUNK_VECS; v++) {
                sums[v] += values[v];
            }
        }
        for (var v = 0u; v < CHUNK_VECS; v++) {
            centres[(doc.doc_idx * params.num_chunks + c) * CHUNK_VECS + v] = sums[v] * scale;
        }
    }
}
