//! Ways to score, in this process.

use anyhow::{Result, anyhow};
use diskann_quantization::multi_vector::distance::{BoxErase, MaxSimElement, MaxSimIsa, MaxSimKernel, build_max_sim};
use diskann_quantization::multi_vector::{MatRef, Standard};
use maxhull::{DType, Kernel, Scorer, Scoring};

use crate::data::Shape;

/// One way to score one shape.
pub struct Path<'a> {
    pub name: String,
    pub dtype: DType,
    pub threads: usize,
    /// Largest relative error that counts as right.
    pub tolerance: f64,
    pub run: Box<dyn FnMut() -> Result<Run> + 'a>,
}

/// One round.
pub struct Run {
    /// `[num_queries, num_docs]`.
    pub scores: Vec<f32>,
    /// What the path measured itself; `None` when the caller's clock is right.
    pub seconds: Option<f64>,
}

impl From<Vec<f32>> for Run {
    fn from(scores: Vec<f32>) -> Self {
        Run { scores, seconds: None }
    }
}

/// Our kernels and diskann's.
pub fn all(shape: &Shape) -> Vec<Path<'_>> {
    let mut paths = Vec::new();
    for dtype in [DType::F32, DType::F16, DType::Bf16, DType::I8] {
        for &kernel in Kernel::available() {
            if kernel != Kernel::Portable && (shape.name != "long" || kernel == Kernel::available()[0]) {
                paths.push(ours(shape, dtype, kernel, 1, false));
            }
        }
        paths.push(ours(shape, dtype, Kernel::available()[0], 2, false));
        if matches!(dtype, DType::F32 | DType::F16) && shape.can_screen() {
            paths.push(ours(shape, dtype, Kernel::available()[0], 1, true));
        }
    }
    if shape.peers {
        for isa in [MaxSimIsa::X86_64_V4, MaxSimIsa::X86_64_V3].into_iter().filter(|isa| isa.is_available()) {
            paths.extend(diskann(shape, DType::F32, isa, &shape.queries.f32, &shape.docs.f32, |score| score));
            paths.extend(diskann(shape, DType::F16, isa, &shape.queries.f16, &shape.docs.f16, |score| score));
            paths.extend(diskann(shape, DType::I8, isa, &shape.queries.i8, &shape.docs.i8, |score| score as f32));
        }
    }
    paths
}

fn ours(shape: &Shape, dtype: DType, kernel: Kernel, threads: usize, screening: bool) -> Path<'_> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    let scorer = Scorer::new(Scoring::Plain).with_kernel(kernel).with_screening(screening);
    let (queries, docs) = (shape.query_batch(dtype), shape.doc_batch(dtype));
    Path {
        name: format!("maxhull {kernel:?}{}", if screening { " screened" } else { "" }),
        dtype,
        threads,
        tolerance: 1e-5,
        run: Box::new(move || Ok(pool.install(|| scorer.scores(queries, docs))?.into())),
    }
}

/// diskann as its documentation uses it: the query is prepared once a call, documents follow one by one.
fn diskann<'a, T>(
    shape: &'a Shape,
    dtype: DType,
    isa: MaxSimIsa,
    queries: &'a [T],
    docs: &'a [T],
    to_f32: fn(T::Score) -> f32,
) -> Option<Path<'a>>
where
    T: MaxSimElement,
    T::Score: Copy + Default,
{
    let dim = shape.dim;
    let lens: Vec<usize> = shape.doc_offsets.windows(2).map(|pair| (pair[1] - pair[0]) as usize).collect();
    let num_query_tokens = queries.len() / dim;
    let mut maxima = vec![T::Score::default(); num_query_tokens];
    let run = move || {
        let kernel: Box<dyn MaxSimKernel<T>> = build_max_sim(isa, matrix(queries, num_query_tokens, dim)?, BoxErase)?;
        let (mut scores, mut rest) = (Vec::with_capacity(lens.len()), docs);
        for &len in &lens {
            let (doc, after) = rest.split_at(len * dim);
            rest = after;
            kernel.compute_max_sim(matrix(doc, len, dim)?, &mut maxima)?;
            // Scores are distances: the negative maximum.
            scores.push(-maxima.iter().map(|&score| to_f32(score)).sum::<f32>());
        }
        Ok(scores.into())
    };
    Some(Path { name: format!("diskann {isa}"), dtype, threads: 1, tolerance: 1e-5, run: Box::new(run) })
}

fn matrix<T: MaxSimElement>(values: &[T], num_rows: usize, dim: usize) -> Result<MatRef<'_, Standard<T>>> {
    let layout = Standard::new(num_rows, dim).map_err(|error| anyhow!("{error:?}"))?;
    MatRef::new(layout, values).map_err(|error| anyhow!("{error:?}"))
}
