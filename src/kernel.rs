//! What the host and the kernels agree on: names, arguments, parameter blocks, constants, and how sources are put
//! together. A new kernel is one line of [`Kernel`], its source, and its launch in [`crate::engine`].

use bytemuck::{Pod, Zeroable};

use crate::DType;

/// Constants of both shader languages, typed once: `const NAME: u32 = value;` in front of every source.
pub const CONSTANTS: [(&str, u32); 12] = [
    ("TILE", TILE),
    ("FACE_CAP", FACE_CAP),
    ("SELECTION_THREADS", SELECTION_THREADS),
    ("DOMINANCE_THREADS", DOMINANCE_THREADS),
    ("COMPACT_THREADS", COMPACT_THREADS),
    ("PLACE_STRIDE", PLACE_STRIDE),
    ("MAXSIM_CHUNK", MAXSIM_CHUNK),
    ("MAXSIM_QUERY_TILE", MAXSIM_QUERY_TILE),
    ("MAXSIM_WIDE_QUERY_TILE", MAXSIM_WIDE_QUERY_TILE),
    ("MAXSIM_WIDE_CHUNKS", MAXSIM_WIDE_CHUNKS),
    ("PLAIN", PLAIN),
    ("CLAMPED", CLAMPED),
];

/// Rows and columns of the Gram matrix that one workgroup computes.
pub const TILE: u32 = 64;
/// Most vertices of a face on a device, the origin among them; a token that needs more stays undecided.
pub const FACE_CAP: u32 = 32;
/// Threads of a workgroup of `selection` in WGSL, which share one document; anywhere, projections that make a step.
pub const SELECTION_THREADS: u32 = 64;
/// Tokens of a workgroup of `dominance`; in WGSL, as many threads.
pub const DOMINANCE_THREADS: u32 = 64;
/// Removed tokens of a workgroup of `compact`; in WGSL, as many threads.
pub const COMPACT_THREADS: u32 = 64;
/// Where a removed token's entries are, in one number: `first_entry * PLACE_STRIDE + num_entries + 1`, and 0 for none.
pub const PLACE_STRIDE: u32 = 64;
const _: () = assert!(FACE_CAP + 1 < PLACE_STRIDE);
/// Most document tokens of an item of `maxsim`; longer documents are split.
pub const MAXSIM_CHUNK: u32 = 1024;
/// Most query tokens of an item of `maxsim`.
pub const MAXSIM_QUERY_TILE: u32 = 32;
/// Most query tokens of an item of the wide `maxsim`.
pub const MAXSIM_WIDE_QUERY_TILE: u32 = 256;
/// Most chunks of 16 bytes of a token of the wide `maxsim`.
pub const MAXSIM_WIDE_CHUNKS: u32 = 16;
/// Negative maxima count.
pub const PLAIN: u32 = 0;
/// Negative maxima count 0; hulls include the origin.
pub const CLAMPED: u32 = 1;

/// The kernels. Entry point, shader and CUDA source carry the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Mean of each document's tokens.
    Centre,
    /// Pairwise dot products within each document.
    Gram,
    /// Every token against the hull of all others.
    Dominance,
    /// The farthest-first order of each document.
    Selection,
    /// What the removed tokens rest on, shrunk and put together.
    Compact,
    /// Largest dot product of each query token with each document's tokens.
    Maxsim,
    /// Sums of those, one a pair.
    MaxsimSum,
    /// A copy, for benches: what the memory gives at most.
    CeilingCopy,
    /// Multiply-adds in registers, for benches: what the arithmetic gives at most.
    CeilingFma,
    /// Products of matrices in registers, for benches: what tensor cores give at most. CUDA's alone.
    CeilingMma,
}

/// How a kernel uses an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only read.
    Read,
    /// Read and written.
    Write,
}

use Access::{Read, Write};

/// All kernels, in the order of the walks; last those that only benches run.
pub const KERNELS: [Kernel; 10] = [
    Kernel::Centre,
    Kernel::Gram,
    Kernel::Dominance,
    Kernel::Selection,
    Kernel::Compact,
    Kernel::Maxsim,
    Kernel::MaxsimSum,
    Kernel::CeilingCopy,
    Kernel::CeilingFma,
    Kernel::CeilingMma,
];

impl Kernel {
    /// Stem of the sources and name of the entry point.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::Centre => "centre",
            Kernel::Gram => "gram",
            Kernel::Dominance => "dominance",
            Kernel::Selection => "selection",
            Kernel::Compact => "compact",
            Kernel::Maxsim => "maxsim",
            Kernel::MaxsimSum => "maxsim_sum",
            Kernel::CeilingCopy => "ceiling_copy",
            Kernel::CeilingFma => "ceiling_fma",
            Kernel::CeilingMma => "ceiling_mma",
        }
    }

    /// Buffers in the order of their bindings; the parameter block follows as the last binding.
    pub fn arguments(self) -> &'static [(&'static str, Access)] {
        match self {
            Kernel::Centre => &[("tokens", Read), ("docs", Read), ("centres", Write)],
            Kernel::Gram => &[("tokens", Read), ("docs", Read), ("tiles", Read), ("centres", Read), ("matrix", Write)],
            Kernel::Dominance => {
                &[("gram", Read), ("docs", Read), ("items", Read), ("faces", Write), ("states", Write)]
            }
            Kernel::Selection => &[
                ("gram", Read),
                ("docs", Read),
                ("faces", Write),
                ("states", Write),
                ("order", Write),
                ("curve", Write),
                ("results", Write),
            ],
            Kernel::Compact => &[
                ("gram", Read),
                ("chunks", Read),
                ("faces", Write),
                ("states", Read),
                ("order", Write),
                ("results", Read),
                ("entries", Write),
                ("cursor", Write),
            ],
            Kernel::Maxsim => &[
                ("queries", Read),
                ("tokens", Read),
                ("query_scales", Read),
                ("token_scales", Read),
                ("items", Read),
                ("shares", Read),
                ("maxima", Write),
                ("matches", Write),
            ],
            Kernel::MaxsimSum => &[("maxima", Read), ("pairs", Read), ("scores", Write)],
            Kernel::CeilingCopy => &[("original", Read), ("copied", Write)],
            Kernel::CeilingFma => &[("sums", Write)],
            Kernel::CeilingMma => &[("operands", Read), ("sums", Write)],
        }
    }

    /// Size of the parameter block in bytes.
    pub fn params_bytes(self) -> usize {
        match self {
            Kernel::Centre | Kernel::Gram => size_of::<GramParams>(),
            Kernel::Dominance | Kernel::Selection | Kernel::Compact => size_of::<SelectionParams>(),
            Kernel::Maxsim | Kernel::MaxsimSum => size_of::<MaxsimParams>(),
            Kernel::CeilingCopy | Kernel::CeilingFma | Kernel::CeilingMma => size_of::<CeilingParams>(),
        }
    }
}

/// How token components lie in memory. Rows are padded with zeros to whole chunks of 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// 4 components a chunk.
    F32,
    /// 8 components a chunk, read as f16.
    F16,
    /// The same bytes where the device has no f16: read as u32 and unpacked.
    F16Packed,
    /// 8 components a chunk, unpacked from u32.
    Bf16,
    /// 16 components a chunk, unpacked from u32.
    I8,
}

/// All encodings.
pub const ENCODINGS: [Encoding; 5] = [Encoding::F32, Encoding::F16, Encoding::F16Packed, Encoding::Bf16, Encoding::I8];

impl Encoding {
    /// How a device reads tokens of a type.
    pub fn of(dtype: DType, has_f16: bool) -> Self {
        match dtype {
            DType::F32 => Encoding::F32,
            DType::F16 if has_f16 => Encoding::F16,
            DType::F16 => Encoding::F16Packed,
            DType::Bf16 => Encoding::Bf16,
            DType::I8 => Encoding::I8,
        }
    }

    /// Name of the shared source that reads it.
    pub fn name(self) -> &'static str {
        match self {
            Encoding::F32 => "f32",
            Encoding::F16 => "f16",
            Encoding::F16Packed => "f16_packed",
            Encoding::Bf16 => "bf16",
            Encoding::I8 => "i8",
        }
    }

    /// Whether a component can be this number.
    pub fn holds(self, value: f32) -> bool {
        match self {
            Encoding::F32 => true,
            Encoding::F16 | Encoding::F16Packed => half::f16::from_f32(value).to_f32() == value,
            Encoding::Bf16 => half::bf16::from_f32(value).to_f32() == value,
            Encoding::I8 => value == f32::from(value as i8),
        }
    }

    /// Components in a chunk of 16 bytes.
    pub fn chunk_dim(self) -> usize {
        match self {
            Encoding::F32 => 4,
            Encoding::F16 | Encoding::F16Packed | Encoding::Bf16 => 8,
            Encoding::I8 => 16,
        }
    }
}

/// A kernel as it is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Variant {
    /// Which one.
    pub kernel: Kernel,
    /// How it reads tokens; ignored by kernels that read none.
    pub encoding: Encoding,
    /// Whether it uses subgroup operations.
    pub subgroups: bool,
    /// Side of the cooperative matrices that it uses, 8 or 16, if any; gram of f16 tokens without centres only.
    pub cooperative: Option<u32>,
    /// Whether it is the `maxsim` of [`MAXSIM_WIDE_QUERY_TILE`] query tokens. There is none for f32, and its queries hold
    /// nothing but numbers of the encoding.
    pub is_wide: bool,
}

/// A document of a device batch; `Doc` in `shared/ragged`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
pub struct Doc {
    /// Its first token within the batch.
    pub first_token: u32,
    /// Its tokens; 0 where the device has nothing to do.
    pub num_tokens: u32,
    /// Its first entry in `gram`: rows of `gram_stride(num_tokens)` entries.
    pub gram_start: u32,
    /// Tokens already in `order`; at least 1.
    pub num_first: u32,
    /// Most tokens to keep.
    pub max_kept: u32,
    /// Its place in the batch, for per-document results and centres.
    pub doc_idx: u32,
    /// `compact`: removed tokens before those of this chunk.
    pub first_removed: u32,
    /// Whole 16-byte rows.
    pub padding: u32,
}

/// Entries from one row of a document's Gram matrix to the next.
pub fn gram_stride(num_tokens: u32) -> u32 {
    num_tokens.next_multiple_of(4)
}

/// One workgroup of `gram`; a `vec4<u32>`. `row_tile <= column_tile`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
pub struct Tile {
    /// Index into `docs`.
    pub doc: u32,
    /// Rows `row_tile * TILE ..`.
    pub row_tile: u32,
    /// Columns `column_tile * TILE ..`.
    pub column_tile: u32,
    /// Whole 16-byte rows.
    pub padding: u32,
}

/// Parameters of `centre` and `gram`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
pub struct GramParams {
    /// Workgroups with work: documents for `centre`, tiles for `gram`.
    pub num_items: u32,
    /// Chunks of 16 bytes a token.
    pub num_chunks: u32,
    /// Whether `gram` subtracts the centres first.
    pub is_centred: u32,
    /// Whole 16-byte rows.
    pub padding: u32,
}

/// Parameters of `dominance`, `selection` and `compact`. Distances are in the units of the tokens.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
pub struct SelectionParams {
    /// Workgroups with work: documents for `selection`, items for `dominance`, chunks for `compact`.
    pub num_items: u32,
    /// [`PLAIN`] or [`CLAMPED`].
    pub scoring: u32,
    /// Whether every document ends with the tokens of `num_first`, the others projected on their hull.
    pub is_project: u32,
    /// The squared tolerance: a token within it, rounding included, is removed and not looked at again; negative for
    /// never.
    pub inside: f32,
    /// Stop once every bound in `curve` is at most this distance; negative for never.
    pub stop: f32,
    /// Rounding of a squared distance as seen, for tokens of norm at most 1.
    pub rounding: f32,
    /// Rounding of a squared distance in the worst case, for tokens of norm at most 1.
    pub margin: f32,
    /// Steps of a launch of `selection`, at least 1: a step tests up to 512 tokens or projects up to
    /// [`SELECTION_THREADS`]. A document that needs more is [`DOC_UNFINISHED`] and goes on in the next launch. Bounds how
    /// long a launch takes.
    pub max_steps: u32,
    /// Whether documents go on from where the last launch left them: `results` is then read, and every buffer is as it
    /// was.
    pub is_resumed: u32,
    /// Whole 16-byte rows.
    pub padding: [u32; 3],
}

/// A vertex of a token's support and its weight; a `vec2<u32>`. `faces` has [`FACE_CAP`] a token, one after the other:
/// the first [`TokenState::num_support`] are its own.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
pub struct Entry {
    /// Position of the vertex within its document.
    pub vertex: u32,
    /// At least 0. The weights of a token sum to 1 up to rounding, or to at most that where the origin has the rest.
    pub weight: f32,
}

/// A token's state after `selection` or `dominance`; a `vec4<u32>` whose first two hold f32 bits.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
pub struct TokenState {
    /// Squared distance to the hull, from above; -1 for a kept token.
    pub upper: f32,
    /// `p . r` with `p` the projection and `r` the residual: what a candidate's `x . r` must exceed.
    pub level: f32,
    /// Vertices of the support, the origin not among them.
    pub num_support: u32,
    /// One of the `TOKEN_` values.
    pub status: u32,
}

/// The upper bound holds and the bracket is closed, or the bound is within the tolerance.
pub const TOKEN_SOLVED: u32 = 0;
/// The upper bound holds but may be loose: a dependent vertex, a full face, rounding.
pub const TOKEN_STALLED: u32 = 1;
/// `dominance`: the lower bound is above the tolerance.
pub const TOKEN_NEEDED: u32 = 2;

/// What `selection` says about a document; a `vec4<u32>`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
pub struct DocResult {
    /// Entries of `order` and of `curve`.
    pub num_kept: u32,
    /// One of the `DOC_` values.
    pub status: u32,
    /// Kept tokens whose projection had stalled.
    pub num_undecided: u32,
    /// Largest squared norm: the unit of rounding.
    pub unit: f32,
}

/// The goal was reached.
pub const DOC_DONE: u32 = 0;
/// What is left is too close to the hull for f32, or out of its range: the CPU engine's.
pub const DOC_TOO_FINE: u32 = 1;
/// The launch ended first: its [`SelectionParams::max_steps`].
pub const DOC_UNFINISHED: u32 = 2;

/// What a workgroup of `maxsim` does at a time: some query tokens and some tokens of a document, at least one of each.
/// Workgroup `b` does the items `shares[b] .. shares[b + 1]` one after the other.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
pub struct MaxsimItem {
    /// First query token within `queries`.
    pub first_query_token: u32,
    /// At most [`MAXSIM_QUERY_TILE`], or [`MAXSIM_WIDE_QUERY_TILE`].
    pub num_query_tokens: u32,
    /// First token within `tokens`.
    pub first_token: u32,
    /// At most [`MAXSIM_CHUNK`].
    pub num_tokens: u32,
    /// Where its maxima go, one a query token, or where its score goes if [`MaxsimParams::is_summed`].
    pub first_maximum: u32,
    /// Number of its first token within the document.
    pub first_match: u32,
    /// Whole 16-byte rows.
    pub padding: [u32; 2],
}

/// One workgroup of `maxsim_sum`: where the maxima of a pair lie, `[num_chunks, num_query_tokens]`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
pub struct MaxsimPair {
    /// First maximum of the first chunk.
    pub first_maximum: u32,
    /// From one chunk of the document to the next.
    pub chunk_stride: u32,
    /// Chunks of the document.
    pub num_chunks: u32,
    /// Tokens of the query.
    pub num_query_tokens: u32,
}

/// Parameters of `maxsim` and `maxsim_sum`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
pub struct MaxsimParams {
    /// Shares of `maxsim`, a workgroup each; pairs of `maxsim_sum`.
    pub num_items: u32,
    /// Chunks of 16 bytes a token.
    pub num_chunks: u32,
    /// [`PLAIN`] or [`CLAMPED`].
    pub scoring: u32,
    /// Whether `matches` is written.
    pub has_matches: u32,
    /// Whether `query_scales` is read.
    pub has_query_scales: u32,
    /// Whether `token_scales` is read.
    pub has_token_scales: u32,
    /// Whether every item of `maxsim` is a pair, whose score it writes in place of the maxima: `maxima` are the scores,
    /// the bits those that `maxsim_sum` would give. Never with `has_matches`, nor for the wide kernel.
    pub is_summed: u32,
    /// Whole 16-byte rows.
    pub padding: u32,
}

/// Parameters of `ceiling_copy`, `ceiling_fma` and `ceiling_mma`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
pub struct CeilingParams {
    /// Workgroups with work.
    pub num_items: u32,
    /// Rounds of [`FMA_A_STEP`] multiply-adds, or of a product each four warps.
    pub num_steps: u32,
    /// What is multiplied by.
    pub factor: f32,
    /// What is added.
    pub summand: f32,
}

/// Chunks of 16 bytes that a workgroup of `ceiling_copy` copies.
pub const COPY_CHUNKS: u32 = 1024;
/// Threads of a workgroup of any of them.
pub const CEILING_THREADS: u32 = 256;
/// Multiply-adds of a thread of `ceiling_fma` in a step.
pub const FMA_A_STEP: u32 = 128;
/// Rows, columns and depth of a product of `ceiling_mma`.
pub const MMA_SIDE: u32 = 64;

macro_rules! shader {
    ($name:literal) => {
        include_str!(concat!("../shaders/", $name, ".wgsl"))
    };
}

impl Variant {
    /// The whole WGSL source: constants, shared parts, the kernel. None of what is CUDA's alone.
    pub fn wgsl(self) -> Option<String> {
        let constants = CONSTANTS.map(|(name, value)| format!("const {name}: u32 = {value}u;\n")).concat();
        let enable = if self.reads_tokens() && self.encoding == Encoding::F16 { "enable f16;\n" } else { "" };
        let mut source = format!("{enable}{}{constants}", self.cooperative.map_or_else(String::new, matrices));
        source += shader!("shared/ragged");
        if self.reads_tokens() {
            source += match self.encoding {
                Encoding::F32 => shader!("shared/tokens_f32"),
                Encoding::F16 => shader!("shared/tokens_f16"),
                Encoding::F16Packed => shader!("shared/tokens_f16_packed"),
                Encoding::Bf16 => shader!("shared/tokens_bf16"),
                Encoding::I8 => shader!("shared/tokens_i8"),
            };
        }
        if matches!(self.kernel, Kernel::Dominance | Kernel::Selection | Kernel::Compact) {
            source += shader!("shared/face");
        }
        if self.kernel == Kernel::Selection {
            source += if self.subgroups { shader!("shared/largest_subgroup") } else { shader!("shared/largest") };
        }
        source += match self.kernel {
            Kernel::Centre => shader!("centre"),
            Kernel::Gram if self.cooperative.is_some() => shader!("gram_cooperative"),
            Kernel::Gram => shader!("gram"),
            Kernel::Dominance => shader!("dominance"),
            Kernel::Selection => shader!("selection"),
            Kernel::Compact => shader!("compact"),
            Kernel::Maxsim => shader!("maxsim"),
            Kernel::MaxsimSum => shader!("maxsim_sum"),
            Kernel::CeilingCopy => shader!("ceiling_copy"),
            Kernel::CeilingFma => shader!("ceiling_fma"),
            Kernel::CeilingMma => return None,
        };
        (!self.is_wide).then_some(source)
    }

    /// Whether the kernel reads tokens, and so comes in one variant an encoding.
    pub fn reads_tokens(self) -> bool {
        matches!(self.kernel, Kernel::Centre | Kernel::Gram | Kernel::Maxsim)
    }
}

/// Cooperative matrices of this side, named for what they hold in a product.
fn matrices(side: u32) -> String {
    let alias = |name, scalar, role| format!("alias {name} = coop_mat{side}x{side}<{scalar}, {role}>;\n");
    let aliases = [alias("Left", "f16", "A"), alias("Right", "f16", "B"), alias("Sums", "f32", "C")].concat();
    format!("enable wgpu_cooperative_matrix;\nconst COOPERATIVE_SIDE: u32 = {side}u;\n{aliases}")
}
