//! Lanes of `f32`, one trait for every instruction set, chosen at run time.
//!
//! A kernel is written once over [`Lanes`] and run by [`Isa::run`], which enters a function compiled for the instruction
//! set; everything below it is inlined. Kernels keep one chain of fused multiply-adds per result and reduce with `max`
//! only, so AVX-512, AVX2 and NEON give the same bits. The portable fallback rounds products and sums separately.

/// Instruction set of a kernel. Only [`Isa::available`] makes values, so that a value proves that the machine has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Isa(Set);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Neon,
    Portable,
}

/// Work that runs on any instruction set. Implementations and all they call are `#[inline(always)]`.
pub(crate) trait Kernel {
    type Output;
    fn run<L: Lanes>(self) -> Self::Output;
}

impl Isa {
    /// Every set that this machine can run, fastest first.
    pub(crate) fn available() -> Vec<Isa> {
        let mut sets = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx512f")
                && std::arch::is_x86_feature_detected!("avx2")
                && std::arch::is_x86_feature_detected!("fma")
            {
                sets.push(Isa(Set::Avx512));
            }
            if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                sets.push(Isa(Set::Avx2));
            }
        }
        #[cfg(target_arch = "aarch64")]
        sets.push(Isa(Set::Neon));
        sets.push(Isa(Set::Portable));
        sets
    }

    /// The fastest set of this machine.
    pub(crate) fn detect() -> Isa {
        static BEST: std::sync::OnceLock<Isa> = std::sync::OnceLock::new();
        *BEST.get_or_init(|| Isa::available()[0])
    }

    /// A short name for reports.
    pub(crate) fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "avx2",
            #[cfg(target_arch = "aarch64")]
            Set::Neon => "neon",
            Set::Portable => "portable",
        }
    }

    /// Runs the kernel in code compiled for this set.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx2,fma")]
        fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
            kernel.run::<x86::Avx512>()
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
            kernel.run::<x86::Avx2>()
        }
        match self.0 {
            // SAFETY: `Set` is private to this module, and only `available` wraps this variant, after asking the processor.
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => unsafe { run_avx512(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { run_avx2(kernel) },
            #[cfg(target_arch = "aarch64")]
            Set::Neon => kernel.run::<neon::Neon>(),
            Set::Portable => kernel.run::<Portable>(),
        }
    }
}

/// f16 to f32 by the fastest means of this machine; equally long.
pub(crate) fn widen_f16(from: &[half::f16], to: &mut [f32]) {
    match Isa::detect().0 {
        // SAFETY: `available` makes this variant only after asking the processor.
        #[cfg(target_arch = "x86_64")]
        Set::Avx512 => unsafe { crate::engine::cpu::maxsim::x86::widen_f16_avx512(from, to) },
        _ => half::slice::HalfFloatSliceExt::convert_to_f32_slice(from, to),
    }
}

/// Eight values of type `f64`, in as many registers as it takes. Products are rounded before they are added on every
/// instruction set, so that all of them give the same bits.
pub(crate) trait Wide: Copy {
    fn splat(value: f64) -> Self;
    fn load(from: &[f64; 8]) -> Self;
    fn store(self, to: &mut [f64; 8]);
    fn add(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    /// Bit `lane` is set where the value is not above zero.
    fn not_positive(self) -> u32;

    /// Sum of the lanes, in a fixed order.
    #[inline(always)]
    fn sum(self) -> f64 {
        let mut v = [0.0; 8];
        self.store(&mut v);
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }
}

/// A register of `LANES` values of type `f32`.
pub(crate) trait Lanes: Copy {
    /// The same instruction set on `f64`.
    type Wide: Wide;
    /// Values in a register.
    const LANES: usize;
    /// Rows of the Gram register tile: `GRAM_ROWS * 2` accumulators and three more registers must fit.
    const GRAM_ROWS: usize;
    fn splat(value: f32) -> Self;
    /// The first `LANES` values of the slice.
    fn load(from: &[f32]) -> Self;
    /// Writes to the first `LANES` values of the slice.
    fn store(self, to: &mut [f32]);
    /// `self + a * b`, rounded once (twice on [`Portable`]).
    fn add_product(self, a: Self, b: Self) -> Self;
    /// `self - a * b`, rounded once (twice on [`Portable`]).
    fn sub_product(self, a: Self, b: Self) -> Self;
    fn max(self, other: Self) -> Self;
    /// Largest lane.
    fn reduce_max(self) -> f32;
    /// Bit `lane` is set where the lanes are equal.
    fn equal(self, other: Self) -> u32;
}

/// Eight lanes in plain code.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 8]);

impl Wide for [f64; 8] {
    #[inline(always)]
    fn splat(value: f64) -> Self {
        [value; 8]
    }
    #[inline(always)]
    fn load(from: &[f64; 8]) -> Self {
        *from
    }
    #[inline(always)]
    fn store(self, to: &mut [f64; 8]) {
        *to = self;
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        std::array::from_fn(|lane| self[lane] + other[lane])
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        std::array::from_fn(|lane| self[lane] * other[lane])
    }
    #[inline(always)]
    fn not_positive(self) -> u32 {
        (0..8).fold(0, |mask, lane| mask | (u32::from(self[lane] <= 0.0) << lane))
    }
}

impl Lanes for Portable {
    type Wide = [f64; 8];
    const LANES: usize = 8;
    const GRAM_ROWS: usize = 4;
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Portable([value; 8])
    }
    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        let mut lanes = [0.0; 8];
        lanes.copy_from_slice(&from[..8]);
        Portable(lanes)
    }
    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        to[..8].copy_from_slice(&self.0);
    }
    #[inline(always)]
    fn add_product(self, a: Self, b: Self) -> Self {
        Portable(std::array::from_fn(|lane| self.0[lane] + a.0[lane] * b.0[lane]))
    }
    #[inline(always)]
    fn sub_product(self, a: Self, b: Self) -> Self {
        Portable(std::array::from_fn(|lane| self.0[lane] - a.0[lane] * b.0[lane]))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Portable(std::array::from_fn(|lane| self.0[lane].max(other.0[lane])))
    }
    #[inline(always)]
    fn reduce_max(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn equal(self, other: Self) -> u32 {
        (0..8).fold(0, |mask, lane| mask | (u32::from(self.0[lane] == other.0[lane]) << lane))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Lanes, Wide};
    use std::arch::x86_64::*;

    /// One 512-bit register.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(__m512);

    /// One 256-bit register.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256);

    // SAFETY (every block of this module): a value of these types exists only inside `Isa::run`, whose functions enable
    // the instruction set after the processor was asked. Loads and stores slice first, so they stay in bounds.
    macro_rules! lanes {
        ($name:ident, $wide:ident, $lanes:literal, $rows:literal, $splat:ident, $load:ident, $store:ident, $add:ident, $sub:ident,
         $max:ident, $reduce:expr, $equal:expr) => {
            impl Lanes for $name {
                type Wide = $wide;
                const LANES: usize = $lanes;
                const GRAM_ROWS: usize = $rows;
                #[inline(always)]
                fn splat(value: f32) -> Self {
                    // SAFETY: see the module.
                    $name(unsafe { $splat(value) })
                }
                #[inline(always)]
                fn load(from: &[f32]) -> Self {
                    let from = &from[..$lanes];
                    // SAFETY: see the module; `from` has just been cut to the width of the register.
                    $name(unsafe { $load(from.as_ptr()) })
                }
                #[inline(always)]
                fn store(self, to: &mut [f32]) {
                    let to = &mut to[..$lanes];
                    // SAFETY: see the module; `to` has just been cut to the width of the register.
                    unsafe { $store(to.as_mut_ptr(), self.0) }
                }
                #[inline(always)]
                fn add_product(self, a: Self, b: Self) -> Self {
                    // SAFETY: see the module.
                    $name(unsafe { $add(a.0, b.0, self.0) })
                }
                #[inline(always)]
                fn sub_product(self, a: Self, b: Self) -> Self {
                    // SAFETY: see the module.
                    $name(unsafe { $sub(a.0, b.0, self.0) })
                }
                #[inline(always)]
                fn max(self, other: Self) -> Self {
                    // SAFETY: see the module.
                    $name(unsafe { $max(self.0, other.0) })
                }
                #[inline(always)]
                fn reduce_max(self) -> f32 {
                    // SAFETY: see the module.
                    unsafe { $reduce(self.0) }
                }
                #[inline(always)]
                fn equal(self, other: Self) -> u32 {
                    // SAFETY: see the module.
                    unsafe { $equal(self.0, other.0) }
                }
            }
        };
    }

    /// One 512-bit register.
    #[derive(Clone, Copy)]
    pub(crate) struct Wide512(__m512d);

    impl Wide for Wide512 {
        #[inline(always)]
        fn splat(value: f64) -> Self {
            // SAFETY: see the module.
            Wide512(unsafe { _mm512_set1_pd(value) })
        }
        #[inline(always)]
        fn load(from: &[f64; 8]) -> Self {
            // SAFETY: see the module; eight values are the width of the register.
            Wide512(unsafe { _mm512_loadu_pd(from.as_ptr()) })
        }
        #[inline(always)]
        fn store(self, to: &mut [f64; 8]) {
            // SAFETY: see the module; eight values are the width of the register.
            unsafe { _mm512_storeu_pd(to.as_mut_ptr(), self.0) }
        }
        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: see the module.
            Wide512(unsafe { _mm512_add_pd(self.0, other.0) })
        }
        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            // SAFETY: see the module.
            Wide512(unsafe { _mm512_mul_pd(self.0, other.0) })
        }
        #[inline(always)]
        fn not_positive(self) -> u32 {
            // SAFETY: see the module.
            u32::from(unsafe { _mm512_cmp_pd_mask::<_CMP_LE_OQ>(self.0, _mm512_setzero_pd()) })
        }
    }

    /// Two 256-bit registers.
    #[derive(Clone, Copy)]
    pub(crate) struct Wide256(__m256d, __m256d);

    impl Wide for Wide256 {
        #[inline(always)]
        fn splat(value: f64) -> Self {
            // SAFETY: see the module.
            unsafe { Wide256(_mm256_set1_pd(value), _mm256_set1_pd(value)) }
        }
        #[inline(always)]
        fn load(from: &[f64; 8]) -> Self {
            // SAFETY: see the module; eight values are the width of two registers.
            unsafe { Wide256(_mm256_loadu_pd(from.as_ptr()), _mm256_loadu_pd(from[4..].as_ptr())) }
        }
        #[inline(always)]
        fn store(self, to: &mut [f64; 8]) {
            let (low, high) = to.split_at_mut(4);
            // SAFETY: see the module; each half is the width of a register.
            unsafe {
                _mm256_storeu_pd(low.as_mut_ptr(), self.0);
                _mm256_storeu_pd(high.as_mut_ptr(), self.1);
            }
        }
        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: see the module.
            unsafe { Wide256(_mm256_add_pd(self.0, other.0), _mm256_add_pd(self.1, other.1)) }
        }
        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            // SAFETY: see the module.
            unsafe { Wide256(_mm256_mul_pd(self.0, other.0), _mm256_mul_pd(self.1, other.1)) }
        }
        #[inline(always)]
        fn not_positive(self) -> u32 {
            // SAFETY: see the module.
            unsafe {
                let zero = _mm256_setzero_pd();
                let low = _mm256_movemask_pd(_mm256_cmp_pd::<_CMP_LE_OQ>(self.0, zero));
                let high = _mm256_movemask_pd(_mm256_cmp_pd::<_CMP_LE_OQ>(self.1, zero));
                (low | high << 4) as u32
            }
        }
    }

    #[inline(always)]
    unsafe fn reduce_max_256(v: __m256) -> f32 {
        // SAFETY: see the module.
        unsafe {
            let half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let pair = _mm_max_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_max_ss(pair, _mm_shuffle_ps::<1>(pair, pair)))
        }
    }

    lanes!(
        Avx512,
        Wide512,
        16,
        12,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_fmadd_ps,
        _mm512_fnmadd_ps,
        _mm512_max_ps,
        |v| _mm512_reduce_max_ps(v),
        |a, b| u32::from(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b))
    );
    lanes!(
        Avx2,
        Wide256,
        8,
        6,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_fmadd_ps,
        _mm256_fnmadd_ps,
        _mm256_max_ps,
        |v| reduce_max_256(v),
        |a, b| _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_EQ_OQ>(a, b)) as u32
    );
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use super::Lanes;
    use std::arch::aarch64::*;

    /// Two 128-bit registers, so that loops amortise as on AVX2.
    #[derive(Clone, Copy)]
    pub(crate) struct Neon(float32x4_t, float32x4_t);

    // SAFETY (every block of this module): NEON is part of the aarch64 baseline; loads and stores slice first.
    impl Lanes for Neon {
        // The compiler turns plain code on eight `f64` into NEON, which is part of the baseline.
        type Wide = [f64; 8];
        const LANES: usize = 8;
        const GRAM_ROWS: usize = 6;
        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: see the module.
            unsafe { Neon(vdupq_n_f32(value), vdupq_n_f32(value)) }
        }
        #[inline(always)]
        fn load(from: &[f32]) -> Self {
            let from = &from[..8];
            // SAFETY: see the module.
            unsafe { Neon(vld1q_f32(from.as_ptr()), vld1q_f32(from[4..].as_ptr())) }
        }
        #[inline(always)]
        fn store(self, to: &mut [f32]) {
            let (low, high) = to[..8].split_at_mut(4);
            // SAFETY: see the module.
            unsafe {
                vst1q_f32(low.as_mut_ptr(), self.0);
                vst1q_f32(high.as_mut_ptr(), self.1);
            }
        }
        #[inline(always)]
        fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: see the module.
            unsafe { Neon(vfmaq_f32(self.0, a.0, b.0), vfmaq_f32(self.1, a.1, b.1)) }
        }
        #[inline(always)]
        fn sub_product(self, a: Self, b: Self) -> Self {
            // SAFETY: see the module.
            unsafe { Neon(vfmsq_f32(self.0, a.0, b.0), vfmsq_f32(self.1, a.1, b.1)) }
        }
        #[inline(always)]
        fn max(self, other: Self) -> Self {
            // SAFETY: see the module.
            unsafe { Neon(vmaxq_f32(self.0, other.0), vmaxq_f32(self.1, other.1)) }
        }
        #[inline(always)]
        fn reduce_max(self) -> f32 {
            // SAFETY: see the module.
            unsafe { vmaxvq_f32(vmaxq_f32(self.0, self.1)) }
        }
        #[inline(always)]
        fn equal(self, other: Self) -> u32 {
            let mut a = [0.0; 8];
            let mut b = [0.0; 8];
            self.store(&mut a);
            other.store(&mut b);
            (0..8).fold(0, |mask, lane| mask | (u32::from(a[lane] == b[lane]) << lane))
        }
    }
}
