//! Document rows as words.

use half::{bf16, f16};

use super::panels::{AlignedWords, Encoding};
use crate::TokenData;

/// Rows that a kernel can read: a borrowed part of the corpus, or the scratch of a [`RowLoader`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// `num_rows * row_bytes` bytes.
    pub bytes: &'a [u8],
    /// Bytes of a row.
    pub row_bytes: usize,
}

/// The conversions that an instruction set is good at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Convert {
    /// f16 to f32.
    pub f16: unsafe fn(&[f16], &mut [f32]),
    /// bf16 to f32.
    pub bf16: unsafe fn(&[bf16], &mut [f32]),
    /// i8 to u8 with an offset of 128.
    pub offset_i8: unsafe fn(&[i8], &mut [u8]),
}

/// Brings rows into the encoding of a kernel.
#[derive(Debug)]
pub(crate) struct RowLoader {
    encoding: Encoding,
    dim: usize,
    convert: Convert,
    /// Aligned, or every second store of a conversion would touch two cache lines.
    scratch: AlignedWords,
    /// Words in use.
    len: usize,
}

impl RowLoader {
    /// # Safety
    /// The CPU must have the instructions of `convert`.
    pub(crate) unsafe fn new(encoding: Encoding, dim: usize, convert: Convert) -> Self {
        RowLoader { encoding, dim, convert, scratch: AlignedWords::new(0), len: 0 }
    }

    /// Whether rows of this type are read where they lie.
    pub(crate) fn is_direct(&self, data: TokenData<'_>) -> bool {
        match (self.encoding, data) {
            (Encoding::F32, TokenData::F32(_)) => true,
            (Encoding::Bf16x2, TokenData::Bf16(_)) => self.dim.is_multiple_of(2),
            _ => false,
        }
    }

    /// `data` (`[num_rows, dim]`) as words. `scales` (one for each row), if given, multiply the components in
    /// [`Encoding::F32`]; in integer encodings they belong to the kernel.
    pub(crate) fn load<'a>(&'a mut self, data: TokenData<'a>, scales: Option<&[f32]>) -> Rows<'a> {
        let row_bytes = 4 * self.encoding.num_words(self.dim);
        if self.is_direct(data) {
            return Rows { bytes: data.as_bytes(), row_bytes };
        }
        let num_rows = data.len() / self.dim;
        self.len = num_rows * row_bytes / 4;
        if self.scratch.as_slice().len() < self.len {
            self.scratch = AlignedWords::new(self.len);
        }
        match (self.encoding, data) {
            (Encoding::F32, _) => self.widen(data, scales),
            (Encoding::I8x4, TokenData::I8(values)) => self.offset_bytes(values),
            (Encoding::I16x2, TokenData::I8(values)) => self.pad(values, |value| i16::from(value) as u16),
            (Encoding::Bf16x2, TokenData::Bf16(values)) => self.pad(values, |value| value.to_bits()),
            (Encoding::Bf16x2 | Encoding::I16x2 | Encoding::I8x4, _) => {
                unreachable!("`Arithmetic::choose` pairs packed encodings with their own element type")
            }
        }
        Rows { bytes: bytemuck::cast_slice(&self.scratch.as_slice()[..self.len]), row_bytes }
    }

    /// Every component as f32.
    fn widen(&mut self, data: TokenData<'_>, scales: Option<&[f32]>) {
        let out = bytemuck::cast_slice_mut::<u32, f32>(&mut self.scratch.as_mut_slice()[..self.len]);
        match data {
            // SAFETY: `new`'s caller vouches for the instructions.
            TokenData::F16(values) => unsafe { (self.convert.f16)(values, out) },
            // SAFETY: as above.
            TokenData::Bf16(values) => unsafe { (self.convert.bf16)(values, out) },
            _ => data.to_f32(out),
        }
        for (row, scale) in out.chunks_mut(self.dim).zip(scales.unwrap_or_default()) {
            row.iter_mut().for_each(|value| *value *= scale);
        }
    }

    /// Bytes with an offset of 128, rows padded to whole words.
    fn offset_bytes(&mut self, values: &[i8]) {
        let out = bytemuck::cast_slice_mut::<u32, u8>(&mut self.scratch.as_mut_slice()[..self.len]);
        if self.dim.is_multiple_of(4) {
            // SAFETY: `new`'s caller vouches for the instructions.
            unsafe { (self.convert.offset_i8)(values, out) };
            return;
        }
        // The query's padding is 0, so the padding of a row may hold anything.
        for (row, values) in out.chunks_mut(self.dim.next_multiple_of(4)).zip(values.chunks(self.dim)) {
            for (to, &from) in row.iter_mut().zip(values) {
                *to = from as u8 ^ 0x80;
            }
        }
    }

    /// Half words, rows padded to whole words. An odd row's padding must be 0: `0 * NaN` is NaN.
    fn pad<T: Copy>(&mut self, values: &[T], to_bits: impl Fn(T) -> u16) {
        let out = bytemuck::cast_slice_mut::<u32, u16>(&mut self.scratch.as_mut_slice()[..self.len]);
        for (row, values) in out.chunks_mut(self.dim.next_multiple_of(2)).zip(values.chunks(self.dim)) {
            for (to, &from) in row.iter_mut().zip(values) {
                *to = to_bits(from);
            }
            row[values.len()..].fill(0);
        }
    }
}

/// f16 rows in two buffers: a widening kernel multiplies the rows of one while it widens the next into the other.
#[derive(Debug)]
pub(crate) struct Turns {
    convert: unsafe fn(&[f16], &mut [f32]),
    now: AlignedWords,
    next: AlignedWords,
}

impl Turns {
    /// # Safety
    /// The CPU must have the instructions of `convert`.
    pub(crate) unsafe fn new(convert: Convert) -> Self {
        Turns { convert: convert.f16, now: AlignedWords::new(0), next: AlignedWords::new(0) }
    }

    /// Makes room for `capacity` values at a time and widens the first ones.
    pub(crate) fn start(&mut self, values: &[f16], capacity: usize) {
        for buffer in [&mut self.now, &mut self.next] {
            if buffer.as_slice().len() < capacity {
                *buffer = AlignedWords::new(capacity);
            }
        }
        // SAFETY: `new`'s caller vouches for the instructions.
        unsafe { (self.convert)(values, bytemuck::cast_slice_mut(&mut self.now.as_mut_slice()[..values.len()])) };
    }

    /// The first `len` values of this turn, and the buffer of the next.
    pub(crate) fn split(&mut self, len: usize) -> (&[u8], &mut [u32]) {
        (bytemuck::cast_slice(&self.now.as_slice()[..len]), self.next.as_mut_slice())
    }

    /// Ends a turn: the kernel has widened all of `values` but those from `num_done` on.
    pub(crate) fn swap(&mut self, values: &[f16], num_done: usize) {
        let rest = bytemuck::cast_slice_mut(&mut self.next.as_mut_slice()[num_done..values.len()]);
        // SAFETY: `new`'s caller vouches for the instructions.
        unsafe { (self.convert)(&values[num_done..], rest) };
        std::mem::swap(&mut self.now, &mut self.next);
    }
}

/// f16 to f32 on any machine.
pub(crate) fn widen_f16(from: &[f16], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.to_f32();
    }
}

/// bf16 to f32 on any machine: a shift.
#[inline(always)]
pub(crate) fn widen_bf16(from: &[bf16], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = f32::from_bits(u32::from(from.to_bits()) << 16);
    }
}

/// i8 to u8 with an offset of 128 on any machine.
#[inline(always)]
pub(crate) fn offset_i8(from: &[i8], to: &mut [u8]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = from as u8 ^ 0x80;
    }
}
