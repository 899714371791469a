//! MaxSim on a device.
//!
//! ```text
//! queries -> blocks -> f32 rows --------------------\
//! documents or pairs -> batches -> rows and items --> maxsim -> maxima -> maxsim_sum -> scores
//! ```
//!
//! Where every pair is one item, `maxsim` writes the scores itself.
//!
//! A block of queries stays on the device while batches of documents pass by: while one is computed the next is
//! planned, checked and uploaded into the other set of buffers. Only scores come back. Whatever a device cannot score,
//! or fails to, is returned as [`Left`] and is the CPU's.

mod plan;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use super::buffers::{GrowBuffer, settle};
use super::shares::{Items, shares};
use crate::device::{Device, DeviceError};
use crate::engine::Notice;
use crate::kernel::{CLAMPED, Encoding, Kernel, MAXSIM_WIDE_CHUNKS, MaxsimPair, MaxsimParams, PLAIN, Variant};
use crate::score::device::{Left, MaxsimDevice, Request, Scored, Work};
use crate::{DType, Scoring, TokenData, Tokens};
use plan::{Batch, Block, Visit};

/// Bytes of tokens, and of maxima, in a batch; a longer document is a batch of its own.
const BATCH_BYTES: u64 = 64 << 20;
/// Batches are halved down to this when memory is short.
const MIN_BATCH_BYTES: u64 = 1 << 20;
/// Largest buffer that is ever asked for.
const MAX_BYTES: u64 = 1 << 30;
/// Components below this cannot make a sum leave f32, with at most [`MAX_DIM`] of them.
const TAME: f32 = (1u64 << 40) as f32;
/// Most components of a token.
const MAX_DIM: usize = 1 << 16;
/// Most components of an i8 token that meets i8 tokens: their products sum to at most 2^24, exact in f32.
const MAX_I8_DIM: usize = 1 << 10;

/// [`MaxsimDevice`] for every [`Device`].
pub(crate) struct GpuMaxsim<D: Device> {
    device: Arc<D>,
    /// Memory that no call uses. A call takes it out and holds no lock: while it waits for the other threads of its
    /// pool, its own may begin another call.
    idle: Mutex<Vec<State<D>>>,
    /// The device reported an error that it does not recover from: nothing more is asked of it.
    has_failed: AtomicBool,
}

struct State<D: Device> {
    queries: GrowBuffer<D>,
    query_scales: GrowBuffer<D>,
    sets: [Set<D>; 2],
    /// What is bound where a kernel reads, or writes, nothing.
    nothing_read: GrowBuffer<D>,
    nothing_written: GrowBuffer<D>,
    batch_bytes: u64,
    rows: Vec<u8>,
}

/// Buffers of a batch; the other set is in use meanwhile.
struct Set<D: Device> {
    tokens: GrowBuffer<D>,
    token_scales: GrowBuffer<D>,
    items: [GrowBuffer<D>; 2],
    shares: [GrowBuffer<D>; 2],
    maxima: GrowBuffer<D>,
    matches: GrowBuffer<D>,
    pairs: GrowBuffer<D>,
    scores: GrowBuffer<D>,
}

impl<D: Device> Default for Set<D> {
    fn default() -> Self {
        Set {
            tokens: GrowBuffer::default(),
            token_scales: GrowBuffer::default(),
            items: Default::default(),
            shares: Default::default(),
            maxima: GrowBuffer::default(),
            matches: GrowBuffer::default(),
            pairs: GrowBuffer::default(),
            scores: GrowBuffer::default(),
        }
    }
}

impl<D: Device> Default for State<D> {
    fn default() -> Self {
        State {
            queries: GrowBuffer::default(),
            query_scales: GrowBuffer::default(),
            sets: Default::default(),
            nothing_read: GrowBuffer::default(),
            nothing_written: GrowBuffer::default(),
            batch_bytes: BATCH_BYTES,
            rows: Vec::new(),
        }
    }
}

impl<D: Device> State<D> {
    /// Gives all memory back, and asks for half of it from here on.
    fn halve(&mut self) {
        *self = State { batch_bytes: self.batch_bytes / 2, ..State::default() };
    }
}

impl<D: Device> fmt::Debug for GpuMaxsim<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GpuMaxsim").field(&self.device.name()).finish()
    }
}

impl<D: Device> GpuMaxsim<D> {
    pub(crate) fn new(device: Arc<D>) -> Self {
        GpuMaxsim { device, idle: Mutex::default(), has_failed: AtomicBool::new(false) }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<State<D>>> {
        // Whatever a panic elsewhere left behind, every buffer is written before it is read.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Device> MaxsimDevice for GpuMaxsim<D> {
    fn name(&self) -> String {
        self.device.name()
    }

    fn score(&self, request: &Request<'_>, emit: &mut dyn FnMut(Scored<'_>)) -> Left {
        let (num_queries, num_docs) = (request.queries.batch().num_docs(), request.docs.batch().num_docs());
        if self.has_failed.load(Ordering::Relaxed) || !can_take(&request.queries, &request.docs) {
            return Left::all(num_queries, num_docs, request.work);
        }
        let state = self.idle().pop().unwrap_or_default();
        let (device, left) = (&*self.device, Left::default());
        let mut run = Run { device, maxsim: self, state, request, left, wide_query_tokens: None };
        let blocks = run.blocks();
        for (at, block) in blocks.iter().enumerate() {
            let visits = run.visits(block);
            let Err((done, error)) = run.score_block(block, &visits, emit) else { continue };
            run.leave(block, &visits, done..visits.len());
            for block in &blocks[at + 1..] {
                let visits = run.visits(block);
                run.leave(block, &visits, 0..visits.len());
            }
            if !self.has_failed.swap(true, Ordering::Relaxed) {
                (request.notify)(&Notice::FellBack { reason: error.to_string() });
            }
            return run.left;
        }
        let Run { state, left, .. } = run;
        self.idle().push(state);
        left
    }
}

/// Whether a device can score these tokens with any documents.
fn can_take(queries: &Tokens<'_>, docs: &Tokens<'_>) -> bool {
    let (query_batch, doc_batch) = (queries.batch(), docs.batch());
    let is_i8 = query_batch.dtype() == DType::I8 && doc_batch.dtype() == DType::I8;
    let max_dim = if is_i8 { MAX_I8_DIM } else { MAX_DIM };
    doc_batch.dim() <= max_dim
        && (0..query_batch.num_docs()).into_par_iter().all(|query_idx| queries.is_tame(query_idx))
}

impl Tokens<'_> {
    /// Whether no component and no scale of a document is NaN, infinite, or so large that a sum could be.
    fn is_tame(&self, doc_idx: usize) -> bool {
        const BLOCK: usize = 256;
        fn all<T: Copy>(values: &[T], is_tame: impl Fn(T) -> bool) -> bool {
            // Without an early exit inside a block it is a vector loop.
            values.chunks(BLOCK).all(|block| block.iter().fold(true, |all, &value| all & is_tame(value)))
        }
        let f32s = |values: &[f32]| all(values, |value| value.to_bits() & (u32::MAX >> 1) < TAME.to_bits());
        let values = match self.batch().doc(doc_idx) {
            TokenData::F32(values) => f32s(values),
            TokenData::F16(values) => all(values, |value| value.to_bits() & 0x7c00 != 0x7c00),
            TokenData::Bf16(values) => {
                all(values, |value| value.to_bits() & (u16::MAX >> 1) < (TAME.to_bits() >> 16) as u16)
            }
            TokenData::I8(_) => true,
        };
        values && self.doc_scales(doc_idx).is_none_or(f32s)
    }
}

/// One call.
struct Run<'a, D: Device> {
    device: &'a D,
    maxsim: &'a GpuMaxsim<D>,
    state: State<D>,
    request: &'a Request<'a>,
    left: Left,
    /// From so many query tokens on a visit is the wide kernel's, with the queries that are on the device.
    wide_query_tokens: Option<usize>,
}

impl<D: Device> Run<'_, D> {
    fn encoding(&self) -> Encoding {
        Encoding::of(self.request.docs.batch().dtype(), self.device.limits().has_f16)
    }

    /// Chunks of 16 bytes of a document token.
    fn num_chunks(&self) -> usize {
        self.request.docs.batch().dim().div_ceil(self.encoding().chunk_dim())
    }

    /// Components of a query token with its padding.
    fn query_stride(&self) -> usize {
        self.num_chunks() * self.encoding().chunk_dim()
    }

    fn row_bytes(&self) -> usize {
        self.num_chunks() * 16
    }

    /// Largest buffer.
    fn max_bytes(&self) -> u64 {
        self.device.limits().max_buffer_bytes.min(MAX_BYTES)
    }

    fn query_len(&self, query_idx: usize) -> usize {
        self.request.queries.batch().doc_len(query_idx)
    }

    /// Scores the visits of a block; on failure how many of them are done, or left, and what the device said.
    fn score_block(
        &mut self,
        block: &Block,
        visits: &[usize],
        emit: &mut dyn FnMut(Scored<'_>),
    ) -> Result<(), (usize, DeviceError)> {
        let mut done = 0;
        loop {
            match self.score_visits(block, visits, &mut done, emit) {
                Ok(()) => return Ok(()),
                Err(DeviceError::OutOfMemory(_)) if self.state.batch_bytes / 2 >= MIN_BATCH_BYTES => {
                    self.state.halve();
                    self.maxsim.idle().clear();
                    settle(self.device);
                    (self.request.notify)(&Notice::BatchHalved);
                }
                Err(error) => return Err((done, error)),
            }
        }
    }

    /// Scores the visits from `done` on, and counts it up.
    fn score_visits(
        &mut self,
        block: &Block,
        visits: &[usize],
        done: &mut usize,
        emit: &mut dyn FnMut(Scored<'_>),
    ) -> Result<(), DeviceError> {
        if *done == visits.len() {
            return Ok(());
        }
        self.upload_queries(block)?;
        let resident = self.resident()?;
        let mut next = *done;
        let mut in_flight: Option<(Batch, D::Download)> = None;
        let mut set = 0;
        while next < visits.len() || in_flight.is_some() {
            let mut started = None;
            if next < visits.len() {
                let batch = self.plan(block, visits, next, resident);
                next = batch.visits.end;
                let download = self.start(block, &batch, set, resident)?;
                started = Some((batch, download));
                set = 1 - set;
            }
            if let Some((batch, download)) = in_flight.take() {
                *done = self.finish(block, visits, batch, download, emit)?;
            }
            in_flight = started;
        }
        Ok(())
    }

    fn variant(&self, is_wide: bool) -> Variant {
        Variant { kernel: Kernel::Maxsim, encoding: self.encoding(), subgroups: false, cooperative: None, is_wide }
    }

    /// How many workgroups of `maxsim`, and of the wide one, run at once.
    fn resident(&self) -> Result<[Option<u32>; 2], DeviceError> {
        let resident = |is_wide| self.device.resident_workgroups(self.variant(is_wide));
        Ok([resident(false)?, self.wide_query_tokens.map_or(Ok(None), |_| resident(true))?])
    }

    fn upload_queries(&mut self, block: &Block) -> Result<(), DeviceError> {
        let (queries, dim, stride) = (self.request.queries, self.request.queries.batch().dim(), self.query_stride());
        let mut values = vec![0.0f32; block.num_tokens * stride];
        let mut rows = values.as_mut_slice();
        for query_idx in block.queries.clone() {
            let query = queries.batch().doc(query_idx);
            let (to, rest) = rows.split_at_mut(query.len() / dim * stride);
            for (row, token) in to.chunks_exact_mut(stride).enumerate() {
                query.slice(row * dim..(row + 1) * dim).to_f32(&mut token[..dim]);
            }
            rows = rest;
        }
        self.wide_query_tokens = self.wide_query_tokens(&values);
        self.state.queries.holding(self.device, &values)?;
        let scales: Vec<f32> = block
            .queries
            .clone()
            .flat_map(|query_idx| queries.doc_scales(query_idx).unwrap_or_default())
            .copied()
            .collect();
        self.state.query_scales.holding(self.device, &scales)?;
        self.state.nothing_read.at_least(self.device, 16)?;
        self.state.nothing_written.at_least(self.device, 16).map(|_| ())
    }

    /// Least query tokens for the wide kernel, if it can take these queries and documents at all.
    fn wide_query_tokens(&self, queries: &[f32]) -> Option<usize> {
        let (encoding, stride) = (self.encoding(), self.query_stride());
        let least = self.device.limits().wide_query_tokens? as usize;
        let is_for = encoding != Encoding::F32 && self.num_chunks() <= MAXSIM_WIDE_CHUNKS as usize;
        let is_enough = queries.len() >= least * stride;
        let is_same = self.request.queries.batch().dtype() == self.request.docs.batch().dtype();
        let are_held = || queries.par_chunks(stride).all(|row| row.iter().all(|&value| encoding.holds(value)));
        (is_for && is_enough && (is_same || are_held())).then_some(least)
    }

    /// Uploads a batch and launches its kernels.
    fn start(
        &mut self,
        block: &Block,
        batch: &Batch,
        set: usize,
        resident: [Option<u32>; 2],
    ) -> Result<D::Download, DeviceError> {
        let Items { items, pairs, num_maxima, is_summed } = &batch.work;
        if pairs.is_empty() {
            return self.device.download(&[]);
        }
        self.upload_docs(batch, set)?;
        let (num_chunks, device) = (self.num_chunks(), self.device);
        let variants = [self.variant(false), self.variant(true)];
        let (has_matches, request) = (self.has_matches(), self.request);
        let State { queries, query_scales, sets, nothing_read, nothing_written, .. } = &mut self.state;
        let set = &mut sets[set];
        let maxima_bytes = 4 * *num_maxima as u64;
        let scores_bytes = 4 * pairs.len() as u64;
        if !is_summed {
            set.pairs.holding(device, pairs)?;
            set.maxima.at_least(device, maxima_bytes.max(16))?;
        }
        set.scores.at_least(device, scores_bytes)?;
        if has_matches {
            set.matches.at_least(device, maxima_bytes.max(16))?;
        }
        let has_query_scales = request.queries.has_scales() && block.num_tokens > 0;
        let has_token_scales = request.docs.has_scales();
        let mut params = MaxsimParams {
            num_items: 0,
            num_chunks: num_chunks as u32,
            scoring: if request.scoring == Scoring::Clamped { CLAMPED } else { PLAIN },
            has_matches: u32::from(has_matches),
            has_query_scales: u32::from(has_query_scales),
            has_token_scales: u32::from(has_token_scales),
            is_summed: u32::from(*is_summed),
            padding: 0,
        };
        for (idx, items) in items.iter().enumerate().filter(|(_, items)| !items.is_empty()) {
            let shares = shares(items, resident[idx]);
            set.items[idx].holding(device, items)?;
            set.shares[idx].holding(device, &shares)?;
            params.num_items = shares.len() as u32 - 1;
            let arguments = [
                queries.filled()?,
                set.tokens.filled()?,
                if has_query_scales { query_scales.filled()? } else { nothing_read.filled()? },
                if has_token_scales { set.token_scales.filled()? } else { nothing_read.filled()? },
                set.items[idx].filled()?,
                set.shares[idx].filled()?,
                if *is_summed { set.scores.filled()? } else { set.maxima.filled()? },
                if has_matches { set.matches.filled()? } else { nothing_written.filled()? },
            ];
            device.launch(variants[idx], &arguments, bytemuck::bytes_of(&params), u64::from(params.num_items))?;
        }
        if !is_summed {
            params.num_items = pairs.len() as u32;
            let arguments = [set.maxima.filled()?, set.pairs.filled()?, set.scores.filled()?];
            let variant = Variant { kernel: Kernel::MaxsimSum, ..variants[0] };
            device.launch(variant, &arguments, bytemuck::bytes_of(&params), pairs.len() as u64)?;
        }
        let scores = (set.scores.filled()?, scores_bytes);
        if has_matches {
            device.download(&[scores, (set.maxima.filled()?, maxima_bytes), (set.matches.filled()?, maxima_bytes)])
        } else {
            device.download(&[scores])
        }
    }

    fn has_matches(&self) -> bool {
        matches!(self.request.work, Work::Pairs { with_matches: true, .. })
    }

    /// Rows of a batch, as they lie where they lie side by side in whole chunks.
    fn upload_docs(&mut self, batch: &Batch, set: usize) -> Result<(), DeviceError> {
        let (docs, row_bytes) = (self.request.docs, self.row_bytes());
        let (device, state) = (self.device, &mut self.state);
        let token_bytes = docs.batch().dim() * docs.batch().dtype().size_bytes();
        let is_run = batch.docs.windows(2).all(|pair| pair[0] + 1 == pair[1]);
        let tokens = &mut state.sets[set].tokens;
        if let (true, true, Some(first)) = (is_run, token_bytes == row_bytes, batch.docs.first()) {
            let run = *first..first + batch.docs.len();
            tokens.holding(device, docs.batch().rows(run).as_bytes())?;
        } else {
            state.rows.clear();
            state.rows.resize(batch.num_rows * row_bytes, 0);
            let mut rest = state.rows.as_mut_slice();
            let mut parts = Vec::with_capacity(batch.docs.len());
            for &doc_idx in &batch.docs {
                let (part, after) = rest.split_at_mut(docs.batch().doc_len(doc_idx) * row_bytes);
                parts.push((doc_idx, part));
                rest = after;
            }
            parts.into_par_iter().for_each(|(doc_idx, part)| {
                let bytes = docs.batch().doc(doc_idx);
                for (row, token) in part.chunks_exact_mut(row_bytes).zip(bytes.as_bytes().chunks_exact(token_bytes)) {
                    row[..token_bytes].copy_from_slice(token);
                }
            });
            tokens.holding(device, &state.rows)?;
        }
        if docs.has_scales() {
            let scales = batch.docs.iter().flat_map(|&doc_idx| docs.doc_scales(doc_idx).unwrap_or_default());
            let scales: Vec<f32> = scales.copied().collect();
            state.sets[set].token_scales.holding(device, &scales)?;
        }
        Ok(())
    }

    /// Waits for the results of a batch and hands them over; how many visits are done with it.
    fn finish(
        &mut self,
        block: &Block,
        visits: &[usize],
        batch: Batch,
        download: D::Download,
        emit: &mut dyn FnMut(Scored<'_>),
    ) -> Result<usize, DeviceError> {
        let work = self.request.work;
        self.device.read(download, &mut |parts| {
            let part = |idx: usize| parts.get(idx).copied().unwrap_or_default();
            // Copied, as nobody promises that a part is aligned.
            let scores: Vec<f32> = bytemuck::pod_collect_to_vec(part(0));
            let maxima: Vec<f32> = bytemuck::pod_collect_to_vec(part(1));
            let matches: Vec<u32> = bytemuck::pod_collect_to_vec(part(2));
            let per_visit = scores.chunks(if matches!(work, Work::All) { block.queries.len().max(1) } else { 1 });
            for ((&Visit { visit, .. }, scores), pair) in batch.scored.iter().zip(per_visit).zip(&batch.work.pairs) {
                emit(match work {
                    Work::All => Scored::Doc { doc_idx: visit, queries: block.queries.clone(), scores },
                    Work::Pairs { with_matches, .. } => Scored::Pair {
                        pair_idx: visit,
                        score: scores[0],
                        tokens: if with_matches { token_maxima(pair, &maxima, &matches) } else { Vec::new() },
                    },
                });
            }
        })?;
        for &visit in &batch.too_long {
            let doc_idx = self.doc_of(visit);
            let num_tokens = self.request.docs.batch().doc_len(doc_idx);
            (self.request.notify)(&Notice::DocTooLong { doc_idx, num_tokens });
        }
        let mut left: Vec<usize> = batch.too_long.iter().chain(&batch.wild).copied().collect();
        if matches!(work, Work::All) {
            left.sort_unstable();
        }
        self.leave(block, &left, 0..left.len());
        debug_assert!(batch.visits.end <= visits.len());
        Ok(batch.visits.end)
    }
}

/// Each query token's maximum over the chunks of a pair, and the first token that reached it.
fn token_maxima(pair: &MaxsimPair, maxima: &[f32], matches: &[u32]) -> Vec<(f32, u32)> {
    let place = |chunk: u32, i: u32| (pair.first_maximum + chunk * pair.chunk_stride + i) as usize;
    let of_token = |i: u32| {
        let each = (0..pair.num_chunks).map(|chunk| (maxima[place(chunk, i)], matches[place(chunk, i)]));
        each.reduce(|best, next| if next.0 > best.0 { next } else { best }).unwrap_or((0.0, 0))
    };
    (0..pair.num_query_tokens).map(of_token).collect()
}
