//! The library's integration tests, one binary.

#[path = "main/backends.rs"]
mod backends;
#[path = "main/certificate/mod.rs"]
mod certificate;
#[path = "main/common/mod.rs"]
mod common;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[path = "main/compact.rs"]
mod compact;
#[cfg(feature = "cuda")]
#[path = "main/cuda/mod.rs"]
mod cuda;
#[path = "main/engine.rs"]
mod engine;
#[path = "main/exact.rs"]
mod exact;
#[cfg(feature = "wgpu")]
#[path = "main/gpu/mod.rs"]
mod gpu;
#[path = "main/many.rs"]
mod many;
#[path = "main/prune.rs"]
mod prune;
#[path = "main/reference.rs"]
mod reference;
#[path = "main/score/mod.rs"]
mod score;
#[path = "main/strategy.rs"]
mod strategy;
#[path = "main/tokens.rs"]
mod tokens;
