//! What the prover accepts and what it refuses.

use maxhull::Error;
use maxhull::certificate::{KeepMask, Refusal, UBig};

use super::*;

/// The unit vectors of the plane, their middle, the origin, and a duplicate of the first.
const DOC: [f32; 10] = [1.0, 0.0, 0.0, 1.0, 0.5, 0.5, 0.0, 0.0, 1.0, 0.0];
const KEPT: [bool; 5] = [true, true, false, false, false];

fn remove(scoring: Scoring, token_idx: u32, support: &[u32], weights: &[u32], tolerance: f32) -> Result<f32, Refusal> {
    let mut scratch = ProofScratch::default();
    let mut prover = DocProver::new(TokenData::F32(&DOC), 2, scoring, &KEPT, &mut scratch).unwrap();
    prover.remove(&Proposal { token_idx, support, weights: Weights::Fixed(weights) }, tolerance)
}

fn remove_exact(token_idx: u32, support: &[u32], numerators: &[u32], denominator: u32) -> Result<f32, Refusal> {
    let numerators: Vec<UBig> = numerators.iter().map(|&numerator| UBig::from(numerator)).collect();
    let mut scratch = ProofScratch::default();
    let mut prover = DocProver::new(TokenData::F32(&DOC), 2, Scoring::Plain, &KEPT, &mut scratch).unwrap();
    let denominator = UBig::from(denominator);
    let weights = Weights::Exact { numerators: &numerators, denominator: &denominator };
    prover.remove(&Proposal { token_idx, support, weights }, 0.0)
}

fn kept(mask: &KeepMask) -> Vec<u32> {
    mask.kept().collect()
}

#[test]
fn exact_combinations_have_bound_zero() {
    assert_eq!(remove(Scoring::Plain, 2, &[0, 1], &[HALF, HALF], 0.0), Ok(0.0));
    assert_eq!(remove(Scoring::Plain, 4, &[0], &[ONE], 0.0), Ok(0.0));
    assert_eq!(remove(Scoring::Clamped, 3, &[], &[], 0.0), Ok(0.0));
    assert_eq!(remove_exact(2, &[0, 1], &[7, 7], 14), Ok(0.0));
}

#[test]
fn any_distance_is_reported_under_infinite_tolerance() {
    assert_eq!(remove(Scoring::Clamped, 4, &[], &[], f32::INFINITY), Ok(1.0));
    assert_eq!(remove(Scoring::Plain, 3, &[1], &[ONE], f32::INFINITY), Ok(1.0));
}

#[test]
fn refuses_each_lie_by_name() {
    use Scoring::{Clamped, Plain};
    let third = ONE / 3;
    for (found, expected) in [
        (remove(Plain, 5, &[0], &[ONE], 1.0), Refusal::TokenOutOfRange { token_idx: 5, num_tokens: 5 }),
        (remove(Plain, 0, &[1], &[ONE], 9.0), Refusal::TokenKept { token_idx: 0 }),
        (remove(Plain, 2, &[0, 1], &[ONE], 1.0), Refusal::WeightCount { token_idx: 2, num_support: 2, num_weights: 1 }),
        (remove(Plain, 3, &[], &[], 1.0), Refusal::EmptySupport { token_idx: 3 }),
        (remove(Plain, 2, &[2], &[ONE], 1.0), Refusal::SupportOnItself { token_idx: 2 }),
        (
            remove(Plain, 2, &[0, 9], &[HALF, HALF], 1.0),
            Refusal::SupportOutOfRange { token_idx: 2, support_idx: 9, num_tokens: 5 },
        ),
        (
            remove(Plain, 2, &[1, 0], &[HALF, HALF], 1.0),
            Refusal::SupportNotAscending { token_idx: 2, support_idx: 0, previous: 1 },
        ),
        (
            remove(Plain, 2, &[1, 1], &[HALF, HALF], 1.0),
            Refusal::SupportNotAscending { token_idx: 2, support_idx: 1, previous: 1 },
        ),
        (remove(Plain, 2, &[4], &[ONE], 1.0), Refusal::SupportRemoved { token_idx: 2, support_idx: 4 }),
        (remove(Plain, 2, &[0, 1], &[ONE, 0], 1.0), Refusal::ZeroWeight { token_idx: 2, support_idx: 1 }),
        (remove(Clamped, 2, &[0, 1], &[ONE, HALF], 1.0), Refusal::SumAboveOne { token_idx: 2, sum: 1.5 }),
        (remove(Plain, 2, &[0, 1], &[ONE, HALF], 1.0), Refusal::SumNotOne { token_idx: 2, sum: 1.5 }),
        (remove(Plain, 2, &[0, 1], &[HALF, QUARTER], 1.0), Refusal::SumNotOne { token_idx: 2, sum: 0.75 }),
        (
            remove(Plain, 2, &[0, 1], &[u32::MAX, third], 1.0),
            Refusal::SumNotOne { token_idx: 2, sum: (f64::from(u32::MAX) + f64::from(third)) / f64::from(ONE) },
        ),
        (remove(Plain, 2, &[0, 1], &[HALF, HALF], -1.0), Refusal::InvalidTolerance { tolerance: -1.0 }),
        (
            remove(Plain, 3, &[1], &[ONE], 0.5),
            Refusal::ResidualAboveTolerance { token_idx: 3, residual: 1.0, tolerance: 0.5 },
        ),
        (remove_exact(2, &[0, 1], &[1, 1], 0), Refusal::ZeroDenominator { token_idx: 2 }),
        (remove_exact(2, &[0, 1], &[0, 2], 2), Refusal::ZeroWeight { token_idx: 2, support_idx: 0 }),
        (remove_exact(2, &[0, 1], &[2, 2], 3), Refusal::SumNotOne { token_idx: 2, sum: 4.0 / 3.0 }),
    ] {
        assert_eq!(found, Err(expected));
    }
    assert!(matches!(
        remove(Plain, 2, &[0, 1], &[HALF, HALF], f32::NAN),
        Err(Refusal::InvalidTolerance { tolerance }) if tolerance.is_nan()
    ));
}

#[test]
fn refuses_a_denominator_that_does_not_fit_a_record() {
    let mut scratch = ProofScratch::default();
    let mut prover = DocProver::new(TokenData::F32(&DOC), 2, Scoring::Plain, &KEPT, &mut scratch).unwrap();
    let denominator = UBig::from(1u8) << (8 * 65535);
    let numerator = &denominator >> 1;
    let numerators = [numerator.clone(), numerator];
    let weights = Weights::Exact { numerators: &numerators, denominator: &denominator };
    let refused = prover.remove(&Proposal { token_idx: 2, support: &[0, 1], weights }, 0.0);
    assert_eq!(refused, Err(Refusal::DenominatorTooLong { token_idx: 2, bytes: 65536, max: 65535 }));
}

#[test]
fn removals_must_ascend_and_a_refused_one_may_be_tried_again() {
    let mut scratch = ProofScratch::default();
    let mut prover = DocProver::new(TokenData::F32(&DOC), 2, Scoring::Plain, &KEPT, &mut scratch).unwrap();
    let duplicate = Proposal { token_idx: 4, support: &[0], weights: Weights::Fixed(&[ONE]) };
    let wrong = Proposal { token_idx: 2, ..duplicate };
    let right = Proposal { token_idx: 2, support: &[0, 1], weights: Weights::Fixed(&[HALF, HALF]) };
    assert!(matches!(prover.remove(&wrong, 0.1), Err(Refusal::ResidualAboveTolerance { token_idx: 2, .. })));
    assert_eq!(prover.remove(&right, 0.1), Ok(0.0));
    assert_eq!(prover.remove(&right, 0.1), Err(Refusal::TokenNotAscending { token_idx: 2, previous: 2 }));
    assert_eq!(prover.remove(&duplicate, 0.1), Ok(0.0));
    assert_eq!(prover.remove(&right, 0.1), Err(Refusal::TokenNotAscending { token_idx: 2, previous: 4 }));
    assert_eq!(kept(prover.finish().keep()), [0, 1, 3]);
}

#[test]
fn a_document_is_never_emptied() {
    let zeros = [0.0f32; 6];
    let mut scratch = ProofScratch::default();
    let flags = [false; 3];
    let mut prover = DocProver::new(TokenData::F32(&zeros), 2, Scoring::Clamped, &flags, &mut scratch).unwrap();
    let origin = |token_idx| Proposal { token_idx, support: &[], weights: Weights::Fixed(&[]) };
    assert_eq!(prover.remove(&origin(0), 0.0), Err(Refusal::TokenKept { token_idx: 0 }));
    assert_eq!(prover.remove(&origin(1), 0.0), Ok(0.0));
    assert_eq!(prover.remove(&origin(2), 0.0), Ok(0.0));
    assert_eq!(kept(prover.finish().keep()), [0]);
    let empty = DocProver::new(TokenData::F32(&[]), 2, Scoring::Plain, &[], &mut scratch).unwrap().finish();
    assert_eq!((empty.keep().num_tokens(), empty.bound()), (0, 0.0));
}

#[test]
fn a_token_that_is_not_finite_is_named() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut doc = DOC;
        doc[7] = bad;
        let mut scratch = ProofScratch::default();
        let mut prover = DocProver::new(TokenData::F32(&doc), 2, Scoring::Plain, &KEPT, &mut scratch).unwrap();
        let refused = prover.remove(&Proposal { token_idx: 4, support: &[0], weights: Weights::Fixed(&[ONE]) }, 1.0);
        assert_eq!(refused, Err(Refusal::NonFinite { token_idx: 3, component_idx: 1 }));
    }
}

#[test]
fn wrong_lengths_are_errors() {
    let mut scratch = ProofScratch::default();
    let mut new = |dim, kept: &[bool]| {
        DocProver::new(TokenData::F32(&DOC), dim, Scoring::Plain, kept, &mut scratch).map(|_| ()).unwrap_err()
    };
    assert_eq!(new(0, &KEPT), Error::ZeroDim);
    assert_eq!(new(3, &KEPT), Error::PartialToken { len: 10, dim: 3 });
    let what = "number of proposed_kept flags";
    assert_eq!(new(2, &KEPT[1..]), Error::Mismatch { what, found: "4".into(), expected: "5".into() });
}

#[test]
fn scratch_carries_nothing_from_one_document_to_the_next() {
    let (tokens, offsets) = Corpus::tokens();
    let batch = TokenBatch::new(TokenData::F16(&tokens), &offsets, Corpus::DIM).unwrap();
    let mut shared = ProofScratch::default();
    for (doc_idx, removals) in Corpus::removals().iter().enumerate() {
        let alone = prove(batch.doc(doc_idx), Corpus::DIM, Scoring::Clamped, removals, 1.0);
        let flags: Vec<bool> = (0..batch.doc_len(doc_idx)).map(|token_idx| alone.keep().is_kept(token_idx)).collect();
        let doc = batch.doc(doc_idx);
        let mut prover = DocProver::new(doc, Corpus::DIM, Scoring::Clamped, &flags, &mut shared).unwrap();
        for (token_idx, support, weights) in removals {
            let proposal = Proposal { token_idx: *token_idx, support, weights: Weights::Fixed(weights) };
            prover.remove(&proposal, 1.0).unwrap();
        }
        assert_eq!(prover.finish().record(), alone.record());
    }
}
