// Every token against the hull of all others of its document: within the tolerance, needed, or unclear.
// A block a chunk of DOMINANCE_THREADS tokens of a document, a warp a token at a time: all tokens of the document are
// candidates, six for each lane in a document of 180.
//
// The matrix stays in global memory. A warp reads whole rows of it, those of its token and of the few vertices of its face,
// again and again: a few KiB, which the first-level cache holds, and which is the same memory as shared memory. A copy of
// the matrix would leave room for one block.
//
// gram     each document's matrix from gram_start on, rows of gram_stride(n)
// docs     [documents]
// items    [num_items] document and first token of a chunk
// faces    [num_tokens, FACE_CAP] token indices within the document and bits of their weights
// states   [num_tokens]

#include "shared/face.cuh"

constexpr unsigned THREADS = 128;
constexpr unsigned WARPS = THREADS / 32;
// Lanes of a projection.
constexpr unsigned LANES = 32;
// Tokens whose squared norms are in shared memory: the diagonal is read by every warp, an entry a cache line.
constexpr unsigned NORMS_CAP = 512;

struct DominanceShared {
    FaceShared<LANES> faces[WARPS];
    unsigned unit_bits[WARPS];
    float norms[NORMS_CAP];
};

// Vertices and candidates are all tokens but one.
struct AllProducts {
    const Hull &hull;
    const float *own_row;
    DEVICE_MEMBER const float *row(unsigned token) const { return row_of(hull, token); }
    DEVICE_MEMBER unsigned column(unsigned token) const { return token; }
};

DEVICE float norm_of(const DominanceShared &shared, const Hull &hull, unsigned j) {
    return j < NORMS_CAP ? shared.norms[j] : entry(hull, j, j);
}

// Bits of the largest squared norm, and the norms of the first tokens into shared memory. For all threads at once.
DEVICE unsigned survey(DominanceShared &shared, const float *gram, unsigned n) {
    unsigned largest = 0;
    for (unsigned j = thread_idx(); j < n; j += THREADS) {
        const float norm = gram[static_cast<size_t>(j) * (gram_stride(n) + 1)];
        if (j < NORMS_CAP) {
            shared.norms[j] = norm;
        }
        largest = norm_bits(norm) > largest ? norm_bits(norm) : largest;
    }
#pragma unroll
    for (unsigned width = 16; width > 0; width /= 2) {
        const unsigned other = shuffle_xor(largest, width);
        largest = other > largest ? other : largest;
    }
    if (thread_idx() % 32 == 0) {
        shared.unit_bits[thread_idx() / 32] = largest;
    }
    sync_block();
#pragma unroll
    for (unsigned warp = 0; warp < WARPS; warp++) {
        largest = shared.unit_bits[warp] > largest ? shared.unit_bits[warp] : largest;
    }
    return largest;
}

// Starts from the nearest candidate.
DEVICE void start_nearest(const DominanceShared &shared, Face<LANES> &face, const Hull &hull, const AllProducts &products,
                          float own, unsigned i, unsigned n) {
    Steepest best = {-FAR, ORIGIN};
    for (unsigned j = face.lane; j < n; j += LANES) {
        // |x_i - x_j|^2 is smallest where this is largest.
        const float gain = 2.0f * products.own_row[j] - norm_of(shared, hull, j);
        if (gain > best.top && j != i) {
            best = Steepest{gain, j};
        }
    }
    best = steepest_of<LANES>(best);
    push(face, hull, products, own, best.vertex, 1.0f, true);
}

// Starts from the nearest point on any segment between the origin and a candidate.
DEVICE void start_on_ray(const DominanceShared &shared, Face<LANES> &face, const Hull &hull, const AllProducts &products,
                         float own, unsigned i, unsigned n) {
    // The squared distance to the ray of `x_j` is `|x_i|^2 - (x_i . x_j)^2 / |x_j|^2` where the product is positive.
    Steepest best = {0.0f, ORIGIN};
    for (unsigned j = face.lane; j < n; j += LANES) {
        const float along = products.own_row[j];
        const float gain = along * (along / max32(norm_of(shared, hull, j), 1e-37f));
        if (along > 0.0f && gain > best.top && j != i) {
            best = Steepest{gain, j};
        }
    }
    best = steepest_of<LANES>(best);
    float weight = 0.0f;
    if (best.vertex != ORIGIN) {
        const float norm = max32(norm_of(shared, hull, best.vertex), 1e-37f);
        weight = min32(products.own_row[best.vertex] / norm, 1.0f);
    }
    push(face, hull, products, own, best.vertex, weight, best.vertex != ORIGIN);
    push(face, hull, products, own, ORIGIN, 1.0f - weight, weight < 1.0f);
}

KERNEL(THREADS)
dominance(const float *__restrict__ gram, const Doc *__restrict__ docs, const uint2 *__restrict__ items,
          uint2 *__restrict__ faces, TokenState *__restrict__ states, SelectionParams params) {
    SHARED_MEMORY(DominanceShared, shared);
    if (block_idx() >= params.num_items) {
        return;
    }
    const uint2 item = items[block_idx()];
    const Doc doc = docs[item.x];
    const unsigned n = doc.num_tokens, warp = thread_idx() / 32;
    const unsigned limit = n - item.y < DOMINANCE_THREADS ? n : item.y + DOMINANCE_THREADS;
    const unsigned unit_bits = survey(shared, gram + doc.gram_start, n);
    const bool is_alone = n == 1 && params.scoring == PLAIN;
    const Hull hull = hull_of(gram, doc, params, float_of_bits(unit_bits));
    for (unsigned i = item.y + warp; i < limit; i += WARPS) {
        const size_t at = static_cast<size_t>(doc.first_token) + i;
        Face<LANES> face = empty_face(&shared.faces[warp]);
        TokenState state = {FAR, 0.0f, 0, is_alone ? TOKEN_NEEDED : TOKEN_STALLED};
        if (!is_alone && is_in_range(unit_bits)) {
            clear(face);
            const AllProducts products = {hull, row_of(hull, i)};
            const float own = products.own_row[i];
            if (hull.is_clamped) {
                start_on_ray(shared, face, hull, products, own, i, n);
            } else {
                start_nearest(shared, face, hull, products, own, i, n);
            }
            const Iterate iterate = descend_from(face, hull, products, own, i, n, true);
            const bool is_solved = iterate.stop == INSIDE;
            const unsigned num_support = store_face(faces + at * FACE_CAP, face, is_solved);
            const unsigned status = is_solved ? TOKEN_SOLVED : iterate.stop == OUTSIDE ? TOKEN_NEEDED : TOKEN_STALLED;
            state = TokenState{iterate.upper, iterate.level, num_support, status};
        }
        if (face.lane == 0) {
            states[at] = state;
        }
        sync_warp();
    }
}
REGISTER_KERNEL(dominance, THREADS)
