// A chunk of 16 bytes of token components: bf16, the upper half of an f32.

alias Chunk = vec4<u32>;
const CHUNK_VECS: u32 = 2u;
alias ChunkF32 = array<vec4<f32>, 2>;

fn unpack_chunk(chunk: Chunk) -> ChunkF32 {
    let even = bitcast<vec4<f32>>(chunk << vec4<u32>(16u));
    let odd = bitcast<vec4<f32>>(chunk & vec4<u32>(0xffff0000u));
    return ChunkF32(vec4<f32>(even.x, odd.x, even.y, odd.y), vec4<f32>(even.z, odd.z, even.w, odd.w));
}
