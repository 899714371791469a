// The distance of one token to the hull of others, a token a group of LANES lanes of a warp: projected gradient on an
// active face, from inner products only. The same steps as `shaders/shared/face.wgsl`, which says how they differ from the
// CPU engine's; what differs here:
//
// 1. The face is spread over the group: a lane a vertex, in whichever slot was free.
// 2. M is neither factored nor inverted: W with W M W^T = 1 is kept, in shared memory, and need not be triangular. A vertex
//    that joins is a row more, and one that leaves a reflection (Householder), both without a substitution that lanes would
//    have to wait in. M^-1 = W^T W loses the digits of the root of M's condition where an inverse would lose those of all
//    of it, and f32 has few.
// 3. The vertices are walked before the candidates: a token that turns out to be within the tolerance needs no more.
//
// The groups of a warp take the same turns until all are done, those that are done without effect, so that all lanes meet
// in every shuffle. Nothing is in local memory. What is summed over a group has the same bits in all its lanes.
//
// Rows and columns of the inner products come from a `Products`: `row(vertex)[column(other)]`, and `own_row[column(other)]`
// for the token itself. Vertices are what it says they are: tokens, or positions in the order kept.
#pragma once

#include "ragged.cuh"

// The vertex that stands for the origin under clamped scoring, and the one in free slots.
constexpr unsigned ORIGIN = 0xffffffffu;
constexpr unsigned NO_VERTEX = 0xfffffffeu;
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
// Candidates that a lane walks at once.
constexpr unsigned ABREAST = 2;

// `upper` of a kept token.
constexpr float KEPT = -1.0f;

// Why a projection stopped.
constexpr unsigned INSIDE = 0;
constexpr unsigned OUTSIDE = 1;
constexpr unsigned CONVERGED = 2;
constexpr unsigned STALLED = 3;
// No slot is free: a larger group may go on.
constexpr unsigned FULL = 4;

struct Iterate {
    float upper;
    float level;
    unsigned stop;
};

// The candidate with the largest gradient, the first of equals.
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
    // Its root, and that of what lower bounds above are good enough.
    float inside_root;
    float outside_root;
};

// A group's shared memory.
template <unsigned LANES> struct FaceShared {
    // W, slot by slot; zero wherever a slot is free. Rows are LANES + 1 apart, so that lanes with a row each are in banks
    // of their own.
    float factor[LANES * (LANES + 1)];
    // What the lanes tell each other, in turn.
    alignas(16) float vector[LANES];
    alignas(16) float other_vector[LANES];
    // Vertices and bits of weights; for the origin and in free slots a weight of 0.
    uint2 support[LANES];
};

// What a lane knows: of the group, and of the slot of its own number.
template <unsigned LANES> struct Face {
    FaceShared<LANES> *shared;
    // Within the group, and the group's first within the warp.
    unsigned lane;
    unsigned first_lane;
    // A bit for each slot with a vertex; the same for the group.
    unsigned used;
    unsigned vertex;
    // Positive, of sum 1 over the group.
    float weight;
    // Product with the token, 0 for the origin.
    float along;
    // An entry of W 1.
    float forward;
};

// The document and its tolerances, given its largest squared norm.
DEVICE Hull hull_of(const float *gram, const Doc &doc, const SelectionParams &params, float unit) {
    const float rounding = params.rounding * unit;
    const bool decides = params.inside >= 0.0f;
    const float inside = decides ? params.inside - rounding : -1.0f;
    return Hull{gram + doc.gram_start,
                gram_stride(doc.num_tokens),
                params.scoring == CLAMPED,
                1.0f / unit,
                rounding,
                inside,
                sqrt32(max32(inside, 0.0f)),
                sqrt32(decides ? params.inside + rounding : FAR)};
}

// Bits of a squared norm: ordered as the norms are, with NaN and infinity on top.
DEVICE unsigned norm_bits(float norm) { return bits_of_float(norm) & 0x7fffffffu; }

// Whether the squares of a document stay within f32 in all that follows: 1e-30 and 1e30.
DEVICE bool is_in_range(unsigned unit_bits) { return unit_bits > 0x0da24260u && unit_bits < 0x7149f2cau; }

DEVICE const float *row_of(const Hull &hull, unsigned a) { return hull.gram + static_cast<size_t>(a) * hull.stride; }

DEVICE float entry(const Hull &hull, unsigned a, unsigned b) { return row_of(hull, a)[b]; }

// Optimality gap that counts as closed.
DEVICE float gap_allowed(const Hull &hull, float upper) { return max32(RELATIVE_GAP * upper, 0.25f * hull.rounding); }

// Sum over the group.
template <unsigned LANES> DEVICE float sum_of(float value) {
#pragma unroll
    for (unsigned width = LANES / 2; width > 0; width /= 2) {
        value += shuffle_xor(value, width);
    }
    return value;
}

template <unsigned LANES> DEVICE Steepest steepest_of(Steepest best) {
#pragma unroll
    for (unsigned width = LANES / 2; width > 0; width /= 2) {
        const Steepest other = {shuffle_xor(best.top, width), shuffle_xor(best.vertex, width)};
        const bool is_better = other.top > best.top || (other.top == best.top && other.vertex < best.vertex);
        best = is_better ? other : best;
    }
    return best;
}

// Which lanes of the group say so.
template <unsigned LANES> DEVICE unsigned group_ballot(const Face<LANES> &face, bool says) {
    return (ballot(says) >> face.first_lane) & (0xffffffffu >> (32 - LANES));
}

// A value of another lane of the group.
template <unsigned LANES, class T> DEVICE T of_lane(const Face<LANES> &face, T value, unsigned lane) {
    return shuffle(value, face.first_lane + lane);
}

// Slots up to the last one with a vertex.
template <unsigned LANES> DEVICE unsigned num_slots(const Face<LANES> &face) { return 32 - num_high_zeros(face.used); }

template <unsigned LANES> DEVICE Face<LANES> empty_face(FaceShared<LANES> *shared) {
    const unsigned lane = thread_idx() % LANES;
    return Face<LANES>{shared, lane, thread_idx() % 32 - lane, 0, NO_VERTEX, 0.0f, 0.0f, 0.0f};
}

// Makes W zero.
template <unsigned LANES> DEVICE void clear(Face<LANES> &face) {
#pragma unroll
    for (unsigned s = 0; s < LANES; s++) {
        face.shared->factor[s * (LANES + 1) + face.lane] = 0.0f;
    }
}

// This lane's row of W times a vector that the group has just written.
template <unsigned LANES> DEVICE float row_times(const Face<LANES> &face, const float *vector) {
    const float *row = &face.shared->factor[face.lane * (LANES + 1)];
    const unsigned len = num_slots(face);
    float sum = 0.0f;
#pragma unroll 2
    for (unsigned t = 0; t < len; t += 4) {
        const float4 four = *reinterpret_cast<const float4 *>(&vector[t]);
        sum = fma32(row[t], four.x, sum);
        sum = fma32(row[t + 1], four.y, sum);
        sum = fma32(row[t + 2], four.z, sum);
        sum = fma32(row[t + 3], four.w, sum);
    }
    return sum;
}

// A vector that the group has just written times this lane's column of W.
template <unsigned LANES> DEVICE float times_column(const Face<LANES> &face, const float *vector) {
    const float *column = &face.shared->factor[face.lane];
    const unsigned len = num_slots(face);
    float sum = 0.0f;
#pragma unroll 2
    for (unsigned s = 0; s < len; s += 4) {
        const float4 four = *reinterpret_cast<const float4 *>(&vector[s]);
        sum = fma32(four.x, column[s * (LANES + 1)], sum);
        sum = fma32(four.y, column[(s + 1) * (LANES + 1)], sum);
        sum = fma32(four.z, column[(s + 2) * (LANES + 1)], sum);
        sum = fma32(four.w, column[(s + 3) * (LANES + 1)], sum);
    }
    return sum;
}

// Adds a vertex where the group `wants` it; false, and nothing changed, when it depends on the others or no slot is free.
template <unsigned LANES, class Products>
DEVICE bool push(Face<LANES> &face, const Hull &hull, const Products &products, float own, unsigned vertex, float weight,
                 bool wants) {
    FaceShared<LANES> &shared = *face.shared;
    const unsigned slot = num_low_zeros(~face.used);
    wants = wants && slot < LANES;
    const bool is_token = wants && vertex != ORIGIN;
    const unsigned column = is_token ? products.column(vertex) : 0;
    const float to_target = is_token ? products.own_row[column] : 0.0f;
    const float norm = is_token ? products.row(vertex)[column] : 0.0f;
    const float offset = own - to_target;
    const float diagonal = SHIFT + (offset + (norm - to_target)) * hull.inverse_unit;
    float entry = 0.0f;
    if (wants && face.vertex != NO_VERTEX) {
        const bool both = is_token && face.vertex != ORIGIN;
        const float between = both ? products.row(vertex)[products.column(face.vertex)] : 0.0f;
        entry = SHIFT + (offset + (between - face.along)) * hull.inverse_unit;
    }
    shared.vector[face.lane] = entry;
    sync_warp();
    // The new row of the triangle under the others, as if W were the inverse of one.
    const float below = row_times(face, shared.vector);
    shared.other_vector[face.lane] = below;
    const float rest = diagonal - sum_of<LANES>(below * below);
    const float forward = 1.0f - sum_of<LANES>(below * face.forward);
    const bool joins = wants && rest > DEPENDENT * diagonal;
    sync_warp();
    if (joins) {
        const float reciprocal = reciprocal_sqrt32(rest);
        const float inner = times_column(face, shared.other_vector);
        shared.factor[slot * (LANES + 1) + face.lane] = face.lane == slot ? reciprocal : -reciprocal * inner;
        if (face.lane == slot) {
            face.vertex = vertex;
            face.weight = weight;
            face.along = to_target;
            face.forward = forward * reciprocal;
        }
        face.used |= 1u << slot;
    }
    return joins;
}

// Builds the face of the vertices and weights that the first `len` lanes bring, all at once: Gauss's elimination turns M and
// the unit matrix beside it into a triangle and W, a row a lane, in registers. Dependent vertices are left out.
template <unsigned LANES, class Products>
DEVICE void build(Face<LANES> &face, const Hull &hull, const Products &products, float own, unsigned len) {
    FaceShared<LANES> &shared = *face.shared;
    const bool is_token = face.lane < len && face.vertex < NO_VERTEX;
    const unsigned column = is_token ? products.column(face.vertex) : 0;
    face.along = is_token ? products.own_row[column] : 0.0f;
    const float norm = is_token ? products.row(face.vertex)[column] : 0.0f;
    const float diagonal = SHIFT + ((own - face.along) + (norm - face.along)) * hull.inverse_unit;
    shared.support[face.lane] = uint2{face.vertex, bits_of_float(face.along)};
    sync_warp();
    float row[LANES];
#pragma unroll
    for (unsigned t = 0; t < LANES; t++) {
        row[t] = 0.0f;
        if (t < len && face.lane < len) {
            const uint2 other = shared.support[t];
            const bool both = is_token && other.x < NO_VERTEX;
            const float between = both ? products.row(other.x)[column] : 0.0f;
            row[t] = SHIFT + ((own - face.along) + (between - float_of_bits(other.y))) * hull.inverse_unit;
        }
    }
    // Columns are turned by one in each step, so that the pivot's is the first and registers need no index.
    unsigned num_turns = 0;
    float scale = 0.0f;
    for (; any_lane(num_turns < len); num_turns++) {
        const float least = DEPENDENT * of_lane(face, diagonal, num_turns);
        float *pivot = num_turns % 2 == 0 ? shared.vector : shared.other_vector;
        if (face.lane == num_turns) {
#pragma unroll
            for (unsigned t = 0; t < LANES; t += 4) {
                *reinterpret_cast<float4 *>(&pivot[t]) = float4{row[t], row[t + 1], row[t + 2], row[t + 3]};
            }
        }
        sync_warp();
        const float rest = pivot[0];
        const bool joins = num_turns < len && rest > least;
        const float multiple = joins && face.lane > num_turns ? row[0] * reciprocal32(rest) : 0.0f;
#pragma unroll
        for (unsigned t = 0; t < LANES; t += 4) {
            const float4 four = *reinterpret_cast<const float4 *>(&pivot[t]);
            if (t > 0) {
                row[t - 1] = fma32(-multiple, four.x, row[t]);
            }
            row[t] = fma32(-multiple, four.y, row[t + 1]);
            row[t + 1] = fma32(-multiple, four.z, row[t + 2]);
            row[t + 2] = fma32(-multiple, four.w, row[t + 3]);
        }
        row[LANES - 1] = -multiple;
        if (face.lane == num_turns) {
            row[LANES - 1] = joins ? 1.0f : 0.0f;
            scale = joins ? reciprocal_sqrt32(rest) : 0.0f;
        }
    }
    face.forward = 0.0f;
#pragma unroll
    for (unsigned t = 0; t < LANES; t++) {
        const float value = row[t] * scale;
        shared.factor[face.lane * (LANES + 1) + (t + num_turns) % LANES] = value;
        face.forward += value;
    }
    face.used = group_ballot(face, scale > 0.0f);
    if (!(scale > 0.0f)) {
        face.vertex = NO_VERTEX;
        face.weight = face.along = face.forward = 0.0f;
    }
    // What was read last is written next.
    sync_warp();
}

// Drops the vertex in slot `q` where the group `wants` it: a reflection of the rows of W leaves its column to row q alone,
// and both go.
template <unsigned LANES> DEVICE void remove(Face<LANES> &face, unsigned q, bool wants) {
    FaceShared<LANES> &shared = *face.shared;
    const float value = wants && face.vertex != NO_VERTEX ? shared.factor[face.lane * (LANES + 1) + q] : 0.0f;
    const float squared = sum_of<LANES>(value * value);
    const float pivot = of_lane(face, value, q);
    const float root = sqrt32(squared);
    const float normal = face.lane == q ? value + (pivot < 0.0f ? -root : root) : value;
    // 2 / |normal|^2
    const float factor = reciprocal32(squared + abs32(pivot) * root);
    const float forward = sum_of<LANES>(normal * face.forward);
    shared.other_vector[face.lane] = normal;
    sync_warp();
    if (wants) {
        const unsigned len = num_slots(face);
        const float scaled = factor * times_column(face, shared.other_vector);
#pragma unroll 2
        for (unsigned s = 0; s < len; s++) {
            float *at = &shared.factor[s * (LANES + 1) + face.lane];
            *at = s == q || face.lane == q ? 0.0f : fma32(-shared.other_vector[s], scaled, *at);
        }
        face.forward = fma32(-normal, factor * forward, face.forward);
        if (face.lane == q) {
            face.vertex = NO_VERTEX;
            face.weight = face.along = face.forward = 0.0f;
        }
        face.used &= ~(1u << q);
    }
}

// Moves the weights to the minimiser of the face, dropping vertices whose weight would turn negative (Wolfe's minor cycle),
// where the group `runs`. False when rounding has made W meaningless.
template <unsigned LANES> DEVICE bool descend(Face<LANES> &face, bool runs) {
    FaceShared<LANES> &shared = *face.shared;
    bool arrives = false;
    for (unsigned round = 0; round < LANES; round++) {
        shared.vector[face.lane] = face.forward;
        sync_warp();
        // M u = 1
        const float u = runs ? times_column(face, shared.vector) : 0.0f;
        const float total = sum_of<LANES>(u);
        // At most 1 / SHIFT in exact arithmetic.
        runs = runs && total > 0.0f && total < 2.0f / SHIFT;
        const float goal = u * (1.0f / total);
        const bool is_leaving = runs && face.vertex != NO_VERTEX && !(goal > 0.0f);
        const bool drops = group_ballot(face, is_leaving) != 0;
        if (runs && !drops) {
            face.weight = goal;
            arrives = true;
            runs = false;
        }
        runs = runs && num_bits(face.used) > 1;
        if (!any_lane(runs)) {
            break;
        }
        // The first weight to turn negative on the way to the goal. One that is not positive even now leaves at once.
        const float ratio = is_leaving && face.weight > 0.0f ? face.weight / (face.weight - goal) : 0.0f;
        unsigned first = is_leaving ? (bits_of_float(ratio) & ~31u) | face.lane : NO_VERTEX;
#pragma unroll
        for (unsigned width = LANES / 2; width > 0; width /= 2) {
            const unsigned other = shuffle_xor(first, width);
            first = other < first ? other : first;
        }
        const unsigned leaving = first % LANES;
        const float step = of_lane(face, ratio, leaving);
        if (runs) {
            face.weight = max32(face.weight + step * (goal - face.weight), 0.0f);
        }
        remove(face, leaving, runs);
    }
    return arrives;
}

// Walks the candidates `0 .. num_candidates` without `excluded`, where the group `wants` it.
template <unsigned LANES, class Products>
DEVICE Steepest steepest(const Face<LANES> &face, const Products &products, unsigned excluded, unsigned num_candidates,
                         bool wants) {
    const unsigned len = num_slots(face);
    Steepest best = {-FAR, ORIGIN};
    for (unsigned base = face.lane; wants && base < num_candidates; base += ABREAST * LANES) {
        unsigned columns[ABREAST];
        float g[ABREAST];
#pragma unroll
        for (unsigned p = 0; p < ABREAST; p++) {
            // Past the end the last one is read again, and counts for nothing.
            const unsigned candidate = base + p * LANES;
            columns[p] = products.column(candidate < num_candidates ? candidate : num_candidates - 1);
            g[p] = products.own_row[columns[p]];
        }
#pragma unroll 4
        for (unsigned s = 0; s < len; s++) {
            const uint2 vertex = face.shared->support[s];
            const float *row = products.row(vertex.x);
#pragma unroll
            for (unsigned p = 0; p < ABREAST; p++) {
                g[p] = fma32(-float_of_bits(vertex.y), row[columns[p]], g[p]);
            }
        }
#pragma unroll
        for (unsigned p = 0; p < ABREAST; p++) {
            const unsigned candidate = base + p * LANES;
            if (candidate < num_candidates && candidate != excluded && g[p] > best.top) {
                best = Steepest{g[p], candidate};
            }
        }
    }
    return steepest_of<LANES>(best);
}

// Moves to the minimiser of the face, then iterates against `num_candidates` without `excluded` until a tolerance or the
// optimum, where the group `runs`.
template <unsigned LANES, class Products>
DEVICE Iterate descend_from(Face<LANES> &face, const Hull &hull, const Products &products, float own, unsigned excluded,
                            unsigned num_candidates, bool runs) {
    FaceShared<LANES> &shared = *face.shared;
    Iterate iterate = {0.0f, 0.0f, STALLED};
    float last = FAR;
    for (unsigned iteration = 0; iteration < MAX_ITERATIONS && any_lane(runs); iteration++) {
        const bool arrives = descend(face, runs);
        if (runs && !arrives) {
            // What the weights add up to is not known.
            iterate.upper = FAR;
            runs = false;
        }
        const bool is_token = face.vertex < NO_VERTEX;
        shared.support[face.lane] = uint2{is_token ? face.vertex : 0, is_token ? bits_of_float(face.weight) : 0};
        sync_warp();
        const unsigned len = num_slots(face);
        float g = face.along;
        if (runs && is_token) {
            const unsigned column = products.column(face.vertex);
#pragma unroll 4
            for (unsigned s = 0; s < len; s++) {
                const uint2 vertex = shared.support[s];
                g = fma32(-float_of_bits(vertex.y), products.row(vertex.x)[column], g);
            }
        }
        const float target = sum_of<LANES>(face.weight * (own - face.along));
        const float level = sum_of<LANES>(face.weight * g);
        if (runs) {
            // Never negative zero: bounds are compared as bits.
            iterate.upper = abs32(max32(target - level, 0.0f));
            iterate.level = level;
            if (iterate.upper <= hull.inside) {
                iterate.stop = INSIDE;
                runs = false;
            } else if (iterate.upper > last + hull.rounding) {
                runs = false;
            }
            last = iterate.upper;
        }
        if (!any_lane(runs)) {
            break;
        }
        Steepest best = steepest(face, products, excluded, num_candidates, runs);
        if (hull.is_clamped && best.top <= 0.0f) {
            best = Steepest{0.0f, ORIGIN};
        }
        // The lower bound is this over |r|. Its square may leave the range of f32; the root does not.
        const float lower = iterate.upper + iterate.level - best.top;
        const float distance = sqrt32(iterate.upper);
        // A wide bracket around the tolerance decides nothing: close it further.
        const bool straddles = hull.inside >= 0.0f && lower <= hull.inside_root * distance;
        const float allowed = straddles ? 0.25f * hull.rounding : gap_allowed(hull, iterate.upper);
        if (runs && lower > 0.0f && lower > hull.outside_root * distance) {
            iterate.stop = OUTSIDE;
            runs = false;
        } else if (runs && best.top - iterate.level <= allowed) {
            iterate.stop = CONVERGED;
            runs = false;
        }
        const bool is_in_face = group_ballot(face, face.vertex == best.vertex) != 0;
        runs = runs && !is_in_face;
        if (runs && num_bits(face.used) == LANES) {
            iterate.stop = FULL;
            runs = false;
        }
        runs = push(face, hull, products, own, best.vertex, 0.0f, runs);
    }
    return iterate;
}

// Vertices without the origin. For all lanes at once.
template <unsigned LANES> DEVICE unsigned num_tokens(const Face<LANES> &face) {
    return num_bits(group_ballot(face, face.vertex < NO_VERTEX));
}

// Writes the face without the origin to a token's FACE_CAP entries of `faces`, vertices and bits of their weights, where the
// group `wants` it; the number of its vertices.
template <unsigned LANES> DEVICE unsigned store_face(uint2 *stored, const Face<LANES> &face, bool wants) {
    const bool is_token = face.vertex < NO_VERTEX;
    const unsigned tokens = group_ballot(face, is_token);
    if (wants && is_token) {
        stored[num_bits(tokens & ((1u << face.lane) - 1))] = uint2{face.vertex, bits_of_float(face.weight)};
    }
    return num_bits(tokens);
}
