//! What the machine is, and how fast its core can multiply and add.

use std::hint::black_box;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

/// Shortest run that is timed.
const LONG_ENOUGH: Duration = Duration::from_millis(5);

/// `CHAINS` independent chains of multiply-adds over the widest registers of an instruction set: enough to hide the
/// latency of one behind the others, few enough to stay in registers.
macro_rules! chains {
    ($name:ident, $features:literal, $chains:literal, $splat:path, $fma:expr) => {
        #[target_feature(enable = $features)]
        fn $name(rounds: usize) {
            let (factor, step) = ($splat(black_box(0.999)), $splat(black_box(0.001)));
            let mut chains = [$splat(0.0); $chains];
            for _ in 0..rounds {
                for chain in &mut chains {
                    *chain = $fma(*chain, factor, step);
                }
            }
            black_box(chains);
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod chains {
    use super::black_box;
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps, _mm512_fmadd_ps, _mm512_set1_ps};

    chains!(avx512, "avx512f", 16, _mm512_set1_ps, |chain, a, b| _mm512_fmadd_ps(chain, a, b));
    chains!(avx2, "avx2,fma", 12, _mm256_set1_ps, |chain, a, b| _mm256_fmadd_ps(chain, a, b));

    /// Runs `rounds`; the flop of one.
    pub fn run(rounds: usize) -> Option<usize> {
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has just said that it knows AVX-512F.
            unsafe { avx512(rounds) };
            return Some(16 * 16 * 2);
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            // SAFETY: the processor has just said that it knows AVX2 and FMA.
            unsafe { avx2(rounds) };
            return Some(12 * 8 * 2);
        }
        None
    }
}

#[cfg(target_arch = "aarch64")]
mod chains {
    use super::black_box;
    use std::arch::aarch64::{vdupq_n_f32, vfmaq_f32};

    chains!(neon, "neon", 24, vdupq_n_f32, |chain, a, b| vfmaq_f32(b, chain, a));

    /// Runs `rounds`; the flop of one.
    pub fn run(rounds: usize) -> Option<usize> {
        neon(rounds);
        Some(24 * 4 * 2)
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod chains {
    /// Unknown here.
    pub fn run(_rounds: usize) -> Option<usize> {
        None
    }
}

/// `f32` multiply-adds in registers, one core, GFLOP/s: the best of a few short runs. `None` where no kernel knows the
/// instruction set.
pub fn peak_gflops() -> Option<f64> {
    let mut rounds = 1 << 12;
    let mut best = 0.0f64;
    let mut num_timed = 0;
    while num_timed < 5 {
        let begun = Instant::now();
        let flop = rounds * chains::run(rounds)?;
        let elapsed = begun.elapsed();
        if elapsed < LONG_ENOUGH {
            rounds *= 2;
            continue;
        }
        best = best.max(flop as f64 / elapsed.as_secs_f64() / 1e9);
        num_timed += 1;
    }
    Some(best)
}

/// Processor time of all threads so far, in seconds.
#[cfg(unix)]
pub fn cpu_seconds() -> Option<f64> {
    use rustix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Some(time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9)
}

/// Not known here.
#[cfg(not(unix))]
pub fn cpu_seconds() -> Option<f64> {
    None
}

/// Today, `YYYY-MM-DD`, UTC.
pub fn date() -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    now.split('T').next().unwrap_or_default().to_owned()
}

/// The processor's own name.
pub fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// Machine and versions, for the record.
pub fn describe(engine: &str) -> Value {
    json!({
        "date": date(),
        "cpu": cpu(),
        "arch": std::env::consts::ARCH,
        "os": std::env::consts::OS,
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "engine": engine,
        "maxhull": env!("CARGO_PKG_VERSION"),
        "rustc": output("rustc", &["--version"]),
        "commit": output("git", &["rev-parse", "HEAD"]),
        "uncommitted_changes": output("git", &["status", "--porcelain", "--untracked-files=no"]).map(|s| !s.is_empty()),
        "profile": if cfg!(debug_assertions) { "debug" } else { "release" },
    })
}

fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
