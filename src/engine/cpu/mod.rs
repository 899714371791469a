//! The CPU engine.

pub mod exact;
pub mod rational;
mod witness;
