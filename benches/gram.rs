//! Gram matrices of single documents, tokens already in `f32`, one thread.

mod common;

use common::{Corpus, check_gram, to_f32};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use maxhull::engine::CpuEngine;

/// Mean passage of MS MARCO, an abstract, the usual cap.
const LENGTHS: [usize; 3] = [67, 180, 300];

fn gram(criterion: &mut Criterion) {
    let corpus = Corpus::example();
    let (batch, engine) = (corpus.batch(), CpuEngine::new());
    let mut group = criterion.benchmark_group("gram");
    for length in LENGTHS {
        let data = batch.doc(corpus.doc_of(length));
        check_gram(&engine, data, batch.dim());
        let (tokens, mut out) = (to_f32(data), Vec::new());
        let n = tokens.len() / batch.dim();
        group.throughput(Throughput::Elements(n as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("n{n}")), |bencher| {
            bencher.iter(|| engine.gram(&tokens, batch.dim(), &mut out));
        });
    }
    group.finish();
}

criterion_group!(benches, gram);
criterion_main!(benches);
