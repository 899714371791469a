//! The exact test for ε = 0: is a token in the hull of others? Filter in f64, then integers of any length.
//!
//! Tokens of every dtype are multiples of one power of two, so a document is a matrix of integers. The f64 solver
//! with its rigorous lower bound dismisses nearly every token outside the hull. What is left goes through the same
//! iteration (Wolfe's nearest point algorithm) without any rounding, started from the f64 solver's face. It is finite
//! and complete: the distance falls strictly from one face to the next, so no face comes twice, and it ends either in
//! `x` itself, with exact weights, or in a direction that separates `x` strictly from every candidate.

use dashu_int::ops::{BitTest, Gcd};
use dashu_int::{IBig, UBig};
use nalgebra::DMatrix;

use super::exact::{DocF64, Solver, Status, Stop, dot, gamma};
use super::witness::whitened;
use crate::Scoring;

/// The vertex 0 of clamped scoring, in a face's list of vertices.
const ORIGIN: u32 = u32::MAX;

/// Exact weights of a convex combination: `numerators[s] / denominator`, lowest terms.
///
/// All are positive. The numerators sum to the denominator for plain scoring, and to at most that for clamped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExactWeights {
    /// One for each token of the support.
    pub numerators: Vec<UBig>,
    /// Common to all, positive.
    pub denominator: UBig,
}

impl ExactWeights {
    /// The weights as integers over `one`, if they are.
    pub fn over(&self, one: u32) -> Option<Vec<u32>> {
        let factor = UBig::from(one);
        let whole = |numerator: &UBig| {
            let product = numerator * &factor;
            (&product % &self.denominator).is_zero().then(|| u32::try_from(product / &self.denominator).ok())?
        };
        self.numerators.iter().map(whole).collect()
    }

    /// All the weight on one token.
    pub fn one() -> Self {
        ExactWeights { numerators: vec![UBig::ONE], denominator: UBig::ONE }
    }
}

/// Where a token lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Membership {
    /// `x = sum w_s x_s` holds exactly.
    Inside {
        /// Tokens of the combination, ascending. Empty when `x` is 0 (clamped).
        support: Vec<u32>,
        /// Their weights.
        weights: ExactWeights,
    },
    /// Some query gives `x` a strictly larger product than any point of the hull; proven.
    Outside,
}

/// A token removed without any loss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExactRemoval {
    /// The token.
    pub token_idx: u32,
    /// Kept tokens, ascending.
    pub support: Vec<u32>,
    /// `x = sum w_s x_s` exactly.
    pub weights: ExactWeights,
}

/// The smallest set with the same score for every query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LosslessSelection {
    /// One flag a token.
    pub kept: Vec<bool>,
    /// The others, ascending by token.
    pub removals: Vec<ExactRemoval>,
}

/// For each token the first token with equal coordinates (itself if it is the first); `-0.0` equals `0.0`.
pub fn first_equals(doc: &DocF64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..doc.num_tokens() as u32).collect();
    let token = |&token_idx: &u32| doc.token(token_idx as usize);
    // Stable, so equal tokens stay in order. Tokens are finite: every pair compares.
    order.sort_by(|a, b| token(a).partial_cmp(token(b)).unwrap_or(std::cmp::Ordering::Equal));
    let mut first: Vec<u32> = (0..doc.num_tokens() as u32).collect();
    for pair in order.windows(2) {
        if token(&pair[0]) == token(&pair[1]) {
            first[pair[1] as usize] = first[pair[0] as usize];
        }
    }
    first
}

/// Removes every token that no query can miss: later duplicates, 0 when clamped, and whatever is no vertex of the
/// hull. The kept set does not depend on the order of tests, and is never empty for a document with tokens.
pub fn lossless_kept(doc: &DocF64, scoring: Scoring) -> LosslessSelection {
    let num_tokens = doc.num_tokens();
    let first = first_equals(doc);
    let mut kept: Vec<bool> = first.iter().enumerate().map(|(token_idx, &f)| f as usize == token_idx).collect();
    let mut tester = ExactTester::new(doc, scoring);
    let mut proofs: Vec<Option<(Vec<u32>, ExactWeights)>> = vec![None; num_tokens];
    let mut candidates = positions(&kept);
    for token_idx in positions(&kept) {
        if candidates.len() == 1 {
            break; // A single distinct value: keep it, even if it is 0.
        }
        if let Membership::Inside { support, weights } = tester.test(token_idx, &candidates) {
            kept[token_idx as usize] = false;
            candidates.retain(|&j| j != token_idx);
            proofs[token_idx as usize] = Some((support, weights));
        }
    }
    // A removed token may rest on one that was removed after it. The kept tokens are all the vertices, so it lies in
    // their hull too.
    for (token_idx, proof) in proofs.iter_mut().enumerate() {
        let rests_on_kept = |support: &[u32]| support.iter().all(|&j| kept[j as usize]);
        if proof.as_ref().is_some_and(|(support, _)| !rests_on_kept(support)) {
            *proof = match tester.test(token_idx as u32, &candidates) {
                Membership::Inside { support, weights } => Some((support, weights)),
                Membership::Outside => None,
            };
            kept[token_idx] = proof.is_none();
        }
    }
    let removals = (0..num_tokens as u32)
        .filter(|&token_idx| !kept[token_idx as usize])
        .filter_map(|token_idx| {
            let first = first[token_idx as usize];
            let (support, weights) = if kept[first as usize] {
                (vec![first], ExactWeights::one())
            } else {
                proofs[first as usize].clone()?
            };
            Some(ExactRemoval { token_idx, support, weights })
        })
        .collect();
    // A duplicate whose first was removed and then found kept again stays removed with it as support.
    LosslessSelection { kept, removals }
}

fn positions(flags: &[bool]) -> Vec<u32> {
    (0..flags.len() as u32).filter(|&token_idx| flags[token_idx as usize]).collect()
}

/// Tests the tokens of one document.
pub struct ExactTester<'a> {
    doc: &'a DocF64,
    scoring: Scoring,
    solver: Solver,
    /// Made for the first token that needs one.
    witnesses: Option<Option<DMatrix<f64>>>,
    /// Every coordinate is an integer times 2 to this.
    exponent: i32,
}

impl<'a> ExactTester<'a> {
    /// Reads the document once.
    pub fn new(doc: &'a DocF64, scoring: Scoring) -> Self {
        let mut exponent = i32::MAX;
        for token_idx in 0..doc.num_tokens() {
            for &value in doc.token(token_idx) {
                if value != 0.0 {
                    exponent = exponent.min(odd_parts(value).1);
                }
            }
        }
        ExactTester { doc, scoring, solver: Solver::new(), witnesses: None, exponent }
    }

    /// Whether token `target` lies in the hull of `candidates` (itself skipped), with 0 when clamped; exact.
    ///
    /// # Panics
    /// If `target` or a candidate is not a token of the document.
    pub fn test(&mut self, target: u32, candidates: &[u32]) -> Membership {
        if self.separates(self.doc.token(target as usize), target, candidates) {
            return Membership::Outside;
        }
        let witnesses = self.witnesses.take().unwrap_or_else(|| whitened(self.doc));
        let is_proven = witnesses.as_ref().is_some_and(|all| {
            let witness = all.column(target as usize);
            self.separates(witness.as_slice(), target, candidates)
        });
        self.witnesses = Some(witnesses);
        if is_proven {
            return Membership::Outside;
        }
        let start = self.solver.project(self.doc, target as usize, candidates, self.scoring, Stop::Decide(0.0), None);
        if start.status == Status::Needed {
            return Membership::Outside;
        }
        let mut face = ExactFace::new(self, target);
        face.start(&start.support, &start.weights, start.origin_weight);
        face.run(candidates)
    }

    /// Whether `q` proves that token `target` is outside. Each product is off by at most `gamma(dim) * |q|` times the
    /// norm of its token.
    fn separates(&self, q: &[f64], target: u32, candidates: &[u32]) -> bool {
        let doc = self.doc;
        let unsure = gamma(2 * doc.dim() + 16) * dot(q, q).sqrt();
        let x_norm = doc.norm(target as usize);
        let own = dot(q, doc.token(target as usize)) - unsure * x_norm;
        if own.is_nan() || (self.scoring == Scoring::Clamped && own <= 0.0) {
            return false;
        }
        candidates.iter().filter(|&&j| j != target).all(|&j| {
            let other = dot(q, doc.token(j as usize)) + unsure * doc.norm(j as usize);
            other < own
        })
    }

    /// A token as integers, `[dim]`; 0 for the origin.
    fn integers(&self, vertex: u32) -> Vec<IBig> {
        if vertex == ORIGIN {
            return vec![IBig::ZERO; self.doc.dim()];
        }
        self.doc.token(vertex as usize).iter().map(|&value| self.integer(value)).collect()
    }

    fn integer(&self, value: f64) -> IBig {
        if value == 0.0 {
            return IBig::ZERO;
        }
        let (mantissa, exponent) = odd_parts(value);
        IBig::from(mantissa) << (exponent - self.exponent) as usize
    }
}

/// `value = mantissa * 2^exponent` with an odd mantissa; `value` is finite and not 0.
fn odd_parts(value: f64) -> (i64, i32) {
    let bits = value.to_bits();
    let biased = ((bits >> 52) & 0x7ff) as i32;
    let fraction = (bits & ((1 << 52) - 1)) as i64;
    let (magnitude, exponent) = if biased == 0 { (fraction, -1074) } else { (fraction | 1 << 52, biased - 1075) };
    let zeros = magnitude.trailing_zeros();
    let odd = magnitude >> zeros;
    (if value < 0.0 { -odd } else { odd }, exponent + zeros as i32)
}

/// A point `sum (weights[s] / denominator) x_s` on a face with affinely independent vertices, in exact arithmetic.
struct ExactFace<'a> {
    tester: &'a ExactTester<'a>,
    target: u32,
    x: Vec<IBig>,
    vertices: Vec<u32>,
    tokens: Vec<Vec<IBig>>,
    weights: Vec<IBig>,
    denominator: IBig,
}

impl<'a> ExactFace<'a> {
    fn new(tester: &'a ExactTester<'a>, target: u32) -> Self {
        let x = tester.integers(target);
        let (vertices, tokens, weights) = (Vec::new(), Vec::new(), Vec::new());
        ExactFace { tester, target, x, vertices, tokens, weights, denominator: IBig::ONE }
    }

    /// Any point of the hull will do as a start, so the weights are rounded up.
    fn start(&mut self, support: &[u32], weights: &[f64], origin_weight: f64) {
        for (&vertex, &weight) in support.iter().zip(weights).chain([(&ORIGIN, &origin_weight)]) {
            if weight > 0.0 {
                self.push(vertex, IBig::from((weight * (1u64 << 40) as f64) as i64) + IBig::ONE);
            }
        }
        self.denominator = self.weights.iter().sum();
    }

    fn push(&mut self, vertex: u32, weight: IBig) {
        self.vertices.push(vertex);
        self.tokens.push(self.tester.integers(vertex));
        self.weights.push(weight);
    }

    fn remove(&mut self, at: usize) {
        self.vertices.remove(at);
        self.tokens.remove(at);
        self.weights.remove(at);
    }

    fn run(mut self, candidates: &[u32]) -> Membership {
        loop {
            self.descend();
            let r = self.residual();
            if r.iter().all(IBig::is_zero) {
                return self.inside();
            }
            let level = exact_dot(&self.tokens[0], &r);
            match self.improving(candidates, &r, &level) {
                // The face holds the nearest point, and that is not x: r separates.
                None => return Membership::Outside,
                Some(vertex) => self.push(vertex, IBig::ZERO),
            }
        }
    }

    /// Moves towards the nearest point of the affine hull, dropping the vertices of faces met on the way.
    fn descend(&mut self) {
        loop {
            let (goal, scale) = match self.nearest() {
                Ok(nearest) => nearest,
                // Only among the vertices of the start: what enters lies strictly off the hyperplane of the others.
                Err(dependent) => {
                    self.remove(dependent);
                    self.denominator = self.weights.iter().sum();
                    continue;
                }
            };
            let arrives = goal.iter().all(|m| *m >= IBig::ZERO);
            if arrives {
                (self.weights, self.denominator) = (goal, scale);
            } else {
                self.step_to_boundary(&goal, &scale);
            }
            self.reduce();
            for at in (0..self.weights.len()).rev() {
                if self.weights[at].is_zero() {
                    self.remove(at);
                }
            }
            if arrives {
                return;
            }
        }
    }

    /// Moves to `l + t (m - l)`, where `l` is the point now, `m = goal / scale`, and `t` the smallest that makes a
    /// weight 0.
    fn step_to_boundary(&mut self, goal: &[IBig], scale: &IBig) {
        let (mut p, mut q) = (IBig::ONE, IBig::ONE);
        for (l, m) in self.weights.iter().zip(goal).filter(|(_, m)| **m < IBig::ZERO) {
            let reach = l * scale;
            let whole = &reach - m * &self.denominator;
            if &reach * &q < &p * &whole {
                (p, q) = (reach, whole);
            }
        }
        let (stay, go) = ((&q - &p) * scale, &p * &self.denominator);
        for (l, m) in self.weights.iter_mut().zip(goal) {
            *l = &*l * &stay + m * &go;
        }
        self.denominator *= q * scale;
    }

    fn reduce(&mut self) {
        let common = self.weights.iter().fold(self.denominator.clone(), |gcd, w| IBig::from(gcd.gcd(w)));
        self.denominator /= &common;
        self.weights.iter_mut().for_each(|w| *w /= &common);
    }

    /// Weights of the point of the affine hull nearest to `x`, as integers over a common positive one; or the first
    /// vertex that depends on those before it.
    ///
    /// With `z_s = x_s - x_0` the weights of `s > 0` solve `Z Z' c = Z (x - x_0)`, by fraction-free elimination
    /// (Bareiss 1968), which needs no pivoting here: every leading minor of a Gram matrix is positive as long as its
    /// vectors are independent.
    fn nearest(&self) -> Result<(Vec<IBig>, IBig), usize> {
        let len = self.vertices.len() - 1;
        let base = &self.tokens[0];
        let z: Vec<Vec<IBig>> = self.tokens[1..].iter().map(|token| difference(token, base)).collect();
        let x = difference(&self.x, base);
        let mut rows: Vec<Vec<IBig>> =
            z.iter().map(|a| z.iter().chain([&x]).map(|b| exact_dot(a, b)).collect()).collect();
        let mut previous = IBig::ONE;
        for k in 0..len {
            let (done, below) = rows.split_at_mut(k + 1);
            let pivot_row = &done[k];
            if pivot_row[k].is_zero() {
                return Err(k + 1);
            }
            for row in below {
                let factor = std::mem::take(&mut row[k]);
                for (entry, above) in row[k + 1..].iter_mut().zip(&pivot_row[k + 1..]) {
                    *entry = (&*entry * &pivot_row[k] - &factor * above) / &previous;
                }
            }
            previous = pivot_row[k].clone();
        }
        let scale = previous;
        let mut goal = vec![IBig::ZERO; len + 1];
        for k in (0..len).rev() {
            let known: IBig = (k + 1..len).map(|t| &rows[k][t] * &goal[t + 1]).sum();
            goal[k + 1] = (&scale * &rows[k][len] - known) / &rows[k][k];
        }
        goal[0] = &scale - goal[1..].iter().sum::<IBig>();
        Ok((goal, scale))
    }

    /// `x - p`, times the denominator.
    fn residual(&self) -> Vec<IBig> {
        (0..self.x.len())
            .map(|k| {
                let point: IBig = self.tokens.iter().zip(&self.weights).map(|(token, weight)| &token[k] * weight).sum();
                &self.x[k] * &self.denominator - point
            })
            .collect()
    }

    /// A vertex with `x_j . r > level`. In f64 first, in integers where that is not certain.
    fn improving(&self, candidates: &[u32], r: &[IBig], level: &IBig) -> Option<u32> {
        if self.tester.scoring == Scoring::Clamped && *level < IBig::ZERO {
            return Some(ORIGIN);
        }
        let doc = self.tester.doc;
        let q = to_f64(r);
        // All in f64 are relative to a vertex of the face, whose product with r is `level`.
        let base = match self.vertices[0] {
            ORIGIN => 0.0,
            vertex => dot(&q, doc.token(vertex as usize)),
        };
        let base_norm = if self.vertices[0] == ORIGIN { 0.0 } else { doc.norm(self.vertices[0] as usize) };
        // Each entry of q is off by at most a unit of the largest.
        let unsure = gamma(4 * doc.dim() + 16) * dot(&q, &q).sqrt();
        let mut possible: Vec<(f64, u32)> = candidates
            .iter()
            .filter(|&&j| j != self.target)
            .map(|&j| (dot(&q, doc.token(j as usize)) - base, j))
            .filter(|&(gain, j)| gain + unsure * (doc.norm(j as usize) + base_norm) > 0.0)
            .collect();
        possible.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let improves = |j: u32| exact_dot(&self.tester.integers(j), r) > *level;
        possible.into_iter().map(|(_, j)| j).find(|&j| improves(j))
    }

    fn inside(self) -> Membership {
        let mut pairs: Vec<(u32, UBig)> = self
            .vertices
            .into_iter()
            .zip(self.weights)
            .filter(|&(vertex, _)| vertex != ORIGIN)
            .map(|(vertex, weight)| (vertex, weight.into_parts().1))
            .collect();
        pairs.sort_unstable_by_key(|&(vertex, _)| vertex);
        let (support, numerators) = pairs.into_iter().unzip();
        let denominator = self.denominator.into_parts().1;
        Membership::Inside { support, weights: ExactWeights { numerators, denominator } }
    }
}

fn exact_dot(a: &[IBig], b: &[IBig]) -> IBig {
    a.iter().zip(b).filter(|(a, b)| !a.is_zero() && !b.is_zero()).map(|(a, b)| a * b).sum()
}

fn difference(a: &[IBig], b: &[IBig]) -> Vec<IBig> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

/// `values` times a common power of two that makes the largest about 2^100.
fn to_f64(values: &[IBig]) -> Vec<f64> {
    let bits = values.iter().map(BitTest::bit_len).max().unwrap_or(0);
    let shift = bits as isize - 100;
    let convert = |value: &IBig| if shift >= 0 { value >> shift as usize } else { value << -shift as usize };
    values.iter().map(|value| convert(value).to_f64().value()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doc(values: &[f32], dim: usize) -> DocF64 {
        DocF64::from_tokens(crate::TokenData::F32(values), dim)
    }

    /// The exact iteration alone, from one vertex, without any help from f64.
    fn from_vertex(doc: &DocF64, scoring: Scoring, target: u32, candidates: &[u32], vertex: u32) -> Membership {
        let tester = ExactTester::new(doc, scoring);
        let mut face = ExactFace::new(&tester, target);
        match vertex {
            ORIGIN => face.start(&[], &[], 1.0),
            vertex => face.start(&[vertex], &[1.0], 0.0),
        }
        face.run(candidates)
    }

    fn assert_combination(doc: &DocF64, target: u32, membership: &Membership) {
        let Membership::Inside { support, weights } = membership else { return };
        let tester = ExactTester::new(doc, Scoring::Plain);
        let mut point: Vec<IBig> = tester.integers(target);
        point.iter_mut().for_each(|v| *v *= -IBig::from(weights.denominator.clone()));
        for (&j, weight) in support.iter().zip(&weights.numerators) {
            assert!(*weight > UBig::ZERO);
            for (sum, v) in point.iter_mut().zip(tester.integers(j)) {
                *sum += v * IBig::from(weight.clone());
            }
        }
        assert!(point.iter().all(IBig::is_zero), "token {target}: {membership:?}");
    }

    #[test]
    fn every_start_ends_in_the_same_answer() {
        let mut state = 1u32;
        for dim in [1, 2, 3, 4, 6] {
            for _ in 0..20 {
                let mut values: Vec<f32> = (0..dim * 12)
                    .map(|_| {
                        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        (state >> 24) as f32 / 32.0 - 4.0
                    })
                    .collect();
                // A token well inside: the mean of the others, rounded to the lattice.
                for k in 0..dim {
                    values[k] = ((1..12).map(|t| values[t * dim + k]).sum::<f32>() / 11.0 * 32.0).round() / 32.0;
                }
                let doc = doc(&values, dim);
                let candidates: Vec<u32> = (0..12).collect();
                for scoring in [Scoring::Plain, Scoring::Clamped] {
                    for target in 0..4 {
                        let expected = ExactTester::new(&doc, scoring).test(target, &candidates);
                        assert_combination(&doc, target, &expected);
                        for vertex in [4, 7, 11, if scoring == Scoring::Clamped { ORIGIN } else { 5 }] {
                            let found = from_vertex(&doc, scoring, target, &candidates, vertex);
                            assert_combination(&doc, target, &found);
                            assert_eq!(found == Membership::Outside, expected == Membership::Outside);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_origin_enters_when_clamped() {
        let doc = doc(&[0.25, 0.25, 1.0, 0.0, 0.0, 1.0], 2);
        let quarters = ExactWeights { numerators: vec![UBig::ONE; 2], denominator: UBig::from(4u8) };
        let inside = Membership::Inside { support: vec![1, 2], weights: quarters };
        assert_eq!(from_vertex(&doc, Scoring::Clamped, 0, &[1, 2], 1), inside);
        assert_eq!(from_vertex(&doc, Scoring::Plain, 0, &[1, 2], 1), Membership::Outside);
    }

    #[test]
    fn improvements_far_below_rounding_count() {
        // x is inside only because of a vertex that lies two denormals off the line of the others.
        let tiny = f32::from_bits(1);
        let doc = doc(&[0.0, tiny, -1.0, 0.0, 1.0, 0.0, 0.0, 2.0 * tiny], 2);
        for vertex in [1, 2, 3] {
            let found = from_vertex(&doc, Scoring::Plain, 0, &[1, 2, 3], vertex);
            assert!(matches!(&found, Membership::Inside { support, .. } if support == &[1, 2, 3]), "{found:?}");
        }
        assert_eq!(from_vertex(&doc, Scoring::Plain, 3, &[0, 1, 2], 1), Membership::Outside);
    }
}
