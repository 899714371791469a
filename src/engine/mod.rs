//! Engines: who computes.

#[doc(hidden)]
pub mod cpu;
mod proposal;

pub use proposal::Proposal;
