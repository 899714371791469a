//! Residual decisions against the definition in big integers.

use maxhull::certificate::{Refusal, UBig};
use maxhull::half::bf16;
use proptest::prelude::*;

use super::*;

/// `Σ_k (2^24·x_ik − Σ_j w_j x_jk)²` in units of `2^(2·UNIT)`, by the definition.
fn square_sum(doc: &[f32], dim: usize, token_idx: usize, support: &[u32], weights: &[u32]) -> UBig {
    let mut sum = UBig::ZERO;
    for k in 0..dim {
        let mut r = scaled(doc[token_idx * dim + k]) * ONE;
        for (&j, &w) in support.iter().zip(weights) {
            r -= scaled(doc[j as usize * dim + k]) * w;
        }
        sum += (&r * &r).into_parts().1;
    }
    sum
}

/// `x` in units of `2^-149`, of which every f32 is a multiple.
fn scaled(x: f32) -> dashu_int::IBig {
    let bits = x.to_bits();
    let (biased, fraction) = (bits >> 23 & 0xff, bits & 0x7f_ffff);
    let magnitude =
        if biased == 0 { UBig::from(fraction) } else { UBig::from(fraction + (1 << 23)) << (biased as usize - 1) };
    if x.is_sign_negative() { -dashu_int::IBig::from(magnitude) } else { magnitude.into() }
}

/// Whether the residual is at most `bound`, by the definition.
fn holds(square_sum: &UBig, bound: f32) -> bool {
    let right = scaled(bound) * ONE;
    *square_sum <= (&right * &right).into_parts().1
}

/// Smallest f32 at or above the residual.
fn smallest_bound(square_sum: &UBig) -> f32 {
    let (mut low, mut high) = (0, f32::INFINITY.to_bits());
    while low < high {
        let middle = (low + high) / 2;
        if holds(square_sum, f32::from_bits(middle)) { high = middle } else { low = middle + 1 }
    }
    f32::from_bits(low)
}

/// A document of `NUM_TOKENS` tokens whose last rests on the others, with fixed weights that sum to 1.
#[derive(Debug, Clone)]
struct Case {
    dim: usize,
    values: Vec<f32>,
    weights: Vec<u32>,
}

const NUM_TOKENS: usize = 6;

/// f32 values of very different sizes, denormals among them.
fn value(scale: i32) -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => (-1.0f32..1.0).prop_map(move |x| x * 2f32.powi(scale)),
        1 => any::<u32>().prop_map(|bits| f32::from_bits(bits & 0x807f_ffff)),
        1 => any::<f32>().prop_filter("finite", |x| x.is_finite()),
        1 => Just(0.0),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    (1usize..40, prop_oneof![Just(0), Just(-10), Just(-24), Just(20), Just(120), Just(-140)]).prop_flat_map(
        |(dim, scale)| {
            let values = proptest::collection::vec(value(scale), dim * NUM_TOKENS);
            let cuts = proptest::collection::vec(1..ONE, NUM_TOKENS - 2);
            let near = prop_oneof![Just(None), (-40i32..0).prop_map(Some)];
            (values, cuts, near).prop_map(move |(mut values, mut cuts, near)| {
                cuts.extend([0, ONE]);
                cuts.sort_unstable();
                let mut weights: Vec<u32> = cuts.windows(2).map(|pair| pair[1] - pair[0]).collect();
                // A cut that occurs twice would give weight 0: fall back to weights that are all positive.
                if weights.contains(&0) {
                    weights = vec![1; NUM_TOKENS - 2];
                    weights.push(ONE - (NUM_TOKENS as u32 - 2));
                }
                if let Some(near) = near {
                    place_near(&mut values, dim, &weights, 2f32.powi(near));
                }
                Case { dim, values, weights }
            })
        },
    )
}

/// Moves the last token next to its combination, as a solver would leave it.
fn place_near(values: &mut [f32], dim: usize, weights: &[u32], relative: f32) {
    for k in 0..dim {
        let terms =
            weights.iter().enumerate().map(|(j, &w)| f64::from(w) / f64::from(ONE) * f64::from(values[j * dim + k]));
        let sum = terms.sum::<f64>() as f32;
        values[(NUM_TOKENS - 1) * dim + k] = sum + sum * relative;
    }
}

/// Holds the prover to the definition at tolerances around the true residual.
fn check(case: &Case, doc: TokenData<'_>, exact_values: &[f32]) -> Result<(), TestCaseError> {
    let token_idx = NUM_TOKENS - 1;
    let support: Vec<u32> = (0..token_idx as u32).collect();
    let mut kept = [true; NUM_TOKENS];
    kept[token_idx] = false;
    let truth = square_sum(exact_values, case.dim, token_idx, &support, &case.weights);
    let smallest = smallest_bound(&truth);
    let around = [smallest.next_down().next_down(), smallest.next_down(), smallest, smallest.next_up(), 2.0 * smallest];
    for tolerance in around.into_iter().chain([0.0, 1e-3, 1.0, f32::INFINITY]).filter(|&t| t >= 0.0) {
        let mut scratch = ProofScratch::default();
        let mut prover = DocProver::new(doc, case.dim, Scoring::Plain, &kept, &mut scratch).unwrap();
        let weights = Weights::Fixed(&case.weights);
        let found = prover.remove(&Proposal { token_idx: token_idx as u32, support: &support, weights }, tolerance);
        match found {
            Ok(bound) => {
                prop_assert!(smallest <= tolerance);
                prop_assert_eq!(bound, smallest);
            }
            Err(Refusal::ResidualAboveTolerance { residual, .. }) => {
                prop_assert!(smallest > tolerance, "{smallest:e} was refused under {tolerance:e}");
                prop_assert_eq!(residual, smallest);
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn f32_decisions_are_those_of_the_definition(case in case()) {
        check(&case, TokenData::F32(&case.values), &case.values)?;
    }

    #[test]
    fn bf16_decisions_are_those_of_the_definition(case in case()) {
        let values: Vec<bf16> = case.values.iter().map(|&x| finite_bf16(x)).collect();
        let wide: Vec<f32> = values.iter().map(|x| x.to_f32()).collect();
        check(&case, TokenData::Bf16(&values), &wide)?;
    }

    #[test]
    fn f16_decisions_are_those_of_the_definition(case in case(), largest in prop_oneof![Just(1.0f32), Just(16.0), Just(65504.0)]) {
        let values: Vec<f16> = case.values.iter().map(|&x| f16::from_f32(x.clamp(-largest, largest))).collect();
        let wide: Vec<f32> = values.iter().map(|x| x.to_f32()).collect();
        check(&case, TokenData::F16(&values), &wide)?;
    }

    #[test]
    fn i8_decisions_are_those_of_the_definition(case in case()) {
        let values: Vec<i8> = case.values.iter().map(|x| (x * 127.0) as i8).collect();
        let wide: Vec<f32> = values.iter().map(|&x| f32::from(x)).collect();
        check(&case, TokenData::I8(&values), &wide)?;
    }

    /// Exact weights with the same values as fixed ones give the smallest bound.
    #[test]
    fn exact_weights_give_the_smallest_bound(case in case(), factor in 1u64..) {
        let numerators: Vec<UBig> = case.weights.iter().map(|&w| UBig::from(w) * factor).collect();
        let denominator = UBig::from(ONE) * factor;
        let support: Vec<u32> = (0..NUM_TOKENS as u32 - 1).collect();
        let kept: Vec<bool> = (0..NUM_TOKENS).map(|token_idx| token_idx + 1 < NUM_TOKENS).collect();
        let mut scratch = ProofScratch::default();
        let doc = TokenData::F32(&case.values);
        let mut prover = DocProver::new(doc, case.dim, Scoring::Plain, &kept, &mut scratch).unwrap();
        let weights = Weights::Exact { numerators: &numerators, denominator: &denominator };
        let token_idx = NUM_TOKENS as u32 - 1;
        let found = prover.remove(&Proposal { token_idx, support: &support, weights }, f32::INFINITY);
        let truth = square_sum(&case.values, case.dim, NUM_TOKENS - 1, &support, &case.weights);
        prop_assert_eq!(found, Ok(smallest_bound(&truth)));
    }
}

/// Rounding up to infinity would leave the domain.
fn finite_bf16(x: f32) -> bf16 {
    let rounded = bf16::from_f32(x);
    if rounded.is_finite() { rounded } else { bf16::MAX }
}

#[test]
fn a_residual_one_ulp_above_the_tolerance_is_refused() {
    // 3-4-5: the distance is exactly 5/8.
    let doc = f16s(&[0.375, 0.5, 0.0, 0.0]);
    let mut scratch = ProofScratch::default();
    let mut prover = DocProver::new(TokenData::F16(&doc), 2, Scoring::Plain, &[false, true], &mut scratch).unwrap();
    let proposal = Proposal { token_idx: 0, support: &[1], weights: Weights::Fixed(&[ONE]) };
    let tolerance = 0.625f32.next_down();
    let refusal = Refusal::ResidualAboveTolerance { token_idx: 0, residual: 0.625, tolerance };
    assert_eq!(prover.remove(&proposal, tolerance), Err(refusal));
    assert_eq!(prover.remove(&proposal, 0.625), Ok(0.625));
}

/// A residual of 3·2^-48 under components that f64 cannot hold beside it: the filter must notice.
#[test]
fn large_f16_components_do_not_hide_a_small_residual() {
    for large in [32.0f32, 64.0, 128.0, 65504.0] {
        let doc = f16s(&[2f32.powi(-24), large, large / 2.0]);
        let mut scratch = ProofScratch::default();
        let kept = [true, true, false];
        let mut prover = DocProver::new(TokenData::F16(&doc), 1, Scoring::Clamped, &kept, &mut scratch).unwrap();
        let proposal = Proposal { token_idx: 2, support: &[0, 1], weights: Weights::Fixed(&[3, HALF]) };
        let residual = 3.0 * 2f32.powi(-48);
        let refusal = Refusal::ResidualAboveTolerance { token_idx: 2, residual, tolerance: 0.0 };
        assert_eq!(prover.remove(&proposal, 0.0), Err(refusal), "beside {large}");
        assert_eq!(prover.remove(&proposal, f32::INFINITY), Ok(residual), "beside {large}");
    }
}

/// Sums of thousands of squares, where the order of additions could show.
#[test]
fn a_high_dimension_loses_nothing() {
    for dim in [255, 256, 4099] {
        let doc: Vec<f32> = (0..2 * dim).map(|k| if k < dim { 0.0 } else { 1.0 + (k % 7) as f32 / 8.0 }).collect();
        let mut scratch = ProofScratch::default();
        let mut prover =
            DocProver::new(TokenData::F32(&doc), dim, Scoring::Plain, &[true, false], &mut scratch).unwrap();
        let proposal = Proposal { token_idx: 1, support: &[0], weights: Weights::Fixed(&[ONE]) };
        let truth = smallest_bound(&square_sum(&doc, dim, 1, &[0], &[ONE]));
        assert_eq!(prover.remove(&proposal, f32::INFINITY), Ok(truth));
    }
}

/// Above `f32::MAX` there is no finite bound.
#[test]
fn a_distance_beyond_f32_has_an_infinite_bound() {
    let doc = [f32::MAX, f32::MIN];
    let mut scratch = ProofScratch::default();
    let mut prover = DocProver::new(TokenData::F32(&doc), 1, Scoring::Plain, &[true, false], &mut scratch).unwrap();
    let proposal = Proposal { token_idx: 1, support: &[0], weights: Weights::Fixed(&[ONE]) };
    let refusal = Refusal::ResidualAboveTolerance { token_idx: 1, residual: f32::INFINITY, tolerance: f32::MAX };
    assert_eq!(prover.remove(&proposal, f32::MAX), Err(refusal));
    assert_eq!(prover.remove(&proposal, f32::INFINITY), Ok(f32::INFINITY));
}
