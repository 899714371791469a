//! The bytes of a certificate: `docs/certificate.md` is the specification, this is its only writer and reader.
//!
//! ```text
//! header | (length, record) of each document | 0, footer | BLAKE3 of everything before
//! ```

use std::io::{Read, Write};

use dashu_int::{UBig, ops::BitTest};

use super::error::CertificateError;
use super::prover::Proposal;
use super::residual::Weights;
use crate::{DType, Scoring, TokenData};

/// Version of the format that this library writes and reads.
pub const VERSION: u16 = 1;

/// Not text, not UTF-8, and damaged by any line-ending conversion.
pub(super) const MAGIC: [u8; 8] = *b"\x89MXHL\r\n\x1a";
/// Longest integer of an exact weight; its length is stored in 16 bits.
pub(super) const MAX_INTEGER_BYTES: usize = u16::MAX as usize;

const HEADER_BYTES: usize = 16;
/// num_tokens, bound, digest.
const RECORD_HEAD_BYTES: usize = 4 + 4 + 16;
/// num_docs, num_tokens, num_kept, worst bound, root digest.
const FOOTER_BYTES: usize = 8 + 8 + 8 + 4 + 32;
/// Count byte of a removal with a 32-bit count.
const LONG: u8 = 254;
/// Count byte of a removal with exact weights.
const EXACT: u8 = 255;
const DOC_DOMAIN: &[u8; 16] = b"maxhull doc v1\0\0";
const CORPUS_DOMAIN: &[u8; 16] = b"maxhull corpus 1";

// Digests are over little-endian components, and `TokenData::as_bytes` gives them in the order of memory.
const _: () = assert!(cfg!(target_endian = "little"), "certificates need a little-endian machine");

/// Digest of a document's original tokens.
pub(super) type DocDigest = [u8; 16];

/// What the whole certificate is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Scoring that the bounds hold for.
    pub scoring: Scoring,
    /// Element type of the tokens.
    pub dtype: DType,
    /// Components per token.
    pub dim: u32,
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10] = match self.scoring {
            Scoring::Plain => 0,
            Scoring::Clamped => 1,
        };
        bytes[11] = dtype_code(self.dtype);
        bytes[12..].copy_from_slice(&self.dim.to_le_bytes());
        bytes
    }

    fn decode(mut bytes: &[u8]) -> Result<Self, CertificateError> {
        let truncated = CertificateError::Truncated { at: bytes.len() as u64, inside: "header" };
        let magic = take(&mut bytes).ok_or(truncated.clone())?;
        if magic != MAGIC {
            return Err(CertificateError::BadMagic { found: magic });
        }
        let version = take(&mut bytes).map(u16::from_le_bytes).ok_or(truncated.clone())?;
        if version != VERSION {
            return Err(CertificateError::UnsupportedVersion { found: version, supported: VERSION });
        }
        let [scoring, dtype] = take(&mut bytes).ok_or(truncated.clone())?;
        let scoring = match scoring {
            0 => Scoring::Plain,
            1 => Scoring::Clamped,
            code => return Err(CertificateError::UnknownScoring { code }),
        };
        let dtype = match dtype {
            0 => DType::F16,
            1 => DType::Bf16,
            2 => DType::F32,
            3 => DType::I8,
            code => return Err(CertificateError::UnknownDType { code }),
        };
        let dim = take(&mut bytes).map(u32::from_le_bytes).ok_or(truncated)?;
        if dim == 0 {
            return Err(CertificateError::ZeroDim);
        }
        Ok(Header { scoring, dtype, dim })
    }
}

fn dtype_code(dtype: DType) -> u8 {
    match dtype {
        DType::F16 => 0,
        DType::Bf16 => 1,
        DType::F32 => 2,
        DType::I8 => 3,
    }
}

/// BLAKE3 of a 28-byte prefix and the components, cut to 16 bytes.
pub(super) fn doc_digest(doc: TokenData<'_>, dim: usize) -> DocDigest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&corpus_prefix(DOC_DOMAIN, doc.dtype(), dim as u32));
    hasher.update(&((doc.len() / dim) as u32).to_le_bytes());
    hasher.update(doc.as_bytes());
    let mut digest = [0; 16];
    digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    digest
}

fn corpus_prefix(domain: &[u8; 16], dtype: DType, dim: u32) -> [u8; 24] {
    let mut prefix = [0; 24];
    prefix[..16].copy_from_slice(domain);
    prefix[16] = dtype_code(dtype);
    prefix[20..].copy_from_slice(&dim.to_le_bytes());
    prefix
}

/// Appends one removal; the proposal has been checked.
pub(super) fn encode_removal(proposal: &Proposal<'_>, num_tokens: usize, out: &mut Vec<u8>) {
    let support = proposal.support;
    let count = (support.len() as u32).to_le_bytes();
    match proposal.weights {
        Weights::Fixed(_) if support.len() < usize::from(LONG) => out.push(count[0]),
        Weights::Fixed(_) => {
            out.push(LONG);
            out.extend_from_slice(&count);
        }
        Weights::Exact { .. } => {
            out.push(EXACT);
            out.extend_from_slice(&count);
        }
    }
    if has_short_ids(num_tokens) {
        out.extend(support.iter().flat_map(|&idx| (idx as u16).to_le_bytes()));
    } else {
        out.extend(support.iter().flat_map(|idx| idx.to_le_bytes()));
    }
    match proposal.weights {
        Weights::Fixed(weights) => out.extend(weights.iter().flat_map(|&weight| {
            let [low, middle, high, _] = (weight - 1).to_le_bytes();
            [low, middle, high]
        })),
        Weights::Exact { numerators, denominator } => {
            encode_integer(denominator, out);
            numerators.iter().for_each(|numerator| encode_integer(numerator, out));
        }
    }
}

fn has_short_ids(num_tokens: usize) -> bool {
    num_tokens <= 1 << 16
}

fn encode_integer(integer: &UBig, out: &mut Vec<u8>) {
    let bytes = &integer.to_le_bytes()[..integer.bit_len().div_ceil(8)];
    out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// A document's record with its length before it.
pub(super) fn encode_record(kept: &[bool], bound: f32, digest: &DocDigest, removals: &[u8]) -> Vec<u8> {
    let len = RECORD_HEAD_BYTES + kept.len().div_ceil(8) + removals.len();
    let mut record = Vec::with_capacity(8 + len);
    record.extend_from_slice(&(len as u64).to_le_bytes());
    record.extend_from_slice(&(kept.len() as u32).to_le_bytes());
    record.extend_from_slice(&bound.to_le_bytes());
    record.extend_from_slice(digest);
    record.extend(kept.chunks(8).map(|flags| flags.iter().rev().fold(0, |byte, &kept| byte << 1 | u8::from(kept))));
    record.extend_from_slice(removals);
    record
}

/// One document's part of a certificate. Decoding checks its structure, not its claims.
#[derive(Debug, Clone, PartialEq)]
pub struct DocRecord {
    doc_idx: u64,
    kept: Vec<bool>,
    bound: f32,
    digest: DocDigest,
    removals: Vec<u8>,
}

impl DocRecord {
    /// Decodes what [`super::ProvenDoc::record`] returns; `doc_idx` is for error messages.
    ///
    /// # Errors
    /// [`CertificateError::Malformed`], [`CertificateError::DocumentEmptied`].
    pub fn decode(doc_idx: u64, record: &[u8]) -> Result<Self, CertificateError> {
        let malformed = |what| CertificateError::Malformed { doc_idx, what };
        let mut body = record;
        let len = take(&mut body).map(u64::from_le_bytes).ok_or(malformed("the record is shorter than its length"))?;
        if len != body.len() as u64 {
            return Err(malformed("the length before the record is not the record's"));
        }
        Self::decode_body(doc_idx, body)
    }

    fn decode_body(doc_idx: u64, mut body: &[u8]) -> Result<Self, CertificateError> {
        let malformed = |what| CertificateError::Malformed { doc_idx, what };
        let short = malformed("the record ends inside its head");
        let num_tokens = take(&mut body).map(u32::from_le_bytes).ok_or(short.clone())?;
        let bound = take(&mut body).map(f32::from_le_bytes).ok_or(short.clone())?;
        let digest = take(&mut body).ok_or(short)?;
        if bound.is_nan() || bound.is_sign_negative() {
            return Err(malformed("the bound is NaN or negative"));
        }
        let mask = take_slice(&mut body, (num_tokens as usize).div_ceil(8))
            .ok_or(malformed("the record ends inside its keep mask"))?;
        // Memory is in proportion to the mask that is really there.
        let mut kept: Vec<bool> = mask.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1)).collect();
        if kept[num_tokens as usize..].contains(&true) {
            return Err(malformed("a bit of the keep mask after the last token is set"));
        }
        kept.truncate(num_tokens as usize);
        if num_tokens > 0 && !kept.contains(&true) {
            return Err(CertificateError::DocumentEmptied { doc_idx, num_tokens });
        }
        let record = DocRecord { doc_idx, kept, bound, digest, removals: body.to_vec() };
        if record.num_kept() == record.num_tokens() && bound != 0.0 {
            return Err(malformed("nothing is removed and the bound is not 0"));
        }
        Ok(record)
    }

    /// Position of the document.
    pub fn doc_idx(&self) -> u64 {
        self.doc_idx
    }
    /// Tokens of the document before pruning.
    pub fn num_tokens(&self) -> usize {
        self.kept.len()
    }
    /// Tokens that stay.
    pub fn num_kept(&self) -> usize {
        self.kept.iter().filter(|&&kept| kept).count()
    }
    /// One flag for each token: whether it stays. Claimed, not proven.
    pub fn kept(&self) -> &[bool] {
        &self.kept
    }
    /// Claim: no query token of unit norm loses more than this on the document.
    pub fn bound(&self) -> f32 {
        self.bound
    }
    /// First 16 bytes of the BLAKE3 digest of the document's original tokens.
    pub fn digest(&self) -> &[u8; 16] {
        &self.digest
    }
    /// The removals in order of their tokens; claimed, not proven.
    pub fn removals(&self) -> Removals<'_> {
        Removals { record: self, rest: &self.removals, next_token: 0, failed: false }
    }
}

/// One removed token and the combination of kept tokens it rests on.
#[derive(Debug, Clone, PartialEq)]
pub struct Removal {
    /// The token, a position within the document.
    pub token_idx: u32,
    /// Positions of the tokens it rests on.
    pub support: Vec<u32>,
    /// One weight for each of them.
    pub weights: RemovalWeights,
}

/// Owned [`Weights`].
#[derive(Debug, Clone, PartialEq)]
pub enum RemovalWeights {
    /// Integers over [`super::WEIGHT_ONE`].
    Fixed(Vec<u32>),
    /// Rationals with one common denominator.
    Exact {
        /// One numerator for each support token.
        numerators: Vec<UBig>,
        /// Common denominator.
        denominator: UBig,
    },
}

impl Removal {
    /// The removal as a prover takes it.
    pub fn proposal(&self) -> Proposal<'_> {
        let weights = match &self.weights {
            RemovalWeights::Fixed(weights) => Weights::Fixed(weights),
            RemovalWeights::Exact { numerators, denominator } => Weights::Exact { numerators, denominator },
        };
        Proposal { token_idx: self.token_idx, support: &self.support, weights }
    }
}

/// Iterator over the removals of a [`DocRecord`]; ends after its first error.
#[derive(Debug, Clone)]
pub struct Removals<'a> {
    record: &'a DocRecord,
    rest: &'a [u8],
    next_token: usize,
    failed: bool,
}

impl Iterator for Removals<'_> {
    type Item = Result<Removal, CertificateError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let kept = &self.record.kept;
        let decoded = match kept[self.next_token..].iter().position(|kept| !kept) {
            Some(skip) => {
                let token_idx = self.next_token + skip;
                self.next_token = token_idx + 1;
                decode_removal(token_idx as u32, kept.len(), &mut self.rest)
            }
            None if self.rest.is_empty() => return None,
            None => Err("bytes follow the last removal"),
        };
        self.failed = decoded.is_err();
        let doc_idx = self.record.doc_idx;
        Some(decoded.map_err(|what| CertificateError::Malformed { doc_idx, what }))
    }
}

fn decode_removal(token_idx: u32, num_tokens: usize, rest: &mut &[u8]) -> Result<Removal, &'static str> {
    const SHORT: &str = "the record ends inside a removal";
    let [kind] = take(rest).ok_or(SHORT)?;
    let count = match kind {
        LONG | EXACT => take(rest).map(u32::from_le_bytes).ok_or(SHORT)? as usize,
        short => usize::from(short),
    };
    if kind == LONG && count < usize::from(LONG) {
        return Err("a short support is written as a long one");
    }
    let id_bytes = if has_short_ids(num_tokens) { 2 } else { 4 };
    // Nothing is allocated before the bytes it stands for were seen.
    let ids = count.checked_mul(id_bytes).and_then(|len| take_slice(rest, len)).ok_or(SHORT)?;
    let support = if id_bytes == 2 {
        ids.as_chunks().0.iter().map(|&id| u32::from(u16::from_le_bytes(id))).collect()
    } else {
        ids.as_chunks().0.iter().map(|&id| u32::from_le_bytes(id)).collect()
    };
    let weights = if kind == EXACT {
        let denominator = decode_integer(rest)?;
        let numerators = (0..count).map(|_| decode_integer(rest)).collect::<Result<_, _>>()?;
        RemovalWeights::Exact { numerators, denominator }
    } else {
        let bytes = count.checked_mul(3).and_then(|len| take_slice(rest, len)).ok_or(SHORT)?;
        let weight = |&[low, middle, high]: &[u8; 3]| u32::from_le_bytes([low, middle, high, 0]) + 1;
        RemovalWeights::Fixed(bytes.as_chunks().0.iter().map(weight).collect())
    };
    Ok(Removal { token_idx, support, weights })
}

fn decode_integer(rest: &mut &[u8]) -> Result<UBig, &'static str> {
    const SHORT: &str = "the record ends inside an integer";
    let len = take(rest).map(u16::from_le_bytes).ok_or(SHORT)?;
    let bytes = take_slice(rest, usize::from(len)).ok_or(SHORT)?;
    if bytes.last() == Some(&0) {
        return Err("an integer has a leading zero byte");
    }
    Ok(UBig::from_le_bytes(bytes))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

fn take_slice<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(head)
}

/// Totals over all documents of a certificate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Footer {
    /// Documents.
    pub num_docs: u64,
    /// Tokens before pruning.
    pub num_tokens: u64,
    /// Tokens that stay.
    pub num_kept: u64,
    /// Largest bound of a document.
    pub worst_bound: f32,
    /// BLAKE3 over the number of tokens and the digest of every document, in order.
    pub root: [u8; 32],
}

impl Footer {
    fn encode(&self) -> [u8; FOOTER_BYTES] {
        let mut bytes = [0; FOOTER_BYTES];
        bytes[..8].copy_from_slice(&self.num_docs.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.num_tokens.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.num_kept.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.worst_bound.to_le_bytes());
        bytes[28..].copy_from_slice(&self.root);
        bytes
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let rest = &mut bytes;
        let [num_docs, num_tokens, num_kept] = [take(rest)?, take(rest)?, take(rest)?].map(u64::from_le_bytes);
        Some(Footer { num_docs, num_tokens, num_kept, worst_bound: f32::from_le_bytes(take(rest)?), root: take(rest)? })
    }

    /// Refuses a footer that differs from what its records add up to.
    fn check(&self, records: &Footer) -> Result<(), CertificateError> {
        let counts = [
            ("documents", self.num_docs, records.num_docs),
            ("tokens", self.num_tokens, records.num_tokens),
            ("kept tokens", self.num_kept, records.num_kept),
        ];
        if let Some(&(what, claimed, found)) = counts.iter().find(|(_, claimed, found)| claimed != found) {
            return Err(CertificateError::FooterCount { what, claimed, found });
        }
        if self.worst_bound.to_bits() != records.worst_bound.to_bits() {
            return Err(CertificateError::FooterBound { claimed: self.worst_bound, found: records.worst_bound });
        }
        if self.root != records.root {
            return Err(CertificateError::RootDigest);
        }
        Ok(())
    }
}

/// Running totals, of a writer or of a reader.
struct Totals {
    footer: Footer,
    root: blake3::Hasher,
}

impl Totals {
    fn new(header: &Header) -> Self {
        let mut root = blake3::Hasher::new();
        root.update(&corpus_prefix(CORPUS_DOMAIN, header.dtype, header.dim));
        let footer = Footer { num_docs: 0, num_tokens: 0, num_kept: 0, worst_bound: 0.0, root: [0; 32] };
        Totals { footer, root }
    }

    fn add(&mut self, record: &DocRecord) {
        // Sums stay far below 2^64: each document of n tokens takes more than n / 8 bytes of file.
        self.footer.num_docs += 1;
        self.footer.num_tokens += record.num_tokens() as u64;
        self.footer.num_kept += record.num_kept() as u64;
        self.footer.worst_bound = self.footer.worst_bound.max(record.bound);
        self.root.update(&(record.num_tokens() as u32).to_le_bytes());
        self.root.update(&record.digest);
    }

    fn footer(&self) -> Footer {
        Footer { root: *self.root.finalize().as_bytes(), ..self.footer }
    }
}

/// Writes a certificate, one record after the other.
pub struct Writer<W: Write> {
    out: W,
    hasher: blake3::Hasher,
    totals: Totals,
}

impl<W: Write> Writer<W> {
    /// Writes the header. Give it a buffered `out`.
    ///
    /// # Errors
    /// [`CertificateError::Io`], [`CertificateError::ZeroDim`].
    pub fn new(out: W, header: Header) -> Result<Self, CertificateError> {
        if header.dim == 0 {
            return Err(CertificateError::ZeroDim);
        }
        let mut writer = Writer { out, hasher: blake3::Hasher::new(), totals: Totals::new(&header) };
        writer.put(&header.encode())?;
        Ok(writer)
    }

    /// Appends the next document: what [`super::ProvenDoc::record`] returned.
    ///
    /// # Errors
    /// [`CertificateError::Io`], and what [`DocRecord::decode`] returns.
    pub fn append(&mut self, record: &[u8]) -> Result<(), CertificateError> {
        let decoded = DocRecord::decode(self.totals.footer.num_docs, record)?;
        self.totals.add(&decoded);
        self.put(record)
    }

    /// Writes the totals and the hash, flushes, and returns them with the sink.
    ///
    /// # Errors
    /// [`CertificateError::Io`].
    pub fn finish(mut self) -> Result<(W, Footer), CertificateError> {
        let footer = self.totals.footer();
        self.put(&0u64.to_le_bytes())?;
        self.put(&footer.encode())?;
        self.out.write_all(self.hasher.finalize().as_bytes())?;
        self.out.flush()?;
        Ok((self.out, footer))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), CertificateError> {
        self.hasher.update(bytes);
        Ok(self.out.write_all(bytes)?)
    }
}

/// Reads a certificate, one record after the other, and checks its structure, its totals and its hash.
///
/// Memory is in proportion to the largest record that is really in the file, whatever lengths it claims.
pub struct Reader<R: Read> {
    input: R,
    header: Header,
    hasher: blake3::Hasher,
    totals: Totals,
    /// Bytes read so far.
    at: u64,
    footer: Option<Footer>,
    buffer: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// Reads the header. Give it a buffered `input`.
    ///
    /// # Errors
    /// A [`CertificateError`] about the header.
    pub fn new(mut input: R) -> Result<Self, CertificateError> {
        let mut buffer = Vec::new();
        input.by_ref().take(HEADER_BYTES as u64).read_to_end(&mut buffer)?;
        let header = Header::decode(&buffer)?;
        let (totals, at) = (Totals::new(&header), buffer.len() as u64);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&buffer);
        Ok(Reader { input, header, hasher, totals, at, footer: None, buffer })
    }

    /// What the certificate is about.
    pub fn header(&self) -> Header {
        self.header
    }

    /// The totals, once [`Reader::next_record`] has returned `None` and so checked them.
    pub fn footer(&self) -> Option<Footer> {
        self.footer
    }

    /// The next document's record, or `None` after the last one when totals and hash are right and nothing follows.
    ///
    /// # Errors
    /// The [`CertificateError`] that applies.
    pub fn next_record(&mut self) -> Result<Option<DocRecord>, CertificateError> {
        if self.footer.is_some() {
            return Ok(None);
        }
        let doc_idx = self.totals.footer.num_docs;
        self.fill(8, "length of a record")?;
        let len = take(&mut self.buffer.as_slice()).map(u64::from_le_bytes).unwrap_or(0);
        if len == 0 {
            self.read_footer()?;
            return Ok(None);
        }
        self.fill(len, "record of a document")?;
        let record = DocRecord::decode_body(doc_idx, &self.buffer)?;
        self.totals.add(&record);
        Ok(Some(record))
    }

    fn read_footer(&mut self) -> Result<(), CertificateError> {
        self.fill(FOOTER_BYTES as u64, "footer")?;
        let footer = Footer::decode(&self.buffer);
        let (hash, len) = (self.hasher.finalize(), self.at);
        self.fill(32, "hash")?;
        if hash.as_bytes() != self.buffer.as_slice() {
            return Err(CertificateError::FileHash { len });
        }
        let footer = footer.ok_or(CertificateError::Truncated { at: self.at, inside: "footer" })?;
        footer.check(&self.totals.footer())?;
        if self.input.by_ref().take(1).read_to_end(&mut self.buffer)? > 0 {
            return Err(CertificateError::TrailingBytes { at: self.at });
        }
        self.footer = Some(footer);
        Ok(())
    }

    /// Reads exactly `len` bytes to the buffer, which grows only as bytes arrive.
    fn fill(&mut self, len: u64, inside: &'static str) -> Result<(), CertificateError> {
        self.buffer.clear();
        let found = self.input.by_ref().take(len).read_to_end(&mut self.buffer)? as u64;
        self.hasher.update(&self.buffer);
        self.at += found;
        if found < len {
            return Err(CertificateError::Truncated { at: self.at, inside });
        }
        Ok(())
    }
}
