// The supports of removed tokens, one after the other, so that nothing else has to travel.
// A block a chunk of COMPACT_THREADS removed tokens of a document that is done, a thread a token.
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

#include "shared/face.cuh"

constexpr unsigned THREADS = COMPACT_THREADS;
constexpr unsigned WARPS = THREADS / 32;

struct CompactShared {
    // Which tokens of a stretch of THREADS are removed: a bit each.
    unsigned removed[WARPS];
    unsigned list[THREADS];
    unsigned lengths[THREADS];
    unsigned first_entry;
};

// Candidates are the kept tokens.
struct KeptTokens {
    const unsigned *order;
    DEVICE_MEMBER unsigned operator()(unsigned position) const { return order[position]; }
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
        if (is_removed && rank >= chunk.first_removed && rank - chunk.first_removed < THREADS) {
            shared.list[rank - chunk.first_removed] = i;
        }
        // The bits are written over next, and the list is read by others.
        sync_block();
    }
}

// Projects a token anew and stores what it rests on if that is less; returns how many vertices it rests on.
DEVICE unsigned shrink(const Hull &hull, const unsigned *order, uint2 *stored, unsigned i, unsigned num_support,
                       unsigned num_kept) {
    if (hull.inside < 0.0f || num_support <= 1) {
        return num_support;
    }
    uint2 heaviest = stored[0];
    for (unsigned slot = 1; slot < num_support; slot++) {
        // Weights are not negative: they are ordered as their bits are.
        heaviest = stored[slot].y > heaviest.y ? stored[slot] : heaviest;
    }
    Face face;
    face.len = 0;
    push(face, hull, i, heaviest.x, 1.0f);
    Support found;
    const Iterate iterate = descend_from(face, found, hull, KeptTokens{order}, i, num_kept);
    if (iterate.stop != INSIDE || found.len >= num_support) {
        return num_support;
    }
    store_support(stored, found);
    return found.len;
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

    const unsigned rest = num_removed - chunk.first_removed, num_listed = rest < THREADS ? rest : THREADS;
    unsigned num_support = 0;
    uint2 *face = faces;
    if (thread < num_listed) {
        const unsigned i = shared.list[thread];
        face += static_cast<size_t>(i) * FACE_CAP;
        const Hull hull = hull_of(gram, chunk, params, result.unit);
        num_support = shrink(hull, order, face, i, states[i].num_support, result.num_kept);
    }
    shared.lengths[thread] = num_support;
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
    for (unsigned slot = 0; slot < num_support; slot++) {
        entries[first_entry + slot] = face[slot];
    }
    places[thread] = first_entry * PLACE_STRIDE + num_support + 1;
}
REGISTER_KERNEL(compact, THREADS)
