//! `maxhull prune`: read → choose and prove → write, three stages that overlap on neighbouring batches.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use indicatif::ProgressBar;
use maxhull::{Budget, Method, PruneStats, Pruned, Pruner, Target};
use serde::Serialize;

use super::stages::{self, QUEUED_BATCHES, join};
use super::{library_error, new_pruner, open_engine, thread_pool};
use crate::args::{PruneArgs, StrategyArg, TargetArgs};
use crate::corpus::Corpus;
use crate::error::{Error, Result};
use crate::notices::Notices;
use crate::output::manifest::{self, Manifest};
use crate::output::{PrunedWriter, Staging, Written};
use crate::progress;
use crate::report::{self, Report, bytes, count, percent};

/// Prunes and prints the report.
pub fn run(args: &PruneArgs) -> Result<()> {
    let started = Instant::now();
    let asked = method(args)?;
    let notices = Arc::default();
    let engine = open_engine(&args.device, &notices)?;
    let pruner = new_pruner(&engine, args.scoring.into(), asked)?;
    let corpus = Corpus::open(&args.common.corpus)?;
    let pool = thread_pool(&args.common)?;
    let staging = Staging::new(&args.output, &args.common.corpus, args.force)?;

    let passes = if args.target.max_bytes.is_some() { 2 } else { 1 };
    let bar = progress::bar(&args.common, "pruning", passes * corpus.num_tokens());
    notices.print_above(&bar);
    let batch_tokens = args.common.batch_tokens(&*engine);
    let mut job = Job { args, corpus: &corpus, pool: &pool, pruner, bar: &bar, notices: &notices, batch_tokens };
    let mut planned = None;
    if let Some(max_bytes) = args.target.max_bytes {
        let epsilon = job.plan(max_bytes)?;
        job.pruner = new_pruner(&engine, args.scoring.into(), Method::Hull(Target::Planned(epsilon)))?;
        planned = Some((epsilon, started.elapsed()));
    }
    let done = job.run(PrunedWriter::create(&staging, &corpus, args.scoring.into())?)?;
    bar.finish_and_clear();
    notices.finish();

    let options = manifest::Options { epsilon: planned.map(|(epsilon, _)| epsilon), ..manifest_options(args, asked) };
    manifest(&corpus, options, &done).write(&staging)?;
    staging.publish()?;
    let times = Times::new(&done, planned.map(|(_, time)| time), started.elapsed(), &corpus);
    let num_threads = pool.current_num_threads();
    let report = PruneReport { device: engine.name(), num_threads, ..PruneReport::new(args, &corpus, &done, times) };
    report::print(&report, args.common.json)
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
    pool: &'a rayon::ThreadPool,
    pruner: Pruner,
    bar: &'a ProgressBar,
    notices: &'a Notices,
    batch_tokens: u32,
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
    /// First pass of a byte budget: the tolerance at which all documents together fit.
    fn plan(&self, max_bytes: u64) -> Result<f32> {
        let mut budget = Budget::new();
        self.each_batch(|docs| {
            let protected = self.protected(&docs);
            let curves = self.pruner.curves(&self.corpus.batch(docs.clone())?, protected.as_deref());
            let curves = curves.map_err(|error| library_error(error, self.corpus, docs.start))?;
            curves.iter().for_each(|curve| budget.add(curve));
            self.bar.inc(self.corpus.num_tokens_of(&docs) as u64);
            Ok(true)
        })?;
        let tolerance = budget.tolerance(max_bytes / self.corpus.token_bytes());
        tolerance.map_err(|error| Error::Usage(format!("--max-bytes {max_bytes}: {error}")))
    }

    /// Prunes every batch; the writer has a thread of its own.
    fn run(&self, writer: PrunedWriter) -> Result<Done> {
        let (send_pruned, pruned) = bounded(QUEUED_BATCHES);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| self.write(pruned, writer));
            let computed = self.compute(send_pruned);
            // A stage that fails drops its end of a channel, and its neighbours stop; the cause is what it returns.
            let (writer, write) = join(writer)?;
            let (stats, compute, read) = computed?;
            let started = Instant::now();
            let written = writer.finish()?;
            Ok(Done { written, stats, read, compute, write: write + started.elapsed() })
        })
    }

    fn compute(&self, pruned: Sender<(Range<usize>, Pruned)>) -> Result<(PruneStats, Duration, Duration)> {
        let mut stats = PruneStats::default();
        let mut busy = Duration::ZERO;
        let read = self.each_batch(|docs| {
            let started = Instant::now();
            let protected = self.protected(&docs);
            let result = self.pruner.prune(&self.corpus.batch(docs.clone())?, protected.as_deref());
            let result = result.map_err(|error| library_error(error, self.corpus, docs.start))?;
            busy += started.elapsed();
            stats += result.stats;
            Ok(pruned.send((docs, result)).is_ok())
        })?;
        Ok((stats, busy, read))
    }

    /// See [`stages::each_batch`].
    fn each_batch(&self, mut work: impl FnMut(Range<usize>) -> Result<bool> + Send) -> Result<Duration> {
        stages::each_batch(self.corpus, self.pool, self.batch_tokens, |docs| {
            self.notices.set_first_doc(docs.start);
            work(docs)
        })
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
                // Never asked for: a plan is made for a byte budget, whose tolerance stands in `epsilon`.
                Target::Planned(_) => ("planned", None),
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
#[derive(Debug, Default, Serialize)]
struct PruneReport {
    output: String,
    scoring: String,
    device: String,
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
    num_refined: u64,
    num_resolved: u64,
    guarantee: String,
    times: Times,
}

/// The stages overlap, so they do not add up to the wall clock.
#[derive(Debug, Default, Serialize)]
struct Times {
    wall_seconds: f64,
    /// First pass of a byte budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    plan_seconds: Option<f64>,
    read_seconds: f64,
    compute_seconds: f64,
    select_seconds: f64,
    prove_seconds: f64,
    write_seconds: f64,
    tokens_per_second: f64,
}

impl Times {
    fn new(done: &Done, plan: Option<Duration>, wall: Duration, corpus: &Corpus) -> Self {
        Times {
            wall_seconds: wall.as_secs_f64(),
            plan_seconds: plan.map(|plan| plan.as_secs_f64()),
            read_seconds: done.read.as_secs_f64(),
            compute_seconds: done.compute.as_secs_f64(),
            select_seconds: done.stats.select_seconds,
            prove_seconds: done.stats.prove_seconds,
            write_seconds: done.write.as_secs_f64(),
            tokens_per_second: corpus.num_tokens() as f64 / wall.as_secs_f64(),
        }
    }
}

impl PruneReport {
    fn new(args: &PruneArgs, corpus: &Corpus, done: &Done, times: Times) -> Self {
        let written = &done.written;
        let num_tokens = corpus.num_tokens();
        PruneReport {
            output: args.output.display().to_string(),
            scoring: maxhull::Scoring::from(args.scoring).to_string(),
            num_docs: written.num_docs,
            num_docs_pruned: written.num_docs_pruned,
            num_tokens,
            num_kept: written.num_kept,
            kept_share: written.num_kept as f64 / num_tokens as f64,
            token_bytes_before: num_tokens * corpus.token_bytes(),
            token_bytes_after: written.num_kept * corpus.token_bytes(),
            certificate_bytes: written.certificate_bytes,
            worst_bound: written.worst_bound,
            mean_bound: written.mean_bound,
            num_undecided: done.stats.num_undecided,
            num_refined: done.stats.num_refined,
            num_resolved: done.stats.num_resolved,
            guarantee: report::guarantee(args.scoring.into(), written.worst_bound),
            times,
            ..PruneReport::default()
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
             undecided  {undecided} kept because no solver decided; {resolved} proofs solved again in f64\n\
             time       {wall:.2} s, {rate} tokens/s on {device}, {threads} threads\n\
             \x20          {plan}read {read:.2} s, select {select:.2} s, prove {prove:.2} s, write {write:.2} s; reading and \
             writing overlap\n\
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
            device = self.device,
            threads = self.num_threads,
            plan = t.plan_seconds.map_or(String::new(), |plan| format!("plan {plan:.2} s, ")),
            read = t.read_seconds,
            select = t.select_seconds,
            prove = t.prove_seconds,
            write = t.write_seconds,
            guarantee = self.guarantee,
            output = self.output,
        )
    }
}
