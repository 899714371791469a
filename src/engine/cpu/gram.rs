//! All inner products of one document: `G = X X^T` in `f32`.
//!
//! The definition is `G[i][j] = sum_k x[i][k] * x[j][k]`. The kernel computes it in register tiles of
//! `GRAM_ROWS x 2 * LANES`: a tile reads one packed panel of columns and broadcasts the rows, so that each loaded value
//! feeds many multiply-adds; only tiles that touch the upper triangle are computed, the rest is mirrored. Every entry
//! is one chain of multiply-adds over `k` in order, whatever the tile it falls in.

use crate::simd::{Kernel, Lanes};

/// [`gram`] for any instruction set.
pub(crate) struct GramKernel<'a> {
    pub(crate) tokens: &'a [f32],
    pub(crate) dim: usize,
    pub(crate) panel: &'a mut Vec<f32>,
    pub(crate) out: &'a mut Vec<f32>,
}

impl Kernel for GramKernel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        gram::<L>(self.tokens, self.dim, self.panel, self.out);
    }
}

/// Row stride of a Gram matrix of `n` tokens, in values: whole registers of every instruction set, and one cache line
/// more when columns would otherwise fall into few cache sets.
pub(crate) fn stride(n: usize) -> usize {
    let stride = n.next_multiple_of(32);
    if stride.is_multiple_of(256) { stride + 16 } else { stride }
}

/// Fills `gram` (`[n, stride(n)]`) from `tokens` (`[n, dim]`, row-major); `panel` is scratch.
///
/// Columns past `n` are zero.
#[inline(always)]
pub(crate) fn gram<L: Lanes>(tokens: &[f32], dim: usize, panel: &mut Vec<f32>, gram: &mut Vec<f32>) {
    let n = tokens.len() / dim;
    let ld = stride(n);
    gram.clear();
    gram.resize(n * ld, 0.0);
    match L::GRAM_ROWS {
        12 => panels::<L, 12>(tokens, dim, n, panel, gram),
        6 => panels::<L, 6>(tokens, dim, n, panel, gram),
        _ => panels::<L, 4>(tokens, dim, n, panel, gram),
    }
    mirror(gram, n, ld);
}

/// Tokens `first .. first + width` as columns: `panel[k * width + c] = x[first + c][k]`, zero past the last token.
#[inline(always)]
pub(crate) fn pack_panel(tokens: &[f32], dim: usize, first: usize, width: usize, panel: &mut [f32]) {
    let n = tokens.len() / dim;
    let present = width.min(n - first);
    if present < width {
        panel[..dim * width].fill(0.0);
    }
    for c in 0..present {
        let row = &tokens[(first + c) * dim..][..dim];
        for (to, from) in panel[c..].iter_mut().step_by(width).zip(row) {
            *to = *from;
        }
    }
}

#[inline(always)]
fn panels<L: Lanes, const ROWS: usize>(tokens: &[f32], dim: usize, n: usize, panel: &mut Vec<f32>, gram: &mut [f32]) {
    let ld = stride(n);
    let width = 2 * L::LANES;
    panel.resize(dim * width, 0.0);
    let mut first_col = 0;
    while first_col < n {
        pack_panel(tokens, dim, first_col, width, panel);
        let end_row = (first_col + width).min(n);
        let mut first_row = 0;
        while first_row < end_row {
            tile::<L, ROWS>(tokens, dim, first_row, panel, &mut gram[first_col..], ld);
            first_row += ROWS;
        }
        first_col += width;
    }
}

/// Rows `first_row ..` (at most `ROWS`, fewer at the end) against one panel; `out` starts at the panel's column.
#[inline(always)]
fn tile<L: Lanes, const ROWS: usize>(
    tokens: &[f32],
    dim: usize,
    first_row: usize,
    panel: &[f32],
    out: &mut [f32],
    ld: usize,
) {
    let n = tokens.len() / dim;
    // Rows past the end repeat the last one and are not stored: no second kernel for the ragged edge.
    let rows: [&[f32]; ROWS] = std::array::from_fn(|r| &tokens[(first_row + r).min(n - 1) * dim..][..dim]);
    let mut sum = [[L::splat(0.0); 2]; ROWS];
    for (k, column) in panel.chunks_exact(2 * L::LANES).enumerate().take(dim) {
        let left = L::load(column);
        let right = L::load(&column[L::LANES..]);
        for r in 0..ROWS {
            let x = L::splat(rows[r][k]);
            sum[r][0] = sum[r][0].add_product(x, left);
            sum[r][1] = sum[r][1].add_product(x, right);
        }
    }
    for (r, sum) in sum.iter().enumerate().take(n - first_row) {
        let out = &mut out[(first_row + r) * ld..];
        sum[0].store(out);
        sum[1].store(&mut out[L::LANES..]);
    }
}

/// Copies the upper triangle to the lower one, in squares so that both sides stay in cache.
#[inline(always)]
fn mirror(gram: &mut [f32], n: usize, ld: usize) {
    const SQUARE: usize = 16;
    for first_row in (0..n).step_by(SQUARE) {
        for first_col in (first_row..n).step_by(SQUARE) {
            for i in first_row..(first_row + SQUARE).min(n) {
                for j in first_col.max(i + 1)..(first_col + SQUARE).min(n) {
                    gram[j * ld + i] = gram[i * ld + j];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Isa;

    /// Entries `k / 8`, `|k| <= 8`: every sum is exact in `f32`, so all instruction sets must agree bit for bit.
    fn lattice(n: usize, dim: usize) -> Vec<f32> {
        let mut state = 0x9e37_79b9_u32 ^ (n * 1000 + dim) as u32;
        (0..n * dim)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((state >> 16) % 17) as f32 / 8.0 - 1.0
            })
            .collect()
    }

    #[test]
    fn every_instruction_set_equals_plain_loops_on_the_lattice() {
        for isa in Isa::available() {
            for dim in [1, 7, 48, 96, 128, 384] {
                for n in [0, 1, 5, 6, 7, 11, 12, 13, 15, 16, 17, 31, 32, 33, 64, 65, 97] {
                    let tokens = lattice(n, dim);
                    let mut found = Vec::new();
                    isa.run(GramKernel { tokens: &tokens, dim, panel: &mut Vec::new(), out: &mut found });
                    for i in 0..n {
                        for j in 0..n {
                            let expected: f64 =
                                (0..dim).map(|k| f64::from(tokens[i * dim + k]) * f64::from(tokens[j * dim + k])).sum();
                            let found = found[i * stride(n) + j];
                            assert_eq!(f64::from(found), expected, "{} n {n} dim {dim} ({i}, {j})", isa.name());
                        }
                    }
                }
            }
        }
    }
}
