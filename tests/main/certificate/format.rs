//! Certificates as files: written, read, verified, cut short and damaged.

use maxhull::Error;
use maxhull::certificate::{CertificateError, verify};

use super::*;

#[test]
fn an_honest_certificate_verifies() {
    let corpus = Corpus::new();
    let report = verify(&corpus.original(), &corpus.kept(), &corpus.certificate).unwrap();
    assert_eq!((report.num_docs, report.num_tokens, report.num_kept), (3, 10, 5));
    assert_eq!((report.scoring, report.dtype, report.dim), (Scoring::Clamped, DType::F16, 4));
    assert_eq!(report.worst_bound, 0.5);
}

#[test]
fn truncated_anywhere_is_truncated() {
    let corpus = Corpus::new();
    for len in 0..corpus.certificate.len() {
        let error = verify(&corpus.original(), &corpus.kept(), &corpus.certificate[..len]).unwrap_err();
        let Error::Certificate(CertificateError::Truncated { at, .. }) = error else {
            panic!("cut at {len}: {error}");
        };
        assert_eq!(at, len as u64);
    }
}

#[test]
fn bytes_after_the_end_are_refused() {
    let mut corpus = Corpus::new();
    let at = corpus.certificate.len() as u64;
    corpus.certificate.push(0);
    let error = verify(&corpus.original(), &corpus.kept(), &corpus.certificate).unwrap_err();
    assert_eq!(error, CertificateError::TrailingBytes { at }.into());
}

/// Positions of the bytes that frame: the header and the length before each record and before the footer.
fn framing(certificate: &[u8]) -> Vec<usize> {
    let (mut positions, mut at) = ((0..16).collect::<Vec<_>>(), 16);
    loop {
        positions.extend(at..at + 8);
        let len = u64::from_le_bytes(certificate[at..at + 8].try_into().unwrap()) as usize;
        if len == 0 {
            return positions;
        }
        at += 8 + len;
    }
}

#[test]
fn every_flipped_bit_is_refused_as_damage() {
    let corpus = Corpus::new();
    let framing = framing(&corpus.certificate);
    for bit in 0..corpus.certificate.len() * 8 {
        let mut damaged = corpus.certificate.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let error = verify(&corpus.original(), &corpus.kept(), &damaged).unwrap_err();
        let is_hash = matches!(error, Error::Certificate(CertificateError::FileHash { .. }));
        // Damaged framing may make the reader stumble before it reaches the hash.
        assert!(is_hash || framing.contains(&(bit / 8)), "bit {bit}: {error}");
    }
}
