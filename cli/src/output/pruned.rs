//! The files of a pruned corpus, written in the order of the documents.

use std::fs::File;
use std::io::{BufWriter, Write};

use anyhow::Context;
use maxhull::certificate::{Header, ProvenDoc, Writer};
use maxhull::{DType, Scoring, TokenBatch};

use super::npy::NpyWriter;
use super::{BOUNDS_FILE, CERTIFICATE_FILE, KEPT_FILE, Staging};
use crate::corpus::{Corpus, LENGTHS_FILE, TOKENS_FILE};

/// All streamed files; one per folder under construction.
pub struct PrunedWriter {
    tokens: NpyWriter,
    kept: NpyWriter,
    bounds: NpyWriter,
    lengths: BufWriter<File>,
    certificate: Writer<BufWriter<File>>,
    num_docs: u64,
    sum_of_bounds: f64,
    worst_bound: f32,
    num_docs_pruned: u64,
}

/// What was written.
#[derive(Debug, Clone, Copy)]
pub struct Written {
    /// Documents.
    pub num_docs: u64,
    /// Documents that lost at least one token.
    pub num_docs_pruned: u64,
    /// Tokens that stay.
    pub num_kept: u64,
    /// Largest bound of a document.
    pub worst_bound: f32,
    /// Mean bound of a document.
    pub mean_bound: f64,
    /// Bytes of the certificate.
    pub certificate_bytes: u64,
    /// Digest of the original tokens.
    pub root: [u8; 32],
}

impl PrunedWriter {
    /// Creates the files.
    pub fn create(staging: &Staging, corpus: &Corpus, scoring: Scoring) -> anyhow::Result<Self> {
        let dim = u32::try_from(corpus.dim()).context("dim does not fit the certificate")?;
        let header = Header { scoring, dtype: corpus.dtype(), dim };
        let descr = if corpus.dtype() == DType::F16 { "<f2" } else { "<f4" };
        let npy = |name: &str, descr, value_bytes, dim| {
            NpyWriter::create(&staging.path(name), descr, value_bytes, dim).with_context(|| failed(name))
        };
        let file = |name: &str| -> anyhow::Result<BufWriter<File>> {
            let file = File::create_new(staging.path(name)).with_context(|| failed(name))?;
            Ok(BufWriter::with_capacity(1 << 20, file))
        };
        let mut lengths = file(LENGTHS_FILE)?;
        lengths.write_all(b"[").with_context(|| failed(LENGTHS_FILE))?;
        Ok(PrunedWriter {
            tokens: npy(TOKENS_FILE, descr, corpus.dtype().size_bytes(), Some(corpus.dim()))?,
            kept: npy(KEPT_FILE, "<u4", 4, None)?,
            bounds: npy(BOUNDS_FILE, "<f4", 4, None)?,
            lengths,
            certificate: Writer::new(file(CERTIFICATE_FILE)?, header).with_context(|| failed(CERTIFICATE_FILE))?,
            num_docs: 0,
            sum_of_bounds: 0.0,
            worst_bound: 0.0,
            num_docs_pruned: 0,
        })
    }

    /// Appends the documents of a batch.
    pub fn write(&mut self, batch: &TokenBatch<'_>, docs: &[ProvenDoc]) -> anyhow::Result<()> {
        anyhow::ensure!(docs.len() == batch.num_docs(), "{} documents came back of {}", docs.len(), batch.num_docs());
        docs.iter().enumerate().try_for_each(|(doc_idx, doc)| self.write_doc(batch, doc_idx, doc))
    }

    fn write_doc(&mut self, batch: &TokenBatch<'_>, doc_idx: usize, doc: &ProvenDoc) -> anyhow::Result<()> {
        let tokens = batch.doc(doc_idx).as_bytes();
        let token_bytes = batch.dim() * batch.dtype().size_bytes();
        for run in runs(doc.keep().kept()) {
            let (start, end) = (run.start as usize * token_bytes, run.end as usize * token_bytes);
            self.tokens.write(&tokens[start..end]).with_context(|| failed(TOKENS_FILE))?;
            let mut positions = run;
            positions.try_for_each(|at| self.kept.write(&at.to_le_bytes())).with_context(|| failed(KEPT_FILE))?;
        }
        let num_kept = doc.keep().num_kept();
        let comma = if self.num_docs == 0 { "" } else { ", " };
        write!(self.lengths, "{comma}{num_kept}").with_context(|| failed(LENGTHS_FILE))?;
        self.bounds.write(&doc.bound().to_le_bytes()).with_context(|| failed(BOUNDS_FILE))?;
        self.certificate.append(doc.record()).with_context(|| failed(CERTIFICATE_FILE))?;
        self.num_docs += 1;
        self.num_docs_pruned += u64::from(num_kept < doc.keep().num_tokens());
        self.sum_of_bounds += f64::from(doc.bound());
        self.worst_bound = self.worst_bound.max(doc.bound());
        Ok(())
    }

    /// Ends and syncs every file.
    pub fn finish(mut self) -> anyhow::Result<Written> {
        self.lengths.write_all(b"]\n").with_context(|| failed(LENGTHS_FILE))?;
        sync(self.lengths).with_context(|| failed(LENGTHS_FILE))?;
        let num_kept = self.tokens.finish().with_context(|| failed(TOKENS_FILE))?;
        self.kept.finish().with_context(|| failed(KEPT_FILE))?;
        self.bounds.finish().with_context(|| failed(BOUNDS_FILE))?;
        let (certificate, footer) = self.certificate.finish().with_context(|| failed(CERTIFICATE_FILE))?;
        let certificate_bytes = sync(certificate).with_context(|| failed(CERTIFICATE_FILE))?;
        Ok(Written {
            num_docs: self.num_docs,
            num_docs_pruned: self.num_docs_pruned,
            num_kept,
            worst_bound: self.worst_bound,
            mean_bound: self.sum_of_bounds / self.num_docs.max(1) as f64,
            certificate_bytes,
            root: footer.root,
        })
    }
}

fn failed(name: &str) -> String {
    format!("{name} could not be written")
}

/// Flushes and syncs; gives the length.
fn sync(file: BufWriter<File>) -> std::io::Result<u64> {
    let file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(file.metadata()?.len())
}

/// Ascending positions as runs of neighbours, so that survivors are copied in few pieces.
fn runs(positions: impl Iterator<Item = u32>) -> impl Iterator<Item = std::ops::Range<u32>> {
    let mut positions = positions.peekable();
    std::iter::from_fn(move || {
        let start = positions.next()?;
        let mut end = start + 1;
        while positions.next_if_eq(&end).is_some() {
            end += 1;
        }
        Some(start..end)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn runs_join_neighbours_only() {
        let runs = |positions: &[u32]| super::runs(positions.iter().copied()).collect::<Vec<_>>();
        assert_eq!(runs(&[0, 1, 2, 5, 7, 8]), [0..3, 5..6, 7..9]);
        assert_eq!(runs(&[]), []);
        assert_eq!(runs(&[3, 9]), [3..4, 9..10]);
    }
}
