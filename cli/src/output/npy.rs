//! `.npy` files whose length is known only at the end.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

/// Bytes before the data: room for every shape, and aligned for every type.
pub(super) const HEADER_BYTES: usize = 128;

/// Writes rows one after the other; the header gets its shape in [`NpyWriter::finish`].
#[derive(Debug)]
pub struct NpyWriter {
    file: BufWriter<File>,
    descr: &'static str,
    /// Columns, or `None` for a vector.
    dim: Option<usize>,
    row_bytes: u64,
    data_bytes: u64,
}

impl NpyWriter {
    /// `descr` as numpy writes it (`<f2`), `value_bytes` its size.
    pub fn create(path: &Path, descr: &'static str, value_bytes: usize, dim: Option<usize>) -> std::io::Result<Self> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create_new(path)?);
        file.write_all(&[0; HEADER_BYTES])?;
        let row_bytes = (dim.unwrap_or(1) * value_bytes) as u64;
        Ok(NpyWriter { file, descr, dim, row_bytes, data_bytes: 0 })
    }

    /// Appends whole rows.
    pub fn write(&mut self, rows: &[u8]) -> std::io::Result<()> {
        self.data_bytes += rows.len() as u64;
        self.file.write_all(rows)
    }

    /// Writes the header, syncs, and gives the number of rows.
    pub fn finish(self) -> std::io::Result<u64> {
        let NpyWriter { file, descr, dim, row_bytes, data_bytes } = self;
        let num_rows = data_bytes / row_bytes;
        let mut file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&header(descr, num_rows, dim))?;
        file.sync_all()?;
        Ok(num_rows)
    }
}

/// Version 1.0, padded with spaces and ended by a newline, as the format asks.
pub(super) fn header(descr: &str, num_rows: u64, dim: Option<usize>) -> Vec<u8> {
    let shape = dim.map_or_else(|| format!("({num_rows},)"), |dim| format!("({num_rows}, {dim})"));
    let text_bytes = HEADER_BYTES - 10;
    let dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((text_bytes as u16).to_le_bytes());
    header.extend(format!("{dict:<width$}\n", width = text_bytes - 1).bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_header_fits_and_reads_back() {
        for (num_rows, dim) in [(u64::MAX, Some(usize::MAX)), (0, None), (17, Some(128))] {
            let header = header("<f4", num_rows, dim);
            assert_eq!(header.len(), HEADER_BYTES);
            let read = crate::corpus::npy::NpyHeader::read(&mut header.as_slice()).unwrap();
            assert_eq!(read.shape, std::iter::once(num_rows).chain(dim.map(|dim| dim as u64)).collect::<Vec<_>>());
            assert_eq!(read.data_start, HEADER_BYTES as u64);
        }
    }
}
