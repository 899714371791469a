//! `centre` and `gram` on ragged documents.

use rayon::prelude::*;

use super::input::{Corpus, DIM, ragged};
use super::{BenchError, Each, Launch, Options, Row, SEED, Work, check, deliver, download, empty, filled, larger};
use crate::DType;
use crate::device::Device;
use crate::engine::CpuEngine;
use crate::kernel::{Doc, Encoding, GramParams, Kernel, Tile, Variant, gram_stride};
use crate::plan::gram_tiles;

/// Tokens of a document.
#[derive(Debug, Clone, Copy)]
pub(super) enum Lengths {
    /// Like abstracts.
    Ragged,
    /// All alike.
    Even,
}

impl Lengths {
    /// Fewest and most.
    fn range(self) -> (usize, usize) {
        match self {
            Lengths::Ragged => (33, 300),
            Lengths::Even => (180, 180),
        }
    }
}

/// Documents on a device, with room for their Gram matrices.
pub(super) struct Docs<D: Device> {
    pub(super) corpus: Corpus,
    lengths: Lengths,
    pub(super) docs: Vec<Doc>,
    pub(super) docs_buffer: D::Buffer,
    pub(super) gram: D::Buffer,
    pub(super) gram_len: usize,
    tiles: Vec<Tile>,
    tiles_buffer: D::Buffer,
    tokens: D::Buffer,
    centres: D::Buffer,
    encoding: Encoding,
}

impl<D: Device> Docs<D> {
    /// Documents of 33 to 300 tokens, like abstracts, or of 180 each.
    pub(super) fn new(device: &D, options: &Options, dtype: DType, lengths: Lengths) -> Result<Self, BenchError> {
        let (least, most) = lengths.range();
        let all = ragged(SEED, least, most, options.pick(1_500, 1 << 17));
        let corpus = Corpus::new(SEED, &all, dtype);
        let (mut docs, mut tiles) = (Vec::new(), Vec::new());
        let (mut first_token, mut gram_start) = (0, 0);
        for (num_tokens, doc_idx) in all.iter().map(|&len| len as u32).zip(0..) {
            let max_kept = num_tokens;
            docs.push(Doc { first_token, num_tokens, gram_start, num_first: 1, max_kept, doc_idx, ..Doc::default() });
            tiles.extend(gram_tiles(doc_idx, num_tokens));
            first_token += num_tokens;
            gram_start += num_tokens * gram_stride(num_tokens);
        }
        let gram_len = gram_start as usize;
        Ok(Docs {
            docs_buffer: filled(device, &docs)?,
            gram: empty::<D, f32>(device, gram_len)?,
            gram_len,
            tiles_buffer: filled(device, &tiles)?,
            tiles,
            tokens: filled(device, corpus.bytes())?,
            centres: empty::<D, f32>(device, docs.len() * DIM)?,
            encoding: Encoding::of(dtype, device.limits().has_f16),
            docs,
            corpus,
            lengths,
        })
    }

    pub(super) fn shape(&self) -> String {
        let (num_docs, num_tokens) = (self.docs.len(), self.corpus.num_tokens());
        let (least, most) = self.lengths.range();
        let lengths = if least == most { most.to_string() } else { format!("{least}-{most}") };
        format!("{num_docs} docs, {num_tokens} tokens of {lengths}, {}", self.encoding.name())
    }

    fn variant(&self, kernel: Kernel) -> Variant {
        Variant { kernel, encoding: self.encoding, subgroups: false, cooperative: None, is_wide: false }
    }

    fn params(&self, num_items: usize) -> Vec<u8> {
        let num_chunks = (DIM / self.encoding.chunk_dim()) as u32;
        let params = GramParams { num_items: num_items as u32, num_chunks, is_centred: 0, padding: 0 };
        bytemuck::bytes_of(&params).to_vec()
    }

    fn centre(&self) -> Launch<'_, D> {
        Launch {
            variant: self.variant(Kernel::Centre),
            arguments: vec![&self.tokens, &self.docs_buffer, &self.centres],
            params: self.params(self.docs.len()),
            num_workgroups: self.docs.len() as u64,
        }
    }

    /// The Gram matrices, without centres: as for clamped scoring.
    pub(super) fn gram(&self) -> Launch<'_, D> {
        Launch {
            variant: self.variant(Kernel::Gram),
            arguments: vec![&self.tokens, &self.docs_buffer, &self.tiles_buffer, &self.centres, &self.gram],
            params: self.params(self.tiles.len()),
            num_workgroups: self.tiles.len() as u64,
        }
    }

    fn time_centre(&self, device: &D, options: &Options) -> Result<Row, BenchError> {
        let (launch, shape) = (self.centre(), self.shape());
        launch.start(device)?;
        let centres: Vec<f32> = download(device, &self.centres, self.docs.len() * DIM)?;
        let mut worst = 0.0;
        for (doc_idx, centre) in centres.chunks_exact(DIM).enumerate() {
            let tokens = self.corpus.doc_f32(doc_idx);
            for (k, &found) in centre.iter().enumerate() {
                let sum: f64 = tokens[k..].iter().step_by(DIM).map(|&x| f64::from(x)).sum();
                worst = larger(worst, (f64::from(found) - sum / (tokens.len() / DIM) as f64).abs());
            }
        }
        // A rounding of numbers up to 1 for each of 300 summands.
        let difference = (worst, 300.0 * f64::from(f32::EPSILON));
        check("centre", &shape, "a mean", difference.0, difference.1)?;
        let tokens = self.corpus.num_tokens() as u64;
        let bytes = (self.corpus.bytes().len() + centres.len() * 4) as u64;
        let work = Work { bytes, flop: Some(tokens * DIM as u64), tokens };
        Ok(Row { name: "centre", shape, work, difference, timing: launch.time(device, options)?, cold: None })
    }

    /// As [`Docs::gram`], in cooperative matrices.
    fn cooperative(&self, device: &D) -> Option<Launch<'_, D>> {
        let cooperative = device.limits().cooperative.filter(|_| self.encoding == Encoding::F16)?;
        let launch = self.gram();
        Some(Launch { variant: Variant { cooperative: Some(cooperative), ..launch.variant }, ..launch })
    }

    fn time_gram(
        &self,
        device: &D,
        options: &Options,
        name: &'static str,
        launch: &Launch<'_, D>,
    ) -> Result<Row, BenchError> {
        let shape = self.shape();
        launch.start(device)?;
        let gram: Vec<f32> = download(device, &self.gram, self.gram_len)?;
        let worst = |doc: &Doc| {
            let (n, mut expected) = (doc.num_tokens as usize, Vec::new());
            let tokens = self.corpus.doc_f32(doc.doc_idx as usize);
            let stride = CpuEngine::new().gram(&tokens, DIM, &mut expected).unwrap_or(0);
            let own_stride = gram_stride(doc.num_tokens) as usize;
            (0..n * n).map(|at| (at / n, at % n)).fold(0.0, |worst, (i, j)| {
                let found = gram[doc.gram_start as usize + i * own_stride + j];
                larger(worst, f64::from((found - expected[i * stride + j]).abs()))
            })
        };
        let worst = self.docs.par_iter().map(worst).reduce(|| 0.0, larger);
        // Both sides are off by a rounding for each of `DIM` multiply-adds (Higham 3.1) of tokens of norm at most 1.
        let difference = (worst, DIM as f64 * f64::from(f32::EPSILON));
        check(name, &shape, "an entry", difference.0, difference.1)?;
        let pairs: usize = self.corpus.lengths().map(|n| n * (n + 1) / 2).sum();
        let work = Work {
            bytes: (self.corpus.bytes().len() + self.gram_len * 4) as u64,
            // A symmetric matrix has so many different entries.
            flop: Some(2 * (pairs * DIM) as u64),
            tokens: self.corpus.num_tokens() as u64,
        };
        Ok(Row { name, shape, work, difference, timing: launch.time(device, options)?, cold: None })
    }
}

pub(super) fn run<D: Device>(device: &D, options: &Options, each: &mut Each<'_>) -> Result<(), BenchError> {
    if !options.wants("centre") && !options.wants("gram") {
        return Ok(());
    }
    for (dtype, lengths) in [(DType::F16, Lengths::Ragged), (DType::F16, Lengths::Even), (DType::F32, Lengths::Ragged)]
    {
        let docs = Docs::new(device, options, dtype, lengths)?;
        if options.wants("centre") {
            deliver(each, docs.time_centre(device, options))?;
        }
        if options.wants("gram") {
            deliver(each, docs.time_gram(device, options, "gram", &docs.gram()))?;
            if let Some(launch) = docs.cooperative(device) {
                deliver(each, docs.time_gram(device, options, "gram_cooperative", &launch))?;
            }
        }
    }
    Ok(())
}
