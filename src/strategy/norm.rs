//! Norm pruning: short tokens rarely win a maximum.

use crate::engine::cpu::exact::DocF64;

/// Keeps the tokens with a norm of at least `threshold`; one flag a token.
///
/// If none is that long, the longest stays (the first of equals), so no document with tokens is emptied. Norms are
/// computed in f64: off by at most `dim + 2` units in the last place, so only a norm that close to the threshold can
/// fall on the other side.
pub fn norm_kept(doc: &DocF64, threshold: f64) -> Vec<bool> {
    let norms: Vec<f64> = (0..doc.num_tokens()).map(|token_idx| norm(doc.token(token_idx))).collect();
    let mut kept: Vec<bool> = norms.iter().map(|&norm| norm >= threshold).collect();
    if !kept.contains(&true) {
        let longest = norms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if let Some(first) = norms.iter().position(|&norm| norm == longest) {
            kept[first] = true;
        }
    }
    kept
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|v| v * v).sum::<f64>().sqrt()
}
