//! The second walk: MaxSim scores of queries and documents.
//!
//! ```text
//! queries -> panels (one query token a SIMD lane) -> tasks of documents -> maxima -> sums -> scores or top k
//! ```
//!
//! The score of a query and a document is the sum over the query's tokens of the largest dot product with a token of
//! the document, see [`Scoring`]. The rules at the edges:
//!
//! * A document without tokens scores 0 when clamped; when plain it is an [`Error::EmptyDoc`] unless
//!   [`Scorer::with_empty_doc_score`] gives it a score. A query without tokens scores 0.
//! * A NaN in a document's token (or its scale) makes that document's score NaN and no other. NaN ranks last.
//! * Equal scores rank by document, lower first.
//! * The same input gives the same bits on any number of threads, wherever a document stands in a batch, and whichever
//!   of the methods scores it.
//!
//! A device ([`Scorer::on`]) keeps these rules. It leaves documents to the CPU that hold a NaN, an infinity or a component
//! of 2^40 or more, or do not fit its buffers, and everything where the queries hold such values or where i8 tokens that
//! meet i8 tokens have more than 1,024 components.
//!
//! Precision on the CPU: f32 and f16 are multiplied and summed over components in f32; bf16 by bf16 likewise, except that the
//! hardware's bf16 dot product, where there is one, treats subnormal inputs and sums as 0; i8 by i8 sums are exact
//! integers, rounded once to f32 where document tokens have scales. Mixed types meet in f32. The sum over query tokens
//! is in f64 and rounded once. So a score of `m` unit query tokens against unit tokens of `dim` components is off by
//! less than `m * dim * 2^-24`, in practice by a few units in the last place of f32.
//!
//! On a device everything is in f32, each dot product in the order of its components, and so is the sum over query
//! tokens, in an order that depends on the query alone: one more error of up to `m * 2^-24` of the sum of magnitudes.
//! Dot products of i8 tokens with i8 tokens are exact there too. Scores of a device are the same bits run to run; another
//! device, or the CPU, may round differently.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use crate::engine::cpu::maxsim::fold::{Best, Folder, NO_TOKEN, Segment};
use crate::engine::cpu::maxsim::panels::{Encoding, Panels};
use crate::engine::cpu::maxsim::screen::Screen;
use crate::engine::cpu::maxsim::{Arithmetic, Kernel, Operands, schedule};
use crate::engine::{Notice, Notify};
use crate::{DType, Error, Scoring, TokenBatch};

pub(crate) mod device;
mod top_k;

use device::{Left, MaxsimDevice, Request, Scored, Work};
pub use top_k::{Hit, TopK};

/// Tokens to score: a batch, and for quantised tokens their scales.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a> {
    batch: TokenBatch<'a>,
    scales: Option<&'a [f32]>,
}

impl<'a> From<TokenBatch<'a>> for Tokens<'a> {
    fn from(batch: TokenBatch<'a>) -> Self {
        Tokens { batch, scales: None }
    }
}

impl<'a> From<&TokenBatch<'a>> for Tokens<'a> {
    fn from(batch: &TokenBatch<'a>) -> Self {
        Tokens::from(*batch)
    }
}

impl<'a> Tokens<'a> {
    /// Most components of an i8 token: beyond it a dot product could leave 32 bits.
    pub const MAX_I8_DIM: usize = i32::MAX as usize / (128 * 128);

    /// A batch of i8 tokens that stand for `scale * token`; one scale for each token of the batch
    /// (`[batch.num_tokens()]`, the first for the first token of the first document). A NaN scale is a NaN token.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for another number of scales or another element type, [`Error::InvalidOption`] for a
    /// negative scale.
    pub fn scaled(batch: TokenBatch<'a>, scales: &'a [f32]) -> Result<Self, Error> {
        if batch.dtype() != DType::I8 {
            return Err(mismatch("element type of scaled tokens", batch.dtype(), DType::I8));
        }
        if scales.len() != batch.num_tokens() {
            return Err(mismatch("number of scales", scales.len(), batch.num_tokens()));
        }
        if let Some(scale) = scales.iter().find(|&&scale| scale < 0.0) {
            let expected = "a scale is at least 0";
            return Err(Error::InvalidOption { name: "scale", value: scale.to_string(), expected });
        }
        Ok(Tokens { batch, scales: Some(scales) })
    }

    /// Documents `range` as tokens of their own.
    fn docs(&self, range: Range<usize>) -> Tokens<'a> {
        let offsets = self.batch.offsets();
        let row = |offset: u64| (offset - offsets[0]) as usize;
        let rows = row(offsets[range.start])..row(offsets[range.end]);
        Tokens { batch: self.batch.docs(range), scales: self.scales.map(|scales| &scales[rows]) }
    }

    /// The tokens without their scales.
    pub(crate) fn batch(&self) -> TokenBatch<'a> {
        self.batch
    }

    /// Whether tokens have scales.
    pub(crate) fn has_scales(&self) -> bool {
        self.scales.is_some()
    }

    /// Scales of one document's tokens, if they have any.
    pub(crate) fn doc_scales(&self, doc_idx: usize) -> Option<&'a [f32]> {
        self.docs(doc_idx..doc_idx + 1).scales
    }

    /// Every token of the batch, scaled; `[num_tokens, dim]`.
    fn to_f32(self, out: &mut [f32]) {
        let (mut at, dim) = (0, self.batch.dim());
        for doc_idx in 0..self.batch.num_docs() {
            let doc = self.batch.doc(doc_idx);
            doc.to_f32(&mut out[at..at + doc.len()]);
            at += doc.len();
        }
        for (token, scale) in out.chunks_mut(dim).zip(self.scales.unwrap_or_default()) {
            token.iter_mut().for_each(|value| *value *= scale);
        }
    }

    /// Tokens of one document.
    fn doc(&self, doc_idx: usize) -> Segment<'a> {
        let doc = self.docs(doc_idx..doc_idx + 1);
        Segment { data: doc.batch.doc(0), scales: doc.scales, first_token: 0 }
    }
}

/// Score of a pair, and what it is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct PairMatch {
    /// The pair's score.
    pub score: f32,
    /// One entry for each query token.
    pub tokens: Vec<TokenMatch>,
}

/// What one query token adds to a score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenMatch {
    /// The document token with the largest similarity, the first of equals. `None` where no token decided: an empty
    /// document, a negative maximum that was clamped, a NaN.
    pub token_idx: Option<u32>,
    /// The similarity that was added.
    pub similarity: f32,
}

/// Scores queries against documents on the calling thread's rayon pool, or on a device. `Send + Sync`; on the CPU it has
/// no state, on a device buffers that clones share.
#[derive(Clone)]
pub struct Scorer {
    scoring: Scoring,
    empty_doc: Option<f32>,
    kernel: Kernel,
    screening: bool,
    device: Option<Arc<dyn MaxsimDevice>>,
    notify: Option<Notify>,
}

impl std::fmt::Debug for Scorer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Scorer { scoring, empty_doc, kernel, screening, device, notify: _ } = self;
        f.debug_struct("Scorer")
            .field("scoring", scoring)
            .field("empty_doc", empty_doc)
            .field("kernel", kernel)
            .field("screening", screening)
            .field("device", device)
            .finish_non_exhaustive()
    }
}

impl Scorer {
    /// A scorer for the fastest instruction set of this CPU.
    pub fn new(scoring: Scoring) -> Self {
        let empty_doc = match scoring {
            Scoring::Plain => None,
            Scoring::Clamped => Some(0.0),
        };
        Scorer { scoring, empty_doc, kernel: Kernel::available()[0], screening: true, device: None, notify: None }
    }

    /// Scores on a device, and on the CPU what the device cannot take, or all that is left once it fails.
    pub fn on<D: crate::device::Device>(mut self, device: Arc<D>) -> Self {
        self.device = Some(Arc::new(crate::engine::gpu::maxsim::GpuMaxsim::new(device)));
        self
    }

    /// Tells what a device leaves to the CPU.
    pub fn with_notices(mut self, notify: Notify) -> Self {
        self.notify = Some(notify);
        self
    }

    /// What computes, for reports.
    pub fn name(&self) -> String {
        self.device.as_ref().map_or_else(|| "cpu".to_owned(), |device| device.name())
    }

    /// Gives documents without tokens this score, in place of an error when plain and of 0 when clamped.
    pub fn with_empty_doc_score(mut self, score: f32) -> Self {
        self.empty_doc = Some(score);
        self
    }

    /// Whether f32 scoring may let bytes decide, with proven bounds, which document tokens need the f32 product. On by
    /// default: it changes no bit, is tried for 128 query tokens or more, and stops where it spares too little.
    pub fn with_screening(mut self, screening: bool) -> Self {
        self.screening = screening;
        self
    }

    /// Runs one instruction set, to compare them.
    ///
    /// # Panics
    /// If this CPU does not have it.
    #[doc(hidden)]
    pub fn with_kernel(mut self, kernel: Kernel) -> Self {
        assert!(Kernel::available().contains(&kernel), "this CPU cannot run the {kernel:?} kernel");
        self.kernel = kernel;
        self
    }

    /// Every query against every document: `[num_queries, num_docs]`, row-major.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for different dims, [`Error::EmptyDoc`], [`Error::InvalidOption`] for i8 tokens of more
    /// than [`Tokens::MAX_I8_DIM`] components, [`Error::SizeOverflow`] for a matrix that no memory can hold.
    pub fn scores<'a>(&self, queries: impl Into<Tokens<'a>>, docs: impl Into<Tokens<'a>>) -> Result<Vec<f32>, Error> {
        let (queries, docs) = (queries.into(), docs.into());
        let job = Job::new(self, queries, docs)?;
        job.check_docs(0..docs.batch.num_docs())?;
        let (num_queries, num_docs) = (queries.batch.num_docs(), docs.batch.num_docs());
        let Some(len) = num_queries.checked_mul(num_docs) else {
            return Err(Error::SizeOverflow { num_tokens: num_docs as u64, dim: num_queries });
        };
        let mut scores = vec![0.0; len];
        let left = self.on_device(queries, docs, Work::All, &mut |scored| {
            let Scored::Doc { doc_idx, queries, scores: column } = scored else { return };
            set_column(&mut scores[queries.start * num_docs..], num_docs, doc_idx, column);
        });
        for (query_idxs, ranges) in left.docs {
            let packed = job.pack(queries.docs(query_idxs.clone()));
            let columns: Vec<(Range<usize>, Vec<f32>)> = job
                .doc_tasks(&packed, &ranges)
                .into_par_iter()
                .map(|task| (task.clone(), job.score_docs(&packed, task)))
                .collect();
            for (task, columns) in columns {
                // `columns` is `[docs of the task, queries]`.
                for (doc_idx, column) in task.zip(columns.chunks(query_idxs.len().max(1))) {
                    set_column(&mut scores[query_idxs.start * num_docs..], num_docs, doc_idx, column);
                }
            }
        }
        Ok(scores)
    }

    /// The score of each `(query, document)` pair, in order.
    ///
    /// # Errors
    /// As [`Scorer::scores`], and [`Error::Mismatch`] for a pair outside the batches. Empty documents that no pair
    /// names are no error.
    pub fn pair_scores<'a>(
        &self,
        queries: impl Into<Tokens<'a>>,
        docs: impl Into<Tokens<'a>>,
        pairs: &[(u32, u32)],
    ) -> Result<Vec<f32>, Error> {
        let on_cpu = |job: &Job<'a>, packed: &Packed<'a>, best: &Best, doc_idx| job.score(packed, best, 0, doc_idx);
        self.each_pair(queries.into(), docs.into(), pairs, false, on_cpu, |_, score, _| score)
    }

    /// The score of each `(query, document)` pair with the document token that each query token matched.
    ///
    /// # Errors
    /// As [`Scorer::pair_scores`].
    pub fn pair_matches<'a>(
        &self,
        queries: impl Into<Tokens<'a>>,
        docs: impl Into<Tokens<'a>>,
        pairs: &[(u32, u32)],
    ) -> Result<Vec<PairMatch>, Error> {
        let on_cpu = |job: &Job<'a>, packed: &Packed<'a>, best: &Best, doc_idx| PairMatch {
            score: job.score(packed, best, 0, doc_idx),
            tokens: job.token_matches(packed, best, doc_idx),
        };
        self.each_pair(queries.into(), docs.into(), pairs, true, on_cpu, |job, score, tokens| PairMatch {
            score,
            tokens: tokens.into_iter().map(|(best, first)| job.token_match(f64::from(best), first)).collect(),
        })
    }

    /// The `k` best documents of each query, best first; fewer when there are fewer documents. The score matrix is
    /// never in memory.
    ///
    /// # Errors
    /// As [`Scorer::scores`].
    pub fn top_k<'a>(
        &self,
        queries: impl Into<Tokens<'a>>,
        docs: impl Into<Tokens<'a>>,
        k: usize,
    ) -> Result<Vec<Vec<Hit>>, Error> {
        let queries = queries.into();
        let mut top_k = TopK::new(queries.batch.num_docs(), k);
        self.add_to_top_k(queries, docs, 0, &mut top_k)?;
        Ok(top_k.into_hits())
    }

    /// Offers every document to `top_k`, for corpora that come in parts: document `doc_idx` of this part is known as
    /// `first_doc + doc_idx`. The order of the parts does not matter.
    ///
    /// # Errors
    /// As [`Scorer::scores`], and [`Error::Mismatch`] when `top_k` was made for another number of queries.
    pub fn add_to_top_k<'a>(
        &self,
        queries: impl Into<Tokens<'a>>,
        docs: impl Into<Tokens<'a>>,
        first_doc: u64,
        top_k: &mut TopK,
    ) -> Result<(), Error> {
        let (queries, docs) = (queries.into(), docs.into());
        let num_queries = queries.batch.num_docs();
        if top_k.num_queries() != num_queries {
            return Err(mismatch("number of queries of the top k", top_k.num_queries(), num_queries));
        }
        let job = Job::new(self, queries, docs)?;
        job.check_docs(0..docs.batch.num_docs())?;
        let left = self.on_device(queries, docs, Work::All, &mut |scored| {
            let Scored::Doc { doc_idx, queries, scores } = scored else { return };
            for (query_idx, &score) in queries.zip(scores) {
                top_k.offer(query_idx, Hit { doc_idx: first_doc + doc_idx as u64, score });
            }
        });
        for (query_idxs, ranges) in left.docs {
            let packed = job.pack(queries.docs(query_idxs.clone()));
            let best = job
                .doc_tasks(&packed, &ranges)
                .into_par_iter()
                .fold(|| top_k.empty(), |top_k, task| job.rank_docs(&packed, task, query_idxs.start, first_doc, top_k))
                .reduce(|| top_k.empty(), TopK::merged);
            top_k.merge(best);
        }
        Ok(())
    }

    /// Hands over what a device scores, if there is one, and returns the rest.
    fn on_device(
        &self,
        queries: Tokens<'_>,
        docs: Tokens<'_>,
        work: Work<'_>,
        emit: &mut dyn FnMut(Scored<'_>),
    ) -> Left {
        let Some(device) = &self.device else {
            return Left::all(queries.batch.num_docs(), docs.batch.num_docs(), work);
        };
        let notify = |notice: &Notice| self.notify.iter().for_each(|notify| notify(notice));
        device.score(&Request { queries, docs, scoring: self.scoring, work, notify: &notify }, emit)
    }

    /// For each pair `on_cpu(job, query, maxima, document)`, or what `on_device` makes of a score and its matches.
    fn each_pair<'a, T: Send + Clone>(
        &self,
        queries: Tokens<'a>,
        docs: Tokens<'a>,
        pairs: &[(u32, u32)],
        with_matches: bool,
        on_cpu: impl Fn(&Job<'a>, &Packed<'a>, &Best, usize) -> T + Sync,
        on_device: impl Fn(&Job<'a>, f32, Vec<(f32, u32)>) -> T,
    ) -> Result<Vec<T>, Error> {
        let job = Job::new(self, queries, docs)?;
        check_pairs(&queries, &docs, pairs)?;
        job.check_docs(pairs.iter().map(|&(_, doc_idx)| doc_idx as usize))?;
        if self.device.is_none() {
            return Ok(job.fold_pairs(queries, pairs, with_matches, &on_cpu));
        }
        let mut results: Vec<Option<T>> = vec![None; pairs.len()];
        let mut left = self.on_device(queries, docs, Work::Pairs { pairs, with_matches }, &mut |scored| {
            let Scored::Pair { pair_idx, score, tokens } = scored else { return };
            results[pair_idx] = Some(on_device(&job, score, tokens));
        });
        left.pairs.sort_unstable();
        let pairs_left: Vec<(u32, u32)> = left.pairs.iter().map(|&pair_idx| pairs[pair_idx]).collect();
        let results_left = job.fold_pairs(queries, &pairs_left, with_matches, &on_cpu);
        left.pairs.into_iter().zip(results_left).for_each(|(pair_idx, result)| results[pair_idx] = Some(result));
        Ok(results.into_iter().flatten().collect())
    }
}

/// Writes one column of a row-major matrix.
fn set_column(scores: &mut [f32], num_docs: usize, doc_idx: usize, column: &[f32]) {
    scores.iter_mut().skip(doc_idx).step_by(num_docs).zip(column).for_each(|(to, from)| *to = *from);
}

/// Packed query tokens, and their scales where sums are integers.
#[derive(Debug)]
struct Packed<'a> {
    panels: Panels,
    lane_scales: Option<&'a [f32]>,
    screen: Option<Screen>,
}

/// One call of a [`Scorer`].
struct Job<'a> {
    arithmetic: Arithmetic,
    kernel: Kernel,
    screening: bool,
    docs: Tokens<'a>,
    scoring: Scoring,
    empty_doc: Option<f32>,
}

impl<'a> Job<'a> {
    fn new(scorer: &Scorer, queries: Tokens<'a>, docs: Tokens<'a>) -> Result<Self, Error> {
        let (query_dim, doc_dim) = (queries.batch.dim(), docs.batch.dim());
        if query_dim != doc_dim {
            return Err(mismatch("dim of the documents", doc_dim, format!("{query_dim}, the dim of the queries")));
        }
        let (query_type, doc_type) = (queries.batch.dtype(), docs.batch.dtype());
        if query_type == DType::I8 && doc_type == DType::I8 && doc_dim > Tokens::MAX_I8_DIM {
            let expected = "dot products of i8 tokens must fit 32 bits: at most 131071 components";
            return Err(Error::InvalidOption { name: "dim", value: doc_dim.to_string(), expected });
        }
        let operands = Operands { queries: query_type, docs: doc_type, scaled: docs.scales.is_some() };
        let arithmetic = Arithmetic::choose(scorer.kernel, operands);
        let Scorer { scoring, empty_doc, kernel, screening, .. } = *scorer;
        Ok(Job { arithmetic, kernel, screening, docs, scoring, empty_doc })
    }

    /// Refuses the first empty document that has no score.
    fn check_docs(&self, mut doc_idxs: impl Iterator<Item = usize>) -> Result<(), Error> {
        if self.empty_doc.is_some() {
            return Ok(());
        }
        match doc_idxs.find(|&doc_idx| self.docs.batch.doc_len(doc_idx) == 0) {
            Some(doc_idx) => Err(Error::EmptyDoc { doc_idx }),
            None => Ok(()),
        }
    }

    /// The tokens of `queries` in lanes.
    fn pack(&self, queries: Tokens<'a>) -> Packed<'a> {
        let Arithmetic { encoding, lanes, .. } = self.arithmetic;
        // f32 panels hold scaled components; integers are scaled after the maximum, as a scale is not negative.
        let lane_scales = queries.scales.filter(|_| encoding != Encoding::F32);
        let panels = Panels::new(&queries.batch, queries.scales, encoding, lanes);
        Packed { panels, lane_scales, screen: self.screen(queries) }
    }

    /// A screen for the same lanes, where it could pay.
    fn screen(&self, queries: Tokens<'a>) -> Option<Screen> {
        let (num_tokens, dim) = (queries.batch.num_tokens(), queries.batch.dim());
        if !self.screening || !Screen::is_worth_trying(self.kernel, &self.arithmetic, num_tokens, dim) {
            return None;
        }
        let mut values = vec![0.0; num_tokens * dim];
        queries.to_f32(&mut values);
        Screen::new(self.kernel, &values, dim)
    }

    /// Each query that a pair names, packed by itself; nothing for the others.
    fn pack_each(&self, queries: Tokens<'a>, pairs: &[(u32, u32)]) -> Vec<Packed<'a>> {
        let mut named = vec![false; queries.batch.num_docs()];
        pairs.iter().for_each(|&(query_idx, _)| named[query_idx as usize] = true);
        let pack =
            |(query_idx, &named): (usize, &bool)| self.pack(queries.docs(query_idx..query_idx + usize::from(named)));
        named.par_iter().enumerate().map(pack).collect()
    }

    fn doc_tasks(&self, packed: &Packed<'_>, ranges: &[Range<usize>]) -> Vec<Range<usize>> {
        let (docs, num_lanes) = (self.docs.batch, packed.panels.num_lanes());
        let tasks = |range: &Range<usize>| {
            let start = range.start;
            let tasks = schedule::tasks(range.len(), num_lanes, |doc_idx| docs.doc_len(start + doc_idx));
            tasks.into_iter().map(move |task| start + task.start..start + task.end)
        };
        ranges.iter().flat_map(tasks).collect()
    }

    fn pair_tasks(&self, packed: &[Packed<'_>], pairs: &[(u32, u32)]) -> Vec<Range<usize>> {
        let num_lanes = packed.iter().map(|packed| packed.panels.num_lanes()).max().unwrap_or(0);
        schedule::tasks(pairs.len(), num_lanes, |pair| self.docs.batch.doc_len(pairs[pair].1 as usize))
    }

    /// `result(job, query, maxima, document)` for each pair.
    fn fold_pairs<T: Send>(
        &self,
        queries: Tokens<'a>,
        pairs: &[(u32, u32)],
        with_matches: bool,
        result: &(impl Fn(&Self, &Packed<'a>, &Best, usize) -> T + Sync),
    ) -> Vec<T> {
        let packed = self.pack_each(queries, pairs);
        let results: Vec<Vec<T>> = self
            .pair_tasks(&packed, pairs)
            .into_par_iter()
            .map(|task| {
                let runs = pairs[task].chunk_by(|a, b| a.0 == b.0);
                runs.flat_map(|run| self.fold_run(&packed[run[0].0 as usize], run, with_matches, result)).collect()
            })
            .collect();
        results.into_iter().flatten().collect()
    }

    /// Calls `each(document, maxima)` for the documents of a task.
    fn fold_docs(&self, packed: &Packed<'a>, task: Range<usize>, mut each: impl FnMut(usize, &Best)) {
        let mut folder = Folder::new(self.arithmetic, &packed.panels, packed.screen.as_ref(), self.docs.batch.dim());
        let mut best = Best::new(&self.arithmetic, &packed.panels, false);
        for doc_idx in task {
            folder.fold_doc(self.docs.doc(doc_idx), &mut best);
            each(doc_idx, &best);
        }
    }

    /// Results of consecutive pairs of one query.
    fn fold_run<T>(
        &self,
        packed: &Packed<'a>,
        pairs: &[(u32, u32)],
        with_matches: bool,
        result: impl Fn(&Self, &Packed<'a>, &Best, usize) -> T,
    ) -> Vec<T> {
        let mut folder = Folder::new(self.arithmetic, &packed.panels, packed.screen.as_ref(), self.docs.batch.dim());
        let mut best = Best::new(&self.arithmetic, &packed.panels, with_matches);
        let each = |&(_, doc_idx): &(u32, u32)| {
            folder.fold_doc(self.docs.doc(doc_idx as usize), &mut best);
            result(self, packed, &best, doc_idx as usize)
        };
        pairs.iter().map(each).collect()
    }

    /// `[docs of the task, num_queries]`.
    fn score_docs(&self, packed: &Packed<'a>, task: Range<usize>) -> Vec<f32> {
        let num_queries = packed.panels.num_queries();
        let mut scores = Vec::with_capacity(task.len() * num_queries);
        self.fold_docs(packed, task, |doc_idx, best| {
            scores.extend((0..num_queries).map(|query_idx| self.score(packed, best, query_idx, doc_idx)));
        });
        scores
    }

    /// Offers the documents of a task to `top_k`; `packed` starts at `first_query`.
    fn rank_docs(
        &self,
        packed: &Packed<'a>,
        task: Range<usize>,
        first_query: usize,
        first_doc: u64,
        mut top_k: TopK,
    ) -> TopK {
        self.fold_docs(packed, task, |doc_idx, best| {
            for query_idx in 0..packed.panels.num_queries() {
                let score = self.score(packed, best, query_idx, doc_idx);
                top_k.offer(first_query + query_idx, Hit { doc_idx: first_doc + doc_idx as u64, score });
            }
        });
        top_k
    }

    /// Score of a packed query with a document, from the maxima.
    fn score(&self, packed: &Packed<'_>, best: &Best, query_idx: usize, doc_idx: usize) -> f32 {
        let lanes = packed.panels.query(query_idx);
        if lanes.is_empty() {
            return 0.0;
        }
        if self.docs.batch.doc_len(doc_idx) == 0 {
            // `check_docs` has refused the document when there is no such score.
            return self.empty_doc.unwrap_or(f32::NAN);
        }
        let sum = match packed.lane_scales {
            None => best.sum(lanes, |_, value| self.clamp(value)),
            Some(scales) => best.sum(lanes.clone(), |i, value| self.clamp(value * f64::from(scales[lanes.start + i]))),
        };
        sum as f32
    }

    /// What a query token's maximum counts.
    fn clamp(&self, similarity: f64) -> f64 {
        match self.scoring {
            // NOTE: not `f64::max`, which would turn a NaN into 0.
            Scoring::Clamped if similarity < 0.0 => 0.0,
            _ => similarity,
        }
    }

    /// Every query token's match in a document; `packed` holds one query.
    fn token_matches(&self, packed: &Packed<'_>, best: &Best, doc_idx: usize) -> Vec<TokenMatch> {
        if self.docs.batch.doc_len(doc_idx) == 0 {
            return vec![TokenMatch { token_idx: None, similarity: 0.0 }; packed.panels.query(0).len()];
        }
        let raw = |lane| best.value(lane) * packed.lane_scales.map_or(1.0, |scales| f64::from(scales[lane]));
        packed.panels.query(0).map(|lane| self.token_match(raw(lane), best.matched(lane))).collect()
    }

    /// A query token's match from its maximum and the first token that reached it.
    fn token_match(&self, raw: f64, matched: u32) -> TokenMatch {
        let decided = !raw.is_nan() && self.clamp(raw) == raw;
        // A maximum of minus infinity is no improvement on nothing; the first token has it.
        let first = if matched == NO_TOKEN { 0 } else { matched };
        TokenMatch { token_idx: decided.then_some(first), similarity: self.clamp(raw) as f32 }
    }
}

/// Refuses the first pair outside the batches.
fn check_pairs(queries: &Tokens<'_>, docs: &Tokens<'_>, pairs: &[(u32, u32)]) -> Result<(), Error> {
    let (num_queries, num_docs) = (queries.batch.num_docs(), docs.batch.num_docs());
    for (pair_idx, &(query_idx, doc_idx)) in pairs.iter().enumerate() {
        if query_idx as usize >= num_queries {
            return Err(mismatch("query of a pair", at_pair(query_idx, pair_idx), below(num_queries)));
        }
        if doc_idx as usize >= num_docs {
            return Err(mismatch("document of a pair", at_pair(doc_idx, pair_idx), below(num_docs)));
        }
    }
    Ok(())
}

fn at_pair(idx: u32, pair_idx: usize) -> String {
    format!("{idx} (pair {pair_idx})")
}

fn below(count: usize) -> String {
    format!("an index below {count}")
}

fn mismatch(what: &'static str, found: impl ToString, expected: impl ToString) -> Error {
    Error::Mismatch { what, found: found.to_string(), expected: expected.to_string() }
}
