//! Spending a budget over a whole corpus.
//!
//! Every document has a curve: with its first `k` tokens kept it loses at most `curve[k - 1]`. For a common tolerance
//! the smallest budget that reaches it is the sum of the smallest such `k`, and any other way of spending that many
//! tokens leaves some document with a larger loss. So a budget is a tolerance, found from counts of curve values alone.

use crate::Error;

/// Counts curve values of any number of documents in constant memory and finds the tolerance that a budget buys.
///
/// Values are counted in steps of 2^-14 of their size, so the tolerance is the smallest possible up to 0.006 %.
#[derive(Debug, Clone)]
pub struct Budget {
    /// `counts[step(v)]`: how often a document must keep one token more unless its tolerance is at least `v`.
    counts: Vec<u64>,
    num_docs: u64,
    num_tokens: u64,
    /// Tokens that stay at any tolerance: one a document, and those after which a loss is unbounded.
    num_forced: u64,
}

/// Low bits of an `f32` that a step leaves out.
const STEP_BITS: u32 = 9;

impl Default for Budget {
    fn default() -> Self {
        Self::new()
    }
}

impl Budget {
    /// An empty corpus.
    pub fn new() -> Self {
        Budget { counts: vec![0; 1 << (31 - STEP_BITS)], num_docs: 0, num_tokens: 0, num_forced: 0 }
    }

    /// Adds a document by its curve (see [`crate::Pruner::curves`]); an empty curve is an empty document.
    pub fn add(&mut self, curve: &[f32]) {
        let Some((_, needs)) = curve.split_last() else { return };
        self.num_docs += 1;
        self.num_tokens += curve.len() as u64;
        self.num_forced += 1;
        for value in needs {
            if value.is_infinite() {
                self.num_forced += 1;
                continue;
            }
            self.counts[(value.to_bits() >> STEP_BITS) as usize] += 1;
        }
    }

    /// The smallest tolerance at which all documents together keep at most `max_tokens` tokens; prune with
    /// [`crate::Target::Planned`] to keep exactly as many as planned. 0 when everything fits.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] when more tokens must stay than may: one a document, since none is emptied, and every
    /// protected one.
    pub fn tolerance(&self, max_tokens: u64) -> Result<f32, Error> {
        if max_tokens < self.num_forced {
            return Err(Error::InvalidOption {
                name: "budget",
                value: format!(
                    "{max_tokens} tokens for {} documents, of which {} tokens must stay",
                    self.num_docs, self.num_forced
                ),
                expected: "room for one token a document, since none is emptied, and for every protected one",
            });
        }
        let mut kept = self.num_forced;
        for (step, &count) in self.counts.iter().enumerate().rev() {
            kept += count;
            if kept > max_tokens {
                // The largest value of this step: whatever is counted here is within it.
                return Ok(f32::from_bits(((step as u32) << STEP_BITS) | ((1 << STEP_BITS) - 1)));
            }
        }
        Ok(0.0)
    }

    /// Tokens of all documents.
    pub fn num_tokens(&self) -> u64 {
        self.num_tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(curves: &[Vec<f32>], tolerance: f32) -> u64 {
        curves.iter().map(|curve| 1 + curve[..curve.len() - 1].iter().filter(|&&v| v > tolerance).count() as u64).sum()
    }

    #[test]
    fn a_budget_is_kept_and_nearly_used() {
        let curves: Vec<Vec<f32>> = (1..40)
            .map(|n: usize| (1..=n).map(|k| if k == n { 0.0 } else { (n * 7 % 11 + 1) as f32 / k as f32 }).collect())
            .collect();
        let mut budget = Budget::new();
        curves.iter().for_each(|curve| budget.add(curve));
        assert_eq!(budget.num_tokens(), 780);
        for max_tokens in [39, 40, 100, 400, 779] {
            let tolerance = budget.tolerance(max_tokens).unwrap();
            assert!(kept(&curves, tolerance) <= max_tokens);
            assert!(kept(&curves, tolerance * (1.0 - 1e-3)) > max_tokens, "a smaller tolerance would not fit");
        }
        assert_eq!(budget.tolerance(780).unwrap(), 0.0);
        assert!(matches!(budget.tolerance(38), Err(Error::InvalidOption { .. })));
    }
}
