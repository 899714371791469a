// The score of each pair: the largest of the maxima of its chunks for each query token, and the sum over these.
// A warp a pair; lane t takes query tokens t, t + 32, .., and the sums meet in a fixed order, which depends on the query
// alone.
//
// maxima  of each pair [num_chunks, num_query_tokens] from first_maximum on, chunk_stride from chunk to chunk
// pairs   [num_items]
// scores  [num_items] f32

#include "shared/ragged.cuh"

constexpr unsigned THREADS = 32;

KERNEL(THREADS)
maxsim_sum(const float *__restrict__ maxima, const MaxsimPair *__restrict__ pairs, float *__restrict__ scores,
           MaxsimParams params) {
    if (block_idx() >= params.num_items) {
        return;
    }
    const MaxsimPair pair = pairs[block_idx()];
    float sum = 0.0f;
    for (unsigned i = thread_idx(); i < pair.num_query_tokens; i += THREADS) {
        const float *at = maxima + pair.first_maximum + i;
        float best = *at;
        for (unsigned chunk = 1; chunk < pair.num_chunks; chunk++) {
            best = max32(best, at[static_cast<size_t>(chunk) * pair.chunk_stride]);
        }
        sum += params.scoring == CLAMPED ? max32(best, 0.0f) : best;
    }
#pragma unroll
    for (unsigned width = THREADS / 2; width > 0; width /= 2) {
        sum += shuffle_xor(sum, width);
    }
    if (thread_idx() == 0) {
        scores[block_idx()] = sum;
    }
}
REGISTER_KERNEL(maxsim_sum, THREADS)
