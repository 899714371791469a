// The most that the tensor cores give: products of f16 matrices, summed in f32, that lie in registers (of Hopper: one of
// them in shared memory, as its own instructions want it). For benches only. There is no such shader.
// Four warps multiply one matrix of 64 rows with another, and a step adds the same product once more.
//
// operands   [2, 64, 64] f16
// sums       a thread's sum of all that it has of the product

#define ENCODING_F16
#define MIN_BLOCKS 1
#include "shared/ragged.cuh"
#include "shared/tokens.cuh"

constexpr unsigned THREADS = 256;
constexpr unsigned SIDE = 64;
constexpr unsigned ROW_WORDS = SIDE / 2;
constexpr unsigned STEPS = 4;

#if HAS_WGMMA
struct alignas(1024) CeilingShared {
    uint4 rows[SIDE * 8];
};
#endif

// Words of 16 rows as the tensor cores take them: see mma_f16.
DEVICE unsigned word_of(const unsigned *rows, unsigned row, unsigned step, unsigned half) {
    return rows[row * ROW_WORDS + 8 * step + 4 * half + thread_idx() % 4];
}

KERNEL(THREADS)
ceiling_mma(const uint4 *__restrict__ operands, float *__restrict__ sums, CeilingParams params) {
#if HAS_WGMMA
    SHARED_MEMORY(CeilingShared, shared);
#endif
    if (block_idx() >= params.num_items) {
        return;
    }
    const unsigned thread = thread_idx(), lane = thread % 32;
    const unsigned *left = reinterpret_cast<const unsigned *>(operands);
    unsigned a[STEPS][4];
#pragma unroll
    for (unsigned step = 0; step < STEPS; step++) {
#pragma unroll
        for (unsigned w = 0; w < 4; w++) {
            a[step][w] = word_of(left, thread / 32 % 4 * 16 + lane / 4 + w % 2 * 8, step, w / 2);
        }
    }
    float c[32] = {};
#if HAS_WGMMA
    for (unsigned chunk = thread; chunk < SIDE * 8; chunk += THREADS) {
        const unsigned row = chunk / 8;
        async_copy(&shared.rows[row * 8 + (chunk % 8 ^ row % 8)], operands + SIDE * 8 + chunk, true);
    }
    async_commit();
    async_wait<0>();
    fence_async_proxy();
    sync_block();
    for (unsigned k = 0; k < params.num_steps; k++) {
        wgmma_fence();
#pragma unroll
        for (unsigned step = 0; step < STEPS; step++) {
            const unsigned start = shared_address(shared.rows + 2 * step) & 0x3ffffu;
            wgmma_f16(c, a[step], 1ull << 62 | 64ull << 32 | 1ull << 16 | start >> 4, true);
        }
        wgmma_commit();
        wgmma_wait<0>(c);
    }
#else
    const unsigned *right = left + SIDE * ROW_WORDS;
    unsigned b[STEPS][SIDE / 8][2];
#pragma unroll
    for (unsigned step = 0; step < STEPS; step++) {
#pragma unroll
        for (unsigned g = 0; g < SIDE / 8; g++) {
#pragma unroll
            for (unsigned half = 0; half < 2; half++) {
                b[step][g][half] = word_of(right, 8 * g + lane / 4, step, half);
            }
        }
    }
    for (unsigned k = 0; k < params.num_steps; k++) {
#pragma unroll
        for (unsigned step = 0; step < STEPS; step++) {
#pragma unroll
            for (unsigned g = 0; g < SIDE / 8; g++) {
                mma_f16(&c[4 * g], a[step], b[step][g]);
            }
        }
    }
#endif
    float all = 0.0f;
#pragma unroll
    for (unsigned place = 0; place < 32; place++) {
        all += c[place];
    }
    sums[static_cast<size_t>(block_idx()) * THREADS + thread] = all;
}
REGISTER_KERNEL(ceiling_mma, THREADS)
