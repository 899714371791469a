// Every token against the hull of all others of its document: within the tolerance, needed, or unclear.
// A block a chunk of DOMINANCE_THREADS tokens of a document, a thread a token.
//
// gram     each document's matrix from gram_start on, rows of gram_stride(n)
// docs     [documents]
// items    [num_items] document and first token of a chunk
// faces    [num_tokens, FACE_CAP] token indices within the document and bits of their weights
// states   [num_tokens]

#include "shared/face.cuh"

constexpr unsigned THREADS = DOMINANCE_THREADS;

// Candidates are all tokens; the solver skips its own.
struct AllTokens {
    DEVICE_MEMBER unsigned operator()(unsigned position) const { return position; }
};

// Starts from the nearest candidate.
DEVICE void start_nearest(Face &face, const Hull &hull, unsigned i, unsigned n) {
    Steepest best = {-FAR, ORIGIN};
    for (unsigned j = 0; j < n; j++) {
        // |x_i - x_j|^2 is smallest where this is largest.
        const float gain = 2.0f * entry(hull, j, i) - entry(hull, j, j);
        if (gain > best.top && j != i) {
            best = Steepest{gain, j};
        }
    }
    push(face, hull, i, best.vertex, 1.0f);
}

// Starts from the nearest point on any segment between the origin and a candidate.
DEVICE void start_on_ray(Face &face, const Hull &hull, unsigned i, unsigned n) {
    // The squared distance to the ray of `x_j` is `|x_i|^2 - (x_i . x_j)^2 / |x_j|^2` where the product is positive.
    Steepest best = {0.0f, ORIGIN};
    for (unsigned j = 0; j < n; j++) {
        const float along = entry(hull, j, i);
        const float gain = along * (along / max32(entry(hull, j, j), 1e-37f));
        if (along > 0.0f && gain > best.top && j != i) {
            best = Steepest{gain, j};
        }
    }
    if (best.vertex == ORIGIN) {
        push(face, hull, i, ORIGIN, 1.0f);
        return;
    }
    const float norm = max32(entry(hull, best.vertex, best.vertex), 1e-37f);
    const float weight = min32(entry(hull, best.vertex, i) / norm, 1.0f);
    push(face, hull, i, best.vertex, weight);
    if (weight < 1.0f) {
        push(face, hull, i, ORIGIN, 1.0f - weight);
    }
}

KERNEL(THREADS)
dominance(const float *__restrict__ gram, const Doc *__restrict__ docs, const uint2 *__restrict__ items,
          uint2 *__restrict__ faces, TokenState *__restrict__ states, SelectionParams params) {
    if (block_idx() >= params.num_items) {
        return;
    }
    const uint2 item = items[block_idx()];
    const Doc doc = docs[item.x];
    const unsigned n = doc.num_tokens, i = item.y + thread_idx();
    if (i >= n) {
        return;
    }
    const size_t at = static_cast<size_t>(doc.first_token) + i;
    unsigned unit_bits = 0;
    for (unsigned j = 0; j < n; j++) {
        const unsigned bits = norm_bits(gram[doc.gram_start + static_cast<size_t>(j) * (gram_stride(n) + 1)]);
        unit_bits = bits > unit_bits ? bits : unit_bits;
    }
    if (n == 1 && params.scoring == PLAIN) {
        states[at] = TokenState{FAR, 0.0f, 0, TOKEN_NEEDED};
        return;
    }
    if (!is_in_range(unit_bits)) {
        states[at] = TokenState{FAR, 0.0f, 0, TOKEN_STALLED};
        return;
    }
    const Hull hull = hull_of(gram, doc, params, float_of_bits(unit_bits));
    Face face;
    face.len = 0;
    if (hull.is_clamped) {
        start_on_ray(face, hull, i, n);
    } else {
        start_nearest(face, hull, i, n);
    }
    Support found;
    const Iterate iterate = descend_from(face, found, hull, AllTokens(), i, n);
    unsigned status = TOKEN_STALLED;
    if (iterate.stop == INSIDE) {
        status = TOKEN_SOLVED;
        store_support(faces + at * FACE_CAP, found);
    } else if (iterate.stop == OUTSIDE) {
        status = TOKEN_NEEDED;
    }
    states[at] = TokenState{iterate.upper, iterate.level, found.len, status};
}
REGISTER_KERNEL(dominance, THREADS)
