//! The proofs of one document.

use super::error::Refusal;
use super::format;
use super::residual::{Document, Term, WEIGHT_ONE, Weights, max_abs};
use crate::{Error, Scoring, TokenBatch, TokenData};
use dashu_int::{UBig, ops::BitTest};

/// Which tokens of one document stay; only this module can clear a bit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeepMask {
    kept: Vec<bool>,
}

impl KeepMask {
    /// Only for masks that are about to be proven.
    pub(super) fn from_flags(kept: Vec<bool>) -> Self {
        KeepMask { kept }
    }
    /// Tokens of the document before pruning.
    pub fn num_tokens(&self) -> usize {
        self.kept.len()
    }
    /// Tokens that stay.
    pub fn num_kept(&self) -> usize {
        self.kept.iter().filter(|&&kept| kept).count()
    }
    /// Whether `token_idx` stays.
    ///
    /// # Panics
    /// If there is no such token.
    pub fn is_kept(&self, token_idx: usize) -> bool {
        self.kept[token_idx]
    }
    /// Positions of the tokens that stay, ascending.
    pub fn kept(&self) -> impl Iterator<Item = u32> + '_ {
        self.kept.iter().enumerate().filter(|(_, kept)| **kept).map(|(token_idx, _)| token_idx as u32)
    }
    pub(super) fn flags(&self) -> &[bool] {
        &self.kept
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
    /// The document's record in a certificate file, ready for [`super::Writer::append`].
    pub fn record(&self) -> &[u8] {
        &self.record
    }
}

/// Claim that a token is nearly a convex combination of tokens that stay.
#[derive(Debug, Clone, Copy)]
pub struct Proposal<'a> {
    /// Token to remove, a position within the document.
    pub token_idx: u32,
    /// Positions of the tokens it rests on, strictly ascending. Empty stands for the origin (clamped scoring only).
    pub support: &'a [u32],
    /// One weight for each support token.
    pub weights: Weights<'a>,
}

/// Buffers to reuse from document to document; holds nothing that outlives one.
#[derive(Debug, Default)]
pub struct ProofScratch {
    values: Vec<f32>,
    terms: Vec<Term>,
    removals: Vec<u8>,
    removed: Vec<bool>,
}

/// Which tokens may be rested on.
#[derive(Clone, Copy)]
enum Stays<'a> {
    /// Those with a flag; the first one if there is none.
    Flagged { proposed_kept: &'a [bool], keeps_first: bool },
    /// All but the one in question.
    Others,
}

/// Checks proposals against one document; knows nothing of records.
pub(super) struct Checker<'a> {
    doc: TokenData<'a>,
    dim: usize,
    num_tokens: usize,
    scoring: Scoring,
    stays: Stays<'a>,
    /// `None` until the first removal asks for it: documents that lose nothing are never converted.
    max_abs: Option<f32>,
    previous: Option<u32>,
}

impl<'a> Checker<'a> {
    /// `doc` is `[proposed_kept.len(), dim]`.
    pub(super) fn new(doc: TokenData<'a>, dim: usize, scoring: Scoring, proposed_kept: &'a [bool]) -> Self {
        let keeps_first = !proposed_kept.contains(&true);
        let num_tokens = proposed_kept.len();
        let stays = Stays::Flagged { proposed_kept, keeps_first };
        Checker { doc, dim, num_tokens, scoring, stays, max_abs: None, previous: None }
    }

    /// Whether `token_idx` stays when `target` goes.
    fn is_kept(&self, token_idx: u32, target: u32) -> bool {
        match self.stays {
            Stays::Flagged { proposed_kept, keeps_first } => {
                proposed_kept[token_idx as usize] || (keeps_first && token_idx == 0)
            }
            Stays::Others => token_idx != target,
        }
    }

    /// The proven bound on the residual of `proposal`, at most `tolerance`.
    pub(super) fn check(
        &mut self,
        proposal: &Proposal<'_>,
        tolerance: f32,
        scratch: &mut ProofScratch,
    ) -> Result<f32, Refusal> {
        let ProofScratch { values, terms, .. } = scratch;
        let &Proposal { token_idx, support, weights } = proposal;
        if tolerance.is_nan() || tolerance < 0.0 {
            return Err(Refusal::InvalidTolerance { tolerance });
        }
        self.check_token(token_idx)?;
        self.check_support(token_idx, support)?;
        self.check_weights(token_idx, support, weights)?;
        let max_abs = self.convert(values)?;
        let values = if let TokenData::F32(own) = self.doc { own } else { values.as_slice() };
        let document = Document::new(self.doc, values, self.dim, max_abs);
        let residual = document.bound(token_idx, support, weights, terms);
        if residual <= tolerance {
            self.previous = Some(token_idx);
            return Ok(residual);
        }
        Err(Refusal::ResidualAboveTolerance { token_idx, residual, tolerance })
    }

    fn check_token(&self, token_idx: u32) -> Result<(), Refusal> {
        if token_idx as usize >= self.num_tokens {
            return Err(Refusal::TokenOutOfRange { token_idx, num_tokens: self.num_tokens });
        }
        match self.previous {
            Some(previous) if previous >= token_idx => Err(Refusal::TokenNotAscending { token_idx, previous }),
            _ if self.is_kept(token_idx, token_idx) => Err(Refusal::TokenKept { token_idx }),
            _ => Ok(()),
        }
    }

    fn check_support(&self, token_idx: u32, support: &[u32]) -> Result<(), Refusal> {
        if support.is_empty() && self.scoring == Scoring::Plain {
            return Err(Refusal::EmptySupport { token_idx });
        }
        let mut last = None;
        for &support_idx in support {
            if support_idx as usize >= self.num_tokens {
                return Err(Refusal::SupportOutOfRange { token_idx, support_idx, num_tokens: self.num_tokens });
            }
            if let Some(previous) = last.filter(|&previous| previous >= support_idx) {
                return Err(Refusal::SupportNotAscending { token_idx, support_idx, previous });
            }
            if support_idx == token_idx {
                return Err(Refusal::SupportOnItself { token_idx });
            }
            if !self.is_kept(support_idx, token_idx) {
                return Err(Refusal::SupportRemoved { token_idx, support_idx });
            }
            last = Some(support_idx);
        }
        Ok(())
    }

    fn check_weights(&self, token_idx: u32, support: &[u32], weights: Weights<'_>) -> Result<(), Refusal> {
        if weights.len() != support.len() {
            let (num_support, num_weights) = (support.len(), weights.len());
            return Err(Refusal::WeightCount { token_idx, num_support, num_weights });
        }
        let (zero_at, order, sum) = match weights {
            Weights::Fixed(weights) => {
                let sum: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
                let one = u64::from(WEIGHT_ONE);
                (weights.iter().position(|&weight| weight == 0), sum.cmp(&one), sum as f64 / one as f64)
            }
            Weights::Exact { denominator, .. } if denominator.is_zero() => {
                return Err(Refusal::ZeroDenominator { token_idx });
            }
            Weights::Exact { numerators, denominator } => {
                // Numerators are no longer: the sum of them all is at most the denominator.
                let (bytes, max) = (denominator.bit_len().div_ceil(8), format::MAX_INTEGER_BYTES);
                if bytes > max {
                    return Err(Refusal::DenominatorTooLong { token_idx, bytes, max });
                }
                let sum = numerators.iter().fold(UBig::ZERO, |sum, numerator| sum + numerator);
                (numerators.iter().position(UBig::is_zero), sum.cmp(denominator), ratio(&sum, denominator))
            }
        };
        if let Some(at) = zero_at {
            return Err(Refusal::ZeroWeight { token_idx, support_idx: support[at] });
        }
        match (self.scoring, order) {
            (_, std::cmp::Ordering::Equal) | (Scoring::Clamped, std::cmp::Ordering::Less) => Ok(()),
            (Scoring::Clamped, std::cmp::Ordering::Greater) => Err(Refusal::SumAboveOne { token_idx, sum }),
            (Scoring::Plain, _) => Err(Refusal::SumNotOne { token_idx, sum }),
        }
    }

    /// Converts the document, once, and finds its largest component.
    fn convert(&mut self, values: &mut Vec<f32>) -> Result<f32, Refusal> {
        if let Some(max_abs) = self.max_abs {
            return Ok(max_abs);
        }
        let found = if let TokenData::F32(own) = self.doc {
            max_abs(own)
        } else {
            values.resize(self.doc.len(), 0.0);
            self.doc.to_f32(values);
            max_abs(values)
        };
        let max_abs =
            found.map_err(|at| Refusal::NonFinite { token_idx: at / self.dim, component_idx: at % self.dim })?;
        self.max_abs = Some(max_abs);
        Ok(max_abs)
    }
}

/// A quotient for an error message.
fn ratio(sum: &UBig, denominator: &UBig) -> f64 {
    // Both are cut to about 64 bits first; f64 alone would overflow on long rationals.
    let shift = denominator.bit_len().saturating_sub(64);
    (sum >> shift).to_f64().value() / (denominator >> shift).to_f64().value()
}

/// Checks claims about single tokens of one document, each as if all the others stay: what an
/// [`Engine::decide`](crate::engine::Engine::decide) answers. Removals that are proven one by one cannot be made
/// together; for that there is [`DocProver`].
pub struct TokenProver<'a> {
    checker: Checker<'a>,
    scratch: &'a mut ProofScratch,
}

impl<'a> TokenProver<'a> {
    /// `doc` is `[num_tokens, dim]`.
    ///
    /// # Errors
    /// [`Error::ZeroDim`], [`Error::PartialToken`], [`Error::DocTooLong`] (of document 0).
    pub fn new(doc: TokenData<'a>, dim: usize, scoring: Scoring, scratch: &'a mut ProofScratch) -> Result<Self, Error> {
        let num_tokens = count_tokens(doc, dim)?;
        let checker = Checker { doc, dim, num_tokens, scoring, stays: Stays::Others, max_abs: None, previous: None };
        Ok(TokenProver { checker, scratch })
    }

    /// Proves `‖x_i − Σ w_j x_j‖ ≤ tolerance` and returns the proven bound, as [`DocProver::remove`] does.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub fn prove(&mut self, proposal: &Proposal<'_>, tolerance: f32) -> Result<f32, Refusal> {
        self.checker.check(proposal, tolerance, self.scratch)
    }
}

/// Proves the removals of one document.
///
/// Tokens that are proposed as kept stay and may be rested on. The others stay too, until [`DocProver::remove`] proves
/// that they may go, and may never be rested on: a removal cannot depend on another one.
///
/// A document is never emptied: if no token is proposed as kept, the first one counts as if it were.
pub struct DocProver<'a> {
    checker: Checker<'a>,
    scratch: &'a mut ProofScratch,
    bound: f32,
}

impl<'a> DocProver<'a> {
    /// `doc` is `[num_tokens, dim]` and `proposed_kept` `[num_tokens]`.
    ///
    /// # Errors
    /// [`Error::ZeroDim`], [`Error::PartialToken`], [`Error::DocTooLong`] (of document 0), [`Error::Mismatch`].
    pub fn new(
        doc: TokenData<'a>,
        dim: usize,
        scoring: Scoring,
        proposed_kept: &'a [bool],
        scratch: &'a mut ProofScratch,
    ) -> Result<Self, Error> {
        let num_tokens = count_tokens(doc, dim)?;
        if proposed_kept.len() != num_tokens {
            let (found, expected) = (proposed_kept.len().to_string(), num_tokens.to_string());
            return Err(Error::Mismatch { what: "number of proposed_kept flags", found, expected });
        }
        scratch.removals.clear();
        scratch.removed.clear();
        scratch.removed.resize(num_tokens, false);
        Ok(DocProver { checker: Checker::new(doc, dim, scoring, proposed_kept), scratch, bound: 0.0 })
    }

    /// Proves `‖x_i − Σ w_j x_j‖ ≤ tolerance` and records the removal of `x_i`. Returns the proven bound, which
    /// is the smallest f32 that holds. Call with ascending tokens.
    ///
    /// `f32::INFINITY` accepts any distance and reports it; 0 accepts exact combinations only.
    ///
    /// # Errors
    /// A [`Refusal`]; the token then stays, and the next call may be for any later token, or for the same one with a
    /// better proposal.
    pub fn remove(&mut self, proposal: &Proposal<'_>, tolerance: f32) -> Result<f32, Refusal> {
        let bound = self.checker.check(proposal, tolerance, self.scratch)?;
        self.scratch.removed[proposal.token_idx as usize] = true;
        format::encode_removal(proposal, self.checker.num_tokens, &mut self.scratch.removals);
        self.bound = self.bound.max(bound);
        Ok(bound)
    }

    /// Keeps whatever was not proven.
    pub fn finish(self) -> ProvenDoc {
        let keep = KeepMask::from_flags(self.scratch.removed.iter().map(|removed| !removed).collect());
        let digest = format::doc_digest(self.checker.doc, self.checker.dim);
        let record = format::encode_record(keep.flags(), self.bound, &digest, &self.scratch.removals);
        ProvenDoc { keep, bound: self.bound, record }
    }
}

/// Tokens of a document `[num_tokens, dim]`.
fn count_tokens(doc: TokenData<'_>, dim: usize) -> Result<usize, Error> {
    if dim == 0 {
        return Err(Error::ZeroDim);
    }
    let len = doc.len();
    if !len.is_multiple_of(dim) {
        return Err(Error::PartialToken { len, dim });
    }
    let (num_tokens, max) = (len / dim, TokenBatch::MAX_DOC_TOKENS);
    if num_tokens as u64 > max {
        return Err(Error::DocTooLong { doc_idx: 0, num_tokens: num_tokens as u64, max });
    }
    Ok(num_tokens)
}
