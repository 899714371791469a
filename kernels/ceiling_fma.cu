// The most that the arithmetic gives: chains of f32 multiply-adds in registers. For benches only.
// A thread has 8 independent chains of 4 lanes, enough to hide the latency of one; each step extends them by 4.

#include "shared/ragged.cuh"

constexpr unsigned THREADS = 256;
constexpr unsigned CHAINS = 32;

KERNEL(THREADS)
ceiling_fma(float *__restrict__ sums, CeilingParams params) {
    if (block_idx() >= params.num_items) {
        return;
    }
    const unsigned thread = thread_idx();
    // Known at run time only, so that nothing can be computed in advance.
    const float a = params.factor, b = params.summand;
    float chains[CHAINS];
#pragma unroll
    for (unsigned c = 0; c < CHAINS; c++) {
        const float start = c % 4 == 0 ? static_cast<float>(thread) : static_cast<float>(c % 4);
        chains[c] = start + static_cast<float>(c / 4);
    }
    for (unsigned k = 0; k < params.num_steps; k++) {
#pragma unroll
        for (unsigned link = 0; link < 4; link++) {
#pragma unroll
            for (unsigned c = 0; c < CHAINS; c++) {
                chains[c] = fma32(chains[c], a, b);
            }
        }
    }
    float all = 0.0f;
#pragma unroll
    for (unsigned c = 0; c < CHAINS; c++) {
        all += chains[c];
    }
    sums[static_cast<size_t>(block_idx()) * THREADS + thread] = all;
}
REGISTER_KERNEL(ceiling_fma, THREADS)
