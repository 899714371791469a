//! Rigorous upper bounds on `‖x_i − Σ_j w_j x_j‖`: an f64 filter with a derived error bound, then exact integers.
//!
//! The definition is three lines: `r_k = x_ik − Σ_j w_j x_jk`, `s = Σ_k r_k²`, bound = the smallest `f32` above `√s`.
//! [`Document::bound_exact`] is that definition over big integers. [`Document::filter`] brackets `√s` in f64 and is
//! enough nearly always; what it cannot decide goes to the definition.
//!
//! Notation: `u = 2⁻⁵³`, `γ_n = n·u / (1 − n·u)`, hats are computed values, `A` the largest `|component|` of the
//! document, `m` the number of support tokens.

use dashu_int::{IBig, UBig};

use crate::TokenData;
use crate::simd::{Isa, Kernel, Lanes};

/// Integer weight that stands for 1.
pub const WEIGHT_ONE: u32 = 1 << 24;

/// Weights of a convex combination, one for each support token; all above 0.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    /// Integers over [`WEIGHT_ONE`].
    Fixed(&'a [u32]),
    /// Rationals with one common denominator.
    Exact {
        /// One numerator for each support token.
        numerators: &'a [UBig],
        /// Common denominator, above 0.
        denominator: &'a UBig,
    },
}

impl Weights<'_> {
    /// Number of weights.
    pub fn len(&self) -> usize {
        match self {
            Weights::Fixed(weights) => weights.len(),
            Weights::Exact { numerators, .. } => numerators.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Unit roundoff of f64.
const U: f64 = f64::EPSILON / 2.0;
/// Partial sums of the norm: a fixed number in a fixed order, so that every instruction set gives the same bits.
const LANES: usize = 16;
/// Largest `|component|` up to which f16 residuals are exact in f64.
const EXACT_F16_MAX: f32 = 16.0;

/// One term of a combination: where the token's components start, and its weight.
pub(super) type Term = (usize, f64);

/// A finite document as f32 (every element type converts without rounding), `[num_tokens, dim]`.
#[derive(Clone, Copy)]
pub(super) struct Document<'a> {
    values: &'a [f32],
    dim: usize,
    /// `A`.
    max_abs: f32,
    /// Whether every coordinate of every residual is exact in f64.
    exact_in_f64: bool,
}

/// Bits of the largest `|component|`.
struct MaxBits<'a>(&'a [f32]);

impl Kernel for MaxBits<'_> {
    type Output = u32;
    #[inline(always)]
    fn run<L: Lanes>(self) -> u32 {
        self.0.iter().fold(0, |max: u32, value| max.max(value.to_bits() & 0x7fff_ffff))
    }
}

/// Largest `|component|`, or the position of the first one that is NaN or infinite.
pub(super) fn max_abs(values: &[f32]) -> Result<f32, usize> {
    const EXPONENT: u32 = 0x7f80_0000;
    // Ordered as integers, NaN and infinity are above every finite magnitude.
    let bits = Isa::detect().run(MaxBits(values));
    if bits < EXPONENT {
        return Ok(f32::from_bits(bits));
    }
    Err(values.iter().position(|value| !value.is_finite()).unwrap_or(0))
}

impl<'a> Document<'a> {
    /// `values` are the components of `source`, finite, with largest magnitude `max_abs`.
    pub(super) fn new(source: TokenData<'_>, values: &'a [f32], dim: usize, max_abs: f32) -> Self {
        // f16: components are integers a·2⁻²⁴ with |a| ≤ 16·2²⁴ = 2²⁸, weights integers w·2⁻²⁴ with Σw ≤ 2²⁴. In
        // units of 2⁻⁴⁸ every product is an integer, and so is every partial sum of −2²⁴·a_i + Σ w_j·a_j, of
        // magnitude at most 2²⁴·2²⁸ + 2²⁴·2²⁸ = 2⁵³: f64 holds them all, so no operation rounds, in any order.
        // i8: the same with components that are integers of magnitude at most 2⁷, in units of 2⁻²⁴.
        let exact_in_f64 = match source {
            TokenData::F16(_) => max_abs <= EXACT_F16_MAX,
            TokenData::I8(_) => true,
            TokenData::Bf16(_) | TokenData::F32(_) => false,
        };
        Document { values, dim, max_abs, exact_in_f64 }
    }

    fn row(&self, token_idx: u32) -> &'a [f32] {
        let start = token_idx as usize * self.dim;
        &self.values[start..start + self.dim]
    }

    /// The smallest f32 at or above the residual norm. Support and weights have been checked; `terms` is scratch.
    pub(super) fn bound(&self, token_idx: u32, support: &[u32], weights: Weights<'_>, terms: &mut Vec<Term>) -> f32 {
        match weights {
            Weights::Fixed(fixed) => {
                if let Some(bound) = self.filter(token_idx, support, fixed, terms) {
                    return bound;
                }
                let numerators: Vec<UBig> = fixed.iter().map(|&weight| UBig::from(weight)).collect();
                self.bound_exact(token_idx, support, &numerators, &UBig::from(WEIGHT_ONE))
            }
            Weights::Exact { numerators, denominator } => self.bound_exact(token_idx, support, numerators, denominator),
        }
    }

    /// The bound, if f64 decides it.
    fn filter(&self, token_idx: u32, support: &[u32], weights: &[u32], terms: &mut Vec<Term>) -> Option<f32> {
        terms.clear();
        let to_unit = 1.0 / f64::from(WEIGHT_ONE);
        terms.extend(support.iter().zip(weights).map(|(&j, &w)| (j as usize * self.dim, f64::from(w) * to_unit)));
        let norm = Isa::detect().run(SquareSum { values: self.values, x: self.row(token_idx), terms }).sqrt();

        // The square sum: each of the d terms is rounded once and passes through at most d additions, all of
        // non-negative numbers, and nothing underflows (r̂_k is a multiple of 2⁻¹⁴⁹⁻²⁴). With one more unit for a
        // coordinate that is itself rounded once, twice as it is squared, and one for the square root:
        // |norm − ‖r̂‖| ≤ γ_{d+4}·‖r̂‖. Twice that also covers the roundings of the two lines that use it.
        let relative = 2.0 * (self.dim as f64 + 8.0) * U;
        let absolute = self.coordinate_error(weights);
        let upper = norm * (1.0 + relative) + absolute;
        let lower = norm * (1.0 - relative) - absolute;

        // Both ends round up to the same f32: then it is the smallest bound, whichever path finds it.
        let bound = round_up(upper);
        (lower >= 0.0 && round_up(lower) == bound).then_some(bound)
    }

    /// An upper bound on `‖r̂ − r‖`, the error from rounding coordinates.
    fn coordinate_error(&self, weights: &[u32]) -> f64 {
        // Products of a 24-bit weight and a 24-bit component are exact in f64. With one term at most, r̂_k is then
        // rounded once: a relative error u, which `relative` covers. Equal tokens give exactly 0.
        if self.exact_in_f64 || weights.len() <= 1 {
            return 0.0;
        }
        // The sum starts at −x_ik and has m additions: |r̂_k − r_k| ≤ γ_m·(|x_ik| + Σ w_j |x_jk|) ≤ γ_m·2A, so ‖r̂ − r‖ ≤ 2·γ_m·A·√d. Twice that, with
        // m + 1 for m, also covers the roundings of this line and of the sums that use it.
        4.0 * (weights.len() as f64 + 1.0) * U * f64::from(self.max_abs) * (self.dim as f64).sqrt()
    }

    /// The smallest f32 bound, infinite above `f32::MAX`, by the definition over integers.
    fn bound_exact(&self, token_idx: u32, support: &[u32], numerators: &[UBig], denominator: &UBig) -> f32 {
        // With components in units of 2^unit and weights over D: R_k = D·x_ik − Σ_j W_j·x_jk, S = Σ R_k², and
        // residual ≤ B = b·2^e means S·2^(2·unit) ≤ (b·D)²·2^(2e).
        let rows = || support.iter().map(|&j| self.row(j));
        let nonzero = rows().chain([self.row(token_idx)]).flatten().filter(|&&x| x != 0.0);
        let unit = nonzero.map(|&x| decode(x).1).min().unwrap_or(0);
        let scaled = |x: f32| match decode(x) {
            (0, _) => IBig::ZERO,
            (mantissa, exponent) => IBig::from(mantissa) << (exponent - unit) as usize,
        };
        let mut square_sum = UBig::ZERO;
        for (k, &x) in self.row(token_idx).iter().enumerate() {
            let mut r = scaled(x) * denominator;
            for (row, numerator) in rows().zip(numerators) {
                r -= scaled(row[k]) * numerator;
            }
            square_sum += r.sqr();
        }
        let holds = |bits: u32| {
            let (mantissa, exponent) = decode(f32::from_bits(bits));
            let bound = (denominator * UBig::from(mantissa.unsigned_abs())).sqr();
            let shift = 2 * (exponent - unit);
            if shift >= 0 { square_sum <= bound << shift as usize } else { &square_sum << (-shift) as usize <= bound }
        };
        // Non-negative floats ascend with their bits; infinity always holds.
        let (mut low, mut high) = (0, f32::INFINITY.to_bits());
        while low < high {
            let middle = low + (high - low) / 2;
            if holds(middle) { high = middle } else { low = middle + 1 }
        }
        f32::from_bits(low)
    }
}

/// `x = mantissa · 2^exponent` for finite `x`.
fn decode(x: f32) -> (i32, i32) {
    let bits = x.to_bits();
    let biased = (bits >> 23 & 0xff) as i32;
    let fraction = (bits & 0x7f_ffff) as i32;
    let (magnitude, exponent) = if biased == 0 { (fraction, -149) } else { (fraction | 1 << 23, biased - 150) };
    (if bits >> 31 == 0 { magnitude } else { -magnitude }, exponent)
}

/// Smallest f32 at or above `value`, which is 0 or more.
fn round_up(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) < value { nearest.next_up() } else { nearest }
}

/// [`square_sum`] in the widest registers there are. The plain loop is all there is to it: Rust neither reorders nor fuses
/// its operations, so that the bits are the same everywhere.
struct SquareSum<'a> {
    values: &'a [f32],
    x: &'a [f32],
    terms: &'a [Term],
}

impl Kernel for SquareSum<'_> {
    type Output = f64;
    #[inline(always)]
    fn run<L: Lanes>(self) -> f64 {
        square_sum(self.values, self.x, self.terms)
    }
}

/// `Σ_k (Σ_j w_j x_jk − x_k)²` in f64, in an order that does not depend on the instruction set.
#[inline(always)]
fn square_sum(values: &[f32], x: &[f32], terms: &[Term]) -> f64 {
    let mut lanes = [0.0; LANES];
    let (blocks, tail) = x.as_chunks::<LANES>();
    for (block_idx, block) in blocks.iter().enumerate() {
        let mut r = block.map(|x| -f64::from(x));
        for &(row, weight) in terms {
            let start = row + block_idx * LANES;
            for (r, &v) in r.iter_mut().zip(&values[start..start + LANES]) {
                *r += weight * f64::from(v);
            }
        }
        for (lane, r) in lanes.iter_mut().zip(r) {
            *lane += r * r;
        }
    }
    let tail_start = x.len() - tail.len();
    for (k, (lane, &x)) in lanes.iter_mut().zip(tail).enumerate() {
        let mut r = -f64::from(x);
        for &(row, weight) in terms {
            r += weight * f64::from(values[row + tail_start + k]);
        }
        *lane += r * r;
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}
