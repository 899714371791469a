//! Prune the token vectors of late-interaction retrieval, with a proof of what any query can lose.

pub mod certificate;
mod engine;
mod error;
mod prune;
mod score;
mod scoring;
mod tokens;

pub use error::Error;
pub use prune::{Method, PruneOptions, PruneStats, Pruned, Pruner, Target};
pub use score::{Hit, PairMatch, Scorer, TokenMatch, Tokens, TopK};
pub use scoring::Scoring;
pub use tokens::{DType, TokenBatch, TokenData};

#[doc(hidden)]
pub use engine::cpu::maxsim::Kernel;

pub use half;
