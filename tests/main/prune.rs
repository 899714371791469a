//! The first walk, end to end, and what it promises.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use maxhull::engine::{CpuEngine, Engine};
use maxhull::half::{bf16, f16};
use maxhull::{
    Budget, Error, Method, PruneOptions, Pruned, Pruner, Scoring, Target, TokenBatch, TokenData, certificate, reference,
};
use proptest::prelude::*;

use crate::common::{Random, encoder_like, offsets, to_f16};

const SCORINGS: [Scoring; 2] = [Scoring::Plain, Scoring::Clamped];

fn pruner(scoring: Scoring, method: Method) -> Pruner {
    Pruner::new(Arc::new(CpuEngine::new()), PruneOptions { scoring, method }).unwrap()
}

fn prune(batch: &TokenBatch<'_>, scoring: Scoring, target: Target) -> Pruned {
    pruner(scoring, Method::Hull(target)).prune(batch, None).unwrap()
}

fn kept_flags(pruned: &Pruned, doc_idx: usize) -> Vec<bool> {
    let keep = pruned.docs[doc_idx].keep();
    (0..keep.num_tokens()).map(|token_idx| keep.is_kept(token_idx)).collect()
}

/// No query loses more than the proven bound: the worst one there is, and random ones.
fn assert_bound_holds(batch: &TokenBatch<'_>, pruned: &Pruned, scoring: Scoring) {
    let mut random = Random(77);
    for doc_idx in 0..batch.num_docs() {
        let doc = reference::rows(batch.doc(doc_idx), batch.dim());
        let kept = kept_flags(pruned, doc_idx);
        if doc.is_empty() {
            continue;
        }
        assert!(kept.contains(&true), "document {doc_idx} was emptied");
        let bound = f64::from(pruned.docs[doc_idx].bound());
        let scale = doc.iter().map(|x| reference::norm(x)).fold(0.0, f64::max);
        let allowed = bound + 1e-9 * scale;
        let (worst, query) = reference::worst_loss(&doc, &kept, scoring);
        assert!(worst <= allowed, "{scoring} document {doc_idx}: {worst} > {bound}");
        if !query.is_empty() {
            assert!(reference::loss(&query, &doc, &kept, scoring) <= allowed);
        }
        for _ in 0..8 {
            let query: Vec<f64> = (0..batch.dim()).map(|_| f64::from(random.normal())).collect();
            assert!(reference::loss(&query, &doc, &kept, scoring) <= allowed);
        }
    }
}

#[test]
fn ragged_edges_of_every_type_keep_their_bound() {
    let mut random = Random(10);
    let lengths = [0, 1, 2, 7, 0, 15, 16, 17, 31, 33, 1];
    let offsets = offsets(3, &lengths);
    let rows = offsets[offsets.len() - 1] as usize + 2;
    for dim in [1, 7, 48, 96] {
        let values = encoder_like(&mut random, rows, dim);
        let halves = to_f16(&values);
        let brains: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
        let bytes: Vec<i8> = values.iter().map(|&x| (x * 100.0) as i8).collect();
        let all = [
            (TokenData::F32(&values), 1.0),
            (TokenData::F16(&halves), 1.0),
            (TokenData::Bf16(&brains), 1.0),
            (TokenData::I8(&bytes), 100.0),
        ];
        for (data, unit) in all {
            let batch = TokenBatch::new(data, &offsets, dim).unwrap();
            for scoring in SCORINGS {
                for target in
                    [Target::Epsilon(0.2 * unit), Target::KeepRatio(0.3), Target::MaxTokens(3), Target::Lossless]
                {
                    let pruned = prune(&batch, scoring, target);
                    assert_bound_holds(&batch, &pruned, scoring);
                    assert_eq!(pruned.stats.num_undecided, 0);
                    if let Target::Epsilon(epsilon) = target {
                        assert!(pruned.stats.worst_bound <= epsilon);
                    }
                    verify(&batch, &pruned, scoring);
                }
            }
        }
    }
}

/// Writes the certificate and has it checked against the bytes that were kept.
fn verify(batch: &TokenBatch<'_>, pruned: &Pruned, scoring: Scoring) {
    let header = certificate::Header { scoring, dtype: batch.dtype(), dim: batch.dim() as u32 };
    let mut writer = certificate::Writer::new(Vec::new(), header).unwrap();
    for doc in &pruned.docs {
        writer.append(doc.record()).unwrap();
    }
    let (bytes, _) = writer.finish().unwrap();
    let gathered = pruned.gather(batch);
    let offsets = pruned.offsets();
    let kept = match batch.dtype() {
        maxhull::DType::F16 => TokenData::F16(bytemuck::cast_slice(&gathered)),
        maxhull::DType::Bf16 => TokenData::Bf16(bytemuck::cast_slice(&gathered)),
        maxhull::DType::F32 => TokenData::F32(bytemuck::cast_slice(&gathered)),
        maxhull::DType::I8 => TokenData::I8(bytemuck::cast_slice(&gathered)),
    };
    let kept = TokenBatch::new(kept, &offsets, batch.dim()).unwrap();
    let report = certificate::verify(batch, &kept, &bytes).unwrap();
    assert_eq!(report.num_kept, pruned.stats.num_kept);
    assert_eq!(report.worst_bound, pruned.stats.worst_bound);
}

#[test]
fn hard_values_are_kept_or_proven() {
    let tiny = f32::from_bits(3);
    let documents: Vec<Vec<f32>> = vec![
        vec![0.0; 12],
        vec![1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0, -0.0, 0.0, 0.0],
        vec![tiny, 0.0, -tiny, 2.0 * tiny, tiny, tiny, 0.0, 0.0, tiny, 0.0, 0.0, 0.0],
        vec![1e30, 0.0, 0.0, 0.0, 1e30, 0.0, 5e29, 5e29, 0.0, 1e-30, 0.0, 0.0],
        vec![3e38, 3e38, 3e38, -3e38, 3e38, 3e38, 3e38, -3e38, 3e38, 3e38, 3e38, 3e38],
        vec![1.0, 0.0, 0.0, 1.0, 1e-7, 0.0, 1.0, 0.0, 1e-7, 1.0, 1e-7, 1e-7],
        vec![1e-20, 0.0, 0.0, 2e-20, 0.0, 0.0, 3e-20, 1e-21, 0.0, 0.0, 0.0, 4e-20],
    ];
    for (idx, values) in documents.iter().enumerate() {
        let offsets = offsets(0, &[4]);
        let batch = TokenBatch::new(TokenData::F32(values), &offsets, 3).unwrap();
        for scoring in SCORINGS {
            for target in [
                Target::Epsilon(0.2),
                Target::Epsilon(1e-25),
                Target::Epsilon(3e38),
                Target::KeepRatio(0.5),
                Target::MaxTokens(1),
                Target::Lossless,
            ] {
                let pruned = prune(&batch, scoring, target);
                assert!(pruned.stats.num_kept >= 1, "document {idx}");
                assert_bound_holds(&batch, &pruned, scoring);
                verify(&batch, &pruned, scoring);
            }
        }
    }
}

#[test]
fn duplicates_keep_exactly_one() {
    let mut random = Random(11);
    let distinct = to_f16(&encoder_like(&mut random, 20, 64));
    let doubled = [&distinct[..], &distinct[..], &distinct[..64 * 5]].concat();
    let offsets = offsets(0, &[45]);
    let batch = TokenBatch::new(TokenData::F16(&doubled), &offsets, 64).unwrap();
    for scoring in SCORINGS {
        for target in [Target::Lossless, Target::Epsilon(0.0), Target::Epsilon(1e-3)] {
            let pruned = prune(&batch, scoring, target);
            assert_eq!(pruned.stats.num_kept, 20, "{scoring} {target:?}");
            verify(&batch, &pruned, scoring);
        }
        assert_eq!(prune(&batch, scoring, Target::Lossless).stats.worst_bound, 0.0);
    }
}

#[test]
fn protected_tokens_stay() {
    let mut random = Random(12);
    let lengths = [50, 3, 0, 20];
    let tokens = encoder_like(&mut random, 73, 16);
    let offsets = offsets(0, &lengths);
    let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, 16).unwrap();
    let protected: Vec<bool> = (0..73).map(|_| random.below(5) == 0).collect();
    for scoring in SCORINGS {
        for method in [
            Method::Hull(Target::Epsilon(0.5)),
            Method::Hull(Target::MaxTokens(1)),
            Method::Hull(Target::MaxBytes(73 * 16)),
            Method::Hull(Target::Lossless),
            Method::Lp { theta: 0.5 },
            Method::Norm { threshold: 0.9 },
        ] {
            let pruned = pruner(scoring, method).prune(&batch, Some(&protected)).unwrap();
            let flags: Vec<bool> = (0..4).flat_map(|doc_idx| kept_flags(&pruned, doc_idx)).collect();
            assert!(flags.iter().zip(&protected).all(|(kept, protected)| *kept || !protected), "{method:?}");
            assert_bound_holds(&batch, &pruned, scoring);
        }
    }
    let wrong = pruner(Scoring::Plain, Method::Hull(Target::Lossless)).prune(&batch, Some(&protected[1..]));
    assert!(matches!(wrong, Err(Error::Mismatch { .. })));
}

#[test]
fn a_budget_counts_protected_tokens() {
    let mut random = Random(15);
    let lengths = [50, 1, 0, 20];
    let tokens = encoder_like(&mut random, 71, 16);
    let offsets = offsets(0, &lengths);
    let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, 16).unwrap();
    // The first document's last 30 tokens; the others' must stay one each.
    let protected: Vec<bool> = (0..71).map(|at| (20..50).contains(&at)).collect();
    for scoring in SCORINGS {
        for max_tokens in 32..=71 {
            let method = Method::Hull(Target::MaxBytes(max_tokens * 64));
            let pruned = pruner(scoring, method).prune(&batch, Some(&protected)).unwrap();
            assert!(pruned.stats.num_kept <= max_tokens, "{scoring}: {} of {max_tokens}", pruned.stats.num_kept);
            assert!((20..50).all(|token_idx| pruned.docs[0].keep().is_kept(token_idx)));
        }
        let too_small = pruner(scoring, Method::Hull(Target::MaxBytes(31 * 64))).prune(&batch, Some(&protected));
        assert!(matches!(too_small, Err(Error::InvalidOption { .. })));
    }
}

/// Tokens whose losses no `f32` holds, and tokens whose scale no `f32` holds.
#[test]
fn budgets_and_tolerances_hold_at_the_ends_of_f32() {
    let mut random = Random(16);
    let (n, dim) = (24, 8);
    let directions = encoder_like(&mut random, n, dim);
    let huge: Vec<f32> = directions.iter().map(|x| x.signum() * 3e38).collect();
    let denormal: Vec<f32> = directions.iter().map(|x| x * 1e-40).collect();
    let offsets = [0, n as u64];
    for scoring in SCORINGS {
        let batch = TokenBatch::new(TokenData::F32(&huge), &offsets, dim).unwrap();
        for max_tokens in 1..=n as u64 {
            let method = Method::Hull(Target::MaxBytes(max_tokens * 32));
            match pruner(scoring, method).prune(&batch, None) {
                Ok(pruned) => assert!(pruned.stats.num_kept <= max_tokens),
                Err(error) => assert!(matches!(error, Error::InvalidOption { name: "budget", .. }), "{error}"),
            }
        }
        let batch = TokenBatch::new(TokenData::F32(&denormal), &offsets, dim).unwrap();
        let curve = pruner(scoring, Method::Hull(Target::Lossless)).curves(&batch, None).unwrap().remove(0);
        assert!(curve[..n - 1].iter().all(|&bound| bound > 0.0), "{curve:?}");
        let pruned = prune(&batch, scoring, Target::Epsilon(3e-41));
        assert!((2..n as u64).contains(&pruned.stats.num_kept), "{}", pruned.stats.num_kept);
        assert_eq!(pruned.stats.num_undecided, 0);
    }
}

#[test]
fn counts_and_budgets_are_kept() {
    let mut random = Random(13);
    let lengths = [40, 1, 0, 25, 60, 9];
    let tokens = to_f16(&encoder_like(&mut random, lengths.iter().sum(), 32));
    let offsets = offsets(0, &lengths);
    let batch = TokenBatch::new(TokenData::F16(&tokens), &offsets, 32).unwrap();
    for scoring in SCORINGS {
        let by_ratio = prune(&batch, scoring, Target::KeepRatio(0.25));
        let by_count = prune(&batch, scoring, Target::MaxTokens(8));
        for (doc_idx, &len) in lengths.iter().enumerate() {
            assert_eq!(by_ratio.docs[doc_idx].keep().num_kept(), len.div_ceil(4));
            assert_eq!(by_count.docs[doc_idx].keep().num_kept(), len.min(8));
        }
        let everything = prune(&batch, scoring, Target::KeepRatio(1.0));
        assert_eq!((everything.stats.num_kept, everything.stats.worst_bound), (135, 0.0));
        let mut budget = Budget::new();
        let curves = pruner(scoring, Method::Hull(Target::Lossless)).curves(&batch, None).unwrap();
        curves.iter().for_each(|curve| budget.add(curve));
        for max_tokens in [5, 17, 60, 134, 135, 1000] {
            let by_bytes = prune(&batch, scoring, Target::MaxBytes(max_tokens * 64 + 63));
            assert!(by_bytes.stats.num_kept <= max_tokens, "{} of {max_tokens}", by_bytes.stats.num_kept);
            assert!(by_bytes.stats.num_kept >= max_tokens.min(135).saturating_sub(5), "the budget is used");
            assert_bound_holds(&batch, &by_bytes, scoring);
            // In one call or planned over batches: the same.
            let planned = Target::Planned(budget.tolerance(max_tokens).unwrap());
            let kept: u64 = (0..batch.num_docs())
                .map(|doc_idx| prune(&batch.docs(doc_idx..doc_idx + 1), scoring, planned).stats.num_kept)
                .sum();
            assert_eq!(kept, by_bytes.stats.num_kept);
        }
        let too_small = pruner(scoring, Method::Hull(Target::MaxBytes(4 * 64))).prune(&batch, None);
        assert!(matches!(too_small, Err(Error::InvalidOption { .. })));
    }
}

#[test]
fn strategies_report_what_they_cost() {
    let mut random = Random(14);
    let tokens = encoder_like(&mut random, 80, 24);
    let offsets = offsets(0, &[50, 30]);
    let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, 24).unwrap();
    for scoring in SCORINGS {
        for method in [Method::Lp { theta: 0.3 }, Method::Norm { threshold: 0.6 }] {
            let pruned = pruner(scoring, method).prune(&batch, None).unwrap();
            assert!(pruned.stats.num_kept < 80, "{method:?} removes something");
            assert_bound_holds(&batch, &pruned, scoring);
            verify(&batch, &pruned, scoring);
            for doc_idx in 0..2 {
                let doc = reference::rows(batch.doc(doc_idx), 24);
                let (worst, _) = reference::worst_loss(&doc, &kept_flags(&pruned, doc_idx), scoring);
                let bound = f64::from(pruned.docs[doc_idx].bound());
                assert!(bound <= worst * 1.02 + 1e-3, "{method:?}: {bound} proven, {worst} true");
            }
        }
    }
}

#[test]
fn threads_and_repeats_give_the_same_bits() {
    let mut random = Random(15);
    let lengths: Vec<usize> = (0..60).map(|_| random.below(90)).collect();
    let tokens = to_f16(&encoder_like(&mut random, lengths.iter().sum(), 48));
    let offsets = offsets(0, &lengths);
    let batch = TokenBatch::new(TokenData::F16(&tokens), &offsets, 48).unwrap();
    for method in
        [Method::Hull(Target::Epsilon(0.25)), Method::Hull(Target::MaxBytes(100_000)), Method::Lp { theta: 0.4 }]
    {
        let records: Vec<Vec<Vec<u8>>> = [1, 2, 5, 5]
            .iter()
            .map(|&num_threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
                let pruned = pool.install(|| pruner(Scoring::Clamped, method).prune(&batch, None).unwrap());
                pruned.docs.iter().map(|doc| doc.record().to_vec()).collect()
            })
            .collect();
        records.windows(2).for_each(|pair| assert!(pair[0] == pair[1], "{method:?}"));
    }
}

#[test]
fn options_outside_their_range_are_refused() {
    let engine: Arc<dyn Engine> = Arc::new(CpuEngine::new());
    for method in [
        Method::Hull(Target::Epsilon(-0.1)),
        Method::Hull(Target::Epsilon(f32::NAN)),
        Method::Hull(Target::Epsilon(f32::INFINITY)),
        Method::Hull(Target::KeepRatio(0.0)),
        Method::Hull(Target::KeepRatio(1.01)),
        Method::Hull(Target::KeepRatio(f64::NAN)),
        Method::Hull(Target::MaxTokens(0)),
        Method::Lp { theta: 0.0 },
        Method::Lp { theta: 1.5 },
        Method::Norm { threshold: -1.0 },
        Method::Norm { threshold: f32::NAN },
    ] {
        let refused = Pruner::new(engine.clone(), PruneOptions { scoring: Scoring::Plain, method });
        assert!(matches!(refused, Err(Error::InvalidOption { .. })), "{method:?}");
    }
}

#[test]
fn non_finite_tokens_and_cancellation_stop_a_run() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut tokens = vec![0.5; 24];
        tokens[3 * 4 + 2] = bad;
        let offsets = offsets(0, &[2, 0, 4]);
        let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, 4).unwrap();
        let refused = pruner(Scoring::Plain, Method::Hull(Target::Epsilon(0.1))).prune(&batch, None);
        match refused {
            Err(Error::NonFinite { doc_idx: 2, token_idx: 1, component_idx: 2, value }) => {
                assert_eq!(value.to_bits(), bad.to_bits());
            }
            other => panic!("{other:?}"),
        }
    }
    let tokens = vec![f16::ONE; 8];
    let offsets = offsets(0, &[2]);
    let batch = TokenBatch::new(TokenData::F16(&tokens), &offsets, 4).unwrap();
    let cancelled = pruner(Scoring::Plain, Method::Hull(Target::Epsilon(0.1)))
        .with_cancel(Arc::new(AtomicBool::new(true)))
        .prune(&batch, None);
    assert!(matches!(cancelled, Err(Error::Cancelled)));
}

/// In `f32` the square of a long token drowns the distances of short ones.
#[test]
fn one_token_far_longer_than_the_rest_does_not_blur_their_order() {
    let mut random = Random(6);
    let (n, dim, rank) = (150, 48, 5);
    let axes: Vec<f32> = (0..rank * dim).map(|_| random.normal()).collect();
    let mut tokens = Vec::new();
    for _ in 0..n {
        let along: Vec<f32> = (0..rank).map(|_| 0.3 * random.normal()).collect();
        tokens.extend((0..dim).map(|k| (0..rank).map(|a| along[a] * axes[a * dim + k]).sum::<f32>()));
    }
    let bound = |tokens: &[f32], max_tokens, scoring| {
        let offsets = offsets(0, &[n]);
        let batch = TokenBatch::new(TokenData::F32(tokens), &offsets, dim).unwrap();
        prune(&batch, scoring, Target::MaxTokens(max_tokens)).stats.worst_bound
    };
    let mut with_outlier = tokens.clone();
    with_outlier[7 * dim..8 * dim].iter_mut().for_each(|x| *x *= 1000.0);
    for scoring in SCORINGS {
        for max_tokens in [20, 40, 80] {
            let (with, without) = (bound(&with_outlier, max_tokens + 1, scoring), bound(&tokens, max_tokens, scoring));
            // A step of an integer weight moves a token of norm 1000 by 6e-5.
            assert!(with <= 1.3 * without + 3e-4, "{scoring}, {max_tokens} kept: {with} proven, {without} without it");
        }
    }
}

#[test]
fn one_long_document_among_tiny_ones() {
    let mut random = Random(16);
    let lengths = [3, 1, 20_000, 2, 5];
    let dim = 16;
    let tokens = to_f16(&encoder_like(&mut random, lengths.iter().sum(), dim));
    let offsets = offsets(0, &lengths);
    let batch = TokenBatch::new(TokenData::F16(&tokens), &offsets, dim).unwrap();
    let pruned = prune(&batch, Scoring::Clamped, Target::Epsilon(0.4));
    assert!(pruned.docs[2].keep().num_kept() < 10_000);
    assert!(pruned.stats.worst_bound <= 0.4);
    verify(&batch, &pruned, Scoring::Clamped);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_query_loses_more_than_the_bound(
        seed in any::<u64>(), n in 1usize..40, dim in 1usize..20, epsilon in 0.01f32..0.8, clamped in any::<bool>(),
    ) {
        let scoring = if clamped { Scoring::Clamped } else { Scoring::Plain };
        let tokens = encoder_like(&mut Random(seed), n, dim);
        let offsets = offsets(0, &[n]);
        let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, dim).unwrap();
        let pruned = prune(&batch, scoring, Target::Epsilon(epsilon));
        prop_assert!(pruned.stats.worst_bound <= epsilon);
        assert_bound_holds(&batch, &pruned, scoring);
    }

    #[test]
    fn pruning_twice_changes_nothing(
        seed in any::<u64>(), n in 1usize..60, dim in 2usize..24, epsilon in 0.05f32..0.5, clamped in any::<bool>(),
    ) {
        let scoring = if clamped { Scoring::Clamped } else { Scoring::Plain };
        let tokens = to_f16(&encoder_like(&mut Random(seed), n, dim));
        let all = offsets(0, &[n]);
        let batch = TokenBatch::new(TokenData::F16(&tokens), &all, dim).unwrap();
        let once = prune(&batch, scoring, Target::Epsilon(epsilon));
        let bytes = once.gather(&batch);
        let kept: &[f16] = bytemuck::cast_slice(&bytes);
        let offsets = once.offsets();
        let again = TokenBatch::new(TokenData::F16(kept), &offsets, dim).unwrap();
        prop_assert_eq!(prune(&again, scoring, Target::Epsilon(epsilon)).stats.num_kept, once.stats.num_kept);
    }

    #[test]
    fn permuting_documents_permutes_results(seed in any::<u64>(), num_docs in 1usize..8) {
        let mut random = Random(seed);
        let lengths: Vec<usize> = (0..num_docs).map(|_| random.below(30)).collect();
        let docs: Vec<Vec<f32>> = lengths.iter().map(|&n| encoder_like(&mut random, n, 12)).collect();
        let order: Vec<usize> = (0..num_docs).rev().collect();
        let records = |order: &[usize]| -> Vec<Vec<u8>> {
            let tokens: Vec<f32> = order.iter().flat_map(|&doc_idx| docs[doc_idx].clone()).collect();
            let offsets = offsets(0, &order.iter().map(|&doc_idx| lengths[doc_idx]).collect::<Vec<_>>());
            let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, 12).unwrap();
            let pruned = prune(&batch, Scoring::Clamped, Target::Epsilon(0.3));
            pruned.docs.iter().map(|doc| doc.record().to_vec()).collect()
        };
        let forward = records(&(0..num_docs).collect::<Vec<_>>());
        let mut backward = records(&order);
        backward.reverse();
        prop_assert_eq!(forward, backward);
    }
}
