//! The first walk: tokens in, proven removals out.
//!
//! ```text
//! batch -> propose (engine, exact test or strategy) -> prove (certificate; what fails: f64 solver, then keep) -> collect
//! ```
//!
//! An engine hands documents over as it finds them, and they are proven while it works on the others.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::certificate::{DocProver, ProofScratch, Proposal, ProvenDoc, WEIGHT_ONE, Weights};
use crate::engine::cpu::exact::{DocF64, Solver, Stop};
use crate::engine::cpu::rational::{ExactRemoval, lossless_kept};
use crate::engine::{self, Engine, Goal, Selection};
use crate::selection::Budget;
use crate::strategy::{lp_kept, norm_kept};
use crate::{Error, Scoring, TokenBatch, TokenData};

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
    /// Follow each document's curve down to a tolerance that a [`Budget`] found for the corpus: exactly the planned
    /// number of tokens stays.
    Planned(f32),
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
    /// Too close to the tolerance for `f32`; the `f64` solver decided them.
    pub num_refined: u64,
    /// Proposals whose proof failed and that the `f64` solver solved again.
    pub num_resolved: u64,
    /// Largest proven bound of a document.
    pub worst_bound: f32,
    /// Seconds until the engine had answered (Gram matrices included).
    pub select_seconds: f64,
    /// Seconds spent proving, summed over threads and divided by their number; a device engine's answers are proven
    /// while it works on.
    pub prove_seconds: f64,
}

impl std::ops::AddAssign for PruneStats {
    fn add_assign(&mut self, other: Self) {
        self.num_docs += other.num_docs;
        self.num_tokens += other.num_tokens;
        self.num_kept += other.num_kept;
        self.num_undecided += other.num_undecided;
        self.num_refined += other.num_refined;
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

impl Pruned {
    /// Offsets of the kept tokens, `[num_docs + 1]`, starting at 0.
    pub fn offsets(&self) -> Vec<u64> {
        let lengths = self.docs.iter().map(|doc| doc.keep().num_kept() as u64);
        let ends = lengths.scan(0, |end, len| {
            *end += len;
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect()
    }

    /// The kept tokens of `batch`, the one that was pruned, as bytes in the order of memory: copied, never changed.
    ///
    /// # Panics
    /// If `batch` has other documents than the one that was pruned.
    pub fn gather(&self, batch: &TokenBatch<'_>) -> Vec<u8> {
        let token_bytes = batch.dim() * batch.dtype().size_bytes();
        let mut kept = Vec::with_capacity(self.stats.num_kept as usize * token_bytes);
        for (doc_idx, doc) in self.docs.iter().enumerate() {
            let bytes = batch.doc(doc_idx).as_bytes();
            assert_eq!(bytes.len(), doc.keep().num_tokens() * token_bytes, "the batch that was pruned");
            for token_idx in doc.keep().kept() {
                kept.extend_from_slice(&bytes[token_idx as usize * token_bytes..][..token_bytes]);
            }
        }
        kept
    }
}

/// Chooses and proves. `Send + Sync`, no global state; runs on the rayon pool of the calling thread.
#[derive(Clone)]
pub struct Pruner {
    engine: Arc<dyn Engine>,
    options: PruneOptions,
    cancel: Arc<AtomicBool>,
}

impl Pruner {
    /// # Errors
    /// [`Error::InvalidOption`] for a negative or NaN tolerance, a ratio outside (0, 1], a count of 0, and the like.
    pub fn new(engine: Arc<dyn Engine>, options: PruneOptions) -> Result<Self, Error> {
        check_options(&options.method)?;
        Ok(Pruner { engine, options, cancel: Arc::default() })
    }

    /// Once the flag is set, calls end with [`Error::Cancelled`]: at the next document of an exact test, a strategy or a
    /// proof, and after the whole batch when an engine selects. Pass batches of the size that may be waited for.
    pub fn with_cancel(self, cancel: Arc<AtomicBool>) -> Self {
        Pruner { cancel, ..self }
    }

    /// The options.
    pub fn options(&self) -> &PruneOptions {
        &self.options
    }

    /// Prunes every document of the batch and proves every removal.
    ///
    /// `protected`, if given, holds one flag for each token of the batch (`[batch.num_tokens()]`); flagged tokens are
    /// always kept. A document with tokens never ends up without any. The same batch gives the same result on any
    /// number of threads.
    ///
    /// # Errors
    /// [`Error::NonFinite`], [`Error::Mismatch`] for the wrong number of flags, [`Error::InvalidOption`] for a budget
    /// below one token a document, [`Error::Cancelled`], and what the engine reports.
    pub fn prune(&self, batch: &TokenBatch<'_>, protected: Option<&[bool]>) -> Result<Pruned, Error> {
        self.check(batch, protected)?;
        let begun = Instant::now();
        let proofs = Proofs { pruner: self, batch, busy_nanos: AtomicU64::new(0), proven: Mutex::default() };
        let select = rayon::in_place_scope(|scope| {
            self.propose(batch, protected, &mut |docs| {
                let proofs = &proofs;
                scope.spawn(move |_| proofs.prove(&docs));
            })?;
            Ok::<Duration, Error>(begun.elapsed())
        })?;
        let Proofs { busy_nanos, proven, .. } = proofs;
        let prove = Duration::from_nanos(busy_nanos.into_inner() / rayon::current_num_threads().max(1) as u64);
        let mut proven = proven.into_inner().unwrap_or_else(PoisonError::into_inner);
        proven.sort_unstable_by_key(|&(doc_idx, _)| doc_idx);
        let proven: Result<Vec<_>, Error> = proven.into_iter().map(|(_, proof)| proof).collect();
        Ok(collect(batch, proven?, select, prove))
    }

    /// For each document the certified curve of its nested farthest-first order: entry `k - 1` is an upper bound on the
    /// loss per unit query token when the first `k` tokens of the order are kept; it never increases and ends in 0.
    /// It is infinite while a protected token is still to come, since no pruning stops there.
    /// Feed these to a [`crate::Budget`].
    ///
    /// # Errors
    /// As [`Pruner::prune`].
    pub fn curves(&self, batch: &TokenBatch<'_>, protected: Option<&[bool]>) -> Result<Vec<Vec<f32>>, Error> {
        Ok(self.orders(batch, protected)?.into_iter().map(|selection| selection.curve).collect())
    }

    /// As [`Pruner::curves`], with the orders themselves.
    ///
    /// # Errors
    /// As [`Pruner::prune`].
    pub fn orders(&self, batch: &TokenBatch<'_>, protected: Option<&[bool]>) -> Result<Vec<Selection>, Error> {
        self.check(batch, protected)?;
        self.engine.select(batch, self.options.scoring, Goal::Order, protected)
    }

    fn check(&self, batch: &TokenBatch<'_>, protected: Option<&[bool]>) -> Result<(), Error> {
        if let Some(flags) = protected.filter(|flags| flags.len() != batch.num_tokens()) {
            return Err(Error::Mismatch {
                what: "number of protected flags",
                found: flags.len().to_string(),
                expected: batch.num_tokens().to_string(),
            });
        }
        if self.is_cancelled() {
            return Err(Error::Cancelled);
        }
        batch.check_finite()
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    /// Hands over what to keep of each document, and what each other token rests on.
    fn propose(
        &self,
        batch: &TokenBatch<'_>,
        protected: Option<&[bool]>,
        deliver: &mut dyn FnMut(Vec<(usize, Proposed)>),
    ) -> Result<(), Error> {
        let scoring = self.options.scoring;
        let mut select = |goal, always_kept: Option<&[bool]>| {
            self.engine.select_each(batch, 0..batch.num_docs(), scoring, goal, always_kept, &mut |docs| {
                deliver(
                    docs.into_iter().map(|(doc_idx, selection)| (doc_idx, Proposed::Selection(selection))).collect(),
                );
            })
        };
        match self.options.method {
            Method::Hull(Target::Lossless | Target::Epsilon(0.0)) => {
                let proposed = self.lossless(batch, protected)?;
                deliver(proposed.into_iter().enumerate().collect());
                Ok(())
            }
            Method::Hull(Target::Epsilon(epsilon)) => select(Goal::Epsilon(epsilon), protected),
            Method::Hull(Target::KeepRatio(ratio)) => select(Goal::KeepRatio(ratio), protected),
            Method::Hull(Target::MaxTokens(max_tokens)) => select(Goal::MaxTokens(max_tokens), protected),
            Method::Hull(Target::MaxBytes(max_bytes)) => {
                let mut budget = Budget::new();
                self.curves(batch, protected)?.iter().for_each(|curve| budget.add(curve));
                let token_bytes = (batch.dim() * batch.dtype().size_bytes()) as u64;
                select(Goal::Curve(budget.tolerance(max_bytes / token_bytes)?), protected)
            }
            Method::Hull(Target::Planned(epsilon)) => select(Goal::Curve(epsilon), protected),
            Method::Lp { theta } => {
                let kept = self.strategy(batch, protected, |doc| lp_kept(doc, theta))?;
                select(Goal::Project, Some(&kept))
            }
            Method::Norm { threshold } => {
                let kept = self.strategy(batch, protected, |doc| norm_kept(doc, f64::from(threshold)))?;
                select(Goal::Project, Some(&kept))
            }
        }
    }

    /// A strategy's keep flags for the whole batch, protected tokens among them.
    fn strategy(
        &self,
        batch: &TokenBatch<'_>,
        protected: Option<&[bool]>,
        kept: impl Fn(&DocF64) -> Vec<bool> + Sync,
    ) -> Result<Vec<bool>, Error> {
        let docs = self.each_doc(batch, |doc_idx| Ok(kept(&DocF64::from_tokens(batch.doc(doc_idx), batch.dim()))))?;
        let mut flags = docs.concat();
        for (flag, protected) in flags.iter_mut().zip(protected.unwrap_or_default()) {
            *flag |= protected;
        }
        Ok(flags)
    }

    fn lossless(&self, batch: &TokenBatch<'_>, protected: Option<&[bool]>) -> Result<Vec<Proposed>, Error> {
        let first = batch.offsets()[0];
        self.each_doc(batch, |doc_idx| {
            let doc = DocF64::from_tokens(batch.doc(doc_idx), batch.dim());
            let mut selection = lossless_kept(&doc, self.options.scoring);
            if let Some(protected) = protected {
                let start = (batch.offsets()[doc_idx] - first) as usize;
                selection.removals.retain(|removal| !protected[start + removal.token_idx as usize]);
            }
            Ok(Proposed::Exact(selection.removals))
        })
    }

    fn each_doc<T: Send>(
        &self,
        batch: &TokenBatch<'_>,
        work: impl Fn(usize) -> Result<T, Error> + Sync,
    ) -> Result<Vec<T>, Error> {
        let docs = (0..batch.num_docs()).into_par_iter().with_max_len(1);
        docs.map(|doc_idx| if self.is_cancelled() { Err(Error::Cancelled) } else { work(doc_idx) }).collect()
    }
}

/// What came of the proof of one document.
type Proof = Result<(ProvenDoc, Counts), Error>;

/// The proofs of one call, done by whatever thread is free.
struct Proofs<'a> {
    pruner: &'a Pruner,
    batch: &'a TokenBatch<'a>,
    /// Time spent proving, summed over threads.
    busy_nanos: AtomicU64,
    /// By document, in the order in which they were done.
    proven: Mutex<Vec<(usize, Proof)>>,
}

impl Proofs<'_> {
    /// Checks every proposal; what fails is solved again in `f64`, and stays if that cannot be proven either.
    fn prove(&self, docs: &[(usize, Proposed)]) {
        let docs = docs.par_iter().with_max_len(1);
        let proven = docs.map_init(ProofScratch::default, |scratch, (doc_idx, proposed)| {
            let begun = Instant::now();
            let proof = self.prove_doc(*doc_idx, proposed, scratch);
            self.busy_nanos.fetch_add(begun.elapsed().as_nanos() as u64, Ordering::Relaxed);
            (*doc_idx, proof)
        });
        let proven: Vec<_> = proven.collect();
        self.proven.lock().unwrap_or_else(PoisonError::into_inner).extend(proven);
    }

    fn prove_doc(&self, doc_idx: usize, proposed: &Proposed, scratch: &mut ProofScratch) -> Proof {
        if self.pruner.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let doc = DocProof { data: self.batch.doc(doc_idx), dim: self.batch.dim(), options: &self.pruner.options };
        doc.prove(proposed, scratch)
    }
}

/// A proposal for one document.
enum Proposed {
    Selection(Selection),
    Exact(Vec<ExactRemoval>),
}

/// What happened to one document's tokens besides being kept or removed.
#[derive(Clone, Copy, Default)]
struct Counts {
    num_undecided: u64,
    num_refined: u64,
    num_resolved: u64,
}

struct DocProof<'a> {
    data: TokenData<'a>,
    dim: usize,
    options: &'a PruneOptions,
}

impl DocProof<'_> {
    fn prove(&self, proposed: &Proposed, scratch: &mut ProofScratch) -> Result<(ProvenDoc, Counts), Error> {
        let mut kept = vec![true; self.data.len() / self.dim];
        match proposed {
            Proposed::Selection(selection) => {
                selection.removals.iter().for_each(|(token_idx, ..)| kept[token_idx as usize] = false);
                self.prove_selection(selection, &kept, scratch)
            }
            Proposed::Exact(removals) => {
                removals.iter().for_each(|removal| kept[removal.token_idx as usize] = false);
                self.prove_exact(removals, &kept, scratch)
            }
        }
    }

    fn prove_selection(
        &self,
        selection: &Selection,
        kept: &[bool],
        scratch: &mut ProofScratch,
    ) -> Result<(ProvenDoc, Counts), Error> {
        // A target by count takes whatever loss comes with it, and reports it.
        let tolerance = match self.options.method {
            Method::Hull(Target::Epsilon(epsilon)) => epsilon,
            _ => f32::INFINITY,
        };
        let mut counts = Counts {
            num_undecided: u64::from(selection.num_undecided),
            num_refined: u64::from(selection.num_refined),
            num_resolved: 0,
        };
        let mut prover = DocProver::new(self.data, self.dim, self.options.scoring, kept, scratch)?;
        let mut exact = None;
        for (token_idx, support, weights) in selection.removals.iter() {
            let proposal = Proposal { token_idx, support, weights: Weights::Fixed(weights) };
            if prover.remove(&proposal, tolerance).is_ok() {
                continue;
            }
            counts.num_resolved += 1;
            let again = self.solve_again(token_idx, kept, &mut exact);
            let weights = Weights::Fixed(&again.weights);
            if prover.remove(&Proposal { token_idx, support: &again.support, weights }, tolerance).is_err() {
                counts.num_undecided += 1;
            }
        }
        Ok((prover.finish(), counts))
    }

    /// The nearest point that `f64` can find.
    fn solve_again(&self, token_idx: u32, kept: &[bool], exact: &mut Option<(DocF64, Solver)>) -> engine::Proposal {
        let (doc, solver) = exact.get_or_insert_with(|| (DocF64::from_tokens(self.data, self.dim), Solver::new()));
        let candidates: Vec<u32> = (0..kept.len() as u32).filter(|&token_idx| kept[token_idx as usize]).collect();
        let stop = Stop::Gap { relative: 1e-9, absolute: 0.0 };
        let nearest = solver.project(doc, token_idx as usize, &candidates, self.options.scoring, stop, None);
        engine::Proposal::quantise(&nearest.support, &nearest.weights, self.options.scoring)
    }

    fn prove_exact(
        &self,
        removals: &[ExactRemoval],
        kept: &[bool],
        scratch: &mut ProofScratch,
    ) -> Result<(ProvenDoc, Counts), Error> {
        let mut counts = Counts::default();
        let mut prover = DocProver::new(self.data, self.dim, self.options.scoring, kept, scratch)?;
        for ExactRemoval { token_idx, support, weights } in removals {
            let fixed = weights.over(WEIGHT_ONE);
            let weights = match &fixed {
                Some(fixed) => Weights::Fixed(fixed),
                None => Weights::Exact { numerators: &weights.numerators, denominator: &weights.denominator },
            };
            if prover.remove(&Proposal { token_idx: *token_idx, support, weights }, 0.0).is_err() {
                counts.num_undecided += 1;
            }
        }
        Ok((prover.finish(), counts))
    }
}

fn check_options(method: &Method) -> Result<(), Error> {
    let refuse = |name, value: String, expected| Err(Error::InvalidOption { name, value, expected });
    match *method {
        Method::Hull(Target::Epsilon(epsilon) | Target::Planned(epsilon))
            if !(epsilon >= 0.0 && epsilon.is_finite()) =>
        {
            refuse("epsilon", epsilon.to_string(), "a finite number, at least 0")
        }
        Method::Hull(Target::KeepRatio(ratio)) if !(ratio > 0.0 && ratio <= 1.0) => {
            refuse("keep ratio", ratio.to_string(), "above 0 and at most 1")
        }
        Method::Hull(Target::MaxTokens(0)) => refuse("max tokens", "0".into(), "at least 1: no document is emptied"),
        Method::Lp { theta } if !(theta > 0.0 && theta <= 1.0) => {
            refuse("theta", theta.to_string(), "above 0 and at most 1")
        }
        Method::Norm { threshold } if !(threshold >= 0.0 && threshold.is_finite()) => {
            refuse("norm threshold", threshold.to_string(), "a finite number, at least 0")
        }
        _ => Ok(()),
    }
}

fn collect(batch: &TokenBatch<'_>, proven: Vec<(ProvenDoc, Counts)>, select: Duration, prove: Duration) -> Pruned {
    let mut stats = PruneStats {
        num_docs: batch.num_docs() as u64,
        num_tokens: batch.num_tokens() as u64,
        select_seconds: select.as_secs_f64(),
        prove_seconds: prove.as_secs_f64(),
        ..PruneStats::default()
    };
    let mut docs = Vec::with_capacity(proven.len());
    for (doc, counts) in proven {
        stats.num_kept += doc.keep().num_kept() as u64;
        stats.worst_bound = stats.worst_bound.max(doc.bound());
        stats.num_undecided += counts.num_undecided;
        stats.num_refined += counts.num_refined;
        stats.num_resolved += counts.num_resolved;
        docs.push(doc);
    }
    Pruned { docs, stats }
}
