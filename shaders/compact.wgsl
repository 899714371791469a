// The supports of removed tokens, one after the other, so that nothing else has to travel.
// A workgroup a chunk of COMPACT_THREADS removed tokens of a document that is done, a thread a token.
//
// 1. list: the tokens of the chunk, ascending;
// 2. shrink: the order projects a token as soon as a vertex improves it, and vertices that came early stay although later
//    ones would do. Against all kept tokens, from the heaviest vertex alone, fewer lead within the tolerance;
// 3. reserve: one addition a chunk says where its entries go. That depends on who comes first; what they are does not.
//
// A document is done in one launch of `selection` or another: a chunk whose place is taken has had its turn.

@group(0) @binding(0) var<storage, read> gram: array<f32>;
/// Documents, each as often as it has chunks.
@group(0) @binding(1) var<storage, read> chunks: array<Doc>;
/// FACE_CAP a token: vertex and bits of its weight.
@group(0) @binding(2) var<storage, read_write> faces: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read> states: array<TokenState>;
/// The tokens kept and, after them, the places of the removed ones' entries, ascending by token; 0 where there is none.
@group(0) @binding(4) var<storage, read_write> order: array<u32>;
@group(0) @binding(5) var<storage, read> results: array<DocResult>;
/// Room for all faces.
@group(0) @binding(6) var<storage, read_write> entries: array<vec2<u32>>;
/// The first one: entries taken.
@group(0) @binding(7) var<storage, read_write> cursor: array<atomic<u32>>;
@group(0) @binding(8) var<uniform> params: SelectionParams;

const WORDS: u32 = COMPACT_THREADS / 32u;

var<private> first_token: u32;

var<workgroup> place: u32;
/// Which tokens of a stretch of COMPACT_THREADS are removed: a bit each.
var<workgroup> removed: array<atomic<u32>, WORDS>;
var<workgroup> list: array<u32, COMPACT_THREADS>;
var<workgroup> lengths: array<u32, COMPACT_THREADS>;

/// Candidates are the kept tokens.
fn candidate(position: u32) -> u32 {
    return order[first_token + position];
}

/// Lists the removed tokens from the chunk's first one on. For all threads at once.
fn list_removed(chunk: Doc, thread: u32) {
    let below = (1u << (thread % 32u)) - 1u;
    // Removed tokens before the stretch.
    var num_before = 0u;
    for (var base = 0u; base < chunk.num_tokens; base += COMPACT_THREADS) {
        if thread < WORDS {
            atomicStore(&removed[thread], 0u);
        }
        workgroupBarrier();
        let i = base + thread;
        var is_removed = false;
        if i < chunk.num_tokens {
            is_removed = states[first_token + i].upper != KEPT;
        }
        if is_removed {
            atomicOr(&removed[thread / 32u], 1u << (thread % 32u));
        }
        workgroupBarrier();
        var rank = num_before;
        for (var word = 0u; word < WORDS; word++) {
            let bits = atomicLoad(&removed[word]);
            let ahead = select(select(0u, below, word == thread / 32u), ~0u, word < thread / 32u);
            rank += countOneBits(bits & ahead);
            num_before += countOneBits(bits);
        }
        if is_removed && rank >= chunk.first_removed && rank - chunk.first_removed < COMPACT_THREADS {
            list[rank - chunk.first_removed] = i;
        }
        workgroupBarrier();
    }
}

/// Projects a token anew and stores what it rests on if that is less; returns how many vertices it rests on.
fn shrink(i: u32, num_support: u32, num_kept: u32) -> u32 {
    let at = first_token + i;
    if hull.inside < 0.0 || num_support <= 1u {
        return num_support;
    }
    var heaviest = vec2<u32>();
    for (var slot = 0u; slot < num_support; slot++) {
        let stored = faces[at * FACE_CAP + slot];
        // Weights are not negative: they are ordered as their bits are.
        if slot == 0u || stored.y > heaviest.y {
            heaviest = stored;
        }
    }
    face_len = 0u;
    push(i, heaviest.x, 1.0);
    let iterate = descend_from(i, num_kept);
    if iterate.stop != INSIDE || support_len >= num_support {
        return num_support;
    }
    store_support(at);
    return support_len;
}

@compute @workgroup_size(COMPACT_THREADS)
fn compact(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let item = linear_idx(workgroup_id, num_workgroups);
    if item >= params.num_items {
        return;
    }
    let chunk = chunks[item];
    let result = results[chunk.doc_idx];
    let num_removed = chunk.num_tokens - result.num_kept;
    if result.status != DOC_DONE || chunk.first_removed >= num_removed {
        return;
    }
    first_token = chunk.first_token;
    let first_place = first_token + result.num_kept + chunk.first_removed;
    if thread == 0u {
        place = order[first_place];
    }
    if workgroupUniformLoad(&place) != 0u {
        return;
    }
    list_removed(chunk, thread);

    let num_listed = min(num_removed - chunk.first_removed, COMPACT_THREADS);
    var at = 0u;
    var num_support = 0u;
    if thread < num_listed {
        hull = hull_of(chunk, result.unit);
        let i = list[thread];
        at = first_token + i;
        num_support = shrink(i, states[at].num_support, result.num_kept);
    }
    lengths[thread] = num_support;
    workgroupBarrier();
    if thread == 0u {
        var total = 0u;
        for (var other = 0u; other < num_listed; other++) {
            total += lengths[other];
        }
        place = atomicAdd(&cursor[0], total);
    }
    workgroupBarrier();
    if thread >= num_listed {
        return;
    }
    var first_entry = place;
    for (var other = 0u; other < thread; other++) {
        first_entry += lengths[other];
    }
    for (var slot = 0u; slot < num_support; slot++) {
        entries[first_entry + slot] = faces[at * FACE_CAP + slot];
    }
    order[first_place + thread] = first_entry * PLACE_STRIDE + num_support + 1u;
}
