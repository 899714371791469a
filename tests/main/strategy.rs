//! The paper's strategies, against the paper's own program.

use maxhull::engine::cpu::exact::DocF64;
use maxhull::half::f16;
use maxhull::strategy::{lp_kept, norm_kept};
use maxhull::{TokenData, half};

const DIM: usize = 128;

/// Two abstracts of the Cranfield collection: f16 token vectors of a head trained with the paper's similarity
/// regulariser, `[71, 128]`, little-endian.
const TOKENS: &[u8] = include_bytes!("../data/paper_lp.f16");

/// What one linear program a token (SciPy 1.17, HiGHS) removes from a document.
struct Case {
    tokens: std::ops::Range<usize>,
    theta: f64,
    removed: &'static [usize],
}

const CASES: &[Case] = &[
    Case { tokens: 0..32, theta: 0.7, removed: &[2, 12, 19, 20, 22, 24, 27, 29] },
    Case {
        tokens: 0..32,
        theta: 0.5,
        removed: &[2, 3, 4, 6, 12, 15, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30],
    },
    Case { tokens: 32..71, theta: 0.7, removed: &[2, 13, 16, 18, 19, 20, 21, 23, 30, 31, 33] },
    Case {
        tokens: 32..71,
        theta: 0.5,
        removed: &[1, 2, 4, 10, 12, 13, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 29, 30, 31, 32, 33, 34, 37],
    },
];

fn tokens() -> Vec<f16> {
    TOKENS.chunks_exact(2).map(|bytes| f16::from_le_bytes([bytes[0], bytes[1]])).collect()
}

fn removed(kept: &[bool]) -> Vec<usize> {
    (0..kept.len()).filter(|&token_idx| !kept[token_idx]).collect()
}

#[test]
fn lp_agrees_with_the_paper_token_by_token() {
    let tokens = tokens();
    for case in CASES {
        let doc = &tokens[case.tokens.start * DIM..case.tokens.end * DIM];
        let kept = lp_kept(&DocF64::from_tokens(TokenData::F16(doc), DIM), case.theta);
        assert_eq!(removed(&kept), case.removed, "tokens {:?}, theta {}", case.tokens, case.theta);
    }
}

#[test]
fn lp_keeps_the_first_of_equals() {
    // The paper's program removes neither of two equal tokens, and so would keep both.
    let case = &CASES[0];
    let num_tokens = case.tokens.len();
    let mut doc = tokens()[case.tokens.start * DIM..case.tokens.end * DIM].to_vec();
    doc.extend_from_within(..DIM); // the first again, as the last
    let kept = lp_kept(&DocF64::from_tokens(TokenData::F16(&doc), DIM), 1.0);
    assert!(!kept[num_tokens] && kept[0]);
    assert_eq!(removed(&kept), [num_tokens], "in the full space nothing else is dominated");
}

#[test]
fn lp_needs_weight_on_zero() {
    let kept = |values: &[f32]| lp_kept(&DocF64::from_tokens(TokenData::F32(values), 2), 1.0);
    // The third token lies on the face between the first two, and no weight is left for 0; the fourth lies below it.
    assert_eq!(kept(&[2.0, 0.0, 0.0, 1.0, 1.0, 0.5, 0.99, 0.5]), [true, true, true, false]);
}

#[test]
fn lp_keeps_something_of_every_document() {
    let kept = |values: &[f32], dim| lp_kept(&DocF64::from_tokens(TokenData::F32(values), dim), 0.7);
    assert_eq!(kept(&[], 4), [true; 0]);
    assert_eq!(kept(&[0.0; 6], 2), [true, false, false]);
    assert_eq!(kept(&[0.5, 0.5], 2), [true]);
    assert_eq!(kept(&[1.0, 1.0, 1.0], 1), [true, false, false]);
    // On a line through 0 the ends stay, and 0 is dominated by definition.
    assert_eq!(kept(&[1.0, 2.0, -1.0, 0.0, -0.5], 1), [false, true, true, false, false]);
    assert_eq!(kept(&[1e-38, 3e-38, -1e-38], 1), [false, true, true]);
}

#[test]
fn norm_keeps_what_is_long_enough() {
    let kept = |values: &[f32], threshold| norm_kept(&DocF64::from_tokens(TokenData::F32(values), 2), threshold);
    let doc = [3.0, 4.0, 0.3, 0.4, 0.0, 0.5, 0.0, 0.0];
    assert_eq!(kept(&doc, 0.5), [true, true, true, false], "at the threshold stays");
    assert_eq!(kept(&doc, 5.0), [true, false, false, false]);
    assert_eq!(kept(&doc, 5.1), [true, false, false, false], "the longest always stays");
    assert_eq!(kept(&doc, 0.0), [true; 4]);
    assert_eq!(kept(&[0.0; 6], 1.0), [true, false, false], "the first of equals");
    assert_eq!(kept(&[], 1.0), [true; 0]);
    let halves = [0.3, 0.4].map(half::f16::from_f64);
    assert_eq!(norm_kept(&DocF64::from_tokens(TokenData::F16(&halves), 2), 0.6), [true]);
}
