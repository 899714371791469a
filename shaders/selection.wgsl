// The nested farthest-first order of each document, with a support for every token that does not stay: keep the longest
// token, then again and again the one farthest from the hull of those kept.
// A workgroup a document; thread t has tokens t, t + SELECTION_THREADS and so on, and their state.

@group(0) @binding(0) var<storage, read> gram: array<f32>;
@group(0) @binding(1) var<storage, read> docs: array<Doc>;
@group(0) @binding(2) var<storage, read_write> support: array<u32>;
@group(0) @binding(3) var<storage, read_write> weights: array<f32>;
@group(0) @binding(4) var<storage, read_write> states: array<TokenState>;
@group(0) @binding(5) var<storage, read_write> order: array<u32>;
@group(0) @binding(6) var<storage, read_write> curve: array<f32>;
@group(0) @binding(7) var<storage, read_write> results: array<DocResult>;
@group(0) @binding(8) var<uniform> params: SelectionParams;

struct DocResult {
    num_kept: u32,
    status: u32,
    num_undecided: u32,
    unit: f32,
}
const DOC_DONE: u32 = 0u;
const DOC_TOO_FINE: u32 = 1u;
const DOC_UNFINISHED: u32 = 2u;

/// `upper` of a kept token. NOTE: not an infinity, which compilers may assume away.
const KEPT: f32 = -1.0;
/// No token: after every token.
const NONE: u32 = 0xffffffffu;
/// Squared tolerances below this share of the unit are the CPU's: f32 decides nothing so fine.
const FINEST_INSIDE: f32 = 1e-4;
/// And so are documents whose tokens are this close to the hull of the first ones: one long token has taken all the
/// precision there is. What a document has left is known before its goal is looked at, so that every goal of a document
/// is answered by the same engine.
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
    support[at] = longest;
    weights[at] = weight;
    states[at] = TokenState(abs(max(upper, 0.0)), level, u32(weight > 0.0), TOKEN_SOLVED);
}

/// Whether and where any of the kept positions `begin..end` brings a token closer: the steepest, or ORIGIN for none.
fn improvement(i: u32, state: TokenState, begin: u32, end: u32) -> u32 {
    let at = first_token + i;
    var best = Steepest(state.level + gap_allowed(state.upper), ORIGIN);
    for (var position = begin; position < end; position++) {
        let vertex = candidate(position);
        let row = hull.gram_start + vertex * hull.stride;
        var g = gram[row + i];
        for (var slot = 0u; slot < state.num_support; slot++) {
            let from_slot = at + slot * params.num_tokens;
            g -= weights[from_slot] * gram[row + support[from_slot]];
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
        let from_slot = first_token + i + slot * params.num_tokens;
        let weight = weights[from_slot];
        rest -= weight;
        push(i, support[from_slot], weight);
    }
    // The origin carries what the others leave; as a vertex of weight 0 it would only be dropped again.
    if hull.is_clamped && rest > params.rounding {
        push(i, ORIGIN, rest);
    }
}

/// Brings a token up to date with the kept positions `begin..end`, the new ones.
fn refresh(i: u32, begin: u32, end: u32) {
    let at = first_token + i;
    let state = states[at];
    if state.upper == KEPT || state.upper <= hull.inside {
        return;
    }
    let vertex = improvement(i, state, begin, end);
    if vertex == ORIGIN {
        return;
    }
    resume(i, state.num_support);
    if !push(i, vertex, 0.0) {
        states[at].status = TOKEN_STALLED;
        return;
    }
    let iterate = descend_from(i, end);
    if iterate.upper > state.upper {
        // Bounds only fall: the old one, and what it rests on, still hold.
        states[at].status = TOKEN_STALLED;
        return;
    }
    store_support(at);
    let status = select(TOKEN_SOLVED, TOKEN_STALLED, iterate.stop == STALLED);
    states[at] = TokenState(iterate.upper, iterate.level, support_len, status);
}

/// Whether the distances from the hull of the first tokens, or the tolerance, are too small for f32.
fn is_too_fine(upper: f32, unit: f32) -> bool {
    if params.inside >= 0.0 {
        return params.inside < FINEST_INSIDE * unit;
    }
    return upper < FINEST_SPREAD * unit && params.is_project == 0u;
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
    start_largest(thread);
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
    var num_checked = k - 1u;
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
        num_checked = 1u;
    }

    var status = DOC_UNFINISHED;
    for (var round = 0u; round < params.max_rounds; round++) {
        let is_first = params.is_resumed == 0u && round == 0u;
        for (var i = thread; i < n; i += SELECTION_THREADS) {
            refresh(i, num_checked, k);
        }
        num_checked = k;

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
        if worst.x >= INFINITE || (is_first && is_too_fine(upper, unit)) {
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
