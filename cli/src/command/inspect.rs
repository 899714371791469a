//! `maxhull inspect`: what a corpus is, and what a pruning of it would keep.

use std::collections::HashSet;
use std::ops::Range;

use indicatif::ProgressBar;
use maxhull::{DType, Method, Scoring, Target, TokenData};
use nalgebra::DMatrix;
use rayon::prelude::*;
use serde::Serialize;

use super::{cpu_engine, library_error, new_pruner, thread_pool};
use crate::args::InspectArgs;
use crate::corpus::Corpus;
use crate::error::Result;
use crate::report::{self, Report, bytes, count, percent};
use crate::{interrupt, progress};

/// Tolerances that keep rates are predicted for.
const EPSILONS: [f32; 4] = [0.05, 0.1, 0.2, 0.3];
/// Tokens from which the rank is estimated.
const RANK_TOKENS: usize = 1024;
/// Norms that differ by less lie on a sphere: f16 components are rounded by up to 2^-11 of their size.
const SPHERE_SPREAD: f32 = 2e-3;

/// Reads every token once, prunes a sample in memory, and prints what was found.
pub fn run(args: &InspectArgs) -> Result<()> {
    let corpus = Corpus::open(&args.common.corpus)?;
    let pool = thread_pool(&args.common)?;
    let bar = progress::bar(&args.common, "reading", corpus.num_tokens());
    let report = pool.install(|| inspect(args, &corpus, &bar))?;
    report::print(&report, args.common.json)
}

fn inspect(args: &InspectArgs, corpus: &Corpus, bar: &ProgressBar) -> Result<InspectReport> {
    let mut census = Census::default();
    for docs in corpus.batches(args.common.cpu_batch_tokens() as usize) {
        interrupt::check()?;
        census = census.merge(take_census(corpus, docs.clone())?);
        bar.inc(corpus.num_tokens_of(&docs) as u64);
    }
    bar.finish_and_clear();
    let sample = sample(corpus, args.sample as usize);
    let scorings = args.scoring.map_or(vec![Scoring::Plain, Scoring::Clamped], |scoring| vec![scoring.into()]);
    let predictions = scorings.into_iter().map(|scoring| predict(corpus, &sample, scoring));
    let predictions = predictions.collect::<Result<Vec<Prediction>>>()?;
    Ok(InspectReport::new(corpus, &census, &sample, predictions))
}

/// What one pass over the tokens finds.
#[derive(Debug, Clone, Copy)]
struct Census {
    num_zero: u64,
    num_duplicates: u64,
    min_norm: f32,
    max_norm: f32,
}

impl Default for Census {
    fn default() -> Self {
        Census { num_zero: 0, num_duplicates: 0, min_norm: f32::INFINITY, max_norm: 0.0 }
    }
}

impl Census {
    fn merge(self, other: Self) -> Self {
        Census {
            num_zero: self.num_zero + other.num_zero,
            num_duplicates: self.num_duplicates + other.num_duplicates,
            min_norm: self.min_norm.min(other.min_norm),
            max_norm: self.max_norm.max(other.max_norm),
        }
    }
}

fn take_census(corpus: &Corpus, docs: Range<usize>) -> Result<Census> {
    let batch = corpus.batch(docs.clone())?;
    batch.check_finite().map_err(|error| library_error(error, corpus, docs.start))?;
    let of_doc = |doc_idx| census_of_doc(batch.doc(doc_idx), corpus.dim());
    Ok((0..batch.num_docs()).into_par_iter().map(of_doc).reduce(Census::default, Census::merge))
}

fn census_of_doc(doc: TokenData<'_>, dim: usize) -> Census {
    let mut values = vec![0.0; doc.len()];
    doc.to_f32(&mut values);
    // -0 and 0 are the same component, and must be the same bits to be found equal.
    values.iter_mut().for_each(|value| *value += 0.0);
    let mut seen = HashSet::new();
    let mut census = Census::default();
    for token in values.chunks_exact(dim) {
        let norm = norm(token);
        census.min_norm = census.min_norm.min(norm);
        census.max_norm = census.max_norm.max(norm);
        census.num_zero += u64::from(token.iter().all(|&value| value == 0.0));
        census.num_duplicates += u64::from(!seen.insert(bytemuck::cast_slice::<f32, u32>(token)));
    }
    census
}

fn norm(token: &[f32]) -> f32 {
    token.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt() as f32
}

/// Evenly spaced documents that have tokens, the same ones on every call.
fn sample(corpus: &Corpus, size: usize) -> Vec<usize> {
    let num_docs = corpus.num_docs() as u128;
    let size = (size as u128).min(num_docs);
    let evenly = (0..size).map(|at| ((2 * at + 1) * num_docs / (2 * size)) as usize);
    evenly.filter(|&doc_idx| corpus.num_tokens_of(&(doc_idx..doc_idx + 1)) > 0).collect()
}

/// What pruning would keep of the sample.
#[derive(Debug, Serialize)]
struct Prediction {
    scoring: String,
    /// Tokens of the sample.
    num_tokens: u64,
    keep: Vec<KeepRate>,
    /// Tokens of the sample that a lossless pruning removes.
    lossless_removed: u64,
    /// Those of them that are exact duplicates.
    lossless_duplicates: u64,
}

#[derive(Debug, Serialize)]
struct KeepRate {
    epsilon: f32,
    kept_share: f64,
}

fn predict(corpus: &Corpus, sample: &[usize], scoring: Scoring) -> Result<Prediction> {
    let engine = cpu_engine();
    let orders = new_pruner(&engine, scoring, Method::Hull(Target::Epsilon(0.0)))?;
    let lossless = new_pruner(&engine, scoring, Method::Hull(Target::Lossless))?;
    let of_doc = |&doc_idx: &usize| -> Result<([u64; EPSILONS.len()], u64, u64)> {
        interrupt::check()?;
        let batch = corpus.batch(doc_idx..doc_idx + 1)?;
        let curves = orders.curves(&batch, None).map_err(|error| library_error(error, corpus, doc_idx))?;
        let curve = curves.into_iter().next().unwrap_or_default();
        let kept = |epsilon: f32| curve.iter().position(|&bound| bound <= epsilon).map_or(curve.len(), |at| at + 1);
        let pruned = lossless.prune(&batch, None).map_err(|error| library_error(error, corpus, doc_idx))?;
        let removed = pruned.docs.iter().map(|doc| (doc.keep().num_tokens() - doc.keep().num_kept()) as u64).sum();
        let duplicates = census_of_doc(batch.doc(0), corpus.dim()).num_duplicates;
        Ok((EPSILONS.map(|epsilon| kept(epsilon) as u64), removed, duplicates))
    };
    let docs = sample.par_iter().map(of_doc).collect::<Result<Vec<_>>>()?;
    let num_tokens: u64 = sample.iter().map(|&doc_idx| corpus.num_tokens_of(&(doc_idx..doc_idx + 1)) as u64).sum();
    let keep = EPSILONS.iter().enumerate().map(|(at, &epsilon)| {
        let kept: u64 = docs.iter().map(|(kept, _, _)| kept[at]).sum();
        KeepRate { epsilon, kept_share: kept as f64 / num_tokens.max(1) as f64 }
    });
    Ok(Prediction {
        scoring: scoring.to_string(),
        num_tokens,
        keep: keep.collect(),
        lossless_removed: docs.iter().map(|&(_, removed, _)| removed).sum(),
        lossless_duplicates: docs.iter().map(|&(_, _, duplicates)| duplicates).sum(),
    })
}

/// Five percent, quartiles and the ends.
#[derive(Debug, Serialize)]
struct Quantiles<T> {
    min: T,
    p5: T,
    p25: T,
    p50: T,
    p75: T,
    p95: T,
    max: T,
}

impl<T: Copy + Default> Quantiles<T> {
    /// `sorted` ascends.
    fn of(sorted: &[T]) -> Self {
        let at = |percent: usize| sorted.get((sorted.len().saturating_sub(1) * percent + 50) / 100).copied();
        let [min, p5, p25, p50, p75, p95, max] = [0, 5, 25, 50, 75, 95, 100].map(|p| at(p).unwrap_or_default());
        Quantiles { min, p5, p25, p50, p75, p95, max }
    }
}

/// Rank of sampled tokens.
#[derive(Debug, Serialize)]
struct Rank {
    /// Tokens it was computed from.
    num_tokens: usize,
    /// Singular values above the rounding of the element type, relative to the largest.
    rank: usize,
    /// Directions that hold 90 % of the squared norm.
    directions_90: usize,
}

/// Of the sampled documents' tokens.
fn norms_and_rank(corpus: &Corpus, sample: &[usize]) -> (Vec<f32>, Rank) {
    let dim = corpus.dim();
    let num_tokens: usize = sample.iter().map(|&doc_idx| corpus.num_tokens_of(&(doc_idx..doc_idx + 1))).sum();
    let step = num_tokens.div_ceil(RANK_TOKENS).max(1);
    let (mut norms, mut rows) = (Vec::with_capacity(num_tokens), Vec::new());
    for &doc_idx in sample {
        let Ok(batch) = corpus.batch(doc_idx..doc_idx + 1) else { continue };
        let mut values = vec![0.0; batch.num_tokens() * dim];
        batch.doc(0).to_f32(&mut values);
        for token in values.chunks_exact(dim) {
            if norms.len().is_multiple_of(step) {
                rows.extend(token.iter().map(|&value| f64::from(value)));
            }
            norms.push(norm(token));
        }
    }
    norms.sort_by(f32::total_cmp);
    (norms, rank(&rows, dim, corpus.dtype()))
}

fn rank(rows: &[f64], dim: usize, dtype: DType) -> Rank {
    let num_tokens = rows.len() / dim;
    let x = DMatrix::from_row_slice(num_tokens, dim, rows);
    // Both products have the same eigenvalues above 0: the squared singular values.
    let gram = if num_tokens < dim { &x * x.transpose() } else { x.tr_mul(&x) };
    let mut energy: Vec<f64> = gram.symmetric_eigenvalues().iter().map(|&value| value.max(0.0)).collect();
    energy.sort_by(|a, b| b.total_cmp(a));
    let roundoff = if dtype == DType::F16 { 2f64.powi(-11) } else { 1e-7 };
    let largest = energy.first().copied().unwrap_or(0.0);
    let rank = energy.iter().filter(|&&value| value > largest * roundoff * roundoff).count();
    let total: f64 = energy.iter().sum();
    let mut sum = 0.0;
    let directions = energy.iter().take_while(|&&value| {
        let more = sum < 0.9 * total;
        sum += value;
        more
    });
    Rank { num_tokens, rank, directions_90: directions.count() }
}

#[derive(Debug, Serialize)]
struct InspectReport {
    num_docs: u64,
    num_empty_docs: u64,
    num_tokens: u64,
    dim: u64,
    dtype: String,
    token_bytes: u64,
    lengths: Quantiles<u64>,
    norms: Quantiles<f32>,
    rank: Rank,
    num_zero_tokens: u64,
    num_duplicate_tokens: u64,
    on_a_sphere: bool,
    num_sampled_docs: usize,
    predictions: Vec<Prediction>,
    lossless: String,
}

impl InspectReport {
    fn new(corpus: &Corpus, census: &Census, sample: &[usize], predictions: Vec<Prediction>) -> Self {
        let mut lengths: Vec<u64> = corpus.offsets().windows(2).map(|pair| pair[1] - pair[0]).collect();
        lengths.sort_unstable();
        let (norms, rank) = norms_and_rank(corpus, sample);
        let mut norms = Quantiles::of(&norms);
        // The ends are those of the whole corpus.
        (norms.min, norms.max) = (census.min_norm, census.max_norm);
        let on_a_sphere = census.max_norm > 0.0 && census.max_norm - census.min_norm <= SPHERE_SPREAD * census.max_norm;
        InspectReport {
            num_docs: corpus.num_docs() as u64,
            num_empty_docs: lengths.partition_point(|&len| len == 0) as u64,
            num_tokens: corpus.num_tokens(),
            dim: corpus.dim() as u64,
            dtype: corpus.dtype().to_string(),
            token_bytes: corpus.num_tokens() * corpus.token_bytes(),
            lengths: Quantiles::of(&lengths),
            norms,
            rank,
            num_zero_tokens: census.num_zero,
            num_duplicate_tokens: census.num_duplicates,
            on_a_sphere,
            num_sampled_docs: sample.len(),
            lossless: lossless(census, on_a_sphere, &predictions),
            predictions,
        }
    }
}

/// What `--lossless` will find, in a sentence.
fn lossless(census: &Census, on_a_sphere: bool, predictions: &[Prediction]) -> String {
    let beyond = predictions.iter().any(|p| p.lossless_removed > p.lossless_duplicates);
    let found = match (census.num_duplicates, beyond) {
        (0, false) => "nothing to remove".to_owned(),
        (1, false) => "only the exact duplicate to remove".to_owned(),
        (duplicates, false) => format!("only the {} exact duplicates to remove", count(duplicates)),
        (_, true) => {
            let shares =
                predictions.iter().map(|p| format!("{} ({})", percent(p.lossless_removed, p.num_tokens), p.scoring));
            format!("{} of the tokens to remove", shares.collect::<Vec<_>>().join(", "))
        }
    };
    if on_a_sphere {
        let why = "all tokens lie on one sphere, where none is a mixture of others";
        return format!("--lossless will find {found}: {why}; prune with --epsilon instead");
    }
    format!("--lossless will find {found}, judging by the sample")
}

impl Report for InspectReport {
    fn text(&self) -> String {
        let Quantiles { min, p5, p25, p50, p75, p95, max } = &self.lengths;
        let lengths = format!("{min} / {p5} / {p25} / {p50} / {p75} / {p95} / {max}");
        let Quantiles { min, p5, p25, p50, p75, p95, max } = &self.norms;
        let norms = format!("{min:.3} / {p5:.3} / {p25:.3} / {p50:.3} / {p75:.3} / {p95:.3} / {max:.3}");
        let mut text = format!(
            "documents   {docs}, {empty} of them empty\n\
             tokens      {tokens} of {dim} {dtype}, {size}\n\
             lengths     {lengths}  (min / 5 / 25 / 50 / 75 / 95 % / max)\n\
             norms       {norms}\n\
             rank        {rank} of {dim}; {directions} directions hold 90 % (from {rank_tokens} tokens)\n\
             duplicates  {duplicates} within their documents ({share})\n\
             zeros       {zeros}\n\
             lossless    {lossless}\n\
             predicted to keep (from {sampled} documents)\n",
            docs = count(self.num_docs),
            empty = count(self.num_empty_docs),
            tokens = count(self.num_tokens),
            dim = self.dim,
            dtype = self.dtype,
            size = bytes(self.token_bytes),
            rank = self.rank.rank,
            directions = self.rank.directions_90,
            rank_tokens = count(self.rank.num_tokens as u64),
            duplicates = count(self.num_duplicate_tokens),
            share = percent(self.num_duplicate_tokens, self.num_tokens),
            zeros = count(self.num_zero_tokens),
            lossless = self.lossless,
            sampled = count(self.num_sampled_docs as u64),
        );
        text += "  epsilon ";
        EPSILONS.iter().for_each(|epsilon| text += &format!("{epsilon:>9}"));
        for prediction in &self.predictions {
            text += &format!("\n  {:<8}", prediction.scoring);
            prediction.keep.iter().for_each(|rate| text += &format!("{:>7.1} %", 100.0 * rate.kept_share));
        }
        text + "\n"
    }
}
