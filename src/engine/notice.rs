//! What an engine says when it goes on in another way than asked. Nothing is ever lost on the way.

use std::fmt;
use std::sync::Arc;

/// Something that the caller may want to tell a person.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A document went to the CPU.
    DocTooLong {
        /// Its tokens.
        num_tokens: usize,
    },
    /// The device has too little memory for batches of the size at hand; half as much is sent from now on.
    BatchHalved,
    /// The device cannot be used any more: the CPU does the rest.
    FellBack {
        /// What the device said.
        reason: String,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::DocTooLong { num_tokens } => {
                write!(f, "a document of {num_tokens} tokens is too long for the device; the CPU takes it")
            }
            Notice::BatchHalved => write!(f, "the device is out of memory; going on with batches of half the size"),
            Notice::FellBack { reason } => write!(f, "{reason}; the CPU does the rest"),
        }
    }
}

/// Called with every notice, from any thread.
pub type Notify = Arc<dyn Fn(&Notice) + Send + Sync>;
