// maxsim for many query tokens: items of up to MAXSIM_WIDE_QUERY_TILE of them, and tokens of up to MAXSIM_WIDE_CHUNKS
// chunks. Same arguments and results, but that every query component must be a number of the documents' type, and that
// it never sums.
//
// A document token of 256 bytes costs the tensor cores of a Hopper multiprocessor as many cycles as it meets query tokens
// / 16, and its L2 gives it 24 bytes a cycle or so: with fewer than 176 query tokens at once the tensor cores wait.
//
// 1. A block has the multiprocessor to itself. Its query tokens stay in registers, as the tensor cores take them, from
//    item to item as long as the items have the same ones.
// 2. Document tokens pass by in stages of 64, each read by all warps. Asynchronous copies fill a ring of stages ahead of
//    them, across the ends of items. 16-byte chunk c of a token lies at chunk c ^ (token % 8) of its 128 bytes.
// 3. The maxima stay in registers. A thread has 4 query tokens, each shared by the 4 threads of a quad.
// 4. Compute 8.0: a warp has 32 query tokens and takes fragments of 32 document tokens at a time.
// 5. Compute 9.0 (sm_90a): four warps are a team with 128 query tokens, in two halves. Both multiply asynchronously, and
//    the maxima of the first are taken while the second multiplies. The second team waits for the next stage's barrier
//    with its products under way, the first once it has its maxima: so one of them always has the tensor cores busy. The
//    assembler lets no products be under way from one turn of a loop to the next.
//
// Expected of Hopper (not measured): a stage of 64 tokens of 128 components is 1024 cycles of the tensor cores, and of
// each quarter's other pipes 256 cycles for the maxima of its 2 x 64 x 64 sums and about as many for the rest, beside
// them. The tensor cores read 64 bytes a cycle of shared memory and copies write 16, of 128; L2 has to give 16. What the
// tensor cores wait for is the first stage and the last maxima of a share, and queries where they change.

// It has a multiprocessor to itself.
#define MIN_BLOCKS 1
#include "shared/ragged.cuh"
#include "shared/tokens.cuh"

constexpr unsigned THREADS = 256;
constexpr unsigned STAGE_TOKENS = 64;
constexpr unsigned STAGES = 5;
// Chunks of a token side by side: 128 bytes, after which banks and the swizzle repeat.
constexpr unsigned SLAB_CHUNKS = 8;
constexpr unsigned SLAB = STAGE_TOKENS * SLAB_CHUNKS;
constexpr unsigned STAGE = MAXSIM_WIDE_CHUNKS / SLAB_CHUNKS * SLAB;
// The ring starts at a multiple of this.
constexpr unsigned ALIGNMENT = 1024;
// What the host gives a block: src/device/cuda.rs has the same number.
constexpr unsigned SHARED_BYTES = STAGES * STAGE * 16 + ALIGNMENT - 16;
// Stages that are on their way. Two are in use: a team may be one behind the other.
constexpr unsigned AHEAD = STAGES - 2;
// Query tokens of the warps that share a multiplication, each half of 16 a warp.
constexpr unsigned TEAM_THREADS = HAS_WGMMA ? 128 : 32;
constexpr unsigned TEAM_ROWS = TEAM_THREADS;
static_assert(MAXSIM_WIDE_QUERY_TILE == THREADS / TEAM_THREADS * TEAM_ROWS, "every thread has its query tokens");
// Below every f32 that a dot product can be.
constexpr float LEAST = -3.4028234e38f;

// The largest so far, and the first token that reached it.
struct Best {
    float value;
    unsigned token;
};

struct Launch {
    const float *queries;
    const uint4 *tokens;
    const float *query_scales, *token_scales;
    const MaxsimItem *items;
    float *maxima;
    unsigned *matches;
    MaxsimParams params;
    // Where the share ends.
    unsigned end;
};

// A stage's tokens: those from `first` on of an item.
struct Cursor {
    MaxsimItem item;
    unsigned item_idx, first;
};

DEVICE bool is_last(const Cursor &at) { return at.first + STAGE_TOKENS >= at.item.num_tokens; }

DEVICE void advance(Cursor &at, const Launch &launch) {
    if (!is_last(at)) {
        at.first += STAGE_TOKENS;
        return;
    }
    at.first = 0;
    at.item_idx++;
    if (at.item_idx < launch.end) {
        at.item = launch.items[at.item_idx];
    }
}

// Of 4 warps or of one; the same in every lane, and known to be.
DEVICE unsigned team() { return shuffle(thread_idx() / TEAM_THREADS, 0); }

// The first of the thread's two query tokens in a half; the other is 8 after it.
DEVICE unsigned first_row(unsigned half) {
    const unsigned thread = thread_idx();
    return team() * TEAM_ROWS + half * (TEAM_ROWS / 2) + thread % TEAM_THREADS / 32 * 16 + thread % 32 / 4;
}

DEVICE bool has_rows(const Cursor &at) { return team() * TEAM_ROWS < at.item.num_query_tokens; }

// ---- copies ----

// Where a chunk of a token lies in a stage.
DEVICE unsigned place(unsigned token, unsigned c) {
    return c / SLAB_CHUNKS * SLAB + token * SLAB_CHUNKS + (c % SLAB_CHUNKS ^ token % 8);
}

// Begins to fill a stage. Beyond the item's tokens and beyond their chunks are zeros.
template <unsigned STEPS> DEVICE void copy_stage(uint4 *stage, const Cursor &at, const Launch &launch) {
    constexpr unsigned CHUNKS = 2 * STEPS;
    const unsigned num_chunks = launch.params.num_chunks;
    const uint4 *from = launch.tokens + static_cast<size_t>(at.item.first_token + at.first) * num_chunks;
    const unsigned num_tokens = at.item.num_tokens - at.first;
#pragma unroll
    for (unsigned slot = 0; slot < STAGE_TOKENS * CHUNKS; slot += THREADS) {
        const unsigned token = (slot + thread_idx()) / CHUNKS, c = (slot + thread_idx()) % CHUNKS;
        const bool is_valid = token < num_tokens && c < num_chunks;
        async_copy(&stage[place(token, c)], is_valid ? from + token * num_chunks + c : launch.tokens, is_valid);
    }
}

// ---- queries ----

// A half of the thread's query tokens as the tensor cores take them: two rows, 4 bytes of each 16.
template <unsigned STEPS>
DEVICE void load_queries(unsigned words[STEPS][4], unsigned half, const Cursor &at, const Launch &launch) {
    constexpr unsigned COUNT = CHUNK_DIM / 4;
    const unsigned num_chunks = launch.params.num_chunks;
    const float *rows[2];
    bool has_row[2];
#pragma unroll
    for (unsigned r = 0; r < 2; r++) {
        const unsigned row = first_row(half) + 8 * r;
        has_row[r] = row < at.item.num_query_tokens;
        const size_t token = at.item.first_query_token + (has_row[r] ? row : 0);
        rows[r] = launch.queries + token * num_chunks * CHUNK_DIM + thread_idx() % 4 * COUNT;
    }
#pragma unroll
    for (unsigned step = 0; step < STEPS; step++) {
#pragma unroll
        for (unsigned w = 0; w < 4; w++) {
            const unsigned c = 2 * step + w / 2;
            const bool is_valid = has_row[w % 2] && c < num_chunks;
            const float *from = rows[w % 2] + (is_valid ? c * CHUNK_DIM : 0);
            unsigned word = 0;
            // The host has made sure that they are.
            bool is_exact = true;
#pragma unroll
            for (unsigned k = 0; k < COUNT; k++) {
                word |= pack_component(from[k], is_exact) << (32 / COUNT * k);
            }
            words[step][w] = is_valid ? word : 0;
        }
    }
}

// ---- maxima ----

DEVICE float larger(float a, float b) { return max32(a, b); }
DEVICE int larger(int a, int b) { return a > b ? a : b; }

DEVICE float number(float sum) { return sum; }
// Exact up to 2^22 either way, and several times as fast as a conversion.
static_assert(MAXSIM_WIDE_CHUNKS * 16 * 128 * 128 <= 1u << 22, "sums of i8 products");
DEVICE float number(int sum) { return float_of_bits(0x4b400000u + static_cast<unsigned>(sum)) - 12582912.0f; }

// Takes the sums of 8 * GROUPS tokens, of which `first` is the first within the item: two rows of them.
template <unsigned GROUPS>
DEVICE void take(Best best[2], const Sum *sums, unsigned first, const Cursor &at, const Launch &launch) {
    const bool has_scales = launch.params.has_token_scales != 0;
    const bool is_plain = launch.params.has_matches == 0 && first + 8 * GROUPS <= at.item.num_tokens;
    const float *scales = launch.token_scales + at.item.first_token;
    if (is_plain && !has_scales) {
#pragma unroll
        for (unsigned r = 0; r < 2; r++) {
            Sum largest = larger(sums[2 * r], sums[2 * r + 1]);
#pragma unroll
            for (unsigned g = 1; g < GROUPS; g++) {
                largest = larger(largest, larger(sums[4 * g + 2 * r], sums[4 * g + 2 * r + 1]));
            }
            best[r].value = max32(best[r].value, number(largest));
        }
        return;
    }
    if (is_plain) {
#pragma unroll
        for (unsigned g = 0; g < GROUPS; g++) {
#pragma unroll
            for (unsigned e = 0; e < 2; e++) {
                const float scale = scales[first + 8 * g + thread_idx() % 4 * 2 + e];
#pragma unroll
                for (unsigned r = 0; r < 2; r++) {
                    best[r].value = max32(best[r].value, number(sums[4 * g + 2 * r + e]) * scale);
                }
            }
        }
        return;
    }
#pragma unroll
    for (unsigned g = 0; g < GROUPS; g++) {
#pragma unroll
        for (unsigned e = 0; e < 2; e++) {
            const unsigned token = first + 8 * g + thread_idx() % 4 * 2 + e;
            const bool is_valid = token < at.item.num_tokens;
            const float scale = has_scales && is_valid ? scales[token] : 1.0f;
#pragma unroll
            for (unsigned r = 0; r < 2; r++) {
                const float value = number(sums[4 * g + 2 * r + e]) * scale;
                const bool is_better = is_valid && value > best[r].value;
                best[r] = Best{is_better ? value : best[r].value, is_better ? token : best[r].token};
            }
        }
    }
}

// The end of an item: the quad's threads compare, one of them writes, and all begin again.
DEVICE void finish(Best best[2], unsigned half, const Cursor &at, const Launch &launch) {
#pragma unroll
    for (unsigned r = 0; r < 2; r++) {
#pragma unroll
        for (unsigned mask = 1; mask < 4; mask *= 2) {
            const float value = shuffle_xor(best[r].value, mask);
            const unsigned token = shuffle_xor(best[r].token, mask);
            if (value > best[r].value || (value == best[r].value && token < best[r].token)) {
                best[r] = Best{value, token};
            }
        }
        const unsigned row = first_row(half) + 8 * r;
        if (thread_idx() % 4 == 0 && row < at.item.num_query_tokens) {
            const bool has_scale = launch.params.has_query_scales != 0;
            const float scale = has_scale ? launch.query_scales[at.item.first_query_token + row] : 1.0f;
            launch.maxima[at.item.first_maximum + row] = best[r].value * scale;
            if (launch.params.has_matches != 0) {
                launch.matches[at.item.first_maximum + row] = at.item.first_match + best[r].token;
            }
        }
        best[r] = Best{LEAST, 0};
    }
}

// ---- the stages of a share ----

template <unsigned STEPS> struct Ring {
    uint4 *stages;
    const Launch &launch;
    // What is copied next, and where to.
    Cursor ahead;
    unsigned slot;

    DEVICE_MEMBER void fill() {
        if (ahead.item_idx < launch.end) {
            copy_stage<STEPS>(stages + slot * STAGE, ahead, launch);
            advance(ahead, launch);
        }
        // Of nothing at the end, so that there is a group a stage.
        async_commit();
        slot = (slot + 1) % STAGES;
    }

    // The barrier in front of a stage: what every thread copied of it is there, the tensor cores may see it, and nobody
    // reads the stage two before it.
    DEVICE_MEMBER void next() {
        async_wait<AHEAD - 1>();
#if HAS_WGMMA
        fence_async_proxy();
#endif
        sync_block();
        fill();
    }
};

#if HAS_WGMMA

// 32 bytes of each token of a slab, from `at` within its first one's 128 bytes on: "Matrix Descriptor Format" of the PTX
// ISA, fields in units of 16 bytes. Bits 0 to 13 are the address, 16 to 29 unused with a swizzle (1, as is customary), 32
// to 45 the distance of 8 tokens, 62 and 63 the swizzle: 1 for that of 128 bytes.
DEVICE unsigned long long tokens_matrix(const uint4 *at) {
    constexpr unsigned long long FIELDS = 1ull << 62 | (8ull * SLAB_CHUNKS) << 32 | 1ull << 16;
    return FIELDS | (shared_address(at) & 0x3ffffu) >> 4;
}

// Begins to multiply half of the query tokens with all tokens of a stage.
template <unsigned STEPS> DEVICE void begin(Sum sums[32], const unsigned words[STEPS][4], const uint4 *stage) {
    wgmma_fence();
#pragma unroll
    for (unsigned step = 0; step < STEPS; step++) {
        wgmma(sums, words[step], tokens_matrix(stage + step / 4 * SLAB + step % 4 * 2), step > 0);
    }
    wgmma_commit();
}

#else

// Multiplies the warp's query tokens with the 32 tokens of a stage from `first` on.
template <unsigned STEPS>
DEVICE void multiply(Sum sums[2][16], const unsigned words[2][STEPS][4], const uint4 *stage, unsigned first) {
    const unsigned lane = thread_idx() % 32;
#pragma unroll
    for (unsigned step = 0; step < STEPS; step++) {
#pragma unroll
        for (unsigned pair = 0; pair < 2; pair++) {
            // Two chunks of 8 tokens, and of the next 8.
            unsigned b[4];
            load_matrices(b, &stage[place(first + 16 * pair + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2)]);
#pragma unroll
            for (unsigned half = 0; half < 2; half++) {
                mma(&sums[half][8 * pair], words[half][step], b);
                mma(&sums[half][8 * pair + 4], words[half][step], b + 2);
            }
        }
    }
}

#endif

template <unsigned STEPS> DEVICE void do_share(Cursor now, const Launch &launch, uint4 *stages) {
    Ring<STEPS> ring = {stages, launch, now, 0};
    for (unsigned s = 0; s < AHEAD; s++) {
        ring.fill();
    }
    ring.next();
    unsigned words[2][STEPS][4];
    Best best[2][2] = {{{LEAST, 0}, {LEAST, 0}}, {{LEAST, 0}, {LEAST, 0}}};
    bool has_queries = false;
    for (unsigned slot = 0; now.item_idx < launch.end; slot = (slot + 1) % STAGES) {
        const uint4 *stage = stages + slot * STAGE;
        if (has_rows(now)) {
            if (!has_queries) {
                load_queries<STEPS>(words[0], 0, now, launch);
                load_queries<STEPS>(words[1], 1, now, launch);
            }
#if HAS_WGMMA
            Sum sums[2][32];
            begin<STEPS>(sums[0], words[0], stage);
            begin<STEPS>(sums[1], words[1], stage);
            if (team() == 1) {
                ring.next();
            }
            wgmma_wait<1>(sums[0]);
            take<8>(best[0], sums[0], now.first, now, launch);
            wgmma_wait<0>(sums[1]);
            take<8>(best[1], sums[1], now.first, now, launch);
#else
            for (unsigned first = 0; first < STAGE_TOKENS && now.first + first < now.item.num_tokens; first += 32) {
                Sum sums[2][16] = {};
                multiply<STEPS>(sums, words, stage, first);
                take<4>(best[0], sums[0], now.first + first, now, launch);
                take<4>(best[1], sums[1], now.first + first, now, launch);
            }
#endif
            if (is_last(now)) {
                finish(best[0], 0, now, launch);
                finish(best[1], 1, now, launch);
            }
            if (!HAS_WGMMA || team() == 0) {
                ring.next();
            }
        } else {
            ring.next();
        }
        const MaxsimItem before = now.item;
        advance(now, launch);
        has_queries = now.item.first_query_token == before.first_query_token &&
                      now.item.num_query_tokens == before.num_query_tokens;
    }
    // None of anything.
    async_wait<0>();
}

KERNEL(THREADS)
NAMED(maxsim_wide)(const float *__restrict__ queries, const uint4 *__restrict__ tokens,
                   const float *__restrict__ query_scales, const float *__restrict__ token_scales,
                   const MaxsimItem *__restrict__ items, const unsigned *__restrict__ shares,
                   float *__restrict__ maxima, unsigned *__restrict__ matches, MaxsimParams params) {
    DYNAMIC_SHARED_MEMORY(shared, SHARED_BYTES);
    if (block_idx() >= params.num_items) {
        return;
    }
    const unsigned item_idx = shares[block_idx()], end = shares[block_idx() + 1];
    if (item_idx >= end) {
        return;
    }
    uint4 *stages = shared + (ALIGNMENT - shared_address(shared) % ALIGNMENT) % ALIGNMENT / 16;
    const Launch launch = {queries, tokens, query_scales, token_scales, items, maxima, matches, params, end};
    const Cursor start = {items[item_idx], item_idx, 0};
    // Steps of 32 bytes; what a token does not fill is zero.
    if (params.num_chunks <= 8) {
        do_share<4>(start, launch, stages);
    } else {
        do_share<8>(start, launch, stages);
    }
}
REGISTER_LARGE_KERNEL(NAMED(maxsim_wide), THREADS, SHARED_BYTES)
