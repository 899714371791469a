//! The f64 solver and the exact test, against the plain definitions.

use dashu_int::{IBig, UBig};
use maxhull::engine::cpu::exact::{DocF64, Projection, Solver, Status, Stop};
use maxhull::engine::cpu::rational::{ExactTester, ExactWeights, Membership, first_equals, lossless_kept};
use maxhull::{Scoring, TokenData, half, reference};
use proptest::prelude::*;

const BOTH: [Scoring; 2] = [Scoring::Plain, Scoring::Clamped];
const TIGHT: Stop = Stop::Gap { relative: 1e-9, absolute: 0.0 };

fn everything(doc: &DocF64) -> Vec<u32> {
    (0..doc.num_tokens() as u32).collect()
}

fn others(num_tokens: usize, target: usize) -> Vec<u32> {
    (0..num_tokens as u32).filter(|&j| j as usize != target).collect()
}

fn f32_doc(values: &[f32], dim: usize) -> (DocF64, Vec<Vec<f64>>) {
    (DocF64::from_tokens(TokenData::F32(values), dim), reference::rows(TokenData::F32(values), dim))
}

/// A generator of the tests' own, so that a document depends on nothing but its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn centred(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
    fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.centred()).collect()
    }
}

/// Distance of `x` to the point that the projection names, with its weights divided by their sum.
fn distance_of_point(doc: &[Vec<f64>], x: &[f64], projection: &Projection) -> f64 {
    let sum: f64 = projection.weights.iter().sum::<f64>() + projection.origin_weight;
    assert!((sum - 1.0).abs() < 1e-12, "weights sum to {sum}");
    assert!(projection.weights.iter().all(|&w| w > 0.0) && projection.origin_weight >= 0.0);
    let r: Vec<f64> = (0..x.len())
        .map(|k| {
            let point: f64 =
                projection.support.iter().zip(&projection.weights).map(|(&j, w)| doc[j as usize][k] * w).sum();
            x[k] - point / sum
        })
        .collect();
    reference::norm(&r)
}

/// Everything a projection promises, against the slow definition.
fn check(rows: &[Vec<f64>], doc: &DocF64, target: usize, scoring: Scoring, slack: f64) -> Projection {
    let candidates = others(rows.len(), target);
    let hull: Vec<Vec<f64>> = candidates.iter().map(|&j| rows[j as usize].clone()).collect();
    let x = &rows[target];
    let scale = rows.iter().map(|x| reference::norm(x)).fold(0.0, f64::max);
    let distance = reference::distance(x, &hull, scoring);
    let projection = Solver::new().project(doc, target, &everything(doc), scoring, TIGHT, None);
    let what = format!("token {target}, {scoring}, reference {distance:e}: {projection:?}");
    assert!(projection.lower <= distance + 1e-10 * scale, "{what}");
    // The reference stops at a point of the hull, so its distance is never below the true one.
    assert!(projection.upper >= projection.lower && distance >= projection.lower * (1.0 - 1e-12), "{what}");
    assert!((projection.upper - distance).abs() <= slack * scale, "{what}");
    // The test's own distance of that point is rounded too.
    assert!(projection.upper >= distance_of_point(rows, x, &projection) * (1.0 - 1e-14) - 1e-15 * scale, "{what}");
    assert!(
        projection.support.windows(2).all(|pair| pair[0] < pair[1]) && !projection.support.contains(&(target as u32))
    );
    if scoring == Scoring::Plain {
        assert_eq!(projection.origin_weight, 0.0);
    }
    if projection.lower > 0.0 {
        let mut kept = vec![true; rows.len()];
        kept[target] = false;
        let loss = reference::loss(&projection.direction, rows, &kept, scoring);
        assert!(loss >= projection.lower * (1.0 - 1e-9) - 1e-13 * scale, "the witness loses {loss:e}; {what}");
    }
    projection
}

#[test]
fn brackets_hold_at_every_dimension_and_length() {
    let mut random = Random(1);
    for dim in [1, 2, 7, 8, 9, 48, 96, 128, 384] {
        for num_tokens in [1, 2, 3, 5, 17] {
            let values = random.values(num_tokens * dim);
            let (doc, rows) = f32_doc(&values, dim);
            for scoring in BOTH {
                for target in 0..num_tokens.min(4) {
                    if num_tokens == 1 && scoring == Scoring::Plain {
                        continue;
                    }
                    let projection = check(&rows, &doc, target, scoring, 1e-9);
                    let at_zero = projection.upper < 1e-12 * dim as f64;
                    assert!(projection.status == Status::Converged || at_zero, "{projection:?}");
                }
            }
        }
    }
}

/// `value^2 * 2^400` exactly; `value` is 0 or at least 2^-100.
fn squared(value: f64) -> IBig {
    if value == 0.0 {
        return IBig::ZERO;
    }
    let bits = value.to_bits();
    let mantissa = IBig::from((bits & ((1 << 52) - 1)) | 1 << 52);
    let exponent = (bits >> 52) as i32 - 1075;
    (&mantissa * &mantissa) << (400 + 2 * exponent) as usize
}

/// The bracket is a proof, so it must hold in exact arithmetic: here against the distance of a point to a segment.
#[test]
fn brackets_hold_to_the_last_bit() {
    let mut random = Random(9);
    let mut num_inner = 0;
    for round in 0..2_000usize {
        let dim = 2 + round % 40;
        let mut lattice: Vec<i64> = (0..3 * dim).map(|_| (random.next() % 2_000_001) as i64 - 1_000_000).collect();
        let (is_near, is_far_from_0) = (round % 2 == 0, round % 3 == 0);
        for k in 0..dim {
            if is_near {
                // Beside the segment: the residual is a small difference of large numbers.
                lattice[k] = (lattice[dim + k] + 2 * lattice[2 * dim + k]) / 3 + lattice[k] % 2;
            }
            if is_far_from_0 {
                // So are the bounds that compare products with tokens.
                (0..3).for_each(|at| lattice[at * dim + k] += 1 << 38);
            }
        }
        let doc = DocF64::from_coords(lattice.iter().map(|&v| v as f64).collect(), dim);
        let part = |at: usize, k: usize| lattice[at * dim + k];
        let sum = |term: &dyn Fn(usize) -> i64| (0..dim).map(term).sum::<i64>();
        let along = sum(&|k| (part(0, k) - part(1, k)) * (part(2, k) - part(1, k)));
        let length = sum(&|k| (part(2, k) - part(1, k)).pow(2));
        let to_end = sum(&|k| (part(0, k) - part(1, k)).pow(2));
        if along <= 0 || along >= length {
            continue;
        }
        num_inner += 1;
        let projection = Solver::new().project(&doc, 0, &[1, 2], Scoring::Plain, TIGHT, None);
        // |x - p|^2 = to_end - along^2 / length
        let exact = (IBig::from(to_end) * length - IBig::from(along) * along) << 400;
        assert!(squared(projection.upper) * length >= exact, "round {round}: {projection:?}");
        assert!(squared(projection.lower) * length <= exact, "round {round}: {projection:?}");
        let is_easy = !is_near && !is_far_from_0;
        assert!(!is_easy || projection.upper - projection.lower <= 1e-9 * projection.upper);
    }
    assert!(num_inner > 500, "{num_inner}");
}

#[test]
fn clamped_is_never_farther_than_plain() {
    let (doc, rows) = f32_doc(&Random(2).values(40 * 6), 6);
    for target in 0..rows.len() {
        let [plain, clamped] = BOTH.map(|scoring| check(&rows, &doc, target, scoring, 1e-9));
        assert!(clamped.lower <= plain.upper);
    }
}

#[test]
fn an_empty_hull_is_infinitely_far() {
    let (doc, _) = f32_doc(&[3.0, 4.0], 2);
    let mut solver = Solver::new();
    let plain = solver.project(&doc, 0, &[0], Scoring::Plain, Stop::Decide(9.0), None);
    assert_eq!((plain.status, plain.lower), (Status::Needed, f64::INFINITY));
    let clamped = solver.project(&doc, 0, &[0], Scoring::Clamped, Stop::Decide(5.001), None);
    assert_eq!((clamped.status, clamped.origin_weight), (Status::Removable, 1.0));
    assert!((clamped.upper - 5.0).abs() < 1e-14 && clamped.upper >= 5.0);
}

#[test]
fn decisions_follow_epsilon() {
    // (1, 1) lies sqrt(1/2) from the segment between (1, 0) and (0, 1).
    let (doc, _) = f32_doc(&[1.0, 1.0, 1.0, 0.0, 0.0, 1.0], 2);
    let mut solver = Solver::new();
    for (epsilon, status) in [(0.7, Status::Needed), (0.71, Status::Removable), (0.0, Status::Needed)] {
        let projection = solver.project(&doc, 0, &[1, 2], Scoring::Plain, Stop::Decide(epsilon), None);
        assert_eq!(projection.status, status, "{projection:?}");
    }
    // On the very edge rounding decides nothing.
    let edge = solver.project(&doc, 0, &[1, 2], Scoring::Plain, Stop::Decide(0.5f64.sqrt()), None);
    assert_eq!(edge.status, Status::Undecided, "{edge:?}");
}

#[test]
fn duplicates_zeros_and_dependent_tokens_end_with_a_bracket() {
    let base = Random(3).values(6 * 5);
    let mut values = base.clone();
    values.extend_from_slice(&base); // every token twice
    values.extend([0.0; 10]); // 0 twice
    values.extend(base[..5].iter().map(|v| v * 0.5)); // a multiple
    values.extend((0..5).map(|k| 0.5 * (base[k] + base[5 + k]))); // a midpoint
    values.extend(base[..5].iter().map(|v| v * (1.0 + f32::EPSILON))); // a neighbour in the last place
    let (doc, rows) = f32_doc(&values, 5);
    for scoring in BOTH {
        for target in 0..rows.len() {
            check(&rows, &doc, target, scoring, 1e-7);
        }
        let twin = Solver::new().project(&doc, 0, &everything(&doc), scoring, Stop::Decide(0.0), None);
        assert_eq!((twin.status, twin.upper, twin.support), (Status::Removable, 0.0, vec![6]));
    }
}

#[test]
fn magnitude_does_not_matter() {
    let values = Random(4).values(12 * 8);
    let (doc, rows) = f32_doc(&values, 8);
    for exponent in [-140, -60, 60, 127] {
        let scaled: Vec<f64> = rows.iter().flatten().map(|v| v * 2f64.powi(exponent)).collect();
        let scaled_doc = DocF64::from_coords(scaled, 8);
        for target in 0..12 {
            let [unit, scaled] = [&doc, &scaled_doc]
                .map(|doc| Solver::new().project(doc, target, &everything(doc), Scoring::Clamped, TIGHT, None));
            assert_eq!(unit.support, scaled.support);
            assert_eq!(unit.upper * 2f64.powi(exponent), scaled.upper);
        }
    }
    let denormals: Vec<f32> = Random(5).values(9 * 7).iter().map(|v| v * 40.0 * f32::from_bits(1)).collect();
    let (doc, rows) = f32_doc(&denormals, 7);
    (0..9).for_each(|target| drop(check(&rows, &doc, target, Scoring::Plain, 1e-8)));
    let mixed: Vec<f32> =
        Random(6).values(9 * 7).iter().enumerate().map(|(at, v)| if at < 14 { v * 1e30 } else { *v }).collect();
    let (doc, rows) = f32_doc(&mixed, 7);
    (0..9).for_each(|target| drop(check(&rows, &doc, target, Scoring::Plain, 1e-9)));
}

#[test]
fn every_dtype_converts_without_rounding() {
    let small: Vec<f32> = (0..24).map(|k| (k as f32 - 11.0) / 8.0).collect();
    let f16: Vec<half::f16> = small.iter().map(|&v| half::f16::from_f32(v)).collect();
    let bf16: Vec<half::bf16> = small.iter().map(|&v| half::bf16::from_f32(v)).collect();
    let i8: Vec<i8> = small.iter().map(|&v| (v * 8.0) as i8).collect();
    let expected: Vec<f64> = small.iter().map(|&v| f64::from(v)).collect();
    let flat = |doc: DocF64| (0..doc.num_tokens()).flat_map(|at| doc.token(at).to_vec()).collect::<Vec<_>>();
    for data in [TokenData::F32(&small), TokenData::F16(&f16), TokenData::Bf16(&bf16)] {
        assert_eq!(flat(DocF64::from_tokens(data, 4)), expected);
    }
    let eighths: Vec<f64> = flat(DocF64::from_tokens(TokenData::I8(&i8), 4)).iter().map(|v| v / 8.0).collect();
    assert_eq!(eighths, expected);
}

#[test]
fn warm_starts_change_nothing_but_the_work() {
    let (doc, rows) = f32_doc(&Random(7).values(60 * 16), 16);
    let all = everything(&doc);
    let mut solver = Solver::new();
    for target in 0..rows.len() {
        let cold = solver.project(&doc, target, &all, Scoring::Clamped, TIGHT, None);
        let warm = solver.project(&doc, target, &all, Scoring::Clamped, TIGHT, Some((&cold.support, &cold.weights)));
        assert!((warm.upper - cold.upper).abs() <= 1e-12 && warm.num_iterations <= cold.num_iterations);
        assert!(warm.num_iterations <= 2, "{warm:?}");
        // Nonsense is ignored: no such token, the token itself, negative and NaN weights, a token twice.
        let nonsense = ([99, target as u32, 1, 2, 3, 3], [0.1, 0.3, -1.0, f64::NAN, 0.2, 0.4]);
        let odd = solver.project(&doc, target, &all, Scoring::Clamped, TIGHT, Some((&nonsense.0, &nonsense.1)));
        assert!((odd.upper - cold.upper).abs() <= 1e-12, "{odd:?}");
    }
}

#[test]
fn a_long_document_is_decided() {
    let (doc, rows) = f32_doc(&Random(8).values(3_000 * 24), 24);
    let mut solver = Solver::new();
    for target in [0, 17, 2_999] {
        let projection = solver.project(&doc, target, &everything(&doc), Scoring::Plain, TIGHT, None);
        assert!(projection.status == Status::Converged || projection.upper < 1e-12, "{projection:?}");
        assert!(projection.upper >= distance_of_point(&rows, &rows[target], &projection) * (1.0 - 1e-14) - 1e-15);
    }
}

/// Whether `x = sum w_s x_s` holds for tokens that are multiples of 1/8, without any rounding.
fn assert_exact(rows: &[Vec<f64>], target: usize, support: &[u32], weights: &ExactWeights, scoring: Scoring) {
    let sum: UBig = weights.numerators.iter().sum();
    match scoring {
        Scoring::Plain => assert_eq!(sum, weights.denominator),
        Scoring::Clamped => assert!(sum <= weights.denominator),
    }
    assert_eq!(support.len(), weights.numerators.len());
    assert!(weights.numerators.iter().all(|w| *w > UBig::ZERO) && !support.contains(&(target as u32)));
    let eighths = |v: f64| IBig::from((v * 8.0) as i64);
    for (k, &value) in rows[target].iter().enumerate() {
        let term = |(&j, w): (&u32, &UBig)| eighths(rows[j as usize][k]) * IBig::from(w.clone());
        let point: IBig = support.iter().zip(&weights.numerators).map(term).sum();
        assert_eq!(point, eighths(value) * IBig::from(weights.denominator.clone()));
    }
}

#[test]
fn known_combinations_have_their_exact_weights() {
    // A triangle, the midpoint of a side and the centroid, whose weights no power of two divides.
    let (doc, rows) = f32_doc(&[0.0, 0.0, 3.0, 0.0, 0.0, 3.0, 1.5, 1.5, 1.0, 1.0, 2.0, 1.125], 2);
    let mut tester = ExactTester::new(&doc, Scoring::Plain);
    let thirds = ExactWeights { numerators: vec![UBig::ONE; 3], denominator: UBig::from(3u8) };
    assert_eq!(tester.test(4, &[0, 1, 2]), Membership::Inside { support: vec![0, 1, 2], weights: thirds });
    let halves = ExactWeights { numerators: vec![UBig::ONE; 2], denominator: UBig::from(2u8) };
    assert_eq!(tester.test(3, &[0, 1, 2]), Membership::Inside { support: vec![1, 2], weights: halves });
    assert_eq!(tester.test(5, &[0, 1, 2]), Membership::Outside);
    assert_eq!(tester.test(4, &[4, 1, 2]), Membership::Outside);
    assert_eq!(tester.test(0, &[]), Membership::Outside);
    let selection = lossless_kept(&doc, Scoring::Plain);
    assert_eq!(selection.kept, [true, true, true, false, false, true]);
    selection
        .removals
        .iter()
        .for_each(|r| assert_exact(&rows, r.token_idx as usize, &r.support, &r.weights, Scoring::Plain));
    // 0 is a vertex of its own when clamped.
    assert_eq!(lossless_kept(&doc, Scoring::Clamped).kept, [false, true, true, false, false, true]);
}

#[test]
fn a_last_bit_decides() {
    // The midpoint of two f32 tokens, and its neighbour one unit in the last place off the segment.
    let (a, b) = ([1.0f32, 0.1, 0.7], [0.3f32, 0.9, 0.7]);
    for off in [0, 1] {
        let middle = [0.65f32, 0.5, f32::from_bits(0.7f32.to_bits() + off)];
        let outside = off == 1 || (0..2).any(|k| 2.0 * f64::from(middle[k]) != f64::from(a[k]) + f64::from(b[k]));
        let (doc, _) = f32_doc(&[a, b, middle].concat(), 3);
        let is_outside = ExactTester::new(&doc, Scoring::Plain).test(2, &[0, 1]) == Membership::Outside;
        assert_eq!(is_outside, outside);
    }
    let tiny = f32::from_bits(1);
    for (height, inside) in [(0.0, true), (tiny, false), (-tiny, false)] {
        let (doc, _) = f32_doc(&[-1.0, 0.0, 2e20, 0.0, 0.5, height], 2);
        let membership = ExactTester::new(&doc, Scoring::Plain).test(2, &[0, 1]);
        assert_eq!(matches!(membership, Membership::Inside { .. }), inside, "{height:e}: {membership:?}");
    }
}

#[test]
fn lossless_keeps_one_of_each_value_and_never_empties() {
    let kept = |values: &[f32], dim, scoring| lossless_kept(&f32_doc(values, dim).0, scoring).kept;
    for scoring in BOTH {
        assert_eq!(kept(&[0.0, -0.0, 0.0], 1, scoring), [true, false, false]);
        assert_eq!(kept(&[0.5, 0.25, 0.5, 0.25], 2, scoring), [true, false]);
        assert_eq!(kept(&[], 3, scoring), [true; 0]);
        assert_eq!(kept(&[0.0, 0.0], 2, scoring), [true]);
    }
    assert_eq!(kept(&[0.0, 1.0, 2.0, 2.0], 1, Scoring::Plain), [true, false, true, false]);
    assert_eq!(kept(&[0.0, 1.0, 2.0, 2.0], 1, Scoring::Clamped), [false, false, true, false]);
    assert_eq!(kept(&[-1.0, 0.0, 2.0], 1, Scoring::Clamped), [true, false, true]);
}

#[test]
fn removals_rest_on_kept_tokens_only() {
    // On a line each token is tested before the ends that make it redundant; duplicates of removed tokens follow.
    let values: Vec<f32> = [4, 3, 5, 3, 2, 6, 1, 7, 0, 4].map(|k| k as f32).to_vec();
    let (doc, rows) = f32_doc(&values, 1);
    let selection = lossless_kept(&doc, Scoring::Plain);
    assert_eq!(selection.removals.len(), 8);
    for removal in &selection.removals {
        assert_eq!(removal.support, [7, 8]);
        assert_exact(&rows, removal.token_idx as usize, &removal.support, &removal.weights, Scoring::Plain);
    }
}

/// Documents on a lattice of eighths: many tokens lie exactly on faces, inside, or upon each other.
fn lattice() -> impl Strategy<Value = (usize, Vec<f32>)> {
    (1usize..5, 1usize..24, 1i32..9).prop_flat_map(|(dim, num_tokens, reach)| {
        prop::collection::vec((-reach..=reach).prop_map(|k| k as f32 / 8.0), dim * num_tokens)
            .prop_map(move |values| (dim, values))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn lossless_is_exact_and_complete((dim, values) in lattice(), clamped: bool) {
        let scoring = BOTH[usize::from(clamped)];
        let (doc, rows) = f32_doc(&values, dim);
        let selection = lossless_kept(&doc, scoring);
        prop_assert!(selection.kept.contains(&true));
        let first = first_equals(&doc);
        prop_assert_eq!(selection.removals.len(), selection.kept.iter().filter(|kept| !**kept).count());
        for removal in &selection.removals {
            prop_assert!(removal.support.iter().all(|&j| selection.kept[j as usize]));
            assert_exact(&rows, removal.token_idx as usize, &removal.support, &removal.weights, scoring);
        }
        let num_kept = selection.kept.iter().filter(|kept| **kept).count();
        for token_idx in (0..rows.len()).filter(|&token_idx| selection.kept[token_idx]) {
            prop_assert_eq!(first[token_idx] as usize, token_idx);
            let mut without = selection.kept.clone();
            without[token_idx] = false;
            // Lattice points this close are on the hull: a kept token is a vertex, clearly outside the others.
            let distance = reference::distance(&rows[token_idx], &reference::keep(&rows, &without), scoring);
            prop_assert!(num_kept == 1 || distance > 1e-6, "token {} is kept at {:e}", token_idx, distance);
        }
    }

    #[test]
    fn brackets_hold_on_a_lattice((dim, values) in lattice(), clamped: bool) {
        let scoring = BOTH[usize::from(clamped)];
        let (doc, rows) = f32_doc(&values, dim);
        for target in 0..rows.len().min(6) {
            if rows.len() > 1 || clamped {
                check(&rows, &doc, target, scoring, 1e-7);
            }
        }
    }

    /// Remove together what the solver allows against the kept tokens only; then no query loses more than ε.
    #[test]
    fn no_query_loses_more_than_the_bound(
        (dim, values) in lattice(),
        clamped: bool,
        epsilon in 0.01f64..0.6,
        queries in prop::collection::vec(prop::collection::vec(-1.0f64..1.0, 5), 12),
    ) {
        let scoring = BOTH[usize::from(clamped)];
        let (doc, rows) = f32_doc(&values, dim);
        let mut kept = vec![true; rows.len()];
        let mut solver = Solver::new();
        let mut removed: Vec<usize> = Vec::new();
        for token_idx in 1..rows.len() {
            kept[token_idx] = false;
            let hull: Vec<u32> = (0..rows.len() as u32).filter(|&j| kept[j as usize]).collect();
            let mut passes = |target: usize| {
                solver.project(&doc, target, &hull, scoring, Stop::Decide(epsilon), None).status == Status::Removable
            };
            if removed.iter().chain([&token_idx]).all(|&target| passes(target)) {
                removed.push(token_idx);
            } else {
                kept[token_idx] = true;
            }
        }
        let (worst, adversary) = reference::worst_loss(&rows, &kept, scoring);
        prop_assert!(worst <= epsilon + 1e-9);
        if worst > 1e-6 {
            let loss = reference::loss(&adversary, &rows, &kept, scoring);
            prop_assert!((loss - worst).abs() <= 1e-6, "the bound {} is tight, {} lost", worst, loss);
        }
        for query in &queries {
            prop_assert!(reference::loss(&query[..dim], &rows, &kept, scoring) <= worst + 1e-9);
        }
    }
}
