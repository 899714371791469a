//! The pruning table: every unit of work on a whole corpus, on one thread and on all cores, beside the core's measured
//! peak and the paper's LP baseline, all in one run.
//!
//! ```text
//! cargo bench --bench end_to_end -- [--corpus DIR] [--docs N] [--threads N] [--repeats N] [--quick]
//!                                   [--paper-lp SCRIPT [--python PY] [--paper-docs N]] [--out FILE or FOLDER]
//! ```
//!
//! Answers are checked before the clock starts. Repeats go round: each round times every row once, so that a machine
//! that drifts drifts for all of them.

#[path = "../common/mod.rs"]
mod common;
mod machine;
mod paper;
mod table;

use std::hint::black_box;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use common::{Certified, Corpus, EPSILON, Failure, SCORING};
use maxhull::engine::{CpuEngine, Engine, Goal};
use maxhull::{Pruner, Target, TokenBatch};
use table::{Row, Table, Timing};

const USAGE: &str = "cargo bench --bench end_to_end -- [--corpus DIR] [--docs N] [--threads N] [--repeats N] [--quick] \
                     [--paper-lp SCRIPT [--python PY] [--paper-docs N]] [--out FILE or FOLDER]";

struct Options {
    corpus: PathBuf,
    /// Documents to take from the front of the corpus.
    num_docs: usize,
    num_threads: usize,
    num_repeats: usize,
    is_quick: bool,
    paper: paper::Baseline,
    out: Option<PathBuf>,
}

impl Options {
    /// `None` when a filter on the command line names another bench.
    fn from_args(mut args: impl Iterator<Item = String>) -> Result<Option<Self>, Failure> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut options = Options {
            corpus: common::example_dir(),
            num_docs: usize::MAX,
            num_threads: cores,
            num_repeats: 7,
            // Without optimisation the times mean nothing: only see that it runs.
            is_quick: cfg!(debug_assertions),
            paper: paper::Baseline::default(),
            out: None,
        };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--corpus" => options.corpus = value()?.into(),
                "--docs" => options.num_docs = value()?.parse()?,
                "--threads" => options.num_threads = value()?.parse()?,
                "--repeats" => options.num_repeats = value()?.parse()?,
                "--paper-lp" => options.paper.script = Some(value()?.into()),
                "--paper-docs" => options.paper.num_docs = value()?.parse()?,
                "--python" => options.paper.python = value()?,
                "--out" => options.out = Some(value()?.into()),
                "--quick" => options.is_quick = true,
                // Cargo says it to every bench.
                "--bench" => {}
                filter if !filter.starts_with('-') => {
                    if !"end_to_end".contains(filter) {
                        return Ok(None);
                    }
                }
                _ => return Err(format!("unknown option {arg}\nusage: {USAGE}").into()),
            }
        }
        if options.is_quick {
            options.num_repeats = 2;
            options.paper.num_docs = options.paper.num_docs.min(2);
        }
        if options.num_repeats == 0 || options.num_threads == 0 || options.num_docs == 0 {
            return Err("--repeats, --threads and --docs are at least 1".into());
        }
        Ok(Some(options))
    }
}

/// One unit of work and what is known of it.
struct Work<'a> {
    name: &'static str,
    /// Useful flop of one run, where that is clear.
    flop: Option<f64>,
    /// Whether it does what the LP baseline does, or more: decides about tokens.
    is_compared: bool,
    run: Box<dyn Fn() + Send + Sync + 'a>,
}

impl<'a> Work<'a> {
    fn new<T>(name: &'static str, run: impl Fn() -> T + Send + Sync + 'a) -> Self {
        let run = move || {
            black_box(run());
        };
        Work { name, flop: None, is_compared: true, run: Box::new(run) }
    }
}

impl Work<'_> {
    fn row(&self, num_threads: usize) -> Row {
        let &Work { name, flop, is_compared, .. } = self;
        Row { work: name, num_threads, flop, is_compared, timings: Vec::new() }
    }
}

/// What the rows need in memory, checked.
struct Inputs<'a> {
    batch: TokenBatch<'a>,
    cpu: CpuEngine,
    engine: Arc<dyn Engine>,
    docs: Vec<Vec<f32>>,
    certified: Certified,
    notes: Vec<(String, serde_json::Value)>,
}

impl<'a> Inputs<'a> {
    /// Computes every answer once and checks it; the clock starts later.
    fn check(corpus: &'a Corpus) -> Result<Self, Failure> {
        let (batch, cpu) = (corpus.batch(), CpuEngine::new());
        let engine: Arc<dyn Engine> = Arc::new(CpuEngine::new());
        common::check_gram(&cpu, batch.doc(corpus.doc_of(180)), batch.dim());
        common::check_decisions(&*engine, corpus);
        common::check_order(&common::select(&*engine, &batch, Goal::Order), corpus);
        let mut notes = Vec::new();
        let mut prune = |target, epsilon| -> Result<Certified, Failure> {
            let pruned = common::pruner(&engine, target).prune(&batch, None)?;
            let kept = pruned.stats.num_kept as f64 / pruned.stats.num_tokens as f64;
            notes.push((format!("kept_at_{epsilon}"), kept.into()));
            common::check_pruned(&batch, &pruned, epsilon)
        };
        prune(Target::Lossless, 0.0)?;
        prune(Target::Epsilon(0.1), 0.1)?;
        prune(Target::Epsilon(0.3), 0.3)?;
        let certified = prune(Target::Epsilon(EPSILON), EPSILON)?;
        let docs = (0..batch.num_docs()).map(|doc_idx| common::to_f32(batch.doc(doc_idx))).collect();
        Ok(Inputs { batch, cpu, engine, docs, certified, notes })
    }

    /// Every row of the table.
    fn works(&self) -> Vec<Work<'_>> {
        let (batch, engine) = (&self.batch, &*self.engine);
        let gram = Work::new("gram", || common::gram_all(&self.cpu, &self.docs, batch.dim()));
        let orders = common::pruner(&self.engine, Target::Epsilon(EPSILON));
        vec![
            Work { flop: Some(gram_flop(batch)), is_compared: false, ..gram },
            Work::new("decide 0.2", || common::decide(engine, batch)),
            Work::new("decide 0.2 + proof", || common::decide_and_prove(engine, batch)),
            self.prune("prune 0.1", Target::Epsilon(0.1)),
            self.prune("prune 0.2", Target::Epsilon(EPSILON)),
            self.prune("prune 0.3", Target::Epsilon(0.3)),
            Work::new("order", move || orders.orders(batch, None)),
            self.prune("lossless", Target::Lossless),
            Work { is_compared: false, ..Work::new("verify 0.2", || self.certified.verify(batch)) },
        ]
    }

    fn prune(&self, name: &'static str, target: Target) -> Work<'_> {
        let pruner: Pruner = common::pruner(&self.engine, target);
        Work::new(name, move || pruner.prune(&self.batch, None))
    }
}

/// `G` is symmetric: `n (n + 1) / 2` inner products of `2 d` flop a document.
fn gram_flop(batch: &TokenBatch<'_>) -> f64 {
    let lengths = (0..batch.num_docs()).map(|doc_idx| batch.doc_len(doc_idx) as f64);
    lengths.map(|n| n * (n + 1.0) * batch.dim() as f64).sum()
}

fn measure(options: &Options, corpus: &Corpus, inputs: &Inputs<'_>) -> Result<Table, Failure> {
    let works = inputs.works();
    let mut counts = vec![1, options.num_threads];
    counts.dedup();
    let pools: Vec<_> = counts.iter().map(|&num_threads| (num_threads, common::pool(num_threads))).collect();
    let mut rows = Vec::new();
    for (num_threads, _) in &pools {
        rows.extend(works.iter().map(|work| work.row(*num_threads)));
    }
    let mut table = Table::new(rows, corpus, inputs.batch.num_tokens());
    table.baseline_note = options.paper.unavailable();
    for _ in 0..options.num_repeats {
        table.peaks.extend(machine::peak_gflops());
        let runs = pools.iter().flat_map(|(_, pool)| works.iter().map(move |work| (pool, work)));
        for ((pool, work), row) in runs.zip(&mut table.rows) {
            row.timings.push(Timing::of(|| pool.install(|| (work.run)())));
        }
        if table.baseline_note.is_none() {
            match options.paper.run(&options.corpus) {
                Ok(tokens_per_second) => table.baseline.push(tokens_per_second),
                Err(failure) => table.baseline_note = Some(failure.to_string()),
            }
        }
    }
    Ok(table)
}

fn run() -> Result<(), Failure> {
    let Some(options) = Options::from_args(std::env::args().skip(1))? else { return Ok(()) };
    let mut corpus = Corpus::open(&options.corpus).map_err(|e| format!("{}: {e}", options.corpus.display()))?;
    corpus.truncate(options.num_docs);
    let inputs = Inputs::check(&corpus)?;
    println!("{}: answers checked ({SCORING} scoring, {})", corpus.name, inputs.engine.name());
    let table = measure(&options, &corpus, &inputs)?;
    table.print();
    if let Some(out) = &options.out {
        let paper = serde_json::json!({ "docs": options.paper.num_docs, "theta": paper::THETA });
        let notes = serde_json::Map::from_iter(inputs.notes.iter().cloned());
        let machine = machine::describe(&inputs.engine.name());
        let path = table.save(out, &machine, &notes.into(), &paper)?;
        println!("written: {}", path.display());
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("end_to_end: {failure}");
            ExitCode::FAILURE
        }
    }
}
