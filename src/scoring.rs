//! The two MaxSim scorings; "lossless" always names one of them.

/// How a query token is matched against a document's tokens `X`.
///
/// The score of a document is the sum over the query's tokens. A set that is lossless for [`Scoring::Plain`] is
/// lossless for [`Scoring::Clamped`] too, so `Plain` is the safe default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Scoring {
    /// `max_{x in X} q.x` (ColBERT, PyLate): the support function of `conv(X)`.
    #[default]
    Plain,
    /// `max(0, max_{x in X} q.x)` (ColBERT_P of arXiv 2504.12778): the support function of `conv(X u {0})`.
    Clamped,
}

impl std::fmt::Display for Scoring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Scoring::Plain => "plain",
            Scoring::Clamped => "clamped",
        })
    }
}
