//! NEON, part of every 64-bit Arm. Bytes take the portable i16 kernel there: `sdot` is not in stable Rust.

use std::arch::aarch64::*;

use super::block::{PanelArgs, panel};
use super::lanes::Lanes;

struct NeonF32;

impl Lanes for NeonF32 {
    const LANES: usize = 4;
    // 12 x 2 accumulators, 2 query registers, 1 broadcast: 27 of 32 registers.
    const MAX_ROWS: usize = 12;
    type Register = float32x4_t;
    type Flags = uint32x4_t;

    #[inline(always)]
    unsafe fn load(ptr: *const u32) -> float32x4_t {
        // SAFETY: the caller's pointer is valid.
        unsafe { vld1q_f32(ptr.cast()) }
    }
    #[inline(always)]
    unsafe fn store(ptr: *mut u32, value: float32x4_t) {
        // SAFETY: the caller's pointer is valid.
        unsafe { vst1q_f32(ptr.cast(), value) }
    }
    #[inline(always)]
    unsafe fn splat(ptr: *const u8) -> float32x4_t {
        // SAFETY: the caller's pointer is valid for four bytes.
        unsafe { vdupq_n_f32(ptr.cast::<f32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn mul_add(sum: float32x4_t, q: float32x4_t, x: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is part of aarch64.
        unsafe { vfmaq_f32(sum, q, x) }
    }
    #[inline(always)]
    unsafe fn max(value: float32x4_t, best: float32x4_t) -> float32x4_t {
        // A comparison with NaN is false, so `best` stays; `vmaxq_f32` would return the NaN.
        // SAFETY: NEON is part of aarch64.
        unsafe { vbslq_f32(vcgtq_f32(value, best), value, best) }
    }
    #[inline(always)]
    unsafe fn select_greater(value: float32x4_t, best: float32x4_t, token: u32, matched: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is part of aarch64.
        unsafe {
            let token = vreinterpretq_f32_u32(vdupq_n_u32(token));
            vbslq_f32(vcgtq_f32(value, best), token, matched)
        }
    }
    #[inline(always)]
    fn no_flags() -> uint32x4_t {
        // SAFETY: NEON is part of aarch64.
        unsafe { vdupq_n_u32(0) }
    }
    #[inline(always)]
    unsafe fn flag_nan(flags: uint32x4_t, a: float32x4_t, b: float32x4_t) -> uint32x4_t {
        // A NaN is not equal to itself.
        // SAFETY: NEON is part of aarch64.
        unsafe { vornq_u32(flags, vandq_u32(vceqq_f32(a, a), vceqq_f32(b, b))) }
    }
    #[inline(always)]
    unsafe fn poison(best: float32x4_t, flags: uint32x4_t) -> float32x4_t {
        // All ones is a NaN.
        // SAFETY: NEON is part of aarch64.
        unsafe { vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(best), flags)) }
    }
}

/// f32.
///
/// # Safety
/// As [`panel`].
pub(crate) unsafe fn neon_f32(args: &PanelArgs) {
    // SAFETY: forwarded from the caller.
    unsafe { panel::<NeonF32>(args) }
}
