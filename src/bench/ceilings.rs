//! What a device gives at most: a copy, multiply-adds in registers, and products of matrices in tensor cores.

use half::f16;

use super::{BenchError, Each, Launch, Options, Timing, check, download, empty, filled, larger};
use crate::device::Device;
use crate::kernel::{CEILING_THREADS, COPY_CHUNKS, CeilingParams, Encoding, FMA_A_STEP, Kernel, MMA_SIDE, Variant};

/// Rates that the rows of a device are compared with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// Bytes that a copy reads and writes in a second.
    pub bandwidth: f64,
    /// `f32` operations of independent multiply-adds in a second; each is two.
    pub flops: f64,
    /// Of one copy.
    pub copy: Timing,
    /// Of one launch of multiply-adds.
    pub fma: Timing,
    /// Operations in a second of products of f16 matrices summed in f32, and one launch, where there are tensor cores that
    /// the kernels reach.
    pub matrix: Option<(f64, Timing)>,
}

pub(super) fn run<D: Device>(device: &D, options: &Options, each: &mut Each<'_>) -> Result<Ceilings, BenchError> {
    let (bandwidth, copy) = copy(device, options)?;
    let (flops, fma) = fma(device, options)?;
    let matrix = match device.limits().truncates.then(|| mma(device, options)) {
        Some(Err(wrong @ BenchError::Wrong { .. })) => {
            each(Err(wrong));
            None
        }
        matrix => matrix.transpose()?,
    };
    Ok(Ceilings { bandwidth, flops, copy, fma, matrix })
}

fn variant(kernel: Kernel) -> Variant {
    Variant { kernel, encoding: Encoding::F32, subgroups: false, cooperative: None, is_wide: false }
}

/// More than any cache, where there is room.
fn copy<D: Device>(device: &D, options: &Options) -> Result<(f64, Timing), BenchError> {
    let item_bytes = u64::from(COPY_CHUNKS) * 16;
    let wanted: u64 = options.pick(8 << 20, 1 << 30);
    let num_items = wanted.min(device.limits().max_buffer_bytes) / item_bytes;
    let bytes = num_items * item_bytes;
    let values: Vec<u32> = (0..(bytes / 4) as u32).map(|at| at.wrapping_mul(0x9e37_79b9)).collect();
    let original = filled(device, &values)?;
    let copied = empty::<D, u32>(device, values.len())?;
    let params = CeilingParams { num_items: num_items as u32, ..CeilingParams::default() };
    let launch = Launch {
        variant: variant(Kernel::CeilingCopy),
        arguments: vec![&original, &copied],
        params: bytemuck::bytes_of(&params).to_vec(),
        num_workgroups: num_items,
    };
    launch.start(device)?;
    let found: Vec<u32> = download(device, &copied, values.len())?;
    let num_wrong = found.iter().zip(&values).filter(|(found, expected)| found != expected).count();
    check("ceiling_copy", &format!("{bytes} bytes"), "the copy", num_wrong as f64, 0.0)?;
    let timing = launch.time(device, options)?;
    Ok((2.0 * bytes as f64 / timing.median, timing))
}

fn fma<D: Device>(device: &D, options: &Options) -> Result<(f64, Timing), BenchError> {
    let (num_items, num_steps) = options.pick((64, 64), (8192, 256));
    let params = CeilingParams { num_items, num_steps, factor: 0.999, summand: 0.25 };
    let num_threads = num_items as usize * CEILING_THREADS as usize;
    let sums = empty::<D, f32>(device, num_threads)?;
    let launch = Launch {
        variant: variant(Kernel::CeilingFma),
        arguments: vec![&sums],
        params: bytemuck::bytes_of(&params).to_vec(),
        num_workgroups: u64::from(num_items),
    };
    launch.start(device)?;
    let found: Vec<f32> = download(device, &sums, num_threads)?;
    let mut worst = 0.0;
    for thread in [0, 1, num_threads / 2 + 100, num_threads - 1] {
        let expected = fma_sum(thread % CEILING_THREADS as usize, &params);
        worst = larger(worst, (f64::from(found[thread]) / expected - 1.0).abs());
    }
    // A rounding for each link of a chain, whose errors the factor damps.
    check("ceiling_fma", &format!("{num_threads} threads"), "a sum", worst, 1e-3)?;
    let timing = launch.time(device, options)?;
    let flop = 2.0 * num_threads as f64 * f64::from(FMA_A_STEP) * f64::from(num_steps);
    Ok((flop / timing.median, timing))
}

/// What a thread of `ceiling_fma` adds up.
fn fma_sum(thread: usize, params: &CeilingParams) -> f64 {
    let (factor, summand) = (f64::from(params.factor), f64::from(params.summand));
    let chain = |start: f64| (0..4 * params.num_steps).fold(start, |sum, _| sum * factor + summand);
    let starts = [thread as f64, 1.0, 2.0, 3.0];
    (0..8).flat_map(|c| starts.map(|start| chain(start + f64::from(c)))).sum()
}

fn mma<D: Device>(device: &D, options: &Options) -> Result<(f64, Timing), BenchError> {
    let (num_items, num_steps) = options.pick((8, 4), (4096, 1024));
    let params = CeilingParams { num_items, num_steps, ..CeilingParams::default() };
    let num_threads = num_items as usize * CEILING_THREADS as usize;
    let side = MMA_SIDE as usize;
    // Quarters, of which every order of summation gives the same bits.
    let quarters: Vec<i32> = (0..2 * side * side).map(|at| (at * at + 3 * at) as i32 % 7 - 3).collect();
    let operands: Vec<f16> = quarters.iter().map(|&quarters| f16::from_f32(quarters as f32 / 4.0)).collect();
    let operands = filled(device, &operands)?;
    let sums = empty::<D, f32>(device, num_threads)?;
    let launch = Launch {
        variant: variant(Kernel::CeilingMma),
        arguments: vec![&operands, &sums],
        params: bytemuck::bytes_of(&params).to_vec(),
        num_workgroups: u64::from(num_items),
    };
    launch.start(device)?;
    let found: Vec<f32> = download(device, &sums, num_threads)?;
    let (left, right) = quarters.split_at(side * side);
    let mut worst = 0.0;
    for thread in [0, 33, 127, 130, num_threads - 1] {
        let expected = f64::from(num_steps) * mma_sum(thread % CEILING_THREADS as usize, left, right) / 16.0;
        worst = larger(worst, (f64::from(found[thread]) - expected).abs());
    }
    check("ceiling_mma", &format!("{num_threads} threads"), "a sum", worst, 0.0)?;
    let timing = launch.time(device, options)?;
    // Four warps, of 32 threads, a product.
    let flop = 2.0 * (side * side * side) as f64 * num_threads as f64 / 128.0 * f64::from(num_steps);
    Ok((flop / timing.median, timing))
}

/// What a thread of `ceiling_mma` has of a product: its two rows, and two of each eight columns.
fn mma_sum(thread: usize, left: &[i32], right: &[i32]) -> f64 {
    let side = MMA_SIDE as usize;
    let (warp, lane) = (thread / 32 % 4, thread % 32);
    let dot = |row: usize, column: usize| {
        let (row, column) = (&left[row * side..][..side], &right[column * side..][..side]);
        row.iter().zip(column).map(|(a, b)| a * b).sum::<i32>()
    };
    let rows = [0, 8].map(|below| 16 * warp + lane / 4 + below);
    let columns = || (0..side / 8).flat_map(|group| [0, 1].map(|next| 8 * group + lane % 4 * 2 + next));
    f64::from(rows.into_iter().flat_map(|row| columns().map(move |column| dot(row, column))).sum::<i32>())
}
