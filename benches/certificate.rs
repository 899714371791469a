//! Proof of the removals at ε = 0.2 on the example corpus, and the check of the whole certificate, one thread.

mod common;

use std::sync::Arc;

use common::{Corpus, EPSILON, check_pruned, pool, prove, pruner, select};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use maxhull::Target;
use maxhull::engine::{CpuEngine, Engine, Goal};

fn certificate(criterion: &mut Criterion) {
    let corpus = Corpus::example();
    let (batch, pool) = (corpus.batch(), pool(1));
    let engine: Arc<dyn Engine> = Arc::new(CpuEngine::new());
    let pruned = pruner(&engine, Target::Epsilon(EPSILON)).prune(&batch, None).expect("a valid corpus");
    let certified = check_pruned(&batch, &pruned, EPSILON).expect("the certificate holds");
    let selections = select(&*engine, &batch, Goal::Epsilon(EPSILON));
    let proven = prove(&batch, &selections);
    let num_removed: usize = proven.iter().map(|doc| doc.keep().num_tokens() - doc.keep().num_kept()).sum();
    let num_proposed: usize = selections.iter().map(|selection| selection.removals.len()).sum();
    assert_eq!(num_removed, num_proposed, "every proposal has a proof");
    let mut group = criterion.benchmark_group("certificate");
    group.sample_size(20).throughput(Throughput::Elements(batch.num_tokens() as u64));
    group.bench_function("prove", |bencher| bencher.iter(|| pool.install(|| prove(&batch, &selections))));
    group.bench_function("verify", |bencher| bencher.iter(|| pool.install(|| certified.verify(&batch))));
    group.finish();
}

criterion_group!(benches, certificate);
criterion_main!(benches);
