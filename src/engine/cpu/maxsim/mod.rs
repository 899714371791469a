//! MaxSim on the CPU.
//!
//! [`panels`] packs query tokens, [`rows`] brings document rows into the same encoding, [`block`] multiplies and takes
//! the maximum in the lanes of one of [`x86`], [`neon`] or [`portable`], [`fold`] runs it over documents and
//! [`schedule`] cuts a corpus into tasks; [`screen`] spares the exact kernel what bytes can decide.

mod block;
pub(crate) mod fold;
mod lanes;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(crate) mod panels;
mod portable;
mod rows;
pub(crate) mod schedule;
pub(crate) mod screen;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;

use std::sync::LazyLock;

use crate::DType;
use block::PanelArgs;
use panels::Encoding;
use rows::Convert;

/// An instruction set that scores; all of them give the same bits for sums that are exact in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// AVX-512, with `vdpbf16ps` and VNNI where the CPU has them.
    Avx512,
    /// AVX2, FMA and F16C.
    Avx2,
    /// NEON.
    Neon,
    /// Whatever the compiler makes of plain loops.
    Portable,
}

impl Kernel {
    /// The kernels that this CPU can run, fastest first; [`Kernel::Portable`] is always the last.
    pub fn available() -> &'static [Kernel] {
        static AVAILABLE: LazyLock<Vec<Kernel>> = LazyLock::new(|| {
            let mut kernels = Vec::new();
            #[cfg(target_arch = "x86_64")]
            {
                let avx2 = is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c");
                if avx2 && is_x86_feature_detected!("avx512f") {
                    kernels.push(Kernel::Avx512);
                }
                if avx2 {
                    kernels.push(Kernel::Avx2);
                }
            }
            #[cfg(target_arch = "aarch64")]
            kernels.push(Kernel::Neon);
            kernels.push(Kernel::Portable);
            kernels
        });
        &AVAILABLE
    }
}

/// The element types that meet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operands {
    pub queries: DType,
    pub docs: DType,
    /// Whether document tokens carry scales.
    pub scaled: bool,
}

/// One way to multiply query tokens with document tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arithmetic {
    /// How components travel.
    pub encoding: Encoding,
    /// Lanes in a register.
    pub lanes: usize,
    /// Rows of a full block.
    pub max_rows: usize,
    /// Whether similarities are i32; otherwise f32.
    pub integer: bool,
    /// Whether document rows must bring scales.
    scaled: bool,
    run: unsafe fn(&PanelArgs),
    /// The same in f32 for f16 rows, widening the next ones meanwhile, where that is faster.
    run_widening: Option<unsafe fn(&PanelArgs)>,
    convert: Convert,
}

impl Arithmetic {
    /// The fastest arithmetic of `kernel` for two element types; integers meet exactly, bf16 pairs meet in the bf16
    /// dot product where there is one, everything else meets in f32.
    ///
    /// # Panics
    /// If the CPU cannot run `kernel`.
    pub(crate) fn choose(kernel: Kernel, operands: Operands) -> Self {
        assert!(Kernel::available().contains(&kernel), "this CPU cannot run the {kernel:?} kernel");
        match kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 => avx512(operands),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => avx2(operands),
            #[cfg(target_arch = "aarch64")]
            Kernel::Neon => neon(operands),
            _ => portable(operands),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn avx512(operands: Operands) -> Arithmetic {
    let convert = Convert { f16: x86::widen_f16_avx512, bf16: x86::widen_bf16_avx2, offset_i8: x86::offset_i8_avx2 };
    let f32 = Arithmetic {
        encoding: Encoding::F32,
        lanes: 16,
        max_rows: 12,
        integer: false,
        scaled: false,
        run: x86::avx512_f32,
        run_widening: Some(x86::avx512_f32_widening),
        convert,
    };
    match (operands.queries, operands.docs) {
        (DType::I8, DType::I8) if !is_x86_feature_detected!("avx512vnni") => avx2(operands),
        (DType::I8, DType::I8) if operands.scaled => {
            Arithmetic { encoding: Encoding::I8x4, run: x86::avx512_i8_scaled, scaled: true, ..f32 }
        }
        (DType::I8, DType::I8) => Arithmetic { encoding: Encoding::I8x4, integer: true, run: x86::avx512_i8, ..f32 },
        (DType::Bf16, DType::Bf16) if is_x86_feature_detected!("avx512bf16") => {
            Arithmetic { encoding: Encoding::Bf16x2, run: x86::avx512_bf16, ..f32 }
        }
        _ => f32,
    }
}

#[cfg(target_arch = "x86_64")]
fn avx2(operands: Operands) -> Arithmetic {
    let convert = Convert { f16: x86::widen_f16_avx2, bf16: x86::widen_bf16_avx2, offset_i8: x86::offset_i8_avx2 };
    let f32 = Arithmetic {
        encoding: Encoding::F32,
        lanes: 8,
        max_rows: 6,
        integer: false,
        scaled: false,
        run: x86::avx2_f32,
        run_widening: None,
        convert,
    };
    match (operands.queries, operands.docs) {
        (DType::I8, DType::I8) if operands.scaled => {
            Arithmetic { encoding: Encoding::I16x2, run: x86::avx2_i16_scaled, scaled: true, ..f32 }
        }
        (DType::I8, DType::I8) => Arithmetic { encoding: Encoding::I16x2, integer: true, run: x86::avx2_i16, ..f32 },
        _ => f32,
    }
}

#[cfg(target_arch = "aarch64")]
fn neon(operands: Operands) -> Arithmetic {
    match (operands.queries, operands.docs) {
        (DType::I8, DType::I8) => portable(operands),
        _ => Arithmetic { max_rows: 12, run: neon::neon_f32, ..portable(operands) },
    }
}

fn portable(operands: Operands) -> Arithmetic {
    let convert = Convert { f16: rows::widen_f16, bf16: rows::widen_bf16, offset_i8: rows::offset_i8 };
    let f32 = Arithmetic {
        encoding: Encoding::F32,
        lanes: 4,
        max_rows: 4,
        integer: false,
        scaled: false,
        run: portable::portable_f32,
        run_widening: None,
        convert,
    };
    match (operands.queries, operands.docs) {
        (DType::I8, DType::I8) if operands.scaled => {
            Arithmetic { encoding: Encoding::I16x2, run: portable::portable_i16_scaled, scaled: true, ..f32 }
        }
        (DType::I8, DType::I8) => {
            Arithmetic { encoding: Encoding::I16x2, integer: true, run: portable::portable_i16, ..f32 }
        }
        _ => f32,
    }
}
