//! `maxhull score`: read → score → rank, or write. Documents come in batches, so memory does not grow with the corpus.
//!
//! Beside the queries it holds one batch of documents (`--batch-tokens`) and, per query, twice the top k for each
//! thread; or for `scores.npy` a block of [`MAX_BLOCK_SCORES`] scores.

use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use maxhull::engine::OpenDevice;
use maxhull::{Hit, Scorer, Scoring, TokenBatch, TokenData, TopK};
use serde::Serialize;

use super::{library_error, open_device, stages, thread_pool};
use crate::args::ScoreArgs;
use crate::corpus::{Corpus, lengths_beside};
use crate::error::{Error, Problem, Result};
use crate::notices::Notices;
use crate::output::{ScoresWriter, StagedFile};
use crate::progress;
use crate::report::{self, Report, count};

/// `--top-k` without a number.
const DEFAULT_TOP_K: u32 = 100;
/// Scores in memory at a time on their way to a file: 32 MiB.
const MAX_BLOCK_SCORES: usize = 1 << 23;
/// Last field of a line of a run.
const TAG: &str = "maxhull";

/// Scores, and prints or writes the result.
pub fn run(args: &ScoreArgs) -> Result<()> {
    let started = Instant::now();
    let output = Output::of(args)?;
    let queries = Corpus::open_queries(&args.queries)?;
    let docs = Corpus::open(&args.common.corpus)?;
    let job = Job::new(args, &queries, &docs)?;
    let pool = thread_pool(&args.common)?;
    match output {
        Output::Stdout => {
            let rankings = job.rank(&pool)?;
            if !args.common.json {
                return print_run(&rankings);
            }
            let score = job.report(&pool, started);
            report::print_json(&RankReport { score, rankings: queries_from_1(&rankings) })
        }
        Output::Run(path) => {
            let file = job.stage(path)?;
            write_run(&file.path(), &job.rank(&pool)?).with_context(|| failed(path))?;
            file.publish()?;
            report::print(&job.report(&pool, started), args.common.json)
        }
        Output::Scores(path) => {
            let file = job.stage(path)?;
            job.write_scores(&pool, &file.path(), path)?;
            file.publish()?;
            report::print(&job.report(&pool, started), args.common.json)
        }
    }
}

/// Where the result goes, and so what it is.
enum Output<'a> {
    Stdout,
    Run(&'a Path),
    Scores(&'a Path),
}

impl<'a> Output<'a> {
    fn of(args: &'a ScoreArgs) -> Result<Self> {
        let Some(path) = args.out.as_deref() else { return Ok(Output::Stdout) };
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("trec") => Ok(Output::Run(path)),
            Some("npy") if args.top_k.is_some() => {
                Err(Error::Usage("--top-k belongs to a ranking, and a .npy holds every score; drop one of them".into()))
            }
            Some("npy") => Ok(Output::Scores(path)),
            _ => Err(Error::Usage(format!(
                "--out {}: the name says what to write, *.trec for a ranking or *.npy for all scores",
                path.display()
            ))),
        }
    }
}

fn scorer(args: &ScoreArgs, device: Option<&OpenDevice>, notices: &Arc<Notices>) -> Result<Scorer> {
    let mut scorer = Scorer::new(args.scoring.into());
    if let Some(device) = device {
        scorer = device.scorer(scorer).with_notices(Notices::notify(notices));
    }
    match args.empty_doc_score {
        None => Ok(scorer),
        Some(score) if score.is_finite() => Ok(scorer.with_empty_doc_score(score)),
        Some(score) => Err(Error::Usage(format!("--empty-doc-score {score}: a finite number is needed"))),
    }
}

struct Job<'a> {
    args: &'a ScoreArgs,
    queries: &'a Corpus,
    docs: &'a Corpus,
    scorer: Scorer,
    notices: Arc<Notices>,
    batch_tokens: u32,
    /// Largest magnitude of a component of a query.
    query_component: f32,
    /// Tokens of the longest query.
    query_len: usize,
}

impl<'a> Job<'a> {
    /// Refuses what can be refused before any document is read.
    fn new(args: &'a ScoreArgs, queries: &'a Corpus, docs: &'a Corpus) -> Result<Self> {
        check_dims(queries, docs)?;
        if Scoring::from(args.scoring) == Scoring::Plain && args.empty_doc_score.is_none() {
            check_no_doc_is_empty(docs)?;
        }
        let batch = queries.batch(0..queries.num_docs())?;
        batch.check_finite().map_err(|error| query_error(error, queries))?;
        let query_idxs = 0..batch.num_docs();
        let components = query_idxs.clone().map(|query_idx| largest_component(batch.doc(query_idx)));
        let query_component = components.fold(0.0, f32::max);
        let query_len = query_idxs.map(|query_idx| batch.doc_len(query_idx)).max().unwrap_or(0);
        let notices = Arc::default();
        let device = open_device(args.device)?;
        let scorer = scorer(args, device.as_ref(), &notices)?;
        let common = &args.common;
        let batch_tokens = if device.is_some() { common.gpu_batch_tokens() } else { common.cpu_batch_tokens() };
        Ok(Job { args, queries, docs, scorer, notices, batch_tokens, query_component, query_len })
    }

    fn queries(&self) -> Result<TokenBatch<'_>> {
        self.queries.batch(0..self.queries.num_docs())
    }

    /// A place for `out` that is none of the inputs.
    fn stage(&self, out: &Path) -> Result<StagedFile> {
        let (queries, docs) = (self.queries.tokens_path(), self.docs.tokens_path());
        let (query_lengths, doc_lengths) = (lengths_beside(queries), lengths_beside(docs));
        StagedFile::new(out, &[queries, docs, &query_lengths, &doc_lengths], self.args.force)
    }

    /// The best documents of each query.
    fn rank(&self, pool: &rayon::ThreadPool) -> Result<Vec<Vec<Hit>>> {
        let queries = self.queries()?;
        let k = self.args.top_k.unwrap_or(DEFAULT_TOP_K) as usize;
        let mut top_k = TopK::new(queries.num_docs(), k.min(self.docs.num_docs()));
        self.each_batch(pool, |batch, docs| {
            self.notices.set_first_doc(docs.start);
            let added = self.scorer.add_to_top_k(queries, batch, docs.start as u64, &mut top_k);
            added.map_err(|error| library_error(error, self.docs, docs.start))
        })?;
        Ok(top_k.into_hits())
    }

    /// Every score, to the file `path`, which will be `out`.
    fn write_scores(&self, pool: &rayon::ThreadPool, path: &Path, out: &Path) -> Result<()> {
        let queries = self.queries()?;
        let num_queries = queries.num_docs();
        let block_docs = (MAX_BLOCK_SCORES / num_queries).max(1);
        let mut writer = ScoresWriter::create(path, num_queries, self.docs.num_docs()).with_context(|| failed(out))?;
        self.each_batch(pool, |batch, docs| {
            for start in (0..batch.num_docs()).step_by(block_docs) {
                let end = (start + block_docs).min(batch.num_docs());
                let columns = docs.start + start..docs.start + end;
                self.notices.set_first_doc(columns.start);
                let scores = self.scorer.scores(queries, batch.docs(start..end));
                let scores = scores.map_err(|error| library_error(error, self.docs, columns.start))?;
                writer.write(&columns, &scores).with_context(|| failed(out))?;
            }
            Ok(())
        })?;
        Ok(writer.finish().with_context(|| failed(out))?)
    }

    /// Hands every batch of documents, checked, to `work` on the pool.
    fn each_batch(
        &self,
        pool: &rayon::ThreadPool,
        mut work: impl FnMut(TokenBatch<'_>, &Range<usize>) -> Result<()> + Send,
    ) -> Result<()> {
        let common = &self.args.common;
        let bar = progress::bar(common, "scoring", self.docs.num_tokens());
        self.notices.print_above(&bar);
        stages::each_batch(self.docs, pool, self.batch_tokens, |docs| {
            let batch = self.docs.batch(docs.clone())?;
            batch.check_finite().map_err(|error| library_error(error, self.docs, docs.start))?;
            self.check_range(&batch, docs.start)?;
            work(batch, &docs)?;
            bar.inc(batch.num_tokens() as u64);
            self.docs.release(&docs);
            Ok(true)
        })?;
        bar.finish_and_clear();
        self.notices.finish();
        Ok(())
    }

    /// Refuses components so large that a score could leave f32, where NaN and infinity would begin.
    fn check_range(&self, batch: &TokenBatch<'_>, first_doc: usize) -> Result<()> {
        let num_products = self.query_len as f64 * batch.dim() as f64;
        let could_overflow = |&doc_idx: &usize| {
            let product = f64::from(largest_component(batch.doc(doc_idx))) * f64::from(self.query_component);
            product * num_products >= f64::from(f32::MAX)
        };
        let Some(doc_idx) = (0..batch.num_docs()).find(could_overflow) else {
            return Ok(());
        };
        let doc_component = largest_component(batch.doc(doc_idx));
        let doc_idx = first_doc + doc_idx;
        let problem = Problem::ScoreOverflow { doc_idx, doc_component, query_component: self.query_component };
        Err(problem.at(self.docs.tokens_path()).into())
    }

    fn report(&self, pool: &rayon::ThreadPool, started: Instant) -> ScoreReport {
        let is_matrix = self.args.out.as_ref().is_some_and(|out| out.extension().is_some_and(|name| name == "npy"));
        ScoreReport {
            output: self.args.out.as_ref().map(|out| out.display().to_string()),
            scoring: Scoring::from(self.args.scoring).to_string(),
            top_k: (!is_matrix).then(|| self.args.top_k.unwrap_or(DEFAULT_TOP_K)),
            device: self.scorer.name(),
            num_threads: pool.current_num_threads(),
            num_queries: self.queries.num_docs() as u64,
            num_query_tokens: self.queries.num_tokens(),
            num_docs: self.docs.num_docs() as u64,
            num_tokens: self.docs.num_tokens(),
            wall_seconds: started.elapsed().as_secs_f64(),
        }
    }
}

fn check_dims(queries: &Corpus, docs: &Corpus) -> Result<()> {
    if queries.dim() == docs.dim() {
        return Ok(());
    }
    let queries_path = queries.tokens_path().to_owned();
    let problem = Problem::QueryDim { docs: docs.dim(), queries: queries.dim(), queries_path };
    Err(problem.at(docs.tokens_path()).into())
}

fn check_no_doc_is_empty(docs: &Corpus) -> Result<()> {
    let empty = || docs.offsets().windows(2).enumerate().filter(|(_, doc)| doc[0] == doc[1]);
    let Some((doc_idx, _)) = empty().next() else {
        return Ok(());
    };
    let problem = Problem::EmptyDoc { doc_idx, num_empty: empty().count(), num_docs: docs.num_docs() };
    Err(problem.at(docs.tokens_path()).into())
}

/// An error of the library about the queries, which it calls documents.
fn query_error(error: maxhull::Error, queries: &Corpus) -> Error {
    let maxhull::Error::NonFinite { doc_idx, token_idx, component_idx, value } = error else {
        return library_error(error, queries, 0);
    };
    let at = format!("query {doc_idx}, token {token_idx}, component {component_idx}");
    let why = format!("{at} is {value}: tokens must be finite; encode that query again or drop it");
    Problem::Other(why).at(queries.tokens_path()).into()
}

fn failed(out: &Path) -> String {
    format!("{} could not be written", out.display())
}

fn print_run(rankings: &[Vec<Hit>]) -> Result<()> {
    let mut stdout = std::io::BufWriter::new(std::io::stdout().lock());
    write_lines(&mut stdout, rankings).and_then(|()| stdout.flush()).map_err(Error::stdout)
}

fn write_run(path: &Path, rankings: &[Vec<Hit>]) -> std::io::Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create_new(path)?);
    write_lines(&mut file, rankings)?;
    file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
}

/// A TREC run: queries and documents numbered from 1. The decimals of a score read back as the same f32.
fn write_lines(out: &mut impl Write, rankings: &[Vec<Hit>]) -> std::io::Result<()> {
    for (query, hits) in (1..).zip(rankings) {
        for (rank, Hit { doc_idx, score }) in (1..).zip(hits) {
            writeln!(out, "{query} Q0 {} {rank} {score} {TAG}", doc_idx + 1)?;
        }
    }
    Ok(())
}

/// Largest magnitude of a finite component, or what no component of the type exceeds.
fn largest_component(data: TokenData<'_>) -> f32 {
    match data {
        // Bits without the sign order like magnitudes, and integers have a fast maximum.
        TokenData::F32(values) => {
            f32::from_bits(values.iter().map(|value| value.to_bits() & (u32::MAX >> 1)).max().unwrap_or(0))
        }
        // A corpus holds f16 or f32.
        _ => half::f16::MAX.to_f32(),
    }
}

/// The rankings as JSON, numbered as in a run.
fn queries_from_1(rankings: &[Vec<Hit>]) -> Vec<Ranking> {
    let doc = |hit: &Hit| RankedDoc { doc: hit.doc_idx + 1, score: hit.score };
    (1..).zip(rankings).map(|(query, hits)| Ranking { query, docs: hits.iter().map(doc).collect() }).collect()
}

/// What is printed beside the result.
#[derive(Debug, Serialize)]
struct ScoreReport {
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    scoring: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<u32>,
    device: String,
    num_threads: usize,
    num_queries: u64,
    num_query_tokens: u64,
    num_docs: u64,
    num_tokens: u64,
    wall_seconds: f64,
}

impl Report for ScoreReport {
    fn text(&self) -> String {
        let what = match self.top_k {
            Some(k) => format!("the best {} documents of each query", count(u64::from(k).min(self.num_docs))),
            None => format!("every score, f32 [{}, {}]", self.num_queries, self.num_docs),
        };
        let mut text = format!(
            "queries    {}, {} tokens\ndocuments  {}, {} tokens\nscoring    {}\n",
            count(self.num_queries),
            count(self.num_query_tokens),
            count(self.num_docs),
            count(self.num_tokens),
            self.scoring,
        );
        if let Some(output) = &self.output {
            text += &format!("output     {output}: {what}\n");
        }
        text + &format!("time       {:.2} s on {}, {} threads\n", self.wall_seconds, self.device, self.num_threads)
    }
}

/// Rankings that no file was asked for.
#[derive(Debug, Serialize)]
struct RankReport {
    #[serde(flatten)]
    score: ScoreReport,
    rankings: Vec<Ranking>,
}

#[derive(Debug, Serialize)]
struct Ranking {
    query: u64,
    docs: Vec<RankedDoc>,
}

#[derive(Debug, Serialize)]
struct RankedDoc {
    doc: u64,
    score: f32,
}
