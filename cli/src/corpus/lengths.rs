//! Document lengths: a JSON list, or an integer array of an `.npz`. Both end as `num_docs + 1` offsets from 0.

use std::io::Read;

use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};

use super::npy::NpyHeader;
use crate::error::Problem;

/// Offsets under construction. Memory: 8 bytes a document.
#[derive(Debug)]
struct Offsets(Vec<u64>);

impl Offsets {
    fn new() -> Self {
        Offsets(vec![0])
    }

    fn push_len(&mut self, len: u64) -> Result<(), Problem> {
        let doc_idx = self.0.len() - 1;
        if len > maxhull::TokenBatch::MAX_DOC_TOKENS {
            return Err(Problem::BadLength { doc_idx, value: len.to_string() });
        }
        let end = self.0[doc_idx].checked_add(len).ok_or(Problem::LengthsOverflow { doc_idx })?;
        self.0.push(end);
        Ok(())
    }
}

/// Reads a list such as `[12, 7, 180]`, one number at a time.
///
/// # Errors
/// [`Problem::BadLength`] with the entry, [`Problem::Lengths`] with line and column for anything else.
pub fn from_json(reader: impl Read) -> Result<Vec<u64>, Problem> {
    let mut list = LengthList { offsets: Offsets::new(), problem: None };
    let mut json = serde_json::Deserializer::from_reader(reader);
    let read = (&mut list).deserialize(&mut json).and_then(|()| json.end());
    match (list.problem, read) {
        (Some(problem), _) => Err(problem),
        (None, Err(error)) if error.is_io() => Err(Problem::Unreadable(error.into())),
        (None, Err(error)) => Err(Problem::Lengths(error.to_string())),
        (None, Ok(())) => Ok(list.offsets.0),
    }
}

/// The whole list; what is wrong with an entry is kept beside serde's error, which can only carry text.
struct LengthList {
    offsets: Offsets,
    problem: Option<Problem>,
}

impl<'de> DeserializeSeed<'de> for &mut LengthList {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for &mut LengthList {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("a list of document lengths")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(length) = list.next_element::<Length>()? {
            let doc_idx = self.offsets.0.len() - 1;
            let pushed = match length {
                Length::Count(len) => self.offsets.push_len(len),
                Length::Other(value) => Err(Problem::BadLength { doc_idx, value }),
            };
            if let Err(problem) = pushed {
                self.problem = Some(problem);
                return Err(A::Error::custom("bad length"));
            }
        }
        Ok(())
    }
}

/// One entry: a count, or the text of what stands there instead.
enum Length {
    Count(u64),
    Other(String),
}

impl<'de> serde::Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entry;
        impl Visitor<'_> for Entry {
            type Value = Length;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a document length")
            }
            fn visit_u64<E>(self, value: u64) -> Result<Length, E> {
                Ok(Length::Count(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Length, E> {
                Ok(Length::Other(value.to_string()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Length, E> {
                Ok(Length::Other(value.to_string()))
            }
            fn visit_unit<E>(self) -> Result<Length, E> {
                Ok(Length::Other("null".to_owned()))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Length, E> {
                Ok(Length::Other(value.to_string()))
            }
        }
        deserializer.deserialize_any(Entry)
    }
}

/// Whether an integer array holds lengths or offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `[num_docs]`
    Lengths,
    /// `[num_docs + 1]`, starting at 0.
    Offsets,
}

/// Reads a whole `.npy` of 32- or 64-bit integers.
///
/// # Errors
/// What is wrong with the header, the length of the data or an entry.
pub fn from_npy(mut reader: impl Read, kind: Kind) -> Result<Vec<u64>, Problem> {
    let header = NpyHeader::read(&mut reader)?;
    let read_one: fn(&[u8]) -> i128 = match header.descr.as_str() {
        "<i4" => |bytes| i128::from(i32::from_le_bytes(array(bytes))),
        "<u4" => |bytes| i128::from(u32::from_le_bytes(array(bytes))),
        "<i8" => |bytes| i128::from(i64::from_le_bytes(array(bytes))),
        "<u8" => |bytes| i128::from(u64::from_le_bytes(array(bytes))),
        _ => return Err(header.wrong_dtype("lengths and offsets", "<i4, <u4, <i8 or <u8", "<i8")),
    };
    let &[num_entries] = header.shape.as_slice() else {
        return Err(Problem::NotAVector { shape: header.shape });
    };
    let size = if header.descr.ends_with('4') { 4 } else { 8 };
    let expected = num_entries.checked_mul(size).ok_or_else(|| Problem::HugeShape { shape: header.shape.clone() })?;
    let mut entries = Entries { kind, offsets: Offsets::new(), num_read: 0 };
    // NOTE: the loop ends with the data, never with the declared count, so a huge declared shape allocates nothing.
    let mut block = vec![0; 64 * 1024];
    let mut found = 0;
    loop {
        let len = super::npy::read_up_to(&mut reader, &mut block)?;
        found += len as u64;
        if len < block.len() || found > expected {
            header.check_len(expected, found)?;
        }
        block[..len].chunks_exact(size as usize).try_for_each(|bytes| entries.push(read_one(bytes)))?;
        if len < block.len() {
            break;
        }
    }
    Ok(entries.offsets.0)
}

/// `bytes` has length `N`: the callers above cut it so.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}

struct Entries {
    kind: Kind,
    offsets: Offsets,
    num_read: usize,
}

impl Entries {
    fn push(&mut self, value: i128) -> Result<(), Problem> {
        let entry_idx = self.num_read;
        self.num_read += 1;
        match self.kind {
            Kind::Lengths => {
                let bad = || Problem::BadLength { doc_idx: entry_idx, value: value.to_string() };
                self.offsets.push_len(u64::try_from(value).map_err(|_| bad())?)
            }
            Kind::Offsets if entry_idx == 0 => match value {
                0 => Ok(()),
                first => Err(Problem::FirstOffset { first: first.to_string() }),
            },
            Kind::Offsets => {
                let doc_idx = entry_idx - 1;
                let start = self.offsets.0[doc_idx];
                let decreasing = || Problem::DecreasingOffset { doc_idx, start, end: value.to_string() };
                let end = u64::try_from(value).map_err(|_| decreasing())?;
                let len = end.checked_sub(start).ok_or_else(decreasing)?;
                self.offsets.push_len(len)
            }
        }
    }
}
