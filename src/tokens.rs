//! Packed, ragged token vectors, and the only validation of input.
//!
//! A batch of `num_docs` documents is one row-major matrix `[num_tokens, dim]` and `num_docs + 1` offsets into its
//! rows: document `doc_idx` owns tokens `offsets[doc_idx] .. offsets[doc_idx + 1]`. Nothing is copied and nothing is
//! padded. The first offset may be above 0, so a batch can be a slice of a larger store.

use half::{bf16, f16};

use crate::error::Error;

/// Element type of token vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE binary16.
    F16,
    /// The upper half of binary32.
    Bf16,
    /// IEEE binary32.
    F32,
    /// Signed bytes, taken as the integers they are (scales, if any, belong to the caller).
    I8,
}

impl DType {
    /// Bytes of one component.
    pub fn size_bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::Bf16 => 2,
            DType::I8 => 1,
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::F32 => "f32",
            DType::I8 => "i8",
        })
    }
}

/// Borrowed components of packed tokens, row-major `[num_tokens, dim]`.
#[derive(Debug, Clone, Copy)]
pub enum TokenData<'a> {
    /// IEEE binary16.
    F16(&'a [f16]),
    /// The upper half of binary32.
    Bf16(&'a [bf16]),
    /// IEEE binary32.
    F32(&'a [f32]),
    /// Signed bytes as integers.
    I8(&'a [i8]),
}

/// One `match` over the element types, for code that is the same for all of them.
macro_rules! each_dtype {
    ($data:expr, $values:ident => $body:expr) => {
        match $data {
            TokenData::F16($values) => $body,
            TokenData::Bf16($values) => $body,
            TokenData::F32($values) => $body,
            TokenData::I8($values) => $body,
        }
    };
}

impl<'a> TokenData<'a> {
    /// Number of components (not bytes, not tokens).
    pub fn len(&self) -> usize {
        each_dtype!(self, values => values.len())
    }

    /// Whether there are no components.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        match self {
            TokenData::F16(_) => DType::F16,
            TokenData::Bf16(_) => DType::Bf16,
            TokenData::F32(_) => DType::F32,
            TokenData::I8(_) => DType::I8,
        }
    }

    /// The components as bytes, in the order and byte order of memory.
    pub fn as_bytes(&self) -> &'a [u8] {
        match *self {
            TokenData::F16(values) => bytemuck::cast_slice(values),
            TokenData::Bf16(values) => bytemuck::cast_slice(values),
            TokenData::F32(values) => bytemuck::cast_slice(values),
            TokenData::I8(values) => bytemuck::cast_slice(values),
        }
    }

    /// Components `range`, borrowed.
    ///
    /// # Panics
    /// If the range is outside the data, as slicing does.
    pub fn slice(&self, range: std::ops::Range<usize>) -> TokenData<'a> {
        match *self {
            TokenData::F16(values) => TokenData::F16(&values[range]),
            TokenData::Bf16(values) => TokenData::Bf16(&values[range]),
            TokenData::F32(values) => TokenData::F32(&values[range]),
            TokenData::I8(values) => TokenData::I8(&values[range]),
        }
    }

    /// Writes every component, converted without rounding, to `out`.
    ///
    /// # Panics
    /// If `out` has another length.
    pub fn to_f32(&self, out: &mut [f32]) {
        use half::slice::HalfFloatSliceExt;
        assert_eq!(self.len(), out.len(), "one f32 for each component");
        match *self {
            TokenData::F16(values) => crate::simd::widen_f16(values, out),
            TokenData::Bf16(values) => values.convert_to_f32_slice(out),
            TokenData::F32(values) => out.copy_from_slice(values),
            TokenData::I8(values) => {
                for (to, from) in out.iter_mut().zip(values) {
                    *to = f32::from(*from);
                }
            }
        }
    }

    /// First component that is NaN or infinite, with its value.
    fn first_non_finite(&self) -> Option<(usize, f32)> {
        // A branch-free block first: one test of the exponent bits per component, no early exit inside the block.
        fn find<T: Copy>(values: &[T], bad: impl Fn(T) -> bool) -> Option<usize> {
            const BLOCK: usize = 256;
            values.chunks(BLOCK).position(|block| block.iter().fold(false, |any, &v| any | bad(v))).and_then(
                |block_idx| {
                    let start = block_idx * BLOCK;
                    values[start..].iter().position(|&v| bad(v)).map(|at| start + at)
                },
            )
        }
        match *self {
            TokenData::F16(values) => {
                find(values, |v| v.to_bits() & 0x7c00 == 0x7c00).map(|at| (at, values[at].to_f32()))
            }
            TokenData::Bf16(values) => {
                find(values, |v| v.to_bits() & 0x7f80 == 0x7f80).map(|at| (at, values[at].to_f32()))
            }
            TokenData::F32(values) => {
                find(values, |v| v.to_bits() & 0x7f80_0000 == 0x7f80_0000).map(|at| (at, values[at]))
            }
            TokenData::I8(_) => None,
        }
    }
}

/// Borrowed ragged documents over packed tokens. Document `doc_idx` owns rows
/// `offsets[doc_idx] .. offsets[doc_idx + 1]` of one row-major matrix `[num_rows, dim]`.
#[derive(Debug, Clone, Copy)]
pub struct TokenBatch<'a> {
    data: TokenData<'a>,
    offsets: &'a [u64],
    dim: usize,
}

impl<'a> TokenBatch<'a> {
    /// Most tokens in one document; certificates number tokens with 32 bits.
    pub const MAX_DOC_TOKENS: u64 = u32::MAX as u64;

    /// Borrows `data` (`[num_rows, dim]`, row-major) as `offsets.len() - 1` documents.
    ///
    /// Checks the structure only, in time proportional to the number of documents; [`TokenBatch::check_finite`] reads
    /// the components. Rows before the first and after the last offset are allowed and never read.
    ///
    /// # Errors
    /// [`Error::ZeroDim`], [`Error::NoOffsets`], [`Error::PartialToken`], [`Error::DecreasingOffset`],
    /// [`Error::OffsetPastData`], [`Error::SizeOverflow`], [`Error::DocTooLong`].
    pub fn new(data: TokenData<'a>, offsets: &'a [u64], dim: usize) -> Result<Self, Error> {
        if dim == 0 {
            return Err(Error::ZeroDim);
        }
        let len = data.len();
        if !len.is_multiple_of(dim) {
            return Err(Error::PartialToken { len, dim });
        }
        let num_rows = len / dim;
        let [first, .., last] = offsets else {
            return match offsets {
                [] => Err(Error::NoOffsets),
                // One offset: no documents, but the offset must still lie in the data.
                [only] if *only > num_rows as u64 => {
                    Err(Error::OffsetPastData { doc_idx: 0, end: *only, num_tokens: num_rows })
                }
                _ => Ok(TokenBatch { data, offsets, dim }),
            };
        };
        for (doc_idx, pair) in offsets.windows(2).enumerate() {
            let (start, end) = (pair[0], pair[1]);
            if end < start {
                return Err(Error::DecreasingOffset { doc_idx, start, end });
            }
            if end - start > Self::MAX_DOC_TOKENS {
                return Err(Error::DocTooLong { doc_idx, num_tokens: end - start, max: Self::MAX_DOC_TOKENS });
            }
        }
        if usize::try_from(*last).ok().and_then(|n| n.checked_mul(dim)).is_none() {
            return Err(Error::SizeOverflow { num_tokens: last - first, dim });
        }
        if *last > num_rows as u64 {
            let doc_idx = offsets.windows(2).position(|pair| pair[1] > num_rows as u64).unwrap_or(0);
            return Err(Error::OffsetPastData { doc_idx, end: offsets[doc_idx + 1], num_tokens: num_rows });
        }
        Ok(TokenBatch { data, offsets, dim })
    }

    /// Refuses the first NaN or infinity of any document.
    ///
    /// # Errors
    /// [`Error::NonFinite`] with document, token within it, and component.
    pub fn check_finite(&self) -> Result<(), Error> {
        let start = self.row(self.offsets[0]) * self.dim;
        let end = self.row(self.offsets[self.num_docs()]) * self.dim;
        let Some((at, value)) = self.data.slice(start..end).first_non_finite() else {
            return Ok(());
        };
        let row = self.offsets[0] + (at / self.dim) as u64;
        let doc_idx = self.offsets.partition_point(|&offset| offset <= row) - 1;
        let token_idx = (row - self.offsets[doc_idx]) as usize;
        Err(Error::NonFinite { doc_idx, token_idx, component_idx: at % self.dim, value })
    }

    /// Number of documents.
    pub fn num_docs(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Tokens of all documents.
    pub fn num_tokens(&self) -> usize {
        self.row(self.offsets[self.num_docs()] - self.offsets[0])
    }

    /// Components per token.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.data.dtype()
    }

    /// `num_docs + 1` offsets in tokens, as given.
    pub fn offsets(&self) -> &'a [u64] {
        self.offsets
    }

    /// Tokens of one document.
    ///
    /// # Panics
    /// If there is no such document.
    pub fn doc_len(&self, doc_idx: usize) -> usize {
        self.row(self.offsets[doc_idx + 1] - self.offsets[doc_idx])
    }

    /// Components of one document, row-major `[doc_len, dim]`.
    ///
    /// # Panics
    /// If there is no such document.
    pub fn doc(&self, doc_idx: usize) -> TokenData<'a> {
        self.rows(doc_idx..doc_idx + 1)
    }

    /// Components of consecutive documents, row-major.
    pub(crate) fn rows(&self, docs: std::ops::Range<usize>) -> TokenData<'a> {
        let start = self.row(self.offsets[docs.start]) * self.dim;
        let end = self.row(self.offsets[docs.end]) * self.dim;
        self.data.slice(start..end)
    }

    /// Documents `range` as a batch of their own.
    ///
    /// # Panics
    /// If the range is outside the batch.
    pub fn docs(&self, range: std::ops::Range<usize>) -> TokenBatch<'a> {
        TokenBatch { data: self.data, offsets: &self.offsets[range.start..=range.end], dim: self.dim }
    }

    /// A count of rows as `usize`; `new` has checked that the largest fits.
    fn row(&self, tokens: u64) -> usize {
        tokens as usize
    }
}
