//! The whole walk on the example corpus: check the input, select, prove; one thread.

mod common;

use std::sync::Arc;

use common::{Corpus, EPSILON, check_pruned, pool, pruner};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use maxhull::Target;
use maxhull::engine::{CpuEngine, Engine};

fn prune(criterion: &mut Criterion) {
    let corpus = Corpus::example();
    let (batch, pool) = (corpus.batch(), pool(1));
    let engine: Arc<dyn Engine> = Arc::new(CpuEngine::new());
    let targets = [("epsilon_0.2", Target::Epsilon(EPSILON), EPSILON), ("lossless", Target::Lossless, 0.0)];
    // All checks first, so that a profile of one id can skip them.
    for (_, target, epsilon) in targets {
        let pruned = pruner(&engine, target).prune(&batch, None).expect("a valid corpus");
        check_pruned(&batch, &pruned, epsilon).expect("the certificate holds");
    }
    let mut group = criterion.benchmark_group("prune");
    group.sample_size(20).throughput(Throughput::Elements(batch.num_tokens() as u64));
    for (id, target, _) in targets {
        let pruner = pruner(&engine, target);
        group.bench_function(id, |bencher| bencher.iter(|| pool.install(|| pruner.prune(&batch, None))));
    }
    group.finish();
}

criterion_group!(benches, prune);
criterion_main!(benches);
