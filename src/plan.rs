//! Offsets and device limits in, batches and tiles out. Pure: no device, no tokens.

use std::ops::Range;

use crate::device::Limits;
use crate::kernel::{Entry, FACE_CAP, PLACE_STRIDE, TILE, Tile, gram_stride};

/// Tokens of a device batch: enough to fill any device, few enough that neighbouring batches overlap.
const BATCH_TOKENS: u64 = 1 << 18;

/// The place of an entry fits a `u32` together with how many there are.
const _: () = assert!(BATCH_TOKENS * FACE_CAP as u64 <= (1 << 32) / PLACE_STRIDE as u64);

/// Bytes of the tokens of a device batch: as many again lie in staging memory until they are on the device.
const BATCH_TOKEN_BYTES: u64 = 256 << 20;

/// Bytes of the Gram matrices of a device batch.
const BATCH_GRAM_BYTES: u64 = 256 << 20;

/// Longest document that a device takes, in tokens: one workgroup has it to itself, and a device that does not answer
/// for seconds is taken away from its user.
const MAX_DOC_TOKENS: u64 = 4096;

/// The same for software devices: Mesa's leaves every loop of an invocation after 65,536 turns in all.
const MAX_SOFTWARE_DOC_TOKENS: u64 = 512;

/// What a device batch may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Tokens.
    pub num_tokens: u64,
    /// Entries of Gram matrices.
    pub gram_len: u64,
    /// Documents.
    pub num_docs: u64,
    /// Tokens of one document.
    pub doc_tokens: u64,
}

impl Capacity {
    /// Of a device, for tokens of `row_bytes` bytes.
    pub fn of(limits: &Limits, row_bytes: u64) -> Self {
        // The largest buffers beside the Gram matrices: tokens, centres, and a face for each token.
        let token_bytes = row_bytes.max(size_of::<Entry>() as u64 * u64::from(FACE_CAP));
        let gram_len = BATCH_GRAM_BYTES.min(limits.max_buffer_bytes) / 4;
        Capacity {
            num_tokens: BATCH_TOKENS.min(BATCH_TOKEN_BYTES.min(limits.max_buffer_bytes) / token_bytes),
            gram_len,
            // A centre has at most 4 times the bytes of a token, and there is one a document.
            num_docs: limits.max_workgroups.min(limits.max_buffer_bytes / (4 * token_bytes)),
            doc_tokens: if limits.is_software { MAX_SOFTWARE_DOC_TOKENS } else { MAX_DOC_TOKENS },
        }
        .checked()
    }

    /// Half of everything: what to try when the memory does not suffice. None once that is pointless.
    pub fn halved(self) -> Option<Self> {
        const SMALLEST_TOKENS: u64 = 4096;
        let Capacity { num_tokens, gram_len, num_docs, doc_tokens } = self;
        let half = Capacity { num_tokens: num_tokens / 2, gram_len: gram_len / 2, num_docs, doc_tokens }.checked();
        (num_tokens > SMALLEST_TOKENS).then_some(half)
    }

    /// No document longer than what a whole batch holds, and no more of them than tokens: those without any have centres
    /// and results too.
    fn checked(self) -> Self {
        // `n * (n + 3)` bounds the padded matrix of `n` tokens.
        let square = (self.gram_len as f64 + 2.25).sqrt() - 1.5;
        Capacity {
            num_docs: self.num_docs.min(self.num_tokens),
            doc_tokens: self.doc_tokens.min(square as u64).min(self.num_tokens),
            ..self
        }
    }

    fn fits(self, load: Load) -> bool {
        load.num_tokens <= self.num_tokens && load.gram_len <= self.gram_len && load.num_docs <= self.num_docs
    }
}

/// What some documents need.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Load {
    num_tokens: u64,
    gram_len: u64,
    num_docs: u64,
}

impl Load {
    fn of(doc_tokens: u64) -> Self {
        let n = doc_tokens as u32;
        Load { num_tokens: doc_tokens, gram_len: doc_tokens * u64::from(gram_stride(n)), num_docs: 1 }
    }

    fn with(self, other: Load) -> Load {
        Load {
            num_tokens: self.num_tokens + other.num_tokens,
            gram_len: self.gram_len + other.gram_len,
            num_docs: self.num_docs + other.num_docs,
        }
    }
}

/// Who computes some consecutive documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The device, in one batch.
    Device(Range<usize>),
    /// The CPU: one document that is too long for the device.
    TooLong(usize),
}

/// Splits documents, given by their `num_docs + 1` offsets, into parts: in order, each document once, packed as full as
/// the capacity allows.
pub fn parts(offsets: &[u64], docs: Range<usize>, capacity: Capacity) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut start = docs.start;
    let mut load = Load::default();
    for doc_idx in docs.clone() {
        let doc_tokens = offsets[doc_idx + 1] - offsets[doc_idx];
        if doc_tokens > capacity.doc_tokens {
            if start < doc_idx {
                parts.push(Part::Device(start..doc_idx));
            }
            parts.push(Part::TooLong(doc_idx));
            (start, load) = (doc_idx + 1, Load::default());
            continue;
        }
        let more = load.with(Load::of(doc_tokens));
        if !capacity.fits(more) && start < doc_idx {
            parts.push(Part::Device(start..doc_idx));
            (start, load) = (doc_idx, Load::of(doc_tokens));
        } else {
            load = more;
        }
    }
    if start < docs.end {
        parts.push(Part::Device(start..docs.end));
    }
    parts
}

/// The tiles of one document's Gram matrix: its upper triangle, diagonal included, each once.
pub fn gram_tiles(doc: u32, num_tokens: u32) -> impl Iterator<Item = Tile> {
    let num_tiles = num_tokens.div_ceil(TILE);
    (0..num_tiles).flat_map(move |row_tile| {
        (row_tile..num_tiles).map(move |column_tile| Tile { doc, row_tile, column_tile, padding: 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CAPACITY: Capacity = Capacity { num_tokens: 1000, gram_len: 20_000, num_docs: 50, doc_tokens: 130 };

    fn offsets(lengths: &[u64]) -> Vec<u64> {
        let ends = lengths.iter().scan(7, |end, len| {
            *end += len;
            Some(*end)
        });
        std::iter::once(7).chain(ends).collect()
    }

    proptest! {
        #[test]
        fn parts_hold_every_document_once_and_fit(lengths in prop::collection::vec(0u64..180, 0..300)) {
            let offsets = offsets(&lengths);
            let mut next = 0;
            for part in parts(&offsets, 0..lengths.len(), CAPACITY) {
                match part {
                    Part::TooLong(doc_idx) => {
                        prop_assert_eq!(doc_idx, next);
                        prop_assert!(lengths[doc_idx] > CAPACITY.doc_tokens);
                        next += 1;
                    }
                    Part::Device(docs) => {
                        prop_assert!(docs.start == next && !docs.is_empty());
                        let load = docs.clone().fold(Load::default(), |load, doc| load.with(Load::of(lengths[doc])));
                        prop_assert!(CAPACITY.fits(load));
                        next = docs.end;
                    }
                }
            }
            prop_assert_eq!(next, lengths.len());
        }
    }

    #[test]
    fn the_longest_document_fits_an_empty_batch() {
        let limits = |max_buffer_bytes| Limits {
            max_buffer_bytes,
            max_workgroups: 1 << 32,
            workgroup_bytes: 16 << 10,
            max_threads: 256,
            subgroup_sizes: None,
            has_f16: false,
            cooperative: None,
            truncates: false,
            is_software: false,
            wide_query_tokens: None,
        };
        for (max_buffer_bytes, row_bytes) in [(1 << 16, 256), (128 << 20, 256), (4 << 30, 256), (4 << 30, 16384)] {
            let mut capacity = Capacity::of(&limits(max_buffer_bytes), row_bytes);
            loop {
                assert!(capacity.num_tokens * row_bytes <= BATCH_TOKEN_BYTES.min(max_buffer_bytes), "{capacity:?}");
                assert!(capacity.doc_tokens >= 1);
                assert!((1..=capacity.num_tokens).contains(&capacity.num_docs), "{capacity:?}");
                assert!(capacity.fits(Load::of(capacity.doc_tokens)), "{capacity:?}");
                let Some(half) = capacity.halved() else { break };
                capacity = half;
            }
        }
    }

    #[test]
    fn tiles_cover_the_upper_triangle_once() {
        for num_tokens in [0, 1, TILE - 1, TILE, TILE + 1, 3 * TILE + 5] {
            let mut tiles: Vec<(u32, u32)> =
                gram_tiles(3, num_tokens).map(|tile| (tile.row_tile, tile.column_tile)).collect();
            let num_tiles = num_tokens.div_ceil(TILE) as usize;
            assert_eq!(tiles.len(), num_tiles * (num_tiles + 1) / 2);
            assert!(tiles.iter().all(|(row, column)| row <= column && *column < num_tiles as u32));
            tiles.sort_unstable();
            tiles.dedup();
            assert_eq!(tiles.len(), num_tiles * (num_tiles + 1) / 2);
        }
    }
}
