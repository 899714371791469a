//! Who answers the dominance questions.
//!
//! An [`Engine`] proposes: which tokens to keep, and for every other one the kept tokens and weights that come near it.
//! Nothing it says is believed before the [certificate](crate::certificate) has proven it, so engines may round.

pub mod cpu;
pub mod gpu;
mod many;
mod notice;
mod open;
pub(crate) mod proposal;

pub use cpu::CpuEngine;
pub use gpu::GpuEngine;
pub use many::ManyEngines;
pub use notice::{Notice, Notify};
pub use open::{DeviceSpec, DeviceSpecs, OpenDevice};
pub use proposal::Proposal;

use std::ops::Range;

use crate::{Error, Scoring, TokenBatch};

/// When a document's farthest-first order stops.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// Once every token left is within this distance of the hull of those kept.
    Epsilon(f32),
    /// After this share of the tokens, rounded up.
    KeepRatio(f64),
    /// After this many tokens.
    MaxTokens(u32),
    /// Never: order every token, with the certified curve. Slower, and nothing is removed.
    Order,
    /// Where the curve of [`Goal::Order`] first falls to this value: exactly the count that the curve promised.
    Curve(f32),
    /// At the tokens that are always kept: only project the others on their hull.
    Project,
}

/// An engine's proposal for one document.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Selection {
    /// Kept tokens, in the order in which they were chosen.
    pub order: Vec<u32>,
    /// Entry `k - 1`: an upper bound, rounding included, of the distance of any token to the hull of the first `k`.
    /// Never increases; 0 once nothing is left. Infinite before the last token that is always kept: no pruning stops there.
    pub curve: Vec<f32>,
    /// The other tokens, ascending, with what they rest on.
    pub removals: Removals,
    /// Kept because the solvers could not decide them.
    pub num_undecided: u32,
    /// Left to the `f64` solver by the fast path.
    pub num_refined: u32,
}

/// Supports of removed tokens, packed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Removals {
    token_idx: Vec<u32>,
    ends: Vec<u32>,
    support: Vec<u32>,
    weights: Vec<u32>,
}

impl Removals {
    /// Number of removed tokens.
    pub fn len(&self) -> usize {
        self.token_idx.len()
    }

    /// Whether nothing is removed.
    pub fn is_empty(&self) -> bool {
        self.token_idx.is_empty()
    }

    /// Appends a token with its support (ascending) and weights over 2^24.
    pub fn push(&mut self, token_idx: u32, support: impl IntoIterator<Item = (u32, u32)>) {
        self.token_idx.push(token_idx);
        for (support_idx, weight) in support {
            self.support.push(support_idx);
            self.weights.push(weight);
        }
        self.ends.push(self.support.len() as u32);
    }

    /// Each removed token with its support and weights.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &[u32], &[u32])> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        self.token_idx.iter().zip(starts.zip(&self.ends)).map(|(&token_idx, (start, &end))| {
            let range = start as usize..end as usize;
            (token_idx, &self.support[range.clone()], &self.weights[range])
        })
    }
}

/// Whether one token is needed, given all the others.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Within the tolerance of the hull of the others: support and weights over 2^24, to be proven.
    Removable(Proposal),
    /// Farther than the tolerance from it.
    Needed,
    /// No solver can tell; keep it.
    Undecided,
}

/// Takes documents as they are found: index within the batch, and what was found.
pub type Deliver<'a, T = Selection> = dyn FnMut(Vec<(usize, T)>) + 'a;

/// Proposes; see the [module](self).
///
/// Tokens must be finite ([`TokenBatch::check_finite`]).
pub trait Engine: Send + Sync {
    /// What computes, for reports.
    fn name(&self) -> String;

    /// Whether the engine overlaps parts of a call with one another: it then likes to be handed more than the caller's
    /// caches hold.
    fn overlaps(&self) -> bool {
        false
    }

    /// Devices that a batch is shared among.
    fn num_devices(&self) -> usize {
        1
    }

    /// Whether the device is gone for good and the CPU answers in its place.
    fn is_lost(&self) -> bool {
        false
    }

    /// The farthest-first order of the documents `docs` of the batch, down to the goal. `always_kept`, if given, holds
    /// one flag for each token of the batch; such tokens come first in the order. `deliver` is handed every document
    /// once, in any order, as they are found: what comes early can be proven while the rest is computed. What is found
    /// about a document depends on that document alone.
    ///
    /// # Errors
    /// Whatever the device reports.
    fn select_each(
        &self,
        batch: &TokenBatch<'_>,
        docs: Range<usize>,
        scoring: Scoring,
        goal: Goal,
        always_kept: Option<&[bool]>,
        deliver: &mut Deliver<'_>,
    ) -> Result<(), Error>;

    /// As [`Engine::select_each`], all documents in order.
    ///
    /// # Errors
    /// Whatever the device reports.
    fn select(
        &self,
        batch: &TokenBatch<'_>,
        scoring: Scoring,
        goal: Goal,
        always_kept: Option<&[bool]>,
    ) -> Result<Vec<Selection>, Error> {
        let mut selections = vec![Selection::default(); batch.num_docs()];
        self.select_each(batch, 0..batch.num_docs(), scoring, goal, always_kept, &mut |docs| {
            docs.into_iter().for_each(|(doc_idx, selection)| selections[doc_idx] = selection);
        })?;
        Ok(selections)
    }

    /// For every token of the documents `docs` whether it lies within `epsilon` of the hull of all others of its
    /// document; `deliver` as for [`Engine::select_each`]. Removing all removable tokens together breaks the bound: this
    /// is for explaining and measuring, not for pruning.
    ///
    /// # Errors
    /// Whatever the device reports.
    fn decide_each(
        &self,
        batch: &TokenBatch<'_>,
        docs: Range<usize>,
        scoring: Scoring,
        epsilon: f32,
        deliver: &mut Deliver<'_, Vec<Decision>>,
    ) -> Result<(), Error>;

    /// As [`Engine::decide_each`], all documents in order.
    ///
    /// # Errors
    /// Whatever the device reports.
    fn decide(&self, batch: &TokenBatch<'_>, scoring: Scoring, epsilon: f32) -> Result<Vec<Vec<Decision>>, Error> {
        let mut decisions = vec![Vec::new(); batch.num_docs()];
        self.decide_each(batch, 0..batch.num_docs(), scoring, epsilon, &mut |docs| {
            docs.into_iter().for_each(|(doc_idx, found)| decisions[doc_idx] = found);
        })?;
        Ok(decisions)
    }
}
