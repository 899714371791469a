//! `manifest.json`: what was done to which input, without times or machine facts, so that equal runs write equal bytes.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::{MANIFEST_FILE, Staging};
use crate::error::{InputError, Problem};

/// First entry of every manifest.
const FORMAT: &str = "maxhull pruned corpus";
/// Counts up when a reader of the old form would misread the new one.
const FORMAT_VERSION: u32 = 1;
/// Longest manifest that is read; real ones take about 1 kB.
const MAX_BYTES: u64 = 1 << 20;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    format: String,
    format_version: u32,
    /// Version of the program that wrote it.
    pub maxhull_version: String,
    /// What was asked for.
    pub options: Options,
    /// The input.
    pub original: Original,
    /// The result.
    pub pruned: Pruned,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// `plain` or `clamped`.
    pub scoring: String,
    /// `hull`, `lp` or `norm`.
    pub strategy: String,
    /// Target of `hull`: `epsilon`, `keep_ratio`, `max_tokens`, `max_bytes` or `lossless`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target: Option<String>,
    /// Its value; the tolerance that a byte budget came to stands in `epsilon`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target_value: Option<serde_json::Number>,
    /// Tolerance that a byte budget came to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub epsilon: Option<f32>,
    /// Share of the spectrum that `lp` keeps.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub theta: Option<f64>,
    /// Smallest norm that `norm` keeps.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub norm_threshold: Option<f32>,
    /// Tokens at the start of each document that always stay.
    pub protect_first: u32,
    /// Tokens at the end of each document that always stay.
    pub protect_last: u32,
}

/// The input, without its path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Original {
    /// Number of documents.
    pub num_docs: u64,
    /// Number of tokens.
    pub num_tokens: u64,
    /// Components per token.
    pub dim: u64,
    /// `f16` or `f32`.
    pub dtype: String,
    /// BLAKE3 of the documents' digests, as in the certificate's footer.
    pub checksum: String,
}

/// The result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pruned {
    /// Tokens that stay.
    pub num_tokens: u64,
    /// Documents that lost at least one token.
    pub num_docs_pruned: u64,
    /// No query token of unit norm loses more than this on any document.
    pub worst_bound: f32,
    /// Mean over the documents.
    pub mean_bound: f64,
    /// Tokens kept because no solver could decide them.
    pub num_undecided: u64,
    /// Bytes of `certificate.bin`.
    pub certificate_bytes: u64,
}

impl Manifest {
    /// Of this version.
    pub fn new(options: Options, original: Original, pruned: Pruned) -> Self {
        Manifest {
            format: FORMAT.to_owned(),
            format_version: FORMAT_VERSION,
            maxhull_version: env!("CARGO_PKG_VERSION").to_owned(),
            options,
            original,
            pruned,
        }
    }

    /// Writes and syncs it.
    pub fn write(&self, staging: &Staging) -> anyhow::Result<()> {
        let write = || -> anyhow::Result<()> {
            let mut file = File::create_new(staging.path(MANIFEST_FILE))?;
            file.write_all(serde_json::to_string_pretty(self)?.as_bytes())?;
            file.write_all(b"\n")?;
            Ok(file.sync_all()?)
        };
        write().with_context(|| format!("{MANIFEST_FILE} could not be written"))
    }

    /// Reads one.
    ///
    /// # Errors
    /// A missing file, or one that this version does not understand.
    pub fn read(path: &Path) -> Result<Self, InputError> {
        let hint = "a pruned corpus is a folder that `maxhull prune` wrote";
        let mut text = Vec::new();
        let file = File::open(path).map_err(|error| Problem::io(error, hint).at(path))?;
        file.take(MAX_BYTES).read_to_end(&mut text).map_err(|error| Problem::io(error, hint).at(path))?;
        parse(&text).map_err(|why| Problem::Other(why).at(path))
    }
}

fn parse(text: &[u8]) -> Result<Manifest, String> {
    let tag = serde_json::from_slice::<Tag>(text).map_err(|error| format!("is not a manifest of maxhull: {error}"))?;
    if tag.format != FORMAT {
        return Err(format!("is not a manifest of maxhull: its format is {:?}", tag.format));
    }
    if tag.format_version != FORMAT_VERSION {
        let version = tag.format_version;
        return Err(format!("has format version {version}, and this program knows {FORMAT_VERSION}; use a newer one"));
    }
    serde_json::from_slice(text).map_err(|error| format!("is damaged: {error}"))
}

/// The entries that say how to read the rest.
#[derive(Deserialize)]
struct Tag {
    format: String,
    format_version: u32,
}

/// Whether a file is a manifest of any version.
pub fn is_ours(path: &Path) -> bool {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut text));
    read.is_ok() && serde_json::from_slice::<Tag>(&text).is_ok_and(|tag| tag.format == FORMAT)
}
