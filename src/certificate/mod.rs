//! Untrusted weights in, proven removals out: the only writer of a keep mask.
//!
//! A solver, on whatever device, proposes that token `i` of a document is nearly the combination `Σ w_j x_j` of tokens
//! that stay. [`DocProver`] believes nothing of it: it checks the weights as integers and bounds `‖x_i − Σ w_j x_j‖`
//! rigorously from the original tokens. What it accepts becomes a [`ProvenDoc`]: a keep mask, a bound on what any
//! query can lose, and a record that anyone can check again with [`verify()`] or with a reader of their own.
//!
//! Why that bounds the loss: let every removed `x_i` be within `ε` of a convex combination of kept tokens. For a query
//! token with `‖q‖ ≤ 1`, `q·x_i ≤ Σ w_j (q·x_j) + ε ≤ max_j q·x_j + ε`, so the maximum over the kept tokens is within
//! `ε` of the maximum over all. With clamped scoring the origin is a kept token too, and `Σ w_j ≤ 1` is enough.
//!
//! ```text
//! proposal -> prover -> record -> Writer -> file -> Reader -> verify
//!                |                                              |
//!                +----------- Document::bound (residual) -------+
//! ```

mod error;
mod format;
mod prover;
mod residual;
mod verify;

pub use dashu_int::UBig;

pub use error::{CertificateError, Refusal};
pub use format::{DocRecord, Footer, Header, Reader, Removal, RemovalWeights, Removals, VERSION, Writer};
pub use prover::{DocProver, KeepMask, ProofScratch, Proposal, ProvenDoc, TokenProver};
pub use residual::{WEIGHT_ONE, Weights};
pub use verify::{DocReport, Report, Verifier, verify, verify_doc};
