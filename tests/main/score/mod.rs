//! MaxSim: every rule of `score.rs`, every kernel of this machine against the definition.

pub mod definition;
mod hard;
mod kernels;
mod rules;
