//! AVX-512 and AVX2.

use std::arch::x86_64::*;

use super::block::{PanelArgs, panel};
use super::lanes::Lanes;
use super::rows;

/// An entry point: the generic kernel compiled for one instruction set.
macro_rules! entry {
    ($(#[$doc:meta])* $name:ident, $lanes:ty, $features:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// As [`panel`].
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn $name(args: &PanelArgs) {
            // SAFETY: forwarded from the caller.
            unsafe { panel::<$lanes>(args) }
        }
    };
}

entry!(/// f32 by AVX-512.
    avx512_f32, Avx512F32, "avx512f");
entry!(/// f32 by AVX-512, widening the next rows meanwhile.
    avx512_f32_widening, Avx512F32Widening, "avx512f");
entry!(/// bf16 pairs by `vdpbf16ps`.
    avx512_bf16, Avx512Bf16, "avx512f,avx512bf16");
entry!(/// Bytes by `vpdpbusd`, integer result.
    avx512_i8, Avx512I8, "avx512f,avx512vnni");
entry!(/// Bytes by `vpdpbusd`, rows scaled.
    avx512_i8_scaled, Avx512I8Scaled, "avx512f,avx512vnni");
entry!(/// f32 by AVX2 and FMA.
    avx2_f32, Avx2F32, "avx2,fma");
entry!(/// Bytes widened to i16 pairs, `vpmaddwd`, integer result.
    avx2_i16, Avx2I16, "avx2,fma");
entry!(/// Bytes widened to i16 pairs, `vpmaddwd`, rows scaled.
    avx2_i16_scaled, Avx2I16Scaled, "avx2,fma");

/// Methods shared by all 512-bit encodings.
macro_rules! zmm {
    () => {
        const LANES: usize = 16;
        // 12 x 2 accumulators, 2 query registers, 1 broadcast: 27 of 32 registers.
        const MAX_ROWS: usize = 12;
        type Register = __m512i;

        #[inline(always)]
        unsafe fn load(ptr: *const u32) -> __m512i {
            // SAFETY: the caller's pointer is valid and aligned.
            unsafe { _mm512_load_si512(ptr.cast()) }
        }
        #[inline(always)]
        unsafe fn store(ptr: *mut u32, value: __m512i) {
            // SAFETY: the caller's pointer is valid and aligned.
            unsafe { _mm512_store_si512(ptr.cast(), value) }
        }
        #[inline(always)]
        unsafe fn splat(ptr: *const u8) -> __m512i {
            // SAFETY: the caller's pointer is valid for four bytes.
            unsafe { _mm512_set1_epi32(ptr.cast::<i32>().read_unaligned()) }
        }
    };
}

/// Maximum of f32 lanes with the NaN rules, 512 bits.
macro_rules! zmm_f32_max {
    () => {
        type Flags = __mmask16;

        #[inline(always)]
        unsafe fn max(value: __m512i, best: __m512i) -> __m512i {
            // NOTE: `vmaxps` returns its second operand when either is NaN; that is the contract.
            // SAFETY: the entry point has the instructions.
            unsafe { _mm512_castps_si512(_mm512_max_ps(_mm512_castsi512_ps(value), _mm512_castsi512_ps(best))) }
        }
        #[inline(always)]
        unsafe fn select_greater(value: __m512i, best: __m512i, token: u32, matched: __m512i) -> __m512i {
            // SAFETY: the entry point has the instructions.
            unsafe {
                let greater = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(_mm512_castsi512_ps(value), _mm512_castsi512_ps(best));
                _mm512_mask_set1_epi32(matched, greater, token as i32)
            }
        }
        #[inline(always)]
        fn no_flags() -> __mmask16 {
            0
        }
        #[inline(always)]
        unsafe fn flag_nan(flags: __mmask16, a: __m512i, b: __m512i) -> __mmask16 {
            // SAFETY: the entry point has the instructions.
            unsafe { flags | _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b)) }
        }
        #[inline(always)]
        unsafe fn poison(best: __m512i, flags: __mmask16) -> __m512i {
            // SAFETY: the entry point has the instructions.
            unsafe { _mm512_mask_set1_epi32(best, flags, f32::NAN.to_bits() as i32) }
        }
    };
}

/// Maximum of i32 lanes, 512 bits.
macro_rules! zmm_i32_max {
    () => {
        type Flags = ();

        #[inline(always)]
        unsafe fn max(value: __m512i, best: __m512i) -> __m512i {
            // SAFETY: the entry point has the instructions.
            unsafe { _mm512_max_epi32(value, best) }
        }
        #[inline(always)]
        unsafe fn select_greater(value: __m512i, best: __m512i, token: u32, matched: __m512i) -> __m512i {
            // SAFETY: the entry point has the instructions.
            unsafe { _mm512_mask_set1_epi32(matched, _mm512_cmpgt_epi32_mask(value, best), token as i32) }
        }
        #[inline(always)]
        fn no_flags() {}
        #[inline(always)]
        unsafe fn flag_nan((): (), _: __m512i, _: __m512i) {}
        #[inline(always)]
        unsafe fn poison(best: __m512i, (): ()) -> __m512i {
            best
        }
    };
}

/// f32 multiply-add, 512 bits.
macro_rules! zmm_f32_mul_add {
    () => {
        #[inline(always)]
        unsafe fn mul_add(sum: __m512i, q: __m512i, x: __m512i) -> __m512i {
            // SAFETY: the entry point has the instructions.
            unsafe {
                let (sum, q, x) = (_mm512_castsi512_ps(sum), _mm512_castsi512_ps(q), _mm512_castsi512_ps(x));
                _mm512_castps_si512(_mm512_fmadd_ps(q, x, sum))
            }
        }
    };
}

struct Avx512F32;

impl Lanes for Avx512F32 {
    zmm!();
    zmm_f32_max!();
    zmm_f32_mul_add!();
}

struct Avx512F32Widening;

impl Lanes for Avx512F32Widening {
    zmm!();
    zmm_f32_max!();
    zmm_f32_mul_add!();
    const WIDENS: bool = true;

    #[inline(always)]
    unsafe fn widen(from: *const u8, to: *mut u32) {
        // SAFETY: the caller's pointers are valid for sixteen values; the entry point has the instructions.
        unsafe { _mm512_store_ps(to.cast(), _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
    }
}

struct Avx512Bf16;

impl Lanes for Avx512Bf16 {
    zmm!();
    zmm_f32_max!();

    #[inline(always)]
    unsafe fn mul_add(sum: __m512i, q: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the entry point has the instructions; both types are 512 bits without invalid values.
        unsafe {
            let (q, x) = (std::mem::transmute::<__m512i, __m512bh>(q), std::mem::transmute::<__m512i, __m512bh>(x));
            _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(sum), q, x))
        }
    }
}

struct Avx512I8;

impl Lanes for Avx512I8 {
    zmm!();
    zmm_i32_max!();

    #[inline(always)]
    unsafe fn mul_add(sum: __m512i, q: __m512i, x: __m512i) -> __m512i {
        // Document bytes carry an offset of 128, which the panel's start values take back.
        // SAFETY: the entry point has the instructions.
        unsafe { _mm512_dpbusd_epi32(sum, x, q) }
    }
}

struct Avx512I8Scaled;

impl Lanes for Avx512I8Scaled {
    zmm!();
    zmm_f32_max!();
    const SCALED: bool = true;

    #[inline(always)]
    unsafe fn mul_add(sum: __m512i, q: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the entry point has the instructions.
        unsafe { _mm512_dpbusd_epi32(sum, x, q) }
    }
    #[inline(always)]
    unsafe fn scale(sum: __m512i, scale: f32) -> __m512i {
        // SAFETY: the entry point has the instructions.
        unsafe { _mm512_castps_si512(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(scale))) }
    }
}

/// Methods shared by all 256-bit encodings.
macro_rules! ymm {
    () => {
        const LANES: usize = 8;
        // 6 x 2 accumulators, 2 query registers, 1 broadcast: 15 of 16 registers.
        const MAX_ROWS: usize = 6;
        type Register = __m256i;

        #[inline(always)]
        unsafe fn load(ptr: *const u32) -> __m256i {
            // SAFETY: the caller's pointer is valid and aligned.
            unsafe { _mm256_load_si256(ptr.cast()) }
        }
        #[inline(always)]
        unsafe fn store(ptr: *mut u32, value: __m256i) {
            // SAFETY: the caller's pointer is valid and aligned.
            unsafe { _mm256_store_si256(ptr.cast(), value) }
        }
        #[inline(always)]
        unsafe fn splat(ptr: *const u8) -> __m256i {
            // SAFETY: the caller's pointer is valid for four bytes.
            unsafe { _mm256_set1_epi32(ptr.cast::<i32>().read_unaligned()) }
        }
    };
}

/// Maximum of f32 lanes with the NaN rules, 256 bits.
macro_rules! ymm_f32_max {
    () => {
        type Flags = __m256i;

        #[inline(always)]
        unsafe fn max(value: __m256i, best: __m256i) -> __m256i {
            // NOTE: `vmaxps` returns its second operand when either is NaN; that is the contract.
            // SAFETY: the entry point has the instructions.
            unsafe { _mm256_castps_si256(_mm256_max_ps(_mm256_castsi256_ps(value), _mm256_castsi256_ps(best))) }
        }
        #[inline(always)]
        unsafe fn select_greater(value: __m256i, best: __m256i, token: u32, matched: __m256i) -> __m256i {
            // SAFETY: the entry point has the instructions.
            unsafe {
                let greater = _mm256_cmp_ps::<_CMP_GT_OQ>(_mm256_castsi256_ps(value), _mm256_castsi256_ps(best));
                _mm256_blendv_epi8(matched, _mm256_set1_epi32(token as i32), _mm256_castps_si256(greater))
            }
        }
        #[inline(always)]
        fn no_flags() -> __m256i {
            // SAFETY: 256 bits without invalid values.
            unsafe { std::mem::zeroed() }
        }
        #[inline(always)]
        unsafe fn flag_nan(flags: __m256i, a: __m256i, b: __m256i) -> __m256i {
            // SAFETY: the entry point has the instructions.
            unsafe {
                let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b));
                _mm256_or_si256(flags, _mm256_castps_si256(nan))
            }
        }
        #[inline(always)]
        unsafe fn poison(best: __m256i, flags: __m256i) -> __m256i {
            // All ones is a NaN.
            // SAFETY: the entry point has the instructions.
            unsafe { _mm256_or_si256(best, flags) }
        }
    };
}

struct Avx2F32;

impl Lanes for Avx2F32 {
    ymm!();
    ymm_f32_max!();

    #[inline(always)]
    unsafe fn mul_add(sum: __m256i, q: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the entry point has the instructions.
        unsafe {
            let (sum, q, x) = (_mm256_castsi256_ps(sum), _mm256_castsi256_ps(q), _mm256_castsi256_ps(x));
            _mm256_castps_si256(_mm256_fmadd_ps(q, x, sum))
        }
    }
}

struct Avx2I16;

impl Lanes for Avx2I16 {
    ymm!();
    type Flags = ();

    #[inline(always)]
    unsafe fn mul_add(sum: __m256i, q: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the entry point has the instructions.
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(q, x)) }
    }
    #[inline(always)]
    unsafe fn max(value: __m256i, best: __m256i) -> __m256i {
        // SAFETY: the entry point has the instructions.
        unsafe { _mm256_max_epi32(value, best) }
    }
    #[inline(always)]
    unsafe fn select_greater(value: __m256i, best: __m256i, token: u32, matched: __m256i) -> __m256i {
        // SAFETY: the entry point has the instructions.
        unsafe { _mm256_blendv_epi8(matched, _mm256_set1_epi32(token as i32), _mm256_cmpgt_epi32(value, best)) }
    }
    #[inline(always)]
    fn no_flags() {}
    #[inline(always)]
    unsafe fn flag_nan((): (), _: __m256i, _: __m256i) {}
    #[inline(always)]
    unsafe fn poison(best: __m256i, (): ()) -> __m256i {
        best
    }
}

struct Avx2I16Scaled;

impl Lanes for Avx2I16Scaled {
    ymm!();
    ymm_f32_max!();
    const SCALED: bool = true;

    #[inline(always)]
    unsafe fn mul_add(sum: __m256i, q: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the entry point has the instructions.
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(q, x)) }
    }
    #[inline(always)]
    unsafe fn scale(sum: __m256i, scale: f32) -> __m256i {
        // SAFETY: the entry point has the instructions.
        unsafe { _mm256_castps_si256(_mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(scale))) }
    }
}

/// f16 to f32, sixteen at a time.
#[target_feature(enable = "avx512f")]
pub(crate) fn widen_f16_avx512(from: &[half::f16], to: &mut [f32]) {
    let num_full = from.len() / 16 * 16;
    for (from, to) in from.chunks_exact(16).zip(to.chunks_exact_mut(16)) {
        // SAFETY: both chunks hold sixteen values.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast()))) }
    }
    for (from, to) in from[num_full..].iter().zip(&mut to[num_full..]) {
        *to = from.to_f32();
    }
}

/// f16 to f32, eight at a time.
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn widen_f16_avx2(from: &[half::f16], to: &mut [f32]) {
    let num_full = from.len() / 8 * 8;
    for (from, to) in from.chunks_exact(8).zip(to.chunks_exact_mut(8)) {
        // SAFETY: both chunks hold eight values.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast()))) }
    }
    for (from, to) in from[num_full..].iter().zip(&mut to[num_full..]) {
        *to = from.to_f32();
    }
}

/// bf16 to f32.
#[target_feature(enable = "avx2")]
pub(crate) fn widen_bf16_avx2(from: &[half::bf16], to: &mut [f32]) {
    rows::widen_bf16(from, to);
}

/// i8 to u8 with an offset of 128.
#[target_feature(enable = "avx2")]
pub(crate) fn offset_i8_avx2(from: &[i8], to: &mut [u8]) {
    rows::offset_i8(from, to);
}
