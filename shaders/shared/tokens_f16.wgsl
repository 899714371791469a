// A chunk of 16 bytes of token components: f16, native.

struct Chunk {
    low: vec4<f16>,
    high: vec4<f16>,
}
const CHUNK_VECS: u32 = 2u;
alias ChunkF32 = array<vec4<f32>, 2>;

fn unpack_chunk(chunk: Chunk) -> ChunkF32 {
    return ChunkF32(vec4<f32>(chunk.low), vec4<f32>(chunk.high));
}
