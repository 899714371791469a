//! Where the arrays of an `.npz` lie. A stored, aligned array is mapped where it is; anything else is unpacked once.

use std::fs::File;
use std::io::{BufReader, Read, Seek};

use zip::ZipArchive;
use zip::result::ZipError;

use super::lengths::{self, Kind};
use super::map::MappedTokens;
use super::npy::{NpyHeader, TokenMatrix};
use crate::error::Problem;

/// What an `.npz` holds, before any token is read.
#[derive(Debug)]
pub struct Layout {
    /// The token matrix.
    pub matrix: TokenMatrix,
    /// `num_docs + 1` offsets into its rows.
    pub offsets: Vec<u64>,
    /// Byte of the archive at which the values start, if they are stored without compression.
    pub stored_at: Option<u64>,
    /// Header of the token array.
    header: NpyHeader,
}

/// Reads the headers of an archive and its lengths, not its tokens.
///
/// # Errors
/// What is wrong with it.
pub fn read_layout<R: Read + Seek>(mut reader: R) -> Result<(Layout, ZipArchive<R>), Problem> {
    let mut start = [0; 4];
    let is_zip = super::npy::read_up_to(&mut reader, &mut start)? == 4 && start == *b"PK\x03\x04";
    let mut archive = ZipArchive::new(reader).map_err(|error| match error {
        error @ ZipError::InvalidArchive(_) if is_zip => Problem::TruncatedZip(error),
        error => Problem::Zip(error),
    })?;
    let name = |name: &str| archive.index_for_name(&format!("{name}.npy"));
    let (tokens, lengths, offsets) = (name("tokens"), name("lengths"), name("offsets"));
    let missing = |name| {
        let names = archive.file_names().filter_map(|name| name.ok()).take(16);
        let found: Vec<String> = names.map(|name| name.trim_end_matches(".npy").to_owned()).collect();
        Problem::MissingMember { name, found: if found.is_empty() { "nothing".into() } else { found.join(", ") } }
    };
    let tokens = tokens.ok_or_else(|| missing("tokens"))?;
    let (index, member, kind) = match (lengths, offsets) {
        (Some(index), None) => (index, "lengths", Kind::Lengths),
        (None, Some(index)) => (index, "offsets", Kind::Offsets),
        (None, None) => return Err(missing("lengths")),
        (Some(_), Some(_)) => return Err(Problem::OffsetsAndLengths),
    };
    let offsets = in_member(member, lengths::from_npy(BufReader::new(archive.by_index(index)?), kind))?;
    let (header, matrix, stored_at) = in_member("tokens", read_tokens_header(&mut archive, tokens))?;
    Ok((Layout { matrix, offsets, stored_at, header }, archive))
}

fn read_tokens_header<R: Read + Seek>(
    archive: &mut ZipArchive<R>,
    index: usize,
) -> Result<(NpyHeader, TokenMatrix, Option<u64>), Problem> {
    let mut member = archive.by_index(index)?;
    let header = NpyHeader::read(&mut member)?;
    let matrix = header.tokens()?;
    header.check_len(matrix.num_bytes, member.size().saturating_sub(header.data_start))?;
    let stored = member.compression() == zip::CompressionMethod::Stored && !member.encrypted();
    let start = member.data_start().and_then(|start| start.checked_add(header.data_start));
    Ok((header, matrix, if stored { start } else { None }))
}

/// Maps the tokens where they are, or unpacks them.
///
/// # Errors
/// [`Problem`] in the archive as the inner error; the outer one is a failure of the machine.
pub fn map_tokens(file: File) -> anyhow::Result<Result<(MappedTokens, Layout), Problem>> {
    let (layout, mut archive) = match read_layout(BufReader::new(file.try_clone()?)) {
        Ok(read) => read,
        Err(problem) => return Ok(Err(problem)),
    };
    let TokenMatrix { dtype, num_bytes, .. } = layout.matrix;
    if let Some(start) = layout.stored_at {
        let found = file.metadata()?.len().saturating_sub(start);
        // What follows the array in the archive is not its data.
        if let Err(problem) = layout.header.check_len(num_bytes, found.min(num_bytes)) {
            return Ok(in_member("tokens", Err(problem)));
        }
        return Ok(Ok((MappedTokens::new(&file, start, num_bytes, dtype)?, layout)));
    }
    let mut member = match archive.by_name("tokens.npy") {
        Ok(member) => member,
        Err(error) => return Ok(Err(error.into())),
    };
    let mut unpack = || -> anyhow::Result<(MappedTokens, u64)> {
        std::io::copy(&mut (&mut member).take(layout.header.data_start), &mut std::io::sink())?;
        MappedTokens::unpack(&mut member, num_bytes, dtype)
    };
    match unpack() {
        Ok((tokens, copied)) => match layout.header.check_len(num_bytes, copied) {
            Ok(()) => Ok(Ok((tokens, layout))),
            Err(problem) => Ok(in_member("tokens", Err(problem))),
        },
        // A stream that does not unpack is the archive's fault; a full disk is not.
        Err(error) => match error.downcast::<std::io::Error>() {
            Ok(error) if is_damage(&error) => Ok(in_member("tokens", Err(Problem::Zip(ZipError::Io(error))))),
            Ok(error) => Err(anyhow::Error::new(error).context("unpacking to the folder for temporary files")),
            Err(error) => Err(error),
        },
    }
}

fn is_damage(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
    matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof | Other)
}

fn in_member<T>(name: &'static str, result: Result<T, Problem>) -> Result<T, Problem> {
    result.map_err(|problem| Problem::Member { name, problem: Box::new(problem) })
}
