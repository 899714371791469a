//! The CPU engine.

pub mod exact;
