//! Checks a certificate against the original tokens and the tokens that were kept.
//!
//! Every residual is bounded again by the code that bounded it for the record; nothing is taken from the certificate
//! but support, weights and claims.

use std::io::Read;

use rayon::prelude::*;

use super::error::CertificateError;
use super::format::{self, DocRecord, Header, Reader};
use super::prover::{Checker, ProofScratch};
use crate::{DType, Error, Scoring, TokenBatch, TokenData};

/// Records that are read before they are verified in parallel.
const RECORDS_AT_ONCE: usize = 1024;

/// One document whose record holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DocReport {
    /// Tokens before pruning.
    pub num_tokens: usize,
    /// Tokens that stay.
    pub num_kept: usize,
    /// The record's bound on the loss of a unit query token.
    pub bound: f32,
    /// The bound that was proven now; at most `bound`.
    pub proven_bound: f32,
}

/// A certificate that holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// Scoring that the bounds hold for.
    pub scoring: Scoring,
    /// Element type of the tokens.
    pub dtype: DType,
    /// Components per token.
    pub dim: u32,
    /// Documents.
    pub num_docs: u64,
    /// Tokens before pruning.
    pub num_tokens: u64,
    /// Tokens that stay.
    pub num_kept: u64,
    /// Proven: no unit query token loses more than this on any document.
    pub worst_bound: f32,
    /// Digest of the original corpus.
    pub root: [u8; 32],
}

/// Checks the whole of `certificate`: that it was made for `original` (`[num_tokens, dim]`), that `kept`
/// (`[num_kept, dim]`) is what it says stays, and that every removal and every bound holds. Runs on the calling
/// thread's rayon pool; the first document with an error is reported, for any number of threads.
///
/// # Errors
/// [`Error::Certificate`].
pub fn verify(original: &TokenBatch<'_>, kept: &TokenBatch<'_>, certificate: &[u8]) -> Result<Report, Error> {
    let mut verifier = Verifier::new(certificate)?;
    verifier.verify_next(original, kept)?;
    Ok(verifier.finish()?)
}

/// Verifies a certificate beside corpora that are read a part at a time.
pub struct Verifier<R: Read> {
    reader: Reader<R>,
    num_verified: u64,
}

impl<R: Read> Verifier<R> {
    /// Reads the header. Give it a buffered `input`.
    ///
    /// # Errors
    /// A [`CertificateError`] about the header.
    pub fn new(input: R) -> Result<Self, CertificateError> {
        Ok(Verifier { reader: Reader::new(input)?, num_verified: 0 })
    }

    /// What the certificate is about.
    pub fn header(&self) -> Header {
        self.reader.header()
    }

    /// Verifies the next `original.num_docs()` documents.
    ///
    /// # Errors
    /// The [`CertificateError`] of the first document that has one; [`CertificateError::FileHash`] or
    /// [`CertificateError::Truncated`] instead if the file turns out to be damaged, which then explains the rest.
    pub fn verify_next(
        &mut self,
        original: &TokenBatch<'_>,
        kept: &TokenBatch<'_>,
    ) -> Result<Vec<DocReport>, CertificateError> {
        self.check_batches(original, kept).and_then(|()| self.verify_docs(original, kept)).map_err(|e| self.explain(e))
    }

    /// Reads to the end: totals and hash must be right, and every record verified.
    ///
    /// # Errors
    /// The [`CertificateError`] that applies.
    pub fn finish(mut self) -> Result<Report, CertificateError> {
        while self.reader.next_record()?.is_some() {}
        let Header { scoring, dtype, dim } = self.header();
        let footer = self.reader.footer().ok_or(CertificateError::Truncated { at: 0, inside: "footer" })?;
        if footer.num_docs != self.num_verified {
            let (certified, found) = (footer.num_docs, self.num_verified);
            return Err(CertificateError::NumDocsMismatch { corpus: "original", certified, found });
        }
        let format::Footer { num_docs, num_tokens, num_kept, worst_bound, root } = footer;
        Ok(Report { scoring, dtype, dim, num_docs, num_tokens, num_kept, worst_bound, root })
    }

    fn check_batches(&self, original: &TokenBatch<'_>, kept: &TokenBatch<'_>) -> Result<(), CertificateError> {
        let header = self.header();
        for (corpus, batch) in [("original", original), ("kept", kept)] {
            check_dtype(header, corpus, batch.dtype())?;
            if batch.dim() != header.dim as usize {
                return Err(CertificateError::DimMismatch { corpus, certified: header.dim, found: batch.dim() });
            }
        }
        if kept.num_docs() != original.num_docs() {
            let [certified, found] = [original, kept].map(|batch| self.num_verified + batch.num_docs() as u64);
            return Err(CertificateError::NumDocsMismatch { corpus: "kept", certified, found });
        }
        Ok(())
    }

    fn verify_docs(
        &mut self,
        original: &TokenBatch<'_>,
        kept: &TokenBatch<'_>,
    ) -> Result<Vec<DocReport>, CertificateError> {
        let (header, first, num_docs) = (self.header(), self.num_verified, original.num_docs());
        let mut reports = Vec::with_capacity(num_docs);
        while reports.len() < num_docs {
            let start = reports.len();
            let records = self.read(RECORDS_AT_ONCE.min(num_docs - start))?;
            if records.is_empty() {
                let (certified, found) = (self.num_verified, first + num_docs as u64);
                return Err(CertificateError::NumDocsMismatch { corpus: "original", certified, found });
            }
            self.num_verified += records.len() as u64;
            let results: Vec<_> = records
                .par_iter()
                .zip(start..start + records.len())
                .map_init(ProofScratch::default, |scratch, (record, doc_idx)| {
                    verify_doc(header, record, original.doc(doc_idx), kept.doc(doc_idx), scratch)
                })
                .collect();
            for result in results {
                reports.push(result?);
            }
        }
        Ok(reports)
    }

    fn read(&mut self, count: usize) -> Result<Vec<DocRecord>, CertificateError> {
        let mut records = Vec::new();
        while records.len() < count
            && let Some(record) = self.reader.next_record()?
        {
            records.push(record);
        }
        Ok(records)
    }

    /// A damaged file is the better explanation of whatever else is wrong with it.
    fn explain(&mut self, error: CertificateError) -> CertificateError {
        loop {
            match self.reader.next_record() {
                Ok(Some(_)) | Err(CertificateError::Malformed { .. } | CertificateError::DocumentEmptied { .. }) => {}
                Err(damage @ (CertificateError::FileHash { .. } | CertificateError::Truncated { .. })) => {
                    return damage;
                }
                Ok(None) | Err(_) => return error,
            }
        }
    }
}

/// Verifies one document: `original` is `[num_tokens, dim]`, `kept` `[num_kept, dim]`. Documents are independent, so
/// callers may do this in any order and on any thread; [`Reader`] checks what spans documents.
///
/// # Errors
/// The [`CertificateError`] that applies.
pub fn verify_doc(
    header: Header,
    record: &DocRecord,
    original: TokenData<'_>,
    kept: TokenData<'_>,
    scratch: &mut ProofScratch,
) -> Result<DocReport, CertificateError> {
    let (doc_idx, dim) = (record.doc_idx(), header.dim as usize);
    let num_kept = record.num_kept();
    check_doc(header, doc_idx, "original", original, record.num_tokens())?;
    check_doc(header, doc_idx, "kept", kept, num_kept)?;
    if format::doc_digest(original, dim) != *record.digest() {
        return Err(CertificateError::DocumentDigest { doc_idx });
    }
    check_kept(header, record, original, kept)?;
    let mut checker = Checker::new(original, dim, header.scoring, record.kept());
    let mut proven_bound: f32 = 0.0;
    for removal in record.removals() {
        let bound = checker
            .check(&removal?.proposal(), record.bound(), scratch)
            .map_err(|refusal| CertificateError::Removal { doc_idx, refusal })?;
        proven_bound = proven_bound.max(bound);
    }
    Ok(DocReport { num_tokens: record.num_tokens(), num_kept, bound: record.bound(), proven_bound })
}

fn check_dtype(header: Header, corpus: &'static str, found: DType) -> Result<(), CertificateError> {
    if found == header.dtype {
        return Ok(());
    }
    Err(CertificateError::DTypeMismatch { corpus, certified: header.dtype, found })
}

fn check_doc(
    header: Header,
    doc_idx: u64,
    corpus: &'static str,
    doc: TokenData<'_>,
    num_tokens: usize,
) -> Result<(), CertificateError> {
    check_dtype(header, corpus, doc.dtype())?;
    let dim = header.dim as usize;
    if num_tokens.checked_mul(dim) == Some(doc.len()) {
        return Ok(());
    }
    let (certified, found) = (num_tokens as u64, (doc.len() / dim) as u64);
    Err(CertificateError::NumTokensMismatch { doc_idx, corpus, certified, found })
}

fn check_kept(
    header: Header,
    record: &DocRecord,
    original: TokenData<'_>,
    kept: TokenData<'_>,
) -> Result<(), CertificateError> {
    let row_bytes = header.dim as usize * header.dtype.size_bytes();
    let rows = original.as_bytes().chunks_exact(row_bytes).zip(record.kept()).enumerate().filter(|(_, row)| *row.1);
    for (kept_idx, ((token_idx, (row, _)), found)) in rows.zip(kept.as_bytes().chunks_exact(row_bytes)).enumerate() {
        if row != found {
            let (doc_idx, kept_idx, token_idx) = (record.doc_idx(), kept_idx as u32, token_idx as u32);
            return Err(CertificateError::KeptTokenDiffers { doc_idx, kept_idx, token_idx });
        }
    }
    Ok(())
}
