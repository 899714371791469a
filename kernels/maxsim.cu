// The largest dot product of each query token with some tokens of a document: a block an item of up to
// MAXSIM_QUERY_TILE query tokens and MAXSIM_CHUNK document tokens.
//
//     maxima[q] = query_scale[q] * max over x of (q . x) * token_scale[x],   matches[q] = the first x that reaches it
//
// Queries come in f32. Where every one of a block's components is a number of the documents' type (as when the queries
// were of that type), the block goes through the tensor cores, otherwise through f32 multiply-adds:
//
// 1. The query tokens lie in shared memory in the order in which the tensor cores take them. Components may come in any
//    order as long as both sides agree, so a lane takes whole chunks of 16 bytes: chunk l % 4 of each four.
// 2. Then every warp is on its own: it reads 32 document tokens straight from memory into registers, the next quarter
//    row in flight while one is multiplied, and never waits for the other warps.
// 3. The maxima stay in registers until the last token; four lanes and four warps share a query token, and compare.
//
// A document comes from memory once a query tile; no matrix of dot products goes back. The sums of a dot product are
// taken in an order that depends on dim alone.
//
// queries       [query tokens, num_chunks * CHUNK_DIM] f32
// tokens        [tokens, num_chunks] chunks of 16 bytes
// query_scales  [query tokens] f32, at least 0, if has_query_scales
// token_scales  [tokens] f32, if has_token_scales
// items         [shares[num_items]]
// shares        [num_items + 1]: block b does the items shares[b] .. shares[b + 1]
// maxima        each item's query tokens from first_maximum on, or its score there if is_summed
// matches       the same places, counted from first_match, if has_matches

#include "shared/ragged.cuh"
#include "shared/tokens.cuh"

constexpr unsigned THREADS = 128;
constexpr unsigned WARPS = THREADS / 32;
// Below every f32 that a dot product can be.
constexpr float LEAST = -3.4028234e38f;
static_assert(MAXSIM_QUERY_TILE == 32, "two tiles of 16 rows");

// The largest so far, and the first token that reached it.
struct Best {
    float value;
    unsigned token;
};

DEVICE void improve(Best &best, float value, unsigned token) {
    if (value > best.value) {
        best.value = value;
        best.token = token;
    }
}

// Of two that saw different tokens, in any order.
DEVICE void merge(Best &best, float value, unsigned token) {
    if (value > best.value || (value == best.value && token < best.token)) {
        best.value = value;
        best.token = token;
    }
}

struct Source {
    const uint4 *tokens;
    const float *scales;
    unsigned num_tokens, num_chunks;
};

DEVICE float scale_of(const Source &source, unsigned token) {
    return source.scales != nullptr ? source.scales[token] : 1.0f;
}

// ---- f32: a thread has 4 query tokens and 4 of each 64 tokens ----

constexpr unsigned DOC_TILE = 64;
constexpr unsigned STEP = 16;
constexpr unsigned STEP_CHUNKS = STEP / CHUNK_DIM;
constexpr unsigned ROWS = 4, COLUMNS = 4;

struct FmaShared {
    float queries[STEP][MAXSIM_QUERY_TILE];
    float tokens[STEP][DOC_TILE];
};

struct Results {
    Best of[MAXSIM_QUERY_TILE][16];
};

// A thread has query tokens 4 (thread / 16) .. and, of each tile, tokens thread % 16 + 0, 16, 32, 48.
DEVICE void maxsim_fma(FmaShared &shared, const Source &source, const float *queries, unsigned num_queries,
                       Best best[ROWS]) {
    const unsigned thread = thread_idx(), row = thread / 16 * ROWS, column = thread % 16;
    const size_t row_len = static_cast<size_t>(source.num_chunks) * CHUNK_DIM;
    for (unsigned first = 0; first < source.num_tokens; first += DOC_TILE) {
        float sums[ROWS][COLUMNS] = {};
        for (unsigned first_chunk = 0; first_chunk < source.num_chunks; first_chunk += STEP_CHUNKS) {
            sync_block();
            for (unsigned slot = thread; slot < STEP * MAXSIM_QUERY_TILE; slot += THREADS) {
                const unsigned k = slot % STEP, q = slot / STEP;
                const size_t component = static_cast<size_t>(first_chunk) * CHUNK_DIM + k;
                const bool valid = q < num_queries && component < row_len;
                shared.queries[k][q] = valid ? queries[q * row_len + component] : 0.0f;
            }
            for (unsigned slot = thread; slot < STEP_CHUNKS * DOC_TILE; slot += THREADS) {
                const unsigned line = slot % DOC_TILE, c = slot / DOC_TILE, token = first + line;
                const bool valid = token < source.num_tokens && first_chunk + c < source.num_chunks;
                const size_t at = static_cast<size_t>(token) * source.num_chunks + first_chunk + c;
                float values[CHUNK_DIM];
                unpack_chunk(valid ? source.tokens[at] : uint4{0, 0, 0, 0}, values);
#pragma unroll
                for (unsigned k = 0; k < CHUNK_DIM; k++) {
                    shared.tokens[c * CHUNK_DIM + k][line] = values[k];
                }
            }
            sync_block();
#pragma unroll 4
            for (unsigned k = 0; k < STEP; k++) {
                const float4 left = *reinterpret_cast<const float4 *>(&shared.queries[k][row]);
                const float a[ROWS] = {left.x, left.y, left.z, left.w};
#pragma unroll
                for (unsigned t = 0; t < COLUMNS; t++) {
                    const float b = shared.tokens[k][column + 16 * t];
#pragma unroll
                    for (unsigned r = 0; r < ROWS; r++) {
                        sums[r][t] = fma32(a[r], b, sums[r][t]);
                    }
                }
            }
        }
#pragma unroll
        for (unsigned t = 0; t < COLUMNS; t++) {
            const unsigned token = first + column + 16 * t;
            if (token < source.num_tokens) {
                const float scale = scale_of(source, token);
#pragma unroll
                for (unsigned r = 0; r < ROWS; r++) {
                    improve(best[r], sums[r][t] * scale, token);
                }
            }
        }
    }
}

// ---- tensor cores ----

#if HAS_MMA

// Chunks of a query token that fit in shared memory; longer ones go through f32.
constexpr unsigned MAX_CHUNKS = 64;
// Chunks that the four lanes of a row read at once, and steps of the tensor cores that they hold.
constexpr unsigned SLICE = 4;
constexpr unsigned GROUPS = 4;

struct MmaShared {
    // For each slice, half of the rows, and step: what each lane gives as a.
    uint4 queries[MAX_CHUNKS / SLICE][2][2][32];
};

// Word w of a chunk of a query token in the documents' type; clears `is_exact` if it has no such value.
DEVICE unsigned query_word(const float *row, unsigned w, bool &is_exact) {
    constexpr unsigned COUNT = CHUNK_DIM / 4;
    unsigned word = 0;
#pragma unroll
    for (unsigned k = 0; k < COUNT; k++) {
        const unsigned bits = pack_component(row[w * COUNT + k], is_exact);
        word |= bits << (32 / COUNT * k);
    }
    return word;
}

// Whether all were exact, in this thread's share.
DEVICE bool pack_queries(MmaShared &shared, const float *queries, unsigned num_queries, unsigned num_chunks) {
    bool is_exact = true;
    const unsigned num_slices = (num_chunks + SLICE - 1) / SLICE;
    for (unsigned slot = thread_idx(); slot < num_slices * 128; slot += THREADS) {
        const unsigned lane = slot % 32, step = slot / 32 % 2, half = slot / 64 % 2, slice = slot / 128;
        const unsigned c = slice * SLICE + lane % 4;
        unsigned words[4] = {};
#pragma unroll
        for (unsigned w = 0; w < 4; w++) {
            const unsigned q = 16 * half + lane / 4 + w % 2 * 8;
            if (q < num_queries && c < num_chunks) {
                const float *chunk = queries + (static_cast<size_t>(q) * num_chunks + c) * CHUNK_DIM;
                words[w] = query_word(chunk, 2 * step + w / 2, is_exact);
            }
        }
        shared.queries[slice][half][step][lane] = uint4{words[0], words[1], words[2], words[3]};
    }
    return is_exact;
}

// A quarter row or more of 32 tokens: lane l has chunk l % 4 of tokens l / 4 + 0, 8, 16, 24.
DEVICE void read_slice(uint4 chunks[GROUPS], const Source &source, unsigned first, unsigned slice) {
    const unsigned lane = thread_idx() % 32, c = slice * SLICE + lane % 4;
#pragma unroll
    for (unsigned g = 0; g < GROUPS; g++) {
        const unsigned token = first + 8 * g + lane / 4;
        const bool valid = token < source.num_tokens && c < source.num_chunks;
        chunks[g] = valid ? source.tokens[static_cast<size_t>(token) * source.num_chunks + c] : uint4{0, 0, 0, 0};
    }
}

// A lane has query tokens l / 4 + 0, 8, 16, 24 as best[0 .. 4].
DEVICE void maxsim_mma(const MmaShared &shared, const Source &source, Best best[4]) {
    const unsigned lane = thread_idx() % 32, warp = thread_idx() / 32;
    const unsigned num_slices = (source.num_chunks + SLICE - 1) / SLICE;
    uint4 next[GROUPS];
    read_slice(next, source, 32 * warp, 0);
    for (unsigned first = 32 * warp; first < source.num_tokens; first += 32 * WARPS) {
        Sum sums[2][GROUPS][4] = {};
        for (unsigned slice = 0; slice < num_slices; slice++) {
            uint4 now[GROUPS];
#pragma unroll
            for (unsigned g = 0; g < GROUPS; g++) {
                now[g] = next[g];
            }
            const bool is_last = slice + 1 == num_slices;
            read_slice(next, source, is_last ? first + 32 * WARPS : first, is_last ? 0 : slice + 1);
#pragma unroll
            for (unsigned step = 0; step < 2; step++) {
#pragma unroll
                for (unsigned half = 0; half < 2; half++) {
                    const uint4 packed = shared.queries[slice][half][step][lane];
                    const unsigned a[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
                    for (unsigned g = 0; g < GROUPS; g++) {
                        const unsigned b[2] = {step == 0 ? now[g].x : now[g].z, step == 0 ? now[g].y : now[g].w};
                        mma(sums[half][g], a, b);
                    }
                }
            }
        }
#pragma unroll
        for (unsigned g = 0; g < GROUPS; g++) {
#pragma unroll
            for (unsigned e = 0; e < 2; e++) {
                const unsigned token = first + 8 * g + lane % 4 * 2 + e;
                if (token < source.num_tokens) {
                    const float scale = scale_of(source, token);
#pragma unroll
                    for (unsigned r = 0; r < 4; r++) {
                        improve(best[r], static_cast<float>(sums[r / 2][g][r % 2 * 2 + e]) * scale, token);
                    }
                }
            }
        }
    }
}

#endif

union MaxsimShared {
    FmaShared fma;
#if HAS_MMA
    MmaShared mma;
#endif
    Results results;
};

KERNEL(THREADS)
NAMED(maxsim)(const float *__restrict__ queries, const uint4 *__restrict__ tokens,
              const float *__restrict__ query_scales, const float *__restrict__ token_scales,
              const MaxsimItem *__restrict__ items, const unsigned *__restrict__ shares, float *__restrict__ maxima,
              unsigned *__restrict__ matches, MaxsimParams params) {
    SHARED_MEMORY(MaxsimShared, shared);
    if (block_idx() >= params.num_items) {
        return;
    }
    for (unsigned item_idx = shares[block_idx()]; item_idx < shares[block_idx() + 1]; item_idx++) {
    const MaxsimItem item = items[item_idx];
    const unsigned thread = thread_idx(), num_chunks = params.num_chunks;
    const Source source = {tokens + static_cast<size_t>(item.first_token) * num_chunks,
                           params.has_token_scales != 0 ? token_scales + item.first_token : nullptr, item.num_tokens,
                           num_chunks};
    const float *rows = queries + static_cast<size_t>(item.first_query_token) * num_chunks * CHUNK_DIM;
    Best best[4] = {{LEAST, 0}, {LEAST, 0}, {LEAST, 0}, {LEAST, 0}};
    // Which query tokens they belong to, and which of the 16 that share those this thread is.
    unsigned first_row = thread / 16 * ROWS, row_step = 1, share = thread % 16;
    bool has_mma = false;
#if HAS_MMA
    if (num_chunks <= MAX_CHUNKS) {
        const bool is_exact = pack_queries(shared.mma, rows, item.num_query_tokens, num_chunks);
        has_mma = !any_thread(!is_exact);
    }
    if (has_mma) {
        maxsim_mma(shared.mma, source, best);
        first_row = thread % 32 / 4;
        row_step = 8;
        share = thread / 32 * 4 + thread % 4;
    }
#endif
    if (!has_mma) {
        maxsim_fma(shared.fma, source, rows, item.num_query_tokens, best);
    }
    // What the others still read is written over.
    sync_block();
#pragma unroll
    for (unsigned r = 0; r < 4; r++) {
        shared.results.of[first_row + r * row_step][share] = best[r];
    }
    sync_block();
    float result = 0.0f;
    if (thread < item.num_query_tokens) {
        Best all = shared.results.of[thread][0];
        for (unsigned other = 1; other < 16; other++) {
            const Best candidate = shared.results.of[thread][other];
            merge(all, candidate.value, candidate.token);
        }
        const float scale = params.has_query_scales != 0 ? query_scales[item.first_query_token + thread] : 1.0f;
        result = all.value * scale;
        if (params.is_summed == 0) {
            maxima[item.first_maximum + thread] = result;
        }
        if (params.has_matches != 0) {
            matches[item.first_maximum + thread] = item.first_match + all.token;
        }
    }
    if (params.is_summed != 0 && thread < 32) {
        float sum = 0.0f + (params.scoring == CLAMPED ? max32(result, 0.0f) : result);
#pragma unroll
        for (unsigned width = 16; width > 0; width /= 2) {
            sum += shuffle_xor(sum, width);
        }
        if (thread == 0) {
            maxima[item.first_maximum] = sum;
        }
    }
    sync_block();
    }
}
REGISTER_KERNEL(NAMED(maxsim), THREADS)
