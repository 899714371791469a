//! The library's integration tests, one binary.

#[path = "main/score/mod.rs"]
mod score;
