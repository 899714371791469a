//! Engines: who computes.

#[doc(hidden)]
pub mod cpu;
