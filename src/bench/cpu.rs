//! The CPU engine on the same inputs, on the calling thread's rayon pool.

use std::sync::Arc;

use rayon::prelude::*;

use super::hull::EPSILON;
use super::input::{Corpus, DIM, ragged};
use super::{
    BenchError, CorpusRun, Each, Options, Row, SEED, Work, check, corpus, deliver, larger, maxsim, measure_host, walk,
};
use crate::engine::{CpuEngine, Engine, Goal};
use crate::{DType, Scoring, reference};

/// Runs every wanted row on the CPU; checks are against plain loops, on a few documents.
///
/// # Errors
/// [`BenchError`], but for wrong answers, which `each` gets.
pub fn run(options: &Options, each: &mut Each<'_>) -> Result<Option<CorpusRun>, BenchError> {
    let engine = CpuEngine::new();
    let lengths = ragged(SEED, 33, 300, options.pick(1_500, 1 << 17));
    let corpus = Corpus::new(SEED, &lengths, DType::F16);
    let shape = format!("{} docs, {} tokens of 33-300, f16", lengths.len(), corpus.num_tokens());
    if options.wants("gram") {
        deliver(each, gram(&engine, options, &corpus, shape.clone()))?;
    }
    let shape = format!("{shape}, epsilon {EPSILON}");
    if options.wants("dominance") {
        deliver(each, dominance(&engine, options, &corpus, shape.clone()))?;
    }
    if options.wants("selection") {
        deliver(each, selection(&engine, options, &corpus, shape))?;
    }
    maxsim::run_cpu(options, each)?;
    let engine: Arc<dyn Engine> = Arc::new(engine);
    walk::run(Arc::clone(&engine), options, each)?;
    corpus::run_cpu(engine, options, each)
}

/// The shortest of the documents: the reference is slow.
fn small(corpus: &Corpus) -> usize {
    corpus.lengths().enumerate().min_by_key(|&(_, len)| len).map_or(0, |(doc_idx, _)| doc_idx)
}

fn gram(engine: &CpuEngine, options: &Options, corpus: &Corpus, shape: String) -> Result<Row, BenchError> {
    let doc_idx = small(corpus);
    let (rows, mut found) = (reference::rows(corpus.batch().doc(doc_idx), DIM), Vec::new());
    let stride = engine.gram(&corpus.doc_f32(doc_idx), DIM, &mut found)?;
    let mut worst = 0.0;
    for (i, a) in rows.iter().enumerate() {
        for (j, b) in rows.iter().enumerate() {
            worst = larger(worst, (f64::from(found[i * stride + j]) - reference::dot(a, b)).abs());
        }
    }
    let difference = (worst, DIM as f64 * f64::from(f32::EPSILON));
    check("gram", &shape, "an entry", difference.0, difference.1)?;
    let docs: Vec<Vec<f32>> = (0..corpus.lengths().count()).map(|doc_idx| corpus.doc_f32(doc_idx)).collect();
    let timing = measure_host(options, || {
        docs.par_iter().try_for_each_init(Vec::new, |out, tokens| engine.gram(tokens, DIM, out).map(|_| ()))
    })?;
    let pairs: usize = corpus.lengths().map(|n| n * (n + 1) / 2).sum();
    let work = Work {
        // The matrices stay in cache.
        bytes: (corpus.num_tokens() * DIM * 4) as u64,
        flop: Some(2 * (pairs * DIM) as u64),
        tokens: corpus.num_tokens() as u64,
    };
    Ok(Row { name: "gram", shape, work, difference, timing, cold: None })
}

/// Reads the tokens; nothing else has to reach memory.
fn token_work(corpus: &Corpus) -> Work {
    Work { bytes: corpus.bytes().len() as u64, flop: None, tokens: corpus.num_tokens() as u64 }
}

fn dominance(engine: &CpuEngine, options: &Options, corpus: &Corpus, shape: String) -> Result<Row, BenchError> {
    let (batch, doc_idx) = (corpus.batch(), small(corpus));
    let doc = batch.docs(doc_idx..doc_idx + 1);
    let rows = reference::rows(doc.doc(0), DIM);
    let found = engine.decide(&doc, Scoring::Clamped, EPSILON)?;
    let num_different = (0..rows.len()).filter(|&i| {
        let mut others = rows.clone();
        others.remove(i);
        let is_needed = reference::distance(&rows[i], &others, Scoring::Clamped) > f64::from(EPSILON);
        is_needed != (found[0][i] == crate::engine::Decision::Needed)
    });
    let difference = (num_different.count() as f64, 0.0);
    check("dominance", &shape, "the number of decisions", difference.0, difference.1)?;
    let timing = measure_host(options, || engine.decide(&batch, Scoring::Clamped, EPSILON).map(|_| ()))?;
    Ok(Row { name: "dominance", shape, work: token_work(corpus), difference, timing, cold: None })
}

fn selection(engine: &CpuEngine, options: &Options, corpus: &Corpus, shape: String) -> Result<Row, BenchError> {
    let (batch, goal) = (corpus.batch(), Goal::Epsilon(EPSILON));
    let selections = engine.select(&batch, Scoring::Clamped, goal, None)?;
    let doc_idx = small(corpus);
    let rows = reference::rows(batch.doc(doc_idx), DIM);
    let mut kept = vec![false; rows.len()];
    selections[doc_idx].order.iter().for_each(|&i| kept[i as usize] = true);
    let loss = reference::worst_loss(&rows, &kept, Scoring::Clamped).0;
    let difference = ((loss - f64::from(EPSILON)).max(0.0), 1e-6);
    check("selection", &shape, "the worst loss", difference.0, difference.1)?;
    let num_kept: usize = selections.iter().map(|selection| selection.order.len()).sum();
    let timing = measure_host(options, || engine.select(&batch, Scoring::Clamped, goal, None).map(|_| ()))?;
    let shape = format!("{shape}, {:.0} % kept", 100.0 * num_kept as f64 / corpus.num_tokens() as f64);
    Ok(Row { name: "selection", shape, work: token_work(corpus), difference, timing, cold: None })
}
