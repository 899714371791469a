//! Any machine: arrays that the compiler turns into whatever registers there are.

use std::array::from_fn;

use super::block::{PanelArgs, panel};
use super::lanes::Lanes;

/// Aligned, so that loads and stores may assume it.
#[derive(Clone, Copy)]
#[repr(align(16))]
pub(crate) struct Words([u32; 4]);

/// Methods shared by the encodings.
macro_rules! words {
    () => {
        const LANES: usize = 4;
        // 4 x 2 accumulators fit the 16 registers of SSE2.
        const MAX_ROWS: usize = 4;
        type Register = Words;

        #[inline(always)]
        unsafe fn load(ptr: *const u32) -> Words {
            // SAFETY: the caller's pointer is valid and aligned.
            unsafe { ptr.cast::<Words>().read() }
        }
        #[inline(always)]
        unsafe fn store(ptr: *mut u32, value: Words) {
            // SAFETY: the caller's pointer is valid and aligned.
            unsafe { ptr.cast::<Words>().write(value) }
        }
        #[inline(always)]
        unsafe fn splat(ptr: *const u8) -> Words {
            // SAFETY: the caller's pointer is valid for four bytes.
            Words([unsafe { ptr.cast::<u32>().read_unaligned() }; 4])
        }
    };
}

/// Maximum of f32 lanes with the NaN rules.
macro_rules! f32_max {
    () => {
        type Flags = Words;

        #[inline(always)]
        unsafe fn max(value: Words, best: Words) -> Words {
            let greater = |i: usize| f32::from_bits(value.0[i]) > f32::from_bits(best.0[i]);
            Words(from_fn(|i| if greater(i) { value.0[i] } else { best.0[i] }))
        }
        #[inline(always)]
        unsafe fn select_greater(value: Words, best: Words, token: u32, matched: Words) -> Words {
            let greater = |i: usize| f32::from_bits(value.0[i]) > f32::from_bits(best.0[i]);
            Words(from_fn(|i| if greater(i) { token } else { matched.0[i] }))
        }
        #[inline(always)]
        fn no_flags() -> Words {
            Words([0; 4])
        }
        #[inline(always)]
        unsafe fn flag_nan(flags: Words, a: Words, b: Words) -> Words {
            let nan = |i: usize| f32::from_bits(a.0[i]).is_nan() | f32::from_bits(b.0[i]).is_nan();
            Words(from_fn(|i| flags.0[i] | if nan(i) { u32::MAX } else { 0 }))
        }
        #[inline(always)]
        unsafe fn poison(best: Words, flags: Words) -> Words {
            // All ones is a NaN.
            Words(from_fn(|i| best.0[i] | flags.0[i]))
        }
    };
}

struct PortableF32;

impl Lanes for PortableF32 {
    words!();
    f32_max!();

    #[inline(always)]
    unsafe fn mul_add(sum: Words, q: Words, x: Words) -> Words {
        // Two roundings: `f32::mul_add` is a library call where there is no such instruction.
        Words(from_fn(|i| (f32::from_bits(q.0[i]) * f32::from_bits(x.0[i]) + f32::from_bits(sum.0[i])).to_bits()))
    }
}

/// `sum + q . x` of two i16 pairs.
#[inline(always)]
fn mul_add_i16(sum: Words, q: Words, x: Words) -> Words {
    let low = |word: u32| i32::from(word as i16);
    let high = |word: u32| word as i32 >> 16;
    let dot = |q: u32, x: u32| low(q) * low(x) + high(q) * high(x);
    Words(from_fn(|i| (sum.0[i] as i32).wrapping_add(dot(q.0[i], x.0[i])) as u32))
}

struct PortableI16;

impl Lanes for PortableI16 {
    words!();
    type Flags = ();

    #[inline(always)]
    unsafe fn mul_add(sum: Words, q: Words, x: Words) -> Words {
        mul_add_i16(sum, q, x)
    }
    #[inline(always)]
    unsafe fn max(value: Words, best: Words) -> Words {
        Words(from_fn(|i| (value.0[i] as i32).max(best.0[i] as i32) as u32))
    }
    #[inline(always)]
    unsafe fn select_greater(value: Words, best: Words, token: u32, matched: Words) -> Words {
        Words(from_fn(|i| if value.0[i] as i32 > best.0[i] as i32 { token } else { matched.0[i] }))
    }
    #[inline(always)]
    fn no_flags() {}
    #[inline(always)]
    unsafe fn flag_nan((): (), _: Words, _: Words) {}
    #[inline(always)]
    unsafe fn poison(best: Words, (): ()) -> Words {
        best
    }
}

struct PortableI16Scaled;

impl Lanes for PortableI16Scaled {
    words!();
    f32_max!();
    const SCALED: bool = true;

    #[inline(always)]
    unsafe fn mul_add(sum: Words, q: Words, x: Words) -> Words {
        mul_add_i16(sum, q, x)
    }
    #[inline(always)]
    unsafe fn scale(sum: Words, scale: f32) -> Words {
        Words(sum.0.map(|sum| (sum as i32 as f32 * scale).to_bits()))
    }
}

/// f32.
///
/// # Safety
/// As [`panel`].
pub(crate) unsafe fn portable_f32(args: &PanelArgs) {
    // SAFETY: forwarded from the caller.
    unsafe { panel::<PortableF32>(args) }
}

/// Bytes widened to i16 pairs, integer result.
///
/// # Safety
/// As [`panel`].
pub(crate) unsafe fn portable_i16(args: &PanelArgs) {
    // SAFETY: forwarded from the caller.
    unsafe { panel::<PortableI16>(args) }
}

/// Bytes widened to i16 pairs, rows scaled.
///
/// # Safety
/// As [`panel`].
pub(crate) unsafe fn portable_i16_scaled(args: &PanelArgs) {
    // SAFETY: forwarded from the caller.
    unsafe { panel::<PortableI16Scaled>(args) }
}
