//! Shapes, tokens and the definition.

use half::{bf16, f16};
use maxhull::{DType, TokenBatch, TokenData};

/// Queries and documents of one benchmark, in every element type.
pub struct Shape {
    pub name: &'static str,
    pub dim: usize,
    pub query_offsets: Vec<u64>,
    pub doc_offsets: Vec<u64>,
    pub queries: Store,
    pub docs: Store,
    /// Whether the peers run it too.
    pub peers: bool,
}

/// Tokens in every element type.
pub struct Store {
    pub f32: Vec<f32>,
    pub f16: Vec<f16>,
    pub bf16: Vec<bf16>,
    pub i8: Vec<i8>,
}

impl Store {
    pub fn data(&self, dtype: DType) -> TokenData<'_> {
        match dtype {
            DType::F32 => TokenData::F32(&self.f32),
            DType::F16 => TokenData::F16(&self.f16),
            DType::Bf16 => TokenData::Bf16(&self.bf16),
            DType::I8 => TokenData::I8(&self.i8),
        }
    }
}

/// The shapes of the report.
pub fn shapes() -> Vec<Shape> {
    let mut random = Random(7);
    let ragged: Vec<usize> = (0..1000).map(|_| 20 + (random.next() % 281) as usize).collect();
    // Mean fill 0.14 of the longest, 512: the shape that padded scorers handle worst.
    let sparse: Vec<usize> = (0..2000).map(|_| 1 + (511.0 * random.unit().abs().powf(6.14)) as usize).collect();
    vec![
        shape("u300", &[32], &[300; 1000], 128, true),
        shape("ragged", &[32], &ragged, 128, true),
        // Documents that stay in the last-level cache: what the arithmetic can do without main memory.
        shape("cached", &[32], &[300; 60], 128, true),
        shape("fill14", &[32], &sparse, 128, false),
        shape("colpali", &[1024], &[1030; 20], 128, false),
        shape("batch", &[32; 64], &[180; 100], 128, false),
        // Threads need some time to wake: the others last a few milliseconds, too short to see what two threads do.
        shape("long", &[32], &[300; 4000], 128, false),
        shape("m48d96", &[48], &[180; 1000], 96, false),
    ]
}

fn shape(name: &'static str, query_lens: &[usize], doc_lens: &[usize], dim: usize, peers: bool) -> Shape {
    let (query_offsets, doc_offsets) = (offsets(query_lens), offsets(doc_lens));
    let tokens = |offsets: &[u64], seed| store(offsets[offsets.len() - 1] as usize, dim, seed);
    let (queries, docs) = (tokens(&query_offsets, 1), tokens(&doc_offsets, 2));
    Shape { name, dim, query_offsets, doc_offsets, queries, docs, peers }
}

fn offsets(lens: &[usize]) -> Vec<u64> {
    let ends = lens.iter().scan(0, |end, &len| {
        *end += len as u64;
        Some(*end)
    });
    std::iter::once(0).chain(ends).collect()
}

/// Unit tokens.
fn store(num_tokens: usize, dim: usize, seed: u64) -> Store {
    let mut random = Random(seed);
    let mut f32: Vec<f32> = (0..num_tokens * dim).map(|_| random.unit()).collect();
    for token in f32.chunks_mut(dim) {
        let norm = token.iter().map(|value| value * value).sum::<f32>().sqrt();
        token.iter_mut().for_each(|value| *value /= norm);
    }
    Store {
        f16: f32.iter().map(|&value| f16::from_f32(value)).collect(),
        bf16: f32.iter().map(|&value| bf16::from_f32(value)).collect(),
        i8: f32.iter().map(|&value| (value * 400.0).round().clamp(-127.0, 127.0) as i8).collect(),
        f32,
    }
}

impl Shape {
    pub fn query_batch(&self, dtype: DType) -> TokenBatch<'_> {
        TokenBatch::new(self.queries.data(dtype), &self.query_offsets, self.dim).expect("a valid batch")
    }

    pub fn doc_batch(&self, dtype: DType) -> TokenBatch<'_> {
        TokenBatch::new(self.docs.data(dtype), &self.doc_offsets, self.dim).expect("a valid batch")
    }

    /// Whether there are enough query tokens for screening by bytes to be tried.
    pub fn can_screen(&self) -> bool {
        self.query_batch(DType::F32).num_tokens() >= 128
    }

    pub fn num_doc_tokens(&self) -> usize {
        self.doc_batch(DType::F32).num_tokens()
    }

    /// Multiplications and additions.
    pub fn ops(&self) -> f64 {
        2.0 * self.query_batch(DType::F32).num_tokens() as f64 * self.num_doc_tokens() as f64 * self.dim as f64
    }

    /// Largest error of `scores` (`[num_queries, num_docs]`) relative to the definition, over a sample of pairs.
    pub fn error(&self, dtype: DType, scores: &[f32]) -> f64 {
        let num_docs = self.doc_offsets.len() - 1;
        let error = |at: usize| {
            let expected = self.score(dtype, at / num_docs, at % num_docs);
            (f64::from(scores[at]) - expected).abs() / expected.abs()
        };
        assert_eq!(scores.len(), num_docs * (self.query_offsets.len() - 1), "a score for each pair");
        (0..scores.len()).step_by(scores.len().div_ceil(20)).map(error).fold(0.0, f64::max)
    }

    /// The definition.
    fn score(&self, dtype: DType, query_idx: usize, doc_idx: usize) -> f64 {
        let values = |data: TokenData<'_>| {
            let mut values = vec![0.0; data.len()];
            data.to_f32(&mut values);
            values
        };
        let query = values(self.query_batch(dtype).doc(query_idx));
        let doc = values(self.doc_batch(dtype).doc(doc_idx));
        let dot = |q: &[f32], x: &[f32]| -> f64 { q.iter().zip(x).map(|(&q, &x)| f64::from(q) * f64::from(x)).sum() };
        let best = |q: &[f32]| doc.chunks(self.dim).map(|x| dot(q, x)).fold(f64::NEG_INFINITY, f64::max);
        query.chunks(self.dim).map(best).sum()
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Within [-1, 1).
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
