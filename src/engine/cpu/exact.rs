//! The f64 solver: projection of a point on the hull of tokens, with a bracket that holds in spite of rounding.
//!
//! It decides what the fast f32 path leaves open. The method is the same (projected gradient on the active face:
//! Wolfe's nearest point algorithm, the same step as Lawson-Hanson NNLS), but it works on the vectors and never on a
//! Gram matrix, so it needs `num_tokens * dim` memory for a document of any length, and nothing drifts: the residual
//! and the gradient are computed afresh from the vectors in every iteration.
//!
//! With `y_s = x_s - x` for the vertices `s` of the current face `S`, and weights `l` on them:
//!
//! 1. `r = x - p = -sum l_s y_s`, and `g_j = x_j . r` for every candidate `j`.
//! 2. Upper bound `|r|`, lower bound `(x . r - max_j g_j) / |r|`; stop when they decide.
//! 3. The candidate with the largest `g_j` joins the face. Project on the affine hull of the face; while a weight is
//!    not positive, walk back to the face that is met first and drop its vertex.
//!
//! Clamped scoring adds 0 as one more vertex.

use crate::{Scoring, TokenData};

/// Unit roundoff of f64.
const UNIT: f64 = f64::EPSILON / 2.0;

/// Squared sine of the angle between a new vertex and the span of the face below which it counts as dependent.
const DEPENDENT: f64 = 1e-13;

/// The vertex 0 of clamped scoring, in a face's list of vertices.
const ORIGIN: u32 = u32::MAX;

/// A document in f64, converted without rounding: `[num_tokens, dim]`, row-major.
///
/// The squares of every finite f32 are normal f64 numbers, so tokens of any dtype need no scaling.
#[derive(Debug, Clone)]
pub struct DocF64 {
    coords: Vec<f64>,
    /// Upper bounds of the norms.
    norms: Vec<f64>,
    dim: usize,
}

impl DocF64 {
    /// `data` is `[num_tokens, dim]` and finite.
    ///
    /// # Panics
    /// If `dim` is 0.
    pub fn from_tokens(data: TokenData<'_>, dim: usize) -> Self {
        let mut coords = vec![0.0; data.len()];
        match data {
            TokenData::F16(values) => coords.iter_mut().zip(values).for_each(|(to, v)| *to = v.to_f64()),
            TokenData::Bf16(values) => coords.iter_mut().zip(values).for_each(|(to, v)| *to = v.to_f64()),
            TokenData::F32(values) => coords.iter_mut().zip(values).for_each(|(to, &v)| *to = f64::from(v)),
            TokenData::I8(values) => coords.iter_mut().zip(values).for_each(|(to, &v)| *to = f64::from(v)),
        }
        Self::from_coords(coords, dim)
    }

    /// `coords` is `[num_tokens, dim]`, finite, with magnitudes (other than 0) between 1e-120 and 1e120.
    ///
    /// # Panics
    /// If `dim` is 0.
    pub fn from_coords(coords: Vec<f64>, dim: usize) -> Self {
        let up = 1.0 + gamma(dim + 2);
        let norms = coords.chunks_exact(dim).map(|x| dot(x, x).sqrt() * up).collect();
        DocF64 { coords, norms, dim }
    }

    /// Coordinates of one token, `[dim]`.
    ///
    /// # Panics
    /// If there is no such token.
    pub fn token(&self, token_idx: usize) -> &[f64] {
        &self.coords[token_idx * self.dim..(token_idx + 1) * self.dim]
    }

    /// Tokens of the document.
    pub fn num_tokens(&self) -> usize {
        self.norms.len()
    }

    /// Components of a token.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// An upper bound of a token's norm, within a few units in the last place.
    pub(crate) fn norm(&self, token_idx: usize) -> f64 {
        self.norms[token_idx]
    }
}

/// When a projection is good enough.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Stop {
    /// As soon as the distance is proven to be at most this, or more than this.
    Decide(f64),
    /// When the bracket is no wider than the larger of `absolute` and `relative` times its upper end.
    Gap {
        /// Share of the distance.
        relative: f64,
        /// In the units of the tokens.
        absolute: f64,
    },
}

/// Why a projection stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// [`Stop::Decide`]: the upper bound is at most ε.
    Removable,
    /// [`Stop::Decide`]: the lower bound is above ε.
    Needed,
    /// [`Stop::Gap`]: the bracket is narrow enough.
    Converged,
    /// Rounding or the bound on iterations came first. The bracket holds all the same; keep the token.
    Undecided,
}

/// A point of the hull near a token, and a bracket around the token's distance to the hull.
#[derive(Debug, Clone, PartialEq)]
pub struct Projection {
    /// Why the solver stopped.
    pub status: Status,
    /// The distance is at most this: that of the point below, rounding included. Infinite for an empty hull.
    pub upper: f64,
    /// The distance is at least this; never below 0.
    pub lower: f64,
    /// Tokens of the point, ascending.
    pub support: Vec<u32>,
    /// Their weights, positive. With `origin_weight` their sum is 1 up to rounding; the bounds hold for the weights
    /// divided by that sum.
    pub weights: Vec<f64>,
    /// Weight of the vertex 0; always 0 when plain.
    pub origin_weight: f64,
    /// A query that loses `lower` times its norm when only the candidates are kept, `[dim]`; 0 when `lower` is 0.
    pub direction: Vec<f64>,
    /// Gradients computed, each `num_candidates * dim` multiplications.
    pub num_iterations: u32,
}

/// Projects on hulls; holds the buffers, so keep one for many calls.
#[derive(Debug, Default)]
pub struct Solver {
    face: Face,
    weights: Vec<f64>,
    /// Residual `x - p`.
    r: Vec<f64>,
}

/// The best candidate in one direction.
struct Priced {
    /// `None`: the vertex 0 is best.
    best: u32,
    /// Largest `x_j . r`.
    gain: f64,
    /// Upper bound of the norm of a vertex.
    norm: f64,
}

/// The hull that is projected on, and the point.
struct Problem<'a> {
    doc: &'a DocF64,
    x: &'a [f64],
    x_norm: f64,
    candidates: &'a [u32],
    clamped: bool,
}

impl Solver {
    /// Without any buffer yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Projects token `target` on the hull of the tokens `candidates` (`target` itself is skipped), with 0 when
    /// clamped. `warm`, a support and its weights, is where to start: tokens that are no candidates are ignored, and
    /// the result is the same up to rounding.
    ///
    /// # Panics
    /// If `target` or a candidate is not a token of `doc`.
    pub fn project(
        &mut self,
        doc: &DocF64,
        target: usize,
        candidates: &[u32],
        scoring: Scoring,
        stop: Stop,
        warm: Option<(&[u32], &[f64])>,
    ) -> Projection {
        let without: Vec<u32>;
        let candidates = if candidates.contains(&(target as u32)) {
            without = candidates.iter().copied().filter(|&j| j as usize != target).collect();
            &without
        } else {
            candidates
        };
        self.project_point(doc, doc.token(target), candidates, scoring, stop, warm)
    }

    /// [`Solver::project`] for any point `x`, `[dim]`.
    ///
    /// # Panics
    /// If a candidate is not a token of `doc`, or `x` has another dimension.
    pub fn project_point(
        &mut self,
        doc: &DocF64,
        x: &[f64],
        candidates: &[u32],
        scoring: Scoring,
        stop: Stop,
        warm: Option<(&[u32], &[f64])>,
    ) -> Projection {
        assert_eq!(x.len(), doc.dim, "a point of the document's dimension");
        let clamped = scoring == Scoring::Clamped;
        if candidates.is_empty() && !clamped {
            return Projection::of_empty_hull(stop, doc.dim);
        }
        let x_norm = dot(x, x).sqrt() * (1.0 + gamma(doc.dim + 2));
        let problem = Problem { doc, x, x_norm, candidates, clamped };
        if !warm.is_some_and(|(support, weights)| self.start_warm(&problem, support, weights)) {
            self.start_cold(&problem);
        }
        self.iterate(&problem, stop)
    }

    fn iterate(&mut self, problem: &Problem<'_>, stop: Stop) -> Projection {
        let dim = problem.doc.dim;
        // A face has at most dim + 1 vertices; vertices that leave again make it a few times that.
        let max_iterations = 64 + 8 * (dim + 1).min(problem.candidates.len()) as u32;
        let mut best = Projection::unknown(dim);
        loop {
            self.face.residual(&self.weights, &mut self.r);
            let (upper, noise) = self.upper();
            let improves = upper < best.upper;
            if improves {
                self.record_point(&mut best, upper);
            }
            let priced = problem.price(&self.r);
            best.num_iterations += 1;
            let lower = problem.lower(&self.r, &priced);
            if lower > best.lower {
                best.lower = lower;
                best.direction.copy_from_slice(&self.r);
            }
            if let Some(status) = stop.status(best.lower, best.upper) {
                best.status = status;
                return best.sorted();
            }
            // No step is left that rounding does not swallow: the bracket above is as good as f64 makes it.
            let stuck = !improves || upper <= 2.0 * noise || best.num_iterations >= max_iterations;
            if stuck || !self.enter(problem, priced.best) {
                return best.sorted();
            }
        }
    }

    /// An upper bound on the distance at the current weights, and the part of it that is rounding.
    ///
    /// `x - p = -sum l_s y_s / sum l_s` for any weights. Each `y_s` was rounded once a component, and a component of
    /// the sum is a dot product of `len` terms: together at most `gamma(len + 1) * sum l_s |y_s|`.
    fn upper(&self) -> (f64, f64) {
        let len = self.weights.len();
        let sum: f64 = self.weights.iter().sum();
        let spread: f64 = self.weights.iter().zip(&self.face.norms).map(|(l, norm)| l * norm).sum();
        let noise = gamma(len + 4) * spread / sum;
        let norm = dot(&self.r, &self.r).sqrt() / sum;
        ((norm + noise) * (1.0 + gamma(self.r.len() + len + 8)), noise)
    }

    fn record_point(&self, best: &mut Projection, upper: f64) {
        best.upper = upper;
        best.support.clear();
        best.weights.clear();
        best.origin_weight = 0.0;
        for (&vertex, &weight) in self.face.vertices.iter().zip(&self.weights) {
            if vertex == ORIGIN {
                best.origin_weight = weight;
            } else {
                best.support.push(vertex);
                best.weights.push(weight);
            }
        }
    }

    /// Starts at the nearest vertex.
    fn start_cold(&mut self, problem: &Problem<'_>) {
        self.face.clear(problem.doc.dim);
        let mut nearest = (ORIGIN, if problem.clamped { dot(problem.x, problem.x) } else { f64::INFINITY });
        for &j in problem.candidates {
            let squared = squared_distance(problem.x, problem.doc.token(j as usize));
            if squared < nearest.1 || (squared == nearest.1 && j < nearest.0) {
                nearest = (j, squared);
            }
        }
        self.face.append(nearest.0, problem);
        self.weights.clear();
        self.weights.push(1.0);
    }

    /// Starts at the given point as far as it lies in the hull; false if no weight of it is left.
    fn start_warm(&mut self, problem: &Problem<'_>, support: &[u32], weights: &[f64]) -> bool {
        self.face.clear(problem.doc.dim);
        self.weights.clear();
        let mut is_candidate = vec![false; problem.doc.num_tokens()];
        problem.candidates.iter().for_each(|&j| is_candidate[j as usize] = true);
        let mut left = 1.0;
        for (&j, &weight) in support.iter().zip(weights) {
            left -= weight;
            let usable = weight > 0.0 && weight.is_finite() && is_candidate.get(j as usize) == Some(&true);
            if usable && !self.face.vertices.contains(&j) && self.face.append(j, problem) {
                self.weights.push(weight);
            }
        }
        if problem.clamped && left > 0.0 && self.face.append(ORIGIN, problem) {
            self.weights.push(left);
        }
        let sum: f64 = self.weights.iter().sum();
        if !(sum > 0.0 && sum.is_finite()) {
            return false;
        }
        self.weights.iter_mut().for_each(|weight| *weight /= sum);
        self.descend();
        true
    }

    /// Adds a vertex and moves to the nearest point of the new face; false if rounding leaves no such step.
    ///
    /// A vertex that rounding cannot tell from the affine hull of the face lies within `sqrt(DEPENDENT)` of it,
    /// relative to the face's size, and so can lower the distance by no more: stopping there costs nothing.
    fn enter(&mut self, problem: &Problem<'_>, vertex: u32) -> bool {
        if self.face.vertices.contains(&vertex) || !self.face.append(vertex, problem) {
            return false;
        }
        self.weights.push(0.0);
        self.descend();
        true
    }

    /// Moves towards the nearest point of the affine hull, dropping the vertices of faces met on the way.
    fn descend(&mut self) {
        loop {
            let goal = self.face.nearest(&mut self.r);
            if goal.iter().all(|&m| m > 0.0) {
                self.weights.copy_from_slice(&goal);
                return;
            }
            let (mut step, mut blocking) = (f64::INFINITY, 0);
            for (at, (&l, &m)) in self.weights.iter().zip(&goal).enumerate() {
                // A weight of 0 that does not grow blocks at once.
                let reach = if l > 0.0 { l / (l - m) } else { 0.0 };
                if m <= 0.0 && reach < step {
                    (step, blocking) = (reach, at);
                }
            }
            for (l, m) in self.weights.iter_mut().zip(&goal) {
                *l = (*l + step * (m - *l)).max(0.0);
            }
            self.weights[blocking] = 0.0;
            for at in (0..self.weights.len()).rev() {
                if self.weights[at] <= 0.0 {
                    self.weights.remove(at);
                    self.face.remove(at);
                }
            }
        }
    }
}

impl Problem<'_> {
    fn price(&self, r: &[f64]) -> Priced {
        let mut priced = if self.clamped {
            Priced { best: ORIGIN, gain: 0.0, norm: 0.0 }
        } else {
            Priced { best: ORIGIN, gain: f64::NEG_INFINITY, norm: 0.0 }
        };
        for &j in self.candidates {
            let gain = dot(self.doc.token(j as usize), r);
            priced.norm = priced.norm.max(self.doc.norm(j as usize));
            if gain > priced.gain || (gain == priced.gain && j < priced.best && priced.best != ORIGIN) {
                priced.gain = gain;
                priced.best = j;
            }
        }
        priced
    }

    /// A lower bound on the distance, whatever `r` is: `(x . r - max_j x_j . r) / |r|` with each of the two dot
    /// products off by at most `gamma(dim) * |r|` times a norm.
    fn lower(&self, r: &[f64], priced: &Priced) -> f64 {
        let norm = dot(r, r).sqrt();
        if norm == 0.0 {
            return 0.0;
        }
        let dim = self.doc.dim;
        let margin = (dot(self.x, r) - priced.gain) / norm * (1.0 - gamma(dim + 8));
        (margin - gamma(dim + 8) * (self.x_norm + priced.norm)).max(0.0)
    }
}

impl Stop {
    /// `None`: go on.
    fn status(self, lower: f64, upper: f64) -> Option<Status> {
        match self {
            Stop::Decide(epsilon) if upper <= epsilon => Some(Status::Removable),
            Stop::Decide(epsilon) if lower > epsilon => Some(Status::Needed),
            Stop::Gap { relative, absolute } if upper - lower <= absolute.max(relative * upper) => {
                Some(Status::Converged)
            }
            _ => None,
        }
    }
}

impl Projection {
    fn unknown(dim: usize) -> Self {
        Projection {
            status: Status::Undecided,
            upper: f64::INFINITY,
            lower: 0.0,
            support: Vec::new(),
            weights: Vec::new(),
            origin_weight: 0.0,
            direction: vec![0.0; dim],
            num_iterations: 0,
        }
    }

    fn of_empty_hull(stop: Stop, dim: usize) -> Self {
        let status = match stop {
            Stop::Decide(_) => Status::Needed,
            Stop::Gap { .. } => Status::Undecided,
        };
        Projection { status, lower: f64::INFINITY, ..Self::unknown(dim) }
    }

    fn sorted(mut self) -> Self {
        let mut pairs: Vec<(u32, f64)> = self.support.iter().copied().zip(self.weights.iter().copied()).collect();
        pairs.sort_unstable_by_key(|&(token_idx, _)| token_idx);
        (self.support, self.weights) = pairs.into_iter().unzip();
        self
    }
}

/// `n * UNIT / (1 - n * UNIT)`: the relative error of `n` roundings in a row.
pub(crate) fn gamma(n: usize) -> f64 {
    let nu = n as f64 * UNIT;
    nu / (1.0 - nu)
}

/// Dot product in eight interleaved sums, which vectorises and has the error of any order: `gamma(len) * |a| * |b|`.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a_blocks, b_blocks) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f64 = a_blocks.remainder().iter().zip(b_blocks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_blocks.zip(b_blocks) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f64>() + tail
}

fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a_blocks, b_blocks) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f64 = a_blocks.remainder().iter().zip(b_blocks.remainder()).map(|(a, b)| (a - b) * (a - b)).sum();
    for (a, b) in a_blocks.zip(b_blocks) {
        for lane in 0..8 {
            let difference = a[lane] - b[lane];
            sums[lane] += difference * difference;
        }
    }
    sums.iter().sum::<f64>() + tail
}

/// The vertices of a face relative to `x`, and the point of their affine hull nearest to `x`.
///
/// The nearest point has weights `u / sum u` with `(s2 e e' + Y Y') u = e`, where the rows of `Y` are `y_s` and `s2`
/// is any positive number; the matrix is positive definite exactly when the vertices are affinely independent. Its
/// Cholesky factor `L` grows and shrinks by a row, and is never rebuilt.
#[derive(Debug, Default)]
struct Face {
    vertices: Vec<u32>,
    /// `y_s = x_s - x`, one row of `dim` a vertex.
    y: Vec<f64>,
    /// Upper bounds of `|y_s|`.
    norms: Vec<f64>,
    /// Rows of `L`, row `k` with `k + 1` entries.
    rows: Vec<Vec<f64>>,
    s2: f64,
    dim: usize,
}

impl Face {
    fn clear(&mut self, dim: usize) {
        self.dim = dim;
        self.s2 = 0.0;
        self.vertices.clear();
        self.y.clear();
        self.norms.clear();
        self.rows.clear();
    }

    fn y(&self, at: usize) -> &[f64] {
        &self.y[at * self.dim..(at + 1) * self.dim]
    }

    /// Adds a vertex; false, and nothing added, if rounding cannot tell it from the affine hull of the others.
    fn append(&mut self, vertex: u32, problem: &Problem<'_>) -> bool {
        let len = self.vertices.len();
        if vertex == ORIGIN {
            self.y.extend(problem.x.iter().map(|x| -x));
        } else {
            let token = problem.doc.token(vertex as usize);
            self.y.extend(token.iter().zip(problem.x).map(|(x_s, x)| x_s - x));
        }
        let squared = dot(self.y(len), self.y(len));
        if len < 2 && squared > self.s2 {
            // The scale of the bordering: with one vertex the factor is a single number, so it can still change.
            self.s2 = squared;
            if let [first] = self.rows.as_mut_slice() {
                first[0] = (self.s2 + dot(&self.y[..self.dim], &self.y[..self.dim])).sqrt();
            }
        }
        let diagonal = self.s2 + squared;
        let mut row = Vec::with_capacity(len + 1);
        for k in 0..len {
            let entry = self.s2 + dot(self.y(k), self.y(len));
            let known = dot(&self.rows[k][..k], &row);
            row.push((entry - known) / self.rows[k][k]);
        }
        let pivot = diagonal - dot(&row, &row);
        if len > 0 && (pivot.is_nan() || pivot <= DEPENDENT * diagonal) {
            self.y.truncate(len * self.dim);
            return false;
        }
        row.push(pivot.sqrt());
        self.rows.push(row);
        self.vertices.push(vertex);
        self.norms.push(squared.sqrt() * (1.0 + gamma(self.dim + 2)));
        true
    }

    /// Takes out vertex `at`: the rows below lose a column, and plane rotations make them triangular again.
    fn remove(&mut self, at: usize) {
        self.vertices.remove(at);
        self.norms.remove(at);
        self.y.drain(at * self.dim..(at + 1) * self.dim);
        self.rows.remove(at);
        for k in at..self.rows.len() {
            // Row k has k + 2 entries; the rotation of columns k and k + 1 clears the last.
            let (a, b) = (self.rows[k][k], self.rows[k][k + 1]);
            let radius = a.hypot(b);
            let (cosine, sine) = if radius > 0.0 { (a / radius, b / radius) } else { (1.0, 0.0) };
            for row in &mut self.rows[k..] {
                let (a, b) = (row[k], row[k + 1]);
                row[k] = cosine * a + sine * b;
                row[k + 1] = cosine * b - sine * a;
            }
            self.rows[k].truncate(k + 1);
        }
    }

    /// Solves `L L' u = right` in place.
    fn solve(&self, right: &mut [f64]) {
        for (k, row) in self.rows.iter().enumerate() {
            right[k] = (right[k] - dot(&row[..k], &right[..k])) / row[k];
        }
        for k in (0..self.rows.len()).rev() {
            right[k] /= self.rows[k][k];
            let value = right[k];
            for (to, entry) in right[..k].iter_mut().zip(&self.rows[k][..k]) {
                *to -= entry * value;
            }
        }
    }

    /// Weights of the nearest point of the affine hull, refined once against the vectors; `r` is scratch.
    fn nearest(&self, r: &mut Vec<f64>) -> Vec<f64> {
        let len = self.vertices.len();
        if len == 1 {
            return vec![1.0];
        }
        let mut u = vec![1.0; len];
        self.solve(&mut u);
        let sum: f64 = u.iter().sum();
        u.iter_mut().for_each(|value| *value /= sum);
        // At the nearest point all y_s . r are equal. The Gram matrix squares the condition; the vectors do not.
        self.residual(&u, r);
        let gains: Vec<f64> = (0..len).map(|at| dot(self.y(at), r)).collect();
        let mean: f64 = gains.iter().zip(&u).map(|(gain, weight)| gain * weight).sum();
        let mut change: Vec<f64> = gains.iter().map(|gain| gain - mean).collect();
        self.solve(&mut change);
        let drift: f64 = change.iter().sum();
        u.iter().zip(&change).map(|(weight, change)| weight + change - drift * weight).collect()
    }

    /// `r = -sum l_s y_s`, which is `x - p`.
    fn residual(&self, weights: &[f64], r: &mut Vec<f64>) {
        r.clear();
        r.resize(self.dim, 0.0);
        for (y, &weight) in self.y.chunks_exact(self.dim).zip(weights) {
            for (to, y) in r.iter_mut().zip(y) {
                *to -= weight * y;
            }
        }
    }
}
