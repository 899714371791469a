// A chunk of 16 bytes of token components: f16 on devices that only unpack it.

alias Chunk = vec4<u32>;
const CHUNK_VECS: u32 = 2u;
alias ChunkF32 = array<vec4<f32>, 2>;

fn unpack_chunk(chunk: Chunk) -> ChunkF32 {
    return ChunkF32(
        vec4<f32>(unpack2x16float(chunk.x), unpack2x16float(chunk.y)),
        vec4<f32>(unpack2x16float(chunk.z), unpack2x16float(chunk.w)),
    );
}
