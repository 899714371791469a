//! The maximum over a document's tokens, for all query tokens at once.

use half::f16;
use rayon::prelude::*;

use super::Arithmetic;
use super::block::{PanelArgs, next_block};
use super::panels::{AlignedWords, Panel, Panels};
use super::rows::{RowLoader, Rows, Turns};
use super::schedule::{SEGMENT_TOKENS, segments};
use super::screen::{Screen, Screened};
use crate::TokenData;

/// The value of [`Best::matched`] where no token was seen.
pub(crate) const NO_TOKEN: u32 = u32::MAX;

/// Blocks of rows that are brought into scratch at once: small enough to stay in the first-level cache.
const SCRATCH_BLOCKS: usize = 2;
/// Blocks of rows that meet one panel before the next: they are re-read for each panel.
const SHARED_BLOCKS: usize = 4;

/// Running maximum of every lane, and the token that reached it.
#[derive(Debug)]
pub(crate) struct Best {
    integer: bool,
    values: AlignedWords,
    matched: Option<AlignedWords>,
}

impl Best {
    /// Nothing seen. With `with_matches` the winning tokens are recorded.
    pub(crate) fn new(arithmetic: &Arithmetic, panels: &Panels, with_matches: bool) -> Self {
        let mut best = Best {
            integer: arithmetic.integer,
            values: AlignedWords::new(panels.num_lanes()),
            matched: with_matches.then(|| AlignedWords::new(panels.num_lanes())),
        };
        best.clear();
        best
    }

    /// Back to nothing seen.
    pub(crate) fn clear(&mut self) {
        let least = if self.integer { i32::MIN as u32 } else { f32::NEG_INFINITY.to_bits() };
        self.values.as_mut_slice().fill(least);
        if let Some(matched) = &mut self.matched {
            matched.as_mut_slice().fill(NO_TOKEN);
        }
    }

    /// Maximum of a lane; an i32 is exact in f64.
    pub(crate) fn value(&self, lane: usize) -> f64 {
        let word = self.values.as_slice()[lane];
        if self.integer { f64::from(word as i32) } else { f64::from(f32::from_bits(word)) }
    }

    /// Sum of `term(i, maximum)` over the lanes in `range`, `i` counted from its start, in a fixed order.
    pub(crate) fn sum(&self, range: std::ops::Range<usize>, term: impl Fn(usize, f64) -> f64) -> f64 {
        let words = &self.values.as_slice()[range];
        if self.integer {
            interleaved_sum(words, |i, word| term(i, f64::from(word as i32)))
        } else {
            interleaved_sum(words, |i, word| term(i, f64::from(f32::from_bits(word))))
        }
    }

    /// Token that reached a lane's maximum first, or [`NO_TOKEN`].
    pub(crate) fn matched(&self, lane: usize) -> u32 {
        self.matched.as_ref().map_or(NO_TOKEN, |matched| matched.as_slice()[lane])
    }

    /// Folds in the maxima of later tokens of the same document.
    pub(crate) fn merge(&mut self, later: &Best) {
        for lane in 0..self.values.as_slice().len() {
            let (ours, theirs) = (self.value(lane), later.value(lane));
            if theirs > ours || (theirs.is_nan() && !ours.is_nan()) {
                self.values.as_mut_slice()[lane] = later.values.as_slice()[lane];
                if let Some(matched) = &mut self.matched {
                    matched.as_mut_slice()[lane] = later.matched(lane);
                }
            }
        }
    }
}

/// Sum in four chains, so that it costs a quarter of the latency of one.
#[inline(always)]
fn interleaved_sum(words: &[u32], term: impl Fn(usize, u32) -> f64) -> f64 {
    let mut sums = [0.0f64; 4];
    for (i, &word) in words.iter().enumerate() {
        sums[i % 4] += term(i, word);
    }
    (sums[0] + sums[1]) + (sums[2] + sums[3])
}

/// Part of a document: consecutive tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment<'a> {
    /// `[num_tokens, dim]`.
    pub data: TokenData<'a>,
    /// One scale for each token, or `None`.
    pub scales: Option<&'a [f32]>,
    /// Number of the first token in its document.
    pub first_token: u32,
}

impl<'a> Segment<'a> {
    /// Tokens `range` of a segment of tokens of `dim` components.
    fn slice(&self, range: std::ops::Range<usize>, dim: usize) -> Segment<'a> {
        Segment {
            data: self.data.slice(range.start * dim..range.end * dim),
            scales: self.scales.map(|scales| &scales[range.clone()]),
            first_token: self.first_token + range.start as u32,
        }
    }
}

/// Runs a kernel over segments; one for each task, as it owns scratch.
#[derive(Debug)]
pub(crate) struct Folder<'a> {
    arithmetic: Arithmetic,
    panels: &'a Panels,
    dim: usize,
    loader: RowLoader,
    turns: Turns,
    screened: Option<Screened<'a>>,
}

impl<'a> Folder<'a> {
    /// `screen`, if given, was made for the same query tokens; it changes the time and not a bit.
    pub(crate) fn new(arithmetic: Arithmetic, panels: &'a Panels, screen: Option<&'a Screen>, dim: usize) -> Self {
        // SAFETY: `Arithmetic::choose` has checked that the CPU runs the kernel.
        let (loader, turns) =
            unsafe { (RowLoader::new(arithmetic.encoding, dim, arithmetic.convert), Turns::new(arithmetic.convert)) };
        Folder { arithmetic, panels, dim, loader, turns, screened: screen.map(Screened::new) }
    }

    /// Sets `best` to the maxima over the whole document `doc`, on several threads when it is long.
    pub(crate) fn fold_doc(&mut self, doc: Segment<'_>, best: &mut Best) {
        best.clear();
        let num_tokens = doc.data.len() / self.dim;
        if num_tokens <= SEGMENT_TOKENS {
            return self.fold(doc, best);
        }
        let ranges: Vec<_> = segments(num_tokens).collect();
        let parts: Vec<Best> =
            ranges.into_par_iter().map(|range| self.part(doc.slice(range, self.dim), best)).collect();
        parts.iter().for_each(|part| best.merge(part));
    }

    /// Maxima over a segment, by a folder of its own; `like` says whether tokens are recorded.
    fn part(&self, segment: Segment<'_>, like: &Best) -> Best {
        let mut part = Best::new(&self.arithmetic, self.panels, like.matched.is_some());
        Folder::new(self.arithmetic, self.panels, self.screened.as_ref().map(Screened::screen), self.dim)
            .fold(segment, &mut part);
        part
    }

    /// Folds every token of `segment` into `best`.
    fn fold(&mut self, segment: Segment<'_>, best: &mut Best) {
        let num_rows = segment.data.len() / self.dim;
        if let Some(screened) = &mut self.screened
            && best.matched.is_none()
            && screened.pays(num_rows)
        {
            let rows = self.loader.load(segment.data, segment.scales);
            if screened.fold(&self.arithmetic, self.panels, rows, best) {
                return;
            }
        }
        if let (Some(_), TokenData::F16(values), [panel]) =
            (self.arithmetic.run_widening, segment.data, self.panels.panels())
        {
            return self.fold_widening(values, *panel, segment.first_token, best);
        }
        let chunk_blocks = match (self.loader.is_direct(segment.data), self.panels.panels().len()) {
            (true, 0 | 1) => usize::MAX,
            (true, _) => SHARED_BLOCKS,
            (false, _) => SCRATCH_BLOCKS,
        };
        let mut at = 0;
        while at < num_rows {
            let len = chunk_len(num_rows - at, self.arithmetic.max_rows, chunk_blocks);
            self.fold_chunk(segment, at..at + len, best);
            at += len;
        }
    }

    /// Brings rows `range` of the segment into the kernel's encoding and runs every panel over them.
    fn fold_chunk(&mut self, segment: Segment<'_>, range: std::ops::Range<usize>, best: &mut Best) {
        let Segment { data, scales, first_token } = segment.slice(range, self.dim);
        let ahead = self.ahead(data);
        let rows = self.loader.load(data, scales);
        let chunk = Chunk { rows, scales, first_token, ahead };
        run_panels(&self.arithmetic, self.panels, &chunk, best);
    }

    /// Folds f16 rows into one panel, block by block, each widened while the one before is multiplied. With more panels
    /// the conversion is shared by all of them, and larger chunks count more.
    fn fold_widening(&mut self, values: &[f16], panel: Panel, first_token: u32, best: &mut Best) {
        let Folder { arithmetic, panels, dim, ref mut turns, .. } = *self;
        let rows = |range: std::ops::Range<usize>| &values[range.start * dim..range.end * dim];
        let (num_rows, max_rows) = (values.len() / dim, arithmetic.max_rows);
        let (mut at, mut end) = (0, next_block(num_rows, max_rows));
        turns.start(rows(at..end), max_rows * dim);
        while at < end {
            let next = rows(end..end + next_block(num_rows - end, max_rows));
            let (bytes, to) = turns.split((end - at) * dim);
            let chunk = Chunk {
                rows: Rows { bytes, row_bytes: 4 * dim },
                scales: None,
                first_token: first_token + at as u32,
                ahead: (next.as_ptr_range().end.cast(), size_of::<f16>()),
            };
            let num_done = next.len() / arithmetic.lanes * arithmetic.lanes;
            run_panel(&arithmetic, panels, panel, &chunk, best, Beside::Widen(&next[..num_done], to));
            turns.swap(next, num_done);
            (at, end) = (end, end + next.len() / dim);
        }
    }

    /// Where the bytes after these rows lie, for the prefetch: one block further when rows are read in place, else
    /// the next chunk.
    fn ahead(&self, data: TokenData<'_>) -> (*const u8, usize) {
        let bytes = data.as_bytes();
        let row_bytes = self.dim * data.dtype().size_bytes();
        let distance = if self.loader.is_direct(data) { self.arithmetic.max_rows * row_bytes } else { bytes.len() };
        (bytes.as_ptr().wrapping_add(distance), row_bytes / self.panels.num_words().max(1))
    }
}

/// Rows that all panels meet before the next rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk<'a> {
    pub rows: Rows<'a>,
    pub scales: Option<&'a [f32]>,
    pub first_token: u32,
    pub ahead: (*const u8, usize),
}

/// Rows of the next chunk of at most `blocks` blocks, cut where [`next_block`] cuts.
fn chunk_len(left: usize, max_rows: usize, blocks: usize) -> usize {
    if left <= max_rows.saturating_mul(blocks) {
        return left;
    }
    let mut len = 0;
    for _ in 0..blocks {
        len += next_block(left - len, max_rows);
    }
    len
}

/// Every panel against one chunk.
fn run_panels(arithmetic: &Arithmetic, panels: &Panels, chunk: &Chunk<'_>, best: &mut Best) {
    for &panel in panels.panels() {
        run_panel(arithmetic, panels, panel, chunk, best, Beside::Nothing);
    }
}

/// What a kernel does beside its maxima.
#[derive(Debug)]
pub(super) enum Beside<'a> {
    Nothing,
    /// Keeps every similarity, `[num_rows, lanes of the panel]`.
    Keep(&'a mut [u32]),
    /// Widens a whole number of registers, at most one for each word of a row, to f32. Rows must be f32.
    Widen(&'a [f16], &'a mut [u32]),
}

/// One panel against one chunk.
pub(super) fn run_panel(
    arithmetic: &Arithmetic,
    panels: &Panels,
    panel: Panel,
    chunk: &Chunk<'_>,
    best: &mut Best,
    beside: Beside<'_>,
) {
    let num_rows = chunk.rows.bytes.len() / chunk.rows.row_bytes;
    let lanes = panels.panel_lanes(panel);
    assert_eq!(chunk.rows.row_bytes, 4 * panels.num_words(), "rows and panels in the same encoding");
    assert!(chunk.scales.is_none_or(|scales| scales.len() == num_rows), "one scale for each row");
    assert!(chunk.scales.is_some() || !arithmetic.scaled, "scaled kernels read scales");
    let (mut run, mut tile, mut widen) =
        (arithmetic.run, std::ptr::null_mut(), (std::ptr::null(), std::ptr::null_mut(), 0));
    match beside {
        Beside::Nothing => {}
        Beside::Keep(values) => {
            assert!(values.len() >= num_rows * lanes.len(), "a place for each similarity");
            tile = values.as_mut_ptr();
        }
        Beside::Widen(from, to) => {
            assert!(from.len() <= to.len() && from.len() <= arithmetic.lanes * panels.num_words(), "a turn for each");
            run = arithmetic.run_widening.expect("only kernels that widen are asked to");
            widen = (from.as_ptr().cast(), to.as_mut_ptr(), from.len() / arithmetic.lanes);
        }
    }
    let args = PanelArgs {
        rows: chunk.rows.bytes.as_ptr(),
        row_bytes: chunk.rows.row_bytes,
        num_rows,
        num_words: panels.num_words(),
        panel: panels.panel_words(panel).as_ptr(),
        width: panel.width,
        best: best.values.as_mut_slice()[lanes.clone()].as_mut_ptr(),
        matched: match &mut best.matched {
            Some(matched) => matched.as_mut_slice()[lanes].as_mut_ptr(),
            None => std::ptr::null_mut(),
        },
        first_token: chunk.first_token,
        scales: chunk.scales.map_or(std::ptr::null(), <[f32]>::as_ptr),
        tile,
        ahead: chunk.ahead.0,
        ahead_step: chunk.ahead.1,
        widen_from: widen.0,
        widen_to: widen.1,
        num_widen: widen.2,
    };
    // SAFETY: the slices above have the shapes that `PanelArgs` names; panels, lanes, tiles and wide rows (of `AlignedWords`)
    // start at multiples of a register from a 64-byte boundary; `Arithmetic::choose` has checked the instructions.
    unsafe { run(&args) }
}
