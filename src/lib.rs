//! Prune the token vectors of late-interaction retrieval, with a proof of what any query can lose.

pub mod certificate;
pub mod engine;
mod error;
mod prune;
pub mod reference;
mod scoring;
mod selection;
pub mod strategy;
mod tokens;

pub use error::Error;
pub use prune::{Method, PruneOptions, PruneStats, Pruned, Pruner, Target};
pub use scoring::Scoring;
pub use selection::Budget;
pub use tokens::{DType, TokenBatch, TokenData};

pub use half;
