//! The MaxSim kernel, once for all instruction sets.
//!
//! The definition is three lines:
//!
//! ```text
//! for each document row j
//!     for each query token i
//!         best[i] = max(best[i], q_i . x_j)
//! ```
//!
//! 1. Query tokens are SIMD lanes, so the maximum over document rows is an elementwise maximum and nothing is reduced
//!    across lanes. A *panel* is `W` registers of query tokens, stored component by component.
//! 2. `R` rows are multiplied at a time: `R x W` accumulators stay in registers, each broadcast document component is
//!    used `W` times and each loaded query register `R` times.
//! 3. Components travel as 32-bit *words* (one f32, two bf16, two i16 or four bytes), so one loop serves every
//!    encoding, and a word is what a broadcast reads.
//! 4. The tail of a document is split into two blocks of about equal height, because a block of one or two rows has too
//!    few independent accumulators to hide the latency of a multiply-add.
//!
//! Every similarity is one chain of multiply-adds over the components in order. It does not depend on `R`, `W`, the
//! position of a row or of a query token, so results do not depend on how the work was cut.

use super::lanes::Lanes;

/// What a kernel multiplies: document rows against one panel of query tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PanelArgs {
    /// First document row; rows of `num_words` 32-bit words, any alignment.
    pub rows: *const u8,
    /// Bytes from one row to the next.
    pub row_bytes: usize,
    /// Document rows.
    pub num_rows: usize,
    /// 32-bit words in a row and in a query token.
    pub num_words: usize,
    /// Panel `[1 + num_words, width * LANES]`: first the accumulators' start values, then the words. 64-byte aligned.
    pub panel: *const u32,
    /// Registers of query tokens in the panel: 1 or 2.
    pub width: usize,
    /// Running maximum `[width * LANES]`, f32 or i32 bits. 64-byte aligned.
    pub best: *mut u32,
    /// Token that reached the maximum `[width * LANES]`, 64-byte aligned, or null when nobody asks.
    pub matched: *mut u32,
    /// Number of the first row, for `matched`.
    pub first_token: u32,
    /// Scale of each document row `[num_rows]`; read by scaled kernels only.
    pub scales: *const f32,
    /// Every similarity `[num_rows, width * LANES]`, f32 or i32 bits, 64-byte aligned, or null when nobody asks.
    pub tile: *mut u32,
    /// Where the rows that will be needed next lie in main memory: `ahead + j * num_words * ahead_step` is wanted
    /// some time after row `j`. A hint; never dereferenced.
    pub ahead: *const u8,
    /// Bytes of main memory for each word of a row.
    pub ahead_step: usize,
    /// f16 values to widen meanwhile, any alignment; used by widening kernels only.
    pub widen_from: *const u8,
    /// Where they go as f32, 64-byte aligned.
    pub widen_to: *mut u32,
    /// How many registers of them; at most `num_words`.
    pub num_widen: usize,
}

/// Height of the next block when `left` rows remain and `max` fit in registers.
#[inline(always)]
pub(crate) fn next_block(left: usize, max: usize) -> usize {
    if left <= max {
        left
    } else if left < 2 * max {
        left.div_ceil(2)
    } else {
        max
    }
}

/// Folds all rows of `args` into its running maximum.
///
/// # Safety
/// The pointers of `args` must be valid for the shapes named there, and the CPU must have `L`'s instructions.
#[inline(always)]
pub(crate) unsafe fn panel<L: Lanes>(args: &PanelArgs) {
    // SAFETY: forwarded from the caller.
    unsafe { if args.width == 2 { rows::<L, 2>(args) } else { rows::<L, 1>(args) } }
}

/// One call of [`block`] for each block of rows.
///
/// # Safety
/// As [`panel`].
#[inline(always)]
unsafe fn rows<L: Lanes, const W: usize>(args: &PanelArgs) {
    let mut at = 0;
    while at < args.num_rows {
        let height = next_block(args.num_rows - at, L::MAX_ROWS);
        // SAFETY: rows at .. at + height exist; `L::MAX_ROWS` is at most 12, so every height has its arm.
        unsafe {
            match height {
                12 => block::<L, 12, W>(args, at),
                11 => block::<L, 11, W>(args, at),
                10 => block::<L, 10, W>(args, at),
                9 => block::<L, 9, W>(args, at),
                8 => block::<L, 8, W>(args, at),
                7 => block::<L, 7, W>(args, at),
                6 => block::<L, 6, W>(args, at),
                5 => block::<L, 5, W>(args, at),
                4 => block::<L, 4, W>(args, at),
                3 => block::<L, 3, W>(args, at),
                2 => block::<L, 2, W>(args, at),
                _ => block::<L, 1, W>(args, at),
            }
        }
        at += height;
    }
}

/// Asks for the cache line at `ptr`, which may lie outside every allocation.
///
/// The rows of a corpus are read once, by `R` broadcasts in as many places; hardware prefetchers do not keep up with
/// that from main memory (half the speed of f32 on a Zen 4).
#[inline(always)]
fn prefetch(ptr: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, and SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(ptr.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = ptr;
}

/// `R` rows against `W` registers of query tokens.
///
/// # Safety
/// As [`panel`]; rows `first .. first + R` must exist.
#[inline(always)]
unsafe fn block<L: Lanes, const R: usize, const W: usize>(args: &PanelArgs, first: usize) {
    // Heights that this instruction set never asks for compile to nothing.
    if R > L::MAX_ROWS {
        return;
    }
    // SAFETY: every access stays within the shapes of `args`; see each line.
    unsafe {
        // Accumulators, from the panel's start values.
        let stride = W * L::LANES;
        let mut words = args.panel;
        let mut acc = [[L::load(words); W]; R];
        for w in 1..W {
            let start = L::load(words.add(w * L::LANES));
            for row in &mut acc {
                row[w] = start;
            }
        }

        // Multiply: one word of every row against one word of every query token.
        let mut row_ptr = args.rows.add(first * args.row_bytes);
        let mut next_ptr = args.ahead.wrapping_add(first * args.num_words * args.ahead_step);
        // One register of the next rows is widened beside each word: conversions, loads and stores have ports of their
        // own, so they hide behind the multiply-adds.
        let num_widen = if L::WIDENS && first == 0 { args.num_widen } else { 0 };
        for word in 0..args.num_words {
            if L::WIDENS && word < num_widen {
                L::widen(args.widen_from.add(2 * word * L::LANES), args.widen_to.add(word * L::LANES));
            }
            words = words.add(stride);
            prefetch(next_ptr);
            next_ptr = next_ptr.wrapping_add(R * args.ahead_step);
            let mut q = [L::load(words); W];
            for (w, q) in q.iter_mut().enumerate().skip(1) {
                *q = L::load(words.add(w * L::LANES));
            }
            for (r, row) in acc.iter_mut().enumerate() {
                let x = L::splat(row_ptr.add(r * args.row_bytes));
                for (sum, q) in row.iter_mut().zip(q) {
                    *sum = L::mul_add(*sum, q, x);
                }
            }
            row_ptr = row_ptr.add(4);
        }

        // Similarities: scaled kernels turn sums into f32 here.
        if L::SCALED {
            for (r, row) in acc.iter_mut().enumerate() {
                let scale = *args.scales.add(first + r);
                for sum in row {
                    *sum = L::scale(*sum, scale);
                }
            }
        }

        // Similarities, for whoever asks.
        if !args.tile.is_null() {
            for (r, row) in acc.iter().enumerate() {
                for (w, similarity) in row.iter().enumerate() {
                    L::store(args.tile.add((first + r) * stride + w * L::LANES), *similarity);
                }
            }
        }

        // Fold into the running maximum; lanes that saw a NaN end as NaN.
        for w in 0..W {
            let best_ptr = args.best.add(w * L::LANES);
            let mut best = L::load(best_ptr);
            let mut nan = L::no_flags();
            if args.matched.is_null() {
                for row in &acc {
                    best = L::max(row[w], best);
                }
            } else {
                let matched_ptr = args.matched.add(w * L::LANES);
                let mut matched = L::load(matched_ptr);
                for (r, row) in acc.iter().enumerate() {
                    let token = args.first_token + (first + r) as u32;
                    matched = L::select_greater(row[w], best, token, matched);
                    best = L::max(row[w], best);
                }
                L::store(matched_ptr, matched);
            }
            for pair in acc.chunks(2) {
                nan = L::flag_nan(nan, pair[0][w], pair[pair.len() - 1][w]);
            }
            L::store(best_ptr, L::poison(best, nan));
        }
    }
}
