//! Token data as the system's page cache holds it: mapped, never read whole.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use maxhull::{DType, TokenData};
use memmap2::{Advice, Mmap, MmapOptions, UncheckedAdvice};

/// Read-only values of a file, f16 or f32 and aligned.
#[derive(Debug)]
pub struct MappedTokens {
    map: Mmap,
    dtype: DType,
}

impl MappedTokens {
    /// Maps `num_bytes` at `start` of `file`. Data that is not aligned to its type is copied once to an unnamed
    /// temporary file.
    pub fn new(file: &File, start: u64, num_bytes: u64, dtype: DType) -> anyhow::Result<Self> {
        if start.is_multiple_of(dtype.size_bytes() as u64) {
            return Ok(MappedTokens { map: map(file, start, num_bytes)?, dtype });
        }
        let mut file = file;
        file.seek(SeekFrom::Start(start))?;
        Ok(Self::unpack(file.take(num_bytes), num_bytes, dtype)?.0)
    }

    /// Copies at most `num_bytes` to an unnamed temporary file and maps that; also gives the bytes that were there.
    ///
    /// The file lies in the system's folder for temporary files (`TMPDIR`) and is gone when the process ends.
    pub fn unpack(reader: impl Read, num_bytes: u64, dtype: DType) -> anyhow::Result<(Self, u64)> {
        let mut file = tempfile::tempfile()?;
        let copied = std::io::copy(&mut reader.take(num_bytes), &mut file)?;
        file.flush()?;
        Ok((MappedTokens { map: map(&file, 0, copied)?, dtype }, copied))
    }

    /// All values.
    pub fn values(&self) -> TokenData<'_> {
        // NOTE: cannot panic: `new` maps whole values at aligned positions, and a page is aligned to every type.
        match self.dtype {
            DType::F16 => TokenData::F16(bytemuck::cast_slice(&self.map)),
            _ => TokenData::F32(bytemuck::cast_slice(&self.map)),
        }
    }

    /// Asks for bytes `start .. start + len` and waits until they are in memory, by reading one byte of each page. Several
    /// threads read where there are many cores: mapping pages that are in memory already takes one thread a second for
    /// every 5 to 10 GB, which a GPU does not wait for.
    pub fn fault_in(&self, start: usize, len: usize) {
        const PART_BYTES: usize = 8 << 20;
        // Advice only; a system that does not know it reads the pages below all the same.
        let _ = self.map.advise_range(Advice::WillNeed, start, len);
        let num_cores = std::thread::available_parallelism().map_or(1, usize::from);
        let num_parts = (num_cores / 4).min(len / PART_BYTES).max(1);
        let part_bytes = len.div_ceil(num_parts).max(1);
        let mut parts = self.map[start..start + len].chunks(part_bytes);
        let first = parts.next().unwrap_or_default();
        std::thread::scope(|scope| {
            for part in parts {
                // A system short of threads has this one read it all.
                if std::thread::Builder::new().spawn_scoped(scope, || touch(part)).is_err() {
                    touch(part);
                }
            }
            touch(first);
        });
    }

    /// Takes the pages of bytes `start .. start + len` out of this process's memory. For walks from front to back:
    /// pages shortly before `start` go too.
    pub fn release(&self, start: usize, len: usize) {
        // A system that maps neighbours of the page that is read may have brought pages back that were released.
        const NEIGHBOURS: usize = 1 << 20;
        if len == 0 {
            return;
        }
        let (start, end) = (start.saturating_sub(NEIGHBOURS), start + len);
        // SAFETY: the mapping is shared, read-only and of a file (an anonymous one is empty, and returned above), so a
        // page that is dropped comes back with the same bytes when it is next read, whoever borrows it: nothing is
        // freed or zeroed, as would happen to private anonymous memory. Failing, it only stays in memory.
        let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start) };
    }
}

/// Reads a byte of each page.
fn touch(bytes: &[u8]) {
    const PAGE: usize = 4096;
    let sum = bytes.iter().step_by(PAGE).fold(0, |sum: u8, &byte| sum.wrapping_add(byte));
    std::hint::black_box(sum);
}

/// Maps part of a file.
fn map(file: &File, start: u64, num_bytes: u64) -> anyhow::Result<Mmap> {
    if num_bytes == 0 {
        return Ok(MmapOptions::new().len(0).map_anon()?.make_read_only()?);
    }
    let len = usize::try_from(num_bytes)?;
    // SAFETY: the mapping is private to this process, read-only, and its length was compared with the file's. What no
    // process can rule out is another one changing the file meanwhile: shortening it ends this process with SIGBUS, and
    // overwriting it changes values under a `&[f16]` of plain numbers, of which every bit pattern is valid. A
    // pruning of a file that changes is worth nothing either way; `verify` finds it by the checksums.
    let map = unsafe { MmapOptions::new().offset(start).len(len).map(file)? };
    // Advice only.
    let _ = map.advise(Advice::Sequential);
    Ok(map)
}
