// The distance of one token to the hull of others, a token a thread, in private memory: projected gradient on an active
// face, from inner products only. Names and steps are those of `engine/cpu/{dominance,face}.rs`; what differs:
//
// 1. The inner system is factored (L L^T = M) instead of inverted: half the memory, and stable enough for f32. A vertex
//    that leaves is rotated out of L (Givens), without reading the matrix again.
// 2. M is divided by the document's largest squared norm, so that its size does not depend on that of the tokens.
// 3. Where a projection stands is summed up while the candidates are walked: each of the support's vertices is one.
//
// A kernel says who the candidates are: `fn candidate(position: u32) -> u32`.

/// The vertex that stands for the origin under clamped scoring.
const ORIGIN: u32 = 0xffffffffu;
/// Any positive value makes M definite; its entries are at most 4.
const SHIFT: f32 = 0.25;
/// A vertex whose distance to the affine hull of the others, squared and relative to its own entry, is smaller is taken
/// as dependent: f32 cannot tell it from rounding.
const DEPENDENT: f32 = 1e-5;
/// Gap, relative to the squared distance, at which a projection counts as converged.
const RELATIVE_GAP: f32 = 3e-2;
const MAX_ITERATIONS: u32 = 4u * FACE_CAP;
/// Above every squared distance, and below its negative.
const FAR: f32 = 3e38;

// Why a projection stopped.
const INSIDE: u32 = 0u;
const OUTSIDE: u32 = 1u;
const CONVERGED: u32 = 2u;
const STALLED: u32 = 3u;

struct SelectionParams {
    num_items: u32,
    scoring: u32,
    is_project: u32,
    inside: f32,
    stop: f32,
    rounding: f32,
    margin: f32,
    max_steps: u32,
    is_resumed: u32,
    padding_0: u32,
    padding_1: u32,
    padding_2: u32,
}

const TOKEN_SOLVED: u32 = 0u;
const TOKEN_STALLED: u32 = 1u;
const TOKEN_NEEDED: u32 = 2u;

struct TokenState {
    upper: f32,
    level: f32,
    num_support: u32,
    status: u32,
}

/// `upper` of a kept token. NOTE: not an infinity, which compilers may assume away.
const KEPT: f32 = -1.0;

struct DocResult {
    num_kept: u32,
    status: u32,
    num_undecided: u32,
    unit: f32,
}
const DOC_DONE: u32 = 0u;
const DOC_TOO_FINE: u32 = 1u;
const DOC_UNFINISHED: u32 = 2u;

struct Iterate {
    upper: f32,
    level: f32,
    stop: u32,
}

/// The candidate with the largest gradient.
struct Steepest {
    top: f32,
    vertex: u32,
}

/// The document, and tolerances in its unit: squared distances.
struct Hull {
    gram_start: u32,
    stride: u32,
    is_clamped: bool,
    inverse_unit: f32,
    rounding: f32,
    /// Upper bounds up to this are good enough; negative if none is.
    inside: f32,
    /// Lower bounds above this are good enough.
    outside: f32,
}
var<private> hull: Hull;

var<private> face_len: u32;
var<private> face_vertices: array<u32, FACE_CAP>;
/// Positive, of sum 1.
var<private> face_weights: array<f32, FACE_CAP>;
/// L by rows, each as long as its number; diagonal entries are stored as reciprocals.
var<private> face_factor: array<f32, FACE_CAP * (FACE_CAP + 1u) / 2u>;
/// L^-1 1.
var<private> face_forward: array<f32, FACE_CAP>;
/// M^-1 1, or the cosines of a removal.
var<private> face_ones: array<f32, FACE_CAP>;
/// The sines of a removal.
var<private> face_sines: array<f32, FACE_CAP>;

/// The face without the origin.
var<private> support_len: u32;
var<private> support_vertices: array<u32, FACE_CAP>;
var<private> support_weights: array<f32, FACE_CAP>;
/// Weight of the origin.
var<private> origin_weight: f32;

/// The document and its tolerances, given its largest squared norm.
fn hull_of(doc: Doc, unit: f32) -> Hull {
    let rounding = params.rounding * unit;
    let decides = params.inside >= 0.0;
    return Hull(
        doc.gram_start,
        gram_stride(doc.num_tokens),
        params.scoring == CLAMPED,
        1.0 / unit,
        rounding,
        select(-1.0, params.inside - rounding, decides),
        select(FAR, params.inside + rounding, decides),
    );
}

/// Bits of a squared norm: ordered as the norms are, with NaN and infinity on top.
fn norm_bits(norm: f32) -> u32 {
    return bitcast<u32>(norm) & 0x7fffffffu;
}

/// Bits of positive infinity.
const INFINITE: u32 = 0x7f800000u;

/// Whether the squares of a document stay within f32 in all that follows.
fn is_in_range(unit_bits: u32) -> bool {
    return unit_bits > 0x0da24260u && unit_bits < 0x7149f2cau; // 1e-30 and 1e30
}

fn entry(a: u32, b: u32) -> f32 {
    return gram[hull.gram_start + a * hull.stride + b];
}

fn factor_row(row: u32) -> u32 {
    return row * (row + 1u) / 2u;
}

/// Optimality gap that counts as closed.
fn gap_allowed(upper: f32) -> f32 {
    return max(RELATIVE_GAP * upper, 0.25 * hull.rounding);
}

/// Adds a vertex; false, and nothing changed, when it depends on the others or the face is full.
fn push(i: u32, vertex: u32, weight: f32) -> bool {
    if face_len == FACE_CAP {
        return false;
    }
    let own = entry(i, i);
    var to_target = 0.0;
    var norm = 0.0;
    if vertex != ORIGIN {
        to_target = entry(vertex, i);
        norm = entry(vertex, vertex);
    }
    let offset = own - to_target;
    let diagonal = SHIFT + (offset + (norm - to_target)) * hull.inverse_unit;
    let new_row = factor_row(face_len);
    var rest = diagonal;
    var forward = 1.0;
    for (var s = 0u; s < face_len; s++) {
        let other = face_vertices[s];
        var between = 0.0;
        var towards = 0.0;
        if other != ORIGIN {
            towards = entry(other, i);
            if vertex != ORIGIN {
                between = entry(vertex, other);
            }
        }
        var sum = SHIFT + (offset + (between - towards)) * hull.inverse_unit;
        let row = factor_row(s);
        for (var t = 0u; t < s; t++) {
            sum -= face_factor[row + t] * face_factor[new_row + t];
        }
        let value = sum * face_factor[row + s];
        face_factor[new_row + s] = value;
        rest -= value * value;
        forward -= value * face_forward[s];
    }
    if !(rest > DEPENDENT * diagonal) {
        return false;
    }
    let reciprocal = inverseSqrt(rest);
    face_factor[new_row + face_len] = reciprocal;
    face_forward[face_len] = forward * reciprocal;
    face_vertices[face_len] = vertex;
    face_weights[face_len] = weight;
    face_len++;
    return true;
}

/// Solves M u = 1 for `face_ones`; returns the sum of u.
fn solve() -> f32 {
    var total = 0.0;
    for (var back = 0u; back < face_len; back++) {
        let s = face_len - 1u - back;
        var sum = face_forward[s];
        for (var t = s + 1u; t < face_len; t++) {
            sum -= face_factor[factor_row(t) + s] * face_ones[t];
        }
        sum *= face_factor[factor_row(s) + s];
        face_ones[s] = sum;
        total += sum;
    }
    return total;
}

/// Moves the weights to the minimiser of the face, dropping vertices whose weight would turn negative (Wolfe's minor
/// cycle). False when rounding has made the factor meaningless.
fn descend() -> bool {
    for (var round = 0u; round < FACE_CAP; round++) {
        let total = solve();
        // At most 1 / SHIFT in exact arithmetic.
        if !(total > 0.0 && total < 2.0 / SHIFT) {
            return false;
        }
        let scale = 1.0 / total;
        var step = 2.0;
        var leaving = FACE_CAP;
        for (var s = 0u; s < face_len; s++) {
            let goal = face_ones[s] * scale;
            if !(goal > 0.0) {
                let weight = face_weights[s];
                // Neither the weight nor its goal is positive: it leaves at once.
                var ratio = 0.0;
                if weight > 0.0 {
                    ratio = weight / (weight - goal);
                }
                if ratio < step {
                    step = ratio;
                    leaving = s;
                }
            }
        }
        if leaving == FACE_CAP {
            for (var s = 0u; s < face_len; s++) {
                face_weights[s] = face_ones[s] * scale;
            }
            return true;
        }
        if face_len == 1u {
            return false;
        }
        for (var s = 0u; s < face_len; s++) {
            let weight = face_weights[s];
            face_weights[s] = max(weight + step * (face_ones[s] * scale - weight), 0.0);
        }
        remove(leaving);
    }
    return false;
}

/// Drops a vertex: the rows below it move up by one, and rotations make L triangular again.
fn remove(q: u32) {
    for (var row = q + 1u; row < face_len; row++) {
        let from_row = factor_row(row);
        let to_row = factor_row(row - 1u);
        for (var t = 0u; t < q; t++) {
            face_factor[to_row + t] = face_factor[from_row + t];
        }
        var carry = face_factor[from_row + q];
        for (var t = q; t + 1u < row; t++) {
            let value = face_factor[from_row + t + 1u];
            face_factor[to_row + t] = face_ones[t] * carry + face_sines[t] * value;
            carry = face_ones[t] * value - face_sines[t] * carry;
        }
        let diagonal = 1.0 / face_factor[from_row + row];
        let reciprocal = inverseSqrt(carry * carry + diagonal * diagonal);
        let cosine = carry * reciprocal;
        let sine = diagonal * reciprocal;
        face_factor[to_row + row - 1u] = reciprocal;
        face_ones[row - 1u] = cosine;
        face_sines[row - 1u] = sine;
        // 1 = L z turns with L.
        let above = face_forward[row - 1u];
        let below = face_forward[row];
        face_forward[row - 1u] = cosine * above + sine * below;
        face_forward[row] = cosine * below - sine * above;
        face_vertices[row - 1u] = face_vertices[row];
        face_weights[row - 1u] = face_weights[row];
    }
    face_len--;
}

/// Copies the face without the origin.
fn collect() {
    support_len = 0u;
    origin_weight = 0.0;
    for (var s = 0u; s < face_len; s++) {
        if face_vertices[s] == ORIGIN {
            origin_weight = face_weights[s];
        } else {
            support_vertices[support_len] = face_vertices[s];
            support_weights[support_len] = face_weights[s];
            support_len++;
        }
    }
}

var<private> scan_best: Steepest;
var<private> scan_target: f32;
var<private> scan_level: f32;

/// One candidate of `scan`: `g` is its gradient, `weight` its share of the projection.
fn scan_one(i: u32, j: u32, own: f32, along: f32, g: f32, weight: f32) {
    scan_target += weight * (own - along);
    scan_level += weight * g;
    if g > scan_best.top && j != i {
        scan_best = Steepest(g, j);
    }
}

/// Walks the candidates `0..num_candidates` without `i`: the steepest, and where the projection stands.
/// All threads of a workgroup read the same rows, four at a time for each vertex taken from private memory.
fn scan(i: u32, own: f32, num_candidates: u32) -> Iterate {
    scan_best = Steepest(-FAR, ORIGIN);
    scan_target = origin_weight * own;
    scan_level = 0.0;
    for (var position = 0u; position < num_candidates; position += 4u) {
        // Past the end the last one is read again, and counts for nothing.
        let last = num_candidates - 1u;
        let j = vec4<u32>(
            candidate(position),
            candidate(min(position + 1u, last)),
            candidate(min(position + 2u, last)),
            candidate(min(position + 3u, last)),
        );
        let rows = hull.gram_start + j * hull.stride;
        let along = vec4<f32>(gram[rows.x + i], gram[rows.y + i], gram[rows.z + i], gram[rows.w + i]);
        var g = along;
        var shares = vec4<f32>();
        for (var s = 0u; s < support_len; s++) {
            let vertex = support_vertices[s];
            let weight = support_weights[s];
            let products =
                vec4<f32>(gram[rows.x + vertex], gram[rows.y + vertex], gram[rows.z + vertex], gram[rows.w + vertex]);
            g -= weight * products;
            shares = select(shares, vec4<f32>(weight), j == vec4<u32>(vertex));
        }
        scan_one(i, j.x, own, along.x, g.x, shares.x);
        if position + 1u < num_candidates {
            scan_one(i, j.y, own, along.y, g.y, shares.y);
        }
        if position + 2u < num_candidates {
            scan_one(i, j.z, own, along.z, g.z, shares.z);
        }
        if position + 3u < num_candidates {
            scan_one(i, j.w, own, along.w, g.w, shares.w);
        }
    }
    // Never negative zero: bounds are compared as bits.
    return Iterate(abs(max(scan_target - scan_level, 0.0)), scan_level, CONVERGED);
}

fn has_vertex(vertex: u32) -> bool {
    for (var s = 0u; s < face_len; s++) {
        if face_vertices[s] == vertex {
            return true;
        }
    }
    return false;
}

/// Moves to the minimiser of the face, then iterates against `num_candidates` until a tolerance or the optimum.
fn descend_from(i: u32, num_candidates: u32) -> Iterate {
    let own = entry(i, i);
    var iterate = Iterate(0.0, 0.0, STALLED);
    var last = FAR;
    for (var iteration = 0u; iteration < MAX_ITERATIONS; iteration++) {
        if !descend() {
            // What the weights add up to is not known.
            iterate.upper = FAR;
            break;
        }
        collect();
        iterate = scan(i, own, num_candidates);
        if iterate.upper <= hull.inside {
            iterate.stop = INSIDE;
            return iterate;
        }
        if iterate.upper > last + hull.rounding {
            break;
        }
        last = iterate.upper;
        var best = scan_best;
        if hull.is_clamped && best.top <= 0.0 {
            best = Steepest(0.0, ORIGIN);
        }
        // The lower bound is this over |r|. Its square may leave the range of f32; the root does not.
        let lower = iterate.upper + iterate.level - best.top;
        let distance = sqrt(iterate.upper);
        if lower > 0.0 && lower > sqrt(hull.outside) * distance {
            iterate.stop = OUTSIDE;
            return iterate;
        }
        // A wide bracket around the tolerance decides nothing: close it further.
        let straddles = hull.inside >= 0.0 && lower <= sqrt(hull.inside) * distance;
        var allowed = gap_allowed(iterate.upper);
        if straddles {
            allowed = 0.25 * hull.rounding;
        }
        if best.top - iterate.level <= allowed {
            return iterate;
        }
        if has_vertex(best.vertex) || !push(i, best.vertex, 0.0) {
            break;
        }
    }
    iterate.stop = STALLED;
    return iterate;
}

/// Stores the support of the token at a place of the batch.
fn store_support(at: u32) {
    for (var slot = 0u; slot < support_len; slot++) {
        faces[at * FACE_CAP + slot] = vec2<u32>(support_vertices[slot], bitcast<u32>(support_weights[slot]));
    }
}
