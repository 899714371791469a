// The nested farthest-first order of each document, with a support for every token that does not stay: keep the longest
// token, then again and again the one farthest from the hull of those kept.
// A workgroup a document. After each token kept,
//
// 1. test: thread t asks for tokens t, t + SELECTION_THREADS and so on whether the new vertex improves their projection;
//    about a third say yes and are listed, in any order, so that
// 2. project: all threads have work, one listed token each; what comes out does not depend on who does it;
// 3. choose: the token farthest away is the next one kept.
//
// Steps 1 and 2 are counted. A launch that has used up its steps marks the tokens that wait, and the next one goes on.

@group(0) @binding(0) var<storage, read> gram: array<f32>;
@group(0) @binding(1) var<storage, read> docs: array<Doc>;
/// FACE_CAP a token: vertex and bits of its weight.
@group(0) @binding(2) var<storage, read_write> faces: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read_write> states: array<TokenState>;
@group(0) @binding(4) var<storage, read_write> order: array<u32>;
@group(0) @binding(5) var<storage, read_write> curve: array<f32>;
@group(0) @binding(6) var<storage, read_write> results: array<DocResult>;
@group(0) @binding(7) var<uniform> params: SelectionParams;

/// No token: after every token.
const NONE: u32 = 0xffffffffu;
/// Squared tolerances below this share of the unit are the CPU's: f32 decides nothing so fine.
const FINEST_INSIDE: f32 = 1e-4;
/// And so are documents whose tokens are this close to a line, squared and as a share of the unit: one long token has
/// taken all the precision there is. No goal enters here, so that every goal of a document, a budget's curve and the
/// pruning that follows it above all, is answered by the same engine.
const FINEST_SPREAD: f32 = 8e-3;
/// More than what a square root may be off by (WGSL, "Accuracy of concrete floating point expressions").
const ROOT_SLACK: f32 = 1.000001;

var<private> first_token: u32;

/// Candidates are the kept tokens.
fn candidate(position: u32) -> u32 {
    return order[first_token + position];
}

fn keep(i: u32) {
    states[first_token + i] = TokenState(KEPT, 0.0, 0u, TOKEN_SOLVED);
}

/// Projects a token on the hull of the first one kept, in closed form.
fn start(i: u32, longest: u32) {
    let at = first_token + i;
    let norm = entry(longest, longest);
    let own = entry(i, i);
    let along = entry(longest, i);
    var weight = 1.0;
    if hull.is_clamped {
        weight = 0.0;
        if along > 0.0 && norm > 0.0 {
            weight = min(along / norm, 1.0);
        }
    }
    let upper = own - weight * (2.0 * along - weight * norm);
    let level = weight * (along - weight * norm);
    faces[at * FACE_CAP] = vec2<u32>(longest, bitcast<u32>(weight));
    states[at] = TokenState(abs(max(upper, 0.0)), level, u32(weight > 0.0), TOKEN_SOLVED);
}

/// Whether and where any of the kept positions `begin..end` brings a token closer: the steepest, or ORIGIN for none.
fn improvement(i: u32, state: TokenState, begin: u32, end: u32) -> u32 {
    let first_slot = (first_token + i) * FACE_CAP;
    var best = Steepest(state.level + gap_allowed(state.upper), ORIGIN);
    for (var position = begin; position < end; position++) {
        let vertex = candidate(position);
        let row = hull.gram_start + vertex * hull.stride;
        var g = gram[row + i];
        for (var slot = 0u; slot < state.num_support; slot++) {
            let stored = faces[first_slot + slot];
            g -= bitcast<f32>(stored.y) * gram[row + stored.x];
        }
        if g > best.top {
            best = Steepest(g, vertex);
        }
    }
    return best.vertex;
}

/// Rebuilds the face from the stored support.
fn resume(i: u32, num_support: u32) {
    face_len = 0u;
    var rest = 1.0;
    for (var slot = 0u; slot < num_support; slot++) {
        let stored = faces[(first_token + i) * FACE_CAP + slot];
        let weight = bitcast<f32>(stored.y);
        rest -= weight;
        push(i, stored.x, weight);
    }
    // The origin carries what the others leave; as a vertex of weight 0 it would only be dropped again.
    if hull.is_clamped && rest > params.rounding {
        push(i, ORIGIN, rest);
    }
}

/// Projects a token anew, with a vertex that improves it, on the hull of the first `k` kept.
fn project(i: u32, vertex: u32, k: u32) {
    let at = first_token + i;
    let state = states[at];
    resume(i, state.num_support);
    if !push(i, vertex, 0.0) {
        states[at].status = TOKEN_STALLED;
        return;
    }
    let iterate = descend_from(i, k);
    if iterate.upper > state.upper {
        // Bounds only fall: the old one, and what it rests on, still hold.
        states[at].status = TOKEN_STALLED;
        return;
    }
    store_support(at);
    let status = select(TOKEN_SOLVED, TOKEN_STALLED, iterate.stop == STALLED);
    states[at] = TokenState(iterate.upper, iterate.level, support_len, status);
}

/// Tokens that are tested before those that need it are projected.
const LIST: u32 = 512u;
/// In a token's status between launches: it is not up to date.
const WAITS: u32 = 4u;

var<workgroup> list_len: atomic<u32>;
var<workgroup> list_end: u32;
/// Tokens and the vertices that improve them.
var<workgroup> list: array<vec2<u32>, LIST>;

/// Brings all tokens (after a new launch those that wait) up to date with the kept positions `checked..k`. False when
/// the steps did not suffice: the others wait then.
fn refresh(n: u32, checked: u32, k: u32, only_waiting: bool, thread: u32, steps: ptr<function, u32>) -> bool {
    for (var base = 0u; base < n; base += LIST) {
        // Tests of waiting tokens are free: a launch that only came to them would leave all as it was.
        if !only_waiting {
            if *steps == 0u {
                wait_from(base, n, only_waiting, thread);
                return false;
            }
            *steps -= 1u;
        }
        if thread == 0u {
            atomicStore(&list_len, 0u);
        }
        workgroupBarrier();
        for (var i = base + thread; i < min(base + LIST, n); i += SELECTION_THREADS) {
            let state = states[first_token + i];
            if state.upper == KEPT || state.upper <= hull.inside || (only_waiting && (state.status & WAITS) == 0u) {
                continue;
            }
            states[first_token + i].status = state.status & ~WAITS;
            let vertex = improvement(i, state, checked, k);
            if vertex != ORIGIN {
                list[atomicAdd(&list_len, 1u)] = vec2<u32>(i, vertex);
            }
        }
        workgroupBarrier();
        if thread == 0u {
            list_end = atomicLoad(&list_len);
        }
        let end = workgroupUniformLoad(&list_end);
        // The list holds tokens of other threads.
        storageBarrier();
        for (var begin = 0u; begin < end; begin += SELECTION_THREADS) {
            if *steps == 0u {
                for (var place = begin + thread; place < end; place += SELECTION_THREADS) {
                    states[first_token + list[place].x].status |= WAITS;
                }
                storageBarrier();
                wait_from(base + LIST, n, only_waiting, thread);
                return false;
            }
            *steps -= 1u;
            let place = begin + thread;
            if place < end {
                project(list[place].x, list[place].y, k);
            }
        }
        workgroupBarrier();
        storageBarrier();
    }
    return true;
}

/// Marks the tokens from `base` on; those of a refresh that went on after a launch are marked already.
fn wait_from(base: u32, n: u32, only_waiting: bool, thread: u32) {
    if only_waiting {
        return;
    }
    for (var i = base + thread; i < n; i += SELECTION_THREADS) {
        let upper = states[first_token + i].upper;
        if upper != KEPT && upper > hull.inside {
            states[first_token + i].status |= WAITS;
        }
    }
}

/// Largest squared distance of a token from the line between tokens `a` and `b`.
fn distance_from_line(n: u32, a: u32, b: u32, thread: u32) -> f32 {
    let origin = entry(a, a);
    let across = entry(a, b);
    let length = origin - 2.0 * across + entry(b, b);
    var most = 0.0;
    for (var i = thread; i < n; i += SELECTION_THREADS) {
        let to_a = entry(i, a);
        let along = entry(i, b) - to_a - across + origin;
        let squared = entry(i, i) - 2.0 * to_a + origin;
        most = max(most, squared - along * along / max(length, 1e-30));
    }
    return bitcast<f32>(largest(bitcast<u32>(most), 0u, thread).x);
}

var<workgroup> resumed: DocResult;

/// Decides about documents where nothing is to be chosen, and finds the unit of rounding of the others.
fn begin(doc: Doc, thread: u32) -> DocResult {
    let n = doc.num_tokens;
    if doc.num_first >= n {
        for (var i = thread; i < n; i += SELECTION_THREADS) {
            keep(i);
        }
        if n > 0u && thread == 0u {
            curve[first_token + n - 1u] = 0.0;
        }
        return DocResult(n, DOC_DONE, 0u, 0.0);
    }
    var own_bits = 0u;
    let stride = gram_stride(n);
    for (var i = thread; i < n; i += SELECTION_THREADS) {
        own_bits = max(own_bits, norm_bits(gram[doc.gram_start + i * (stride + 1u)]));
    }
    let unit_bits = largest(own_bits, 0u, thread).x;
    if !is_in_range(unit_bits) {
        return DocResult(0u, DOC_TOO_FINE, 0u, 0.0);
    }
    return DocResult(doc.num_first, DOC_UNFINISHED, 0u, bitcast<f32>(unit_bits));
}

@compute @workgroup_size(SELECTION_THREADS)
fn selection(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let item = linear_idx(workgroup_id, num_workgroups);
    if item >= params.num_items {
        return;
    }
    let doc = docs[item];
    let n = doc.num_tokens;
    first_token = doc.first_token;
    start_largest(thread);
    if thread == 0u {
        resumed = results[doc.doc_idx];
    }
    var result = workgroupUniformLoad(&resumed);
    if params.is_resumed == 0u {
        result = begin(doc, thread);
    }
    if result.status != DOC_UNFINISHED {
        if thread == 0u {
            results[doc.doc_idx] = result;
        }
        return;
    }
    let unit = result.unit;
    let tolerances = hull_of(doc, unit);
    hull = tolerances;
    var k = result.num_kept;
    var num_undecided = result.num_undecided;
    // Positions that every token has been compared with.
    var checked = select(k - 1u, 1u, k == doc.num_first);
    if params.is_resumed == 0u {
        let longest = order[first_token];
        for (var i = thread; i < n; i += SELECTION_THREADS) {
            start(i, longest);
        }
        for (var position = 0u; position < k; position++) {
            let i = candidate(position);
            if i % SELECTION_THREADS == thread {
                keep(i);
            }
        }
        storageBarrier();
    }

    var status = DOC_UNFINISHED;
    var steps = params.max_steps;
    var only_waiting = params.is_resumed != 0u;
    // NOTE: ends by `break`; the count only shows that it does.
    for (var round = 0u; round < n; round++) {
        if !refresh(n, checked, k, only_waiting, thread, &steps) {
            break;
        }
        checked = k;
        only_waiting = false;

        // The worst token and whether it stalled; the smallest index of equals.
        var worst_bits = 0u;
        var worst_idx = NONE;
        for (var i = thread; i < n; i += SELECTION_THREADS) {
            let state = states[first_token + i];
            let bits = bitcast<u32>(state.upper);
            if state.upper != KEPT && (worst_idx == NONE || bits > worst_bits) {
                worst_bits = bits;
                worst_idx = 2u * i + u32(state.status == TOKEN_STALLED);
            }
        }
        let worst = largest(worst_bits, worst_idx, thread);
        if worst.y == NONE {
            if thread == 0u {
                curve[first_token + k - 1u] = 0.0;
            }
            status = DOC_DONE;
            break;
        }
        let upper = bitcast<f32>(worst.x);
        let bound = sqrt(upper + params.margin * unit) * ROOT_SLACK;
        if thread == 0u {
            curve[first_token + k - 1u] = bound;
        }
        if k == doc.num_first && params.is_project == 0u {
            var spread = upper;
            if params.scoring == PLAIN && k == 1u {
                spread = distance_from_line(n, order[first_token], worst.y / 2u, thread);
            }
            var is_too_fine = spread < FINEST_SPREAD * unit;
            if params.inside >= 0.0 {
                is_too_fine = params.inside < FINEST_INSIDE * unit;
            }
            if is_too_fine {
                status = DOC_TOO_FINE;
                break;
            }
        }
        if worst.x >= INFINITE {
            status = DOC_TOO_FINE;
            break;
        }
        if upper <= tolerances.inside || bound <= params.stop || k >= doc.max_kept || params.is_project != 0u {
            status = DOC_DONE;
            break;
        }

        // It stays.
        let i = worst.y / 2u;
        num_undecided += worst.y % 2u;
        if thread == 0u {
            order[first_token + k] = i;
        }
        if i % SELECTION_THREADS == thread {
            keep(i);
        }
        k++;
        storageBarrier();
    }
    if thread == 0u {
        results[doc.doc_idx] = DocResult(k, status, num_undecided, unit);
    }
}
