//! The library's integration tests, one binary.

#[path = "main/certificate/mod.rs"]
mod certificate;
