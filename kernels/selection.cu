// The nested farthest-first order of each document, with a support for every token that does not stay: keep the longest
// token, then again and again the one farthest from the hull of those kept.
// A block a document. After each token kept,
//
// 1. test: thread t asks for tokens t, t + THREADS and so on whether the new vertex improves their projection; about a
//    third say yes and are listed, in any order, so that
// 2. project: all threads have work, one listed token each; what comes out does not depend on who does it;
// 3. choose: the token farthest away is the next one kept.
//
// Tests of LIST tokens and projections of THREADS tokens are steps. A launch that has used up max_steps leaves the document
// DOC_UNFINISHED once a token more is kept, and the next one goes on.
//
// gram     each document's matrix from gram_start on, rows of gram_stride(n)
// docs     [num_items]
// faces    [num_tokens, FACE_CAP] token indices within the document and bits of their weights
// states   [num_tokens]
// order    [num_tokens] from each document's first token on: the tokens kept, the first num_first by the host
// curve    [num_tokens] the same places: bound with that many tokens kept
// results  [documents]

#include "shared/face.cuh"

constexpr unsigned THREADS = SELECTION_THREADS;
constexpr unsigned WARPS = THREADS / 32;
// No token: after every token.
constexpr unsigned NONE = 0xffffffffu;
// Squared tolerances below this share of the unit are the CPU's: f32 decides nothing so fine.
constexpr float FINEST_INSIDE = 1e-4f;
// And so are documents whose tokens are this close to a line, squared and as a share of the unit: one long token has taken
// all the precision there is. No goal enters here, so that every goal of a document is answered by the same engine.
constexpr float FINEST_SPREAD = 8e-3f;
// More than what a square root may be off by, here and in the other languages.
constexpr float ROOT_SLACK = 1.000001f;
// Tokens that are tested before those that need it are projected.
constexpr unsigned LIST = 512;

struct SelectionShared {
    uint2 pairs[WARPS];
    unsigned list_len;
    // Tokens and the vertices that improve them.
    uint2 list[LIST];
};

// A document, and the buffers from its first token on.
struct Document {
    Hull hull;
    uint2 *faces;
    TokenState *states;
    const unsigned *order;
    unsigned n;
    float rounding;
};

// The entries of a token.
DEVICE uint2 *face_of(const Document &doc, unsigned i) { return doc.faces + static_cast<size_t>(i) * FACE_CAP; }

// Candidates are the kept tokens.
struct KeptTokens {
    const unsigned *order;
    DEVICE_MEMBER unsigned operator()(unsigned position) const { return order[position]; }
};

DEVICE bool is_better(uint2 a, uint2 b) { return a.x > b.x || (a.x == b.x && a.y < b.y); }

// Largest `x` of the block and the smallest `y` that comes with it, the same for all threads. For all threads at once.
DEVICE uint2 largest(SelectionShared &shared, uint2 pair) {
#pragma unroll
    for (unsigned width = 16; width > 0; width /= 2) {
        const uint2 other = {shuffle_xor(pair.x, width), shuffle_xor(pair.y, width)};
        pair = is_better(other, pair) ? other : pair;
    }
    if (thread_idx() % 32 == 0) {
        shared.pairs[thread_idx() / 32] = pair;
    }
    sync_block();
    pair = shared.pairs[0];
#pragma unroll
    for (unsigned warp = 1; warp < WARPS; warp++) {
        pair = is_better(shared.pairs[warp], pair) ? shared.pairs[warp] : pair;
    }
    sync_block();
    return pair;
}

DEVICE void keep(TokenState *states, unsigned i) { states[i] = TokenState{KEPT, 0.0f, 0, TOKEN_SOLVED}; }

// Projects a token on the hull of the first one kept, in closed form.
DEVICE void start(const Document &doc, unsigned i, unsigned longest) {
    const float norm = entry(doc.hull, longest, longest), own = entry(doc.hull, i, i);
    const float along = entry(doc.hull, longest, i);
    float weight = 1.0f;
    if (doc.hull.is_clamped) {
        weight = along > 0.0f && norm > 0.0f ? min32(along / norm, 1.0f) : 0.0f;
    }
    const float upper = own - weight * (2.0f * along - weight * norm);
    const float level = weight * (along - weight * norm);
    face_of(doc, i)[0] = uint2{longest, bits_of_float(weight)};
    doc.states[i] = TokenState{abs32(max32(upper, 0.0f)), level, weight > 0.0f ? 1u : 0u, TOKEN_SOLVED};
}

// Whether and where any of the kept positions `begin .. end` brings a token closer: the steepest, or ORIGIN for none.
DEVICE unsigned improvement(const Document &doc, unsigned i, const TokenState &state, unsigned begin, unsigned end) {
    const uint2 *face = face_of(doc, i);
    Steepest best = {state.level + gap_allowed(doc.hull, state.upper), ORIGIN};
    for (unsigned position = begin; position < end; position++) {
        const unsigned vertex = doc.order[position];
        const float *row = doc.hull.gram + static_cast<size_t>(vertex) * doc.hull.stride;
        float g = row[i];
        for (unsigned slot = 0; slot < state.num_support; slot++) {
            const uint2 stored = face[slot];
            g -= float_of_bits(stored.y) * row[stored.x];
        }
        if (g > best.top) {
            best = Steepest{g, vertex};
        }
    }
    return best.vertex;
}

// Rebuilds the face from the stored support.
DEVICE void resume(Face &face, const Document &doc, unsigned i, unsigned num_support) {
    face.len = 0;
    float rest = 1.0f;
    for (unsigned slot = 0; slot < num_support; slot++) {
        const uint2 stored = face_of(doc, i)[slot];
        const float weight = float_of_bits(stored.y);
        rest -= weight;
        push(face, doc.hull, i, stored.x, weight);
    }
    // The origin carries what the others leave; as a vertex of weight 0 it would only be dropped again.
    if (doc.hull.is_clamped && rest > doc.rounding) {
        push(face, doc.hull, i, ORIGIN, rest);
    }
}

// Projects a token anew, with a vertex that improves it, on the hull of the first `k` kept.
DEVICE void project(const Document &doc, unsigned i, unsigned vertex, unsigned k) {
    const TokenState state = doc.states[i];
    Face face;
    resume(face, doc, i, state.num_support);
    if (!push(face, doc.hull, i, vertex, 0.0f)) {
        doc.states[i].status = TOKEN_STALLED;
        return;
    }
    Support found;
    const Iterate iterate = descend_from(face, found, doc.hull, KeptTokens{doc.order}, i, k);
    if (iterate.upper > state.upper) {
        // Bounds only fall: the old one, and what it rests on, still hold.
        doc.states[i].status = TOKEN_STALLED;
        return;
    }
    store_support(face_of(doc, i), found);
    const unsigned status = iterate.stop == STALLED ? TOKEN_STALLED : TOKEN_SOLVED;
    doc.states[i] = TokenState{iterate.upper, iterate.level, found.len, status};
}

// Brings all tokens up to date with the kept positions `checked .. k`; the steps that it took.
DEVICE unsigned refresh(SelectionShared &shared, const Document &doc, unsigned checked, unsigned k) {
    unsigned steps = 0;
    for (unsigned base = 0; base < doc.n; base += LIST) {
        if (thread_idx() == 0) {
            shared.list_len = 0;
        }
        sync_block();
        const unsigned limit = doc.n - base < LIST ? doc.n : base + LIST;
        for (unsigned i = base + thread_idx(); i < limit; i += THREADS) {
            const TokenState state = doc.states[i];
            if (state.upper == KEPT || state.upper <= doc.hull.inside) {
                continue;
            }
            const unsigned vertex = improvement(doc, i, state, checked, k);
            if (vertex != ORIGIN) {
                shared.list[atomic_add(&shared.list_len, 1)] = uint2{i, vertex};
            }
        }
        sync_block();
        const unsigned len = shared.list_len;
        for (unsigned place = thread_idx(); place < len; place += THREADS) {
            project(doc, shared.list[place].x, shared.list[place].y, k);
        }
        steps += 1 + (len + THREADS - 1) / THREADS;
        // The tokens of the list belong to other threads; and it is written over next.
        sync_block();
    }
    return steps;
}

// Largest squared distance of a token from the line between tokens `a` and `b`. For all threads at once.
DEVICE float distance_from_line(SelectionShared &shared, const Document &doc, unsigned a, unsigned b) {
    const float origin = entry(doc.hull, a, a), across = entry(doc.hull, a, b);
    const float length = origin - 2.0f * across + entry(doc.hull, b, b);
    float most = 0.0f;
    for (unsigned i = thread_idx(); i < doc.n; i += THREADS) {
        const float to_a = entry(doc.hull, i, a);
        const float along = entry(doc.hull, i, b) - to_a - across + origin;
        const float squared = entry(doc.hull, i, i) - 2.0f * to_a + origin;
        most = max32(most, squared - along * along / max32(length, 1e-30f));
    }
    return float_of_bits(largest(shared, uint2{bits_of_float(most), 0}).x);
}

KERNEL(THREADS)
selection(const float *__restrict__ gram, const Doc *__restrict__ docs, uint2 *faces, TokenState *states,
          unsigned *order, float *curve, DocResult *results, SelectionParams params) {
    SHARED_MEMORY(SelectionShared, shared);
    if (block_idx() >= params.num_items) {
        return;
    }
    const Doc item = docs[block_idx()];
    const unsigned n = item.num_tokens, thread = thread_idx();
    faces += static_cast<size_t>(item.first_token) * FACE_CAP;
    states += item.first_token;
    order += item.first_token;
    curve += item.first_token;
    results += item.doc_idx;

    DocResult result;
    if (params.is_resumed != 0) {
        result = *results;
        if (result.status != DOC_UNFINISHED) {
            return;
        }
    } else {
        // Decides about documents where nothing is to be chosen, and finds the unit of rounding of the others.
        if (item.num_first >= n) {
            for (unsigned i = thread; i < n; i += THREADS) {
                keep(states, i);
            }
            if (thread == 0) {
                if (n > 0) {
                    curve[n - 1] = 0.0f;
                }
                *results = DocResult{n, DOC_DONE, 0, 0.0f};
            }
            return;
        }
        unsigned own_bits = 0;
        for (unsigned i = thread; i < n; i += THREADS) {
            const unsigned bits = norm_bits(gram[item.gram_start + static_cast<size_t>(i) * (gram_stride(n) + 1)]);
            own_bits = bits > own_bits ? bits : own_bits;
        }
        const unsigned unit_bits = largest(shared, uint2{own_bits, 0}).x;
        if (!is_in_range(unit_bits)) {
            if (thread == 0) {
                *results = DocResult{0, DOC_TOO_FINE, 0, 0.0f};
            }
            return;
        }
        result = DocResult{item.num_first, DOC_UNFINISHED, 0, float_of_bits(unit_bits)};
    }

    const float unit = result.unit;
    const Document doc = {hull_of(gram, item, params, unit), faces, states, order, n, params.rounding};
    unsigned k = result.num_kept, num_undecided = result.num_undecided;
    // Positions that every token has been compared with.
    unsigned checked = k == item.num_first ? 1 : k - 1;
    if (params.is_resumed == 0) {
        const unsigned longest = order[0];
        for (unsigned i = thread; i < n; i += THREADS) {
            start(doc, i, longest);
        }
        sync_block();
        for (unsigned position = thread; position < k; position += THREADS) {
            keep(states, order[position]);
        }
        sync_block();
    }

    unsigned status = DOC_UNFINISHED;
    for (unsigned steps = 0; steps < params.max_steps;) {
        steps += refresh(shared, doc, checked, k);
        checked = k;

        // The worst token and whether it stalled; the smallest index of equals.
        uint2 worst = {0, NONE};
        for (unsigned i = thread; i < n; i += THREADS) {
            const TokenState state = states[i];
            const unsigned bits = bits_of_float(state.upper);
            if (state.upper != KEPT && (worst.y == NONE || bits > worst.x)) {
                worst = uint2{bits, 2 * i + (state.status == TOKEN_STALLED ? 1 : 0)};
            }
        }
        worst = largest(shared, worst);
        if (worst.y == NONE) {
            if (thread == 0) {
                curve[k - 1] = 0.0f;
            }
            status = DOC_DONE;
            break;
        }
        const float upper = float_of_bits(worst.x);
        const float bound = sqrt32(upper + params.margin * unit) * ROOT_SLACK;
        if (thread == 0) {
            curve[k - 1] = bound;
        }
        if (k == item.num_first && params.is_project == 0) {
            bool is_too_fine = params.inside < FINEST_INSIDE * unit;
            if (params.inside < 0.0f) {
                const bool is_line = params.scoring == PLAIN && k == 1;
                const float spread = is_line ? distance_from_line(shared, doc, order[0], worst.y / 2) : upper;
                is_too_fine = spread < FINEST_SPREAD * unit;
            }
            if (is_too_fine) {
                status = DOC_TOO_FINE;
                break;
            }
        }
        if (worst.x >= INFINITE) {
            status = DOC_TOO_FINE;
            break;
        }
        if (upper <= doc.hull.inside || bound <= params.stop || k >= item.max_kept || params.is_project != 0) {
            status = DOC_DONE;
            break;
        }

        // It stays.
        const unsigned i = worst.y / 2;
        num_undecided += worst.y % 2;
        // The others see it after the first barrier of `refresh`.
        if (thread == 0) {
            order[k] = i;
            keep(states, i);
        }
        k++;
    }
    if (thread == 0) {
        *results = DocResult{k, status, num_undecided, unit};
    }
}
REGISTER_KERNEL(selection, THREADS)
