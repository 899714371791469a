//! One document as the fast path wants it: `f32`, of norm at most 1.

use crate::simd::{Isa, Kernel, Lanes};
use crate::{Scoring, TokenData};

/// Largest components for which the squares of norms stay within `f32`.
const IN_RANGE: std::ops::RangeInclusive<f32> = 1e-10..=1e10;

/// Tokens converted, centred for `plain` scoring and scaled by a power of two; reused from document to document.
pub(crate) struct Document {
    /// `[n, dim]`, row-major.
    pub(crate) tokens: Vec<f32>,
    pub(crate) n: usize,
    pub(crate) dim: usize,
    /// Factor that the tokens were multiplied with: a power of two, beyond the range of `f32` for denormal tokens.
    pub(crate) scale: f64,
    /// Token with the largest norm before centring; the first of equals.
    pub(crate) longest: u32,
}

impl Document {
    pub(crate) fn new() -> Self {
        Document { tokens: Vec::new(), n: 0, dim: 1, scale: 1.0, longest: 0 }
    }

    /// Takes a document of at least one finite token.
    ///
    /// Distances do not change when all tokens move together, and `plain` hulls do not contain the origin by right: the
    /// mean is taken away there, so that a direction common to all tokens costs no precision.
    #[inline(always)]
    pub(crate) fn load(&mut self, data: TokenData<'_>, dim: usize, scoring: Scoring) {
        self.dim = dim;
        self.n = data.len() / dim;
        self.tokens.resize(data.len(), 0.0);
        data.to_f32(&mut self.tokens);
        self.scale = 1.0;
        let largest = self.tokens.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        if largest != 0.0 && !IN_RANGE.contains(&largest) {
            self.multiply(power_of_two_below(1.0 / f64::from(largest)));
        }
        let (mut largest, longest) = self.largest_norm();
        self.longest = longest;
        if scoring == Scoring::Plain {
            self.centre();
            largest = self.largest_norm().0;
        }
        if largest > 0.0 && !(0.25..=1.0).contains(&largest) {
            self.multiply(power_of_two_below(1.0 / f64::from(largest).sqrt()));
        }
    }

    /// Gives back memory above `cap_bytes`.
    pub(crate) fn shrink(&mut self, cap_bytes: usize) {
        if self.tokens.capacity() * size_of::<f32>() > cap_bytes {
            self.tokens = Vec::new();
        }
    }

    fn multiply(&mut self, factor: f32) {
        self.scale *= f64::from(factor);
        for x in &mut self.tokens {
            *x *= factor;
        }
    }

    /// Largest squared norm and the first token that has it.
    #[inline(always)]
    fn largest_norm(&self) -> (f32, u32) {
        let mut best = (-1.0, 0);
        for (token_idx, row) in self.tokens.chunks_exact(self.dim).enumerate() {
            let norm = squared_norm(row);
            if norm > best.0 {
                best = (norm, token_idx as u32);
            }
        }
        best
    }

    fn centre(&mut self) {
        let mut mean = vec![0.0f64; self.dim];
        for row in self.tokens.chunks_exact(self.dim) {
            for (mean, &x) in mean.iter_mut().zip(row) {
                *mean += f64::from(x);
            }
        }
        let mean: Vec<f32> = mean.iter().map(|sum| (sum / self.n as f64) as f32).collect();
        for row in self.tokens.chunks_exact_mut(self.dim) {
            for (x, mean) in row.iter_mut().zip(&mean) {
                *x -= mean;
            }
        }
    }
}

/// The longest token, as [`Document::load`] finds it; none for documents that have to be scaled first.
pub(crate) fn survey(data: TokenData<'_>, dim: usize) -> Option<u32> {
    struct Survey<'a>(TokenData<'a>, usize);
    impl Kernel for Survey<'_> {
        type Output = Option<u32>;
        #[inline(always)]
        fn run<L: Lanes>(self) -> Option<u32> {
            survey_plain(self.0, self.1)
        }
    }
    Isa::detect().run(Survey(data, dim))
}

#[inline(always)]
fn survey_plain(data: TokenData<'_>, dim: usize) -> Option<u32> {
    /// Components that are converted at a time: few enough to stay in the first cache.
    const BLOCK: usize = 4096;
    let block_tokens = (BLOCK / dim).max(1);
    let mut block = vec![0.0; block_tokens * dim];
    let (mut component, mut longest, mut longest_idx) = (0.0f32, -1.0, 0);
    for start in (0..data.len() / dim).step_by(block_tokens) {
        let rows = data.slice(start * dim..data.len().min((start + block_tokens) * dim));
        let values = &mut block[..rows.len()];
        rows.to_f32(values);
        component = values.iter().fold(component, |largest, x| largest.max(x.abs()));
        for (token_idx, row) in (start as u32..).zip(values.chunks_exact(dim)) {
            let norm = squared_norm(row);
            if norm > longest {
                (longest, longest_idx) = (norm, token_idx);
            }
        }
    }
    IN_RANGE.contains(&component).then_some(longest_idx)
}

/// Largest power of two not above a positive value, within the normal range of `f32`.
fn power_of_two_below(value: f64) -> f32 {
    let exponent = value.log2().floor().clamp(-126.0, 127.0) as i32;
    2.0f32.powi(exponent)
}

/// Sixteen chains whatever the instruction set, summed in a fixed order.
#[inline(always)]
fn squared_norm(row: &[f32]) -> f32 {
    let (blocks, tail) = row.as_chunks::<16>();
    let mut sum = [0.0f32; 16];
    for block in blocks {
        for lane in 0..16 {
            sum[lane] += block[lane] * block[lane];
        }
    }
    for (sum, x) in sum.iter_mut().zip(tail) {
        *sum += x * x;
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            sum[lane] += sum[lane + half];
        }
    }
    sum[0]
}
