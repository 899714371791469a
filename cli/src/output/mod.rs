//! What a command leaves on disk, whole or not at all.

mod array;
pub mod manifest;
pub mod npy;
mod pruned;
mod scores;
mod staged_file;
mod staging;

pub use array::ArrayReader;
pub use pruned::{PrunedWriter, Written};
pub use scores::ScoresWriter;
pub use staged_file::StagedFile;
pub use staging::Staging;

/// Positions of the kept tokens within their documents.
pub const KEPT_FILE: &str = "kept.npy";
/// The proven bound of each document.
pub const BOUNDS_FILE: &str = "bounds.npy";
/// The proofs.
pub const CERTIFICATE_FILE: &str = "certificate.bin";
/// Options, counts and checksum.
pub const MANIFEST_FILE: &str = "manifest.json";

/// Every file of a pruned corpus; a folder that holds anything else is never replaced.
pub const FILES: [&str; 6] =
    [crate::corpus::TOKENS_FILE, crate::corpus::LENGTHS_FILE, KEPT_FILE, BOUNDS_FILE, CERTIFICATE_FILE, MANIFEST_FILE];
