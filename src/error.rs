//! One error type for the library; every variant carries the numbers that a person needs to act.

use crate::certificate::CertificateError;
use crate::device::DeviceError;

/// What can go wrong on input that a caller controls.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// `dim` is 0.
    #[error("dim is 0: a token needs at least one component")]
    ZeroDim,
    /// The offsets slice is empty; `n` documents need `n + 1` offsets.
    #[error("no offsets: n documents need n + 1 of them, so at least one")]
    NoOffsets,
    /// The data does not hold a whole number of tokens.
    #[error("{len} values are not a whole number of tokens of dim {dim}")]
    PartialToken {
        /// Number of values in the data.
        len: usize,
        /// Components per token.
        dim: usize,
    },
    /// An offset is smaller than the one before it.
    #[error("document {doc_idx} starts at token {start} and ends at {end}: offsets must not decrease")]
    DecreasingOffset {
        /// Document whose end lies before its start.
        doc_idx: usize,
        /// Its first token.
        start: u64,
        /// One past its last token.
        end: u64,
    },
    /// The offsets name tokens past the end of the data.
    #[error("document {doc_idx} ends at token {end}, past the {num_tokens} tokens of the data")]
    OffsetPastData {
        /// First document that reaches past the data.
        doc_idx: usize,
        /// One past its last token.
        end: u64,
        /// Tokens in the data.
        num_tokens: usize,
    },
    /// A product of counts does not fit the address space.
    #[error("{num_tokens} tokens of dim {dim} overflow the address space")]
    SizeOverflow {
        /// Number of tokens.
        num_tokens: u64,
        /// Components per token.
        dim: usize,
    },
    /// A component is NaN or infinite.
    #[error("document {doc_idx}, token {token_idx}, component {component_idx} is {value}: tokens must be finite")]
    NonFinite {
        /// Document.
        doc_idx: usize,
        /// Token within the document.
        token_idx: usize,
        /// Component within the token.
        component_idx: usize,
        /// The value found.
        value: f32,
    },
    /// A document has more tokens than the certificate format can number.
    #[error("document {doc_idx} has {num_tokens} tokens, more than the {max} that are supported")]
    DocTooLong {
        /// Document.
        doc_idx: usize,
        /// Its tokens.
        num_tokens: u64,
        /// Most tokens a document may have.
        max: u64,
    },
    /// A document without tokens has no maximum.
    #[error("document {doc_idx} has no tokens: plain scoring needs a score for empty documents")]
    EmptyDoc {
        /// Document.
        doc_idx: usize,
    },
    /// An option is outside its range.
    #[error("{name} is {value}: {expected}")]
    InvalidOption {
        /// Name of the option.
        name: &'static str,
        /// The value given.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// Two inputs that belong together differ in a count or a type.
    #[error("{what} is {found}, expected {expected}")]
    Mismatch {
        /// What differs.
        what: &'static str,
        /// Value found.
        found: String,
        /// Value expected.
        expected: String,
    },
    /// A certificate does not prove what it claims.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// A device that was asked for by name does not open.
    #[error("device {device}: {problem}")]
    Device {
        /// As it was asked for.
        device: String,
        /// What went wrong.
        problem: DeviceError,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
}
