//! Inputs that several modules share: seeded, so a failure repeats.

use maxhull::DType;
use maxhull::half::f16;

/// A small generator with a fixed sequence (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..n.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Uniform in -1..1.
    pub fn signed(&mut self) -> f32 {
        ((self.next() >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    }

    /// Uniform in -1..1.
    pub fn units(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.signed()).collect()
    }

    /// `k / 8` with `|k| <= 8`: every sum of products is exact in f32, in any order. For i8 the integers `k`.
    pub fn lattice(&mut self, dtype: DType, len: usize) -> Vec<f32> {
        let step = if dtype == DType::I8 { 1.0 } else { 0.125 };
        (0..len).map(|_| (self.below(17) as f32 - 8.0) * step).collect()
    }

    /// Close to normal.
    pub fn normal(&mut self) -> f32 {
        (0..6).map(|_| self.signed()).sum::<f32>() * 0.7
    }
}

/// Tokens like those of an encoder: a few topics a document, a common direction, norms from short to 1. `[n, dim]`.
pub fn encoder_like(random: &mut Random, n: usize, dim: usize) -> Vec<f32> {
    let num_topics = 4;
    let topics: Vec<f32> = (0..num_topics * dim).map(|_| random.normal()).collect();
    let mut tokens = Vec::with_capacity(n * dim);
    for _ in 0..n {
        let weights: Vec<f32> = (0..num_topics).map(|_| random.signed().abs().powi(2)).collect();
        let row: Vec<f32> = (0..dim)
            .map(|k| {
                let topic: f32 = (0..num_topics).map(|t| weights[t] * topics[t * dim + k]).sum();
                0.4 + topic + 0.35 * random.normal()
            })
            .collect();
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-6);
        let length = 0.3 + 0.7 * random.signed().abs();
        tokens.extend(row.iter().map(|x| x / norm * length));
    }
    tokens
}

pub fn to_f16(values: &[f32]) -> Vec<f16> {
    values.iter().map(|&x| f16::from_f32(x)).collect()
}

/// Offsets of documents with these lengths, starting at `first`.
pub fn offsets(first: u64, lengths: &[usize]) -> Vec<u64> {
    let mut offsets = vec![first];
    for &len in lengths {
        offsets.push(offsets[offsets.len() - 1] + len as u64);
    }
    offsets
}
