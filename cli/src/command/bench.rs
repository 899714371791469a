//! `maxhull bench`: every kernel, checked and then timed, on every device.

use std::path::Path;
use std::sync::Arc;

use maxhull::bench::{self, BenchError, Ceilings, CorpusRun, Figure, Options, RealDocs, Row, Timing};
use maxhull::device::wgpu::WgpuDevice;
use maxhull::device::{Device, cuda, wgpu};
use maxhull::engine::{CpuEngine, DeviceSpec, Engine, OpenDevice};
use maxhull::half::f16;
use serde::Serialize;

use super::devices::cpu_name;
use super::library_error;
use crate::args::BenchArgs;
use crate::corpus::Corpus;
use crate::error::{Error, Result};
use crate::report;

/// Checks, times and prints. Wrong answers come last, and nothing is timed that gave one; a device that fails keeps what it
/// was timed at before.
pub fn run(args: &BenchArgs) -> Result<()> {
    let real_docs = args.corpus.as_deref().map(real_docs).transpose()?;
    let options = Options { is_quick: args.quick, names: args.kernel.clone(), real_docs, num_docs: args.docs };
    let pool = super::pool_of(args.threads)?;
    let mut report = BenchReport { version: env!("CARGO_PKG_VERSION"), is_quick: args.quick, devices: Vec::new() };
    for (name, device) in open(args)? {
        report.devices.push(pool.install(|| match &device {
            OpenDevice::Wgpu(device) => DeviceReport::of_device(name, device, &options),
            OpenDevice::Cuda(device) => DeviceReport::of_device(name, device, &options),
        })?);
    }
    let is_auto_cpu = args.device == Some(DeviceSpec::Auto) && report.devices.is_empty();
    if is_auto_cpu || matches!(args.device, None | Some(DeviceSpec::Cpu)) {
        report.devices.push(pool.install(|| DeviceReport::of_cpu(&options))?);
    }
    if args.json {
        report::print_json(&report)?;
    } else {
        report::write(report.text(args.markdown).as_bytes())?;
    }
    let said = |devices: &dyn Fn(&DeviceReport) -> Vec<String>| report.devices.iter().flat_map(devices).collect();
    let wrong: Vec<String> = said(&|device| device.wrong.clone());
    let ended: Vec<String> = said(&|device| device.ended.iter().cloned().collect());
    match (wrong.is_empty(), ended.is_empty()) {
        (true, true) => Ok(()),
        (true, false) => Err(Error::Device(ended.join("\n"))),
        (false, _) => Err(Error::Verification([wrong, ended].concat().join("\n"))),
    }
}

fn real_docs(path: &Path) -> Result<RealDocs> {
    let corpus = Corpus::open(path)?;
    let batch = corpus.batch(0..corpus.num_docs())?;
    batch.check_finite().map_err(|error| library_error(error, &corpus, 0))?;
    let mut docs = RealDocs { tokens: Vec::new(), offsets: vec![0], dim: batch.dim() };
    let mut values = Vec::new();
    for doc_idx in 0..batch.num_docs() {
        let doc = batch.doc(doc_idx);
        values.resize(doc.len(), 0.0);
        doc.to_f32(&mut values);
        docs.tokens.extend(values.iter().copied().map(f16::from_f32));
        docs.offsets.push((docs.tokens.len() / docs.dim) as u64);
    }
    Ok(docs)
}

/// The devices that were asked for, with what to type for them; all usable ones if none was.
fn open(args: &BenchArgs) -> Result<Vec<(String, OpenDevice)>> {
    let specs = match args.device {
        Some(spec) => vec![spec],
        None => {
            let wgpu = wgpu::adapters().into_iter().filter(|adapter| adapter.unsuitable.is_none());
            let cuda = cuda::adapters().into_iter().filter(|adapter| adapter.unsuitable.is_none());
            let wgpu = wgpu.map(|adapter| DeviceSpec::Wgpu(Some(adapter.idx)));
            wgpu.chain(cuda.map(|adapter| DeviceSpec::Cuda(Some(adapter.idx)))).collect()
        }
    };
    let mut opened = Vec::new();
    for spec in specs {
        let device = match spec {
            DeviceSpec::Wgpu(idx) if args.cooperative => {
                let device = WgpuDevice::open_cooperative(idx, false);
                Some(OpenDevice::Wgpu(Arc::new(device.map_err(|error| Error::Device(format!("{spec}: {error}")))?)))
            }
            _ => super::open_device(spec)?,
        };
        opened.extend(device.map(|device| (spec.to_string(), device)));
    }
    Ok(opened)
}

fn bench_error(device: &str, error: BenchError) -> Error {
    match error {
        BenchError::Device(error) => Error::Device(format!("{device}: {error}")),
        BenchError::Library(error) => Error::Failure(anyhow::Error::new(error).context("internal error")),
        wrong @ BenchError::Wrong { .. } => Error::Verification(wrong_answer(device, &wrong)),
    }
}

fn wrong_answer(device: &str, wrong: &BenchError) -> String {
    format!("{device}: {wrong}")
}

#[derive(Debug, Serialize)]
struct BenchReport {
    version: &'static str,
    is_quick: bool,
    devices: Vec<DeviceReport>,
}

#[derive(Debug, Serialize)]
struct DeviceReport {
    device: String,
    /// API, adapter, driver; or instruction set.
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<String>,
    num_threads: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    ceilings: Option<CeilingsReport>,
    rows: Vec<RowReport>,
    /// What computed something wrong, and was not timed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    wrong: Vec<String>,
    /// The error of the device after which nothing more was timed.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<String>,
    /// The row `corpus` in detail.
    #[serde(skip_serializing_if = "Option::is_none")]
    corpus: Option<CorpusReport>,
    /// What a large GPU is asked for, and what this device gives.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    figures: Vec<FigureReport>,
}

#[derive(Debug, Serialize)]
struct CorpusReport {
    num_docs: u64,
    num_tokens: u64,
    num_kept: u64,
    worst_bound: f32,
    is_real: bool,
    seconds: f64,
    tokens_per_second: f64,
    /// What each stage takes alone; they overlap.
    stage_seconds: serde_json::Map<String, serde_json::Value>,
}

impl From<&CorpusRun> for CorpusReport {
    fn from(run: &CorpusRun) -> Self {
        let stages = run.stages.named().into_iter().map(|(name, seconds)| (name.to_owned(), seconds.into()));
        CorpusReport {
            num_docs: run.num_docs,
            num_tokens: run.num_tokens,
            num_kept: run.num_kept,
            worst_bound: run.worst_bound,
            is_real: run.is_real,
            seconds: run.seconds,
            tokens_per_second: run.num_tokens as f64 / run.seconds,
            stage_seconds: stages.collect(),
        }
    }
}

#[derive(Debug, Serialize)]
struct FigureReport {
    name: &'static str,
    unit: &'static str,
    measured: Option<f64>,
    asked: Option<f64>,
    is_met: Option<bool>,
    note: &'static str,
}

impl From<Figure> for FigureReport {
    fn from(figure: Figure) -> Self {
        let Figure { name, unit, measured, asked, note, .. } = figure;
        FigureReport { name, unit, measured, asked, is_met: figure.is_met(), note }
    }
}

impl FigureReport {
    fn line(&self) -> String {
        let number = |value: Option<f64>| value.map_or("-".to_owned(), digits);
        let verdict = match self.is_met {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "",
        };
        let (measured, asked, Self { name, unit, note, .. }) = (number(self.measured), number(self.asked), self);
        format!("{name:<38} {measured:>12} {asked:>8} {unit:<8} {verdict:<4} {note}").trim_end().to_owned() + "\n"
    }
}

#[derive(Debug, Serialize)]
struct CeilingsReport {
    copy_gb_per_second: f64,
    copy: TimingReport,
    fma_gflop_per_second: f64,
    fma: TimingReport,
    /// Products of f16 matrices in tensor cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    mma_gflop_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mma: Option<TimingReport>,
}

#[derive(Debug, Serialize)]
struct RowReport {
    kernel: &'static str,
    shape: String,
    largest_difference: f64,
    allowed_difference: f64,
    bytes: u64,
    flop: Option<u64>,
    tokens: u64,
    timing: TimingReport,
    gb_per_second: f64,
    gflop_per_second: Option<f64>,
    mtokens_per_second: f64,
    share_of_copy: Option<f64>,
    share_of_fma: Option<f64>,
    share_of_mma: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cold: Option<ColdReport>,
}

/// On copies of the input in turn, which no cache holds together.
#[derive(Debug, Serialize)]
struct ColdReport {
    timing: TimingReport,
    gb_per_second: f64,
    share_of_copy: Option<f64>,
}

/// Milliseconds of one launch.
#[derive(Debug, Serialize)]
struct TimingReport {
    median_ms: f64,
    min_ms: f64,
    max_ms: f64,
    median_deviation_ms: f64,
    num_repeats: usize,
    num_launches: usize,
}

impl From<Timing> for TimingReport {
    fn from(timing: Timing) -> Self {
        TimingReport {
            median_ms: 1e3 * timing.median,
            min_ms: 1e3 * timing.least,
            max_ms: 1e3 * timing.most,
            median_deviation_ms: 1e3 * timing.deviation,
            num_repeats: timing.num_repeats,
            num_launches: timing.num_launches,
        }
    }
}

impl RowReport {
    fn new(row: Row, ceilings: Option<&Ceilings>) -> Self {
        let (bandwidth, flops) = (row.bandwidth(), row.flops());
        let cold = row.cold.zip(row.cold_bandwidth()).map(|(timing, bandwidth)| ColdReport {
            timing: timing.into(),
            gb_per_second: bandwidth / 1e9,
            share_of_copy: ceilings.map(|ceilings| bandwidth / ceilings.bandwidth),
        });
        RowReport {
            cold,
            gb_per_second: bandwidth / 1e9,
            gflop_per_second: flops.map(|flops| flops / 1e9),
            mtokens_per_second: row.work.tokens as f64 / row.timing.median / 1e6,
            share_of_copy: ceilings.map(|ceilings| bandwidth / ceilings.bandwidth),
            share_of_fma: ceilings.zip(flops).map(|(ceilings, flops)| flops / ceilings.flops),
            share_of_mma: ceilings
                .and_then(|ceilings| ceilings.matrix)
                .zip(flops)
                .map(|((most, _), flops)| flops / most),
            kernel: row.name,
            shape: row.shape,
            largest_difference: row.difference.0,
            allowed_difference: row.difference.1,
            bytes: row.work.bytes,
            flop: row.work.flop,
            tokens: row.work.tokens,
            timing: row.timing.into(),
        }
    }

    fn cells(&self) -> [String; NUM_COLUMNS] {
        let percent = |share: Option<f64>| share.map_or(String::new(), |share| format!("{:.1} %", 100.0 * share));
        let TimingReport { median_ms, min_ms, max_ms, .. } = self.timing;
        [
            self.kernel.to_owned(),
            self.shape.clone(),
            digits(median_ms),
            format!("{:.1} %", 100.0 * (max_ms - min_ms) / median_ms),
            digits(self.gb_per_second),
            percent(self.share_of_copy),
            self.gflop_per_second.map_or(String::new(), digits),
            percent(self.share_of_fma),
            percent(self.share_of_mma),
            digits(self.mtokens_per_second),
            self.cold.as_ref().map_or(String::new(), |cold| digits(cold.timing.median_ms)),
            percent(self.cold.as_ref().and_then(|cold| cold.share_of_copy)),
        ]
    }
}

/// Three digits or more.
fn digits(value: f64) -> String {
    let decimals = (2 - value.abs().max(1e-6).log10().floor() as i32).clamp(0, 6) as usize;
    format!("{value:.decimals$}")
}

impl DeviceReport {
    fn of_device<D: Device>(device: String, opened: &Arc<D>, options: &Options) -> Result<Self> {
        let (mut rows, mut wrong, mut ended) = (Vec::new(), Vec::new(), None);
        let done = bench::run(opened, options, &mut |row| match row {
            Ok(row) => rows.push(row),
            Err(BenchError::Device(error)) => ended = Some(format!("{device}: {error}")),
            Err(error) => wrong.push(wrong_answer(&device, &error)),
        });
        let (ceilings, corpus) = done.map_err(|error| bench_error(&device, error))?;
        let figures = bench::figures(&rows, &ceilings, corpus.as_ref());
        let report = CeilingsReport {
            copy_gb_per_second: ceilings.bandwidth / 1e9,
            copy: ceilings.copy.into(),
            fma_gflop_per_second: ceilings.flops / 1e9,
            fma: ceilings.fma.into(),
            mma_gflop_per_second: ceilings.matrix.map(|(flops, _)| flops / 1e9),
            mma: ceilings.matrix.map(|(_, timing)| timing.into()),
        };
        Ok(DeviceReport {
            device,
            name: opened.name(),
            cpu: None,
            num_threads: rayon::current_num_threads(),
            ceilings: Some(report),
            rows: rows.into_iter().map(|row| RowReport::new(row, Some(&ceilings))).collect(),
            wrong,
            ended,
            corpus: corpus.as_ref().map(CorpusReport::from),
            figures: figures.into_iter().map(FigureReport::from).collect(),
        })
    }

    fn of_cpu(options: &Options) -> Result<Self> {
        let (mut rows, mut wrong) = (Vec::new(), Vec::new());
        let done = bench::run_cpu(options, &mut |row| match row {
            Ok(row) => rows.push(row),
            Err(error) => wrong.push(wrong_answer("cpu", &error)),
        });
        let corpus = done.map_err(|error| bench_error("cpu", error))?;
        Ok(DeviceReport {
            device: "cpu".to_owned(),
            name: CpuEngine::new().name(),
            cpu: Some(cpu_name()),
            num_threads: rayon::current_num_threads(),
            ceilings: None,
            rows: rows.into_iter().map(|row| RowReport::new(row, None)).collect(),
            wrong,
            ended: None,
            corpus: corpus.as_ref().map(CorpusReport::from),
            figures: Vec::new(),
        })
    }

    fn title(&self) -> String {
        match (&self.cpu, &self.ceilings) {
            (Some(cpu), _) => format!("{}: {}, {cpu}, {} threads", self.device, self.name, self.num_threads),
            (None, None) => format!("{}: {}", self.device, self.name),
            (None, Some(ceilings)) => {
                let products = ceilings.mma_gflop_per_second.map(digits);
                let products = products.map_or(String::new(), |rate| format!(", products of matrices {rate}"));
                format!(
                    "{}: {}; a copy moves {} GB/s, multiply-adds make {} GFLOP/s{products}",
                    self.device,
                    self.name,
                    digits(ceilings.copy_gb_per_second),
                    digits(ceilings.fma_gflop_per_second)
                )
            }
        }
    }
}

const NUM_COLUMNS: usize = 12;

const COLUMNS: [&str; NUM_COLUMNS] = [
    "kernel",
    "input",
    "median ms",
    "spread",
    "GB/s",
    "of copy",
    "GFLOP/s",
    "of multiply-adds",
    "of products",
    "Mtokens/s",
    "cold ms",
    "cold of copy",
];

impl BenchReport {
    fn text(&self, is_markdown: bool) -> String {
        let mut text = if is_markdown { format!("`maxhull bench` {}\n", self.version) } else { String::new() };
        if self.is_quick {
            text += "A quick run: small inputs, not to be quoted.\n";
        }
        for device in &self.devices {
            let rows: Vec<[String; NUM_COLUMNS]> = device.rows.iter().map(RowReport::cells).collect();
            let title = device.title();
            text += &if is_markdown { format!("\n**{title}**\n\n") } else { format!("\n{title}\n") };
            text += &table(&rows, is_markdown);
            let figures: String =
                device.figures.iter().filter(|figure| figure.measured.is_some()).map(FigureReport::line).collect();
            if !figures.is_empty() {
                let head = format!("{:<38} {:>12} {:>8} {:<8} {:<4}", "figure", "measured", "asked", "", "met");
                let block = format!("{}\n{figures}", head.trim_end());
                text += &if is_markdown { format!("\n```text\n{block}```\n") } else { format!("\n{block}") };
            }
        }
        text
    }
}

/// Aligned columns: words to the left, numbers to the right.
fn table(rows: &[[String; NUM_COLUMNS]], is_markdown: bool) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([COLUMNS[column].len()]).max().unwrap_or(0)
    };
    let widths: [usize; NUM_COLUMNS] = std::array::from_fn(width);
    let line = |cells: [&str; NUM_COLUMNS]| {
        let padded = (0..NUM_COLUMNS).map(|column| {
            let (cell, width) = (cells[column], widths[column]);
            if column < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        let padded: Vec<String> = padded.collect();
        if is_markdown {
            format!("| {} |\n", padded.join(" | "))
        } else {
            format!("{}\n", padded.join("  ").trim_end())
        }
    };
    let mut text = line(COLUMNS);
    if is_markdown {
        let rule = |column: usize| if column < 2 { "---|" } else { "--:|" };
        text += &format!("|{}\n", (0..NUM_COLUMNS).map(rule).collect::<String>());
    }
    rows.iter().for_each(|row| text += &line(row.each_ref().map(String::as_str)));
    text
}
