//! A score matrix on disk, filled by blocks of columns.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;

use super::npy::{HEADER_BYTES, header};

/// Writes a `.npy` of f32, `[num_queries, num_docs]`. Nothing is buffered: memory is the caller's block.
#[derive(Debug)]
pub struct ScoresWriter {
    file: File,
    num_docs: usize,
}

impl ScoresWriter {
    /// Creates the file at its final length, sparse.
    pub fn create(path: &Path, num_queries: usize, num_docs: usize) -> std::io::Result<Self> {
        let mut file = File::create_new(path)?;
        let too_large = || std::io::Error::other(format!("{num_queries} x {num_docs} scores are too large for a file"));
        let num_bytes = (num_queries as u64).checked_mul(num_docs as u64).and_then(|scores| scores.checked_mul(4));
        let len = num_bytes.and_then(|bytes| bytes.checked_add(HEADER_BYTES as u64)).ok_or_else(too_large)?;
        file.write_all(&header("<f4", num_queries as u64, Some(num_docs)))?;
        file.set_len(len)?;
        Ok(ScoresWriter { file, num_docs })
    }

    /// Writes the columns of documents `docs`; `scores` is `[num_queries, docs.len()]`, row-major.
    pub fn write(&mut self, docs: &Range<usize>, scores: &[f32]) -> std::io::Result<()> {
        for (query_idx, row) in scores.chunks(docs.len()).enumerate() {
            let at = (query_idx * self.num_docs + docs.start) as u64 * 4;
            self.file.seek(SeekFrom::Start(HEADER_BYTES as u64 + at))?;
            // Little endian as the machine is: others are refused when a corpus is opened.
            self.file.write_all(bytemuck::cast_slice(row))?;
        }
        Ok(())
    }

    /// Syncs.
    pub fn finish(self) -> std::io::Result<()> {
        self.file.sync_all()
    }
}
