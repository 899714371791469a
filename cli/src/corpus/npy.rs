//! The header of a `.npy` file: where the data starts, what it is, and every way in which it can be wrong.
//!
//! Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>. The dictionary is read with
//! `py_literal`; around it stand the checks that keep a hostile header cheap: its length, its nesting, its product.

use std::io::Read;

use maxhull::DType;
use py_literal::Value;

use crate::error::Problem;

/// Longest header that is read. Headers of plain arrays take 64 to 192 bytes.
const MAX_HEADER_BYTES: u64 = 16 * 1024;
/// Deepest nesting of brackets: a structured dtype needs 4, and the parser recurses.
const MAX_NESTING: usize = 4;

/// What a `.npy` header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NpyHeader {
    /// Element type, as written (`<f2`); a structured type is written out.
    pub descr: String,
    /// Column-major order.
    pub fortran_order: bool,
    /// Declared shape.
    pub shape: Vec<u64>,
    /// Bytes before the data.
    pub data_start: u64,
}

impl NpyHeader {
    /// Reads a header from the start of a `.npy` and leaves the reader at the data.
    ///
    /// # Errors
    /// Whatever is wrong with it; nothing else is read.
    pub fn read(reader: &mut impl Read) -> Result<Self, Problem> {
        let mut start = [0; 8];
        let found = read_up_to(reader, &mut start)?;
        const MAGIC: &[u8] = b"\x93NUMPY";
        if start[..found.min(6)] != MAGIC[..found.min(6)] || found == 0 {
            return Err(Problem::NotNpy);
        }
        if found < 8 {
            return Err(Problem::TruncatedHeader { len: found as u64 });
        }
        let len_bytes = match (start[6], start[7]) {
            (1, 0) => 2,
            (2 | 3, 0) => 4,
            (major, minor) => return Err(Problem::NpyVersion { major, minor }),
        };
        let mut len = [0; 4];
        let found = read_up_to(reader, &mut len[..len_bytes])?;
        if found < len_bytes {
            return Err(Problem::TruncatedHeader { len: (8 + found) as u64 });
        }
        let len = u64::from(u32::from_le_bytes(len));
        if len > MAX_HEADER_BYTES {
            return Err(Problem::HugeHeader { len, max: MAX_HEADER_BYTES });
        }
        let text_start = 8 + len_bytes as u64;
        let mut text = vec![0; len as usize];
        let found = read_up_to(reader, &mut text)? as u64;
        if found < len {
            return Err(Problem::TruncatedHeader { len: text_start + found });
        }
        Self::parse(&text, text_start + len)
    }

    fn parse(text: &[u8], data_start: u64) -> Result<Self, Problem> {
        let damaged = |why: &str| Problem::DamagedHeader(why.to_owned());
        if !text.is_ascii() {
            return Err(damaged("it holds bytes that are not ASCII"));
        }
        let text = String::from_utf8_lossy(text);
        if nesting(&text) > MAX_NESTING {
            return Err(damaged("its brackets nest too deeply"));
        }
        let dict = match text.trim().parse::<Value>() {
            Ok(Value::Dict(dict)) => dict,
            Ok(_) => return Err(damaged("it is not a dictionary")),
            Err(_) => return Err(damaged("it is not a Python dictionary")),
        };
        let get = |key: &str| {
            let mut entries = dict.iter().filter(|(name, _)| matches!(name, Value::String(name) if name == key));
            entries.next().map(|(_, value)| value).ok_or_else(|| damaged(&format!("the key '{key}' is missing")))
        };
        let descr = match get("descr")? {
            Value::String(descr) => descr.clone(),
            structured => structured.to_string(),
        };
        let Value::Boolean(fortran_order) = *get("fortran_order")? else {
            return Err(damaged("'fortran_order' is neither True nor False"));
        };
        let (Value::Tuple(shape) | Value::List(shape)) = get("shape")? else {
            return Err(damaged("'shape' is not a tuple"));
        };
        let count = |value: &Value| {
            axis(value).ok_or_else(|| damaged(&format!("'shape' holds {value}, which is no count below 2^64")))
        };
        let shape = shape.iter().map(count).collect::<Result<Vec<u64>, Problem>>()?;
        Ok(NpyHeader { descr, fortran_order, shape, data_start })
    }

    /// Checks that this is a token matrix that can be pruned, and gives its type, rows and columns.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn tokens(&self) -> Result<TokenMatrix, Problem> {
        let dtype = match self.descr.as_str() {
            "<f2" => DType::F16,
            "<f4" => DType::F32,
            _ => return Err(self.wrong_dtype("tokens", "<f2 or <f4", "<f4")),
        };
        let &[num_tokens, dim] = self.shape.as_slice() else {
            return Err(Problem::NotAMatrix { shape: self.shape.clone() });
        };
        // NOTE: numpy marks a matrix of one column or one row as both orders and writes False; True is always real.
        if self.fortran_order {
            return Err(Problem::FortranOrder);
        }
        if dim == 0 {
            return Err(Problem::ZeroDim { shape: self.shape.clone() });
        }
        let bytes = num_tokens.checked_mul(dim).and_then(|values| values.checked_mul(dtype.size_bytes() as u64));
        let end = bytes.and_then(|bytes| bytes.checked_add(self.data_start));
        match (bytes, end, usize::try_from(dim)) {
            (Some(num_bytes), Some(_), Ok(dim)) if usize::try_from(num_bytes).is_ok() => {
                Ok(TokenMatrix { dtype, num_tokens, dim, num_bytes })
            }
            _ => Err(Problem::HugeShape { shape: self.shape.clone() }),
        }
    }

    /// Checks that `found` bytes of data follow the header.
    ///
    /// # Errors
    /// [`Problem::TruncatedData`], [`Problem::ExcessData`].
    pub fn check_len(&self, expected: u64, found: u64) -> Result<(), Problem> {
        let (shape, start) = (self.shape.clone(), self.data_start);
        match found.cmp(&expected) {
            std::cmp::Ordering::Less => Err(Problem::TruncatedData { shape, start, expected, found }),
            std::cmp::Ordering::Greater => Err(Problem::ExcessData { shape, start, expected, found }),
            std::cmp::Ordering::Equal => Ok(()),
        }
    }

    /// The problem for a type that is not accepted, with the advice that fits it.
    pub fn wrong_dtype(&self, role: &'static str, expected: &'static str, suggestion: &'static str) -> Problem {
        let descr = self.descr.clone();
        let mut chars = descr.chars();
        match (chars.next(), chars.as_str()) {
            (Some('>'), rest @ ("f2" | "f4" | "i4" | "i8" | "u4" | "u8")) => {
                let little = format!("<{rest}");
                Problem::BigEndian { descr, little }
            }
            (Some(_), "i1" | "u1") => Problem::QuantisedDType { descr },
            _ => Problem::DType { descr, role, expected, suggestion },
        }
    }
}

/// A token matrix as its header describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenMatrix {
    /// Element type, f16 or f32.
    pub dtype: DType,
    /// Rows.
    pub num_tokens: u64,
    /// Columns, at least 1.
    pub dim: usize,
    /// Bytes of the matrix; fits `usize`.
    pub num_bytes: u64,
}

fn axis(value: &Value) -> Option<u64> {
    match value {
        Value::Integer(count) => u64::try_from(count).ok(),
        _ => None,
    }
}

/// Deepest nesting of brackets; those inside strings count too, which errs on the safe side.
fn nesting(text: &str) -> usize {
    let mut depth = 0usize;
    let mut deepest = 0;
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => continue,
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// Fills `buffer` as far as the reader goes.
pub(super) fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
