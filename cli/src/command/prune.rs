//! `maxhull prune`: read → choose and prove → write, three stages that overlap on neighbouring batches.

use std::ops::Range;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use indicatif::ProgressBar;
use maxhull::{Method, PruneOptions, PruneStats, Pruned, Pruner, Target};
use serde::Serialize;

use super::{library_error, thread_pool};
use crate::args::{PruneArgs, StrategyArg, TargetArgs};
use crate::corpus::Corpus;
use crate::error::{Error, Result};
use crate::output::manifest::{self, Manifest};
use crate::output::{PrunedWriter, Staging, Written};
use crate::report::{self, Report, bytes, count, percent};
use crate::{interrupt, progress};

/// Batches that may wait between two stages.
const QUEUED_BATCHES: usize = 2;

/// Prunes and prints the report.
pub fn run(args: &PruneArgs) -> Result<()> {
    let started = Instant::now();
    check_device(&args.device)?;
    let method = method(args)?;
    let pruner = new_pruner(args, method)?;
    let corpus = Corpus::open(&args.common.corpus)?;
    let pool = thread_pool(&args.common)?;
    let staging = Staging::new(&args.output, &args.common.corpus, args.force)?;

    let bar = progress::bar(&args.common, "pruning", corpus.num_tokens());
    let writer = PrunedWriter::create(&staging, &corpus, args.scoring.into())?;
    let job = Job { args, corpus: &corpus, pruner: &pruner, bar: &bar };
    let done = job.run(&pool, writer)?;
    bar.finish_and_clear();

    let options = manifest_options(args, method);
    manifest(&corpus, options, &done).write(&staging)?;
    staging.publish()?;
    let report = PruneReport::new(args, &corpus, &done, pool.current_num_threads(), started.elapsed());
    report::print(&report, args.common.json)
}

fn check_device(device: &str) -> Result<()> {
    match device {
        "auto" | "cpu" => Ok(()),
        other => Err(Error::Device(format!("device {other}: this version computes on the CPU only; use --device cpu"))),
    }
}

fn new_pruner(args: &PruneArgs, method: Method) -> Result<Pruner> {
    let pruner = Pruner::new(PruneOptions { scoring: args.scoring.into(), method });
    pruner.map_err(|error| Error::Usage(error.to_string()))
}

fn method(args: &PruneArgs) -> Result<Method> {
    let target = target(&args.target);
    let usage = |why: &str| Err(Error::Usage(why.to_owned()));
    if args.theta.is_some() && args.strategy != StrategyArg::Lp {
        return usage("--theta belongs to --strategy lp");
    }
    if args.norm_threshold.is_some() && args.strategy != StrategyArg::Norm {
        return usage("--norm-threshold belongs to --strategy norm");
    }
    match (args.strategy, target) {
        (StrategyArg::Hull, Some(target)) => Ok(Method::Hull(target)),
        (StrategyArg::Hull, None) => {
            usage("say how far to prune: one of --epsilon, --keep-ratio, --max-tokens, --max-bytes, --lossless")
        }
        (StrategyArg::Lp, None) => Ok(Method::Lp { theta: args.theta.unwrap_or(0.7) }),
        (StrategyArg::Norm, None) => Ok(Method::Norm { threshold: args.norm_threshold.unwrap_or(0.5) }),
        (StrategyArg::Lp | StrategyArg::Norm, Some(_)) => {
            usage("the strategies lp and norm take no target: lp has --theta, norm has --norm-threshold")
        }
    }
}

fn target(args: &TargetArgs) -> Option<Target> {
    let lossless = args.lossless.then_some(Target::Lossless);
    let epsilon = args.epsilon.map(Target::Epsilon).or(args.keep_ratio.map(Target::KeepRatio));
    epsilon.or(args.max_tokens.map(Target::MaxTokens)).or(args.max_bytes.map(Target::MaxBytes)).or(lossless)
}

/// Everything that the stages share.
struct Job<'a> {
    args: &'a PruneArgs,
    corpus: &'a Corpus,
    pruner: &'a Pruner,
    bar: &'a ProgressBar,
}

/// What came out, and where the time went.
struct Done {
    written: Written,
    stats: PruneStats,
    read: Duration,
    compute: Duration,
    write: Duration,
}

impl Job<'_> {
    /// The reader and the writer have a thread of their own; this one hands batches to the pool.
    fn run(&self, pool: &rayon::ThreadPool, writer: PrunedWriter) -> Result<Done> {
        let (read_batch, batches) = bounded(QUEUED_BATCHES);
        let (send_pruned, pruned) = bounded(QUEUED_BATCHES);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| self.read(read_batch));
            let writer = scope.spawn(|| self.write(pruned, writer));
            let computed = pool.install(|| self.compute(batches, send_pruned));
            // A stage that fails drops its end of a channel, and its neighbours stop; the cause is what it returns.
            let (writer, write) = join(writer)?;
            let (stats, compute) = computed?;
            let read = join(reader);
            let started = Instant::now();
            let written = writer.finish()?;
            Ok(Done { written, stats, read, compute, write: write + started.elapsed() })
        })
    }

    fn read(&self, batches: Sender<Range<usize>>) -> Duration {
        let mut busy = Duration::ZERO;
        for docs in self.corpus.batches(self.args.common.batch_tokens as usize) {
            let started = Instant::now();
            self.corpus.fault_in(&docs);
            busy += started.elapsed();
            if batches.send(docs).is_err() {
                break;
            }
        }
        busy
    }

    fn compute(
        &self,
        batches: Receiver<Range<usize>>,
        pruned: Sender<(Range<usize>, Pruned)>,
    ) -> Result<(PruneStats, Duration)> {
        let mut stats = PruneStats::default();
        let mut busy = Duration::ZERO;
        for docs in batches {
            interrupt::check()?;
            let started = Instant::now();
            let protected = self.protected(&docs);
            let batch = self.corpus.batch(docs.clone())?;
            let result = self.pruner.prune(&batch, protected.as_deref());
            let result = result.map_err(|error| library_error(error, self.corpus, docs.start))?;
            busy += started.elapsed();
            stats += result.stats;
            if pruned.send((docs, result)).is_err() {
                break;
            }
        }
        interrupt::check()?;
        Ok((stats, busy))
    }

    fn write(
        &self,
        pruned: Receiver<(Range<usize>, Pruned)>,
        mut writer: PrunedWriter,
    ) -> Result<(PrunedWriter, Duration)> {
        let mut busy = Duration::ZERO;
        for (docs, result) in pruned {
            let started = Instant::now();
            let batch = self.corpus.batch(docs)?;
            writer.write(&batch, &result.docs)?;
            self.bar.inc(batch.num_tokens() as u64);
            busy += started.elapsed();
        }
        Ok((writer, busy))
    }

    /// Flags of the tokens that always stay.
    fn protected(&self, docs: &Range<usize>) -> Option<Vec<bool>> {
        let (first, last) = (self.args.protect_first as usize, self.args.protect_last as usize);
        if first == 0 && last == 0 {
            return None;
        }
        let mut flags = Vec::with_capacity(self.corpus.num_tokens_of(docs));
        for doc_idx in docs.clone() {
            let len = self.corpus.num_tokens_of(&(doc_idx..doc_idx + 1));
            flags.extend((0..len).map(|token_idx| token_idx < first || token_idx + last >= len));
        }
        Some(flags)
    }
}

/// A panic of a stage goes on here, so that the folder under construction is removed on the way.
fn join<T>(handle: std::thread::ScopedJoinHandle<'_, T>) -> T {
    handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn manifest_options(args: &PruneArgs, method: Method) -> manifest::Options {
    let mut options = manifest::Options {
        scoring: maxhull::Scoring::from(args.scoring).to_string(),
        strategy: match method {
            Method::Hull(_) => "hull",
            Method::Lp { .. } => "lp",
            Method::Norm { .. } => "norm",
        }
        .to_owned(),
        target: None,
        target_value: None,
        epsilon: None,
        theta: None,
        norm_threshold: None,
        protect_first: args.protect_first,
        protect_last: args.protect_last,
    };
    match method {
        Method::Hull(target) => {
            let (name, value) = match target {
                // The shortest decimal that reads back as this f32, and not its 17 digits as an f64.
                Target::Epsilon(epsilon) => ("epsilon", epsilon.to_string().parse().ok()),
                Target::KeepRatio(ratio) => ("keep_ratio", serde_json::Number::from_f64(ratio)),
                Target::MaxTokens(most) => ("max_tokens", Some(most.into())),
                Target::MaxBytes(most) => ("max_bytes", Some(most.into())),
                Target::Lossless => ("lossless", None),
            };
            options.target = Some(name.to_owned());
            options.target_value = value;
        }
        Method::Lp { theta } => options.theta = Some(theta),
        Method::Norm { threshold } => options.norm_threshold = Some(threshold),
    }
    options
}

fn manifest(corpus: &Corpus, options: manifest::Options, done: &Done) -> Manifest {
    let Written { num_docs_pruned, num_kept, worst_bound, mean_bound, certificate_bytes, .. } = done.written;
    let original = manifest::Original {
        num_docs: corpus.num_docs() as u64,
        num_tokens: corpus.num_tokens(),
        dim: corpus.dim() as u64,
        dtype: corpus.dtype().to_string(),
        checksum: super::verify::checksum(&done.written.root),
    };
    let num_undecided = done.stats.num_undecided;
    let pruned = manifest::Pruned {
        num_tokens: num_kept,
        num_docs_pruned,
        worst_bound,
        mean_bound,
        num_undecided,
        certificate_bytes,
    };
    Manifest::new(options, original, pruned)
}

/// What is printed at the end.
#[derive(Debug, Serialize)]
struct PruneReport {
    output: String,
    scoring: String,
    device: &'static str,
    num_threads: usize,
    num_docs: u64,
    num_docs_pruned: u64,
    num_tokens: u64,
    num_kept: u64,
    kept_share: f64,
    token_bytes_before: u64,
    token_bytes_after: u64,
    certificate_bytes: u64,
    worst_bound: f32,
    mean_bound: f64,
    num_undecided: u64,
    num_resolved: u64,
    guarantee: String,
    times: Times,
}

/// Seconds; the stages overlap, so they do not add up to the wall clock.
#[derive(Debug, Serialize)]
struct Times {
    wall_seconds: f64,
    read_seconds: f64,
    compute_seconds: f64,
    select_thread_seconds: f64,
    prove_thread_seconds: f64,
    write_seconds: f64,
    tokens_per_second: f64,
}

impl PruneReport {
    fn new(args: &PruneArgs, corpus: &Corpus, done: &Done, num_threads: usize, wall: Duration) -> Self {
        let Written { num_docs, num_docs_pruned, num_kept, worst_bound, mean_bound, certificate_bytes, .. } =
            done.written;
        let num_tokens = corpus.num_tokens();
        PruneReport {
            output: args.output.display().to_string(),
            scoring: maxhull::Scoring::from(args.scoring).to_string(),
            device: "cpu",
            num_threads,
            num_docs,
            num_docs_pruned,
            num_tokens,
            num_kept,
            kept_share: num_kept as f64 / num_tokens as f64,
            token_bytes_before: num_tokens * corpus.token_bytes(),
            token_bytes_after: num_kept * corpus.token_bytes(),
            certificate_bytes,
            worst_bound,
            mean_bound,
            num_undecided: done.stats.num_undecided,
            num_resolved: done.stats.num_resolved,
            guarantee: report::guarantee(args.scoring.into(), worst_bound),
            times: Times {
                wall_seconds: wall.as_secs_f64(),
                read_seconds: done.read.as_secs_f64(),
                compute_seconds: done.compute.as_secs_f64(),
                select_thread_seconds: done.stats.select_seconds,
                prove_thread_seconds: done.stats.prove_seconds,
                write_seconds: done.write.as_secs_f64(),
                tokens_per_second: num_tokens as f64 / wall.as_secs_f64(),
            },
        }
    }
}

impl Report for PruneReport {
    fn text(&self) -> String {
        let removed = self.num_tokens - self.num_kept;
        let t = &self.times;
        format!(
            "documents  {docs}, {pruned} of them pruned\n\
             tokens     {before} -> {after}, {share} removed, every removal proven\n\
             bytes      {bytes_before} -> {bytes_after}, and {certificate} of certificate\n\
             bound      {worst} at worst, {mean:.4} in the mean\n\
             undecided  {undecided} kept because no solver decided; {resolved} decided by the exact solver\n\
             time       {wall:.2} s, {rate} tokens/s on {threads} threads\n\
             \x20          read {read:.2} s, compute {compute:.2} s (selection {select:.2}, proof {prove:.2} thread-seconds), \
             write {write:.2} s, overlapping\n\
             guarantee  {guarantee}\n\
             written    {output}\n",
            docs = count(self.num_docs),
            pruned = count(self.num_docs_pruned),
            before = count(self.num_tokens),
            after = count(self.num_kept),
            share = percent(removed, self.num_tokens),
            bytes_before = bytes(self.token_bytes_before),
            bytes_after = bytes(self.token_bytes_after),
            certificate = bytes(self.certificate_bytes),
            worst = self.worst_bound,
            mean = self.mean_bound,
            undecided = count(self.num_undecided),
            resolved = count(self.num_resolved),
            wall = t.wall_seconds,
            rate = count(t.tokens_per_second as u64),
            threads = self.num_threads,
            read = t.read_seconds,
            compute = t.compute_seconds,
            select = t.select_thread_seconds,
            prove = t.prove_thread_seconds,
            write = t.write_seconds,
            guarantee = self.guarantee,
            output = self.output,
        )
    }
}
