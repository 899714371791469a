//! Measures of a ranking at depth `k`, with the conventions of trec_eval.
//!
//! A document is ordered by its score, higher first; equal scores by its name, descending by bytes (trec_eval's rule: the
//! rank written in the file is never used). Its gain is the judged number, linear; unjudged and gains up to 0 count 0.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::Serialize;

/// Measures of one query, or their means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Measures {
    /// Sum of `gain / log2(rank + 1)` over the first `k`, divided by that of the best possible ranking.
    pub ndcg: f64,
    /// `1 / rank` of the first relevant document of the first `k`, or 0.
    pub mrr: f64,
    /// Share of the relevant documents that are among the first `k`.
    pub recall: f64,
    /// Relevant documents among the first `k`, divided by `k`.
    pub precision: f64,
}

impl Measures {
    /// Of one query; all 0 if nothing is relevant.
    pub fn of_query(scores: &BTreeMap<String, f64>, gains: &BTreeMap<String, i32>, k: usize) -> Self {
        let ranked: Vec<i32> = first(scores, k).into_iter().map(|doc| gains.get(doc).copied().unwrap_or(0)).collect();
        let mut ideal: Vec<i32> = gains.values().copied().filter(|&gain| gain > 0).collect();
        ideal.sort_unstable_by(|a, b| b.cmp(a));
        let num_relevant = ideal.len();
        ideal.truncate(k);
        let num_found = ranked.iter().filter(|&&gain| gain > 0).count() as f64;
        let first_found = ranked.iter().position(|&gain| gain > 0);
        Measures {
            ndcg: share(dcg(&ranked), dcg(&ideal)),
            mrr: first_found.map_or(0.0, |at| 1.0 / (at + 1) as f64),
            recall: share(num_found, num_relevant as f64),
            precision: num_found / k as f64,
        }
    }

    /// Over at least one query.
    pub fn mean(of: &[Measures]) -> Self {
        let mean = |measure: fn(&Measures) -> f64| of.iter().map(measure).sum::<f64>() / of.len() as f64;
        Measures {
            ndcg: mean(|m| m.ndcg),
            mrr: mean(|m| m.mrr),
            recall: mean(|m| m.recall),
            precision: mean(|m| m.precision),
        }
    }
}

/// The best `k` documents.
fn first(scores: &BTreeMap<String, f64>, k: usize) -> Vec<&str> {
    let mut docs: Vec<(&str, f64)> = scores.iter().map(|(doc, &score)| (doc.as_str(), score)).collect();
    // Scores are finite.
    docs.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(b.0.cmp(a.0)));
    docs.into_iter().take(k).map(|(doc, _)| doc).collect()
}

fn dcg(gains: &[i32]) -> f64 {
    gains.iter().enumerate().map(|(at, &gain)| f64::from(gain.max(0)) / ((at + 2) as f64).log2()).sum()
}

fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}
