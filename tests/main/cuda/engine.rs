//! Selections and prunings through the engine, against those of the CPU and against the proofs.

use std::sync::Arc;

use maxhull::device::cuda::CudaDevice;
use maxhull::engine::{CpuEngine, Engine, Goal, GpuEngine, Notice};
use maxhull::{Method, PruneOptions, Pruner, Scoring, Target, TokenBatch, TokenData};

use super::open;
use crate::common::{Random, encoder_like, offsets, to_f16};

const SCORINGS: [Scoring; 2] = [Scoring::Plain, Scoring::Clamped];

/// An engine that must not hand anything to the CPU.
fn engine() -> Option<Arc<GpuEngine<CudaDevice>>> {
    let refuse = Arc::new(|notice: &Notice| panic!("{notice:?}"));
    Some(Arc::new(GpuEngine::new(Arc::new(open()?)).with_notices(refuse)))
}

#[test]
fn on_device_selections_keep_what_the_cpu_keeps() {
    let Some(cuda) = engine() else { return };
    let lengths = [0, 1, 2, 63, 0, 64, 65, 130, 20, 530];
    let mut random = Random(31);
    for dim in [7, 48] {
        let values = to_f16(&encoder_like(&mut random, lengths.iter().sum::<usize>() + 5, dim));
        let offsets = offsets(5, &lengths);
        let batch = TokenBatch::new(TokenData::F16(&values), &offsets, dim).unwrap();
        let always: Vec<bool> = (0..batch.num_tokens()).map(|i| i % 9 == 2).collect();
        for scoring in SCORINGS {
            for goal in [Goal::Epsilon(0.3), Goal::MaxTokens(9), Goal::Project] {
                let always_kept = matches!(goal, Goal::Project).then_some(&always[..]);
                let expected = CpuEngine::new().select(&batch, scoring, goal, always_kept).unwrap();
                let found = cuda.select(&batch, scoring, goal, always_kept).unwrap();
                assert_eq!(
                    found,
                    cuda.select(&batch, scoring, goal, always_kept).unwrap(),
                    "the same from call to call"
                );
                let kept = |selections: &[maxhull::engine::Selection]| {
                    selections.iter().map(|selection| selection.order.len()).sum::<usize>()
                };
                let differ = |(a, b): (&maxhull::engine::Selection, &maxhull::engine::Selection)| {
                    a.order.iter().filter(|i| !b.order.contains(i)).count()
                };
                let different: usize = expected.iter().zip(&found).map(differ).sum();
                println!(
                    "dim {dim} {scoring} {goal:?}: {} kept, {} here, {different} differ",
                    kept(&expected),
                    kept(&found)
                );
                // Near-ties may fall either way, and a few choices follow from each.
                assert!(different * 10 <= kept(&expected));
                assert!(kept(&expected).abs_diff(kept(&found)) * 50 <= kept(&expected));
            }
        }
    }
}

#[test]
fn on_device_prunings_are_proven() {
    let Some(cuda) = engine() else { return };
    let (lengths, dim) = ([90, 1, 0, 64, 130], 32);
    let values = to_f16(&encoder_like(&mut Random(32), lengths.iter().sum(), dim));
    let offsets = offsets(0, &lengths);
    let batch = TokenBatch::new(TokenData::F16(&values), &offsets, dim).unwrap();
    for scoring in SCORINGS {
        let options = PruneOptions { scoring, method: Method::Hull(Target::Epsilon(0.3)) };
        let engine: Arc<dyn Engine> = Arc::clone(&cuda) as _;
        let found = Pruner::new(engine, options).unwrap().prune(&batch, None).unwrap();
        println!("{scoring}: {:?}", found.stats);
        assert!(found.stats.worst_bound <= 0.3);
        assert!(found.stats.num_kept < found.stats.num_tokens);
        // What the device proposes is proven as it stands.
        assert_eq!(found.stats.num_resolved, 0);
    }
}

#[test]
fn on_device_supports_are_put_together() {
    let Some(device) = open() else { return };
    crate::compact::check(&device);
}

#[test]
fn on_device_decisions_are_the_cpus() {
    let Some(cuda) = engine() else { return };
    let (lengths, dim) = ([90, 1, 0, 64, 130], 32);
    let values = to_f16(&encoder_like(&mut Random(33), lengths.iter().sum(), dim));
    let offsets = offsets(0, &lengths);
    let batch = TokenBatch::new(TokenData::F16(&values), &offsets, dim).unwrap();
    for scoring in SCORINGS {
        let expected = CpuEngine::new().decide(&batch, scoring, 0.3).unwrap().concat();
        let found = cuda.decide(&batch, scoring, 0.3).unwrap().concat();
        let kinds =
            |decisions: &[maxhull::engine::Decision]| decisions.iter().map(std::mem::discriminant).collect::<Vec<_>>();
        let different = kinds(&expected).iter().zip(&kinds(&found)).filter(|(a, b)| a != b).count();
        println!("{scoring}: {different} of {} decisions differ", expected.len());
        assert!(different * 50 <= expected.len());
    }
}
