//! The library's integration tests, one binary.

#[path = "main/exact.rs"]
mod exact;
