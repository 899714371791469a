//! Farthest-first selection on the example corpus, Gram included and proof not, one thread.

mod common;

use common::{Corpus, EPSILON, check_order, pool, select};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use maxhull::engine::{CpuEngine, Goal};

fn selection(criterion: &mut Criterion) {
    let corpus = Corpus::example();
    let (batch, engine, pool) = (corpus.batch(), CpuEngine::new(), pool(1));
    check_order(&select(&engine, &batch, Goal::Order), &corpus);
    let mut group = criterion.benchmark_group("selection");
    group.sample_size(20).throughput(Throughput::Elements(batch.num_tokens() as u64));
    for (id, goal) in [("order", Goal::Order), ("epsilon_0.2", Goal::Epsilon(EPSILON))] {
        group.bench_function(id, |bencher| bencher.iter(|| pool.install(|| select(&engine, &batch, goal))));
    }
    group.finish();
}

criterion_group!(benches, selection);
criterion_main!(benches);
