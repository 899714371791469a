//! What a solver proposes and the certificate proves: a support and integer weights.

use crate::Scoring;
use crate::certificate::WEIGHT_ONE;

/// A convex combination with weights in units of `1 / WEIGHT_ONE`; untrusted until it is proven.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Proposal {
    /// Positions of tokens within their document, in the order given.
    pub support: Vec<u32>,
    /// One positive integer for each token of the support. Their sum is exactly [`WEIGHT_ONE`] for plain scoring and
    /// at most that for clamped, where 0 carries the rest.
    pub weights: Vec<u32>,
}

impl Proposal {
    /// Rounds `weights` (one for each token of `support`, at least 0 and of sum about 1, or at most that when clamped)
    /// to integers, and drops the tokens whose weight rounds to 0.
    ///
    /// A sum off by a solver's rounding is scaled to fit first. What rounding to integers adds or takes (at most half
    /// a unit a token) is given to or taken from the largest weight, the first of equals. NaN and negative weights
    /// count as 0; without any positive weight the proposal is empty.
    pub fn quantise<W: Copy + Into<f64>>(support: &[u32], weights: &[W], scoring: Scoring) -> Self {
        let one = f64::from(WEIGHT_ONE);
        // NOTE: `f64::max` turns NaN into 0.
        let values = || weights.iter().map(|&w| w.into().max(0.0));
        let sum: f64 = values().sum();
        let scale = match scoring {
            Scoring::Clamped if sum <= 1.0 => one,
            _ => one / sum,
        };
        let mut proposal = Proposal::default();
        for (&token_idx, value) in support.iter().zip(values()) {
            let weight = (value * scale).round() as u32;
            if weight > 0 {
                proposal.support.push(token_idx);
                proposal.weights.push(weight.min(WEIGHT_ONE));
            }
        }
        proposal.fit_sum(scoring);
        proposal
    }

    fn fit_sum(&mut self, scoring: Scoring) {
        let one = u64::from(WEIGHT_ONE);
        loop {
            let sum: u64 = self.weights.iter().map(|&w| u64::from(w)).sum();
            let Some(largest) = first_largest(&self.weights) else { return };
            if sum < one && scoring == Scoring::Plain {
                self.weights[largest] += (one - sum) as u32;
                return;
            }
            if sum <= one {
                return;
            }
            // More than the largest holds only when tens of thousands of equal weights all round up.
            let excess = (sum - one).min(u64::from(self.weights[largest])) as u32;
            self.weights[largest] -= excess;
            if self.weights[largest] == 0 {
                self.weights.remove(largest);
                self.support.remove(largest);
            }
        }
    }
}

/// As [`Proposal::quantise`], in the time of a fast path: rounds a face's weights down, drops those of 0, sorts by token,
/// and has the largest take what is missing or too much.
pub(crate) fn quantise_pairs(face: impl Iterator<Item = (u32, f32)>, scoring: Scoring, pairs: &mut Vec<(u32, u32)>) {
    pairs.clear();
    let mut sum = 0;
    for (token_idx, weight) in face {
        let weight = (weight * WEIGHT_ONE as f32) as u32;
        if weight > 0 {
            pairs.push((token_idx, weight));
            sum += weight;
        }
    }
    pairs.sort_unstable();
    let largest = pairs.iter_mut().map(|(_, weight)| weight).reduce(|a, b| if *b > *a { b } else { a });
    if let Some(largest) = largest {
        // Weights sum to 1 up to their rounding to `f32`; the largest takes the difference.
        if sum > WEIGHT_ONE || scoring == Scoring::Plain {
            *largest = (*largest + WEIGHT_ONE).saturating_sub(sum);
        }
    }
}

fn first_largest(weights: &[u32]) -> Option<usize> {
    let largest = *weights.iter().max()?;
    weights.iter().position(|&w| w == largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_fit_the_scoring() {
        let thirds = [1.0f64 / 3.0; 3];
        let plain = Proposal::quantise(&[4, 7, 9], &thirds, Scoring::Plain);
        assert_eq!(plain.weights.iter().sum::<u32>(), WEIGHT_ONE);
        assert_eq!(plain.support, [4, 7, 9]);
        assert_eq!(plain.weights, [5_592_406, 5_592_405, 5_592_405]);

        let clamped = Proposal::quantise(&[1, 2, 3], &[0.25f32, 1e-9, 0.5], Scoring::Clamped);
        assert_eq!((clamped.support, clamped.weights), (vec![1, 3], vec![WEIGHT_ONE / 4, WEIGHT_ONE / 2]));

        let halves_up = [1.5 / f64::from(WEIGHT_ONE); 7];
        let over = Proposal::quantise(&[0, 1, 2, 3, 4, 5, 6, 7], &[&halves_up[..], &[1.0]].concat(), Scoring::Clamped);
        assert!(over.weights.iter().sum::<u32>() <= WEIGHT_ONE);
    }

    #[test]
    fn nonsense_is_dropped() {
        let kept = Proposal::quantise(&[0, 1, 2], &[f64::NAN, -0.5, 2.0], Scoring::Clamped);
        assert_eq!((kept.support, kept.weights), (vec![2], vec![WEIGHT_ONE]));
        assert_eq!(Proposal::quantise::<f64>(&[0], &[0.0], Scoring::Plain), Proposal::default());
    }
}
