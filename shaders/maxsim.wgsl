// The largest dot product of each query token with the tokens of a document.
//
// By the definition a thread would walk over a document for each query token. Here
//   1. a workgroup takes MAXSIM_QUERY_TILE query tokens and up to MAXSIM_CHUNK document tokens, DOC_TILE of them at a time, so
//      that a document comes from memory once a query tile, and never as a matrix of dot products goes back;
//   2. a thread computes 8 x 8 dot products at once from workgroup memory, where SLAB vectors of each token lie in f32;
//   3. the maxima stay in registers until the last token; then the 16 threads that share a query token compare theirs;
//   4. where an item is a whole pair, the workgroup sums them as maxsim_sum would, and there is no launch of that.
// The last tile of a document costs what it holds, in steps of a quarter: beyond the end stands the last token again,
// which never beats itself. Every dot product is summed in the order of its components, wherever the token stands.

struct MaxsimItem {
    first_query_token: u32,
    num_query_tokens: u32,
    first_token: u32,
    num_tokens: u32,
    first_maximum: u32,
    first_match: u32,
    padding_0: u32,
    padding_1: u32,
}

// f32 whatever the documents are: [query tokens, num_chunks * CHUNK_VECS].
@group(0) @binding(0) var<storage, read> queries: array<vec4<f32>>;
// [tokens, num_chunks].
@group(0) @binding(1) var<storage, read> tokens: array<Chunk>;
// One a query token, if any; at least 0, so that they wait until the maximum is known.
@group(0) @binding(2) var<storage, read> query_scales: array<f32>;
// One a token, if any.
@group(0) @binding(3) var<storage, read> token_scales: array<f32>;
@group(0) @binding(4) var<storage, read> items: array<MaxsimItem>;
// Workgroup b does the items shares[b] .. shares[b + 1].
@group(0) @binding(5) var<storage, read> shares: array<u32>;
// Each item's query tokens from `first_maximum` on, or its score there if is_summed.
@group(0) @binding(6) var<storage, read_write> maxima: array<f32>;
// The same places: the first token that reached the maximum, counted from `first_match`.
@group(0) @binding(7) var<storage, read_write> matches: array<u32>;
@group(0) @binding(8) var<uniform> params: MaxsimParams;

const THREADS: u32 = 64u;
const DOC_TILE: u32 = 128u;
const QUARTER: u32 = 32u;
// Threads side by side along the document; the others lie along the query.
const DOC_THREADS: u32 = 16u;
const QUERY_THREADS: u32 = 4u;
// Vectors of a token in workgroup memory, and the distance of two tokens: odd, so that neighbours meet no bank twice.
const SLAB: u32 = 4u;
const STRIDE: u32 = 5u;
const SLAB_CHUNKS: u32 = SLAB / CHUNK_VECS;
const RESULT_STRIDE: u32 = 17u;
// Below every f32 that a dot product can be.
const LEAST: f32 = -3.4028234e38;

var<workgroup> query_slab: array<vec4<f32>, 160>;
var<workgroup> doc_slab: array<vec4<f32>, 640>;

/// Components `SLAB` vectors from `first` on of the query tokens of a tile.
fn load_queries(item: MaxsimItem, first: u32, thread: u32) {
    let num_vecs = params.num_chunks * CHUNK_VECS;
    for (var n = thread; n < MAXSIM_QUERY_TILE * SLAB; n += THREADS) {
        let row = min(n / SLAB, item.num_query_tokens - 1u);
        let v = n % SLAB;
        var values = vec4<f32>();
        if first + v < num_vecs {
            values = queries[(item.first_query_token + row) * num_vecs + first + v];
        }
        query_slab[n / SLAB * STRIDE + v] = values;
    }
}

/// The same of `num_rows` document tokens from `first_row` on.
fn load_tokens(item: MaxsimItem, first_row: u32, num_rows: u32, first: u32, thread: u32) {
    let first_chunk = first / CHUNK_VECS;
    for (var s = 0u; s < DOC_TILE * SLAB_CHUNKS / THREADS; s++) {
        let n = s * THREADS + thread;
        let row = n / SLAB_CHUNKS;
        let c = n % SLAB_CHUNKS;
        if row < num_rows {
            var values: ChunkF32;
            if first_chunk + c < params.num_chunks {
                let token = item.first_token + min(first_row + row, item.num_tokens - 1u);
                values = unpack_chunk(tokens[token * params.num_chunks + first_chunk + c]);
            }
            for (var v = 0u; v < CHUNK_VECS; v++) {
                doc_slab[row * STRIDE + c * CHUNK_VECS + v] = values[v];
            }
        }
    }
}

fn extend(sum: f32, q: vec4<f32>, x: vec4<f32>) -> f32 {
    return fma(q.w, x.w, fma(q.z, x.z, fma(q.y, x.y, fma(q.x, x.x, sum))));
}

/// Four sums, each with one more vector of its query token and of the token `x`.
fn extend4(sums: vec4<f32>, q0: vec4<f32>, q1: vec4<f32>, q2: vec4<f32>, q3: vec4<f32>, x: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(extend(sums.x, q0, x), extend(sums.y, q1, x), extend(sums.z, q2, x), extend(sums.w, q3, x));
}

/// Maxima of four query tokens, and the tokens that reached them.
struct Best {
    values: vec4<f32>,
    rows: vec4<u32>,
}

fn better(best: Best, sums: vec4<f32>, row: u32) -> Best {
    let is_above = sums > best.values;
    return Best(select(best.values, sums, is_above), select(best.rows, vec4<u32>(row), is_above));
}

/// What a dot product with this token counts for.
fn scale(item: MaxsimItem, row: u32) -> f32 {
    if params.has_token_scales == 0u {
        return 1.0;
    }
    return token_scales[item.first_token + min(row, item.num_tokens - 1u)];
}

@compute @workgroup_size(64)
fn maxsim(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let share = linear_idx(workgroup_id, num_workgroups);
    if share >= params.num_items {
        return;
    }
    for (var item_idx = shares[share]; item_idx < shares[share + 1u]; item_idx++) {
        score_item(items[item_idx], thread);
    }
}

/// All threads of the workgroup do an item.
fn score_item(item: MaxsimItem, thread: u32) {
    let num_vecs = params.num_chunks * CHUNK_VECS;
    let doc_thread = thread % DOC_THREADS;
    let query_thread = thread / DOC_THREADS;
    let query_place = query_thread * STRIDE;
    let doc_place = doc_thread * STRIDE;
    // Query tokens query_thread + 0, 4, 8, 12 and + 16, 20, 24, 28.
    var low = Best(vec4<f32>(LEAST), vec4<u32>());
    var high = low;

    for (var first_row = 0u; first_row < item.num_tokens; first_row += DOC_TILE) {
        let num_quarters = (min(item.num_tokens - first_row, DOC_TILE) + QUARTER - 1u) / QUARTER;
        // Tokens doc_thread + 0, 16, .., 112: two of each quarter, the second half of the sums for `high`.
        var a0 = vec4<f32>();
        var a1 = a0;
        var a2 = a0;
        var a3 = a0;
        var a4 = a0;
        var a5 = a0;
        var a6 = a0;
        var a7 = a0;
        var b0 = a0;
        var b1 = a0;
        var b2 = a0;
        var b3 = a0;
        var b4 = a0;
        var b5 = a0;
        var b6 = a0;
        var b7 = a0;
        for (var first = 0u; first < num_vecs; first += SLAB) {
            workgroupBarrier();
            load_queries(item, first, thread);
            load_tokens(item, first_row, num_quarters * QUARTER, first, thread);
            workgroupBarrier();
            for (var v = 0u; v < SLAB; v++) {
                let q0 = query_slab[query_place + v];
                let q1 = query_slab[query_place + QUERY_THREADS * STRIDE + v];
                let q2 = query_slab[query_place + 2u * QUERY_THREADS * STRIDE + v];
                let q3 = query_slab[query_place + 3u * QUERY_THREADS * STRIDE + v];
                let q4 = query_slab[query_place + 4u * QUERY_THREADS * STRIDE + v];
                let q5 = query_slab[query_place + 5u * QUERY_THREADS * STRIDE + v];
                let q6 = query_slab[query_place + 6u * QUERY_THREADS * STRIDE + v];
                let q7 = query_slab[query_place + 7u * QUERY_THREADS * STRIDE + v];
                let x0 = doc_slab[doc_place + v];
                let x1 = doc_slab[doc_place + DOC_THREADS * STRIDE + v];
                a0 = extend4(a0, q0, q1, q2, q3, x0);
                b0 = extend4(b0, q4, q5, q6, q7, x0);
                a1 = extend4(a1, q0, q1, q2, q3, x1);
                b1 = extend4(b1, q4, q5, q6, q7, x1);
                if num_quarters > 1u {
                    let x2 = doc_slab[doc_place + 2u * DOC_THREADS * STRIDE + v];
                    let x3 = doc_slab[doc_place + 3u * DOC_THREADS * STRIDE + v];
                    a2 = extend4(a2, q0, q1, q2, q3, x2);
                    b2 = extend4(b2, q4, q5, q6, q7, x2);
                    a3 = extend4(a3, q0, q1, q2, q3, x3);
                    b3 = extend4(b3, q4, q5, q6, q7, x3);
                }
                if num_quarters > 2u {
                    let x4 = doc_slab[doc_place + 4u * DOC_THREADS * STRIDE + v];
                    let x5 = doc_slab[doc_place + 5u * DOC_THREADS * STRIDE + v];
                    a4 = extend4(a4, q0, q1, q2, q3, x4);
                    b4 = extend4(b4, q4, q5, q6, q7, x4);
                    a5 = extend4(a5, q0, q1, q2, q3, x5);
                    b5 = extend4(b5, q4, q5, q6, q7, x5);
                }
                if num_quarters > 3u {
                    let x6 = doc_slab[doc_place + 6u * DOC_THREADS * STRIDE + v];
                    let x7 = doc_slab[doc_place + 7u * DOC_THREADS * STRIDE + v];
                    a6 = extend4(a6, q0, q1, q2, q3, x6);
                    b6 = extend4(b6, q4, q5, q6, q7, x6);
                    a7 = extend4(a7, q0, q1, q2, q3, x7);
                    b7 = extend4(b7, q4, q5, q6, q7, x7);
                }
            }
        }
        let row = first_row + doc_thread;
        let s0 = scale(item, row);
        let s1 = scale(item, row + 16u);
        low = better(better(low, a0 * s0, row), a1 * s1, row + 16u);
        high = better(better(high, b0 * s0, row), b1 * s1, row + 16u);
        if num_quarters > 1u {
            let s2 = scale(item, row + 32u);
            let s3 = scale(item, row + 48u);
            low = better(better(low, a2 * s2, row + 32u), a3 * s3, row + 48u);
            high = better(better(high, b2 * s2, row + 32u), b3 * s3, row + 48u);
        }
        if num_quarters > 2u {
            let s4 = scale(item, row + 64u);
            let s5 = scale(item, row + 80u);
            low = better(better(low, a4 * s4, row + 64u), a5 * s5, row + 80u);
            high = better(better(high, b4 * s4, row + 64u), b5 * s5, row + 80u);
        }
        if num_quarters > 3u {
            let s6 = scale(item, row + 96u);
            let s7 = scale(item, row + 112u);
            low = better(better(low, a6 * s6, row + 96u), a7 * s7, row + 112u);
            high = better(better(high, b6 * s6, row + 96u), b7 * s7, row + 112u);
        }
    }

    // The 16 threads of a query token side by side, as value and row; a row is below 2^24, so exact in f32.
    workgroupBarrier();
    let low_rows = vec4<f32>(low.rows);
    let high_rows = vec4<f32>(high.rows);
    let place = query_thread * RESULT_STRIDE + doc_thread;
    const STEP: u32 = QUERY_THREADS * RESULT_STRIDE;
    doc_slab[place] = vec4<f32>(low.values.x, low_rows.x, 0.0, 0.0);
    doc_slab[place + STEP] = vec4<f32>(low.values.y, low_rows.y, 0.0, 0.0);
    doc_slab[place + 2u * STEP] = vec4<f32>(low.values.z, low_rows.z, 0.0, 0.0);
    doc_slab[place + 3u * STEP] = vec4<f32>(low.values.w, low_rows.w, 0.0, 0.0);
    doc_slab[place + 4u * STEP] = vec4<f32>(high.values.x, high_rows.x, 0.0, 0.0);
    doc_slab[place + 5u * STEP] = vec4<f32>(high.values.y, high_rows.y, 0.0, 0.0);
    doc_slab[place + 6u * STEP] = vec4<f32>(high.values.z, high_rows.z, 0.0, 0.0);
    doc_slab[place + 7u * STEP] = vec4<f32>(high.values.w, high_rows.w, 0.0, 0.0);
    workgroupBarrier();
    var result = 0.0;
    if thread < item.num_query_tokens {
        var best = doc_slab[thread * RESULT_STRIDE];
        for (var other = 1u; other < DOC_THREADS; other++) {
            let candidate = doc_slab[thread * RESULT_STRIDE + other];
            if candidate.x > best.x || (candidate.x == best.x && candidate.y < best.y) {
                best = candidate;
            }
        }
        if params.has_query_scales != 0u {
            best.x *= query_scales[item.first_query_token + thread];
        }
        result = best.x;
        if params.is_summed == 0u {
            maxima[item.first_maximum + thread] = result;
        }
        if params.has_matches != 0u {
            // Beyond the last row stands the last token.
            matches[item.first_maximum + thread] = item.first_match + min(u32(best.y), item.num_tokens - 1u);
        }
    }
    if params.is_summed != 0u {
        sum(item, result, thread);
    }
}

/// The score from the maxima of a thread each, in the order of maxsim_sum.
fn sum(item: MaxsimItem, maximum: f32, thread: u32) {
    if thread < MAXSIM_QUERY_TILE {
        let term = 0.0 + select(maximum, max(maximum, 0.0), params.scoring == CLAMPED);
        // Nobody reads the queries any more.
        query_slab[thread].x = term;
    }
    for (var width = MAXSIM_QUERY_TILE / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if thread < width {
            query_slab[thread].x += query_slab[thread + width].x;
        }
    }
    if thread == 0u {
        maxima[item.first_maximum] = query_slab[0].x;
    }
}
