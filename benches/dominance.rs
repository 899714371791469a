//! The decision at ε = 0.2 of every token of the example corpus, conversion and Gram included, one thread.

mod common;

use common::{Corpus, check_decisions, decide, decide_and_prove, pool};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use maxhull::engine::CpuEngine;

fn dominance(criterion: &mut Criterion) {
    let corpus = Corpus::example();
    let (batch, engine, pool) = (corpus.batch(), CpuEngine::new(), pool(1));
    check_decisions(&engine, &corpus);
    let mut group = criterion.benchmark_group("dominance");
    group.sample_size(20).throughput(Throughput::Elements(batch.num_tokens() as u64));
    group.bench_function("decide", |bencher| bencher.iter(|| pool.install(|| decide(&engine, &batch))));
    group.bench_function("decide_and_prove", |bencher| {
        bencher.iter(|| pool.install(|| decide_and_prove(&engine, &batch)));
    });
    group.finish();
}

criterion_group!(benches, dominance);
criterion_main!(benches);
