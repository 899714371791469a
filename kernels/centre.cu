// Mean of each document's tokens, subtracted by `gram`: a direction common to all tokens would cost precision.
// A block a document. Its chunks lie one after another, so neighbouring threads read neighbouring chunks: as many
// whole rows at a time as the block has threads for, each thread always the same components.
//
// tokens   [tokens of the batch, num_chunks] chunks of 16 bytes
// docs     [num_items]
// centres  [documents, num_chunks, CHUNK_DIM] f32

#include "shared/ragged.cuh"
#include "shared/tokens.cuh"

constexpr unsigned THREADS = 128;

struct Partial {
    float sums[CHUNK_DIM][THREADS];
};

KERNEL(THREADS)
NAMED(centre)(const uint4 *__restrict__ tokens, const Doc *__restrict__ docs, float *__restrict__ centres,
              GramParams params) {
    SHARED_MEMORY(Partial, partial);
    if (block_idx() >= params.num_items) {
        return;
    }
    const Doc doc = docs[block_idx()];
    const unsigned n = doc.num_tokens, num_chunks = params.num_chunks, thread = thread_idx();
    const float scale = 1.0f / static_cast<float>(n == 0 ? 1 : n);
    const uint4 *rows = tokens + static_cast<size_t>(doc.first_token) * num_chunks;
    // One pass unless a row has more chunks than the block has threads.
    for (unsigned start = 0; start < num_chunks; start += THREADS) {
        const unsigned width = num_chunks - start < THREADS ? num_chunks - start : THREADS;
        const unsigned num_groups = THREADS / width, group = thread / width, c = start + thread % width;
        float sums[CHUNK_DIM] = {};
        if (group < num_groups) {
#pragma unroll 4
            for (unsigned i = group; i < n; i += num_groups) {
                float values[CHUNK_DIM];
                unpack_chunk(rows[static_cast<size_t>(i) * num_chunks + c], values);
#pragma unroll
                for (unsigned k = 0; k < CHUNK_DIM; k++) {
                    sums[k] += values[k];
                }
            }
        }
#pragma unroll
        for (unsigned k = 0; k < CHUNK_DIM; k++) {
            partial.sums[k][thread] = sums[k];
        }
        sync_block();
        for (unsigned slot = thread; slot < width * CHUNK_DIM; slot += THREADS) {
            const unsigned k = slot % CHUNK_DIM, column = slot / CHUNK_DIM;
            float sum = 0.0f;
            for (unsigned g = 0; g < num_groups; g++) {
                sum += partial.sums[k][g * width + column];
            }
            centres[(static_cast<size_t>(doc.doc_idx) * num_chunks + start) * CHUNK_DIM + slot] = sum * scale;
        }
        sync_block();
    }
}
REGISTER_KERNEL(NAMED(centre), THREADS)
