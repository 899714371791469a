// How token components lie in memory, one of them chosen by ENCODING_*: rows of chunks of 16 bytes, padded with zeros
// to whole chunks. 32 bytes of a row are one step of the tensor cores, whatever the encoding.
#pragma once

#include "portable.cuh"

#if defined(ENCODING_F32)

#define NAMED(kernel) kernel##_f32
#define HAS_MMA 0
constexpr unsigned CHUNK_DIM = 4;

DEVICE void unpack_chunk(const uint4 &chunk, float values[CHUNK_DIM]) {
    const unsigned words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (unsigned w = 0; w < 4; w++) {
        values[w] = float_of_bits(words[w]);
    }
}

#elif defined(ENCODING_F16)

#define NAMED(kernel) kernel##_f16
#define HAS_MMA 1
constexpr unsigned CHUNK_DIM = 8;
typedef float Sum;

DEVICE void unpack_chunk(const uint4 &chunk, float values[CHUNK_DIM]) {
    const unsigned words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (unsigned w = 0; w < 4; w++) {
        values[2 * w] = float_of_f16(static_cast<unsigned short>(words[w] & 0xffffu));
        values[2 * w + 1] = float_of_f16(static_cast<unsigned short>(words[w] >> 16));
    }
}

// A component as this type has it; clears `is_exact` if that is another number.
DEVICE unsigned pack_component(float value, bool &is_exact) {
    const unsigned short bits = f16_of_float(value);
    is_exact = is_exact && float_of_f16(bits) == value;
    return bits;
}

// What is lost of it; exact while both are finite.
DEVICE float rest_of_component(float value) { return value - float_of_f16(f16_of_float(value)); }

// Parts that hold an f32 of moderate size to within 2^-24 of it.
constexpr unsigned COMPONENT_PARTS = 2;
DEVICE Sum least_sum() { return -3.4028234e38f; }

DEVICE void mma(Sum c[4], const unsigned a[4], const unsigned b[2]) { mma_f16(c, a, b); }

#if HAS_WGMMA
DEVICE void wgmma(Sum c[32], const unsigned a[4], unsigned long long b, bool is_sum) { wgmma_f16(c, a, b, is_sum); }
#endif

#elif defined(ENCODING_BF16)

#define NAMED(kernel) kernel##_bf16
#define HAS_MMA (ARCH >= 800)
constexpr unsigned CHUNK_DIM = 8;
typedef float Sum;
// Parts that hold an f32.
constexpr unsigned COMPONENT_PARTS = 3;

DEVICE void unpack_chunk(const uint4 &chunk, float values[CHUNK_DIM]) {
    const unsigned words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (unsigned w = 0; w < 4; w++) {
        values[2 * w] = float_of_bits(words[w] << 16);
        values[2 * w + 1] = float_of_bits(words[w] & 0xffff0000u);
    }
}

#if HAS_MMA
// A component as this type has it; clears `is_exact` if that is another number.
DEVICE unsigned pack_component(float value, bool &is_exact) {
    const unsigned bits = bits_of_float(value);
    is_exact = is_exact && (bits & 0xffffu) == 0;
    return bits >> 16;
}

// What is lost of it, by truncation: nothing after three.
DEVICE float rest_of_component(float value) { return value - float_of_bits(bits_of_float(value) & 0xffff0000u); }

DEVICE Sum least_sum() { return -3.4028234e38f; }

DEVICE void mma(Sum c[4], const unsigned a[4], const unsigned b[2]) { mma_bf16(c, a, b); }

#if HAS_WGMMA
DEVICE void wgmma(Sum c[32], const unsigned a[4], unsigned long long b, bool is_sum) { wgmma_bf16(c, a, b, is_sum); }
#endif
#endif

#elif defined(ENCODING_I8)

#define NAMED(kernel) kernel##_i8
#define HAS_MMA 1
constexpr unsigned CHUNK_DIM = 16;
typedef int Sum;

DEVICE void unpack_chunk(const uint4 &chunk, float values[CHUNK_DIM]) {
    const unsigned words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (unsigned w = 0; w < 4; w++) {
#pragma unroll
        for (unsigned b = 0; b < 4; b++) {
            values[4 * w + b] = static_cast<float>(static_cast<signed char>(words[w] >> (8 * b)));
        }
    }
}

// A component as this type has it; clears `is_exact` if that is another number.
DEVICE unsigned pack_component(float value, bool &is_exact) {
    const bool is_within = value >= -128.0f && value <= 127.0f;
    const int whole = is_within ? static_cast<int>(value) : 0;
    is_exact = is_exact && static_cast<float>(whole) == value;
    return static_cast<unsigned>(whole) & 0xffu;
}

// Parts would need a sum each.
DEVICE float rest_of_component(float) { return 0.0f; }
constexpr unsigned COMPONENT_PARTS = 1;
DEVICE Sum least_sum() { return -0x7fffffff - 1; }

DEVICE void mma(Sum c[4], const unsigned a[4], const unsigned b[2]) { mma_i8(c, a, b); }

#if HAS_WGMMA
DEVICE void wgmma(Sum c[32], const unsigned a[4], unsigned long long b, bool is_sum) { wgmma_i8(c, a, b, is_sum); }
#endif

#endif
