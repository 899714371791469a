//! `maxsim` and `maxsim_sum` in the shapes that retrieval meets.

use super::input::{Corpus, DIM, ragged};
use super::{
    BenchError, Each, Launch, Options, Row, SEED, Timing, Work, check, deliver, download, empty, filled, larger,
    measure, measure_host,
};
use crate::device::{Device, DeviceError};
use crate::engine::gpu::shares::{Items, shares};
use crate::kernel::{
    Encoding, Kernel, MAXSIM_QUERY_TILE, MAXSIM_WIDE_QUERY_TILE, MaxsimItem, MaxsimPair, MaxsimParams, PLAIN, Variant,
};
use crate::{DType, Scorer, Scoring};

/// Queries and documents to score all against all.
pub(super) struct Shape {
    queries: Vec<usize>,
    docs: Vec<usize>,
    dtype: DType,
}

impl Shape {
    fn even(num_queries: usize, num_docs: usize, query_len: usize, doc_len: usize, dtype: DType) -> Self {
        Shape { queries: vec![query_len; num_queries], docs: vec![doc_len; num_docs], dtype }
    }

    /// One query reranks, one query searches, many queries at once, pages as images, documents of all lengths, and
    /// documents that a rectangle of 512 tokens each would leave nearly empty.
    pub(super) fn all(options: &Options) -> Vec<Self> {
        let lengths = ragged(SEED, 20, 300, options.pick(3_000, 160_000));
        let mixed = Shape { queries: vec![32], docs: lengths, dtype: DType::F16 };
        if options.is_quick {
            return vec![
                Shape::even(1, 16, 32, 300, DType::F16),
                Shape::even(4, 8, 32, 100, DType::F16),
                mixed,
                Shape::even(1, 16, 32, 100, DType::Bf16),
                Shape::even(1, 16, 32, 100, DType::I8),
            ];
        }
        vec![
            Shape::even(1, 1_000, 32, 300, DType::F16),
            Shape::even(1, 10_000, 32, 300, DType::F16),
            Shape::even(128, 128, 32, 300, DType::F16),
            Shape::even(1, 1_000, 1_024, 1_024, DType::F16),
            mixed,
            Shape { queries: vec![32], docs: mostly_short(1_000), dtype: DType::F16 },
            Shape::even(1, 1_000, 32, 300, DType::F32),
            Shape::even(1, 1_000, 32, 300, DType::Bf16),
            Shape::even(1, 1_000, 32, 300, DType::I8),
        ]
    }

    /// As many of the documents as one buffer holds.
    fn fit(&mut self, max_bytes: u64) {
        let mut bytes = 0;
        self.docs.retain(|&len| {
            bytes += (len * DIM * self.dtype.size_bytes()) as u64;
            bytes <= max_bytes
        });
    }

    fn name(&self) -> String {
        let (least, most) = (self.docs.iter().min().unwrap_or(&0), self.docs.iter().max().unwrap_or(&0));
        let lengths = if least == most { most.to_string() } else { format!("{least}-{most}") };
        let (num_queries, num_docs) = (self.queries.len(), self.docs.len());
        format!("{num_queries} x {} tokens, {num_docs} docs x {lengths}, {}", self.queries[0], self.dtype)
    }
}

/// Lengths up to 512, exponential with a mean of 72: a fill of 0.14. Its quantiles, in an order that mixes them.
fn mostly_short(num_docs: usize) -> Vec<usize> {
    let quantile = |doc_idx: usize| ((doc_idx * 619 % num_docs) as f64 + 0.5) / num_docs as f64;
    let len = |doc_idx| (-72.0 * (1.0 - quantile(doc_idx)).ln()).round().clamp(1.0, 512.0) as usize;
    (0..num_docs).map(len).collect()
}

/// The tokens of a shape, and its scores by the CPU.
pub(super) struct Input {
    name: String,
    queries: Corpus,
    docs: Corpus,
    num_queries: usize,
    num_docs: usize,
    query_len: usize,
}

impl Input {
    pub(super) fn new(shape: &Shape) -> Self {
        Input {
            name: shape.name(),
            // A device takes the queries in f32; what they are worth is that of the documents' type.
            queries: Corpus::new(SEED + 1, &shape.queries, shape.dtype),
            docs: Corpus::new(SEED, &shape.docs, shape.dtype),
            num_queries: shape.queries.len(),
            num_docs: shape.docs.len(),
            query_len: shape.queries[0],
        }
    }

    fn num_query_tokens(&self) -> usize {
        self.num_queries * self.query_len
    }

    fn scores(&self) -> Result<Vec<f32>, BenchError> {
        Ok(Scorer::new(Scoring::Plain).scores(self.queries.batch(), self.docs.batch())?)
    }

    /// The largest difference from the CPU's scores, and what rounding explains. `scores` is `[docs, queries]`.
    fn difference(&self, scores: &[f32]) -> Result<(f64, f64), BenchError> {
        let expected = self.scores()?;
        let (mut worst, mut largest) = (0.0, 0.0);
        for (query_idx, row) in expected.chunks_exact(self.num_docs).enumerate() {
            for (doc_idx, &expected) in row.iter().enumerate() {
                let found = scores[doc_idx * self.num_queries + query_idx];
                worst = larger(worst, f64::from((found - expected).abs()));
                largest = larger(largest, f64::from(expected.abs()));
            }
        }
        // Sums of `DIM` products and then of the maxima, in f32, on either side; the largest norm enters through scores.
        let num_roundings = 2.0 * (DIM + self.query_len) as f64;
        Ok((worst, num_roundings * f64::from(f32::EPSILON) * largest.max(1.0)))
    }

    fn work(&self) -> Work {
        let tokens = self.docs.num_tokens();
        let products = self.num_queries * self.query_len * tokens;
        Work {
            bytes: (self.docs.bytes().len() + self.num_queries * (self.query_len * DIM + self.num_docs) * 4) as u64,
            flop: Some(2 * (products * DIM) as u64),
            tokens: tokens as u64,
        }
    }
}

/// Tokens that are read in turn have at least this many bytes together, more than twice what any cache holds.
const COLD_BYTES: usize = 256 << 20;

pub(super) fn run<D: Device>(device: &D, options: &Options, each: &mut Each<'_>) -> Result<(), BenchError> {
    if !options.wants("maxsim") && !options.wants("maxsim_sum") {
        return Ok(());
    }
    for (at, mut shape) in Shape::all(options).into_iter().enumerate() {
        shape.fit(device.limits().max_buffer_bytes);
        let encoding = Encoding::of(shape.dtype, device.limits().has_f16);
        let input = Input::new(&shape);
        let wide_query_tokens = device.limits().wide_query_tokens;
        let is_wide = wide_query_tokens.is_some_and(|least| input.num_query_tokens() >= least as usize);
        let variant = Variant { kernel: Kernel::Maxsim, encoding, subgroups: false, cooperative: None, is_wide };
        let resident = device.resident_workgroups(variant)?;
        let plan = || Items::even([resident; 2], |chunk| plan(&input, is_wide, chunk as usize));
        let mut queries = Vec::new();
        (0..input.num_queries).for_each(|query_idx| queries.extend(input.queries.doc_f32(query_idx)));
        let sum = || {
            let prepared = Prepared::new(device, &input, &queries, variant, plan())?;
            prepared.run(device)?;
            let difference = prepared.check(device, &input)?;
            let timing = prepared.sum().time(device, options)?;
            let (num_maxima, num_pairs) = (prepared.work.num_maxima, prepared.work.pairs.len());
            let work = Work {
                bytes: 4 * (num_maxima + num_pairs) as u64,
                flop: Some(num_maxima as u64),
                tokens: input.docs.num_tokens() as u64,
            };
            Ok(Row { name: "maxsim_sum", shape: input.name.clone(), work, difference, timing, cold: None })
        };
        let scores = || {
            let mut work = plan();
            work.sum();
            let mut prepared = Prepared::new(device, &input, &queries, variant, work)?;
            prepared.run(device)?;
            let difference = prepared.check(device, &input)?;
            let timing = prepared.time(device, options)?;
            let num_bytes = input.docs.bytes().len();
            let num_copies = options.pick(2, COLD_BYTES.div_ceil(num_bytes.max(1)) + 1);
            for _ in 1..num_copies {
                prepared.tokens.push(filled(device, input.docs.bytes())?);
            }
            let cold = Some(prepared.time(device, options)?);
            Ok(Row { name: "maxsim", shape: input.name.clone(), work: input.work(), difference, timing, cold })
        };
        // Its time depends on the number of maxima only: one shape says enough.
        if options.wants("maxsim_sum") && at == 0 {
            deliver(each, sum())?;
        }
        if options.wants("maxsim") {
            deliver(each, scores())?;
        }
    }
    Ok(())
}

/// Buffers of both kernels.
struct Prepared<D: Device> {
    variant: Variant,
    work: Items,
    queries: D::Buffer,
    /// Copies, to be read in turn.
    tokens: Vec<D::Buffer>,
    nothing_read: D::Buffer,
    nothing_written: D::Buffer,
    items: D::Buffer,
    shares: D::Buffer,
    num_shares: usize,
    pairs: D::Buffer,
    maxima: D::Buffer,
    scores: D::Buffer,
}

impl<D: Device> Prepared<D> {
    fn new(device: &D, input: &Input, queries: &[f32], variant: Variant, work: Items) -> Result<Self, BenchError> {
        let items = &work.items[usize::from(variant.is_wide)];
        let shares = shares(items, device.resident_workgroups(variant)?);
        Ok(Prepared {
            variant,
            queries: filled(device, queries)?,
            tokens: vec![filled(device, input.docs.bytes())?],
            nothing_read: filled(device, &[0u32; 4])?,
            nothing_written: filled(device, &[0u32; 4])?,
            items: filled(device, items)?,
            shares: filled(device, &shares)?,
            num_shares: shares.len() - 1,
            pairs: filled(device, &work.pairs)?,
            maxima: empty::<D, f32>(device, work.num_maxima)?,
            scores: empty::<D, f32>(device, work.pairs.len())?,
            work,
        })
    }

    fn params(&self, num_items: usize) -> Vec<u8> {
        let params = MaxsimParams {
            num_items: num_items as u32,
            num_chunks: (DIM / self.variant.encoding.chunk_dim()) as u32,
            scoring: PLAIN,
            is_summed: u32::from(self.work.is_summed),
            ..MaxsimParams::default()
        };
        bytemuck::bytes_of(&params).to_vec()
    }

    fn maxsim(&self, copy: usize) -> Launch<'_, D> {
        let found = if self.work.is_summed { &self.scores } else { &self.maxima };
        let (items, shares, none) = (&self.items, &self.shares, &self.nothing_read);
        Launch {
            variant: self.variant,
            arguments: vec![&self.queries, &self.tokens[copy], none, none, items, shares, found, &self.nothing_written],
            params: self.params(self.num_shares),
            num_workgroups: self.num_shares as u64,
        }
    }

    fn sum(&self) -> Launch<'_, D> {
        Launch {
            variant: Variant { kernel: Kernel::MaxsimSum, is_wide: false, ..self.variant },
            arguments: vec![&self.maxima, &self.pairs, &self.scores],
            params: self.params(self.work.pairs.len()),
            num_workgroups: self.work.pairs.len() as u64,
        }
    }

    /// Whatever it takes to have the scores.
    fn launches(&self, copy: usize) -> Vec<Launch<'_, D>> {
        let sum = (!self.work.is_summed).then(|| self.sum());
        std::iter::once(self.maxsim(copy)).chain(sum).collect()
    }

    fn run(&self, device: &D) -> Result<(), DeviceError> {
        self.launches(0).iter().try_for_each(|launch| launch.start(device))
    }

    fn check(&self, device: &D, input: &Input) -> Result<(f64, f64), BenchError> {
        let found: Vec<f32> = download(device, &self.scores, self.work.pairs.len())?;
        let difference = input.difference(&found)?;
        check("maxsim", &input.name, "a score", difference.0, difference.1)?;
        Ok(difference)
    }

    /// Of all its launches, on the copies of the tokens in turn.
    fn time(&self, device: &D, options: &Options) -> Result<Timing, DeviceError> {
        let copies: Vec<_> = (0..self.tokens.len()).map(|copy| self.launches(copy)).collect();
        measure(options, |num_runs| {
            let mut runs = copies.iter().cycle().take(num_runs);
            device.time(&mut || runs.by_ref().flatten().try_for_each(|launch| launch.start(device)))
        })
    }
}

/// The items and pairs of all queries with all documents, which are split into parts of so many tokens.
fn plan(input: &Input, is_wide: bool, chunk_tokens: usize) -> Items {
    let num_query_tokens = input.num_query_tokens();
    let query_tile = if is_wide { MAXSIM_WIDE_QUERY_TILE } else { MAXSIM_QUERY_TILE } as usize;
    let mut work = Items::default();
    let mut first_token = 0;
    for len in input.docs.lengths() {
        for (chunk, first) in (0..len).step_by(chunk_tokens).enumerate() {
            for query_token in (0..num_query_tokens).step_by(query_tile) {
                work.items[usize::from(is_wide)].push(MaxsimItem {
                    first_query_token: query_token as u32,
                    num_query_tokens: (num_query_tokens - query_token).min(query_tile) as u32,
                    first_token: (first_token + first) as u32,
                    num_tokens: (len - first).min(chunk_tokens) as u32,
                    first_maximum: (work.num_maxima + chunk * num_query_tokens + query_token) as u32,
                    first_match: first as u32,
                    ..MaxsimItem::default()
                });
            }
        }
        let num_chunks = len.div_ceil(chunk_tokens);
        work.pairs.extend((0..input.num_queries).map(|query_idx| MaxsimPair {
            first_maximum: (work.num_maxima + query_idx * input.query_len) as u32,
            chunk_stride: num_query_tokens as u32,
            num_chunks: num_chunks as u32,
            num_query_tokens: input.query_len as u32,
        }));
        first_token += len;
        work.num_maxima += num_chunks * num_query_tokens;
    }
    work
}

/// The same on the CPU, against plain loops on the first document.
pub(super) fn run_cpu(options: &Options, each: &mut Each<'_>) -> Result<(), BenchError> {
    if !options.wants("maxsim") {
        return Ok(());
    }
    let scorer = Scorer::new(Scoring::Plain);
    for shape in Shape::all(options) {
        let input = Input::new(&shape);
        let (queries, docs) = (input.queries.batch(), input.docs.batch());
        let scores = || {
            let expected = crate::reference::maxsim(
                &crate::reference::rows(queries.doc(0), DIM),
                &crate::reference::rows(docs.doc(0), DIM),
                Scoring::Plain,
            );
            let found = scorer.pair_scores(queries, docs, &[(0, 0)])?[0];
            let roundings = (DIM + input.query_len) as f64 * f64::from(f32::EPSILON);
            let difference = ((f64::from(found) - expected).abs(), roundings * expected.abs().max(1.0));
            check("maxsim", &input.name, "a score", difference.0, difference.1)?;
            let timing = measure_host(options, || scorer.scores(queries, docs).map(|_| ()))?;
            Ok(Row { name: "maxsim", shape: input.name.clone(), work: input.work(), difference, timing, cold: None })
        };
        deliver(each, scores())?;
    }
    Ok(())
}
