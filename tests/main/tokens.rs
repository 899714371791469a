//! Input validation: one wrong thing at a time, each with its own error.

use maxhull::half::f16;
use maxhull::{DType, Error, TokenBatch, TokenData};

#[test]
fn each_mistake_has_its_own_error() {
    let values = [0.0f32; 24];
    let data = TokenData::F32(&values);
    let refused = |offsets: &[u64], dim| TokenBatch::new(data, offsets, dim).unwrap_err();
    assert_eq!(refused(&[0, 6], 0), Error::ZeroDim);
    assert_eq!(refused(&[], 4), Error::NoOffsets);
    assert_eq!(refused(&[0, 4], 5), Error::PartialToken { len: 24, dim: 5 });
    assert_eq!(refused(&[0, 3, 2, 6], 4), Error::DecreasingOffset { doc_idx: 1, start: 3, end: 2 });
    assert_eq!(refused(&[0, 6, 7], 4), Error::OffsetPastData { doc_idx: 1, end: 7, num_tokens: 6 });
    assert_eq!(refused(&[7], 4), Error::OffsetPastData { doc_idx: 0, end: 7, num_tokens: 6 });
    assert!(matches!(refused(&[0, u64::MAX], 4), Error::DocTooLong { doc_idx: 0, .. }));
    assert!(matches!(refused(&[u64::MAX - 1, u64::MAX], 4), Error::SizeOverflow { .. }));
}

#[test]
fn messages_carry_the_numbers() {
    let message = Error::NonFinite { doc_idx: 812, token_idx: 3, component_idx: 95, value: f32::NAN }.to_string();
    assert_eq!(message, "document 812, token 3, component 95 is NaN: tokens must be finite");
}

#[test]
fn a_batch_can_be_a_slice_of_a_store() {
    let values: Vec<f16> = (0..20).map(|x| f16::from_f32(x as f32)).collect();
    let batch = TokenBatch::new(TokenData::F16(&values), &[2, 5, 5, 8], 2).unwrap();
    assert_eq!((batch.num_docs(), batch.num_tokens(), batch.dim(), batch.dtype()), (3, 6, 2, DType::F16));
    assert_eq!((batch.doc_len(0), batch.doc_len(1), batch.doc_len(2)), (3, 0, 3));
    let mut doc = [0.0; 6];
    batch.docs(1..3).doc(1).to_f32(&mut doc);
    assert_eq!(doc, [10.0, 11.0, 12.0, 13.0, 14.0, 15.0]);
    batch.check_finite().unwrap();
}

#[test]
fn only_rows_of_documents_must_be_finite() {
    let mut values = vec![1.0f32; 700 * 3];
    let offsets = [10, 300, 300, 690];
    values[9 * 3 + 2] = f32::NAN;
    values[690 * 3] = f32::INFINITY;
    TokenBatch::new(TokenData::F32(&values), &offsets, 3).unwrap().check_finite().unwrap();
    for (row, doc_idx, token_idx) in [(10, 0, 0), (299, 0, 289), (300, 2, 0), (689, 2, 389)] {
        let mut values = values.clone();
        values[row * 3 + 1] = f32::NEG_INFINITY;
        let batch = TokenBatch::new(TokenData::F32(&values), &offsets, 3).unwrap();
        let expected = Error::NonFinite { doc_idx, token_idx, component_idx: 1, value: f32::NEG_INFINITY };
        assert_eq!(batch.check_finite().unwrap_err(), expected);
    }
}

#[test]
fn no_documents_is_a_batch() {
    for data in [TokenData::F32(&[]), TokenData::I8(&[1, 2])] {
        let batch = TokenBatch::new(data, &[0], 2).unwrap();
        assert_eq!((batch.num_docs(), batch.num_tokens()), (0, 0));
        batch.check_finite().unwrap();
    }
}
