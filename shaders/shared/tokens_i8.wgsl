// A chunk of 16 bytes of token components: i8.

alias Chunk = vec4<u32>;
const CHUNK_VECS: u32 = 4u;
alias ChunkF32 = array<vec4<f32>, 4>;

fn unpack_chunk(chunk: Chunk) -> ChunkF32 {
    return ChunkF32(
        vec4<f32>(unpack4xI8(chunk.x)),
        vec4<f32>(unpack4xI8(chunk.y)),
        vec4<f32>(unpack4xI8(chunk.z)),
        vec4<f32>(unpack4xI8(chunk.w)),
    );
}
