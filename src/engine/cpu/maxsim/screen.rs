//! Certified screening: bytes decide which rows can hold a maximum, f32 decides among those.
//!
//! Query tokens and rows are rounded to bytes, `q = s_q a + dq` and `x = s_x b + dx`. Then
//!
//! ```text
//! q . x  =  s_q s_x (a . b)  +  q . dx  +  dq . (s_x b)
//! |q . x - s_q s_x (a . b)|  <=  |q| |dx| + |dq| |s_x b|                    (Cauchy-Schwarz, twice)
//! |fl(q . x) - q . x|        <=  gamma |q| |x|,   gamma = d u / (1 - d u)   (Higham, section 3.1)
//! ```
//!
//! so the f32 similarity of every row lies in an interval around its integer one. A row whose upper end lies below
//! another row's lower end for every query token of a panel cannot hold a maximum; the others, in order, go through
//! the exact kernel. Every row that attains the f32 maximum is among them, so the result has the same bits.
//!
//! Rounding a row costs about as much as multiplying it with a panel of bytes, so this pays for many query tokens (a
//! batch of queries, ColPali) and not for a single short query: see [`Screened::pays`].

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use super::fold::{Beside, Best, Chunk, run_panel};
use super::panels::{AlignedWords, Encoding, Panel, Panels};
use super::rows::Rows;
use super::{Arithmetic, Kernel, Operands};
use crate::{DType, TokenBatch, TokenData};

/// Fewest query lanes, rows and components for which screening is tried.
const MIN_LANES: usize = 128;
const MIN_ROWS: usize = 48;
const MIN_DIM: usize = 48;
/// Most components: the bound on rounding, and `i32 as f32` being exact, hold up to here.
const MAX_DIM: usize = 1024;
/// Share of rows for the exact kernel above which screening stops: the bytes themselves cost half of an exact pass.
const MAX_SHARE: f64 = 0.3;
/// Rows seen before that share means something.
const MIN_SEEN: usize = 4096;

/// What the interval of a similarity needs of a query token; upper bounds, inflated past their own rounding.
#[derive(Debug, Clone, Copy, Default)]
struct Token {
    /// `s`.
    scale: f32,
    /// `|x|`, and at least `|s b|`.
    norm: f32,
    /// `|x - s b|`.
    residual: f32,
}

/// Query tokens as bytes.
#[derive(Debug)]
pub(crate) struct Screen {
    arithmetic: Arithmetic,
    panels: Panels,
    /// One for each lane; the rest of the last panel is padding.
    lanes: Vec<Token>,
    /// What f32 rounding adds, per `|q| |x|`.
    rounding: f32,
    /// Rows met, and rows that the exact kernel had to see, over all panels and threads. They steer time only.
    num_seen: AtomicUsize,
    num_exact: AtomicUsize,
}

impl Screen {
    /// Whether a screen could be faster than the exact kernel, before documents are seen.
    pub(crate) fn is_worth_trying(kernel: Kernel, arithmetic: &Arithmetic, num_tokens: usize, dim: usize) -> bool {
        arithmetic.encoding == Encoding::F32
            && kernel == Kernel::Avx512
            && has_extensions()
            && bytes(kernel).encoding == Encoding::I8x4
            && num_tokens >= MIN_LANES
            && (MIN_DIM..=MAX_DIM).contains(&dim)
    }

    /// `queries` are the tokens of all lanes, `[num_lanes, dim]`; `None` when one is not finite.
    pub(crate) fn new(kernel: Kernel, queries: &[f32], dim: usize) -> Option<Self> {
        let arithmetic = bytes(kernel);
        let mut values = vec![0i8; queries.len()];
        let lanes = queries.chunks(dim).zip(values.chunks_mut(dim)).map(|(q, a)| round(q, a, |byte| byte as i8));
        let lanes: Option<Vec<Token>> = lanes.collect();
        let offsets = [0, (queries.len() / dim) as u64];
        let batch = TokenBatch::new(TokenData::I8(&values), &offsets, dim).ok()?;
        let panels = Panels::new(&batch, None, arithmetic.encoding, arithmetic.lanes);
        // gamma, and a few roundings of the integer similarity and of the interval itself.
        let rounding = (dim + 16) as f32 * f32::EPSILON;
        Some(Screen {
            arithmetic,
            panels,
            lanes: lanes?,
            rounding,
            num_seen: AtomicUsize::new(0),
            num_exact: AtomicUsize::new(0),
        })
    }
}

/// Whether the CPU has what the loops below are compiled for.
fn has_extensions() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The scaled byte arithmetic of a kernel.
fn bytes(kernel: Kernel) -> Arithmetic {
    Arithmetic::choose(kernel, Operands { queries: DType::I8, docs: DType::I8, scaled: true })
}

/// Rounds a token to bytes, which go through `to_byte` into `out`; `None` for a token that is not finite or so large
/// or small that the bounds would meet overflow or underflow.
#[inline(always)]
fn round<T>(x: &[f32], out: &mut [T], to_byte: impl Fn(u8) -> T) -> Option<Token> {
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // `largest` overlooks a NaN; the sum of squares does not.
    let square: f32 = sum(x.len(), |k| x[k] * x[k]);
    let largest = x.iter().fold(0.0f32, |largest, value| if value.abs() > largest { value.abs() } else { largest });
    if square.is_nan() || !(largest == 0.0 || (1e-9..1e9).contains(&largest)) {
        return None;
    }
    let scale = largest / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let error = |k: usize| x[k] - scale * ((x[k] * inverse + ROUND) - ROUND);
    let residual = sum(x.len(), |k| error(k) * error(k)).sqrt();
    for (to, value) in out.iter_mut().zip(x) {
        *to = to_byte((value * inverse + ROUND).to_bits() as u8);
    }
    // Relative errors of the sums are below d * u, those of the residual's terms below 2 u |x|.
    let inflate = 1.0 + 2.0 * x.len() as f32 * f32::EPSILON;
    let norm = square.sqrt() * inflate + f32::MIN_POSITIVE;
    let residual = residual * inflate + 4.0 * f32::EPSILON * norm;
    Some(Token { scale, norm: norm + residual, residual })
}

/// A sum in sixteen chains, so that the compiler can use registers.
#[inline(always)]
fn sum(len: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0.0f32; 16];
    let whole = len / 16 * 16;
    for start in (0..whole).step_by(16) {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum += term(start + i);
        }
    }
    sums.iter().sum::<f32>() + (whole..len).map(term).sum::<f32>()
}

/// A screen at work, with its scratch.
#[derive(Debug)]
pub(crate) struct Screened<'a> {
    screen: &'a Screen,
    /// Rows as bytes with an offset of 128, and what the intervals need of them.
    bytes: Vec<u8>,
    rows: Vec<Token>,
    scales: Vec<f32>,
    tile: AlignedWords,
    gathered: AlignedWords,
}

impl<'a> Screened<'a> {
    pub(crate) fn new(screen: &'a Screen) -> Self {
        Screened {
            screen,
            bytes: Vec::new(),
            rows: Vec::new(),
            scales: Vec::new(),
            tile: AlignedWords::new(0),
            gathered: AlignedWords::new(0),
        }
    }

    pub(crate) fn screen(&self) -> &'a Screen {
        self.screen
    }

    /// Whether to screen a segment: it must be long, and screening must have spared enough so far.
    pub(crate) fn pays(&self, num_rows: usize) -> bool {
        let num_seen = self.screen.num_seen.load(Relaxed);
        let num_exact = self.screen.num_exact.load(Relaxed);
        num_rows >= MIN_ROWS && (num_seen < MIN_SEEN || num_exact as f64 <= MAX_SHARE * num_seen as f64)
    }

    /// Folds f32 `rows` into `best` as `exact` on `panels` would, bit for bit. Does nothing and returns false when a
    /// row is not finite.
    pub(crate) fn fold(&mut self, exact: &Arithmetic, panels: &Panels, rows: Rows<'_>, best: &mut Best) -> bool {
        // SAFETY: `is_worth_trying` has asked for the instructions.
        if !unsafe { self.round_rows(rows) } {
            return false;
        }
        let mut screen_best = Best::new(&self.screen.arithmetic, &self.screen.panels, false);
        let screen = self.screen;
        for (&panel, &byte_panel) in panels.panels().iter().zip(screen.panels.panels()) {
            self.fill_tile(byte_panel, &mut screen_best);
            // SAFETY: as above.
            let num_exact = unsafe { self.gather(panels, panel, rows) };
            screen.num_seen.fetch_add(self.rows.len(), Relaxed);
            screen.num_exact.fetch_add(num_exact, Relaxed);
            let bytes = &bytemuck::cast_slice(self.gathered.as_slice())[..num_exact * rows.row_bytes];
            let chunk = chunk(Rows { bytes, row_bytes: rows.row_bytes }, None);
            run_panel(exact, panels, panel, &chunk, best, Beside::Nothing);
        }
        true
    }

    /// Every row as bytes.
    ///
    /// # Safety
    /// The CPU must have AVX-512 with its byte, vector length and doubleword extensions.
    #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq"))]
    unsafe fn round_rows(&mut self, rows: Rows<'_>) -> bool {
        let (num_rows, dim) = (rows.bytes.len() / rows.row_bytes, rows.row_bytes / 4);
        let byte_stride = dim.next_multiple_of(4);
        self.bytes.resize(num_rows * byte_stride, 0);
        self.rows.clear();
        self.scales.clear();
        let values: &[f32] = bytemuck::cast_slice(rows.bytes);
        for (x, bytes) in values.chunks(dim).zip(self.bytes.chunks_mut(byte_stride)) {
            let bytes = &mut bytes[..dim];
            let Some(token) = round(x, bytes, |byte| byte ^ 0x80) else { return false };
            self.rows.push(token);
            self.scales.push(token.scale);
        }
        true
    }

    /// `s_x (a . b)` of every row with every lane of a panel.
    fn fill_tile(&mut self, panel: Panel, best: &mut Best) {
        let len = self.rows.len() * self.screen.panels.panel_lanes(panel).len();
        if self.tile.as_slice().len() < len {
            self.tile = AlignedWords::new(len);
        }
        let row_bytes = self.bytes.len() / self.rows.len();
        let chunk = chunk(Rows { bytes: &self.bytes, row_bytes }, Some(&self.scales));
        let Screen { arithmetic, panels, .. } = self.screen;
        run_panel(arithmetic, panels, panel, &chunk, best, Beside::Keep(self.tile.as_mut_slice()));
    }

    /// Copies the rows that could hold a maximum of this panel, in order, and counts them.
    ///
    /// # Safety
    /// The CPU must have AVX-512 with its byte, vector length and doubleword extensions.
    #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq"))]
    unsafe fn gather(&mut self, panels: &Panels, panel: Panel, rows: Rows<'_>) -> usize {
        match panel.width {
            2 => self.gather_lanes::<32>(panels, panel, rows),
            _ => self.gather_lanes::<16>(panels, panel, rows),
        }
    }

    #[inline(always)]
    fn gather_lanes<const N: usize>(&mut self, panels: &Panels, panel: Panel, rows: Rows<'_>) -> usize {
        let range = panels.panel_lanes(panel);
        let num_words = rows.row_bytes / 4;
        if self.gathered.as_slice().len() < self.rows.len() * num_words {
            self.gathered = AlignedWords::new(self.rows.len() * num_words);
        }
        let tokens = &self.screen.lanes[range.start..range.end.min(self.screen.lanes.len())];
        let (lanes, rounding) = (Lanes::<N>::new(tokens), self.screen.rounding);
        let (tile, _) = bytemuck::cast_slice::<u32, f32>(self.tile.as_slice()).as_chunks::<N>();
        let tile = tile.iter().zip(&self.rows);
        let mut lower = [f32::NEG_INFINITY; N];
        for (similarities, x) in tile.clone() {
            lanes.raise(&mut lower, similarities, *x, rounding);
        }
        // No row reaches padding.
        lower[tokens.len()..].fill(f32::INFINITY);
        let words: &[u32] = bytemuck::cast_slice(rows.bytes);
        let mut to = self.gathered.as_mut_slice().chunks_exact_mut(num_words);
        let mut count = 0;
        for ((similarities, x), row) in tile.zip(words.chunks_exact(num_words)) {
            if lanes.reaches(&lower, similarities, *x, rounding)
                && let Some(to) = to.next()
            {
                to.copy_from_slice(row);
                count += 1;
            }
        }
        count
    }
}

/// The query tokens of a panel, by field; 0 in padding.
struct Lanes<const N: usize> {
    scale: [f32; N],
    norm: [f32; N],
    residual: [f32; N],
}

impl<const N: usize> Lanes<N> {
    fn new(tokens: &[Token]) -> Self {
        let field = |get: fn(&Token) -> f32| std::array::from_fn(|lane| tokens.get(lane).map_or(0.0, get));
        Lanes {
            scale: field(|token| token.scale),
            norm: field(|token| token.norm),
            residual: field(|token| token.residual),
        }
    }

    /// Half the width of a lane's interval around the similarity with `x`.
    #[inline(always)]
    fn width(&self, lane: usize, x: Token, rounding: f32) -> f32 {
        self.norm[lane].mul_add(rounding.mul_add(x.norm, x.residual), self.residual[lane] * x.norm)
    }

    /// Raises each lane's lower end.
    #[inline(always)]
    fn raise(&self, lower: &mut [f32; N], similarities: &[f32; N], x: Token, rounding: f32) {
        for lane in 0..N {
            let end = similarities[lane].mul_add(self.scale[lane], -self.width(lane, x, rounding));
            lower[lane] = if end > lower[lane] { end } else { lower[lane] };
        }
    }

    /// Whether an upper end is not below the lower end in some lane.
    #[inline(always)]
    fn reaches(&self, lower: &[f32; N], similarities: &[f32; N], x: Token, rounding: f32) -> bool {
        let mut any = false;
        for lane in 0..N {
            let end = similarities[lane].mul_add(self.scale[lane], self.width(lane, x, rounding));
            any |= end >= lower[lane];
        }
        any
    }
}

/// Rows without a number or a place in main memory.
fn chunk<'a>(rows: Rows<'a>, scales: Option<&'a [f32]>) -> Chunk<'a> {
    Chunk { rows, scales, first_token: 0, ahead: (rows.bytes.as_ptr(), 0) }
}
