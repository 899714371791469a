// The most that the memory gives: a copy. For benches only.
// A block copies 1,024 chunks, its threads side by side.

#include "shared/ragged.cuh"

constexpr unsigned THREADS = 256;

KERNEL(THREADS)
ceiling_copy(const uint4 *__restrict__ original, uint4 *__restrict__ copied, CeilingParams params) {
    if (block_idx() >= params.num_items) {
        return;
    }
    const size_t first = static_cast<size_t>(block_idx()) * 1024 + thread_idx();
    uint4 chunks[1024 / THREADS];
#pragma unroll
    for (unsigned k = 0; k < 1024 / THREADS; k++) {
        chunks[k] = original[first + k * THREADS];
    }
#pragma unroll
    for (unsigned k = 0; k < 1024 / THREADS; k++) {
        copied[first + k * THREADS] = chunks[k];
    }
}
REGISTER_KERNEL(ceiling_copy, THREADS)
