//! A large corpus, made from real documents piece by piece, pruned and proven from host memory; and where the time goes.

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;

use super::hull::EPSILON;
use super::input::{self, DIM, Random};
use super::timed::Timed;
use super::{BenchError, Each, Options, Row, SEED, Timing, Work, check, check_alive, deliver};
use crate::certificate::{Header, Writer};
use crate::device::Device;
use crate::engine::{Engine, Goal, GpuEngine};
use crate::half::f16;
use crate::{DType, Error, Method, PruneOptions, PruneStats, Pruned, Pruner, Scoring, Target, TokenBatch, TokenData};

/// Tokens that are made, and pruned, at a time: as many as `maxhull prune` hands over.
const PIECE_TOKENS: u64 = 1 << 21;

/// Tokens of what is pruned stage by stage: one batch of a device.
const STAGES_TOKENS: u64 = 1 << 18;

/// Real documents that others are made from: f16.
#[derive(Debug, Clone, Default)]
pub struct RealDocs {
    /// Their components, row-major.
    pub tokens: Vec<f16>,
    /// `num_docs + 1` offsets in tokens, from 0.
    pub offsets: Vec<u64>,
    /// Components of a token.
    pub dim: usize,
}

/// Seconds of each stage for the whole corpus. On a device they overlap; each is what it takes alone, measured on one
/// batch, but for the last two, which are of the whole run.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Stages {
    /// Looking at every component in host memory: the check for NaN and infinity.
    pub read: f64,
    /// Norms, first tokens and tiles, on the host, and all that is none of the others; 0 for the CPU engine.
    pub pack: f64,
    /// Host memory to the device.
    pub upload: f64,
    /// Means and Gram matrices.
    pub gram: f64,
    /// Which tokens stay, and what the others rest on; all that the CPU engine does.
    pub selection: f64,
    /// The device to host memory.
    pub download: f64,
    /// From buffers to proposals.
    pub decode: f64,
    /// The proof of every removal, on all cores.
    pub proof: f64,
    /// Gathering the kept tokens and writing the certificate, to memory.
    pub write: f64,
}

impl Stages {
    /// Each with its name.
    pub fn named(&self) -> [(&'static str, f64); 9] {
        [
            ("read", self.read),
            ("pack", self.pack),
            ("upload", self.upload),
            ("gram", self.gram),
            ("selection", self.selection),
            ("download", self.download),
            ("decode", self.decode),
            ("proof", self.proof),
            ("write", self.write),
        ]
    }

    fn scaled(self, factor: f64) -> Self {
        let Stages { read, pack, upload, gram, selection, download, decode, proof, write } = self;
        Stages {
            read: read * factor,
            pack: pack * factor,
            upload: upload * factor,
            gram: gram * factor,
            selection: selection * factor,
            download: download * factor,
            decode: decode * factor,
            proof: proof * factor,
            write: write * factor,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct CorpusRun {
    /// Documents.
    pub num_docs: u64,
    /// Tokens.
    pub num_tokens: u64,
    /// Tokens that stay.
    pub num_kept: u64,
    /// Largest proven bound.
    pub worst_bound: f32,
    /// Whether the documents were made from real ones.
    pub is_real: bool,
    /// From tokens in host memory to kept tokens and certificate in host memory; making the documents is not in it.
    pub seconds: f64,
    /// Where they go.
    pub stages: Stages,
}

/// Documents to be made.
struct Source {
    real: RealDocs,
    num_docs: u64,
    is_real: bool,
}

/// Tokens and offsets.
struct Piece {
    tokens: Vec<f16>,
    offsets: Vec<u64>,
}

impl Source {
    fn new(options: &Options) -> Self {
        let num_docs = options.num_docs.unwrap_or(options.pick(30, 50_000));
        if let Some(real) = options.real_docs.clone().filter(|real| real.offsets.len() > 1) {
            return Source { real, num_docs, is_real: true };
        }
        let lengths = input::ragged(SEED, 60, 300, 64 * 180);
        let docs = input::Corpus::new(SEED, &lengths, DType::F16);
        let tokens = bytemuck::cast_slice(docs.bytes()).to_vec();
        let real = RealDocs { tokens, offsets: docs.batch().offsets().to_vec(), dim: DIM };
        Source { real, num_docs, is_real: false }
    }

    fn source_of(&self, doc_idx: u64) -> (Random, usize) {
        let mut random = Random::new(SEED ^ doc_idx.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let source = random.below(self.real.offsets.len() - 1);
        (random, source)
    }

    fn doc_len(&self, doc_idx: u64) -> u64 {
        let source = self.source_of(doc_idx).1;
        self.real.offsets[source + 1] - self.real.offsets[source]
    }

    /// A real document whose components change places and signs alike in all tokens, with 1 % of noise: no two alike.
    fn fill(&self, doc_idx: u64, to: &mut [f16]) {
        let (mut random, source) = self.source_of(doc_idx);
        let dim = self.real.dim;
        let from = &self.real.tokens[self.real.offsets[source] as usize * dim..][..to.len()];
        let (shift, signs) = (random.below(dim), random.next());
        let noise = 0.0346 / (dim as f32).sqrt();
        for (to, from) in to.chunks_exact_mut(dim).zip(from.chunks_exact(dim)) {
            for (k, to) in to.iter_mut().enumerate() {
                let sign = if signs >> (k % 64) & 1 == 0 { 1.0 } else { -1.0 };
                *to = f16::from_f32(sign * from[(k + shift) % dim].to_f32() + noise * (random.unit() - 0.5));
            }
        }
    }

    /// Documents from this one on, of about so many tokens together.
    fn piece(&self, first_doc: u64, num_tokens: u64) -> Piece {
        let mut offsets = vec![0];
        let mut end = 0;
        for doc_idx in first_doc..self.num_docs {
            if end >= num_tokens {
                break;
            }
            end += self.doc_len(doc_idx);
            offsets.push(end);
        }
        let mut tokens = vec![f16::ZERO; end as usize * self.real.dim];
        let mut rest = &mut tokens[..];
        let mut docs = Vec::with_capacity(offsets.len() - 1);
        for (doc_idx, pair) in (first_doc..).zip(offsets.windows(2)) {
            let (doc, after) = rest.split_at_mut((pair[1] - pair[0]) as usize * self.real.dim);
            docs.push((doc_idx, doc));
            rest = after;
        }
        docs.into_par_iter().for_each(|(doc_idx, doc)| self.fill(doc_idx, doc));
        Piece { tokens, offsets }
    }

    fn batch<'a>(&self, piece: &'a Piece) -> Result<TokenBatch<'a>, Error> {
        TokenBatch::new(TokenData::F16(&piece.tokens), &piece.offsets, self.real.dim)
    }
}

/// Counts what is written.
struct Memory(u64);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += std::hint::black_box(bytes).len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Prunes the corpus on a device, then one batch of it stage by stage.
pub(super) fn run<D: Device>(
    shared: &Arc<D>,
    options: &Options,
    each: &mut Each<'_>,
) -> Result<Option<CorpusRun>, BenchError> {
    if !options.wants("corpus") {
        return Ok(None);
    }
    let source = Source::new(options);
    let engine = Arc::new(GpuEngine::new(Arc::clone(shared)));
    let Some(mut done) = prune_and_deliver(&source, engine, each)? else { return Ok(None) };
    let piece = source.piece(0, STAGES_TOKENS);
    let batch = source.batch(&piece)?;
    let timed = Arc::new(Timed::new(Arc::clone(shared)));
    let engine = GpuEngine::new(Arc::clone(&timed));
    let select = || engine.select(&batch, Scoring::Clamped, Goal::Epsilon(EPSILON), None);
    // The first one compiles and allocates.
    select()?;
    timed.take();
    let started = Instant::now();
    select()?;
    let whole = started.elapsed().as_secs_f64();
    if let Err(lost) = check_alive("corpus", "stage by stage", &engine) {
        each(Err(lost));
        return Ok(Some(done));
    }
    let spent = timed.take();
    let known = spent.upload + spent.gram + spent.selection + spent.download + spent.decode;
    let stages = Stages {
        read: read_seconds(&batch)?,
        pack: (whole - known).max(0.0),
        upload: spent.upload,
        gram: spent.gram,
        selection: spent.selection,
        download: spent.download,
        decode: spent.decode,
        ..Stages::default()
    };
    let factor = done.num_tokens as f64 / batch.num_tokens() as f64;
    let Stages { proof, write, .. } = done.stages;
    done.stages = Stages { proof, write, ..stages.scaled(factor) };
    Ok(Some(done))
}

/// The same on the CPU.
pub(super) fn run_cpu(
    engine: Arc<dyn Engine>,
    options: &Options,
    each: &mut Each<'_>,
) -> Result<Option<CorpusRun>, BenchError> {
    if !options.wants("corpus") {
        return Ok(None);
    }
    let source = Source::new(options);
    let Some(mut done) = prune_and_deliver(&source, engine, each)? else { return Ok(None) };
    let piece = source.piece(0, STAGES_TOKENS);
    let batch = source.batch(&piece)?;
    let read = read_seconds(&batch)? * done.num_tokens as f64 / batch.num_tokens() as f64;
    done.stages = Stages { read, ..done.stages };
    Ok(Some(done))
}

fn read_seconds(batch: &TokenBatch<'_>) -> Result<f64, Error> {
    let started = Instant::now();
    batch.check_finite()?;
    Ok(started.elapsed().as_secs_f64())
}

/// None if the answer is wrong.
fn prune_and_deliver(
    source: &Source,
    engine: Arc<dyn Engine>,
    each: &mut Each<'_>,
) -> Result<Option<CorpusRun>, BenchError> {
    match prune(source, engine) {
        Ok((row, done)) => deliver(each, Ok(row)).map(|()| Some(done)),
        Err(error) => deliver(each, Err(error)).map(|()| None),
    }
}

fn prune(source: &Source, engine: Arc<dyn Engine>) -> Result<(Row, CorpusRun), BenchError> {
    let method = Method::Hull(Target::Epsilon(EPSILON));
    let is_device = engine.overlaps();
    let pruner = Pruner::new(Arc::clone(&engine), PruneOptions { scoring: Scoring::Clamped, method })?;
    let header = Header { dim: source.real.dim as u32, dtype: DType::F16, scoring: Scoring::Clamped };
    let mut certificate = Writer::new(Memory(0), header).map_err(Error::from)?;
    let mut stats = PruneStats::default();
    let (mut seconds, mut write, mut doc_idx) = (0.0, 0.0, 0);
    // The first one compiles and allocates.
    pruner.prune(&source.batch(&source.piece(0, 1))?, None)?;
    while doc_idx < source.num_docs {
        let piece = source.piece(doc_idx, PIECE_TOKENS);
        let batch = source.batch(&piece)?;
        let started = Instant::now();
        let pruned = pruner.prune(&batch, None)?;
        let proven = started.elapsed().as_secs_f64();
        save(&pruned, &batch, &mut certificate)?;
        let saved = started.elapsed().as_secs_f64();
        (seconds, write) = (seconds + saved, write + saved - proven);
        stats += pruned.stats;
        doc_idx += batch.num_docs() as u64;
    }
    certificate.finish().map_err(Error::from)?;
    let bytes = stats.num_tokens * (source.real.dim * 2) as u64;
    let kind = if source.is_real { "real" } else { "made-up" };
    let shape = format!(
        "{} docs from {kind} ones, {} tokens, f16, epsilon {EPSILON}, {:.0} % kept",
        stats.num_docs,
        stats.num_tokens,
        100.0 * stats.num_kept as f64 / stats.num_tokens as f64
    );
    let difference = (f64::from(stats.worst_bound), f64::from(EPSILON));
    check("corpus", &shape, "the worst bound", difference.0, difference.1)?;
    check_alive("corpus", &shape, &*engine)?;
    let timing =
        Timing { median: seconds, least: seconds, most: seconds, deviation: 0.0, num_repeats: 1, num_launches: 1 };
    let work = Work { bytes, flop: None, tokens: stats.num_tokens };
    let row = Row { name: "corpus", shape, work, difference, timing, cold: None };
    // Of a device it is measured apart from the other stages.
    let selection = if is_device { 0.0 } else { stats.select_seconds };
    let done = CorpusRun {
        num_docs: stats.num_docs,
        num_tokens: stats.num_tokens,
        num_kept: stats.num_kept,
        worst_bound: stats.worst_bound,
        is_real: source.is_real,
        seconds,
        stages: Stages { selection, proof: stats.prove_seconds, write, ..Stages::default() },
    };
    Ok((row, done))
}

fn save(pruned: &Pruned, batch: &TokenBatch<'_>, certificate: &mut Writer<Memory>) -> Result<(), Error> {
    std::hint::black_box(pruned.gather(batch));
    Ok(pruned.docs.iter().try_for_each(|doc| certificate.append(doc.record()))?)
}
