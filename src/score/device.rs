//! What a scorer asks of a device.

use std::fmt;
use std::ops::Range;

use super::Tokens;
use crate::Scoring;
use crate::engine::Notice;

/// Scores on a device what the device can score.
pub(crate) trait MaxsimDevice: Send + Sync + fmt::Debug {
    /// For reports.
    fn name(&self) -> String;

    /// Hands over scores as they arrive, in any order, and returns what is left to the CPU. Dims are equal.
    fn score(&self, request: &Request<'_>, emit: &mut dyn FnMut(Scored<'_>)) -> Left;
}

/// Tokens, and which queries meet which documents.
pub(crate) struct Request<'a> {
    pub queries: Tokens<'a>,
    pub docs: Tokens<'a>,
    pub scoring: Scoring,
    pub work: Work<'a>,
    pub notify: &'a dyn Fn(&Notice),
}

/// Which queries meet which documents.
#[derive(Clone, Copy)]
pub(crate) enum Work<'a> {
    /// Every query every document.
    All,
    /// `(query, document)`, inside the batches.
    Pairs { pairs: &'a [(u32, u32)], with_matches: bool },
}

/// A result.
pub(crate) enum Scored<'r> {
    /// One document with each query of a range.
    Doc { doc_idx: usize, queries: Range<usize>, scores: &'r [f32] },
    /// One pair, by its place in the list; with matches, each query token's maximum and the token that reached it first.
    Pair { pair_idx: usize, score: f32, tokens: Vec<(f32, u32)> },
}

/// What no device has scored; never what one has.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Left {
    /// Ranges of queries, each with ranges of documents.
    pub docs: Vec<(Range<usize>, Vec<Range<usize>>)>,
    /// Places in the list of pairs.
    pub pairs: Vec<usize>,
}

impl Left {
    /// All of it.
    pub(crate) fn all(num_queries: usize, num_docs: usize, work: Work<'_>) -> Self {
        match work {
            Work::All => Left { docs: vec![(0..num_queries, std::iter::once(0..num_docs).collect())], pairs: vec![] },
            Work::Pairs { pairs, .. } => Left { docs: vec![], pairs: (0..pairs.len()).collect() },
        }
    }

    /// Adds documents for a range of queries.
    pub(crate) fn push_docs(&mut self, queries: &Range<usize>, docs: Range<usize>) {
        if self.docs.last().is_none_or(|(last, _)| last != queries) {
            self.docs.push((queries.clone(), Vec::new()));
        }
        let Some((_, ranges)) = self.docs.last_mut() else { return };
        match ranges.last_mut() {
            Some(last) if last.end == docs.start => last.end = docs.end,
            _ => ranges.push(docs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_joined() {
        let mut left = Left::default();
        for doc_idx in [0, 1, 3] {
            left.push_docs(&(0..4), doc_idx..doc_idx + 1);
        }
        left.push_docs(&(4..5), 4..9);
        left.push_docs(&(4..5), 10..11);
        assert_eq!(left.docs, [(0..4, vec![0..2, 3..4]), (4..5, vec![4..9, 10..11])]);
    }
}
