//! What the arithmetic units of one core can do, by independent chains in registers.

use std::time::Instant;

use maxhull::DType;

/// Multiplications and additions a second and core, in units of 10^9.
pub struct Peaks {
    pub f32: f64,
    pub bf16: f64,
    pub i8: f64,
}

impl Peaks {
    /// The roof of an element type; f16 is multiplied in f32.
    pub fn of(&self, dtype: DType) -> f64 {
        match dtype {
            DType::F32 | DType::F16 => self.f32,
            DType::Bf16 => self.bf16,
            DType::I8 => self.i8,
        }
    }
}

const STEPS: usize = 3_000_000;
const CHAINS: usize = 12;

/// The best of a few runs; AVX-512 with bf16 and VNNI, 0 for what the CPU does not have.
pub fn measure() -> Peaks {
    let f32 = is_x86_feature_detected!("avx512f");
    let bf16 = f32 && is_x86_feature_detected!("avx512bf16");
    let i8 = f32 && is_x86_feature_detected!("avx512vnni");
    // SAFETY: each function runs only where its instructions exist.
    unsafe {
        Peaks {
            f32: if f32 { rate(32, || x86::f32(STEPS)) } else { 0.0 },
            bf16: if bf16 { rate(64, || x86::bf16(STEPS)) } else { 0.0 },
            i8: if i8 { rate(128, || x86::i8(STEPS)) } else { 0.0 },
        }
    }
}

fn rate<T>(ops: usize, run: impl Fn() -> T) -> f64 {
    let time = || {
        let start = Instant::now();
        std::hint::black_box(run());
        start.elapsed().as_secs_f64()
    };
    let best = (0..7).map(|_| time()).fold(f64::INFINITY, f64::min);
    (STEPS * CHAINS * ops) as f64 / best / 1e9
}

mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::CHAINS;

    #[target_feature(enable = "avx512f")]
    pub fn f32(steps: usize) -> f32 {
        let (x, y) = (black_box(_mm512_set1_ps(0.5)), black_box(_mm512_set1_ps(0.25)));
        let mut sums = [_mm512_set1_ps(1.0); CHAINS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, x, y);
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn bf16(steps: usize) -> f32 {
        // SAFETY: both types are 512 bits without invalid values.
        let x: __m512bh = unsafe { std::mem::transmute(black_box(_mm512_set1_epi16(0x3f00))) };
        let mut sums = [_mm512_set1_ps(1.0); CHAINS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, x, x);
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub fn i8(steps: usize) -> i32 {
        let x = black_box(_mm512_set1_epi8(3));
        let mut sums = [_mm512_set1_epi32(1); CHAINS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, x, x);
            }
        }
        sums.into_iter().fold(0, |total, sum| total.wrapping_add(_mm512_reduce_add_epi32(sum)))
    }
}
