//! What is on the device together: queries in blocks, documents and pairs in batches, and the items of a batch.

use std::ops::Range;

use rayon::prelude::*;

use super::Run;
use crate::device::Device;
use crate::engine::gpu::shares::Items;
use crate::kernel::{MAXSIM_CHUNK, MAXSIM_QUERY_TILE, MAXSIM_WIDE_QUERY_TILE, MaxsimItem, MaxsimPair};
use crate::score::device::Work;

/// Query tokens of a block: enough that the arithmetic outweighs uploading the documents once more for the next block.
const BLOCK_TOKENS: usize = 1 << 14;

/// Consecutive queries that are on the device together.
pub(super) struct Block {
    pub(super) queries: Range<usize>,
    pub(super) num_tokens: usize,
}

/// Documents and pairs that are on the device together.
#[derive(Default)]
pub(super) struct Batch {
    /// Part of the visits of the block.
    pub(super) visits: Range<usize>,
    /// Documents in the order of their rows, those that turned out to be the CPU's among them.
    pub(super) docs: Vec<usize>,
    pub(super) num_rows: usize,
    /// Visits whose document does not fit.
    pub(super) too_long: Vec<usize>,
    /// Visits whose document the device cannot take.
    pub(super) wild: Vec<usize>,
    pub(super) work: Items,
    /// The visits that are scored; each has one pair, or one a query.
    pub(super) scored: Vec<Visit>,
}

/// A visit of a batch.
pub(super) struct Visit {
    /// As in the visits of the block.
    pub(super) visit: usize,
    /// The first row of its document.
    pub(super) first_row: usize,
}

/// What a batch costs, in the units of its buffers.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    num_rows: usize,
    num_items: usize,
    num_maxima: usize,
    num_pairs: usize,
}

impl Cost {
    fn plus(self, other: Cost) -> Cost {
        Cost {
            num_rows: self.num_rows + other.num_rows,
            num_items: self.num_items + other.num_items,
            num_maxima: self.num_maxima + other.num_maxima,
            num_pairs: self.num_pairs + other.num_pairs,
        }
    }

    /// Whether no buffer is larger than this.
    fn fits(self, row_bytes: usize, max_bytes: u64) -> bool {
        let sizes = [
            self.num_rows.saturating_mul(row_bytes),
            self.num_items.saturating_mul(size_of::<MaxsimItem>()),
            self.num_maxima.saturating_mul(size_of::<f32>()),
            self.num_pairs.saturating_mul(size_of::<MaxsimPair>()),
        ];
        sizes.iter().all(|&size| size as u64 <= max_bytes)
    }
}

impl<D: Device> Run<'_, D> {
    /// All queries in order, in blocks. A query that is longer than a buffer is left to the CPU.
    pub(super) fn blocks(&mut self) -> Vec<Block> {
        let max_bytes = self.max_bytes() as usize;
        let longest = max_bytes / (4 * self.query_stride());
        let most_tokens = longest.min(BLOCK_TOKENS);
        let most_queries = (max_bytes / size_of::<MaxsimPair>()).min(BLOCK_TOKENS);
        let mut blocks: Vec<Block> = Vec::new();
        for query_idx in 0..self.request.queries.batch().num_docs() {
            let len = self.query_len(query_idx);
            match blocks.last_mut() {
                _ if len > longest => {
                    let block = Block { queries: query_idx..query_idx + 1, num_tokens: len };
                    let visits = self.visits(&block);
                    self.leave(&block, &visits, 0..visits.len());
                }
                Some(block)
                    if block.queries.end == query_idx
                        && block.queries.len() < most_queries
                        && block.num_tokens + len <= most_tokens =>
                {
                    block.queries.end += 1;
                    block.num_tokens += len;
                }
                _ => blocks.push(Block { queries: query_idx..query_idx + 1, num_tokens: len }),
            }
        }
        blocks
    }

    /// What a block has to do, in an order in which each document comes once: documents, or places in the list of
    /// pairs.
    pub(super) fn visits(&self, block: &Block) -> Vec<usize> {
        match self.request.work {
            Work::All => (0..self.request.docs.batch().num_docs()).collect(),
            Work::Pairs { pairs, .. } => {
                let is_in = |&pair_idx: &usize| block.queries.contains(&(pairs[pair_idx].0 as usize));
                let mut visits: Vec<usize> = (0..pairs.len()).filter(is_in).collect();
                visits.par_sort_unstable_by_key(|&pair_idx| (pairs[pair_idx].1, pairs[pair_idx].0, pair_idx));
                visits
            }
        }
    }

    /// Leaves a part of the visits to the CPU.
    pub(super) fn leave(&mut self, block: &Block, visits: &[usize], part: Range<usize>) {
        for &visit in &visits[part] {
            match self.request.work {
                Work::All => self.left.push_docs(&block.queries, visit..visit + 1),
                Work::Pairs { .. } => self.left.pairs.push(visit),
            }
        }
    }

    pub(super) fn doc_of(&self, visit: usize) -> usize {
        match self.request.work {
            Work::All => visit,
            Work::Pairs { pairs, .. } => pairs[visit].1 as usize,
        }
    }

    /// Query tokens that a visit meets, counted from the start of the block.
    fn query_tokens(&self, block: &Block, visit: usize) -> Range<usize> {
        match self.request.work {
            Work::All => 0..block.num_tokens,
            Work::Pairs { pairs, .. } => {
                let query_idx = pairs[visit].0 as usize;
                let offsets = self.request.queries.batch().offsets();
                let start = (offsets[query_idx] - offsets[block.queries.start]) as usize;
                start..start + self.query_len(query_idx)
            }
        }
    }

    /// Without the rows of its document.
    fn cost(&self, block: &Block, visit: usize) -> Cost {
        let num_query_tokens = self.query_tokens(block, visit).len();
        let num_chunks = self.request.docs.batch().doc_len(self.doc_of(visit)).div_ceil(MAXSIM_CHUNK as usize);
        Cost {
            num_rows: 0,
            num_items: num_chunks.saturating_mul(num_query_tokens.div_ceil(MAXSIM_QUERY_TILE as usize)),
            num_maxima: num_chunks.saturating_mul(num_query_tokens),
            num_pairs: if matches!(self.request.work, Work::All) { block.queries.len() } else { 1 },
        }
    }

    /// The visits from `start` on that fit a batch, at least one.
    pub(super) fn plan(&self, block: &Block, visits: &[usize], start: usize, resident: [Option<u32>; 2]) -> Batch {
        let docs = self.request.docs;
        let (soft, hard) = (self.state.batch_bytes.min(self.max_bytes()), self.max_bytes());
        let mut batch = Batch { visits: start..start, ..Batch::default() };
        let mut chosen = Vec::new();
        let mut cost = Cost::default();
        for &visit in &visits[start..] {
            let doc_idx = self.doc_of(visit);
            let num_tokens = docs.batch().doc_len(doc_idx);
            let is_new = batch.docs.last() != Some(&doc_idx);
            let visit_cost = self.cost(block, visit);
            let alone = visit_cost.plus(Cost { num_rows: num_tokens, ..Cost::default() });
            if !alone.fits(self.row_bytes(), hard) {
                batch.too_long.push(visit);
                batch.visits.end += 1;
                continue;
            }
            let with = cost.plus(if is_new { alone } else { visit_cost });
            if !chosen.is_empty() && !with.fits(self.row_bytes(), soft) {
                break;
            }
            cost = with;
            chosen.push(visit);
            if is_new {
                batch.docs.push(doc_idx);
            }
            batch.visits.end += 1;
        }
        let is_tame: Vec<bool> =
            batch.docs.par_iter().map(|&doc_idx| docs.batch().doc_len(doc_idx) > 0 && docs.is_tame(doc_idx)).collect();
        let mut place = 0;
        for visit in chosen {
            if batch.docs[place] != self.doc_of(visit) {
                batch.num_rows += docs.batch().doc_len(batch.docs[place]);
                place += 1;
            }
            if is_tame[place] {
                batch.scored.push(Visit { visit, first_row: batch.num_rows });
            } else {
                batch.wild.push(visit);
            }
        }
        batch.num_rows += batch.docs.get(place).map_or(0, |&doc_idx| docs.batch().doc_len(doc_idx));
        batch.work = self.items(block, &batch.scored, resident);
        batch
    }

    /// Documents in parts that give every workgroup something to do, as far as that is worth it.
    fn items(&self, block: &Block, scored: &[Visit], resident: [Option<u32>; 2]) -> Items {
        let with_chunk = |chunk: u32| {
            let mut work = Items::default();
            scored.iter().for_each(|visit| self.add(block, &mut work, visit, chunk as usize));
            work
        };
        let mut work = Items::even(resident, with_chunk);
        if !self.has_matches() {
            work.sum();
        }
        work
    }

    /// Adds the items and pairs of a visit.
    fn add(&self, block: &Block, work: &mut Items, &Visit { visit, first_row }: &Visit, chunk_tokens: usize) {
        let num_tokens = self.request.docs.batch().doc_len(self.doc_of(visit));
        let query_tokens = self.query_tokens(block, visit);
        let stride = query_tokens.len();
        let is_wide = self.wide_query_tokens.is_some_and(|least| stride >= least);
        let query_tile = if is_wide { MAXSIM_WIDE_QUERY_TILE } else { MAXSIM_QUERY_TILE } as usize;
        for (chunk, first) in (0..num_tokens).step_by(chunk_tokens).enumerate() {
            for query_token in query_tokens.clone().step_by(query_tile) {
                work.items[usize::from(is_wide)].push(MaxsimItem {
                    first_query_token: query_token as u32,
                    num_query_tokens: (query_tokens.end - query_token).min(query_tile) as u32,
                    first_token: (first_row + first) as u32,
                    num_tokens: (num_tokens - first).min(chunk_tokens) as u32,
                    first_maximum: (work.num_maxima + chunk * stride + query_token - query_tokens.start) as u32,
                    first_match: first as u32,
                    padding: [0; 2],
                });
            }
        }
        let num_chunks = num_tokens.div_ceil(chunk_tokens);
        let mut pair = MaxsimPair {
            first_maximum: work.num_maxima as u32,
            chunk_stride: stride as u32,
            num_chunks: num_chunks as u32,
            num_query_tokens: stride as u32,
        };
        match self.request.work {
            Work::Pairs { .. } => work.pairs.push(pair),
            Work::All => {
                for query_idx in block.queries.clone() {
                    pair.num_query_tokens = self.query_len(query_idx) as u32;
                    work.pairs.push(pair);
                    pair.first_maximum += pair.num_query_tokens;
                }
            }
        }
        work.num_maxima += num_chunks * stride;
    }
}
