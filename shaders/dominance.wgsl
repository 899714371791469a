// Every token against the hull of all others of its document: within the tolerance, needed, or unclear.
// A workgroup a chunk of DOMINANCE_THREADS tokens of a document, a thread a token.

@group(0) @binding(0) var<storage, read> gram: array<f32>;
@group(0) @binding(1) var<storage, read> docs: array<Doc>;
/// Document and first token of each chunk.
@group(0) @binding(2) var<storage, read> items: array<vec2<u32>>;
/// FACE_CAP a token: vertex and bits of its weight.
@group(0) @binding(3) var<storage, read_write> faces: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read_write> states: array<TokenState>;
@group(0) @binding(5) var<uniform> params: SelectionParams;

/// Candidates are all tokens; the solver skips its own.
fn candidate(position: u32) -> u32 {
    return position;
}

/// Starts from the nearest candidate.
fn start_nearest(i: u32, num_tokens: u32) {
    var best = Steepest(-FAR, ORIGIN);
    for (var j = 0u; j < num_tokens; j++) {
        // |x_i - x_j|^2 is smallest where this is largest
        let gain = 2.0 * entry(j, i) - entry(j, j);
        if gain > best.top && j != i {
            best = Steepest(gain, j);
        }
    }
    push(i, best.vertex, 1.0);
}

/// Starts from the nearest point on any segment between the origin and a candidate.
fn start_on_ray(i: u32, num_tokens: u32) {
    // The squared distance to the ray of `x_j` is `|x_i|^2 - (x_i . x_j)^2 / |x_j|^2` where the product is positive.
    var best = Steepest(0.0, ORIGIN);
    for (var j = 0u; j < num_tokens; j++) {
        let along = entry(j, i);
        let gain = along * (along / max(entry(j, j), 1e-37));
        if along > 0.0 && gain > best.top && j != i {
            best = Steepest(gain, j);
        }
    }
    if best.vertex == ORIGIN {
        push(i, ORIGIN, 1.0);
        return;
    }
    let weight = min(entry(best.vertex, i) / max(entry(best.vertex, best.vertex), 1e-37), 1.0);
    push(i, best.vertex, weight);
    if weight < 1.0 {
        push(i, ORIGIN, 1.0 - weight);
    }
}

@compute @workgroup_size(DOMINANCE_THREADS)
fn dominance(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let item_idx = linear_idx(workgroup_id, num_workgroups);
    if item_idx >= params.num_items {
        return;
    }
    let item = items[item_idx];
    let doc = docs[item.x];
    let i = item.y + thread;
    if i >= doc.num_tokens {
        return;
    }
    let at = doc.first_token + i;
    var unit_bits = 0u;
    let stride = gram_stride(doc.num_tokens);
    for (var j = 0u; j < doc.num_tokens; j++) {
        unit_bits = max(unit_bits, norm_bits(gram[doc.gram_start + j * (stride + 1u)]));
    }
    if doc.num_tokens == 1u && params.scoring == PLAIN {
        states[at] = TokenState(FAR, 0.0, 0u, TOKEN_NEEDED);
        return;
    }
    if !is_in_range(unit_bits) {
        states[at] = TokenState(FAR, 0.0, 0u, TOKEN_STALLED);
        return;
    }
    hull = hull_of(doc, bitcast<f32>(unit_bits));
    face_len = 0u;
    if hull.is_clamped {
        start_on_ray(i, doc.num_tokens);
    } else {
        start_nearest(i, doc.num_tokens);
    }
    let iterate = descend_from(i, doc.num_tokens);
    var status = TOKEN_STALLED;
    if iterate.stop == INSIDE {
        status = TOKEN_SOLVED;
        store_support(at);
    } else if iterate.stop == OUTSIDE {
        status = TOKEN_NEEDED;
    }
    states[at] = TokenState(iterate.upper, iterate.level, support_len, status);
}
