//! One-dimensional arrays of a pruned corpus, read from front to back.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use crate::corpus::npy::NpyHeader;
use crate::error::{InputError, Problem};

/// A `.npy` of 4-byte values.
#[derive(Debug)]
pub struct ArrayReader {
    file: BufReader<File>,
    path: PathBuf,
    num_left: u64,
}

impl ArrayReader {
    /// Checks header and length; `descr` is the only type accepted.
    ///
    /// # Errors
    /// A missing file, or one that is not such an array.
    pub fn open(path: &Path, descr: &'static str) -> Result<Self, InputError> {
        let hint = "a pruned corpus is a folder that `maxhull prune` wrote";
        let read = || -> Result<Self, Problem> {
            let file = File::open(path).map_err(|error| Problem::io(error, hint))?;
            let file_bytes = file.metadata()?.len();
            let mut file = BufReader::with_capacity(1 << 16, file);
            let header = NpyHeader::read(&mut file)?;
            if header.descr != descr {
                return Err(header.wrong_dtype("this array", descr, descr));
            }
            let &[num_left] = header.shape.as_slice() else {
                return Err(Problem::NotAVector { shape: header.shape });
            };
            let huge = || Problem::HugeShape { shape: header.shape.clone() };
            let expected = num_left.checked_mul(4).ok_or_else(huge)?;
            header.check_len(expected, file_bytes.saturating_sub(header.data_start))?;
            Ok(ArrayReader { file, path: path.to_owned(), num_left })
        };
        read().map_err(|problem| problem.at(path))
    }

    /// Values that were not read yet.
    pub fn num_left(&self) -> u64 {
        self.num_left
    }

    /// The next value, or `None` at the end.
    ///
    /// # Errors
    /// Reading failed.
    pub fn read(&mut self) -> Result<Option<[u8; 4]>, InputError> {
        if self.num_left == 0 {
            return Ok(None);
        }
        let mut value = [0; 4];
        self.file.read_exact(&mut value).map_err(|error| Problem::Unreadable(error).at(&self.path))?;
        self.num_left -= 1;
        Ok(Some(value))
    }
}
