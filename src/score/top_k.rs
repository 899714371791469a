//! The best documents of each query, without a score matrix.

use std::cmp::Ordering;

/// A document in a ranking.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// Document.
    pub doc_idx: u64,
    /// Its score.
    pub score: f32,
}

impl Hit {
    /// Best first: higher score, then lower document; NaN after every number.
    fn rank(&self, other: &Hit) -> Ordering {
        let nan_last = self.score.is_nan().cmp(&other.score.is_nan());
        let higher = other.score.partial_cmp(&self.score).unwrap_or(Ordering::Equal);
        nan_last.then(higher).then(self.doc_idx.cmp(&other.doc_idx))
    }
}

/// The `k` best documents seen so far, for each of `num_queries` queries. What it holds depends on the documents
/// offered, not on their order.
#[derive(Debug, Clone)]
pub struct TopK {
    k: usize,
    lists: Vec<Best>,
}

/// Up to `2 * k` candidates of one query, cut back to `k` when full: a constant cost a document.
#[derive(Debug, Clone, Default)]
struct Best {
    hits: Vec<Hit>,
    /// The `k`-th best after a cut; what ranks behind it is out.
    threshold: Option<Hit>,
}

impl TopK {
    /// Nothing seen yet.
    pub fn new(num_queries: usize, k: usize) -> Self {
        TopK { k, lists: vec![Best::default(); num_queries] }
    }

    /// Number of queries.
    pub fn num_queries(&self) -> usize {
        self.lists.len()
    }

    /// Offers one document to a query.
    ///
    /// # Panics
    /// If there is no such query.
    pub fn offer(&mut self, query_idx: usize, hit: Hit) {
        let list = &mut self.lists[query_idx];
        let out = list.threshold.is_some_and(|threshold| hit.rank(&threshold).is_gt());
        if self.k == 0 || out {
            return;
        }
        list.hits.push(hit);
        if list.hits.len() >= self.k.saturating_mul(2) {
            list.cut(self.k);
        }
    }

    /// Offers everything that `other` holds.
    ///
    /// # Panics
    /// If `other` was made for more queries.
    pub fn merge(&mut self, other: TopK) {
        for (query_idx, list) in other.lists.into_iter().enumerate() {
            list.hits.into_iter().for_each(|hit| self.offer(query_idx, hit));
        }
    }

    /// The best of each query, best first, at most `k`.
    pub fn into_hits(self) -> Vec<Vec<Hit>> {
        let finish = |mut list: Best| {
            list.hits.sort_unstable_by(Hit::rank);
            list.hits.truncate(self.k);
            list.hits
        };
        self.lists.into_iter().map(finish).collect()
    }

    /// One of the same shape that has seen nothing.
    pub(super) fn empty(&self) -> TopK {
        TopK::new(self.num_queries(), self.k)
    }

    /// Both.
    pub(super) fn merged(mut self, other: TopK) -> TopK {
        self.merge(other);
        self
    }
}

impl Best {
    /// Keeps the `k` best; `k` is at least 1 and at most the number of hits.
    fn cut(&mut self, k: usize) {
        let (_, kth, _) = self.hits.select_nth_unstable_by(k - 1, Hit::rank);
        self.threshold = Some(*kth);
        self.hits.truncate(k);
    }
}
