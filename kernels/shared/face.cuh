// The distance of one token to the hull of others, a token a thread, in the thread's own memory: projected gradient on an
// active face, from inner products only. The same steps as `shaders/shared/face.wgsl`, which says how they differ from
// the CPU engine's.
#pragma once

#include "ragged.cuh"

// The vertex that stands for the origin under clamped scoring.
constexpr unsigned ORIGIN = 0xffffffffu;
// Any positive value makes M definite; its entries are at most 4.
constexpr float SHIFT = 0.25f;
// A vertex whose distance to the affine hull of the others, squared and relative to its own entry, is smaller is taken as
// dependent: f32 cannot tell it from rounding.
constexpr float DEPENDENT = 1e-5f;
// Gap, relative to the squared distance, at which a projection counts as converged.
constexpr float RELATIVE_GAP = 3e-2f;
constexpr unsigned MAX_ITERATIONS = 4 * FACE_CAP;
// Above every squared distance, and below its negative.
constexpr float FAR = 3e38f;
// Bits of positive infinity.
constexpr unsigned INFINITE = 0x7f800000u;

// `upper` of a kept token.
constexpr float KEPT = -1.0f;

// Why a projection stopped.
constexpr unsigned INSIDE = 0;
constexpr unsigned OUTSIDE = 1;
constexpr unsigned CONVERGED = 2;
constexpr unsigned STALLED = 3;

struct Iterate {
    float upper;
    float level;
    unsigned stop;
};

// The candidate with the largest gradient.
struct Steepest {
    float top;
    unsigned vertex;
};

// The document, and tolerances in its unit: squared distances.
struct Hull {
    const float *gram;
    unsigned stride;
    bool is_clamped;
    float inverse_unit;
    float rounding;
    // Upper bounds up to this are good enough; negative if none is.
    float inside;
    // Lower bounds above this are good enough.
    float outside;
};

struct Face {
    unsigned len;
    unsigned vertices[FACE_CAP];
    // Positive, of sum 1.
    float weights[FACE_CAP];
    // L by rows, each as long as its number; diagonal entries are stored as reciprocals.
    float factor[FACE_CAP * (FACE_CAP + 1) / 2];
    // L^-1 1.
    float forward[FACE_CAP];
    // M^-1 1, or the cosines of a removal.
    float ones[FACE_CAP];
    // The sines of a removal.
    float sines[FACE_CAP];
};

// The face without the origin.
struct Support {
    unsigned len;
    unsigned vertices[FACE_CAP];
    float weights[FACE_CAP];
    float origin_weight;
};

// The document and its tolerances, given its largest squared norm.
DEVICE Hull hull_of(const float *gram, const Doc &doc, const SelectionParams &params, float unit) {
    const float rounding = params.rounding * unit;
    const bool decides = params.inside >= 0.0f;
    return Hull{gram + doc.gram_start,
                gram_stride(doc.num_tokens),
                params.scoring == CLAMPED,
                1.0f / unit,
                rounding,
                decides ? params.inside - rounding : -1.0f,
                decides ? params.inside + rounding : FAR};
}

// Bits of a squared norm: ordered as the norms are, with NaN and infinity on top.
DEVICE unsigned norm_bits(float norm) { return bits_of_float(norm) & 0x7fffffffu; }

// Whether the squares of a document stay within f32 in all that follows: 1e-30 and 1e30.
DEVICE bool is_in_range(unsigned unit_bits) { return unit_bits > 0x0da24260u && unit_bits < 0x7149f2cau; }

DEVICE float entry(const Hull &hull, unsigned a, unsigned b) {
    return hull.gram[static_cast<size_t>(a) * hull.stride + b];
}

DEVICE unsigned factor_row(unsigned row) { return row * (row + 1) / 2; }

// Optimality gap that counts as closed.
DEVICE float gap_allowed(const Hull &hull, float upper) { return max32(RELATIVE_GAP * upper, 0.25f * hull.rounding); }

// Adds a vertex; false, and nothing changed, when it depends on the others or the face is full.
NOINLINE bool push(Face &face, const Hull &hull, unsigned i, unsigned vertex, float weight) {
    if (face.len == FACE_CAP) {
        return false;
    }
    const float own = entry(hull, i, i);
    float to_target = 0.0f, norm = 0.0f;
    if (vertex != ORIGIN) {
        to_target = entry(hull, vertex, i);
        norm = entry(hull, vertex, vertex);
    }
    const float offset = own - to_target;
    const float diagonal = SHIFT + (offset + (norm - to_target)) * hull.inverse_unit;
    const unsigned new_row = factor_row(face.len);
    float rest = diagonal, forward = 1.0f;
    for (unsigned s = 0; s < face.len; s++) {
        const unsigned other = face.vertices[s];
        float between = 0.0f, towards = 0.0f;
        if (other != ORIGIN) {
            towards = entry(hull, other, i);
            if (vertex != ORIGIN) {
                between = entry(hull, vertex, other);
            }
        }
        float sum = SHIFT + (offset + (between - towards)) * hull.inverse_unit;
        const unsigned row = factor_row(s);
        for (unsigned t = 0; t < s; t++) {
            sum -= face.factor[row + t] * face.factor[new_row + t];
        }
        const float value = sum * face.factor[row + s];
        face.factor[new_row + s] = value;
        rest -= value * value;
        forward -= value * face.forward[s];
    }
    if (!(rest > DEPENDENT * diagonal)) {
        return false;
    }
    const float reciprocal = 1.0f / sqrt32(rest);
    face.factor[new_row + face.len] = reciprocal;
    face.forward[face.len] = forward * reciprocal;
    face.vertices[face.len] = vertex;
    face.weights[face.len] = weight;
    face.len++;
    return true;
}

// Solves M u = 1 for `ones`; returns the sum of u.
DEVICE float solve(Face &face) {
    float total = 0.0f;
    for (unsigned back = 0; back < face.len; back++) {
        const unsigned s = face.len - 1 - back;
        float sum = face.forward[s];
        for (unsigned t = s + 1; t < face.len; t++) {
            sum -= face.factor[factor_row(t) + s] * face.ones[t];
        }
        sum *= face.factor[factor_row(s) + s];
        face.ones[s] = sum;
        total += sum;
    }
    return total;
}

// Drops a vertex: the rows below it move up by one, and rotations make L triangular again.
DEVICE void remove(Face &face, unsigned q) {
    for (unsigned row = q + 1; row < face.len; row++) {
        const unsigned from_row = factor_row(row), to_row = factor_row(row - 1);
        for (unsigned t = 0; t < q; t++) {
            face.factor[to_row + t] = face.factor[from_row + t];
        }
        float carry = face.factor[from_row + q];
        for (unsigned t = q; t + 1 < row; t++) {
            const float value = face.factor[from_row + t + 1];
            face.factor[to_row + t] = face.ones[t] * carry + face.sines[t] * value;
            carry = face.ones[t] * value - face.sines[t] * carry;
        }
        const float diagonal = 1.0f / face.factor[from_row + row];
        const float reciprocal = 1.0f / sqrt32(carry * carry + diagonal * diagonal);
        const float cosine = carry * reciprocal, sine = diagonal * reciprocal;
        face.factor[to_row + row - 1] = reciprocal;
        face.ones[row - 1] = cosine;
        face.sines[row - 1] = sine;
        // 1 = L z turns with L.
        const float above = face.forward[row - 1], below = face.forward[row];
        face.forward[row - 1] = cosine * above + sine * below;
        face.forward[row] = cosine * below - sine * above;
        face.vertices[row - 1] = face.vertices[row];
        face.weights[row - 1] = face.weights[row];
    }
    face.len--;
}

// Moves the weights to the minimiser of the face, dropping vertices whose weight would turn negative (Wolfe's minor
// cycle). False when rounding has made the factor meaningless.
DEVICE bool descend(Face &face) {
    for (unsigned round = 0; round < FACE_CAP; round++) {
        const float total = solve(face);
        // At most 1 / SHIFT in exact arithmetic.
        if (!(total > 0.0f && total < 2.0f / SHIFT)) {
            return false;
        }
        const float scale = 1.0f / total;
        float step = 2.0f;
        unsigned leaving = FACE_CAP;
        for (unsigned s = 0; s < face.len; s++) {
            const float goal = face.ones[s] * scale;
            if (!(goal > 0.0f)) {
                const float weight = face.weights[s];
                // Neither the weight nor its goal is positive: it leaves at once.
                const float ratio = weight > 0.0f ? weight / (weight - goal) : 0.0f;
                if (ratio < step) {
                    step = ratio;
                    leaving = s;
                }
            }
        }
        if (leaving == FACE_CAP) {
            for (unsigned s = 0; s < face.len; s++) {
                face.weights[s] = face.ones[s] * scale;
            }
            return true;
        }
        if (face.len == 1) {
            return false;
        }
        for (unsigned s = 0; s < face.len; s++) {
            const float weight = face.weights[s];
            face.weights[s] = max32(weight + step * (face.ones[s] * scale - weight), 0.0f);
        }
        remove(face, leaving);
    }
    return false;
}

// Copies the face without the origin.
DEVICE void collect(const Face &face, Support &support) {
    support.len = 0;
    support.origin_weight = 0.0f;
    for (unsigned s = 0; s < face.len; s++) {
        if (face.vertices[s] == ORIGIN) {
            support.origin_weight = face.weights[s];
        } else {
            support.vertices[support.len] = face.vertices[s];
            support.weights[support.len] = face.weights[s];
            support.len++;
        }
    }
}

// Walks the candidates `0 .. num_candidates` without `i`: the steepest, and where the projection stands. All threads of a
// block read the same rows, four at a time for each vertex taken from the thread's memory.
template <class Candidate>
DEVICE Iterate scan(const Hull &hull, const Support &support, const Candidate &candidate, unsigned i, float own,
                    unsigned num_candidates, Steepest &best) {
    best = Steepest{-FAR, ORIGIN};
    float target = support.origin_weight * own, level = 0.0f;
    for (unsigned position = 0; position < num_candidates; position += 4) {
        unsigned j[4];
        const float *rows[4];
        float along[4], g[4], share[4] = {};
#pragma unroll
        for (unsigned p = 0; p < 4; p++) {
            // Past the end the last one is read again, and counts for nothing.
            j[p] = candidate(position + p < num_candidates ? position + p : num_candidates - 1);
            rows[p] = hull.gram + static_cast<size_t>(j[p]) * hull.stride;
            along[p] = rows[p][i];
            g[p] = along[p];
        }
        for (unsigned s = 0; s < support.len; s++) {
            const unsigned vertex = support.vertices[s];
            const float weight = support.weights[s];
#pragma unroll
            for (unsigned p = 0; p < 4; p++) {
                g[p] -= weight * rows[p][vertex];
                share[p] = j[p] == vertex ? weight : share[p];
            }
        }
#pragma unroll
        for (unsigned p = 0; p < 4; p++) {
            if (position + p < num_candidates) {
                target += share[p] * (own - along[p]);
                level += share[p] * g[p];
                if (g[p] > best.top && j[p] != i) {
                    best = Steepest{g[p], j[p]};
                }
            }
        }
    }
    // Never negative zero: bounds are compared as bits.
    return Iterate{abs32(max32(target - level, 0.0f)), level, CONVERGED};
}

DEVICE bool has_vertex(const Face &face, unsigned vertex) {
    for (unsigned s = 0; s < face.len; s++) {
        if (face.vertices[s] == vertex) {
            return true;
        }
    }
    return false;
}

// Moves to the minimiser of the face, then iterates against `num_candidates` until a tolerance or the optimum.
template <class Candidate>
DEVICE Iterate descend_from(Face &face, Support &support, const Hull &hull, const Candidate &candidate, unsigned i,
                            unsigned num_candidates) {
    const float own = entry(hull, i, i);
    Iterate iterate = {0.0f, 0.0f, STALLED};
    float last = FAR;
    support.len = 0;
    for (unsigned iteration = 0; iteration < MAX_ITERATIONS; iteration++) {
        if (!descend(face)) {
            // What the weights add up to is not known.
            iterate.upper = FAR;
            break;
        }
        collect(face, support);
        Steepest best;
        iterate = scan(hull, support, candidate, i, own, num_candidates, best);
        if (iterate.upper <= hull.inside) {
            iterate.stop = INSIDE;
            return iterate;
        }
        if (iterate.upper > last + hull.rounding) {
            break;
        }
        last = iterate.upper;
        if (hull.is_clamped && best.top <= 0.0f) {
            best = Steepest{0.0f, ORIGIN};
        }
        // The lower bound is this over |r|. Its square may leave the range of f32; the root does not.
        const float lower = iterate.upper + iterate.level - best.top;
        const float distance = sqrt32(iterate.upper);
        if (lower > 0.0f && lower > sqrt32(hull.outside) * distance) {
            iterate.stop = OUTSIDE;
            return iterate;
        }
        // A wide bracket around the tolerance decides nothing: close it further.
        const bool straddles = hull.inside >= 0.0f && lower <= sqrt32(hull.inside) * distance;
        const float allowed = straddles ? 0.25f * hull.rounding : gap_allowed(hull, iterate.upper);
        if (best.top - iterate.level <= allowed) {
            return iterate;
        }
        if (has_vertex(face, best.vertex) || !push(face, hull, i, best.vertex, 0.0f)) {
            break;
        }
    }
    iterate.stop = STALLED;
    return iterate;
}

// Stores a token's support in its FACE_CAP entries of `faces`: vertex and bits of its weight.
DEVICE void store_support(uint2 *face, const Support &support) {
    for (unsigned slot = 0; slot < support.len; slot++) {
        face[slot] = uint2{support.vertices[slot], bits_of_float(support.weights[slot])};
    }
}
