//! Why a removal or a whole certificate was refused: one variant per reason, with its numbers.

use crate::DType;

/// Why a removal was refused. The token then stays.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// There is no such token.
    #[error("token {token_idx} is not one of the document's {num_tokens}")]
    TokenOutOfRange {
        /// Token to remove.
        token_idx: u32,
        /// Tokens of the document.
        num_tokens: usize,
    },
    /// Removals come in strictly ascending order, each token at most once.
    #[error("token {token_idx} comes after token {previous}: removals must ascend")]
    TokenNotAscending {
        /// Token to remove.
        token_idx: u32,
        /// The removal before it.
        previous: u32,
    },
    /// A token that stays cannot be removed.
    #[error("token {token_idx} was declared as kept")]
    TokenKept {
        /// Token to remove.
        token_idx: u32,
    },
    /// Every support token needs one weight.
    #[error("token {token_idx} rests on {num_support} tokens with {num_weights} weights")]
    WeightCount {
        /// Token to remove.
        token_idx: u32,
        /// Support tokens.
        num_support: usize,
        /// Weights.
        num_weights: usize,
    },
    /// Under plain scoring a convex combination has at least one term.
    #[error("token {token_idx} rests on nothing, which only clamped scoring allows")]
    EmptySupport {
        /// Token to remove.
        token_idx: u32,
    },
    /// A token cannot vouch for itself.
    #[error("token {token_idx} rests on itself")]
    SupportOnItself {
        /// Token to remove.
        token_idx: u32,
    },
    /// A support token does not exist.
    #[error("token {token_idx} rests on token {support_idx}, which is not one of the document's {num_tokens}")]
    SupportOutOfRange {
        /// Token to remove.
        token_idx: u32,
        /// Token it rests on.
        support_idx: u32,
        /// Tokens of the document.
        num_tokens: usize,
    },
    /// Support tokens are listed in strictly ascending order.
    #[error("token {token_idx} rests on token {support_idx} after {previous}: support must ascend")]
    SupportNotAscending {
        /// Token to remove.
        token_idx: u32,
        /// Token it rests on.
        support_idx: u32,
        /// The support token before it.
        previous: u32,
    },
    /// Only kept tokens can vouch for a removed one.
    #[error("token {token_idx} rests on token {support_idx}, which does not stay")]
    SupportRemoved {
        /// Token to remove.
        token_idx: u32,
        /// Token it rests on.
        support_idx: u32,
    },
    /// A weight is 0; leave the token out of the support instead.
    #[error("token {token_idx} rests on token {support_idx} with weight 0")]
    ZeroWeight {
        /// Token to remove.
        token_idx: u32,
        /// Token it rests on.
        support_idx: u32,
    },
    /// The common denominator of exact weights is 0.
    #[error("the weights of token {token_idx} have denominator 0")]
    ZeroDenominator {
        /// Token to remove.
        token_idx: u32,
    },
    /// Exact weights are longer than the certificate format can hold.
    #[error("the denominator of token {token_idx} takes {bytes} bytes, more than the {max} that are supported")]
    DenominatorTooLong {
        /// Token to remove.
        token_idx: u32,
        /// Bytes of the denominator.
        bytes: usize,
        /// Most bytes it may take.
        max: usize,
    },
    /// Weights may not exceed 1 in total.
    #[error("the weights of token {token_idx} sum to {sum}, above 1")]
    SumAboveOne {
        /// Token to remove.
        token_idx: u32,
        /// The sum, rounded.
        sum: f64,
    },
    /// Under plain scoring weights sum to exactly 1.
    #[error("the weights of token {token_idx} sum to {sum}; plain scoring needs exactly 1")]
    SumNotOne {
        /// Token to remove.
        token_idx: u32,
        /// The sum, rounded.
        sum: f64,
    },
    /// The tolerance is NaN or negative.
    #[error("tolerance {tolerance}: expected 0 or more")]
    InvalidTolerance {
        /// Tolerance given.
        tolerance: f32,
    },
    /// A component of the document is NaN or infinite.
    #[error("component {component_idx} of token {token_idx} is not finite")]
    NonFinite {
        /// First such token.
        token_idx: usize,
        /// Its first such component.
        component_idx: usize,
    },
    /// The combination is too far from the token.
    #[error("token {token_idx} is {residual} away from its combination, above the tolerance {tolerance}")]
    ResidualAboveTolerance {
        /// Token to remove.
        token_idx: u32,
        /// Euclidean distance, rounded up to the next f32.
        residual: f32,
        /// Largest distance allowed.
        tolerance: f32,
    },
}

/// Why a certificate was refused.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CertificateError {
    /// Reading or writing failed.
    #[error("certificate: {message}")]
    Io {
        /// Kind of the I/O error.
        kind: std::io::ErrorKind,
        /// Its message.
        message: String,
    },
    /// The file does not start with the magic bytes.
    #[error("not a maxhull certificate (it starts with {found:02x?})")]
    BadMagic {
        /// The first bytes.
        found: [u8; 8],
    },
    /// Written by another version of the format.
    #[error("certificate version {found}, supported is {supported}")]
    UnsupportedVersion {
        /// Version in the file.
        found: u16,
        /// Version this library reads.
        supported: u16,
    },
    /// The scoring byte means nothing.
    #[error("certificate: scoring code {code} is unknown")]
    UnknownScoring {
        /// The byte.
        code: u8,
    },
    /// The element type byte means nothing.
    #[error("certificate: element type code {code} is unknown")]
    UnknownDType {
        /// The byte.
        code: u8,
    },
    /// The header's dim is 0.
    #[error("certificate: dim is 0")]
    ZeroDim,
    /// The file ends early.
    #[error("certificate is truncated: it ends at byte {at} inside the {inside}")]
    Truncated {
        /// Length of what is there.
        at: u64,
        /// Part of the file that is incomplete.
        inside: &'static str,
    },
    /// There is data after the end.
    #[error("certificate: data follows its end at byte {at}")]
    TrailingBytes {
        /// End of the certificate.
        at: u64,
    },
    /// The hash over the whole file differs: it was damaged.
    #[error("certificate is damaged: the hash over its {len} bytes does not match")]
    FileHash {
        /// Bytes hashed.
        len: u64,
    },
    /// A document's record breaks the format.
    #[error("certificate, document {doc_idx}: {what}")]
    Malformed {
        /// Document.
        doc_idx: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// A record removes every token.
    #[error("certificate, document {doc_idx}: all {num_tokens} tokens are removed; one must stay")]
    DocumentEmptied {
        /// Document.
        doc_idx: u64,
        /// Tokens of the document.
        num_tokens: u32,
    },
    /// A total in the footer differs from the records.
    #[error("certificate: the footer claims {claimed} {what}, the records hold {found}")]
    FooterCount {
        /// What is counted.
        what: &'static str,
        /// The footer's number.
        claimed: u64,
        /// The records' number.
        found: u64,
    },
    /// The footer's bound differs from the largest bound of the records.
    #[error("certificate: the footer claims the bound {claimed}, the records reach {found}")]
    FooterBound {
        /// The footer's bound.
        claimed: f32,
        /// Largest bound of a record.
        found: f32,
    },
    /// The footer's digest of all originals differs from the records'.
    #[error("certificate: the footer's digest of the corpus does not match its records")]
    RootDigest,
    /// The corpus has another element type.
    #[error("the certificate is for {certified} tokens, the {corpus} corpus has {found}")]
    DTypeMismatch {
        /// `original` or `kept`.
        corpus: &'static str,
        /// Element type in the certificate.
        certified: DType,
        /// Element type of the corpus.
        found: DType,
    },
    /// The corpus has another dimension.
    #[error("the certificate is for dim {certified}, the {corpus} corpus has {found}")]
    DimMismatch {
        /// `original` or `kept`.
        corpus: &'static str,
        /// Dimension in the certificate.
        certified: u32,
        /// Dimension of the corpus.
        found: usize,
    },
    /// The corpus has another number of documents.
    #[error("the certificate has {certified} documents, the {corpus} corpus {found}")]
    NumDocsMismatch {
        /// `original` or `kept`.
        corpus: &'static str,
        /// Documents in the certificate.
        certified: u64,
        /// Documents of the corpus.
        found: u64,
    },
    /// A document has another number of tokens.
    #[error("document {doc_idx}: the certificate has {certified} {corpus} tokens, the corpus {found}")]
    NumTokensMismatch {
        /// Document.
        doc_idx: u64,
        /// `original` or `kept`.
        corpus: &'static str,
        /// Tokens in the certificate.
        certified: u64,
        /// Tokens of the document.
        found: u64,
    },
    /// The original tokens changed since they were certified.
    #[error("document {doc_idx}: these are not the tokens that were certified")]
    DocumentDigest {
        /// Document.
        doc_idx: u64,
    },
    /// A kept token is not the original's.
    #[error("document {doc_idx}: kept token {kept_idx} differs from original token {token_idx}")]
    KeptTokenDiffers {
        /// Document.
        doc_idx: u64,
        /// Position among the kept tokens.
        kept_idx: u32,
        /// Position in the original.
        token_idx: u32,
    },
    /// A removal does not hold.
    #[error("document {doc_idx}: {refusal}")]
    Removal {
        /// Document.
        doc_idx: u64,
        /// Why.
        refusal: Refusal,
    },
}

impl From<std::io::Error> for CertificateError {
    fn from(error: std::io::Error) -> Self {
        CertificateError::Io { kind: error.kind(), message: error.to_string() }
    }
}
