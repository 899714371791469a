//! MaxSim side by side: check the answer of every path first, then time them in turns.
//!
//! ```text
//! maxsim-bench OUT.json [--python PYTHON] [--shape NAME] [--path PART]
//! ```
//!
//! See README.md beside this crate for how the two profiles are run and joined.

mod data;
mod paths;
mod peak;
mod peers;

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use data::Shape;
use paths::Path;

/// Rounds of a path; all paths of a shape take one round in turn, so that drift hits them alike.
const ROUNDS: usize = 21;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let out = args.next().context("usage: maxsim-bench OUT.json [--python PYTHON] [--shape NAME] [--path PART]")?;
    let (mut python, mut only_shape, mut only_path) = (None, None, None);
    while let Some(flag) = args.next() {
        match flag.as_str() {
            "--python" => python = args.next(),
            "--shape" => only_shape = args.next(),
            "--path" => only_path = args.next(),
            other => anyhow::bail!("unknown option {other}"),
        }
    }
    let load_before = load_average();
    let peaks = peak::measure();
    println!("core peaks: f32 {:.0}, bf16 {:.0}, i8 {:.0} Gop/s", peaks.f32, peaks.bf16, peaks.i8);
    let mut results = Vec::new();
    for shape in data::shapes() {
        if only_shape.as_ref().is_some_and(|only| *only != shape.name) {
            continue;
        }
        let mut paths = paths::all(&shape);
        if let (Some(python), true) = (&python, shape.peers) {
            paths.extend(peers::all(python, &shape)?);
        }
        paths.retain(|path| {
            let name = format!("{} {} {}", path.dtype, path.name, path.threads);
            only_path.as_ref().is_none_or(|only| name.contains(only))
        });
        results.extend(run(&shape, paths, &peaks)?);
    }
    let report = json!({
        "profile": if cfg!(feature = "fat") { "fat LTO" } else { "cargo's default release" },
        "date": output("date", &["-u", "+%F"]),
        "machine": machine(),
        // Above about 1 other work shared the cores, and medians and thread ratios say little.
        "load_average": { "before": load_before, "after": load_average() },
        "versions": { "maxhull": maxhull_commit(), "diskann-quantization": "0.61.0", "rustc": rustc() },
        "peaks_gops": { "f32": peaks.f32, "bf16": peaks.bf16, "i8": peaks.i8 },
        "results": results,
    });
    std::fs::write(&out, serde_json::to_string_pretty(&report)? + "\n").with_context(|| out.clone())
}

/// Checks every path against the definition in f64, then times all of them in turns.
fn run(shape: &Shape, mut paths: Vec<Path>, peaks: &peak::Peaks) -> Result<Vec<Value>> {
    for path in &mut paths {
        let scores = (path.run)()?.scores;
        let error = shape.error(path.dtype, &scores);
        ensure!(error < path.tolerance, "{} {}: relative error {error:.2e}", shape.name, path.name);
    }
    let mut times = vec![Vec::with_capacity(ROUNDS); paths.len()];
    for _ in 0..ROUNDS {
        for (path, times) in paths.iter_mut().zip(&mut times) {
            // Once untimed: threads that slept through the other paths' turns are back on their cores.
            (path.run)()?;
            let start = Instant::now();
            let run = (path.run)()?;
            times.push(run.seconds.unwrap_or_else(|| start.elapsed().as_secs_f64()));
        }
    }
    Ok(paths.iter().zip(&mut times).map(|(path, times)| report(shape, path, times, peaks)).collect())
}

fn report(shape: &Shape, path: &Path, times: &mut [f64], peaks: &peak::Peaks) -> Value {
    times.sort_by(f64::total_cmp);
    let (median, low, high) = (times[ROUNDS / 2], times[ROUNDS / 10], times[ROUNDS - 1 - ROUNDS / 10]);
    let gops = shape.ops() / median / 1e9;
    let roof = peaks.of(path.dtype) * path.threads as f64;
    println!(
        "{:8} {:5} {:22} {} thread(s) {:9.3} ms ({:.3}..{:.3}) {:7.1} Gop/s, {:3.0} % of the roof",
        shape.name,
        path.dtype.to_string(),
        path.name,
        path.threads,
        median * 1e3,
        low * 1e3,
        high * 1e3,
        gops,
        100.0 * gops / roof,
    );
    json!({
        "shape": shape.name, "dtype": path.dtype.to_string(), "path": path.name, "threads": path.threads,
        "median_ms": median * 1e3, "p10_ms": low * 1e3, "p90_ms": high * 1e3, "gops": gops,
        "fraction_of_roof": gops / roof,
        "ns_per_doc_token": median * 1e9 / shape.num_doc_tokens() as f64,
    })
}

fn machine() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let (vendor, name) = (field("vendor_id").unwrap_or_default(), field("model name").unwrap_or_default());
    let (family, model) = (field("cpu family").unwrap_or_default(), field("model\t").unwrap_or_default());
    format!("{vendor} {name}, family {family} model {model}, {cores} cores")
}

/// Of the last minute.
fn load_average() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

fn rustc() -> String {
    output("rustc", &["--version"])
}

fn maxhull_commit() -> String {
    output("git", &["describe", "--always", "--dirty"])
}

/// What a command prints; empty when it cannot run.
fn output(program: &str, args: &[&str]) -> String {
    let output = std::process::Command::new(program).args(args).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}
