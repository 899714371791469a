//! The definitions on cases that can be worked out by hand.

use maxhull::{Scoring, reference};

const BOTH: [Scoring; 2] = [Scoring::Plain, Scoring::Clamped];

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-9
}

#[test]
fn scores() {
    let doc = [vec![1.0, 0.0], vec![-2.0, 1.0]];
    let query = [vec![0.0, -1.0], vec![-1.0, 1.0]];
    assert_eq!(reference::maxsim(&query, &doc, Scoring::Plain), 0.0 + 3.0);
    assert_eq!(reference::maxsim(&[vec![0.0, -1.0]], &doc[1..], Scoring::Plain), -1.0);
    assert_eq!(reference::maxsim(&[vec![0.0, -1.0]], &doc[1..], Scoring::Clamped), 0.0);
    assert_eq!(reference::maxsim(&query, &[], Scoring::Clamped), 0.0);
    assert_eq!(reference::maxsim(&query, &[], Scoring::Plain), f64::NEG_INFINITY);
    for scoring in BOTH {
        assert_eq!(reference::maxsim(&[], &doc, scoring), 0.0);
        for nan_at in 0..2 {
            let mut broken = doc.clone();
            broken[nan_at][0] = f64::NAN;
            assert!(reference::maxsim(&query, &broken, scoring).is_nan());
        }
    }
}

#[test]
fn distances() {
    let square = [vec![1.0, 1.0], vec![2.0, 1.0], vec![2.0, 2.0], vec![1.0, 2.0]];
    let plain = |x: [f64; 2]| reference::distance(&x, &square, Scoring::Plain);
    let clamped = |x: [f64; 2]| reference::distance(&x, &square, Scoring::Clamped);
    assert!(close(plain([1.5, 3.0]), 1.0) && close(clamped([1.5, 3.0]), 1.0));
    assert!(close(plain([0.0, 0.0]), 2f64.sqrt()) && close(clamped([0.0, 0.0]), 0.0));
    assert!(close(plain([0.5, 0.5]), 0.5f64.sqrt()) && close(clamped([0.5, 0.5]), 0.0));
    assert!(close(plain([1.25, 1.75]), 0.0) && close(clamped([1.25, 1.75]), 0.0));
    // The hull with 0 has the edge from 0 to (2, 1): (1, 0) is |1| / sqrt(5) below it.
    assert!(close(clamped([1.0, 0.0]), 1.0 / 5f64.sqrt()) && close(plain([1.0, 0.0]), 1.0));
    assert_eq!(reference::distance(&[1.0], &[], Scoring::Plain), f64::INFINITY);
    assert_eq!(reference::distance(&[-3.0], &[], Scoring::Clamped), 3.0);
}

#[test]
fn the_worst_query_loses_the_distance() {
    let doc = [vec![1.0, 0.0], vec![0.0, 1.0], vec![0.75, 0.75], vec![0.25, 0.25]];
    let kept = [true, true, false, false];
    let (worst, query) = reference::worst_loss(&doc, &kept, Scoring::Plain);
    assert!(close(worst, 0.5 * 0.5f64.sqrt()));
    assert!(close(reference::loss(&query, &doc, &kept, Scoring::Plain), worst));
    assert!(reference::loss(&[1.0, 0.2], &doc, &kept, Scoring::Plain) < worst);
    assert_eq!(reference::worst_loss(&doc, &[true; 4], Scoring::Plain).0, 0.0);
}

#[test]
fn farthest_first_is_nested_and_falls_to_zero() {
    let doc = [vec![0.5, 0.5], vec![0.0, 1.0], vec![2.0, 0.0], vec![0.0, 0.25]];
    let order = reference::farthest_first(&doc, Scoring::Clamped);
    // The other two lie inside the triangle of 0 and the first two.
    assert_eq!((order.len(), order[0].0, order[1].0), (4, 2, 1));
    assert!(close(order[0].1, 1.0) && close(order[1].1, 0.0) && close(order[3].1, 0.0));
    assert!(order.windows(2).all(|pair| pair[1].1 <= pair[0].1 + 1e-9));
    let plain = reference::farthest_first(&doc, Scoring::Plain);
    assert_eq!(plain[0], (2, (4.0f64 + 1.0).sqrt()));
    assert_eq!(plain.last().map(|last| last.1), Some(0.0));
    assert!(reference::farthest_first(&[], Scoring::Plain).is_empty());
}
