//! A corpus on disk as packed tokens and offsets: folder, `.npy` or `.npz`.
//!
//! Tokens are mapped, so resident memory beyond the page cache is 8 bytes a document.

pub mod lengths;
mod map;
pub mod npy;
pub mod npz;

use std::fs::File;
use std::io::{BufReader, Seek};
use std::ops::Range;
use std::path::{Path, PathBuf};

use maxhull::{DType, TokenBatch};

use crate::error::{Error, InputError, Problem, Result};
use map::MappedTokens;

/// File with the tokens in a folder.
pub const TOKENS_FILE: &str = "embeddings.npy";
/// File with the lengths in a folder.
pub const LENGTHS_FILE: &str = "embeddings_lengths.json";

/// File with the tokens of queries in a folder.
pub const QUERIES_FILE: &str = "queries.npy";

/// Token vectors of documents, ready to be borrowed in batches.
#[derive(Debug)]
pub struct Corpus {
    tokens: MappedTokens,
    offsets: Vec<u64>,
    dim: usize,
    dtype: DType,
    tokens_path: PathBuf,
}

impl Corpus {
    /// Opens a folder, a `.npy` with its `_lengths.json` beside it, or an `.npz`.
    ///
    /// # Errors
    /// [`Error::Input`] for whatever is wrong with the files.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_named(path, TOKENS_FILE, "a corpus folder holds embeddings.npy, [num_tokens, dim] of f16 or f32")
    }

    /// The same for queries; in a folder they are `queries.npy` and `queries_lengths.json`.
    ///
    /// # Errors
    /// As [`Corpus::open`].
    pub fn open_queries(path: &Path) -> Result<Self> {
        Self::open_named(path, QUERIES_FILE, "a folder of queries holds queries.npy, [num_tokens, dim] of f16 or f32")
    }

    fn open_named(path: &Path, tokens_file: &str, tokens_hint: &str) -> Result<Self> {
        if cfg!(target_endian = "big") {
            return Err(Error::Device(
                "this machine is big-endian, and little-endian files are mapped as they are".into(),
            ));
        }
        let extension = path.extension().unwrap_or_default();
        match std::fs::metadata(path) {
            Err(error) => {
                let missing = Problem::io(error, "check the path; a corpus is a folder, a .npy or an .npz");
                Err(missing.at(path).into())
            }
            Ok(metadata) if metadata.is_dir() => Self::open_npy(&path.join(tokens_file), tokens_hint),
            Ok(_) if extension == "npy" => Self::open_npy(path, tokens_hint),
            Ok(_) if extension == "npz" => Self::open_npz(path),
            Ok(_) => Err(Problem::UnknownKind.at(path).into()),
        }
    }

    fn open_npy(tokens_path: &Path, tokens_hint: &str) -> Result<Self> {
        let lengths_path = &lengths_beside(tokens_path);
        let mut file = open_file(tokens_path, tokens_hint)?;
        let at_tokens = |problem: Problem| problem.at(tokens_path);
        let header = npy::NpyHeader::read(&mut BufReader::new(&file)).map_err(at_tokens)?;
        let matrix = header.tokens().map_err(at_tokens)?;
        let file_bytes = file.seek(std::io::SeekFrom::End(0)).map_err(|error| at_tokens(error.into()))?;
        header.check_len(matrix.num_bytes, file_bytes.saturating_sub(header.data_start)).map_err(at_tokens)?;

        let lengths_hint = "it holds the list of document lengths, such as [12, 7, 180], and lies beside the tokens";
        let lengths_file = open_file(lengths_path, lengths_hint)?;
        let offsets = lengths::from_json(BufReader::new(lengths_file)).map_err(|problem| problem.at(lengths_path))?;
        check_counts(&offsets, matrix.num_tokens, tokens_path).map_err(|problem| problem.at(lengths_path))?;
        let tokens = MappedTokens::new(&file, header.data_start, matrix.num_bytes, matrix.dtype)
            .map_err(|error| error.context(format!("{}: cannot be mapped", tokens_path.display())))?;
        Ok(Self::from_parts(tokens, offsets, &matrix, tokens_path))
    }

    fn open_npz(path: &Path) -> Result<Self> {
        let file = open_file(path, "check the path")?;
        let (tokens, layout) = npz::map_tokens(file)
            .map_err(|error| error.context(format!("{}: cannot be mapped", path.display())))?
            .map_err(|problem| problem.at(path))?;
        check_counts(&layout.offsets, layout.matrix.num_tokens, path).map_err(|problem| problem.at(path))?;
        Ok(Self::from_parts(tokens, layout.offsets, &layout.matrix, path))
    }

    fn from_parts(tokens: MappedTokens, offsets: Vec<u64>, matrix: &npy::TokenMatrix, path: &Path) -> Self {
        Corpus { tokens, offsets, dim: matrix.dim, dtype: matrix.dtype, tokens_path: path.to_owned() }
    }

    /// Number of documents, at least 1.
    pub fn num_docs(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Number of tokens, at least 1.
    pub fn num_tokens(&self) -> u64 {
        self.offsets[self.num_docs()]
    }

    /// Components per token, at least 1.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Element type, f16 or f32.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of one token.
    pub fn token_bytes(&self) -> u64 {
        (self.dim * self.dtype.size_bytes()) as u64
    }

    /// The file with the tokens, for messages.
    pub fn tokens_path(&self) -> &Path {
        &self.tokens_path
    }

    /// Offsets of all documents, in tokens: `num_docs + 1`.
    pub fn offsets(&self) -> &[u64] {
        &self.offsets
    }

    /// Tokens of documents `docs`.
    pub fn num_tokens_of(&self, docs: &Range<usize>) -> usize {
        (self.offsets[docs.end] - self.offsets[docs.start]) as usize
    }

    /// Borrows documents `docs`.
    ///
    /// # Errors
    /// None for a corpus that was opened; the library's checks run again.
    pub fn batch(&self, docs: Range<usize>) -> Result<TokenBatch<'_>> {
        let batch = TokenBatch::new(self.tokens.values(), &self.offsets[docs.start..=docs.end], self.dim);
        batch.map_err(|error| self.token_problem(error, docs.start).into())
    }

    /// Waits until the tokens of documents `docs` are in memory.
    pub fn fault_in(&self, docs: &Range<usize>) {
        let start = self.offsets[docs.start] * self.token_bytes();
        self.tokens.fault_in(start as usize, self.num_tokens_of(docs) * self.token_bytes() as usize);
    }

    /// Lets go of the memory of documents `docs`, so that a walk from front to back over a corpus larger than memory
    /// stays small. They can still be read, from the page cache or the file.
    pub fn release(&self, docs: &Range<usize>) {
        let start = self.offsets[docs.start] * self.token_bytes();
        self.tokens.release(start as usize, self.num_tokens_of(docs) * self.token_bytes() as usize);
    }

    /// Consecutive documents of about `batch_tokens` tokens; a longer document is a batch of its own.
    pub fn batches(&self, batch_tokens: usize) -> impl Iterator<Item = Range<usize>> + Send + '_ {
        let mut start = 0;
        std::iter::from_fn(move || {
            let first_token = self.offsets.get(start..self.num_docs())?.first()?;
            let limit = first_token + batch_tokens as u64;
            // Empty documents cost memory too, so their number is bounded by the same figure.
            let most = self.offsets.len().min(start + 1 + batch_tokens.max(1));
            let fitting = self.offsets[start + 1..most].partition_point(|&end| end <= limit);
            let docs = start..start + fitting.max(1);
            start = docs.end;
            Some(docs)
        })
    }

    /// An error of the library in a batch that starts at document `first_doc`, in the numbers of the whole corpus.
    pub fn token_problem(&self, error: maxhull::Error, first_doc: usize) -> InputError {
        let error = match error {
            maxhull::Error::NonFinite { doc_idx, token_idx, component_idx, value } => {
                maxhull::Error::NonFinite { doc_idx: doc_idx + first_doc, token_idx, component_idx, value }
            }
            other => other,
        };
        Problem::Tokens(error).at(&self.tokens_path)
    }
}

/// `tokens.npy` → `tokens_lengths.json`.
pub fn lengths_beside(tokens: &Path) -> PathBuf {
    let mut name = tokens.file_stem().unwrap_or_default().to_owned();
    name.push("_lengths.json");
    tokens.with_file_name(name)
}

fn open_file(path: &Path, hint: &str) -> std::result::Result<File, InputError> {
    let file = File::open(path).map_err(|error| Problem::io(error, hint).at(path))?;
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(file),
        Ok(_) => Err(Problem::Other("is not a regular file, and only those can be mapped".into()).at(path)),
        Err(error) => Err(Problem::Unreadable(error).at(path)),
    }
}

fn check_counts(offsets: &[u64], num_tokens: u64, tokens_path: &Path) -> std::result::Result<(), Problem> {
    let num_docs = offsets.len().saturating_sub(1);
    let sum = offsets.last().copied().unwrap_or(0);
    if num_docs == 0 {
        return Err(Problem::NoDocuments);
    }
    if sum != num_tokens {
        return Err(Problem::LengthsSum { num_docs, sum, tokens: tokens_path.to_owned(), num_tokens });
    }
    if sum == 0 {
        return Err(Problem::NoTokens { num_docs });
    }
    Ok(())
}
