//! What other scorers get wrong.

use maxhull::{DType, Scorer, Scoring};

use super::definition::{self, Ragged, Random, scorers};

/// Zero padding would lift every maximum to 0.
#[test]
fn all_negative_similarities_in_a_ragged_batch_stay_negative() {
    let mut random = Random(11);
    let (dim, lens) = (12, [1, 40, 3, 17, 100, 2]);
    let negative: Vec<f32> = random.units(163 * dim).iter().map(|value| -value.abs() - 0.125).collect();
    let queries = Ragged::new(DType::F32, &vec![0.5; 37 * dim], &[5, 32], dim);
    let docs = Ragged::new(DType::F32, &negative, &lens, dim);
    let expected = definition::scores(&queries, &docs, Scoring::Plain);
    for (kernel, scorer) in scorers(Scoring::Plain) {
        for (found, expected) in scorer.scores(queries.batch(), docs.batch()).unwrap().iter().zip(&expected) {
            assert!(*found < 0.0 && (f64::from(*found) - expected).abs() < 1e-4, "{kernel:?} {found} {expected}");
        }
    }
}

/// The ranking of documents `[num_docs]`, best first.
fn order<T: PartialOrd + Copy>(scores: &[T]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).unwrap().then(a.cmp(&b)));
    order
}

fn normalise(token: &mut [f32]) {
    let norm = token.iter().map(|value| value * value).sum::<f32>().sqrt();
    token.iter_mut().for_each(|value| *value /= norm);
}

/// Unit tokens in a narrow cone: all similarities are near 1 and differ far behind the point.
#[test]
fn anisotropic_tokens_rank_as_in_f64() {
    let mut random = Random(12);
    let (dim, num_docs) = (96, 200);
    let mut tokens = |count: usize| {
        let mut values = random.units(count * dim);
        for token in values.chunks_mut(dim) {
            token.iter_mut().for_each(|value| *value = 1.0 + 0.2 * *value);
            normalise(token);
        }
        values
    };
    let queries = Ragged::new(DType::F32, &tokens(32), &[32], dim);
    let docs = Ragged::new(DType::F32, &tokens(num_docs * 5), &vec![5; num_docs], dim);
    let expected = definition::scores(&queries, &docs, Scoring::Plain);
    // The input must be hard: similar scores, and gaps that 16-bit scores would lose.
    let ranked = order(&expected);
    let gaps: Vec<f64> = ranked.windows(2).map(|pair| expected[pair[0]] - expected[pair[1]]).collect();
    assert!(gaps.iter().filter(|&&gap| gap < 2f64.powi(-6)).count() > num_docs / 2);
    for (kernel, scorer) in scorers(Scoring::Plain) {
        let found = scorer.scores(queries.batch(), docs.batch()).unwrap();
        // Documents closer than f32 can tell may swap; no others.
        for (pair, gap) in ranked.windows(2).zip(&gaps) {
            assert!(*gap < 1e-5 || found[pair[0]] > found[pair[1]], "{kernel:?} {pair:?} {gap}");
        }
    }
}

/// f16 tokens whose scores differ by less than f16 can tell.
#[test]
fn scores_closer_than_an_f16_ulp_keep_their_order() {
    let mut random = Random(13);
    let dim = 128;
    let query: Vec<f32> = random.units(32 * dim);
    let queries = Ragged::new(DType::F16, &query, &[32], dim);
    let base: Vec<f32> = random.units(10 * dim);
    // Document `i` is the base with its last component raised by `i` steps of f16.
    let docs: Vec<f32> = (0..20)
        .flat_map(|i| {
            let mut doc = base.clone();
            doc.chunks_mut(dim).for_each(|token| token[dim - 1] = 0.5 + i as f32 / 2048.0);
            doc
        })
        .collect();
    let docs = Ragged::new(DType::F16, &docs, &[10; 20], dim);
    let expected = definition::scores(&queries, &docs, Scoring::Plain);
    let ulp = 2f64.powi(expected[0].abs().log2().floor() as i32 - 10);
    let gaps = expected.windows(2).map(|pair| (pair[1] - pair[0]).abs());
    assert!(gaps.clone().all(|gap| gap > 0.0 && gap < ulp), "the input must be hard");
    for (kernel, scorer) in scorers(Scoring::Plain) {
        let found = scorer.scores(queries.batch(), docs.batch()).unwrap();
        assert_eq!(order(&found), order(&expected), "{kernel:?}");
    }
}

#[test]
fn more_documents_than_16_bits_can_number() {
    let num_docs = 70_000;
    let values: Vec<f32> = (0..num_docs).map(|doc_idx| (doc_idx % 127) as f32).collect();
    let docs = Ragged::new(DType::I8, &values, &vec![1; num_docs], 1);
    let queries = Ragged::new(DType::I8, &[1.0, -1.0], &[1, 1], 1);
    let scorer = Scorer::new(Scoring::Plain);
    let scores = scorer.scores(queries.batch(), docs.batch()).unwrap();
    assert_eq!(scores.len(), 2 * num_docs);
    assert!(scores[..num_docs].iter().zip(&values).all(|(score, value)| score == value));
    assert!(scores[num_docs..].iter().zip(&values).all(|(score, value)| *score == -value));
    let hits = scorer.top_k(queries.batch(), docs.batch(), 700).unwrap();
    assert!(hits[0].iter().enumerate().all(|(rank, hit)| hit.doc_idx == (rank % 551 * 127 + 126 - rank / 551) as u64));
    let last = (num_docs - 1) as u32;
    assert_eq!(scorer.pair_scores(queries.batch(), docs.batch(), &[(0, last)]), Ok(vec![values[last as usize]]));
}

#[test]
fn one_document_of_100_000_tokens_among_a_thousand_of_20() {
    let (dim, long) = (4, 517);
    let mut lens = vec![20; 1001];
    lens[long] = 100_000;
    let mut random = Random(14);
    let num_tokens: usize = lens.iter().sum();
    let mut values: Vec<f32> = random.lattice(DType::F32, num_tokens * dim);
    // One token of the long document beats all others.
    let winner = 77_777;
    values[(long * 20 + winner) * dim..][..dim].fill(2.0);
    let queries = Ragged::new(DType::F32, &[1.0; 20 * 4], &[20], dim);
    let docs = Ragged::new(DType::F32, &values, &lens, dim);
    let expected: Vec<f32> =
        definition::scores(&queries, &docs, Scoring::Plain).iter().map(|&score| score as f32).collect();
    let scorer = Scorer::new(Scoring::Plain);
    assert_eq!(scorer.scores(queries.batch(), docs.batch()).unwrap(), expected);
    assert_eq!(scorer.top_k(queries.batch(), docs.batch(), 1).unwrap()[0][0].doc_idx, long as u64);
    let found = scorer.pair_matches(queries.batch(), docs.batch(), &[(0, long as u32)]).unwrap();
    assert!(found[0].tokens.iter().all(|token| token.token_idx == Some(winner as u32)));
}

/// Enough query tokens for screening, on inputs where bytes decide nearly everything, something, and nothing.
#[test]
fn screening_changes_no_bit() {
    let mut random = Random(15);
    const DIM: usize = 100;
    let lens = [300, 49, 20, 200, 70];
    let num_tokens = lens.iter().sum::<usize>();
    let spread = |random: &mut Random, count: usize| random.units(count * DIM);
    let narrow = |random: &mut Random, count: usize| {
        random.units(count * DIM).iter().map(|value| 1.0 + 0.01 * value).collect::<Vec<f32>>()
    };
    let equal = |_: &mut Random, count: usize| vec![0.5; count * DIM];
    let tiny = |random: &mut Random, count: usize| {
        random.units(count * DIM).iter().map(|value| value * 1e-20).collect::<Vec<f32>>()
    };
    let sparse = |random: &mut Random, count: usize| {
        (0..count * DIM).map(|_| if random.below(40) == 0 { random.signed() } else { 0.0 }).collect::<Vec<f32>>()
    };
    type Tokens = dyn Fn(&mut Random, usize) -> Vec<f32>;
    let inputs: [&Tokens; 5] = [&spread, &narrow, &equal, &tiny, &sparse];
    for (input_idx, tokens) in inputs.iter().enumerate() {
        for dtype in [DType::F32, DType::F16] {
            let queries = Ragged::new(dtype, &tokens(&mut random, 150), &[100, 50], DIM);
            let mut values = tokens(&mut random, num_tokens);
            if input_idx == 0 {
                values[310 * DIM] = f32::NAN;
                values[375 * DIM + 1] = f32::INFINITY;
            }
            let docs = Ragged::new(dtype, &values, &lens, DIM);
            for scoring in [Scoring::Plain, Scoring::Clamped] {
                let run = |screening| {
                    let scorer = Scorer::new(scoring).with_screening(screening);
                    let scores = scorer.scores(queries.batch(), docs.batch()).unwrap();
                    scores.iter().map(|score| score.to_bits()).collect::<Vec<u32>>()
                };
                assert_eq!(run(true), run(false), "input {input_idx}, {dtype:?}");
            }
        }
    }
}
