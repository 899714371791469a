//! What a command can end with, and the exit code of each.

use std::path::{Path, PathBuf};

/// Result of a command.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a command did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something outside the user's input failed: disk full, no permission, a bug.
    #[error("{0:#}")]
    Failure(#[from] anyhow::Error),
    /// The command line asks for something that does not make sense or needs `--force`.
    #[error("{0}")]
    Usage(String),
    /// A file given as input is not what it should be.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A device that does not exist here, or memory that cannot be had.
    #[error("{0}")]
    Device(String),
    /// A pruned corpus is not what its certificate says.
    #[error("verification failed: {0}")]
    Verification(String),
    /// Ctrl-C.
    #[error("interrupted, nothing was written")]
    Interrupted,
    /// The reader of standard output is gone: nothing more to say, and nothing wrong.
    #[error("standard output was closed")]
    StdoutClosed,
}

impl Error {
    /// Exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::StdoutClosed => 0,
            Error::Failure(_) => 1,
            Error::Usage(_) => 2,
            Error::Input(_) => 3,
            Error::Device(_) => 4,
            Error::Verification(_) => 5,
            Error::Interrupted => 130,
        }
    }

    /// Writing to standard output failed; a closed pipe is how `| head` ends and no failure.
    pub fn stdout(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Error::StdoutClosed,
            _ => Error::Failure(anyhow::Error::new(error).context("standard output could not be written")),
        }
    }
}

/// A file that is not valid input: which one, what is wrong where, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct InputError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What can be wrong with an input file.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// Not there.
    #[error("no such {what}; {hint}")]
    Missing {
        /// "file" or "file or folder".
        what: &'static str,
        /// What to do.
        hint: String,
    },
    /// There, but the system refuses to read it.
    #[error("cannot be read: {0}")]
    Unreadable(#[from] std::io::Error),
    /// A file name with no known ending.
    #[error(
        "is neither a folder nor a .npy or .npz file; a corpus is a folder with embeddings.npy and embeddings_lengths.json, the .npy itself, or an .npz"
    )]
    UnknownKind,
    /// The file does not start like a `.npy`.
    #[error("is not a .npy file: byte 0 should start the magic string \\x93NUMPY; write it with numpy.save")]
    NotNpy,
    /// A `.npy` of a version that nobody writes.
    #[error("is a .npy of version {major}.{minor}, and 1.0, 2.0 and 3.0 are known; write it again with numpy.save")]
    NpyVersion {
        /// Byte 6.
        major: u8,
        /// Byte 7.
        minor: u8,
    },
    /// The file ends inside its header.
    #[error("ends inside the .npy header, at byte {len}; copy or write the file again")]
    TruncatedHeader {
        /// Bytes that are there.
        len: u64,
    },
    /// The header claims to be longer than any real one.
    #[error(
        "the .npy header claims {len} bytes, more than the {max} that are accepted; write the array again with numpy.save"
    )]
    HugeHeader {
        /// Claimed length.
        len: u64,
        /// Most that is accepted.
        max: u64,
    },
    /// The header is not the dictionary that it should be.
    #[error("the .npy header is damaged: {0}; write the array again with numpy.save")]
    DamagedHeader(String),
    /// Signed or unsigned bytes.
    #[error(
        "dtype is {descr}: quantised bytes mean nothing without their scale, so a loss bound in the units of the tokens cannot be given; dequantise to f16 or f32 first (array.astype('<f2') after applying the scale)"
    )]
    QuantisedDType {
        /// As written in the header.
        descr: String,
    },
    /// Big-endian numbers.
    #[error("dtype is {descr}, big-endian; convert with array.astype('{little}')")]
    BigEndian {
        /// As written in the header.
        descr: String,
        /// The little-endian name of the type.
        little: String,
    },
    /// Any other type.
    #[error("dtype is {descr}, and {role} must be {expected}; convert with array.astype('{suggestion}')")]
    DType {
        /// As written in the header.
        descr: String,
        /// What the array is for.
        role: &'static str,
        /// Types that are accepted.
        expected: &'static str,
        /// One of them.
        suggestion: &'static str,
    },
    /// Column-major order.
    #[error(
        "is in Fortran (column-major) order, where a token is not contiguous; convert with numpy.ascontiguousarray(array)"
    )]
    FortranOrder,
    /// Not a matrix.
    #[error(
        "has shape {shape:?}, where tokens need 2 dimensions; tokens are one matrix [num_tokens, dim] over all documents (pad-free; reshape or concatenate first)"
    )]
    NotAMatrix {
        /// Declared shape.
        shape: Vec<u64>,
    },
    /// Not a vector.
    #[error("has shape {shape:?}, expected one dimension")]
    NotAVector {
        /// Declared shape.
        shape: Vec<u64>,
    },
    /// Tokens without components.
    #[error("dim is 0 (shape {shape:?}); a token needs at least one component")]
    ZeroDim {
        /// Declared shape.
        shape: Vec<u64>,
    },
    /// The product of the shape does not fit 64 bits.
    #[error("declares shape {shape:?}, more bytes than 64 bits can count; the header is damaged")]
    HugeShape {
        /// Declared shape.
        shape: Vec<u64>,
    },
    /// The file ends before the data that its header declares.
    #[error(
        "declares shape {shape:?}, {expected} bytes of data from byte {start}, and holds {found}; the file is truncated, copy or write it again"
    )]
    TruncatedData {
        /// Declared shape.
        shape: Vec<u64>,
        /// Where the data starts.
        start: u64,
        /// Bytes declared.
        expected: u64,
        /// Bytes there.
        found: u64,
    },
    /// The file goes on after the data that its header declares.
    #[error(
        "declares shape {shape:?}, {expected} bytes of data from byte {start}, and holds {found}; more than declared, so header and data do not belong together, write it again"
    )]
    ExcessData {
        /// Declared shape.
        shape: Vec<u64>,
        /// Where the data starts.
        start: u64,
        /// Bytes declared.
        expected: u64,
        /// Bytes there.
        found: u64,
    },
    /// Not JSON, or not a list of lengths.
    #[error("is not a JSON list of document lengths such as [12, 7, 180]: {0}")]
    Lengths(String),
    /// A length that is no count.
    #[error("the length of document {doc_idx} is {value}, and lengths are whole numbers from 0 to 4294967295")]
    BadLength {
        /// Entry, from 0.
        doc_idx: usize,
        /// As found.
        value: String,
    },
    /// No documents.
    #[error("holds no documents; there is nothing to do")]
    NoDocuments,
    /// Documents, but no tokens.
    #[error("all {num_docs} documents are empty; there is nothing to do")]
    NoTokens {
        /// Number of documents.
        num_docs: usize,
    },
    /// The lengths and the tokens do not belong together.
    #[error("the lengths of {num_docs} documents sum to {sum} tokens, and {} holds {num_tokens}; they do not belong together", tokens.display())]
    LengthsSum {
        /// Number of documents.
        num_docs: usize,
        /// Sum of the lengths.
        sum: u64,
        /// The file with the tokens.
        tokens: PathBuf,
        /// Tokens there.
        num_tokens: u64,
    },
    /// The lengths overflow 64 bits.
    #[error("the lengths up to document {doc_idx} sum to more than 64 bits can count")]
    LengthsOverflow {
        /// Entry at which the sum overflows.
        doc_idx: usize,
    },
    /// Offsets that do not start at 0.
    #[error("the first offset is {first}, expected 0")]
    FirstOffset {
        /// As found.
        first: String,
    },
    /// Offsets that go back.
    #[error("document {doc_idx} starts at token {start} and ends at {end}; offsets must not decrease")]
    DecreasingOffset {
        /// Document.
        doc_idx: usize,
        /// Its first token.
        start: u64,
        /// One past its last, as found.
        end: String,
    },
    /// Not a zip archive.
    #[error("is not a readable .npz (zip) file: {0}; write it with numpy.savez")]
    Zip(#[from] zip::result::ZipError),
    /// A zip archive without the table at its end.
    #[error("starts like a zip file and has no end ({0}); the file is truncated, copy or write it again")]
    TruncatedZip(zip::result::ZipError),
    /// An array is missing from an `.npz`.
    #[error("holds no array `{name}` (found: {found}); numpy.savez(path, tokens=…, lengths=…) writes what is expected")]
    MissingMember {
        /// Name without `.npy`.
        name: &'static str,
        /// Names that are there.
        found: String,
    },
    /// Both, and no way to know which is meant.
    #[error("holds both `offsets` and `lengths`; keep one of them")]
    OffsetsAndLengths,
    /// A problem with one array of an `.npz`.
    #[error("array `{name}` {problem}")]
    Member {
        /// Name without `.npy`.
        name: &'static str,
        /// What is wrong with it.
        problem: Box<Problem>,
    },
    /// Refused by the library: NaN, infinity.
    #[error("{0}; encode that document again or drop it")]
    Tokens(maxhull::Error),
    /// A line of a run or of judgements.
    #[error("line {line}: {why}")]
    Line {
        /// From 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
    /// Queries and documents of two models.
    #[error("tokens have dim {docs}, and the queries in {} have dim {queries}; both must come from the same model", queries_path.display())]
    QueryDim {
        /// Components of a document token.
        docs: usize,
        /// Components of a query token.
        queries: usize,
        /// The file with the queries.
        queries_path: PathBuf,
    },
    /// A maximum over nothing.
    #[error(
        "document {doc_idx} (from 0; {num_empty} such of {num_docs}) has no tokens, and plain scoring has no maximum for it; give such documents a score with --empty-doc-score, or use --scoring clamped, where they score 0"
    )]
    EmptyDoc {
        /// The first of them.
        doc_idx: usize,
        /// How many there are.
        num_empty: usize,
        /// All documents.
        num_docs: usize,
    },
    /// Sums of products could leave f32.
    #[error(
        "document {doc_idx} has a component of {doc_component:e} and a query one of {query_component:e}: their products could leave f32; scale the tokens down"
    )]
    ScoreOverflow {
        /// Document.
        doc_idx: usize,
        /// Its largest magnitude.
        doc_component: f32,
        /// The queries' largest magnitude.
        query_component: f32,
    },
    /// Any other file of a pruned corpus that cannot be understood.
    #[error("{0}")]
    Other(String),
}

impl Problem {
    /// Names the file.
    pub fn at(self, path: &Path) -> InputError {
        InputError { path: path.to_owned(), problem: self }
    }

    /// Reading failed: a missing file gets the hint, everything else the system's words.
    pub fn io(error: std::io::Error, hint: &str) -> Self {
        match error.kind() {
            std::io::ErrorKind::NotFound => Problem::Missing { what: "file", hint: hint.to_owned() },
            _ => Problem::Unreadable(error),
        }
    }
}
