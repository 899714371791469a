//! Who answers the dominance questions.

pub mod cpu;
mod proposal;

pub use proposal::Proposal;
