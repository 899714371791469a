//! The library's integration tests, one binary.

#[path = "main/certificate/mod.rs"]
mod certificate;
#[path = "main/exact.rs"]
mod exact;
#[path = "main/reference.rs"]
mod reference;
#[path = "main/strategy.rs"]
mod strategy;
