//! Query tokens in SIMD lanes.

use crate::{TokenBatch, TokenData};

/// How components travel in 32-bit words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// One f32.
    F32,
    /// Two bf16, the first in the low half.
    Bf16x2,
    /// Two bytes widened to i16, the first in the low half.
    I16x2,
    /// Four bytes, the first lowest. Document bytes carry an offset of 128, as `vpdpbusd` multiplies unsigned by
    /// signed; `q . (x + 128) - 128 * sum(q) = q . x`, and the second term is where the accumulators start.
    I8x4,
}

impl Encoding {
    /// Components in a word.
    pub(crate) fn components(self) -> usize {
        match self {
            Encoding::F32 => 1,
            Encoding::Bf16x2 | Encoding::I16x2 => 2,
            Encoding::I8x4 => 4,
        }
    }

    /// Words of a token of `dim` components.
    pub(crate) fn num_words(self, dim: usize) -> usize {
        dim.div_ceil(self.components())
    }
}

/// Words whose first element lies on a 64-byte boundary.
#[derive(Debug)]
pub(crate) struct AlignedWords {
    words: Vec<u32>,
    start: usize,
    len: usize,
}

impl AlignedWords {
    pub(crate) fn new(len: usize) -> Self {
        const LINE: usize = 64 / 4;
        let words = vec![0u32; len + LINE - 1];
        let start = words.as_ptr().align_offset(64);
        AlignedWords { words, start, len }
    }

    pub(crate) fn as_slice(&self) -> &[u32] {
        &self.words[self.start..self.start + self.len]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u32] {
        &mut self.words[self.start..self.start + self.len]
    }
}

/// One panel: `width` registers of query tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Panel {
    /// First of its words.
    pub start: usize,
    /// First of its lanes.
    pub first_lane: usize,
    /// Registers: 2, or 1 for the last panel when that is enough.
    pub width: usize,
}

/// The tokens of one or many queries, one lane each in order, without gaps between queries.
#[derive(Debug)]
pub(crate) struct Panels {
    /// Each panel `[1 + num_words, width * lanes]`: start values, then words.
    words: AlignedWords,
    panels: Vec<Panel>,
    /// First lane of each query, and one past the last.
    query_lanes: Vec<usize>,
    /// Lanes with padding.
    num_lanes: usize,
    num_words: usize,
    register_lanes: usize,
}

impl Panels {
    /// Packs all queries of `queries` for registers of `register_lanes` lanes. With `scales` (one for each token),
    /// [`Encoding::F32`] holds scaled components; integer encodings leave the scales to the caller.
    pub(crate) fn new(
        queries: &TokenBatch<'_>,
        scales: Option<&[f32]>,
        encoding: Encoding,
        register_lanes: usize,
    ) -> Self {
        let (num_tokens, dim) = (queries.num_tokens(), queries.dim());
        let num_words = encoding.num_words(dim);
        let num_registers = num_tokens.div_ceil(register_lanes);
        let panels = (0..num_registers)
            .step_by(2)
            .map(|register| Panel {
                start: register * register_lanes * (1 + num_words),
                first_lane: register * register_lanes,
                width: (num_registers - register).min(2),
            })
            .collect();
        let mut packed = Panels {
            words: AlignedWords::new(num_registers * register_lanes * (1 + num_words)),
            panels,
            query_lanes: lanes_of(queries),
            num_lanes: num_registers * register_lanes,
            num_words,
            register_lanes,
        };
        let mut token = vec![0u32; 1 + num_words];
        for query_idx in 0..queries.num_docs() {
            let query = queries.doc(query_idx);
            for lane in packed.query_lanes[query_idx]..packed.query_lanes[query_idx + 1] {
                let at = (lane - packed.query_lanes[query_idx]) * dim;
                encode_token(query.slice(at..at + dim), scales.map(|scales| scales[lane]), encoding, &mut token);
                packed.set_lane(lane, &token);
            }
        }
        packed
    }

    /// Writes one token into its lane.
    fn set_lane(&mut self, lane: usize, token: &[u32]) {
        let panel = self.panels[lane / (2 * self.register_lanes)];
        let stride = panel.width * self.register_lanes;
        let words = &mut self.words.as_mut_slice()[panel.start + lane - panel.first_lane..];
        for (to, &word) in words.iter_mut().step_by(stride).zip(token) {
            *to = word;
        }
    }

    pub(crate) fn panels(&self) -> &[Panel] {
        &self.panels
    }

    /// Start values and words of a panel.
    pub(crate) fn panel_words(&self, panel: Panel) -> &[u32] {
        let len = panel.width * self.register_lanes * (1 + self.num_words);
        &self.words.as_slice()[panel.start..panel.start + len]
    }

    /// Lanes of a panel.
    pub(crate) fn panel_lanes(&self, panel: Panel) -> std::ops::Range<usize> {
        panel.first_lane..panel.first_lane + panel.width * self.register_lanes
    }

    pub(crate) fn num_queries(&self) -> usize {
        self.query_lanes.len() - 1
    }

    /// Lanes of one query.
    pub(crate) fn query(&self, query_idx: usize) -> std::ops::Range<usize> {
        self.query_lanes[query_idx]..self.query_lanes[query_idx + 1]
    }

    /// Lanes of all panels, with padding.
    pub(crate) fn num_lanes(&self) -> usize {
        self.num_lanes
    }

    /// Words of a token.
    pub(crate) fn num_words(&self) -> usize {
        self.num_words
    }
}

/// Offsets of the batch, counted from 0.
fn lanes_of(queries: &TokenBatch<'_>) -> Vec<usize> {
    let first = queries.offsets()[0];
    queries.offsets().iter().map(|offset| (offset - first) as usize).collect()
}

/// Start value and words of one query token into `out` (`[1 + num_words]`).
fn encode_token(token: TokenData<'_>, scale: Option<f32>, encoding: Encoding, out: &mut [u32]) {
    out.fill(0);
    let (start, words) = out.split_at_mut(1);
    let (start, words) = (&mut start[0], words);
    match (encoding, token) {
        (Encoding::F32, _) => {
            let values = bytemuck::cast_slice_mut::<u32, f32>(words);
            token.to_f32(values);
            for value in values {
                *value *= scale.unwrap_or(1.0);
            }
        }
        (Encoding::Bf16x2, TokenData::Bf16(values)) => pack_words(words, values, 16, |value| value.to_bits().into()),
        (Encoding::I16x2, TokenData::I8(values)) => {
            pack_words(words, values, 16, |value| u32::from(i16::from(value) as u16));
        }
        (Encoding::I8x4, TokenData::I8(values)) => {
            pack_words(words, values, 8, |value| u32::from(value as u8));
            let sum = values.iter().fold(0i32, |sum, &value| sum.wrapping_add(value.into()));
            *start = sum.wrapping_mul(-128) as u32;
        }
        (Encoding::Bf16x2 | Encoding::I16x2 | Encoding::I8x4, _) => {
            unreachable!("`Arithmetic::choose` pairs packed encodings with their own element type")
        }
    }
}

/// Packs `32 / bits` values into each word, the first lowest.
fn pack_words<T: Copy>(words: &mut [u32], values: &[T], bits: usize, to_bits: impl Fn(T) -> u32) {
    for (word, values) in words.iter_mut().zip(values.chunks(32 / bits)) {
        *word = values.iter().enumerate().fold(0, |word, (i, &value)| word | to_bits(value) << (i * bits));
    }
}
