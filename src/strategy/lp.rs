//! The paper's linear program, answered by projection instead of a simplex method.
//!
//! The paper keeps the first `k` right singular coordinates of a document and removes token `z` when
//! `sum y_j (x_j - z) = z, y >= 0` has a solution: when `z` is a convex combination of the other tokens and 0, with a
//! positive weight on 0. That is the same as asking whether `t z` lies in the hull of the others and 0 for some
//! `t > 1`, which is how it is asked here, with a `t` just above 1.

use nalgebra::DMatrix;

use crate::Scoring;
use crate::engine::cpu::exact::{DocF64, Solver, Status, Stop};
use crate::engine::cpu::rational::first_equals;

/// The stretch `t - 1`. The least weight on 0 that counts as positive; HiGHS has the same number as its feasibility
/// tolerance.
const STRETCH: f64 = 1e-7;

/// Distance to the hull, relative to the longest reduced token, that counts as inside. Far below the stretch, so that
/// a token on a face stays, and far above the rounding of the solver.
const INSIDE: f64 = 1e-12;

/// Rounds of the singular value decomposition; a few for each column suffice.
const MAX_SVD_ROUNDS: usize = 100_000;

/// Keeps the tokens that the paper's test does not dominate; one flag a token.
///
/// `theta` is the share of the sum of singular values that the truncation keeps: `k = 1 + #{i : (s_1 + .. + s_i) /
/// sum s <= theta}`. Every token is tested against all others, as in the paper, not only against those that stay, so
/// the full-space loss of the result has no bound of its own: it must be computed.
///
/// Equal tokens never dominate each other in the paper's program. Here exactly one of them, the first, is tested in
/// the name of all; the others are removed. No document with tokens is emptied.
pub fn lp_kept(doc: &DocF64, theta: f64) -> Vec<bool> {
    let first = first_equals(doc);
    let mut kept: Vec<bool> = first.iter().enumerate().map(|(token_idx, &f)| f as usize == token_idx).collect();
    let Some(reduced) = right_singular(doc, theta) else { return kept };
    let candidates: Vec<u32> = (0..kept.len() as u32).filter(|&token_idx| kept[token_idx as usize]).collect();
    let longest = candidates.iter().map(|&j| reduced.norm(j as usize)).fold(0.0, f64::max);
    let stop = Stop::Decide(INSIDE * longest);
    let is_extreme = extreme(&reduced, &candidates);
    let mut solver = Solver::new();
    for &token_idx in candidates.iter().filter(|&&j| !is_extreme[j as usize]) {
        let stretched: Vec<f64> = reduced.token(token_idx as usize).iter().map(|z| z * (1.0 + STRETCH)).collect();
        let others: Vec<u32> = candidates.iter().copied().filter(|&j| j != token_idx).collect();
        let projection = solver.project_point(&reduced, &stretched, &others, Scoring::Clamped, stop, None);
        kept[token_idx as usize] = projection.status != Status::Removable;
    }
    kept
}

/// Right singular coordinates `[num_tokens, k]` of the document taken as a matrix of columns; `None` if all tokens
/// are 0 or the decomposition does not converge.
fn right_singular(doc: &DocF64, theta: f64) -> Option<DocF64> {
    let (num_tokens, dim) = (doc.num_tokens(), doc.dim());
    if num_tokens == 0 {
        return None;
    }
    // Divided by the longest norm: the decomposition squares.
    let longest = (0..num_tokens).map(|token_idx| doc.norm(token_idx)).fold(0.0, f64::max);
    if longest == 0.0 {
        return None;
    }
    let tokens = DMatrix::from_fn(num_tokens, dim, |row, column| doc.token(row)[column] / longest);
    let svd = tokens.try_svd(true, false, f64::EPSILON, MAX_SVD_ROUNDS)?;
    let coordinates = svd.u?;
    let sum: f64 = svd.singular_values.iter().sum();
    let mut share = 0.0;
    let within = svd.singular_values.iter().take_while(|&&sigma| {
        share += sigma / sum;
        share <= theta
    });
    let k = (within.count() + 1).min(coordinates.ncols());
    let rows = (0..num_tokens).flat_map(|row| (0..k).map(move |column| (row, column)));
    Some(DocF64::from_coords(rows.map(|at| coordinates[at]).collect(), k))
}

/// The tokens that are largest or smallest along an axis, on the far side of 0: no combination of others and 0 with
/// weight on 0 reaches there. The first of equals.
fn extreme(reduced: &DocF64, candidates: &[u32]) -> Vec<bool> {
    let mut is_extreme = vec![false; reduced.num_tokens()];
    for axis in 0..reduced.dim() {
        for side in [1.0, -1.0] {
            let mut farthest = (0.0, None);
            for &j in candidates {
                let value = side * reduced.token(j as usize)[axis];
                if value > farthest.0 {
                    farthest = (value, Some(j as usize));
                }
            }
            if let Some(token_idx) = farthest.1 {
                is_extreme[token_idx] = true;
            }
        }
    }
    is_extreme
}
