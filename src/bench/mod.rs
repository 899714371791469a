//! Single kernels, checked first and timed second: what `maxhull bench` runs. No API is promised.
//!
//! Inputs come from a seed, so that nothing but the binary is needed. A row's time is that of one launch (of `maxsim`: of
//! all that it takes to have the scores): many of them are sent together and timed by the device's clock where it has one.

mod ceilings;
mod corpus;
mod cpu;
mod figures;
mod gram;
mod hull;
mod input;
mod maxsim;
mod timed;
mod walk;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use ceilings::Ceilings;
pub use corpus::{CorpusRun, RealDocs, Stages};
pub use cpu::run as run_cpu;
pub use figures::{Figure, figures};

use crate::Error;
use crate::device::{Device, DeviceError};
use crate::engine::{Engine, GpuEngine};
use crate::kernel::Variant;

/// Seed of all inputs.
const SEED: u64 = 1;

/// What to run and how long.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Small inputs and few repeats: enough to see that it works, not to quote.
    pub is_quick: bool,
    /// Names of rows to run; all if empty.
    pub names: Vec<String>,
    /// What the row `corpus` makes its documents from; made up if there are none.
    pub real_docs: Option<RealDocs>,
    /// Documents of the row `corpus`; 50,000 if not said.
    pub num_docs: Option<u64>,
}

/// Names that [`Options::names`] can hold.
pub const NAMES: [&str; 9] =
    ["centre", "gram", "dominance", "selection", "compact", "maxsim", "maxsim_sum", "prune", "corpus"];

impl Options {
    fn wants(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| wanted == name)
    }

    fn pick<T>(&self, quick: T, full: T) -> T {
        if self.is_quick { quick } else { full }
    }
}

/// Why there are no numbers.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The library, on input that it should accept.
    #[error(transparent)]
    Library(#[from] Error),
    /// An answer is wrong.
    #[error("{name} ({shape}): {what} is off by {found:e}, allowed are {allowed:e}; its times mean nothing")]
    Wrong {
        /// Row.
        name: &'static str,
        /// Its input.
        shape: String,
        /// What was compared.
        what: &'static str,
        /// Largest difference.
        found: f64,
        /// Largest that rounding explains.
        allowed: f64,
    },
}

/// Seconds of one launch, over all repeats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// Median.
    pub median: f64,
    /// Fastest.
    pub least: f64,
    /// Slowest.
    pub most: f64,
    /// Median distance from the median.
    pub deviation: f64,
    /// Repeats.
    pub num_repeats: usize,
    /// Launches of each repeat; its time is divided by them.
    pub num_launches: usize,
}

/// What a launch has to do at least.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Work {
    /// Bytes read and written, each once.
    pub bytes: u64,
    /// Useful floating point operations; none where they depend on the data.
    pub flop: Option<u64>,
    /// Document tokens.
    pub tokens: u64,
}

/// One line of the result.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Kernel or walk.
    pub name: &'static str,
    /// Its input.
    pub shape: String,
    /// What it had to do.
    pub work: Work,
    /// Largest difference from the reference, and the largest that rounding explains.
    pub difference: (f64, f64),
    /// How long it took, on the same input again and again.
    pub timing: Timing,
    /// How long on copies of the input in turn, which no cache holds together, where that was measured.
    pub cold: Option<Timing>,
}

impl Row {
    /// Bytes a second.
    pub fn bandwidth(&self) -> f64 {
        self.work.bytes as f64 / self.timing.median
    }

    /// Bytes a second from memory.
    pub fn cold_bandwidth(&self) -> Option<f64> {
        self.cold.map(|cold| self.work.bytes as f64 / cold.median)
    }

    /// Floating point operations a second.
    pub fn flops(&self) -> Option<f64> {
        self.work.flop.map(|flop| flop as f64 / self.timing.median)
    }
}

/// Takes rows as they are timed, the wrong answers that there are instead of rows, and the device's error that ended the
/// run before its time.
pub type Each<'a> = dyn FnMut(Result<Row, BenchError>) + 'a;

/// Hands over a row or a wrong answer; the other rows may be right. Other errors end the run.
fn deliver(each: &mut Each<'_>, row: Result<Row, BenchError>) -> Result<(), BenchError> {
    match row {
        Err(error) if !matches!(error, BenchError::Wrong { .. }) => Err(error),
        row => {
            each(row);
            Ok(())
        }
    }
}

/// Runs every wanted row on a device.
///
/// # Errors
/// [`BenchError`], but for wrong answers and errors of the device, which `each` gets; a copy or multiply-adds that go wrong
/// end the run, as every row is compared with them.
pub fn run<D: Device>(
    shared: &Arc<D>,
    options: &Options,
    each: &mut Each<'_>,
) -> Result<(Ceilings, Option<CorpusRun>), BenchError> {
    let device = &**shared;
    let options = &Options { is_quick: options.is_quick || device.limits().is_software, ..options.clone() };
    let ceilings = ceilings::run(device, options, each)?;
    let mut rows = || {
        gram::run(device, options, each)?;
        hull::run(device, options, each)?;
        maxsim::run(device, options, each)?;
        walk::run(Arc::new(GpuEngine::new(Arc::clone(shared))), options, each)?;
        corpus::run(shared, options, each)
    };
    match rows() {
        Err(error @ BenchError::Device(_)) => {
            // What was timed before it stands.
            each(Err(error));
            Ok((ceilings, None))
        }
        corpus => Ok((ceilings, corpus?)),
    }
}

/// A launch to be repeated.
struct Launch<'a, D: Device> {
    variant: Variant,
    arguments: Vec<&'a D::Buffer>,
    params: Vec<u8>,
    num_workgroups: u64,
}

impl<D: Device> Launch<'_, D> {
    fn start(&self, device: &D) -> Result<(), DeviceError> {
        device.launch(self.variant, &self.arguments, &self.params, self.num_workgroups)
    }

    fn time(&self, device: &D, options: &Options) -> Result<Timing, DeviceError> {
        measure(options, |num_launches| device.time(&mut || (0..num_launches).try_for_each(|_| self.start(device))))
    }
}

/// Times `run(num_launches)`: as many launches a repeat as make it long enough for any clock.
fn measure<E>(options: &Options, mut run: impl FnMut(usize) -> Result<Duration, E>) -> Result<Timing, E> {
    let (repeat_seconds, num_repeats) = options.pick((0.01, 5), (0.1, 15));
    // The first one compiles, allocates and wakes the device.
    run(1)?;
    let one = run(1)?.as_secs_f64().max(1e-7);
    let num_launches = ((repeat_seconds / one) as usize).clamp(1, 1000);
    let mut seconds = Vec::with_capacity(num_repeats);
    for _ in 0..num_repeats {
        seconds.push(run(num_launches)?.as_secs_f64() / num_launches as f64);
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[num_repeats / 2];
    let mut deviations: Vec<f64> = seconds.iter().map(|x| (x - median).abs()).collect();
    deviations.sort_by(f64::total_cmp);
    Ok(Timing {
        median,
        least: seconds[0],
        most: seconds[num_repeats - 1],
        deviation: deviations[num_repeats / 2],
        num_repeats,
        num_launches,
    })
}

/// As [`measure`], by the host's clock.
fn measure_host<E>(options: &Options, mut work: impl FnMut() -> Result<(), E>) -> Result<Timing, E> {
    measure(options, |num_launches| {
        let started = Instant::now();
        (0..num_launches).try_for_each(|_| work())?;
        Ok(started.elapsed())
    })
}

/// The larger of two; NaN if either is.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// Fails if `found` is above what is allowed, or no number.
fn check(name: &'static str, shape: &str, what: &'static str, found: f64, allowed: f64) -> Result<(), BenchError> {
    if found <= allowed {
        return Ok(());
    }
    Err(BenchError::Wrong { name, shape: shape.to_owned(), what, found, allowed })
}

/// Fails if the engine has lost its device: the CPU answered then, and what was timed is the CPU.
fn check_alive(name: &'static str, shape: &str, engine: &dyn Engine) -> Result<(), BenchError> {
    check(name, shape, "the number of lost devices", f64::from(u8::from(engine.is_lost())), 0.0)
}

/// A buffer that holds `values`.
fn filled<D: Device, T: bytemuck::Pod>(device: &D, values: &[T]) -> Result<D::Buffer, DeviceError> {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    let buffer = device.alloc((bytes.len() as u64).next_multiple_of(16).max(16))?;
    if !bytes.is_empty() {
        device.upload(&buffer, bytes)?;
    }
    Ok(buffer)
}

/// A buffer for `len` values, undefined.
fn empty<D: Device, T>(device: &D, len: usize) -> Result<D::Buffer, DeviceError> {
    device.alloc(((len * size_of::<T>()) as u64).next_multiple_of(16).max(16))
}

/// The first `len` values of a buffer.
fn download<D: Device, T: bytemuck::Pod>(device: &D, buffer: &D::Buffer, len: usize) -> Result<Vec<T>, DeviceError> {
    let mut values = Vec::new();
    let download = device.download(&[(buffer, (len * size_of::<T>()) as u64)])?;
    device.read(download, &mut |parts| values = bytemuck::pod_collect_to_vec(parts[0]))?;
    Ok(values)
}
