// Projections on the hull of the kept tokens, whose vertices and candidates are positions in the order.
//
// What a projection reads most are products of kept tokens with each other. They lie in columns far apart of a matrix of
// which a multiprocessor's documents together have megabytes, and every lane would read a cache line of its own. So the
// first KEPT_CAP tokens have theirs in shared memory, by position: 16 KiB, where the matrix of 180 tokens has 130.
#pragma once

#include "face.cuh"

// Lanes of a projection. Faces have seven to eleven vertices, so that fewer lanes than half a warp would outgrow their
// slots, and more would mostly be idle.
constexpr unsigned NARROW = 16;
// Kept tokens whose products are in shared memory.
constexpr unsigned KEPT_CAP = 64;
// Rows are an odd number apart.
constexpr unsigned KEPT_STRIDE = KEPT_CAP + 1;

struct NarrowShared {
    FaceShared<NARROW> face;
    // Products of the token with the kept ones.
    float own_row[KEPT_CAP];
};
static_assert(sizeof(NarrowShared) % 128 == 4 * NARROW % 128, "the groups of a warp are in different banks");

// With the products in shared memory,
struct NearProducts {
    const float *kept;
    const float *own_row;
    DEVICE_MEMBER const float *row(unsigned position) const { return kept + position * KEPT_STRIDE; }
    DEVICE_MEMBER unsigned column(unsigned position) const { return position; }
};

// and with those of the matrix.
struct FarProducts {
    const Hull &hull;
    const unsigned *order;
    const float *own_row;
    DEVICE_MEMBER const float *row(unsigned position) const { return row_of(hull, order[position]); }
    DEVICE_MEMBER unsigned column(unsigned position) const { return order[position]; }
};

// Copies the products of the kept positions `begin .. end` with all before them. For all threads of a block.
DEVICE void copy_products(float *kept, const Hull &hull, const unsigned *order, unsigned begin, unsigned end,
                          unsigned num_threads) {
    for (unsigned at = thread_idx(); at < (end - begin) * end; at += num_threads) {
        const unsigned a = begin + at / end, b = at % end;
        const float product = entry(hull, order[a], order[b]);
        kept[a * KEPT_STRIDE + b] = product;
        kept[b * KEPT_STRIDE + a] = product;
    }
}

// Copies the products of a token with the first `num_kept` positions. For all groups of a warp at once.
DEVICE void copy_own_row(NarrowShared &shared, const Hull &hull, const unsigned *order, unsigned i, unsigned num_kept) {
    const float *row = row_of(hull, i);
    for (unsigned position = thread_idx() % NARROW; position < num_kept; position += NARROW) {
        shared.own_row[position] = row[order[position]];
    }
    sync_warp();
}
