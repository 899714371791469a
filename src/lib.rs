//! Prune the token vectors of late-interaction retrieval, with a proof of what any query can lose.

pub mod certificate;
pub mod engine;
mod error;
mod prune;
pub mod reference;
mod score;
mod scoring;
mod selection;
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
