//! `maxhull evaluate`: how good a ranking is, by relevance judgements.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde::Serialize;

use crate::args::EvaluateArgs;
use crate::error::{Problem, Result};
use crate::interrupt;
use crate::measures::Measures;
use crate::report::{self, Report, count};
use crate::trec::{self, Table};

/// Evaluates and prints the means.
pub fn run(args: &EvaluateArgs) -> Result<()> {
    let run = read(&args.run, trec::read_run)?;
    let qrels = read(&args.qrels, trec::read_qrels)?;
    report::print(&EvaluateReport::new(&run, &qrels, args.k as usize), args.json)
}

fn read<T>(path: &Path, parse: fn(BufReader<File>) -> std::result::Result<Table<T>, Problem>) -> Result<Table<T>> {
    let file = File::open(path).map_err(|error| Problem::io(error, "check the path").at(path))?;
    let table = parse(BufReader::with_capacity(1 << 20, file)).map_err(|problem| problem.at(path))?;
    interrupt::check()?;
    Ok(table)
}

#[derive(Debug, Serialize)]
struct EvaluateReport {
    k: usize,
    /// Means over these.
    num_judged_queries: u64,
    /// Judged queries that the run does not have; each measure of them is 0.
    num_missing_queries: u64,
    /// Queries of the run without judgements; they do not count.
    num_unjudged_queries: u64,
    #[serde(flatten)]
    mean: Measures,
}

impl EvaluateReport {
    fn new(run: &Table<f64>, qrels: &Table<i32>, k: usize) -> Self {
        let measures = |(query, gains)| match run.get(query) {
            Some(scores) => Measures::of_query(scores, gains, k),
            None => Measures::default(),
        };
        let measures: Vec<Measures> = qrels.iter().map(measures).collect();
        EvaluateReport {
            k,
            num_judged_queries: qrels.len() as u64,
            num_missing_queries: qrels.keys().filter(|query| !run.contains_key(*query)).count() as u64,
            num_unjudged_queries: run.keys().filter(|query| !qrels.contains_key(*query)).count() as u64,
            mean: Measures::mean(&measures),
        }
    }
}

impl Report for EvaluateReport {
    fn text(&self) -> String {
        let EvaluateReport { k, mean, .. } = self;
        let mut text = format!(
            "nDCG@{k:<7} {:.4}\nMRR@{k:<8} {:.4}\nrecall@{k:<5} {:.4}\nP@{k:<10} {:.4}\nqueries      {} judged",
            mean.ndcg,
            mean.mrr,
            mean.recall,
            mean.precision,
            count(self.num_judged_queries),
        );
        if self.num_missing_queries > 0 {
            text += &format!(", {} of them not in the run, which count 0", count(self.num_missing_queries));
        }
        if self.num_unjudged_queries > 0 {
            text += &format!("; {} of the run without judgements do not count", count(self.num_unjudged_queries));
        }
        text + "\n"
    }
}
