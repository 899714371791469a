//! The CPU engine: one document at a time on every core, its Gram matrix in cache.

pub(crate) mod document;
pub(crate) mod dominance;
pub mod exact;
pub(crate) mod face;
pub(crate) mod gram;
pub(crate) mod maxsim;
pub(crate) mod products;
pub mod rational;
pub(crate) mod selection;
mod witness;
mod worker;

use std::ops::Range;
use std::sync::Mutex;

use rayon::prelude::*;

use super::{Decision, Deliver, Engine, Goal, Selection};
use crate::simd::Isa;
use crate::{Error, Scoring, TokenBatch};
use worker::{Job, Worker};

/// Largest Gram matrix that a worker holds, in bytes: 4,080 tokens with the padding of rows. Longer documents recompute inner products.
pub const GRAM_CAP_BYTES: usize = 64 << 20;

/// SIMD and threads; runs on the rayon pool of the calling thread.
///
/// Each thread in use holds one worker: a document in `f32`, its Gram matrix up to [`GRAM_CAP_BYTES`], and 400 bytes a
/// token of supports. Results do not depend on the number of threads.
pub struct CpuEngine {
    isa: Isa,
    gram_cap_bytes: usize,
    idle: Mutex<Vec<Worker>>,
}

impl Default for CpuEngine {
    fn default() -> Self {
        Self::new()
    }
}

impl CpuEngine {
    /// With the fastest instruction set of this machine.
    pub fn new() -> Self {
        CpuEngine { isa: Isa::detect(), gram_cap_bytes: GRAM_CAP_BYTES, idle: Mutex::new(Vec::new()) }
    }

    /// One engine for each instruction set that this machine can run, fastest first; all but the last, which has no
    /// fused multiply-add, give the same bits.
    pub fn all() -> Vec<Self> {
        let with = |isa| CpuEngine { isa, ..Self::new() };
        Isa::available().into_iter().map(with).collect()
    }

    /// The same engine with another cap on Gram matrices; 0 never stores one.
    pub fn with_gram_cap_bytes(self, gram_cap_bytes: usize) -> Self {
        CpuEngine { gram_cap_bytes, ..self }
    }

    /// All inner products of one document: fills `out` with `[n, stride]`, row-major, and returns the stride, at least
    /// `n`; entries past column `n` are 0. `tokens` is `[n, dim]`. Allocates a panel of `32 * dim` values.
    ///
    /// # Errors
    /// [`Error::ZeroDim`], [`Error::PartialToken`].
    pub fn gram(&self, tokens: &[f32], dim: usize, out: &mut Vec<f32>) -> Result<usize, Error> {
        if dim == 0 {
            return Err(Error::ZeroDim);
        }
        if !tokens.len().is_multiple_of(dim) {
            return Err(Error::PartialToken { len: tokens.len(), dim });
        }
        self.isa.run(gram::GramKernel { tokens, dim, panel: &mut Vec::new(), out });
        Ok(gram::stride(tokens.len() / dim))
    }

    fn with_worker<T>(&self, work: impl FnOnce(&mut Worker) -> T) -> T {
        // A worker lost to a panic elsewhere is only scratch: take the list as it is.
        let idle = || self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let taken = idle().pop();
        let mut worker = taken.unwrap_or_else(|| Worker::new(self.isa, self.gram_cap_bytes));
        let result = work(&mut worker);
        idle().push(worker);
        result
    }

    /// The order of one document; `always_kept` holds one flag for each of its tokens.
    pub(crate) fn select_doc(
        &self,
        batch: &TokenBatch<'_>,
        doc_idx: usize,
        scoring: Scoring,
        goal: Goal,
        always_kept: Option<&[bool]>,
    ) -> Selection {
        let job = Job { data: batch.doc(doc_idx), dim: batch.dim(), scoring };
        self.with_worker(|worker| worker.select(job, goal, always_kept))
    }

    /// The decisions about one document.
    pub(crate) fn decide_doc(
        &self,
        batch: &TokenBatch<'_>,
        doc_idx: usize,
        scoring: Scoring,
        epsilon: f32,
    ) -> Vec<Decision> {
        let job = Job { data: batch.doc(doc_idx), dim: batch.dim(), scoring };
        self.with_worker(|worker| worker.decide(job, epsilon))
    }

    /// Has the `f64` solver decide what is undecided about one document.
    pub(crate) fn refine_doc(
        batch: &TokenBatch<'_>,
        doc_idx: usize,
        scoring: Scoring,
        epsilon: f32,
        decisions: &mut [Decision],
    ) {
        let job = Job { data: batch.doc(doc_idx), dim: batch.dim(), scoring };
        worker::refine(job, epsilon, decisions);
    }
}

impl Engine for CpuEngine {
    fn name(&self) -> String {
        format!("cpu ({})", self.isa.name())
    }

    fn select_each(
        &self,
        batch: &TokenBatch<'_>,
        docs: Range<usize>,
        scoring: Scoring,
        goal: Goal,
        always_kept: Option<&[bool]>,
        deliver: &mut Deliver<'_>,
    ) -> Result<(), Error> {
        let first = batch.offsets()[0];
        let select = |doc_idx| {
            let start = (batch.offsets()[doc_idx] - first) as usize;
            let always_kept = always_kept.map(|flags| &flags[start..start + batch.doc_len(doc_idx)]);
            (doc_idx, self.select_doc(batch, doc_idx, scoring, goal, always_kept))
        };
        deliver(docs.into_par_iter().with_max_len(1).map(select).collect());
        Ok(())
    }

    fn decide_each(
        &self,
        batch: &TokenBatch<'_>,
        docs: Range<usize>,
        scoring: Scoring,
        epsilon: f32,
        deliver: &mut Deliver<'_, Vec<Decision>>,
    ) -> Result<(), Error> {
        let decide = |doc_idx| (doc_idx, self.decide_doc(batch, doc_idx, scoring, epsilon));
        deliver(docs.into_par_iter().with_max_len(1).map(decide).collect());
        Ok(())
    }
}
