//! Rows of measurements, printed for people and saved as data.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use super::common::{Corpus, Failure};
use super::machine;

/// One run.
pub struct Timing {
    wall: f64,
    cpu: Option<f64>,
}

impl Timing {
    pub fn of(run: impl FnOnce()) -> Self {
        let (cpu, begun) = (machine::cpu_seconds(), Instant::now());
        run();
        let wall = begun.elapsed().as_secs_f64();
        Timing { wall, cpu: machine::cpu_seconds().zip(cpu).map(|(now, then)| now - then) }
    }
}

/// One unit of work on some number of threads.
pub struct Row {
    pub work: &'static str,
    pub num_threads: usize,
    /// Useful flop of one run.
    pub flop: Option<f64>,
    /// Whether the baseline does the same work.
    pub is_compared: bool,
    pub timings: Vec<Timing>,
}

impl Row {
    fn walls(&self) -> Vec<f64> {
        self.timings.iter().map(|timing| timing.wall).collect()
    }

    fn seconds(&self) -> f64 {
        median(self.walls())
    }

    fn cpu_seconds(&self) -> Option<f64> {
        Some(median(self.timings.iter().map(|timing| timing.cpu).collect::<Option<_>>()?))
    }

    fn gflops(&self) -> Option<f64> {
        Some(self.flop? / self.seconds() / 1e9)
    }
}

/// Everything that one run measured.
pub struct Table {
    pub rows: Vec<Row>,
    /// GFLOP/s of one core, once a round.
    pub peaks: Vec<f64>,
    /// Tokens a second of the paper's LP, once a round.
    pub baseline: Vec<f64>,
    /// Why there is no baseline.
    pub baseline_note: Option<String>,
    corpus: Value,
    num_tokens: usize,
}

impl Table {
    pub fn new(rows: Vec<Row>, corpus: &Corpus, num_tokens: usize) -> Self {
        let batch = corpus.batch();
        let corpus = json!({
            "name": corpus.name,
            "docs": batch.num_docs(),
            "tokens": num_tokens,
            "tokens_per_doc": num_tokens as f64 / batch.num_docs() as f64,
            "dim": batch.dim(),
            "dtype": batch.dtype().to_string(),
        });
        Table { rows, peaks: Vec::new(), baseline: Vec::new(), baseline_note: None, corpus, num_tokens }
    }

    fn peak(&self) -> Option<f64> {
        self.peaks.iter().copied().reduce(f64::max)
    }

    fn baseline(&self) -> Option<f64> {
        (!self.baseline.is_empty()).then(|| median(self.baseline.clone()))
    }

    fn tokens_per_second(&self, row: &Row) -> f64 {
        self.num_tokens as f64 / row.seconds()
    }

    /// Of all the cores in use.
    fn fraction_of_peak(&self, row: &Row) -> Option<f64> {
        Some(row.gflops()? / (self.peak()? * row.num_threads as f64))
    }

    /// Per core.
    fn times_baseline(&self, row: &Row) -> Option<f64> {
        let rate = self.tokens_per_second(row) / row.num_threads as f64;
        self.baseline().filter(|_| row.is_compared).map(|baseline| rate / baseline)
    }

    pub fn print(&self) {
        let text = |key| self.corpus[key].as_str().unwrap_or_default();
        let number = |key| self.corpus[key].as_f64().unwrap_or_default();
        println!(
            "corpus: {}, {} documents, {} tokens ({:.0} a document), dim {}, {}",
            text("name"),
            number("docs"),
            number("tokens"),
            number("tokens_per_doc"),
            number("dim"),
            text("dtype")
        );
        match self.peak() {
            Some(peak) => println!("peak: {peak:.1} GFLOP/s of f32 multiply-adds on one core"),
            None => println!("peak: no kernel for this processor"),
        }
        match (self.baseline(), &self.baseline_note) {
            (_, Some(note)) => println!("paper's LP: not measured ({note})"),
            (Some(rate), None) => println!("paper's LP: {rate:.0} tokens/s on one core"),
            (None, None) => {}
        }
        println!(
            "\n{:<20} {:>7} {:>10} {:>7} {:>5} {:>12} {:>8} {:>8} {:>10}",
            "work", "threads", "median ms", "spread", "cores", "tokens/s", "GFLOP/s", "of peak", "x LP/core"
        );
        self.rows.iter().for_each(|row| self.print_row(row));
    }

    fn print_row(&self, row: &Row) {
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        println!(
            "{:<20} {:>7} {:>10.1} {:>6.1}% {:>5} {:>12.0} {:>8} {:>8} {:>10}",
            row.work,
            row.num_threads,
            row.seconds() * 1e3,
            100.0 * spread(&row.walls()),
            or_dash(row.cpu_seconds().map(|cpu| format!("{:.2}", cpu / row.seconds()))),
            self.tokens_per_second(row),
            or_dash(row.gflops().map(|gflops| format!("{gflops:.1}"))),
            or_dash(self.fraction_of_peak(row).map(|share| format!("{:.1}%", 100.0 * share))),
            or_dash(self.times_baseline(row).map(|times| format!("{times:.0}"))),
        );
    }

    /// Writes `<date>-<cpu>-prune.json` if `out` is a folder.
    pub fn save(&self, out: &Path, machine: &Value, kept: &Value, paper: &Value) -> Result<PathBuf, Failure> {
        let path = if out.is_dir() { out.join(self.file_name()) } else { out.to_owned() };
        let report = json!({
            "machine": machine,
            "corpus": self.corpus,
            "scoring": super::SCORING.to_string(),
            "kept": kept,
            "peak_gflops_one_core": { "best": self.peak(), "rounds": self.peaks },
            "paper_lp": {
                "options": paper,
                "tokens_per_second_one_core": self.baseline(),
                "rounds": self.baseline,
            },
            "rows": self.rows.iter().map(|row| self.row_as_json(row)).collect::<Vec<_>>(),
        });
        std::fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")
            .map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(path)
    }

    fn file_name(&self) -> String {
        let cpu: String = machine::cpu().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { ' ' }).collect();
        let cpu = cpu.to_lowercase().split_whitespace().collect::<Vec<_>>().join("-");
        format!("{}-{cpu}-prune.json", machine::date())
    }

    fn row_as_json(&self, row: &Row) -> Value {
        json!({
            "work": row.work,
            "threads": row.num_threads,
            "median_seconds": row.seconds(),
            "spread": spread(&row.walls()),
            "seconds": row.walls(),
            "median_cpu_seconds": row.cpu_seconds(),
            "tokens_per_second": self.tokens_per_second(row),
            "useful_flop": row.flop,
            "gflops": row.gflops(),
            "fraction_of_peak": self.fraction_of_peak(row),
            "times_paper_lp_per_core": self.times_baseline(row),
        })
    }
}

/// Middle value; the mean of the two middle ones.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
    (low + high) / 2.0
}

/// `(largest - smallest) / median`.
fn spread(values: &[f64]) -> f64 {
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
    (largest - smallest) / median(values.to_vec())
}
