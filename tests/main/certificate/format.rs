//! Certificates as files: written, read, verified, cut short and damaged.

use maxhull::Error;
use maxhull::certificate::{CertificateError, DocRecord, Reader, RemovalWeights, UBig, Verifier, verify, verify_doc};
use proptest::prelude::*;

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

#[test]
fn a_stream_is_verified_a_part_at_a_time() {
    let corpus = Corpus::new();
    let (original, kept) = (corpus.original(), corpus.kept());
    let mut verifier = Verifier::new(corpus.certificate.as_slice()).unwrap();
    assert_eq!(verifier.header(), Corpus::HEADER);
    let mut reports = verifier.verify_next(&original.docs(0..1), &kept.docs(0..1)).unwrap();
    reports.extend(verifier.verify_next(&original.docs(1..3), &kept.docs(1..3)).unwrap());
    let counts: Vec<_> = reports.iter().map(|report| (report.num_tokens, report.num_kept)).collect();
    assert_eq!(counts, [(7, 3), (0, 0), (3, 2)]);
    assert!(reports.iter().all(|report| report.proven_bound == report.bound));
    let report = verifier.finish().unwrap();
    assert_eq!(report, verify(&original, &kept, &corpus.certificate).unwrap());
}

#[test]
fn documents_that_were_not_verified_are_not_forgotten() {
    let corpus = Corpus::new();
    let mut verifier = Verifier::new(corpus.certificate.as_slice()).unwrap();
    verifier.verify_next(&corpus.original().docs(0..2), &corpus.kept().docs(0..2)).unwrap();
    let expected = CertificateError::NumDocsMismatch { corpus: "original", certified: 3, found: 2 };
    assert_eq!(verifier.finish().unwrap_err(), expected);
}

#[test]
fn the_first_document_with_an_error_is_named_with_any_number_of_threads() {
    // 3,000 documents, every one after the 700th damaged.
    let doc = f16s(&[1.0, 0.0, 1.0, 0.0]);
    let removals = [(1, vec![0], vec![ONE])];
    let proven = prove(TokenData::F16(&doc), 2, Scoring::Plain, &removals, 0.0);
    let mut writer = Writer::new(Vec::new(), Header { scoring: Scoring::Plain, dtype: DType::F16, dim: 2 }).unwrap();
    (0..3000).for_each(|_| writer.append(proven.record()).unwrap());
    let (certificate, footer) = writer.finish().unwrap();
    assert_eq!((footer.num_docs, footer.num_tokens, footer.num_kept), (3000, 6000, 3000));
    let mut original = doc.repeat(3000);
    let kept = doc[..2].repeat(3000);
    original[700 * 4..].iter_mut().for_each(|value| *value = f16::ONE);
    let (offsets, kept_offsets): (Vec<u64>, Vec<u64>) = (0..=3000).map(|doc_idx| (2 * doc_idx, doc_idx)).unzip();
    let original = TokenBatch::new(TokenData::F16(&original), &offsets, 2).unwrap();
    let kept = TokenBatch::new(TokenData::F16(&kept), &kept_offsets, 2).unwrap();
    for num_threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
        let error = pool.install(|| verify(&original, &kept, &certificate)).unwrap_err();
        assert_eq!(error, CertificateError::DocumentDigest { doc_idx: 700 }.into());
    }
}

#[test]
fn support_of_every_size_and_width_survives() {
    // 0..=253 weights have a short count; ids take four bytes above 65,536 tokens.
    for (num_support, num_tokens) in [(0, 300), (1, 300), (253, 300), (254, 300), (299, 300), (3, 65_536), (3, 65_537)]
    {
        let doc = vec![1i8; num_tokens];
        let token_idx = num_tokens as u32 - 1;
        let support: Vec<u32> = (token_idx - num_support..token_idx).collect();
        let weights: Vec<u32> = (1..=num_support).collect();
        let removal = (token_idx, support, weights);
        let proven = prove(TokenData::I8(&doc), 1, Scoring::Clamped, std::slice::from_ref(&removal), 1.0);
        let record = DocRecord::decode(0, proven.record()).unwrap();
        let decoded: Vec<_> = record.removals().map(Result::unwrap).collect();
        assert_eq!(decoded.len(), 1);
        assert_eq!((decoded[0].token_idx, &decoded[0].support), (token_idx, &removal.1));
        assert_eq!(decoded[0].weights, RemovalWeights::Fixed(removal.2));
        let header = Header { scoring: Scoring::Clamped, dtype: DType::I8, dim: 1 };
        let kept = TokenData::I8(&doc[1..]);
        let report = verify_doc(header, &record, TokenData::I8(&doc), kept, &mut ProofScratch::default()).unwrap();
        assert_eq!(report.bound, proven.bound());
    }
}

#[test]
fn exact_weights_survive() {
    // 1/3 of 3 and 2/3 of 0 is 1: no fixed weight can say that.
    let doc = [3.0f32, 0.0, 1.0];
    let mut scratch = ProofScratch::default();
    let mut prover =
        DocProver::new(TokenData::F32(&doc), 1, Scoring::Plain, &[true, true, false], &mut scratch).unwrap();
    let huge = UBig::from(10u8).pow(300);
    let (numerators, denominator) = ([huge.clone(), &huge * 2u8], &huge * 3u8);
    let weights = Weights::Exact { numerators: &numerators, denominator: &denominator };
    assert_eq!(prover.remove(&Proposal { token_idx: 2, support: &[0, 1], weights }, 0.0), Ok(0.0));
    let proven = prover.finish();
    let record = DocRecord::decode(0, proven.record()).unwrap();
    let decoded = record.removals().next().unwrap().unwrap();
    assert_eq!(decoded.weights, RemovalWeights::Exact { numerators: numerators.to_vec(), denominator });
    let header = Header { scoring: Scoring::Plain, dtype: DType::F32, dim: 1 };
    let kept = TokenData::F32(&doc[..2]);
    assert!(verify_doc(header, &record, TokenData::F32(&doc), kept, &mut scratch).is_ok());
}

#[test]
fn a_writer_refuses_what_is_no_record() {
    let mut writer = Writer::new(Vec::new(), Corpus::HEADER).unwrap();
    let what = "the record is shorter than its length";
    assert_eq!(writer.append(&[1, 2]), Err(CertificateError::Malformed { doc_idx: 0, what }));
    let zero_dim = Writer::new(Vec::new(), Header { dim: 0, ..Corpus::HEADER });
    assert_eq!(zero_dim.map(|_| ()).unwrap_err(), CertificateError::ZeroDim);
}

#[test]
fn io_errors_are_passed_on() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let error = Writer::new(Full, Corpus::HEADER).map(|_| ()).unwrap_err();
    assert!(matches!(error, CertificateError::Io { kind: std::io::ErrorKind::StorageFull, .. }), "{error}");
}

/// Documents of dim 2 whose tokens from `num_kept` on go, with random support.
fn corpus() -> impl Strategy<Value = Vec<(Vec<f32>, Vec<Removal>)>> {
    let doc = (1usize..6, 0usize..5).prop_flat_map(|(num_kept, num_removed)| {
        let values = proptest::collection::vec(-2.0f32..2.0, 2 * (num_kept + num_removed));
        let support = proptest::collection::btree_map(0..num_kept as u32, 1..=ONE / 8, 0..=num_kept);
        let supports = proptest::collection::vec(support, num_removed);
        (values, supports).prop_map(move |(values, supports)| {
            let removals = supports.into_iter().enumerate().map(|(at, support)| {
                let (support, weights) = support.into_iter().unzip();
                ((num_kept + at) as u32, support, weights)
            });
            (values, removals.collect())
        })
    });
    proptest::collection::vec(doc, 0..6)
}

/// Reads to the end or to the first error; returns how much memory the removals asked for, in elements.
fn read_all(bytes: &[u8]) -> usize {
    let Ok(mut reader) = Reader::new(bytes) else { return 0 };
    let mut elements = 0;
    while let Ok(Some(record)) = reader.next_record() {
        elements += record.removals().flatten().map(|removal| removal.support.capacity()).sum::<usize>();
    }
    elements
}

proptest! {
    #[test]
    fn what_is_written_is_read(docs in corpus()) {
        let header = Header { scoring: Scoring::Clamped, dtype: DType::F32, dim: 2 };
        let mut writer = Writer::new(Vec::new(), header).unwrap();
        let mut proven_docs = Vec::new();
        for (values, removals) in &docs {
            let proven = prove(TokenData::F32(values), 2, Scoring::Clamped, removals, f32::INFINITY);
            writer.append(proven.record()).unwrap();
            proven_docs.push(proven);
        }
        let (bytes, written) = writer.finish().unwrap();
        let mut reader = Reader::new(bytes.as_slice()).unwrap();
        prop_assert_eq!(reader.header(), header);
        let mut scratch = ProofScratch::default();
        for ((values, removals), proven) in docs.iter().zip(&proven_docs) {
            let record = reader.next_record().unwrap().unwrap();
            prop_assert_eq!(record.bound(), proven.bound());
            let decoded: Vec<Removal> = record.removals().map(|removal| {
                let removal = removal.unwrap();
                let RemovalWeights::Fixed(weights) = removal.weights else { panic!("fixed weights went in") };
                (removal.token_idx, removal.support, weights)
            }).collect();
            prop_assert_eq!(&decoded, removals);
            let kept = TokenData::F32(&values[..2 * record.num_kept()]);
            prop_assert!(verify_doc(header, &record, TokenData::F32(values), kept, &mut scratch).is_ok());
        }
        prop_assert_eq!(reader.next_record().unwrap(), None);
        prop_assert_eq!(reader.footer(), Some(written));
    }

    #[test]
    fn random_bytes_never_panic_nor_ask_for_more_memory_than_they_have(
        tail in proptest::collection::vec(any::<u8>(), 0..400),
        keep in 0usize..300,
    ) {
        let honest = Corpus::new().certificate;
        let mut bytes = honest[..keep.min(honest.len())].to_vec();
        bytes.extend(&tail);
        prop_assert!(read_all(&tail) <= tail.len());
        prop_assert!(read_all(&bytes) <= bytes.len());
        let _ = DocRecord::decode(0, &tail);
        let corpus = Corpus::new();
        prop_assert!(verify(&corpus.original(), &corpus.kept(), &bytes).is_err() || bytes == honest);
    }
}
