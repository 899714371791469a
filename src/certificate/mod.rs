//! Untrusted weights in, proven removals out.

use crate::{Scoring, TokenData};

/// Integer weight that stands for 1.
pub const WEIGHT_ONE: u32 = 1 << 24;

/// Why a certificate was refused.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CertificateError {}

/// Why a removal was refused.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {}

/// Which tokens of one document stay; only this module can clear a bit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeepMask {
    kept: Vec<bool>,
}

impl KeepMask {
    /// Tokens of the document before pruning.
    pub fn num_tokens(&self) -> usize {
        self.kept.len()
    }
    /// Tokens that stay.
    pub fn num_kept(&self) -> usize {
        self.kept.iter().filter(|&&kept| kept).count()
    }
    /// Whether `token_idx` stays.
    pub fn is_kept(&self, token_idx: usize) -> bool {
        self.kept[token_idx]
    }
    /// Positions of the tokens that stay, ascending.
    pub fn kept(&self) -> impl Iterator<Item = u32> + '_ {
        self.kept.iter().enumerate().filter(|(_, kept)| **kept).map(|(token_idx, _)| token_idx as u32)
    }
}

/// One document after its proofs.
#[derive(Debug, Clone)]
pub struct ProvenDoc {
    keep: KeepMask,
    bound: f32,
    record: Vec<u8>,
}

impl ProvenDoc {
    /// Which tokens stay.
    pub fn keep(&self) -> &KeepMask {
        &self.keep
    }
    /// Proven: no query token of unit norm loses more than this on the document. 0 when nothing was removed.
    pub fn bound(&self) -> f32 {
        self.bound
    }
    /// The document's record in a certificate file.
    pub fn record(&self) -> &[u8] {
        &self.record
    }
}

/// Proves the removals of one document.
pub struct DocProver<'a> {
    doc: TokenData<'a>,
    dim: usize,
    _scoring: Scoring,
    _proposed_kept: &'a [bool],
}

impl<'a> DocProver<'a> {
    /// `doc` is `[num_tokens, dim]`.
    pub fn new(doc: TokenData<'a>, dim: usize, scoring: Scoring, proposed_kept: &'a [bool]) -> Self {
        DocProver { doc, dim, _scoring: scoring, _proposed_kept: proposed_kept }
    }
    /// Keeps whatever was not proven.
    pub fn finish(self) -> ProvenDoc {
        ProvenDoc { keep: KeepMask { kept: vec![true; self.doc.len() / self.dim] }, bound: 0.0, record: Vec::new() }
    }
}
