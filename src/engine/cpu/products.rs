//! Where inner products come from: a Gram matrix while it fits, the tokens themselves beyond that.
//!
//! Tokens stand in *positions* `0..n`; keeping a token swaps it to the end of the kept prefix, so that the candidates of
//! every projection are positions `0..num_kept` and lie side by side in memory.

use super::face::ORIGIN;
use super::gram::{gram, stride};
use crate::simd::Lanes;

/// Inner products of one document's tokens, by position.
pub(crate) trait Products {
    /// `x_a . x_b`
    fn entry(&self, a: usize, b: usize) -> f32;

    /// `g[j] = x_j . (x_i - sum_s weights[s] x_support[s])` for positions `j` in `from..to`; `g` is at least a register
    /// longer than `to`, and `from` is rounded down to a whole register.
    fn gradient<L: Lanes>(
        &mut self,
        i: usize,
        support: &[u32],
        weights: &[f32],
        range: std::ops::Range<usize>,
        g: &mut [f32],
    );

    /// Exchanges positions `a <= b`.
    fn swap(&mut self, a: usize, b: usize);
}

/// The whole Gram matrix, permuted in place.
pub(crate) struct GramProducts {
    gram: Vec<f32>,
    panel: Vec<f32>,
    n: usize,
    ld: usize,
}

impl GramProducts {
    pub(crate) fn new() -> Self {
        GramProducts { gram: Vec::new(), panel: Vec::new(), n: 0, ld: 0 }
    }

    /// Bytes of the matrix of `n` tokens.
    pub(crate) fn size_bytes(n: usize) -> usize {
        n.saturating_mul(stride(n)).saturating_mul(size_of::<f32>())
    }

    /// Computes the matrix of `tokens` (`[n, dim]`); positions are token indices again.
    #[inline(always)]
    pub(crate) fn fill<L: Lanes>(&mut self, tokens: &[f32], dim: usize) {
        self.n = tokens.len() / dim;
        self.ld = stride(self.n);
        gram::<L>(tokens, dim, &mut self.panel, &mut self.gram);
    }

    /// Gives back memory above `cap_bytes`, so that one long document does not stay allocated.
    pub(crate) fn shrink(&mut self, cap_bytes: usize) {
        if self.gram.capacity() * size_of::<f32>() > cap_bytes {
            self.gram = Vec::new();
        }
    }
}

impl Products for GramProducts {
    #[inline(always)]
    fn entry(&self, a: usize, b: usize) -> f32 {
        self.gram[a * self.ld + b]
    }

    #[inline(always)]
    fn gradient<L: Lanes>(
        &mut self,
        i: usize,
        support: &[u32],
        weights: &[f32],
        range: std::ops::Range<usize>,
        g: &mut [f32],
    ) {
        // Sums stay in registers over the whole support, six of them so that none waits for itself.
        let mut j = range.start / L::LANES * L::LANES;
        while j < range.end {
            let blocks = (range.end - j).div_ceil(L::LANES);
            match blocks {
                1 => self.gradient_block::<L, 1>(i, support, weights, j, g),
                2 => self.gradient_block::<L, 2>(i, support, weights, j, g),
                3 => self.gradient_block::<L, 3>(i, support, weights, j, g),
                4 => self.gradient_block::<L, 4>(i, support, weights, j, g),
                5 => self.gradient_block::<L, 5>(i, support, weights, j, g),
                _ => self.gradient_block::<L, 6>(i, support, weights, j, g),
            }
            j += blocks.min(6) * L::LANES;
        }
    }

    #[inline(always)]
    fn swap(&mut self, a: usize, b: usize) {
        if a == b {
            return;
        }
        let (head, tail) = self.gram.split_at_mut(b * self.ld);
        head[a * self.ld..][..self.n].swap_with_slice(&mut tail[..self.n]);
        for row in self.gram.chunks_exact_mut(self.ld) {
            row.swap(a, b);
        }
    }
}

impl GramProducts {
    #[inline(always)]
    fn gradient_block<L: Lanes, const BLOCKS: usize>(
        &self,
        i: usize,
        support: &[u32],
        weights: &[f32],
        j: usize,
        g: &mut [f32],
    ) {
        let width = BLOCKS * L::LANES;
        let own = &self.gram[i * self.ld + j..][..width];
        let mut sum: [L; BLOCKS] = std::array::from_fn(|block| L::load(&own[block * L::LANES..]));
        for (&s, &weight) in support.iter().zip(weights) {
            let row = &self.gram[s as usize * self.ld + j..][..width];
            let weight = L::splat(weight);
            for block in 0..BLOCKS {
                sum[block] = sum[block].sub_product(weight, L::load(&row[block * L::LANES..]));
            }
        }
        let g = &mut g[j..j + width];
        for (block, sum) in sum.iter().enumerate() {
            sum.store(&mut g[block * L::LANES..]);
        }
    }
}

/// No matrix: inner products are computed from the tokens when they are needed. Memory is two copies of the document.
pub(crate) struct StreamedProducts<'a> {
    tokens: &'a [f32],
    dim: usize,
    /// Token at each position.
    token_at: Vec<u32>,
    /// Kept positions in panels of `PANEL` columns: `panels[(p * dim + k) * PANEL + c]` is component `k` of position
    /// `p * PANEL + c`.
    panels: Vec<f32>,
    residual: Vec<f32>,
}

const PANEL: usize = 32;

impl<'a> StreamedProducts<'a> {
    /// `tokens` is `[n, dim]`; with `all_candidates` every position can be asked for, otherwise only kept ones.
    pub(crate) fn new(tokens: &'a [f32], dim: usize, all_candidates: bool) -> Self {
        let n = tokens.len() / dim;
        let mut products = StreamedProducts {
            tokens,
            dim,
            token_at: (0..n as u32).collect(),
            panels: Vec::new(),
            residual: vec![0.0; dim],
        };
        if all_candidates {
            for position in 0..n {
                products.place(position);
            }
        }
        products
    }

    fn row(&self, position: usize) -> &'a [f32] {
        &self.tokens[self.token_at[position] as usize * self.dim..][..self.dim]
    }

    /// Writes a position into its panel.
    fn place(&mut self, position: usize) {
        let (panel, column) = (position / PANEL, position % PANEL);
        let start = panel * PANEL * self.dim;
        if self.panels.len() < start + PANEL * self.dim {
            self.panels.resize(start + PANEL * self.dim, 0.0);
        }
        let row = self.row(position);
        for (to, from) in self.panels[start + column..].iter_mut().step_by(PANEL).zip(row) {
            *to = *from;
        }
    }
}

impl Products for StreamedProducts<'_> {
    #[inline(always)]
    fn entry(&self, a: usize, b: usize) -> f32 {
        // Eight interleaved chains: fixed, so that the bits do not depend on the instruction set.
        let (a, b) = (self.row(a).chunks(8), self.row(b).chunks(8));
        let mut sum = [0.0f32; 8];
        for (a, b) in a.zip(b) {
            for (lane, (a, b)) in a.iter().zip(b).enumerate() {
                sum[lane] += a * b;
            }
        }
        ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]))
    }

    #[inline(always)]
    fn gradient<L: Lanes>(
        &mut self,
        i: usize,
        support: &[u32],
        weights: &[f32],
        range: std::ops::Range<usize>,
        g: &mut [f32],
    ) {
        let row = self.row(i);
        self.residual.copy_from_slice(row);
        for (&s, &weight) in support.iter().zip(weights) {
            debug_assert_ne!(s, ORIGIN);
            let row = self.row(s as usize);
            for (to, from) in self.residual.iter_mut().zip(row) {
                *to -= weight * from;
            }
        }
        for panel in range.start / PANEL..range.end.div_ceil(PANEL) {
            let columns = &self.panels[panel * PANEL * self.dim..][..PANEL * self.dim];
            let blocks = PANEL / L::LANES;
            let mut sum = [L::splat(0.0); PANEL / 4];
            for (column, &r) in columns.chunks_exact(PANEL).zip(&self.residual) {
                let r = L::splat(r);
                for (block, sum) in sum.iter_mut().enumerate().take(blocks) {
                    *sum = sum.add_product(r, L::load(&column[block * L::LANES..]));
                }
            }
            for (block, sum) in sum.iter().enumerate().take(blocks) {
                sum.store(&mut g[panel * PANEL + block * L::LANES..]);
            }
        }
    }

    #[inline(always)]
    fn swap(&mut self, a: usize, b: usize) {
        self.token_at.swap(a, b);
        self.place(a);
    }
}
