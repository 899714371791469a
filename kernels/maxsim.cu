// The largest dot product of each query token with some tokens of a document, for one item after the other of a share of
// up to MAXSIM_QUERY_TILE query tokens and MAXSIM_CHUNK document tokens each.
//
//     maxima[q] = query_scale[q] * max over x of (q . x) * token_scale[x],   matches[q] = the first x that reaches it
//
// One query against many documents is bound by memory: 32 query tokens take less than a third of what the tensor cores
// can do while the documents arrive. So a launch is as many blocks as run at once, and what matters is that loads never
// stop:
//
// 1. The query tokens are packed once a run of items that share them, in shared memory in the order in which the tensor
//    cores take them. Components may come in any order as long as both sides agree, so a lane takes whole chunks of 16
//    bytes: chunk l % 4 of each four.
// 2. Each warp takes tiles of 32 document tokens, a slice of 64 bytes a token at a time. The next slices, in the next
//    item if need be, are on their way into shared memory meanwhile: 8 KB a warp, 128 KB a multiprocessor of 16 warps.
//    The fastest memory to date, 36 bytes a nanosecond and multiprocessor with a latency of 800, asks for 29 KB. A lane
//    reads what it has copied itself, so nobody waits for others, and no two lanes meet at a bank.
// 3. The maxima stay in registers until the item ends. Then the four lanes and the four warps that share a query token
//    compare: one barrier an item, which the loads on their way do not wait for. The tiles of an item start with another
//    warp each time, so that short documents keep all of them busy.
// 4. Where an item is a whole pair, the block sums them as maxsim_sum would, and there is no launch of that.
//
// Queries come in f32. Where a tile's components are all numbers of the documents' type (as when the queries were of that
// type) they are taken as they are, otherwise as sums of two f16 or three bf16, after each row has been scaled by a power
// of two: within 2^-24 of each component, as rounding a product in f32 would be. f32 documents, i8 documents with
// queries that are no i8, and rows that shared memory does not hold go through f32 multiply-adds.
//
// A document comes from memory once a query tile; no matrix of dot products goes back. The sums of a dot product are
// taken in an order that depends on dim and the query tile alone.
//
// queries       [query tokens, num_chunks * CHUNK_DIM] f32
// tokens        [tokens, num_chunks] chunks of 16 bytes
// query_scales  [query tokens] f32, at least 0, if has_query_scales
// token_scales  [tokens] f32, if has_token_scales
// items         [shares[num_items]]
// shares        [num_items + 1]: block b does the items shares[b] .. shares[b + 1]
// maxima        each item's query tokens from first_maximum on, or its score there if is_summed
// matches       the same places, counted from first_match, if has_matches

#define MIN_BLOCKS 4
#include "shared/ragged.cuh"
#include "shared/tokens.cuh"

constexpr unsigned THREADS = 128;
constexpr unsigned WARPS = THREADS / 32;
// Below every f32 that a dot product can be.
constexpr float LEAST = -3.4028234e38f;
static_assert(MAXSIM_QUERY_TILE == 32, "two tiles of 16 rows, and a lane each for the sum");

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

// With the lanes that differ from this one in the bits of `mask`.
DEVICE void merge_lanes(Best &best, unsigned mask) {
    const float value = shuffle_xor(best.value, mask);
    merge(best, value, shuffle_xor(best.token, mask));
}

struct Source {
    const uint4 *tokens;
    const float *scales;
    unsigned num_tokens, num_chunks;
};

DEVICE float scale_of(const Source &source, unsigned token) {
    return source.scales != nullptr ? source.scales[token] : 1.0f;
}

// What each warp has found for an item.
struct Results {
    float values[WARPS][MAXSIM_QUERY_TILE];
    unsigned tokens[WARPS][MAXSIM_QUERY_TILE];
};

// ---- multiply-adds: a thread has 4 query tokens and 4 of each 64 tokens ----

constexpr unsigned DOC_TILE = 64;
constexpr unsigned STEP = 16;
constexpr unsigned STEP_CHUNKS = STEP / CHUNK_DIM;
constexpr unsigned ROWS = 4, COLUMNS = 4;

struct FmaShared {
    float queries[STEP][MAXSIM_QUERY_TILE];
    float tokens[STEP][DOC_TILE];
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

// Chunks that the four lanes of a row read at once.
constexpr unsigned SLICE = 4;
// Tokens that a warp takes at a time, and steps of the tensor cores that they are.
constexpr unsigned WARP_TOKENS = 32;
constexpr unsigned GROUPS = 4;

// Memory in units of a slice: the query tokens from the front, and the slices on their way from the back.
constexpr unsigned UNITS = 20;
constexpr unsigned MOST_SLICES = UNITS - WARPS;
// Slices of a warp on their way, if the query tokens leave room.
constexpr unsigned MOST_AHEAD = 4;

struct MmaShared {
    // Of a slice of query tokens, for each half of the rows and step, what each lane gives as a; of a slice on its way,
    // for each group of 8 tokens, what each lane has copied.
    uint4 units[UNITS][4][32];
};
static_assert(sizeof(FmaShared) <= (UNITS - WARPS * MOST_AHEAD) * sizeof(uint4[4][32]), "not where slices arrive");

// Components of two words of a chunk of a query token, times a power of two; zeros where there is no such row.
DEVICE void read_components(const float *at, bool is_valid, float scale, float values[CHUNK_DIM / 2]) {
#pragma unroll
    for (unsigned v = 0; v < CHUNK_DIM / 8; v++) {
        const float4 four = is_valid ? reinterpret_cast<const float4 *>(at)[v] : float4{0.0f, 0.0f, 0.0f, 0.0f};
        values[4 * v] = four.x * scale;
        values[4 * v + 1] = four.y * scale;
        values[4 * v + 2] = four.z * scale;
        values[4 * v + 3] = four.w * scale;
    }
}

// Packs them as words, and leaves what is lost; clears `is_exact` if anything is.
DEVICE void pack_words(float values[CHUNK_DIM / 2], unsigned words[2], bool &is_exact) {
#pragma unroll
    for (unsigned w = 0; w < 2; w++) {
        words[w] = 0;
#pragma unroll
        for (unsigned k = 0; k < CHUNK_DIM / 4; k++) {
            float &value = values[w * CHUNK_DIM / 4 + k];
            words[w] |= pack_component(value, is_exact) << (128 / CHUNK_DIM * k);
            value = rest_of_component(value);
        }
    }
}

// Whether all were exact in the last of the parts, in this thread's share.
DEVICE bool pack_queries(MmaShared &shared, const float *queries, unsigned num_queries, unsigned num_chunks,
                         unsigned num_parts, const float *scales) {
    bool is_exact = true;
    const unsigned num_slices = (num_chunks + SLICE - 1) / SLICE;
#pragma unroll 4
    for (unsigned slot = thread_idx(); slot < num_slices * 128; slot += THREADS) {
        const unsigned lane = slot % 32, step = slot / 32 % 2, half = slot / 64 % 2, slice = slot / 128;
        const unsigned c = slice * SLICE + lane % 4;
        float values[2][CHUNK_DIM / 2];
#pragma unroll
        for (unsigned upper = 0; upper < 2; upper++) {
            const unsigned q = 16 * half + lane / 4 + 8 * upper;
            const float *chunk = queries + (static_cast<size_t>(q) * num_chunks + c) * CHUNK_DIM;
            const bool is_valid = q < num_queries && c < num_chunks;
            read_components(chunk + step * CHUNK_DIM / 2, is_valid, num_parts > 1 ? scales[q] : 1.0f, values[upper]);
        }
        for (unsigned part = 0; part < num_parts; part++) {
            unsigned low[2], high[2];
            bool is_all = true;
            pack_words(values[0], low, is_all);
            pack_words(values[1], high, is_all);
            is_exact = is_exact && (is_all || part + 1 < num_parts);
            shared.units[part * num_slices + slice][2 * half + step][lane] = uint4{low[0], high[0], low[1], high[1]};
        }
    }
    return is_exact;
}

// Powers of two that bring the largest component of each query token to between 2^14 and 2^15.
DEVICE void find_scales(float *scales, const float *queries, unsigned num_queries, unsigned row_len) {
    const unsigned lane = thread_idx() % 32;
    for (unsigned q = thread_idx() / 32; q < MAXSIM_QUERY_TILE; q += WARPS) {
        float largest = 0.0f;
        for (unsigned k = lane; q < num_queries && k < row_len; k += 32) {
            largest = max32(largest, abs32(queries[static_cast<size_t>(q) * row_len + k]));
        }
#pragma unroll
        for (unsigned width = 16; width > 0; width /= 2) {
            largest = max32(largest, shuffle_xor(largest, width));
        }
        // The exponent to 14, within what f32 has on both sides.
        const unsigned exponent = bits_of_float(largest) >> 23;
        const unsigned bits = (exponent < 32 ? 236 : 268 - exponent) << 23;
        if (lane == 0) {
            scales[q] = largest > 0.0f ? float_of_bits(bits) : 1.0f;
        }
    }
}

// What a warp of a share reads, and where it is: a slice of tokens first .. first + WARP_TOKENS of an item, a few slices
// before the multiplications.
struct Feed {
    const uint4 *tokens;
    const MaxsimItem *items;
    unsigned end, num_chunks, num_slices;
    // Slices on their way, and where they lie in turn.
    unsigned num_ahead, first_unit, place;
    unsigned item_idx, first, slice;
    unsigned first_token, num_tokens;
    // Of the item after it, read early.
    unsigned next_token, next_num_tokens;
    // Past the end of an item stands its last token again, which never beats itself.
    const uint4 *rows[GROUPS];
};

DEVICE unsigned first_of_warp(unsigned item_idx) { return (thread_idx() / 32 + item_idx) % WARPS * WARP_TOKENS; }

DEVICE void look_ahead(Feed &feed) {
    // The last one again where the share ends.
    const unsigned next = feed.item_idx + 1 < feed.end ? feed.item_idx + 1 : feed.item_idx;
    feed.next_token = feed.items[next].first_token;
    feed.next_num_tokens = feed.items[next].num_tokens;
}

// Finds the first of the warp's tiles that does not begin before this place; item_idx is end where there is none.
DEVICE void settle(Feed &feed) {
    while (feed.first >= feed.num_tokens) {
        feed.item_idx++;
        if (feed.item_idx == feed.end) {
            return;
        }
        feed.first_token = feed.next_token;
        feed.num_tokens = feed.next_num_tokens;
        feed.first = first_of_warp(feed.item_idx);
        look_ahead(feed);
    }
    const unsigned lane = thread_idx() % 32, last = feed.num_tokens - 1;
#pragma unroll
    for (unsigned g = 0; g < GROUPS; g++) {
        const unsigned token = feed.first + 8 * g + lane / 4;
        const size_t row = feed.first_token + static_cast<size_t>(token < last ? token : last);
        feed.rows[g] = feed.tokens + row * feed.num_chunks;
    }
}

// Sends the next slice on its way, and closes its group in any case. Past the end of a row stands its last chunk again,
// which meets zeros.
DEVICE void send_slice(MmaShared &shared, Feed &feed) {
    if (feed.item_idx != feed.end) {
        const unsigned lane = thread_idx() % 32, chunk = feed.slice * SLICE + lane % 4;
        const unsigned c = chunk < feed.num_chunks ? chunk : feed.num_chunks - 1;
#pragma unroll
        for (unsigned g = 0; g < GROUPS; g++) {
            async_copy(&shared.units[feed.first_unit + feed.place][g][lane], feed.rows[g] + c, true);
        }
        feed.slice++;
        if (feed.slice == feed.num_slices) {
            feed.slice = 0;
            feed.first += WARPS * WARP_TOKENS;
            settle(feed);
        }
    }
    async_commit();
    feed.place = feed.place + 1 == feed.num_ahead ? 0 : feed.place + 1;
}

// Begins with an item, with nothing on its way.
DEVICE void begin(MmaShared &shared, Feed &feed, unsigned item_idx, unsigned num_parts) {
    const unsigned num_ahead = (UNITS - num_parts * feed.num_slices) / WARPS;
    feed.num_ahead = num_ahead < MOST_AHEAD ? num_ahead : MOST_AHEAD;
    feed.first_unit = UNITS - (WARPS - thread_idx() / 32) * feed.num_ahead;
    feed.place = 0;
    feed.item_idx = item_idx;
    feed.first = first_of_warp(item_idx);
    feed.slice = 0;
    feed.first_token = feed.items[item_idx].first_token;
    feed.num_tokens = feed.items[item_idx].num_tokens;
    look_ahead(feed);
    settle(feed);
    for (unsigned ahead = 0; ahead < feed.num_ahead; ahead++) {
        send_slice(shared, feed);
    }
}

// Waits for the oldest slice.
DEVICE void await_slice(const Feed &feed) {
    switch (feed.num_ahead) {
    case 4:
        return async_wait<3>();
    case 3:
        return async_wait<2>();
    case 2:
        return async_wait<1>();
    default:
        return async_wait<0>();
    }
}

DEVICE float largest(float a, float b) { return max32(a, b); }
DEVICE int largest(int a, int b) { return a > b ? a : b; }

// The maxima of a lane: query tokens l / 4 + 0, 8, 16, 24. Without scales and matches `top` alone is kept.
struct Maxima {
    Sum top[4];
    Best best[4];
};

// All tiles of an item that are the warp's.
DEVICE void multiply_item(Maxima &maxima, MmaShared &shared, Feed &feed, const MaxsimItem &item, unsigned item_idx,
                          unsigned num_parts, const float *token_scales, bool is_plain) {
    const unsigned lane = thread_idx() % 32, last = item.num_tokens - 1;
    for (unsigned first = first_of_warp(item_idx); first < item.num_tokens; first += WARPS * WARP_TOKENS) {
        // A token a lane.
        const unsigned own = first + lane < last ? first + lane : last;
        const float scale = token_scales != nullptr ? token_scales[item.first_token + own] : 1.0f;
        Sum sums[2][GROUPS][4] = {};
        for (unsigned slice = 0; slice < feed.num_slices; slice++) {
            await_slice(feed);
            uint4 chunks[GROUPS];
#pragma unroll
            for (unsigned g = 0; g < GROUPS; g++) {
                chunks[g] = shared.units[feed.first_unit + feed.place][g][lane];
            }
            for (unsigned part = 0; part < num_parts; part++) {
                uint4 packed[4];
#pragma unroll
                for (unsigned p = 0; p < 4; p++) {
                    packed[p] = shared.units[part * feed.num_slices + slice][p][lane];
                }
#pragma unroll
                for (unsigned step = 0; step < 2; step++) {
#pragma unroll
                    for (unsigned half = 0; half < 2; half++) {
                        const uint4 &row = packed[2 * half + step];
                        const unsigned a[4] = {row.x, row.y, row.z, row.w};
#pragma unroll
                        for (unsigned g = 0; g < GROUPS; g++) {
                            const uint4 &chunk = chunks[g];
                            const unsigned b[2] = {step == 0 ? chunk.x : chunk.z, step == 0 ? chunk.y : chunk.w};
                            mma(sums[half][g], a, b);
                        }
                    }
                }
            }
            send_slice(shared, feed);
        }
        if (is_plain) {
#pragma unroll
            for (unsigned g = 0; g < GROUPS; g++) {
#pragma unroll
                for (unsigned e = 0; e < 2; e++) {
#pragma unroll
                    for (unsigned r = 0; r < 4; r++) {
                        maxima.top[r] = largest(maxima.top[r], sums[r / 2][g][r % 2 * 2 + e]);
                    }
                }
            }
            continue;
        }
#pragma unroll
        for (unsigned g = 0; g < GROUPS; g++) {
#pragma unroll
            for (unsigned e = 0; e < 2; e++) {
                const unsigned place = 8 * g + lane % 4 * 2 + e;
                const unsigned token = first + place < last ? first + place : last;
                const float token_scale = shuffle(scale, place);
#pragma unroll
                for (unsigned r = 0; r < 4; r++) {
                    improve(maxima.best[r], static_cast<float>(sums[r / 2][g][r % 2 * 2 + e]) * token_scale, token);
                }
            }
        }
    }
}

#endif

struct MaxsimShared {
    // Of two items in turn, so that one barrier an item is enough.
    Results results[2];
    // Of the query tile: see find_scales.
    float scales[MAXSIM_QUERY_TILE];
    union {
        FmaShared fma;
#if HAS_MMA
        MmaShared mma;
#endif
    };
};

// A block: its share, and what it has packed.
struct Block {
    MaxsimShared &shared;
    const float *queries, *query_scales;
    const MaxsimItem *items;
    float *maxima;
    unsigned *matches;
    MaxsimParams params;
};

// Writes the maxima of an item, or its score, once all warps have found theirs: one warp does, another each time.
DEVICE void finish(const Block &block, const MaxsimItem &item, unsigned item_idx, unsigned num_results, bool is_scaled) {
    const MaxsimParams &params = block.params;
    const Results &results = block.shared.results[item_idx % 2];
    sync_block();
    if (thread_idx() / 32 != item_idx % WARPS) {
        return;
    }
    const unsigned lane = thread_idx() % 32;
    float value = 0.0f;
    if (lane < item.num_query_tokens) {
        Best best = {results.values[0][lane], results.tokens[0][lane]};
        for (unsigned warp = 1; warp < num_results; warp++) {
            merge(best, results.values[warp][lane], results.tokens[warp][lane]);
        }
        value = best.value;
        if (is_scaled) {
            // A power of two again, so nothing is lost.
            value *= float_of_bits((254u << 23) - bits_of_float(block.shared.scales[lane]));
        }
        if (params.has_query_scales != 0) {
            value *= block.query_scales[item.first_query_token + lane];
        }
        if (params.is_summed == 0) {
            block.maxima[item.first_maximum + lane] = value;
        }
        if (params.has_matches != 0) {
            block.matches[item.first_maximum + lane] = item.first_match + best.token;
        }
    }
    if (params.is_summed != 0) {
        // In the order of maxsim_sum.
        float sum = 0.0f + (params.scoring == CLAMPED ? max32(value, 0.0f) : value);
#pragma unroll
        for (unsigned width = 16; width > 0; width /= 2) {
            sum += shuffle_xor(sum, width);
        }
        if (lane == 0) {
            block.maxima[item.first_maximum] = sum;
        }
    }
}

DEVICE void score_by_fma(const Block &block, const Source &all, const MaxsimItem &item, unsigned item_idx) {
    const unsigned thread = thread_idx();
    const Source source = {all.tokens + static_cast<size_t>(item.first_token) * all.num_chunks,
                           all.scales != nullptr ? all.scales + item.first_token : nullptr, item.num_tokens,
                           all.num_chunks};
    const float *rows = block.queries + static_cast<size_t>(item.first_query_token) * all.num_chunks * CHUNK_DIM;
    Best best[ROWS] = {{LEAST, 0}, {LEAST, 0}, {LEAST, 0}, {LEAST, 0}};
    maxsim_fma(block.shared.fma, source, rows, item.num_query_tokens, best);
#pragma unroll
    for (unsigned r = 0; r < ROWS; r++) {
#pragma unroll
        for (unsigned mask = 1; mask < 16; mask *= 2) {
            merge_lanes(best[r], mask);
        }
        if (thread % 16 == 0) {
            Results &results = block.shared.results[item_idx % 2];
            results.values[0][thread / 16 * ROWS + r] = best[r].value;
            results.tokens[0][thread / 16 * ROWS + r] = best[r].token;
        }
    }
    finish(block, item, item_idx, 1, false);
}

#if HAS_MMA

// Packs the query tokens of an item in as few parts as hold them, and says in how many: 0 if none do. Everybody is done
// with those before, since the barrier of the item before.
DEVICE unsigned pack_tile(const Block &block, const MaxsimItem &item, unsigned num_chunks) {
    const unsigned row_len = num_chunks * CHUNK_DIM, num_slices = (num_chunks + SLICE - 1) / SLICE;
    const float *rows = block.queries + static_cast<size_t>(item.first_query_token) * row_len;
    MmaShared &shared = block.shared.mma;
    const bool is_exact = pack_queries(shared, rows, item.num_query_tokens, num_chunks, 1, nullptr);
    if (!any_thread(!is_exact)) {
        return 1;
    }
    if (COMPONENT_PARTS == 1 || num_slices * COMPONENT_PARTS > MOST_SLICES) {
        return 0;
    }
    // Slices on their way may lie where the other parts go.
    async_wait<0>();
    find_scales(block.shared.scales, rows, item.num_query_tokens, row_len);
    sync_block();
    pack_queries(shared, rows, item.num_query_tokens, num_chunks, COMPONENT_PARTS, block.shared.scales);
    sync_block();
    return COMPONENT_PARTS;
}

DEVICE void score_share(const Block &block, const Source &all, unsigned begin_idx, unsigned end_idx) {
    const unsigned lane = thread_idx() % 32, warp = thread_idx() / 32;
    const bool is_plain = all.scales == nullptr && block.params.has_matches == 0;
    MmaShared &shared = block.shared.mma;
    Feed feed = {};
    feed.tokens = all.tokens;
    feed.items = block.items;
    feed.end = end_idx;
    feed.num_chunks = all.num_chunks;
    feed.num_slices = (all.num_chunks + SLICE - 1) / SLICE;
    // First of all, so that the tokens are on their way while the queries are packed.
    begin(shared, feed, begin_idx, 1);
    unsigned packed = 0, num_packed = 0, num_parts = 1, num_parts_fed = 1;
    for (unsigned item_idx = begin_idx; item_idx < end_idx; item_idx++) {
        const MaxsimItem item = block.items[item_idx];
        if (item.first_query_token != packed || item.num_query_tokens != num_packed) {
            num_parts = pack_tile(block, item, all.num_chunks);
            packed = item.first_query_token;
            num_packed = item.num_query_tokens;
        }
        if (num_parts != num_parts_fed) {
            async_wait<0>();
            if (num_parts != 0) {
                begin(shared, feed, item_idx, num_parts);
            }
            num_parts_fed = num_parts;
        }
        if (num_parts == 0) {
            score_by_fma(block, all, item, item_idx);
            // What was packed is written over.
            num_packed = 0;
            continue;
        }
        Maxima maxima;
#pragma unroll
        for (unsigned r = 0; r < 4; r++) {
            maxima.top[r] = least_sum();
            maxima.best[r] = Best{LEAST, 0};
        }
        multiply_item(maxima, shared, feed, item, item_idx, num_parts, all.scales, is_plain);
        // A warp without a tile has found nothing.
        const bool has_top = is_plain && first_of_warp(item_idx) < item.num_tokens;
        Results &results = block.shared.results[item_idx % 2];
#pragma unroll
        for (unsigned r = 0; r < 4; r++) {
            Best best = maxima.best[r];
            best.value = has_top ? static_cast<float>(maxima.top[r]) : best.value;
            merge_lanes(best, 1);
            merge_lanes(best, 2);
            if (lane % 4 == r) {
                results.values[warp][lane / 4 + 8 * r] = best.value;
                results.tokens[warp][lane / 4 + 8 * r] = best.token;
            }
        }
        finish(block, item, item_idx, WARPS, num_parts > 1);
    }
    async_wait<0>();
}

#endif

KERNEL(THREADS)
NAMED(maxsim)(const float *__restrict__ queries, const uint4 *__restrict__ tokens,
              const float *__restrict__ query_scales, const float *__restrict__ token_scales,
              const MaxsimItem *__restrict__ items, const unsigned *__restrict__ shares, float *__restrict__ maxima,
              unsigned *__restrict__ matches, MaxsimParams params) {
    SHARED_MEMORY(MaxsimShared, shared);
    if (block_idx() >= params.num_items) {
        return;
    }
    const unsigned begin_idx = shares[block_idx()], end_idx = shares[block_idx() + 1];
    if (begin_idx >= end_idx) {
        return;
    }
    const Block block = {shared, queries, query_scales, items, maxima, matches, params};
    const Source all = {tokens, params.has_token_scales != 0 ? token_scales : nullptr, 0, params.num_chunks};
#if HAS_MMA
    if (params.num_chunks <= MOST_SLICES * SLICE) {
        return score_share(block, all, begin_idx, end_idx);
    }
#endif
    for (unsigned item_idx = begin_idx; item_idx < end_idx; item_idx++) {
        score_by_fma(block, all, items[item_idx], item_idx);
    }
}
REGISTER_KERNEL(NAMED(maxsim), THREADS)
