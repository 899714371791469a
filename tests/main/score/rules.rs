//! The rules at the edges, one test each.

use maxhull::{DType, Error, Hit, Scorer, Scoring, TokenBatch, TokenData, TopK};

use super::definition::{DTYPES, Ragged, scorers};

const NAN: f32 = f32::NAN;

fn f32s<'a>(values: &'a [f32], offsets: &'a [u64], dim: usize) -> TokenBatch<'a> {
    TokenBatch::new(TokenData::F32(values), offsets, dim).unwrap()
}

#[test]
fn plain_keeps_negative_maxima_and_clamped_counts_them_0() {
    let docs = f32s(&[-1.0, -3.0], &[0, 2], 1);
    let queries = f32s(&[2.0, -1.0], &[0, 2], 1);
    for (_, plain) in scorers(Scoring::Plain) {
        assert_eq!(plain.scores(queries, docs).unwrap(), [-2.0 + 3.0]);
    }
    for (_, clamped) in scorers(Scoring::Clamped) {
        assert_eq!(clamped.scores(queries, docs).unwrap(), [3.0]);
    }
}

#[test]
fn an_empty_document_scores_0_when_clamped() {
    let docs = f32s(&[1.0], &[0, 0, 1, 1], 1);
    let scores = Scorer::new(Scoring::Clamped).scores(f32s(&[2.0], &[0, 1], 1), docs).unwrap();
    assert_eq!(scores, [0.0, 2.0, 0.0]);
}

#[test]
fn an_empty_document_is_an_error_when_plain() {
    let (queries, docs) = (f32s(&[2.0], &[0, 1], 1), f32s(&[1.0], &[0, 1, 1], 1));
    let plain = Scorer::new(Scoring::Plain);
    assert_eq!(plain.scores(queries, docs), Err(Error::EmptyDoc { doc_idx: 1 }));
    assert_eq!(plain.top_k(queries, docs, 1), Err(Error::EmptyDoc { doc_idx: 1 }));
    assert_eq!(plain.pair_scores(queries, docs, &[(0, 0), (0, 1)]), Err(Error::EmptyDoc { doc_idx: 1 }));
    assert_eq!(plain.pair_scores(queries, docs, &[(0, 0)]), Ok(vec![2.0]), "no pair names the empty document");
}

#[test]
fn an_empty_document_takes_the_callers_score() {
    let (queries, docs) = (f32s(&[2.0], &[0, 0, 1], 1), f32s(&[1.0], &[0, 1, 1], 1));
    let plain = Scorer::new(Scoring::Plain).with_empty_doc_score(-7.0);
    assert_eq!(plain.scores(queries, docs), Ok(vec![0.0, 0.0, 2.0, -7.0]), "an empty query still scores 0");
}

#[test]
fn an_empty_query_scores_0() {
    let docs = f32s(&[-1.0, NAN], &[0, 1, 2], 1);
    for scoring in [Scoring::Plain, Scoring::Clamped] {
        let scorer = Scorer::new(scoring);
        assert_eq!(scorer.scores(f32s(&[], &[0, 0], 1), docs), Ok(vec![0.0, 0.0]));
        assert_eq!(scorer.pair_scores(f32s(&[], &[0, 0], 1), docs, &[(0, 1)]), Ok(vec![0.0]));
    }
}

#[test]
fn no_queries_and_no_documents_give_no_scores() {
    let (none, some) = (f32s(&[], &[0], 3), f32s(&[1.0; 6], &[0, 2], 3));
    let scorer = Scorer::new(Scoring::Plain);
    assert_eq!(scorer.scores(none, some), Ok(vec![]));
    assert_eq!(scorer.scores(some, none), Ok(vec![]));
    assert_eq!(scorer.top_k(some, none, 5), Ok(vec![vec![]]));
    assert_eq!(scorer.top_k(none, some, 5), Ok(vec![]));
    assert_eq!(scorer.pair_scores(some, some, &[]), Ok(vec![]));
}

/// Every place a NaN can have in a block, a tail, a register and a segment.
#[test]
fn a_nan_makes_its_document_nan_and_no_other() {
    let dim = 6;
    let lens = [3, 61, 2];
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        let queries = Ragged::new(dtype, &vec![0.5; 18 * dim], &[17, 1], dim);
        for token_idx in 0..61 {
            let mut values = vec![0.25; 66 * dim];
            values[(3 + token_idx) * dim + token_idx % dim] = NAN;
            let docs = Ragged::new(dtype, &values, &lens, dim);
            for scoring in [Scoring::Plain, Scoring::Clamped] {
                for (kernel, scorer) in scorers(scoring) {
                    let scores = scorer.scores(queries.batch(), docs.batch()).unwrap();
                    let nan: Vec<bool> = scores.iter().map(|score| score.is_nan()).collect();
                    assert_eq!(nan, [false, true, false, false, true, false], "{kernel:?} {dtype:?} {token_idx}");
                    assert_eq!(scores[0], 17.0 * 0.125 * dim as f32);
                }
            }
        }
    }
}

#[test]
fn a_nan_scale_is_a_nan_token() {
    let mut docs = Ragged::new(DType::I8, &[1.0; 12], &[2, 4], 2);
    docs.scales = Some(vec![1.0, 1.0, 1.0, NAN, 1.0, 1.0]);
    let queries = Ragged::new(DType::I8, &[1.0; 2], &[1], 2);
    for (kernel, scorer) in scorers(Scoring::Plain) {
        let scores = scorer.scores(queries.tokens(), docs.tokens()).unwrap();
        assert!(scores[0] == 2.0 && scores[1].is_nan(), "{kernel:?}");
    }
}

#[test]
fn a_nan_in_a_long_document_survives_its_segments() {
    for at in [0, 4095, 4096, 9999] {
        let mut values = vec![0.5; 10_000];
        values[at] = NAN;
        let docs = f32s(&values, &[0, 10_000], 1);
        let found = Scorer::new(Scoring::Clamped).pair_matches(f32s(&[1.0], &[0, 1], 1), docs, &[(0, 0)]).unwrap();
        assert!(found[0].score.is_nan(), "{at}");
        assert_eq!(found[0].tokens[0].token_idx, None);
    }
}

#[test]
fn infinite_tokens_are_numbers() {
    let docs = f32s(&[f32::INFINITY, 1.0, f32::NEG_INFINITY], &[0, 2, 3], 1);
    let found = Scorer::new(Scoring::Plain).pair_matches(f32s(&[2.0], &[0, 1], 1), docs, &[(0, 0), (0, 1)]).unwrap();
    assert_eq!(found[0].score, f32::INFINITY);
    assert_eq!(found[1].score, f32::NEG_INFINITY);
    assert_eq!(found[1].tokens[0].token_idx, Some(0));
}

#[test]
fn ties_rank_by_document() {
    let docs = f32s(&[1.0, 2.0, 2.0, 1.0, 2.0], &[0, 1, 2, 3, 4, 5], 1);
    let scorer = Scorer::new(Scoring::Plain);
    let ranked = |k: usize| -> Vec<u64> {
        let hits = scorer.top_k(f32s(&[1.0], &[0, 1], 1), docs, k).unwrap();
        hits[0].iter().map(|hit| hit.doc_idx).collect()
    };
    assert_eq!(ranked(0), Vec::<u64>::new());
    assert_eq!(ranked(1), [1]);
    assert_eq!(ranked(2), [1, 2]);
    assert_eq!(ranked(4), [1, 2, 4, 0]);
    assert_eq!(ranked(usize::MAX), [1, 2, 4, 0, 3]);
}

#[test]
fn nan_ranks_last() {
    let docs = f32s(&[NAN, -5.0, f32::NEG_INFINITY], &[0, 1, 2, 3], 1);
    let hits = Scorer::new(Scoring::Plain).top_k(f32s(&[1.0], &[0, 1], 1), docs, 3).unwrap();
    let order: Vec<u64> = hits[0].iter().map(|hit| hit.doc_idx).collect();
    assert_eq!(order, [1, 2, 0]);
}

#[test]
fn top_k_holds_what_was_best_in_any_order_of_parts() {
    let values: Vec<f32> = (0..200).map(|i| ((i * 37) % 50) as f32).collect();
    let offsets: Vec<u64> = (0..=200).collect();
    let (queries, docs) = (f32s(&[1.0, -1.0], &[0, 1, 2], 1), f32s(&values, &offsets, 1));
    let scorer = Scorer::new(Scoring::Plain);
    let whole = scorer.top_k(queries, docs, 7).unwrap();
    let mut parts = TopK::new(2, 7);
    for start in [150, 0, 50, 100] {
        scorer.add_to_top_k(queries, docs.docs(start..start + 50), start as u64, &mut parts).unwrap();
    }
    assert_eq!(parts.into_hits(), whole);
    assert_eq!(whole[0][0], Hit { doc_idx: 27, score: 49.0 });
}

#[test]
fn matches_name_the_first_of_equal_tokens() {
    let docs = f32s(&[1.0, 3.0, 3.0, -2.0], &[0, 4], 1);
    let queries = f32s(&[1.0, -1.0, 0.0], &[0, 3], 1);
    for (kernel, scorer) in scorers(Scoring::Plain) {
        let found = scorer.pair_matches(queries, docs, &[(0, 0)]).unwrap();
        let tokens: Vec<_> = found[0].tokens.iter().map(|token| (token.token_idx, token.similarity)).collect();
        assert_eq!(tokens, [(Some(1), 3.0), (Some(3), 2.0), (Some(0), 0.0)], "{kernel:?}");
    }
}

#[test]
fn a_clamped_maximum_matches_no_token() {
    let docs = f32s(&[1.0], &[0, 1, 1], 1);
    let found = Scorer::new(Scoring::Clamped).pair_matches(f32s(&[-1.0], &[0, 1], 1), docs, &[(0, 0), (0, 1)]).unwrap();
    for pair in found {
        assert_eq!((pair.score, pair.tokens[0].token_idx, pair.tokens[0].similarity), (0.0, None, 0.0));
    }
}

#[test]
fn dims_must_agree() {
    let error = Scorer::new(Scoring::Plain).scores(f32s(&[1.0; 4], &[0, 2], 2), f32s(&[1.0; 6], &[0, 2], 3));
    assert_eq!(error.unwrap_err().to_string(), "dim of the documents is 3, expected 2, the dim of the queries");
}

#[test]
fn pairs_must_lie_in_the_batches() {
    let tokens = f32s(&[1.0; 2], &[0, 1, 2], 1);
    let scorer = Scorer::new(Scoring::Plain);
    let error = |pair| scorer.pair_scores(tokens, tokens, &[(0, 0), pair]).unwrap_err().to_string();
    assert_eq!(error((2, 0)), "query of a pair is 2 (pair 1), expected an index below 2");
    assert_eq!(error((0, 9)), "document of a pair is 9 (pair 1), expected an index below 2");
}

#[test]
fn a_top_k_belongs_to_its_queries() {
    let tokens = f32s(&[1.0; 2], &[0, 1, 2], 1);
    let error = Scorer::new(Scoring::Plain).add_to_top_k(tokens, tokens, 0, &mut TopK::new(3, 1)).unwrap_err();
    assert_eq!(error.to_string(), "number of queries of the top k is 3, expected 2");
}

#[test]
fn i8_tokens_that_could_overflow_are_refused() {
    let values = vec![-128i8; 131_072];
    let (offsets, dim) = ([0, 1], values.len());
    let tokens = TokenBatch::new(TokenData::I8(&values), &offsets, dim).unwrap();
    let error = Scorer::new(Scoring::Plain).scores(tokens, tokens).unwrap_err();
    assert!(matches!(error, Error::InvalidOption { name: "dim", .. }));
    let tokens = TokenBatch::new(TokenData::I8(&values[1..]), &offsets, dim - 1).unwrap();
    for (kernel, scorer) in scorers(Scoring::Plain) {
        assert_eq!(scorer.scores(tokens, tokens), Ok(vec![(131_071.0f64 * 16_384.0) as f32]), "{kernel:?}");
    }
}

#[test]
fn a_slice_of_a_store_scores_like_a_copy() {
    for dtype in DTYPES {
        let values: Vec<f32> = (0..40).map(|i| (i % 7) as f32 - 3.0).collect();
        let store = Ragged::new(dtype, &values, &[3, 5, 2], 4);
        let copy = Ragged::new(dtype, &values[12..], &[5, 2], 4);
        let scorer = Scorer::new(Scoring::Plain);
        assert_eq!(
            scorer.scores(store.batch().docs(1..3), store.batch().docs(1..3)),
            scorer.scores(copy.batch(), copy.batch())
        );
    }
}
