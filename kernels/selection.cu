// The nested farthest-first order of each document, with a support for every token that does not stay: keep the longest
// token, then again and again the one farthest from the hull of those kept.
// A block a document. After each token kept,
//
// 1. test: thread t asks for tokens t, t + THREADS and so on whether the new vertex improves their projection; about a
//    third say yes and are listed, in any order, so that
// 2. project: all lanes have work, half a warp a listed token; what comes out does not depend on who does it;
// 3. choose: the token farthest away is the next one kept.
//
// Half a warp suffices for faces of up to 16 vertices, and nearly all are smaller. What outgrows it, and documents that keep
// more than KEPT_CAP tokens, go to whole warps, which start again from the face as it was.
//
// Tests of LIST tokens and projections of SELECTION_THREADS tokens are steps. A launch that has used up max_steps leaves the
// document DOC_UNFINISHED once a token more is kept, and the next one goes on. Until a document is done, the vertices of its
// supports are positions in the order.
//
// gram     each document's matrix from gram_start on, rows of gram_stride(n)
// docs     [num_items]
// faces    [num_tokens, FACE_CAP] token indices within the document and bits of their weights
// states   [num_tokens]
// order    [num_tokens] from each document's first token on: the tokens kept, the first num_first by the host
// curve    [num_tokens] the same places: bound with that many tokens kept
// results  [documents]

#include "shared/kept.cuh"

constexpr unsigned THREADS = 256;
constexpr unsigned WARPS = THREADS / 32;
constexpr unsigned WIDE = 32;
constexpr unsigned GROUPS = THREADS / NARROW;
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

// A document, and the buffers from its first token on.
struct Document {
    Hull hull;
    uint2 *faces;
    TokenState *states;
    unsigned *order;
    float *curve;
    unsigned n;
    unsigned num_first;
    unsigned max_kept;
    float unit;
    float rounding;
};

// A listed token: its number within the list's span, the position of the vertex that improves it, and a mark.
constexpr unsigned LIST_BITS = 9;
constexpr unsigned IS_WIDE = 0x80000000u;
static_assert(LIST == 1u << LIST_BITS, "numbers fit");

// While the products are there, only so many wide faces are.
constexpr unsigned WIDE_BESIDE = sizeof(NarrowShared) * GROUPS / sizeof(FaceShared<WIDE>);

struct NearShared {
    NarrowShared narrow[GROUPS];
    float kept[KEPT_CAP * KEPT_STRIDE];
};

struct SelectionShared {
    // In registers it would push others out.
    Document doc;
    // The first thread's.
    unsigned num_undecided;
    uint2 pairs[WARPS];
    unsigned list_len;
    unsigned list[LIST];
    union {
        NearShared near;
        FaceShared<WIDE> wide[WARPS];
    };
};

// The entries of a token.
DEVICE uint2 *face_of(const Document &doc, unsigned i) { return doc.faces + static_cast<size_t>(i) * FACE_CAP; }

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
    face_of(doc, i)[0] = uint2{0, bits_of_float(weight)};
    doc.states[i] = TokenState{abs32(max32(upper, 0.0f)), level, weight > 0.0f ? 1u : 0u, TOKEN_SOLVED};
}

// Whether and where any of the kept positions `begin .. end` brings a token closer: the steepest, or ORIGIN for none.
template <class Products>
DEVICE unsigned improvement(const Document &doc, const Products &products, unsigned i, const TokenState &state,
                            unsigned begin, unsigned end) {
    const uint2 *face = face_of(doc, i);
    Steepest best = {state.level + gap_allowed(doc.hull, state.upper), ORIGIN};
    for (unsigned position = begin; position < end; position++) {
        const float *row = products.row(position);
        float g = entry(doc.hull, doc.order[position], i);
        for (unsigned slot = 0; slot < state.num_support; slot++) {
            const uint2 vertex = face[slot];
            g = fma32(-float_of_bits(vertex.y), row[products.column(vertex.x)], g);
        }
        if (g > best.top) {
            best = Steepest{g, position};
        }
    }
    return best.vertex;
}

// Projects a token anew, with a vertex that improves it, on the hull of the first `k` kept, where the group `wants` it.
// False, and nothing written, when it takes a larger group.
template <unsigned LANES, class Products>
DEVICE bool project(const Document &doc, FaceShared<LANES> *shared, const Products &products, unsigned i, unsigned vertex,
                    unsigned k, bool wants) {
    Face<LANES> face = empty_face(shared);
    const float own = wants ? entry(doc.hull, i, i) : 0.0f;
    uint2 slot = {NO_VERTEX, 0};
    unsigned len = wants ? doc.states[i].num_support : 0;
    if (face.lane < len) {
        slot = face_of(doc, i)[face.lane];
    }
    // The origin carries what the others leave; as a vertex of weight 0 it would only be dropped again.
    const float rest = 1.0f - sum_of<LANES>(float_of_bits(slot.y));
    if (wants && doc.hull.is_clamped && rest > doc.rounding) {
        slot = face.lane == len ? uint2{ORIGIN, bits_of_float(rest)} : slot;
        len++;
    }
    const bool fits = len < LANES;
    bool runs = wants && fits;
    if (LANES == NARROW) {
        slot = face.lane == len ? uint2{vertex, 0} : slot;
        len = runs ? len + 1 : 0;
        face.vertex = slot.x;
        face.weight = float_of_bits(slot.y);
        build(face, doc.hull, products, own, len);
        runs = runs && (face.used >> (len - 1)) != 0;
    } else {
        clear(face);
#pragma unroll 1
        for (unsigned s = 0; s < len; s++) {
            const float weight = of_lane(face, float_of_bits(slot.y), s);
            push(face, doc.hull, products, own, of_lane(face, slot.x, s), weight, runs);
        }
        runs = push(face, doc.hull, products, own, vertex, 0.0f, runs);
    }
    Iterate iterate = {FAR, 0.0f, STALLED};
    if (any_lane(runs)) {
        const Iterate found = descend_from(face, doc.hull, products, own, NONE, k, runs);
        iterate = runs ? found : iterate;
    }
    const bool is_too_wide = LANES < WIDE && wants && (!fits || iterate.stop == FULL);
    // Bounds only fall: where it did not, the old one, and what it rests on, still hold.
    const bool falls = wants && !is_too_wide && iterate.upper <= doc.states[i].upper;
    const unsigned num_support = store_face(face_of(doc, i), face, falls);
    if (falls && face.lane == 0) {
        const bool is_solved = iterate.stop != STALLED && iterate.stop != FULL;
        doc.states[i] = TokenState{iterate.upper, iterate.level, num_support, is_solved ? TOKEN_SOLVED : TOKEN_STALLED};
    } else if (wants && !is_too_wide && face.lane == 0) {
        doc.states[i].status = TOKEN_STALLED;
    }
    return !is_too_wide;
}

// Projects the listed tokens in groups of half a warp; whether any takes a whole one.
DEVICE bool project_narrow(SelectionShared &shared, const Document &doc, unsigned base, unsigned len, unsigned k) {
    const unsigned group = thread_idx() / NARROW, lane = thread_idx() % NARROW;
    NarrowShared &own = shared.near.narrow[group];
    bool is_any_wide = false;
    for (unsigned place = group; any_lane(place < len); place += GROUPS) {
        const bool wants = place < len;
        const unsigned listed = wants ? shared.list[place] : 0;
        const unsigned i = base + listed % LIST;
        copy_own_row(own, doc.hull, doc.order, i, wants ? k : 0);
        const NearProducts products = {shared.near.kept, own.own_row};
        const bool is_done = project(doc, &own.face, products, i, listed >> LIST_BITS, k, wants);
        if (!is_done && lane == 0) {
            shared.list[place] = listed | IS_WIDE;
        }
        is_any_wide = is_any_wide || !is_done;
        // The next token's row is written over this one's.
        sync_warp();
    }
    return is_any_wide;
}

// Projects those of the listed tokens that are marked, or all, a warp each.
DEVICE void project_wide(SelectionShared &shared, const Document &doc, unsigned base, unsigned len, unsigned k, bool all) {
    const unsigned warp = thread_idx() / 32, num_warps = all ? WARPS : WIDE_BESIDE;
    if (warp >= num_warps) {
        return;
    }
    for (unsigned place = warp; place < len; place += num_warps) {
        const unsigned listed = shared.list[place];
        if (!all && (listed & IS_WIDE) == 0) {
            continue;
        }
        const unsigned i = base + listed % LIST, vertex = (listed & ~IS_WIDE) >> LIST_BITS;
        const FarProducts products = {doc.hull, doc.order, row_of(doc.hull, i)};
        project(doc, &shared.wide[warp], products, i, vertex, k, true);
        sync_warp();
    }
}

// Brings all tokens up to date with the kept positions `checked .. k`; the steps that it took.
DEVICE unsigned refresh(SelectionShared &shared, const Document &doc, unsigned checked, unsigned k) {
    const bool is_near = k <= KEPT_CAP;
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
            const unsigned vertex =
                is_near ? improvement(doc, NearProducts{shared.near.kept, nullptr}, i, state, checked, k)
                        : improvement(doc, FarProducts{doc.hull, doc.order, nullptr}, i, state, checked, k);
            if (vertex != ORIGIN) {
                shared.list[atomic_add(&shared.list_len, 1)] = vertex << LIST_BITS | (i - base);
            }
        }
        sync_block();
        const unsigned len = shared.list_len;
        bool is_any_wide = !is_near;
        if (is_near) {
            is_any_wide = any_thread(project_narrow(shared, doc, base, len, k));
        }
        if (is_any_wide) {
            project_wide(shared, doc, base, len, k, !is_near);
            // The tokens of the list belong to other threads; and it is written over next.
            sync_block();
        }
        steps += 1 + (len + SELECTION_THREADS - 1) / SELECTION_THREADS;
    }
    return steps;
}

// Turns the vertices of all supports from positions into tokens. A warp a token.
DEVICE void name_vertices(const Document &doc) {
    const unsigned lane = thread_idx() % 32;
    for (unsigned i = thread_idx() / 32; i < doc.n; i += WARPS) {
        const TokenState state = doc.states[i];
        if (lane < state.num_support) {
            uint2 *vertex = &face_of(doc, i)[lane];
            vertex->x = doc.order[vertex->x];
        }
    }
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

    if (thread == 0) {
        shared.doc = Document{hull_of(gram, item, params, result.unit), faces, states, order, curve, n, item.num_first,
                              item.max_kept, result.unit, params.rounding};
        shared.num_undecided = result.num_undecided;
    }
    sync_block();
    const Document &doc = shared.doc;
    unsigned k = result.num_kept;
    // Positions that every token has been compared with, and those whose products are in shared memory.
    unsigned checked = k == doc.num_first ? 1 : k - 1, copied = 0;
    if (params.is_resumed == 0) {
        const unsigned longest = doc.order[0];
        for (unsigned i = thread; i < doc.n; i += THREADS) {
            start(doc, i, longest);
        }
        sync_block();
        for (unsigned position = thread; position < k; position += THREADS) {
            keep(doc.states, doc.order[position]);
        }
        sync_block();
    }

    unsigned status = DOC_UNFINISHED;
    for (unsigned steps = 0; steps < params.max_steps;) {
        if (k <= KEPT_CAP) {
            copy_products(shared.near.kept, doc.hull, doc.order, copied, k, THREADS);
            copied = k;
        }
        steps += refresh(shared, doc, checked, k);
        checked = k;

        // The worst token and whether it stalled; the smallest index of equals.
        uint2 worst = {0, NONE};
        for (unsigned i = thread; i < doc.n; i += THREADS) {
            const TokenState state = doc.states[i];
            const unsigned bits = bits_of_float(state.upper);
            if (state.upper != KEPT && (worst.y == NONE || bits > worst.x)) {
                worst = uint2{bits, 2 * i + (state.status == TOKEN_STALLED ? 1 : 0)};
            }
        }
        worst = largest(shared, worst);
        if (worst.y == NONE) {
            if (thread == 0) {
                doc.curve[k - 1] = 0.0f;
            }
            status = DOC_DONE;
            break;
        }
        const float upper = float_of_bits(worst.x);
        const float bound = sqrt32(upper + params.margin * doc.unit) * ROOT_SLACK;
        if (thread == 0) {
            doc.curve[k - 1] = bound;
        }
        if (k == doc.num_first && params.is_project == 0) {
            bool is_too_fine = params.inside < FINEST_INSIDE * doc.unit;
            if (params.inside < 0.0f) {
                const bool is_line = params.scoring == PLAIN && k == 1;
                const float spread = is_line ? distance_from_line(shared, doc, doc.order[0], worst.y / 2) : upper;
                is_too_fine = spread < FINEST_SPREAD * doc.unit;
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
        if (upper <= doc.hull.inside || bound <= params.stop || k >= doc.max_kept || params.is_project != 0) {
            status = DOC_DONE;
            break;
        }

        // It stays.
        const unsigned i = worst.y / 2;
        if (thread == 0) {
            shared.num_undecided += worst.y % 2;
            doc.order[k] = i;
            keep(doc.states, i);
        }
        sync_block();
        k++;
    }
    if (status == DOC_DONE) {
        name_vertices(doc);
    }
    if (thread == 0) {
        *results = DocResult{k, status, shared.num_undecided, doc.unit};
    }
}
REGISTER_KERNEL(selection, THREADS)
