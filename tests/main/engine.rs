//! The CPU engine against the definitions: orders, curves, decisions, on every instruction set.

use maxhull::certificate::{ProofScratch, Proposal, TokenProver, Weights};
use maxhull::engine::{CpuEngine, Decision, Engine, Goal};
use maxhull::{Scoring, TokenBatch, TokenData, reference};

use crate::common::{Random, encoder_like, offsets, to_f16};

const SCORINGS: [Scoring; 2] = [Scoring::Plain, Scoring::Clamped];

#[test]
fn the_curve_is_an_upper_bound_and_the_order_is_nested() {
    let mut random = Random(1);
    for (n, dim) in [(1, 5), (2, 7), (17, 3), (40, 48), (33, 16)] {
        let tokens = encoder_like(&mut random, n, dim);
        let offsets = offsets(0, &[n]);
        let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, dim).unwrap();
        let doc = reference::rows(batch.doc(0), dim);
        for scoring in SCORINGS {
            let selection = &CpuEngine::new().select(&batch, scoring, Goal::Order, None).unwrap()[0];
            let mut sorted = selection.order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..n as u32).collect::<Vec<_>>(), "every token once");
            assert_eq!(selection.curve.len(), n);
            assert_eq!(selection.curve[n - 1], 0.0);
            for k in 1..n {
                let mut kept = vec![false; n];
                selection.order[..k].iter().for_each(|&token_idx| kept[token_idx as usize] = true);
                let (worst, _) = reference::worst_loss(&doc, &kept, scoring);
                let promised = f64::from(selection.curve[k - 1]);
                assert!(worst <= promised + 1e-9, "{scoring} n {n} k {k}: {worst} > {promised}");
                // The rounding margin is a few 1e-5 in squares, the bracket is closed to 3 % of the square.
                let loosest = (worst * worst * 1.04 + 2e-4).sqrt();
                assert!(promised <= loosest, "{scoring} n {n} k {k}: {promised} is loose for {worst}");
                assert!(selection.curve[k] <= selection.curve[k - 1]);
            }
        }
    }
}

#[test]
fn the_kept_set_is_as_small_as_that_of_a_slow_farthest_first() {
    let mut random = Random(2);
    let (mut found, mut expected, mut total) = (0, 0, 0);
    for round in 0..12 {
        let n = 30 + 5 * round;
        let tokens = encoder_like(&mut random, n, 24);
        let offsets = offsets(0, &[n]);
        let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, 24).unwrap();
        let doc = reference::rows(batch.doc(0), 24);
        for scoring in SCORINGS {
            let order = reference::farthest_first(&doc, scoring);
            for epsilon in [0.35, 0.2, 0.1] {
                let selection = &CpuEngine::new().select(&batch, scoring, Goal::Epsilon(epsilon), None).unwrap()[0];
                found += selection.order.len();
                let enough = order.iter().position(|&(_, loss)| loss <= f64::from(epsilon)).unwrap_or(n - 1);
                expected += enough + 1;
                total += n;
            }
        }
    }
    let excess = found.abs_diff(expected);
    assert!(excess * 50 <= total, "{found} kept, the slow selection keeps {expected} of {total}");
}

#[test]
fn every_instruction_set_with_fused_products_gives_the_same_bits() {
    let mut random = Random(3);
    let lengths = [0, 1, 2, 15, 16, 17, 31, 32, 33, 64, 100];
    let dim = 48;
    let tokens = encoder_like(&mut random, lengths.iter().sum(), dim);
    let offsets = offsets(0, &lengths);
    let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, dim).unwrap();
    let engines = CpuEngine::all();
    let (portable, fused) = engines.split_last().unwrap();
    for scoring in SCORINGS {
        for goal in [Goal::Epsilon(0.25), Goal::Order, Goal::KeepRatio(0.4), Goal::MaxTokens(9)] {
            let results: Vec<_> = fused.iter().map(|e| e.select(&batch, scoring, goal, None).unwrap()).collect();
            results.windows(2).for_each(|pair| assert_eq!(pair[0], pair[1], "{scoring} {goal:?}"));
            let plain = portable.select(&batch, scoring, goal, None).unwrap();
            for (selection, result) in plain.iter().zip(results.iter().flatten()) {
                let (a, b) = (selection.order.len(), result.order.len());
                assert!(a.abs_diff(b) <= 1 + a / 20, "{scoring} {goal:?}: {a} and {b} kept");
            }
        }
    }
}

#[test]
fn without_a_gram_matrix_the_same_tokens_stay() {
    let mut random = Random(4);
    let lengths = [1, 2, 31, 32, 33, 70, 300];
    let dim = 32;
    let tokens = to_f16(&encoder_like(&mut random, lengths.iter().sum(), dim));
    let offsets = offsets(0, &lengths);
    let batch = TokenBatch::new(TokenData::F16(&tokens), &offsets, dim).unwrap();
    for scoring in SCORINGS {
        let with = CpuEngine::new().select(&batch, scoring, Goal::Epsilon(0.2), None).unwrap();
        let without = CpuEngine::new().with_gram_cap_bytes(0);
        let without = without.select(&batch, scoring, Goal::Epsilon(0.2), None).unwrap();
        let kept = |selections: &[maxhull::engine::Selection]| {
            selections.iter().map(|selection| selection.order.len()).sum::<usize>()
        };
        let (with, without) = (kept(&with), kept(&without));
        assert!(with.abs_diff(without) <= 2, "{scoring}: {with} with a matrix, {without} without");
    }
}

#[test]
fn decisions_agree_with_the_distance_to_the_hull_of_the_others() {
    let mut random = Random(5);
    for (n, dim) in [(1, 4), (2, 4), (40, 12), (60, 24)] {
        let tokens = encoder_like(&mut random, n, dim);
        let offsets = offsets(0, &[n]);
        let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, dim).unwrap();
        let doc = reference::rows(batch.doc(0), dim);
        for scoring in SCORINGS {
            for epsilon in [0.1f32, 0.25] {
                for engine in CpuEngine::all() {
                    let decisions = &engine.decide(&batch, scoring, epsilon).unwrap()[0];
                    let mut scratch = ProofScratch::default();
                    let mut prover = TokenProver::new(batch.doc(0), dim, scoring, &mut scratch).unwrap();
                    for (token_idx, decision) in decisions.iter().enumerate() {
                        if let Decision::Removable(found) = decision {
                            let weights = Weights::Fixed(&found.weights);
                            let proposal = Proposal { token_idx: token_idx as u32, support: &found.support, weights };
                            assert!(prover.prove(&proposal, epsilon).unwrap() <= epsilon);
                        }
                        let mut others = doc.clone();
                        others.remove(token_idx);
                        let distance = reference::distance(&doc[token_idx], &others, scoring);
                        let expected = distance <= f64::from(epsilon);
                        if (distance - f64::from(epsilon)).abs() < 1e-6 {
                            continue;
                        }
                        assert_eq!(
                            matches!(decision, Decision::Removable(_)),
                            expected,
                            "{} {scoring} token {token_idx} at {distance}: {decision:?}",
                            engine.name()
                        );
                    }
                }
            }
        }
    }
}

/// A budget is planned on curves, so a tolerance that is exactly one of their values must keep exactly that many.
#[test]
fn a_goal_on_the_curve_keeps_what_the_curve_promised() {
    for (seed, dim) in [(1, 1), (2, 2), (3, 3), (4, 16), (5, 64)] {
        for factor in [1.0, 1e-3, 1e3] {
            let mut random = Random(seed);
            let tokens: Vec<f32> = encoder_like(&mut random, 80, dim).iter().map(|x| x * factor).collect();
            let offsets = [0, 80];
            let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, dim).unwrap();
            for scoring in [Scoring::Plain, Scoring::Clamped] {
                let engine = CpuEngine::new();
                let full = engine.select(&batch, scoring, Goal::Order, None).unwrap().remove(0);
                for &promised in &full.curve {
                    let num_kept = full.curve.iter().position(|&bound| bound <= promised).unwrap() + 1;
                    let found = engine.select(&batch, scoring, Goal::Curve(promised), None).unwrap().remove(0);
                    assert_eq!(found.order, full.order[..num_kept], "{scoring} dim {dim} at {promised:e}");
                }
            }
        }
    }
}
