//! Certificates that are well-formed, sealed with the right hash, and wrong.

use maxhull::Error;
use maxhull::certificate::{CertificateError, Refusal, Report, verify};

use super::*;

/// One document's record as a liar writes it, by the letter of `docs/certificate.md`.
#[derive(Clone)]
struct RawDoc {
    num_tokens: u32,
    bound: f32,
    digest: [u8; 16],
    mask: Vec<u8>,
    removals: Vec<(Vec<u16>, Vec<u32>)>,
    /// Appended as they are.
    more: Vec<u8>,
}

impl RawDoc {
    fn body(&self) -> Vec<u8> {
        let mut body = self.num_tokens.to_le_bytes().to_vec();
        body.extend(self.bound.to_le_bytes());
        body.extend(self.digest);
        body.extend(&self.mask);
        for (support, weights) in &self.removals {
            body.push(support.len() as u8);
            body.extend(support.iter().flat_map(|id| id.to_le_bytes()));
            // Weight 0 cannot be written: it would be 2^24 minus 1 more than 24 bits hold.
            body.extend(weights.iter().flat_map(|weight| (weight - 1).to_le_bytes()[..3].to_vec()));
        }
        body.extend(&self.more);
        body
    }
}

/// A whole certificate; the footer is computed, so that only the lie is wrong.
#[derive(Clone)]
struct Raw {
    header: [u8; 16],
    docs: Vec<RawDoc>,
}

impl Raw {
    /// The honest certificate of [`Corpus`].
    fn honest(corpus: &Corpus) -> Self {
        let header = *b"\x89MXHL\r\n\x1a\x01\0\x01\0\x04\0\0\0";
        let removals = Corpus::removals();
        let docs = removals.iter().enumerate().map(|(doc_idx, removals)| {
            let rows = corpus.original_offsets[doc_idx] as usize..corpus.original_offsets[doc_idx + 1] as usize;
            let values = &corpus.original[rows.start * Corpus::DIM..rows.end * Corpus::DIM];
            let mut mask = vec![0; rows.len().div_ceil(8)];
            let kept = (0..rows.len()).filter(|&token_idx| removals.iter().all(|r| r.0 as usize != token_idx));
            kept.for_each(|token_idx| mask[token_idx / 8] |= 1 << (token_idx % 8));
            RawDoc {
                num_tokens: rows.len() as u32,
                bound: [0.5, 0.0, f16::from_f32(0.01).to_f32()][doc_idx],
                digest: doc_digest(values),
                mask,
                removals: removals.iter().map(|r| (r.1.iter().map(|&id| id as u16).collect(), r.2.clone())).collect(),
                more: Vec::new(),
            }
        });
        Raw { header, docs: docs.collect() }
    }

    fn footer(&self) -> Vec<u8> {
        let mut root = blake3::Hasher::new();
        root.update(b"maxhull corpus 1").update(&[self.header[11], 0, 0, 0]).update(&self.header[12..]);
        self.docs.iter().for_each(|doc| {
            root.update(&doc.num_tokens.to_le_bytes()).update(&doc.digest);
        });
        let num_tokens: u64 = self.docs.iter().map(|doc| u64::from(doc.num_tokens)).sum();
        let num_kept: u32 = self.docs.iter().flat_map(|doc| &doc.mask).map(|byte| byte.count_ones()).sum();
        let worst = self.docs.iter().fold(0f32, |worst, doc| worst.max(doc.bound));
        let mut footer = (self.docs.len() as u64).to_le_bytes().to_vec();
        footer.extend(num_tokens.to_le_bytes());
        footer.extend(u64::from(num_kept).to_le_bytes());
        footer.extend(worst.to_le_bytes());
        footer.extend(root.finalize().as_bytes());
        footer
    }

    fn sealed_with(&self, footer: &[u8]) -> Vec<u8> {
        let mut bytes = self.header.to_vec();
        for doc in &self.docs {
            let body = doc.body();
            bytes.extend((body.len() as u64).to_le_bytes());
            bytes.extend(body);
        }
        bytes.extend(0u64.to_le_bytes());
        bytes.extend(footer);
        seal(bytes)
    }

    fn sealed(&self) -> Vec<u8> {
        self.sealed_with(&self.footer())
    }
}

fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let hash = blake3::hash(&bytes);
    bytes.extend(hash.as_bytes());
    bytes
}

fn doc_digest(values: &[f16]) -> [u8; 16] {
    let mut bytes = b"maxhull doc v1\0\0\0\0\0\0\x04\0\0\0".to_vec();
    bytes.extend((values.len() as u32 / 4).to_le_bytes());
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    blake3::hash(&bytes).as_bytes()[..16].try_into().unwrap()
}

fn check(corpus: &Corpus, certificate: &[u8]) -> Result<Report, CertificateError> {
    verify(&corpus.original(), &corpus.kept(), certificate).map_err(|error| match error {
        Error::Certificate(error) => error,
        other => panic!("{other}"),
    })
}

/// What the checker says after `lie` has changed the honest certificate.
fn told(lie: impl FnOnce(&mut Raw)) -> CertificateError {
    let corpus = Corpus::new();
    let mut raw = Raw::honest(&corpus);
    lie(&mut raw);
    check(&corpus, &raw.sealed()).unwrap_err()
}

/// The refusal of a lie about document 0.
fn refused(lie: impl FnOnce(&mut RawDoc)) -> Refusal {
    refused_without(0, lie)
}

/// The same when the first `num_gone` kept tokens of document 0 are missing from the kept corpus, as the lie says.
fn refused_without(num_gone: usize, lie: impl FnOnce(&mut RawDoc)) -> Refusal {
    let mut corpus = Corpus::new();
    let mut raw = Raw::honest(&corpus);
    lie(&mut raw.docs[0]);
    corpus.kept.drain(..num_gone * Corpus::DIM);
    corpus.kept_offsets[1..].iter_mut().for_each(|offset| *offset -= num_gone as u64);
    match check(&corpus, &raw.sealed()).unwrap_err() {
        CertificateError::Removal { doc_idx: 0, refusal } => refusal,
        other => panic!("{other}"),
    }
}

fn malformed(lie: impl FnOnce(&mut RawDoc)) -> &'static str {
    match told(|raw| lie(&mut raw.docs[0])) {
        CertificateError::Malformed { doc_idx: 0, what } => what,
        other => panic!("{other}"),
    }
}

#[test]
fn two_writers_agree_to_the_byte() {
    let corpus = Corpus::new();
    assert_eq!(Raw::honest(&corpus).sealed(), corpus.certificate);
}

#[test]
fn weight_on_itself() {
    let refusal = refused(|doc| doc.removals[0].0 = vec![0, 2]);
    assert_eq!(refusal, Refusal::SupportOnItself { token_idx: 2 });
}

#[test]
fn weight_on_a_removed_token() {
    let refusal = refused(|doc| doc.removals[1].0 = vec![2]);
    assert_eq!(refusal, Refusal::SupportRemoved { token_idx: 3, support_idx: 2 });
}

#[test]
fn weight_on_no_token() {
    let refusal = refused(|doc| doc.removals[0].0 = vec![0, 7]);
    assert_eq!(refusal, Refusal::SupportOutOfRange { token_idx: 2, support_idx: 7, num_tokens: 7 });
}

#[test]
fn support_twice_or_out_of_order() {
    let refusal = refused(|doc| doc.removals[0].0 = vec![1, 1]);
    assert_eq!(refusal, Refusal::SupportNotAscending { token_idx: 2, support_idx: 1, previous: 1 });
    let refusal = refused(|doc| doc.removals[0].0 = vec![1, 0]);
    assert_eq!(refusal, Refusal::SupportNotAscending { token_idx: 2, support_idx: 0, previous: 1 });
}

#[test]
fn weights_above_one() {
    let refusal = refused(|doc| doc.removals[0].1 = vec![HALF, HALF + 1]);
    let sum = f64::from(ONE + 1) / f64::from(ONE);
    assert_eq!(refusal, Refusal::SumAboveOne { token_idx: 2, sum });
    // The next weight above 1 has no 24-bit encoding: it wraps to the smallest one.
    let refusal = refused(|doc| doc.removals[1].1 = vec![ONE + 1]);
    assert!(matches!(refusal, Refusal::ResidualAboveTolerance { token_idx: 3, .. }), "{refusal}");
}

#[test]
fn clamped_weights_sold_as_plain() {
    let error = told(|raw| raw.header[10] = 0);
    let refusal = Refusal::SumNotOne { token_idx: 4, sum: 0.5 };
    assert_eq!(error, CertificateError::Removal { doc_idx: 0, refusal });
    let error = told(|raw| {
        raw.header[10] = 0;
        raw.docs[0].removals[2] = (vec![0], vec![ONE]);
        raw.docs[0].bound = 1.0;
    });
    assert_eq!(error, CertificateError::Removal { doc_idx: 0, refusal: Refusal::EmptySupport { token_idx: 6 } });
}

#[test]
fn weights_that_do_not_reach_the_token() {
    let refusal = refused(|doc| doc.removals[0].1 = vec![1, 1]);
    assert!(matches!(refusal, Refusal::ResidualAboveTolerance { token_idx: 2, tolerance: 0.5, .. }), "{refusal}");
}

#[test]
fn a_bound_one_ulp_too_small() {
    let tolerance = 0.5f32.next_down();
    let refusal = refused(|doc| doc.bound = tolerance);
    assert_eq!(refusal, Refusal::ResidualAboveTolerance { token_idx: 4, residual: 0.5, tolerance });
}

#[test]
fn a_larger_bound_is_true_and_reported() {
    let corpus = Corpus::new();
    let mut raw = Raw::honest(&corpus);
    raw.docs[2].bound = 0.75;
    assert_eq!(check(&corpus, &raw.sealed()).unwrap().worst_bound, 0.75);
}

#[test]
fn bounds_that_are_no_numbers() {
    for bound in [f32::NAN, -0.0, -1.0] {
        assert_eq!(malformed(|doc| doc.bound = bound), "the bound is NaN or negative");
    }
}

#[test]
fn two_duplicates_that_justify_each_other() {
    let refusal = refused_without(1, |doc| {
        // Tokens 0 and 3 are equal; drop both.
        doc.mask[0] &= !1;
        doc.removals.insert(0, (vec![3], vec![ONE]));
    });
    assert_eq!(refusal, Refusal::SupportRemoved { token_idx: 0, support_idx: 3 });
}

#[test]
fn a_chain_of_removals() {
    // 0 goes because of 1, which goes because of 5: no cycle, and still the losses would add up.
    let refusal = refused_without(2, |doc| {
        doc.bound = 2.0;
        doc.mask[0] &= !0b11;
        doc.removals.insert(0, (vec![1], vec![ONE]));
        doc.removals.insert(1, (vec![5], vec![ONE]));
    });
    assert_eq!(refusal, Refusal::SupportRemoved { token_idx: 0, support_idx: 1 });
}

#[test]
fn a_document_without_tokens_left() {
    let error = told(|raw| {
        raw.docs[0].mask = vec![0];
        raw.docs[0].removals = vec![(vec![], vec![]); 7];
        raw.docs[0].bound = 9.0;
    });
    assert_eq!(error, CertificateError::DocumentEmptied { doc_idx: 0, num_tokens: 7 });
}

#[test]
fn a_removal_without_reasons() {
    let what = malformed(|doc| {
        doc.removals.pop();
    });
    assert_eq!(what, "the record ends inside a removal");
    // A kept token is declared removed: the removals that follow now speak of the wrong tokens.
    let error = told(|raw| raw.docs[0].mask[0] &= !(1 << 5));
    assert!(matches!(error, CertificateError::NumTokensMismatch { doc_idx: 0, corpus: "kept", .. }), "{error}");
}

#[test]
fn encodings_that_are_not_the_only_one() {
    assert_eq!(malformed(|doc| doc.mask[0] |= 0x80), "a bit of the keep mask after the last token is set");
    assert_eq!(malformed(|doc| doc.more.push(0)), "bytes follow the last removal");
    let long = |doc: &mut RawDoc| {
        doc.removals.pop();
        doc.more = vec![254, 0, 0, 0, 0];
    };
    assert_eq!(malformed(long), "a short support is written as a long one");
    let error = told(|raw| raw.docs[2] = RawDoc { mask: vec![7], removals: vec![], ..raw.docs[2].clone() });
    let what = "nothing is removed and the bound is not 0";
    assert_eq!(error, CertificateError::Malformed { doc_idx: 2, what });
}

/// Exact weights in place of the last removal of document 0 (the origin).
fn exact(tail: &'static [u8]) -> impl FnOnce(&mut RawDoc) {
    move |doc| {
        doc.removals.pop();
        doc.more = [255].into_iter().chain(tail.iter().copied()).collect();
    }
}

#[test]
fn exact_weights_are_held_to_the_same() {
    // One support token, id 0; then denominator and numerator, each with its length.
    assert_eq!(malformed(exact(b"\x01\0\0\0\0\0\x02\0\x03\0\x01\0\x01")), "an integer has a leading zero byte");
    assert_eq!(malformed(exact(b"\xff\xff\xff\xff")), "the record ends inside a removal");
    assert_eq!(malformed(exact(b"\x01\0\0\0\0\0\x09\0\x03")), "the record ends inside an integer");
    let refusal = refused(exact(b"\x01\0\0\0\0\0\0\0\x01\0\x01"));
    assert_eq!(refusal, Refusal::ZeroDenominator { token_idx: 6 });
    let refusal = refused(exact(b"\x01\0\0\0\0\0\x01\0\x01\0\0"));
    assert_eq!(refusal, Refusal::ZeroWeight { token_idx: 6, support_idx: 0 });
    let refusal = refused(exact(b"\x01\0\0\0\0\0\x01\0\x01\x01\0\x03"));
    assert_eq!(refusal, Refusal::SumAboveOne { token_idx: 6, sum: 3.0 });
    let corpus = Corpus::new();
    let mut raw = Raw::honest(&corpus);
    exact(b"\x01\0\0\0\0\0\x01\0\x03\x01\0\x01")(&mut raw.docs[0]);
    // A third of token 0 is within 0.5 of the origin.
    assert_eq!(check(&corpus, &raw.sealed()).unwrap().worst_bound, 0.5);
}

#[test]
fn headers_that_lie() {
    let magic = *b"\x88MXHL\r\n\x1a";
    assert_eq!(told(|raw| raw.header[0] = 0x88), CertificateError::BadMagic { found: magic });
    assert_eq!(told(|raw| raw.header[8] = 2), CertificateError::UnsupportedVersion { found: 2, supported: 1 });
    assert_eq!(told(|raw| raw.header[10] = 2), CertificateError::UnknownScoring { code: 2 });
    assert_eq!(told(|raw| raw.header[11] = 4), CertificateError::UnknownDType { code: 4 });
    assert_eq!(told(|raw| raw.header[12] = 0), CertificateError::ZeroDim);
    let dim = CertificateError::DimMismatch { corpus: "original", certified: 5, found: 4 };
    assert_eq!(told(|raw| raw.header[12] = 5), dim);
    let dtype = CertificateError::DTypeMismatch { corpus: "original", certified: DType::Bf16, found: DType::F16 };
    assert_eq!(told(|raw| raw.header[11] = 1), dtype);
}

#[test]
fn footers_that_lie() {
    let corpus = Corpus::new();
    let raw = Raw::honest(&corpus);
    let told = |byte: usize, value: u8| {
        let mut footer = raw.footer();
        footer[byte] = value;
        check(&corpus, &raw.sealed_with(&footer)).unwrap_err()
    };
    let count = |what, claimed, found| CertificateError::FooterCount { what, claimed, found };
    assert_eq!(told(0, 4), count("documents", 4, 3));
    assert_eq!(told(8, 9), count("tokens", 9, 10));
    assert_eq!(told(16, 6), count("kept tokens", 6, 5));
    assert_eq!(told(27, 0x3e), CertificateError::FooterBound { claimed: 0.125, found: 0.5 });
    assert_eq!(told(28, raw.footer()[28] ^ 1), CertificateError::RootDigest);
}

#[test]
fn documents_too_many_or_too_few() {
    let mismatch = |certified| CertificateError::NumDocsMismatch { corpus: "original", certified, found: 3 };
    assert_eq!(told(|raw| raw.docs.truncate(2)), mismatch(2));
    assert_eq!(told(|raw| raw.docs.push(raw.docs[1].clone())), mismatch(4));
}

#[test]
fn lengths_that_lie() {
    let corpus = Corpus::new();
    for len in [1, 23, u64::from(u32::MAX), u64::MAX] {
        let mut bytes = Raw::honest(&corpus).sealed();
        bytes.truncate(bytes.len() - 32);
        bytes[16..24].copy_from_slice(&len.to_le_bytes());
        let error = check(&corpus, &seal(bytes)).unwrap_err();
        let expected = matches!(error, CertificateError::Truncated { .. } | CertificateError::Malformed { .. });
        assert!(expected, "length {len}: {error}");
    }
    // A document of four billion tokens, in a record of a hundred bytes.
    assert_eq!(malformed(|doc| doc.num_tokens = u32::MAX), "the record ends inside its keep mask");
}

#[test]
fn other_tokens_than_those_certified() {
    let certificate = Corpus::new().certificate;
    for (component, doc_idx) in [(0, 0), (27, 0), (28, 2), (39, 2)] {
        let mut corpus = Corpus::new();
        corpus.original[component] = f16::from_bits(corpus.original[component].to_bits() ^ 1);
        assert_eq!(check(&corpus, &certificate), Err(CertificateError::DocumentDigest { doc_idx }));
    }
    // Another corpus may have been split at other places.
    let mut corpus = Corpus::new();
    corpus.original_offsets = vec![0, 6, 7, 10];
    let error = CertificateError::NumTokensMismatch { doc_idx: 0, corpus: "original", certified: 7, found: 6 };
    assert_eq!(check(&corpus, &certificate), Err(error));
}

#[test]
fn other_kept_tokens_than_those_certified() {
    let certificate = Corpus::new().certificate;
    let mut corpus = Corpus::new();
    corpus.kept[3 * Corpus::DIM + 1] = f16::ONE;
    let error = CertificateError::KeptTokenDiffers { doc_idx: 2, kept_idx: 0, token_idx: 0 };
    assert_eq!(check(&corpus, &certificate), Err(error));
    let mut corpus = Corpus::new();
    corpus.kept_offsets = vec![0, 2, 3, 5];
    let error = CertificateError::NumTokensMismatch { doc_idx: 0, corpus: "kept", certified: 3, found: 2 };
    assert_eq!(check(&corpus, &certificate), Err(error));
    let mut corpus = Corpus::new();
    corpus.kept_offsets.pop();
    let error = CertificateError::NumDocsMismatch { corpus: "kept", certified: 3, found: 2 };
    assert_eq!(check(&corpus, &certificate), Err(error));
}

#[test]
fn a_zero_with_another_sign_is_another_token() {
    let certificate = Corpus::new().certificate;
    let mut corpus = Corpus::new();
    corpus.kept[1] = f16::NEG_ZERO;
    let error = CertificateError::KeptTokenDiffers { doc_idx: 0, kept_idx: 0, token_idx: 0 };
    assert_eq!(check(&corpus, &certificate), Err(error));
}

/// Every bit of every record, with footer and hash made to fit: what is accepted must still be true.
#[test]
fn a_flipped_bit_under_a_right_hash_is_refused_or_harmless() {
    let corpus = Corpus::new();
    let honest = Raw::honest(&corpus);
    let mut accepted = 0;
    for doc_idx in 0..3 {
        for bit in 0..honest.docs[doc_idx].body().len() * 8 {
            let mut bytes = honest.header.to_vec();
            for (other, doc) in honest.docs.iter().enumerate() {
                let mut body = doc.body();
                if other == doc_idx {
                    body[bit / 8] ^= 1 << (bit % 8);
                }
                bytes.extend((body.len() as u64).to_le_bytes());
                bytes.extend(body);
            }
            // The footer is recomputed from the flipped record's bound, all else must stay as it is.
            let mut footer = honest.footer();
            let at = 16 + (0..doc_idx).map(|i| 8 + honest.docs[i].body().len()).sum::<usize>() + 8 + 4;
            let bound = f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let others = (0..3).filter(|&i| i != doc_idx).map(|i| honest.docs[i].bound);
            footer[24..28].copy_from_slice(&others.fold(bound, f32::max).to_le_bytes());
            bytes.extend(0u64.to_le_bytes());
            bytes.extend(footer);
            if let Ok(report) = check(&corpus, &seal(bytes)) {
                // The same tokens stay and the bound is no smaller than the truth, 0.5 in document 0.
                assert_eq!((report.num_tokens, report.num_kept), (10, 5));
                assert!(report.worst_bound >= 0.5, "document {doc_idx}, bit {bit}");
                accepted += 1;
            }
        }
    }
    // Larger bounds and weights that still reach: some flips must survive, or the test proves nothing.
    assert!(accepted > 0);
}
