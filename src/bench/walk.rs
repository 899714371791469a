//! A whole pruning from host memory: select on the engine, prove on the CPU.

use std::sync::Arc;

use super::hull::EPSILON;
use super::input::{Corpus, ragged};
use super::{BenchError, Each, Options, Row, SEED, Work, check, check_alive, deliver, measure_host};
use crate::engine::Engine;
use crate::{DType, Method, PruneOptions, Pruner, Scoring, Target};

pub(super) fn run(engine: Arc<dyn Engine>, options: &Options, each: &mut Each<'_>) -> Result<(), BenchError> {
    if options.wants("prune") { deliver(each, prune(engine, options)) } else { Ok(()) }
}

fn prune(engine: Arc<dyn Engine>, options: &Options) -> Result<Row, BenchError> {
    let lengths = ragged(SEED, 33, 300, options.pick(3_000, 1 << 20));
    let corpus = Corpus::new(SEED, &lengths, DType::F16);
    let batch = corpus.batch();
    let method = Method::Hull(Target::Epsilon(EPSILON));
    let pruner = Pruner::new(Arc::clone(&engine), PruneOptions { scoring: Scoring::Clamped, method })?;
    let pruned = pruner.prune(&batch, None)?;
    let num_kept: u64 = pruned.offsets().last().copied().unwrap_or(0);
    let tokens = corpus.num_tokens() as u64;
    let shape = format!(
        "{} docs, {tokens} tokens of 33-300, f16, epsilon {EPSILON}, {:.0} % kept",
        lengths.len(),
        100.0 * num_kept as f64 / tokens as f64
    );
    // Every removal is proven; what is left to check is that the proofs say what was asked for.
    let difference = (f64::from(pruned.stats.worst_bound), f64::from(EPSILON));
    check("prune", &shape, "the worst bound", difference.0, difference.1)?;
    let timing = measure_host(options, || pruner.prune(&batch, None).map(|_| ()))?;
    check_alive("prune", &shape, &*engine)?;
    let work = Work { bytes: corpus.bytes().len() as u64, flop: None, tokens };
    Ok(Row { name: "prune", shape, work, difference, timing, cold: None })
}
