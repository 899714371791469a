//! Every kernel of this machine against the definition.

use maxhull::{DType, Kernel, Scorer, Scoring, Tokens};

use super::definition::{self, DTYPES, Ragged, Random, scorers};

/// Bits of scores, so that equality is equality.
fn bits(scores: &[f32]) -> Vec<u32> {
    scores.iter().map(|score| score.to_bits()).collect()
}

fn lattice(random: &mut Random, dtype: DType, lens: &[usize], dim: usize) -> Ragged {
    let len = lens.iter().sum::<usize>() * dim;
    Ragged::new(dtype, &random.lattice(dtype, len), lens, dim)
}

/// All kernels, all four methods, against the definition, bit for bit.
fn assert_exact(queries: &Ragged, docs: &Ragged, scoring: Scoring) {
    let expected: Vec<f32> = definition::scores(queries, docs, scoring).iter().map(|&score| score as f32).collect();
    let (num_queries, num_docs) = (queries.batch().num_docs(), docs.batch().num_docs());
    let pairs: Vec<(u32, u32)> =
        (0..num_queries as u32).flat_map(|query| (0..num_docs as u32).map(move |doc| (query, doc))).collect();
    for (kernel, scorer) in scorers(scoring) {
        let what = format!("{kernel:?}, {:?}, dim {}", docs.batch().dtype(), docs.dim);
        assert_eq!(bits(&scorer.scores(queries.tokens(), docs.tokens()).unwrap()), bits(&expected), "{what}");
        assert_eq!(
            bits(&scorer.pair_scores(queries.tokens(), docs.tokens(), &pairs).unwrap()),
            bits(&expected),
            "{what}"
        );
        let matches = scorer.pair_matches(queries.tokens(), docs.tokens(), &pairs).unwrap();
        for ((pair, found), expected) in pairs.iter().zip(&matches).zip(&expected) {
            assert_eq!(found.score.to_bits(), expected.to_bits(), "{what}");
            let (_, matched) = definition::score(queries, docs, scoring, (pair.0 as usize, pair.1 as usize));
            let tokens: Vec<Option<u32>> = found.tokens.iter().map(|token| token.token_idx).collect();
            let clamped = |i: usize| scoring == Scoring::Clamped && found.tokens[i].similarity == 0.0;
            for (i, token) in tokens.iter().enumerate() {
                assert!(*token == Some(matched[i] as u32) || (token.is_none() && clamped(i)), "{what} {pair:?} {i}");
            }
        }
    }
}

#[test]
fn every_dim_is_exact_on_the_lattice() {
    let mut random = Random(1);
    for dtype in DTYPES {
        for dim in [1, 2, 3, 7, 16, 33, 48, 63, 96, 111, 128, 250, 320, 513] {
            let queries = lattice(&mut random, dtype, &[5, 32], dim);
            let docs = lattice(&mut random, dtype, &[1, 30, 13], dim);
            assert_exact(&queries, &docs, Scoring::Plain);
        }
    }
}

#[test]
fn every_number_of_document_tokens_is_exact_on_the_lattice() {
    let mut random = Random(2);
    let lens: Vec<usize> = (1..=64).collect();
    for dtype in DTYPES {
        let queries = lattice(&mut random, dtype, &[3, 17], 5);
        let docs = lattice(&mut random, dtype, &lens, 5);
        assert_exact(&queries, &docs, Scoring::Plain);
        assert_exact(&queries, &docs, Scoring::Clamped);
    }
}

#[test]
fn every_number_of_query_tokens_is_exact_on_the_lattice() {
    let mut random = Random(3);
    let mut lens: Vec<usize> = (1..=68).collect();
    lens.extend([127, 1024]);
    for dtype in DTYPES {
        let queries = lattice(&mut random, dtype, &lens, 3);
        let docs = lattice(&mut random, dtype, &[4, 29], 3);
        assert_exact(&queries, &docs, Scoring::Plain);
    }
}

#[test]
fn types_meet_exactly_on_the_lattice() {
    let mut random = Random(4);
    for query_type in DTYPES {
        for doc_type in DTYPES {
            let queries = lattice(&mut random, query_type, &[6], 10);
            let docs = lattice(&mut random, doc_type, &[25, 2], 10);
            assert_exact(&queries, &docs, Scoring::Plain);
        }
    }
}

#[test]
fn scales_multiply_their_tokens() {
    let mut random = Random(5);
    let power = |random: &mut Random| [0.0, 0.25, 1.0, 2.0][random.below(4)];
    for (query_scaled, doc_scaled, query_type) in
        [(true, true, DType::I8), (true, false, DType::I8), (false, true, DType::I8), (false, true, DType::F32)]
    {
        let mut queries = lattice(&mut random, query_type, &[4, 20], 37);
        let mut docs = lattice(&mut random, DType::I8, &[3, 50, 14], 37);
        queries.scales = query_scaled.then(|| (0..24).map(|_| power(&mut random)).collect());
        docs.scales = doc_scaled.then(|| (0..67).map(|_| power(&mut random)).collect());
        for scoring in [Scoring::Plain, Scoring::Clamped] {
            let expected = definition::scores(&queries, &docs, scoring);
            for (kernel, scorer) in scorers(scoring) {
                let found = scorer.scores(queries.tokens(), docs.tokens()).unwrap();
                assert!(found.iter().zip(&expected).all(|(&a, &b)| f64::from(a) == b), "{kernel:?}");
            }
        }
    }
}

#[test]
fn bytes_are_exact_at_their_extremes() {
    let dim = 1100;
    let extremes = |low: usize| Ragged::new(DType::I8, &vec![if low == 0 { -128.0 } else { 127.0 }; dim], &[1], dim);
    for (query, doc) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        assert_exact(&extremes(query), &extremes(doc), Scoring::Plain);
    }
}

/// Most that a score may be off, for tokens within [-1, 1]: one expression for each arithmetic, in unit roundoffs.
fn tolerance(kernel: Kernel, dtype: DType, num_query_tokens: usize, dim: usize) -> f64 {
    let u = 2f64.powi(-24);
    // A chain of `dim` multiply-adds of products within [-1, 1]; without fused ones each product rounds too.
    let chain = (dim * (dim + 1)) as f64 / 2.0 * u;
    let similarity = match (kernel, dtype) {
        (_, DType::I8) => 0.0,
        (Kernel::Portable, DType::F32 | DType::F16 | DType::Bf16) => chain + dim as f64 * u,
        (Kernel::Avx512 | Kernel::Avx2 | Kernel::Neon, DType::F32 | DType::F16) => chain,
        // The bf16 dot product flushes subnormals to 0.
        (Kernel::Avx512 | Kernel::Avx2 | Kernel::Neon, DType::Bf16) => {
            chain + dim as f64 * f64::from(f32::MIN_POSITIVE)
        }
    };
    // The last rounding of a score of at most `m * dim`.
    num_query_tokens as f64 * (similarity + dim as f64 * u)
}

#[test]
fn random_tokens_are_within_the_rounding_bound() {
    let mut random = Random(6);
    for dtype in DTYPES {
        for (dim, num_query_tokens) in [(7, 3), (128, 32), (320, 40)] {
            let lens = [1, 50, 13];
            let size = if dtype == DType::I8 { 127.0 } else { 1.0 };
            let mut tokens =
                |count: usize| -> Vec<f32> { random.units(count * dim).iter().map(|value| value * size).collect() };
            let queries = Ragged::new(dtype, &tokens(num_query_tokens), &[num_query_tokens], dim);
            let docs = Ragged::new(dtype, &tokens(64), &lens, dim);
            let expected = definition::scores(&queries, &docs, Scoring::Plain);
            for (kernel, scorer) in scorers(Scoring::Plain) {
                let found = scorer.scores(queries.tokens(), docs.tokens()).unwrap();
                for (found, expected) in found.iter().zip(&expected) {
                    let most = match dtype {
                        DType::I8 => expected.abs() * 2f64.powi(-24),
                        _ => tolerance(kernel, dtype, num_query_tokens, dim),
                    };
                    assert!((f64::from(*found) - expected).abs() <= most, "{kernel:?} {dtype:?}: {found} {expected}");
                }
            }
        }
    }
}

#[test]
fn a_batch_gives_the_bits_of_its_documents_alone() {
    let mut random = Random(7);
    let lens = [5, 12, 40, 1, 77];
    for dtype in DTYPES {
        let queries = Ragged::new(dtype, &random.units(33 * 24), &[20, 13], 24);
        let docs = Ragged::new(dtype, &random.units(135 * 24), &lens, 24);
        for (kernel, scorer) in scorers(Scoring::Plain) {
            let all = scorer.scores(queries.tokens(), docs.tokens()).unwrap();
            for query_idx in 0..2 {
                for doc_idx in 0..lens.len() {
                    let query = queries.batch().docs(query_idx..query_idx + 1);
                    let doc = docs.batch().docs(doc_idx..doc_idx + 1);
                    let alone = scorer.scores(query, doc).unwrap()[0];
                    let together = all[query_idx * lens.len() + doc_idx];
                    assert_eq!(alone.to_bits(), together.to_bits(), "{kernel:?} {dtype:?}");
                }
            }
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let mut random = Random(8);
    let (dim, lens) = (16, [30, 9000, 1, 250, 4097, 12]);
    let queries = Ragged::new(DType::F32, &random.units(40 * dim), &[33, 7], dim);
    let docs = Ragged::new(DType::F32, &random.units(lens.iter().sum::<usize>() * dim), &lens, dim);
    let scorer = Scorer::new(Scoring::Plain);
    let on = |num_threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
        pool.install(|| {
            let scores = bits(&scorer.scores(queries.tokens(), docs.tokens()).unwrap());
            (scores, scorer.top_k(queries.tokens(), docs.tokens(), 3).unwrap())
        })
    };
    let one = on(1);
    for num_threads in [2, 3, 8] {
        assert_eq!(on(num_threads), one, "{num_threads} threads");
    }
}

#[test]
fn tokens_carry_their_scales() {
    let docs = Ragged::new(DType::I8, &[1.0; 6], &[1, 2], 2);
    let batch = docs.batch();
    assert!(Tokens::scaled(batch, &[1.0; 3]).is_ok());
    assert!(Tokens::scaled(batch, &[1.0, f32::NAN, 0.0]).is_ok());
    let error = Tokens::scaled(batch, &[1.0; 2]).unwrap_err();
    assert_eq!(error.to_string(), "number of scales is 2, expected 3");
    let error = Tokens::scaled(batch, &[1.0, -2.0, 1.0]).unwrap_err();
    assert_eq!(error.to_string(), "scale is -2: a scale is at least 0");
    let floats = Ragged::new(DType::F32, &[1.0; 6], &[1, 2], 2);
    let error = Tokens::scaled(floats.batch(), &[1.0; 3]).unwrap_err();
    assert_eq!(error.to_string(), "element type of scaled tokens is f32, expected i8");
}
