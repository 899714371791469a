// A chunk of 16 bytes of token components: f32.

alias Chunk = vec4<f32>;
const CHUNK_VECS: u32 = 1u;
alias ChunkF32 = array<vec4<f32>, 1>;

fn unpack_chunk(chunk: Chunk) -> ChunkF32 {
    return ChunkF32(chunk);
}
