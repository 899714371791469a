//! Inputs from a seed: tokens like those of an encoder, so that a bench needs no files.

use rayon::prelude::*;

use crate::half::{bf16, f16};
use crate::{DType, TokenBatch, TokenData};

/// Components of every token.
pub(super) const DIM: usize = 128;

/// Documents that are made token by token; the others are turned copies of runs of their tokens.
const POOL_DOCS: usize = 32;
/// Their tokens, and the most that a document can have.
const POOL_TOKENS: usize = 1024;
/// Subjects of a document: its tokens are mixtures of them.
const NUM_TOPICS: usize = 8;

/// splitmix64.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Uniform in 0..1.
    pub(super) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Close to normal, with deviation 1: a sum of four uniform numbers.
    fn normal(&mut self) -> f32 {
        let bits = self.next();
        let sum: u64 = (0..4).map(|k| (bits >> (16 * k)) & 0xffff).sum();
        (sum as f32 / 65536.0 - 2.0) * 1.732
    }
}

/// Tokens of one document, `[POOL_TOKENS, DIM]`: mixtures of few topics and a direction common to all, with noise, of
/// norms from 0.7 to 1.
fn pool_doc(seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let topics: Vec<f32> = (0..NUM_TOPICS * DIM).map(|_| random.normal()).collect();
    let mut tokens = Vec::with_capacity(POOL_TOKENS * DIM);
    for _ in 0..POOL_TOKENS {
        let weights: [f32; NUM_TOPICS] = std::array::from_fn(|_| random.unit().powi(4));
        let first = tokens.len();
        for k in 0..DIM {
            let topic: f32 = weights.iter().enumerate().map(|(t, weight)| weight * topics[t * DIM + k]).sum();
            tokens.push(0.15 + topic + 0.1 * random.normal());
        }
        let row = &mut tokens[first..];
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        let length = 0.7 + 0.3 * random.unit();
        row.iter_mut().for_each(|x| *x *= length / norm);
    }
    tokens
}

/// Packed tokens of one type.
enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    I8(Vec<i8>),
}

/// Documents, or queries.
pub(super) struct Corpus {
    values: Values,
    offsets: Vec<u64>,
}

impl Corpus {
    /// Documents of these lengths.
    pub(super) fn new(seed: u64, lengths: &[usize], dtype: DType) -> Self {
        let pool: Vec<Vec<f32>> = (0..POOL_DOCS.min(lengths.len()) as u64)
            .into_par_iter()
            .map(|doc| pool_doc(seed ^ (doc.wrapping_mul(0x2545_f491_4f6c_dd1d))))
            .collect();
        let mut offsets = vec![0];
        offsets.extend(lengths.iter().scan(0, |end, &len| {
            *end += len as u64;
            Some(*end)
        }));
        let make = |doc_idx: usize| {
            let mut random = Random(seed.wrapping_add(doc_idx as u64));
            let len = lengths[doc_idx].min(POOL_TOKENS);
            let source = &pool[doc_idx % pool.len()];
            let first = random.below(POOL_TOKENS - len + 1);
            // The components change places and signs alike in all tokens: other tokens, the same inner products.
            let (shift, signs) = (random.below(DIM), random.next());
            let turned = |row: &[f32], k: usize| {
                let sign = if signs >> (k % 64) & 1 == 0 { 1.0 } else { -1.0 };
                sign * row[(k + shift) % DIM]
            };
            let rows = source[first * DIM..(first + len) * DIM].chunks_exact(DIM);
            rows.flat_map(|row| (0..DIM).map(move |k| turned(row, k))).collect::<Vec<f32>>()
        };
        let docs: Vec<Vec<f32>> = (0..lengths.len()).into_par_iter().map(make).collect();
        let all = docs.par_iter().flatten_iter().copied();
        let values = match dtype {
            DType::F32 => Values::F32(all.collect()),
            DType::F16 => Values::F16(all.map(f16::from_f32).collect()),
            DType::Bf16 => Values::Bf16(all.map(bf16::from_f32).collect()),
            // A scale that uses most of the range.
            DType::I8 => Values::I8(all.map(|x| (x * 300.0).round().clamp(-127.0, 127.0) as i8).collect()),
        };
        Corpus { values, offsets }
    }

    pub(super) fn batch(&self) -> TokenBatch<'_> {
        let data = match &self.values {
            Values::F32(values) => TokenData::F32(values),
            Values::F16(values) => TokenData::F16(values),
            Values::Bf16(values) => TokenData::Bf16(values),
            Values::I8(values) => TokenData::I8(values),
        };
        TokenBatch::new(data, &self.offsets, DIM).expect("offsets that were summed from lengths")
    }

    /// As the device gets them: rows of `DIM` components are whole chunks in every type.
    pub(super) fn bytes(&self) -> &[u8] {
        match &self.values {
            Values::F32(values) => bytemuck::cast_slice(values),
            Values::F16(values) => bytemuck::cast_slice(values),
            Values::Bf16(values) => bytemuck::cast_slice(values),
            Values::I8(values) => bytemuck::cast_slice(values),
        }
    }

    /// Tokens of one document in `f32`.
    pub(super) fn doc_f32(&self, doc_idx: usize) -> Vec<f32> {
        let batch = self.batch();
        let doc = batch.doc(doc_idx);
        let mut values = vec![0.0; doc.len()];
        doc.to_f32(&mut values);
        values
    }

    pub(super) fn lengths(&self) -> impl Iterator<Item = usize> {
        self.offsets.windows(2).map(|pair| (pair[1] - pair[0]) as usize)
    }

    pub(super) fn num_tokens(&self) -> usize {
        self.offsets[self.offsets.len() - 1] as usize
    }
}

/// Lengths from `least` to `most`, of about `num_tokens` tokens together.
pub(super) fn ragged(seed: u64, least: usize, most: usize, num_tokens: usize) -> Vec<usize> {
    let (mut random, mut lengths, mut sum) = (Random(seed), Vec::new(), 0);
    while sum < num_tokens {
        let len = least + random.below(most - least + 1);
        lengths.push(len);
        sum += len;
    }
    lengths
}
