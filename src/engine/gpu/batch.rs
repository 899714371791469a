//! What one batch asks of a device: documents, tiles, first tokens; and the two questions there are.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::decode::{self, Answers};
use crate::device::Limits;
use crate::engine::cpu::document::survey;
use crate::engine::cpu::dominance::ROUNDING;
use crate::engine::{CpuEngine, Decision, Goal, Selection};
use crate::kernel::{
    CLAMPED, COMPACT_THREADS, DOMINANCE_THREADS, Doc, Encoding, FACE_CAP, Kernel, PLAIN, SELECTION_THREADS,
    SelectionParams, Tile, Variant, gram_stride,
};
use crate::plan::gram_tiles;
use crate::{Scoring, TokenBatch};

/// Steps of a launch of `selection`: enough for nearly every document, few enough that no device stays silent for
/// seconds. A step walks over the tokens kept, so that it takes longer in longer documents: of those a launch makes so
/// many fewer steps for each token of the longest.
const MAX_STEPS: u32 = 4096;
const STEP_TOKENS: u32 = 1 << 20;

/// Launches between two looks at whether all documents are finished.
const LAUNCHES: u32 = 1;

/// The same for software devices: Mesa's leaves every loop of an invocation after 65,536 turns in all, without a word.
/// A step for each of so many tokens of the longest document, so that real vectors stay well below.
const SOFTWARE_STEP_TOKENS: u32 = 600;
const SOFTWARE_LAUNCHES: u32 = 64;

/// Entries a token that are downloaded before it is known how many there are; where there are more, all are downloaded
/// once it is. The example corpus has 2 to 3 where supports are shrunk to a tolerance, and 8 to 11 otherwise.
const EXPECTED_ENTRIES: u64 = 4;
const EXPECTED_ENTRIES_UNSHRUNK: u64 = 12;

/// Documents with their answers, and documents that are left to the CPU.
pub(super) type Found<A> = (Vec<(usize, <A as Ask>::Answer)>, Vec<usize>);

/// What a download means.
pub(super) enum Decoded<A: Ask> {
    /// The answers of all documents that have one, and the documents that are left to the CPU.
    Found(Found<A>),
    /// The device has not finished.
    Unfinished,
    /// So many entries are needed, and were not downloaded.
    Short(u64),
}

/// A question to every document of a batch.
pub(super) trait Ask: Sync {
    /// What is found about a document.
    type Answer: Send;

    fn kernel(&self) -> Kernel;

    fn scoring(&self) -> Scoring;

    /// The tokens that are kept first (at least one, ascending) and the most that may be kept.
    fn first(&self, batch: &TokenBatch<'_>, doc_idx: usize, longest: u32) -> (Vec<u32>, u32);

    /// Squared tolerance, the distance to stop at, and whether to project only.
    fn goal(&self) -> (f32, f32, bool);

    /// The answer for a document of at most one token, if it needs no thought.
    fn trivial(&self, num_tokens: usize) -> Option<Self::Answer>;

    /// The answer that a device found, or none where it leaves the document to the CPU.
    fn decode(&self, batch: &TokenBatch<'_>, doc_idx: usize, answers: &Answers<'_>, doc: &Doc) -> Option<Self::Answer>;

    /// The CPU engine's answer.
    fn on_cpu(&self, cpu: &CpuEngine, batch: &TokenBatch<'_>, doc_idx: usize) -> Self::Answer;

    /// The parameter block, which every kernel gets with its own number of items.
    fn params(&self, packed: &Packed) -> SelectionParams {
        let (inside, stop, is_project) = self.goal();
        SelectionParams {
            num_items: 0,
            scoring: match self.scoring() {
                Scoring::Plain => PLAIN,
                Scoring::Clamped => CLAMPED,
            },
            is_project: u32::from(is_project),
            inside,
            stop,
            rounding: ROUNDING,
            margin: certified_margin(packed.dim, packed.truncates),
            max_steps: packed.max_steps,
            is_resumed: 0,
            padding: [0; 3],
        }
    }
}

/// Rounding of a squared residual in the worst case, for tokens of norm at most 1.
///
/// As for the CPU: a Gram entry is a sum of `dim` products, off by at most `dim * u` in whatever order it is added
/// (Higham, "Accuracy and Stability of Numerical Algorithms", 3.1), or twice that where sums are truncated, and enters
/// with weights whose magnitudes total at most 4. With means taken away its factors are off by `u` each, which adds
/// `8 * u`.
///
/// A device also adds the entries of a face up in f32 (`scan` in `shaders/shared/face.wgsl`). For `m` = [`FACE_CAP`]
/// vertices, with partial sums of magnitude at most 2: a gradient is off by `(2 * m + 1) * u`, its weighted sum by
/// `2 * m * u` more, so is that of the products with the token, and a few roundings come on top: `(6 * m + 16) * u`. The
/// weights sum to 1 up to the `m + 6` roundings of their scale; for the point of sum 1 the squared distance is larger by
/// at most 5 times that. Together less than `16 * m + 64`.
pub(crate) fn certified_margin(dim: usize, truncates: bool) -> f32 {
    const UNIT: f32 = 1.0 / (1 << 24) as f32;
    let dim = if truncates { 2 * dim } else { dim };
    (4 * dim + 16 * FACE_CAP as usize + 64) as f32 * UNIT
}

/// Bytes of a token on the device: whole chunks of 16.
pub(super) fn row_bytes(batch: &TokenBatch<'_>) -> u64 {
    (batch.dim() * batch.dtype().size_bytes()).next_multiple_of(16) as u64
}

/// A batch, ready to be sent.
pub(super) struct Packed {
    docs: Range<usize>,
    /// Those that the device looks at, longest first: the last workgroups to start then have the least to do.
    device_docs: Vec<Doc>,
    /// Those with a token or none.
    trivial: Vec<usize>,
    /// Those whose norms leave the range of `f32`.
    for_cpu: Vec<usize>,
    pub(super) tiles: Vec<Tile>,
    /// Workgroups of `dominance`: document and first token.
    pub(super) items: Vec<[u32; 2]>,
    /// Workgroups of `compact`.
    pub(super) chunks: Vec<Doc>,
    /// First tokens of each document, at its first token.
    pub(super) order: Vec<u32>,
    pub(super) num_tokens: u32,
    pub(super) gram_len: u64,
    pub(super) num_chunks: u32,
    pub(super) is_centred: bool,
    /// Steps of a launch, and launches between two downloads.
    max_steps: u32,
    pub(super) num_launches: u32,
    expected_a_token: u64,
    dim: usize,
    truncates: bool,
    encoding: Encoding,
    subgroups: bool,
}

impl Packed {
    pub(super) fn new<A: Ask>(batch: &TokenBatch<'_>, docs: Range<usize>, limits: &Limits, ask: &A) -> Self {
        let encoding = Encoding::of(batch.dtype(), limits.has_f16);
        let row_bytes = row_bytes(batch);
        let mut packed = Packed {
            device_docs: Vec::with_capacity(docs.len()),
            trivial: Vec::new(),
            for_cpu: Vec::new(),
            tiles: Vec::new(),
            items: Vec::new(),
            chunks: Vec::new(),
            order: Vec::new(),
            num_tokens: (batch.offsets()[docs.end] - batch.offsets()[docs.start]) as u32,
            gram_len: 0,
            num_chunks: (row_bytes / 16) as u32,
            is_centred: ask.scoring() == Scoring::Plain,
            max_steps: MAX_STEPS,
            num_launches: LAUNCHES,
            expected_a_token: if ask.goal().0 < 0.0 { EXPECTED_ENTRIES_UNSHRUNK } else { EXPECTED_ENTRIES },
            dim: batch.dim(),
            truncates: limits.truncates,
            encoding,
            subgroups: limits.subgroup_sizes.is_some(),
            docs,
        };
        packed.add_docs(batch, ask);
        let longest = packed.longest();
        packed.max_steps = (STEP_TOKENS / longest).clamp(1, MAX_STEPS);
        if limits.is_software {
            packed.max_steps = SOFTWARE_STEP_TOKENS.div_ceil(longest);
            packed.num_launches = SOFTWARE_LAUNCHES;
        }
        packed
    }

    fn add_docs<A: Ask>(&mut self, batch: &TokenBatch<'_>, ask: &A) {
        let first = |doc_idx: usize| {
            let (num_tokens, dim) = (batch.doc_len(doc_idx), batch.dim());
            let longest = if num_tokens > 1 { survey(batch.doc(doc_idx), dim) } else { None };
            longest.map(|longest| ask.first(batch, doc_idx, longest))
        };
        let firsts: Vec<Option<(Vec<u32>, u32)>> = self.docs.clone().into_par_iter().map(first).collect();
        self.order.resize(self.num_tokens as usize, 0);
        let start = batch.offsets()[self.docs.start];
        for (doc_idx, first) in self.docs.clone().zip(firsts) {
            let num_tokens = batch.doc_len(doc_idx) as u32;
            let Some((first, max_kept)) = first else {
                if num_tokens > 1 { &mut self.for_cpu } else { &mut self.trivial }.push(doc_idx);
                continue;
            };
            let first_token = (batch.offsets()[doc_idx] - start) as u32;
            self.order[first_token as usize..][..first.len()].copy_from_slice(&first);
            self.device_docs.push(Doc {
                first_token,
                num_tokens,
                gram_start: self.gram_len as u32,
                num_first: first.len() as u32,
                max_kept,
                doc_idx: (doc_idx - self.docs.start) as u32,
                ..Doc::default()
            });
            self.gram_len += u64::from(num_tokens) * u64::from(gram_stride(num_tokens));
        }
        self.device_docs.sort_by_key(|doc| std::cmp::Reverse(doc.num_tokens));
        for (doc_idx, &doc) in (0..).zip(&self.device_docs) {
            self.tiles.extend(gram_tiles(doc_idx, doc.num_tokens));
            if ask.kernel() == Kernel::Dominance {
                let firsts = (0..doc.num_tokens).step_by(DOMINANCE_THREADS as usize);
                self.items.extend(firsts.map(|token| [doc_idx, token]));
            } else {
                let firsts = (0..doc.num_tokens - doc.num_first).step_by(COMPACT_THREADS as usize);
                self.chunks.extend(firsts.map(|first_removed| Doc { first_removed, ..doc }));
            }
        }
    }

    /// All documents of the batch.
    pub(super) fn docs(&self) -> Range<usize> {
        self.docs.clone()
    }

    pub(super) fn device_docs(&self) -> &[Doc] {
        &self.device_docs
    }

    pub(super) fn num_device_docs(&self) -> usize {
        self.device_docs.len()
    }

    /// Tokens of the longest document that the device looks at.
    fn longest(&self) -> u32 {
        self.device_docs.first().map_or(1, |doc| doc.num_tokens)
    }

    /// Downloads after which a device that still has unfinished documents will never finish them.
    pub(super) fn most_downloads(&self) -> u64 {
        let n = u64::from(self.longest());
        // Each token kept costs a step for every 512 tokens tested and for every SELECTION_THREADS projected; a launch
        // may leave its last ones half used.
        let steps = n * (2 * n.div_ceil(512) + n.div_ceil(u64::from(SELECTION_THREADS)) + 2);
        2 * steps.div_ceil(u64::from(self.max_steps)).div_ceil(u64::from(self.num_launches)) + 1
    }

    /// Bytes of a centre: one f32 a component, padding included.
    pub(super) fn centre_bytes(&self) -> u64 {
        u64::from(self.num_chunks) * self.encoding.chunk_dim() as u64 * 4
    }

    pub(super) fn variant(&self, kernel: Kernel) -> Variant {
        Variant { kernel, encoding: self.encoding, subgroups: self.subgroups, cooperative: None, is_wide: false }
    }

    /// The tokens as the device reads them; copied only where rows need padding.
    pub(super) fn rows<'a>(&self, batch: &TokenBatch<'a>) -> Cow<'a, [u8]> {
        let bytes = batch.rows(self.docs.clone()).as_bytes();
        let row_bytes = batch.dim() * batch.dtype().size_bytes();
        let padded_bytes = row_bytes.next_multiple_of(16);
        if row_bytes == padded_bytes {
            return Cow::Borrowed(bytes);
        }
        let mut padded = vec![0; bytes.len() / row_bytes * padded_bytes];
        for (to, from) in padded.chunks_exact_mut(padded_bytes).zip(bytes.chunks_exact(row_bytes)) {
            to[..row_bytes].copy_from_slice(from);
        }
        Cow::Owned(padded)
    }

    /// Entries that are downloaded before it is known how many there are.
    pub(super) fn expected_entries(&self) -> u64 {
        u64::from(self.num_tokens) * self.expected_a_token
    }

    /// Room for the entries of all tokens.
    pub(super) fn most_entries(&self) -> u64 {
        u64::from(self.num_tokens) * u64::from(FACE_CAP)
    }

    /// What a download says. One that `is_all` is not repeated for more entries, whatever it says of their number.
    pub(super) fn decode<A: Ask>(&self, batch: &TokenBatch<'_>, parts: &[&[u8]], ask: &A, is_all: bool) -> Decoded<A> {
        let answers = Answers::new(parts, ask.kernel(), &self.order);
        if let Some(answers) = &answers {
            if answers.is_unfinished(&self.device_docs) {
                return Decoded::Unfinished;
            }
            if let Some(num_entries) = answers.missing_entries(self.most_entries()).filter(|_| !is_all) {
                return Decoded::Short(num_entries);
            }
        }
        let mut for_cpu = self.for_cpu.clone();
        let mut found = Vec::with_capacity(self.docs.len());
        let mut sort = |(doc_idx, answer): (usize, Option<A::Answer>)| match answer {
            Some(answer) => found.push((doc_idx, answer)),
            None => for_cpu.push(doc_idx),
        };
        self.trivial.iter().for_each(|&doc_idx| sort((doc_idx, ask.trivial(batch.doc_len(doc_idx)))));
        let decode = |doc: &Doc| {
            let doc_idx = self.docs.start + doc.doc_idx as usize;
            (doc_idx, answers.as_ref().and_then(|answers| ask.decode(batch, doc_idx, answers, doc)))
        };
        let decoded: Vec<(usize, Option<A::Answer>)> = self.device_docs.par_iter().map(decode).collect();
        decoded.into_iter().for_each(sort);
        Decoded::Found((found, for_cpu))
    }
}

/// The farthest-first order of every document; see [`crate::engine::Engine::select`].
pub(super) struct Select<'a> {
    pub(super) scoring: Scoring,
    pub(super) goal: Goal,
    pub(super) always_kept: Option<&'a [bool]>,
}

impl Select<'_> {
    fn flags(&self, batch: &TokenBatch<'_>, doc_idx: usize) -> Option<&[bool]> {
        let start = (batch.offsets()[doc_idx] - batch.offsets()[0]) as usize;
        self.always_kept.map(|flags| &flags[start..start + batch.doc_len(doc_idx)])
    }
}

impl Ask for Select<'_> {
    type Answer = Selection;

    fn kernel(&self) -> Kernel {
        Kernel::Selection
    }

    fn scoring(&self) -> Scoring {
        self.scoring
    }

    fn first(&self, batch: &TokenBatch<'_>, doc_idx: usize, longest: u32) -> (Vec<u32>, u32) {
        let num_tokens = batch.doc_len(doc_idx);
        let flagged = self.flags(batch, doc_idx).unwrap_or_default();
        let flags = (0..).zip(flagged).filter(|&(_, &flag)| flag);
        let mut first: Vec<u32> = flags.map(|(token_idx, _)| token_idx).collect();
        if first.is_empty() {
            first.push(longest);
        }
        let max_kept = match self.goal {
            Goal::KeepRatio(ratio) => ((ratio * num_tokens as f64).ceil() as u32).clamp(1, num_tokens as u32),
            Goal::MaxTokens(max_tokens) => max_tokens.max(1),
            Goal::Project => first.len() as u32,
            Goal::Epsilon(_) | Goal::Order | Goal::Curve(_) => num_tokens as u32,
        };
        (first, max_kept)
    }

    fn goal(&self) -> (f32, f32, bool) {
        match self.goal {
            Goal::Epsilon(epsilon) => (square(epsilon), -1.0, false),
            Goal::Curve(epsilon) => (-1.0, decode::largest_below(epsilon), false),
            Goal::Project => (-1.0, -1.0, true),
            Goal::KeepRatio(_) | Goal::MaxTokens(_) | Goal::Order => (-1.0, -1.0, false),
        }
    }

    fn trivial(&self, num_tokens: usize) -> Option<Selection> {
        Some(match num_tokens {
            0 => Selection::default(),
            _ => Selection { order: vec![0], curve: vec![0.0], ..Selection::default() },
        })
    }

    fn decode(&self, _: &TokenBatch<'_>, _: usize, answers: &Answers<'_>, doc: &Doc) -> Option<Selection> {
        answers.selection(doc, self.scoring)
    }

    fn on_cpu(&self, cpu: &CpuEngine, batch: &TokenBatch<'_>, doc_idx: usize) -> Selection {
        cpu.select_doc(batch, doc_idx, self.scoring, self.goal, self.flags(batch, doc_idx))
    }
}

/// Every token against all others; see [`crate::engine::Engine::decide`].
pub(super) struct Decide {
    pub(super) scoring: Scoring,
    pub(super) epsilon: f32,
}

impl Ask for Decide {
    type Answer = Vec<Decision>;

    fn kernel(&self) -> Kernel {
        Kernel::Dominance
    }

    fn scoring(&self) -> Scoring {
        self.scoring
    }

    fn first(&self, _: &TokenBatch<'_>, _: usize, longest: u32) -> (Vec<u32>, u32) {
        (vec![longest], 1)
    }

    fn goal(&self) -> (f32, f32, bool) {
        (square(self.epsilon), -1.0, false)
    }

    fn trivial(&self, num_tokens: usize) -> Option<Vec<Decision>> {
        (num_tokens == 0).then(Vec::new)
    }

    fn decode(
        &self,
        batch: &TokenBatch<'_>,
        doc_idx: usize,
        answers: &Answers<'_>,
        doc: &Doc,
    ) -> Option<Vec<Decision>> {
        let mut decisions = answers.decisions(doc, self.scoring);
        CpuEngine::refine_doc(batch, doc_idx, self.scoring, self.epsilon, &mut decisions);
        Some(decisions)
    }

    fn on_cpu(&self, cpu: &CpuEngine, batch: &TokenBatch<'_>, doc_idx: usize) -> Vec<Decision> {
        cpu.decide_doc(batch, doc_idx, self.scoring, self.epsilon)
    }
}

/// The square, within `f32`.
fn square(epsilon: f32) -> f32 {
    f64::from(epsilon).powi(2).min(f64::from(f32::MAX) / 4.0) as f32
}
