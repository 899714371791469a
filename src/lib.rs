//! Prune the token vectors of late-interaction retrieval, with a proof of what any query can lose.
//!
//! A document is a set of token vectors `X`; a query token `q` scores it by `max_{x in X} q.x`, the support function of
//! the convex hull of `X`. If every removed token lies within `ε` of the hull of the kept ones, no query token of norm 1
//! loses more than `ε`, and the largest such distance is exactly the worst loss there is.
//!
//! The walk, in the order of the modules:
//!
//! 1. [`TokenBatch`] borrows packed tokens of any number of documents and checks their structure.
//! 2. An [`engine::Engine`] proposes for each document which tokens to keep (farthest first, down to a [`Target`]) and
//!    on which kept tokens, with which weights, every other one rests; [`strategy`] holds other ways to choose.
//! 3. The [`certificate`] proves each of these claims from the original tokens, in exact or rigorously rounded
//!    arithmetic. Only what is proven is removed.
//! 4. [`Pruner::prune`] does all of it; [`certificate::Writer`] and [`certificate::verify()`] put the proofs on disk and
//!    check them again.
//!
//! Engines run on the CPU ([`engine::CpuEngine`]) or on a [`device`] ([`engine::GpuEngine`], with the features `wgpu` and
//! `cuda`): [`plan`] cuts documents into batches, [`kernel`] says what host and kernels agree on. Scoring
//! ([`Scorer`]) is a walk of its own.
//!
//! [`mod@reference`] states the definitions in plain loops.

#[doc(hidden)]
pub mod bench;
pub mod certificate;
pub mod device;
pub mod engine;
mod error;
pub mod kernel;
pub mod plan;
mod prune;
pub mod reference;
mod score;
mod scoring;
mod selection;
mod simd;
pub mod strategy;
mod tokens;

#[doc(hidden)]
pub use engine::cpu::maxsim::Kernel;
pub use error::Error;
pub use prune::{Method, PruneOptions, PruneStats, Pruned, Pruner, Target};
pub use score::{Hit, PairMatch, Scorer, TokenMatch, Tokens, TopK};
pub use scoring::Scoring;
pub use selection::Budget;
pub use tokens::{DType, TokenBatch, TokenData};

pub use half;

/// The README's example is compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
