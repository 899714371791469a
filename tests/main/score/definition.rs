//! The definition in plain loops and f64, and inputs.

use maxhull::half::{bf16, f16};
use maxhull::{DType, Kernel, Scorer, Scoring, TokenBatch, TokenData, Tokens};

pub use crate::common::Random;

/// Owned tokens.
#[derive(Debug, Clone)]
pub enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    I8(Vec<i8>),
}

impl Values {
    /// `values` rounded to `dtype`.
    pub fn new(dtype: DType, values: &[f32]) -> Self {
        match dtype {
            DType::F32 => Values::F32(values.to_vec()),
            DType::F16 => Values::F16(values.iter().map(|&v| f16::from_f32(v)).collect()),
            DType::Bf16 => Values::Bf16(values.iter().map(|&v| bf16::from_f32(v)).collect()),
            DType::I8 => Values::I8(values.iter().map(|&v| v as i8).collect()),
        }
    }

    pub fn data(&self) -> TokenData<'_> {
        match self {
            Values::F32(values) => TokenData::F32(values),
            Values::F16(values) => TokenData::F16(values),
            Values::Bf16(values) => TokenData::Bf16(values),
            Values::I8(values) => TokenData::I8(values),
        }
    }
}

/// Owned ragged tokens.
#[derive(Debug, Clone)]
pub struct Ragged {
    pub values: Values,
    pub offsets: Vec<u64>,
    pub dim: usize,
    /// One for each token, or none.
    pub scales: Option<Vec<f32>>,
}

impl Ragged {
    pub fn new(dtype: DType, values: &[f32], lens: &[usize], dim: usize) -> Self {
        let mut offsets = vec![0];
        offsets.extend(lens.iter().scan(0, |end, &len| {
            *end += len as u64;
            Some(*end)
        }));
        Ragged { values: Values::new(dtype, values), offsets, dim, scales: None }
    }

    pub fn batch(&self) -> TokenBatch<'_> {
        TokenBatch::new(self.values.data(), &self.offsets, self.dim).unwrap()
    }

    /// The batch with its scales.
    pub fn tokens(&self) -> Tokens<'_> {
        match &self.scales {
            Some(scales) => Tokens::scaled(self.batch(), scales).unwrap(),
            None => self.batch().into(),
        }
    }

    fn scale(&self, doc_idx: usize, token_idx: usize) -> f64 {
        let at = self.offsets[doc_idx] as usize + token_idx;
        self.scales.as_ref().map_or(1.0, |scales| f64::from(scales[at]))
    }
}

/// The definition: one score of one pair, and the token that each query token matched.
pub fn score(queries: &Ragged, docs: &Ragged, scoring: Scoring, pair: (usize, usize)) -> (f64, Vec<usize>) {
    let dim = docs.dim;
    let (query, doc) = (queries.batch().doc(pair.0), docs.batch().doc(pair.1));
    let (mut q, mut x) = (vec![0.0; query.len()], vec![0.0; doc.len()]);
    query.to_f32(&mut q);
    doc.to_f32(&mut x);
    let (mut sum, mut matched) = (0.0, Vec::new());
    for (query_token, q) in q.chunks(dim).enumerate() {
        let (mut best, mut best_token) = (f64::NEG_INFINITY, 0);
        for (token_idx, x) in x.chunks(dim).enumerate() {
            let dot: f64 = q.iter().zip(x).map(|(&q, &x)| f64::from(q) * f64::from(x)).sum();
            let similarity = dot * docs.scale(pair.1, token_idx);
            if similarity > best || (similarity.is_nan() && !best.is_nan()) {
                (best, best_token) = (similarity, token_idx);
            }
        }
        best *= queries.scale(pair.0, query_token);
        sum += if scoring == Scoring::Clamped && best < 0.0 { 0.0 } else { best };
        matched.push(best_token);
    }
    (sum, matched)
}

/// The whole matrix `[num_queries, num_docs]`.
pub fn scores(queries: &Ragged, docs: &Ragged, scoring: Scoring) -> Vec<f64> {
    let (num_queries, num_docs) = (queries.batch().num_docs(), docs.batch().num_docs());
    (0..num_queries * num_docs).map(|i| score(queries, docs, scoring, (i / num_docs, i % num_docs)).0).collect()
}

/// One scorer for each kernel of this machine, announced.
pub fn scorers(scoring: Scoring) -> Vec<(Kernel, Scorer)> {
    println!("kernels: {:?}", Kernel::available());
    Kernel::available().iter().map(|&kernel| (kernel, Scorer::new(scoring).with_kernel(kernel))).collect()
}

/// Element types with which two batches can meet.
pub const DTYPES: [DType; 4] = [DType::F32, DType::F16, DType::Bf16, DType::I8];
