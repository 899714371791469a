// The supports of removed tokens, one after the other, so that nothing else has to travel.
// A block a chunk of COMPACT_THREADS removed tokens of a document that is done, half a warp a token at a time. What outgrows
// its slots stays as it is.
//
// 1. list: the tokens of the chunk, ascending;
// 2. shrink: the order projects a token as soon as a vertex improves it, and vertices that came early stay although later
//    ones would do. Against all kept tokens, from the heaviest vertex alone, fewer lead within the tolerance;
// 3. reserve: one addition a chunk says where its entries go. That depends on who comes first; what they are does not.
//
// A document is done in one launch of `selection` or another: a chunk whose place is taken has had its turn.
//
// gram     each document's matrix from gram_start on, rows of gram_stride(n)
// chunks   [num_items] documents, each as often as it has chunks
// faces    [num_tokens, FACE_CAP] token indices within the document and bits of their weights
// states   [num_tokens]
// order    [num_tokens] from each document's first token on: the tokens kept and, after them, the places of the removed
//          ones' entries, ascending by token; 0 where there is none
// results  [documents]
// entries  [num_tokens, FACE_CAP] as many as faces, of which cursor are taken
// cursor   [1]

#include "shared/kept.cuh"

constexpr unsigned THREADS = 128;
constexpr unsigned WARPS = THREADS / 32;
constexpr unsigned GROUPS = THREADS / NARROW;

struct CompactShared {
    Hull hull;
    // Which tokens of a stretch of THREADS are removed: a bit each.
    unsigned removed[WARPS];
    unsigned list[COMPACT_THREADS];
    unsigned lengths[COMPACT_THREADS];
    unsigned first_entry;
    NarrowShared narrow[GROUPS];
    float kept[KEPT_CAP * KEPT_STRIDE];
};

// Lists the removed tokens from the chunk's first one on. For all threads at once.
DEVICE void list_removed(CompactShared &shared, const Doc &chunk, const TokenState *states) {
    const unsigned thread = thread_idx(), below = (1u << thread % 32) - 1;
    // Removed tokens before the stretch.
    unsigned num_before = 0;
    for (unsigned base = 0; base < chunk.num_tokens; base += THREADS) {
        const unsigned i = base + thread;
        const bool is_removed = i < chunk.num_tokens && states[i].upper != KEPT;
        const unsigned bits = ballot(is_removed);
        if (thread % 32 == 0) {
            shared.removed[thread / 32] = bits;
        }
        sync_block();
        unsigned rank = num_before;
#pragma unroll
        for (unsigned warp = 0; warp < WARPS; warp++) {
            const unsigned count = num_bits(shared.removed[warp]);
            rank += warp < thread / 32 ? count : 0;
            num_before += count;
        }
        rank += num_bits(bits & below);
        if (is_removed && rank >= chunk.first_removed && rank - chunk.first_removed < COMPACT_THREADS) {
            shared.list[rank - chunk.first_removed] = i;
        }
        // The bits are written over next, and the list is read by others.
        sync_block();
    }
}

// Projects a token anew, where the group `wants` it, and stores what it rests on if that is less; returns how many vertices
// it rests on.
template <class Products>
DEVICE unsigned shrink(FaceShared<NARROW> *shared, const Hull &hull, const Products &products, const unsigned *order,
                       uint2 *stored, float own, unsigned num_support, unsigned num_kept, bool wants) {
    wants = wants && hull.inside >= 0.0f && num_support > 1;
    Face<NARROW> face = empty_face(shared);
    // The first of the heaviest. Weights are not negative: they are ordered as their bits are.
    uint2 heaviest = {0, NO_VERTEX};
    for (unsigned slot = face.lane; wants && slot < num_support; slot += NARROW) {
        heaviest = heaviest.y == NO_VERTEX || stored[slot].y > heaviest.x ? uint2{stored[slot].y, slot} : heaviest;
    }
#pragma unroll
    for (unsigned width = NARROW / 2; width > 0; width /= 2) {
        const uint2 other = {shuffle_xor(heaviest.x, width), shuffle_xor(heaviest.y, width)};
        const bool is_first = other.x == heaviest.x && other.y < heaviest.y;
        heaviest = other.x > heaviest.x || is_first ? other : heaviest;
    }
    // Its position.
    const unsigned token = wants ? stored[heaviest.y].x : 0;
    unsigned position = 0;
    for (unsigned base = 0; any_lane(wants && base < num_kept); base += NARROW) {
        const unsigned at = base + face.lane;
        const unsigned found = group_ballot(face, wants && at < num_kept && order[at] == token);
        position = found != 0 ? base + num_low_zeros(found) : position;
    }
    clear(face);
    push(face, hull, products, own, position, 1.0f, wants);
    const Iterate iterate = descend_from(face, hull, products, own, NO_VERTEX, num_kept, wants);
    const unsigned num_found = num_tokens(face);
    const bool shrinks = wants && iterate.stop == INSIDE && num_found < num_support;
    if (face.vertex < NO_VERTEX) {
        face.vertex = order[face.vertex];
    }
    store_face(stored, face, shrinks);
    return shrinks ? num_found : num_support;
}

KERNEL(THREADS)
compact(const float *__restrict__ gram, const Doc *__restrict__ chunks, uint2 *faces,
        const TokenState *__restrict__ states, unsigned *order, const DocResult *__restrict__ results,
        uint2 *__restrict__ entries, unsigned *cursor, SelectionParams params) {
    SHARED_MEMORY(CompactShared, shared);
    if (block_idx() >= params.num_items) {
        return;
    }
    const Doc chunk = chunks[block_idx()];
    const DocResult result = results[chunk.doc_idx];
    const unsigned num_removed = chunk.num_tokens - result.num_kept, thread = thread_idx();
    if (result.status != DOC_DONE || chunk.first_removed >= num_removed) {
        return;
    }
    faces += static_cast<size_t>(chunk.first_token) * FACE_CAP;
    states += chunk.first_token;
    order += chunk.first_token;
    unsigned *places = order + result.num_kept + chunk.first_removed;
    // All threads have looked before any of them writes: there is a barrier in `list_removed`.
    if (*places != 0) {
        return;
    }
    list_removed(shared, chunk, states);

    const unsigned rest = num_removed - chunk.first_removed;
    const unsigned num_listed = rest < COMPACT_THREADS ? rest : COMPACT_THREADS, k = result.num_kept;
    if (thread == 0) {
        shared.hull = hull_of(gram, chunk, params, result.unit);
    }
    sync_block();
    const Hull &hull = shared.hull;
    const bool is_near = k <= KEPT_CAP;
    if (is_near) {
        copy_products(shared.kept, hull, order, 0, k, THREADS);
        sync_block();
    }
    const unsigned group = thread / NARROW, lane = thread % NARROW;
    NarrowShared &narrow = shared.narrow[group];
    for (unsigned place = group; any_lane(place < num_listed); place += GROUPS) {
        const bool wants = place < num_listed;
        const unsigned i = shared.list[wants ? place : 0];
        uint2 *stored = faces + static_cast<size_t>(i) * FACE_CAP;
        const float own = entry(hull, i, i);
        unsigned num_support = states[i].num_support;
        if (is_near) {
            copy_own_row(narrow, hull, order, i, k);
            const NearProducts products = {shared.kept, narrow.own_row};
            num_support = shrink(&narrow.face, hull, products, order, stored, own, num_support, k, wants);
        } else {
            const FarProducts products = {hull, order, row_of(hull, i)};
            num_support = shrink(&narrow.face, hull, products, order, stored, own, num_support, k, wants);
        }
        if (wants && lane == 0) {
            shared.lengths[place] = num_support;
        }
        sync_warp();
    }
    sync_block();
    if (thread == 0) {
        unsigned total = 0;
        for (unsigned other = 0; other < num_listed; other++) {
            total += shared.lengths[other];
        }
        shared.first_entry = atomic_add(cursor, total);
    }
    sync_block();
    if (thread >= num_listed) {
        return;
    }
    unsigned first_entry = shared.first_entry;
    for (unsigned other = 0; other < thread; other++) {
        first_entry += shared.lengths[other];
    }
    const uint2 *face = faces + static_cast<size_t>(shared.list[thread]) * FACE_CAP;
    const unsigned num_support = shared.lengths[thread];
    for (unsigned slot = 0; slot < num_support; slot++) {
        entries[first_entry + slot] = face[slot];
    }
    places[thread] = first_entry * PLACE_STRIDE + num_support + 1;
}
REGISTER_KERNEL(compact, THREADS)
