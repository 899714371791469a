//! `dominance`, `selection` and `compact` on Gram matrices that are already there.

use rayon::prelude::*;

use super::gram::{Docs, Lengths};
use super::input::DIM;
use super::{BenchError, Each, Launch, Options, Row, Work, check, deliver, download, empty, filled, larger, measure};
use crate::device::Device;
use crate::engine::cpu::dominance::ROUNDING;
use crate::engine::gpu::batch::certified_margin;
use crate::engine::{CpuEngine, Decision, Engine, Goal};
use crate::kernel::{
    CLAMPED, COMPACT_THREADS, COPY_CHUNKS, CeilingParams, DOC_DONE, DOMINANCE_THREADS, Doc, DocResult, Encoding, Entry,
    FACE_CAP, Kernel, PLACE_STRIDE, SelectionParams, TOKEN_NEEDED, TOKEN_SOLVED, TOKEN_STALLED, TokenState, Variant,
};
use crate::{DType, Scoring};

/// Tolerance: keeps about half of these tokens.
pub(super) const EPSILON: f32 = 0.2;
/// Share of the tokens that device and CPU may decide differently: those within rounding of the tolerance.
const TIES: f64 = 0.005;

/// What the kernels write.
struct Faces<D: Device> {
    faces: D::Buffer,
    states: D::Buffer,
}

/// The same on the host.
struct Found {
    faces: Vec<Entry>,
    states: Vec<TokenState>,
}

impl<D: Device> Faces<D> {
    fn new(device: &D, num_tokens: usize) -> Result<Self, BenchError> {
        let num_slots = num_tokens * FACE_CAP as usize;
        Ok(Faces { faces: empty::<D, Entry>(device, num_slots)?, states: empty::<D, TokenState>(device, num_tokens)? })
    }

    fn download(&self, device: &D, num_tokens: usize) -> Result<Found, BenchError> {
        let num_slots = num_tokens * FACE_CAP as usize;
        Ok(Found {
            faces: download(device, &self.faces, num_slots)?,
            states: download(device, &self.states, num_tokens)?,
        })
    }
}

impl Found {
    /// By how much the squared distance of a token to the point that it rests on is above what the device says.
    fn excess(&self, tokens: &[f32], doc: &Doc, token_idx: usize) -> f64 {
        let at = doc.first_token as usize + token_idx;
        let state = self.states[at];
        let face = &self.faces[at * FACE_CAP as usize..][..state.num_support.min(FACE_CAP) as usize];
        excess(tokens, doc.num_tokens as usize, token_idx, face, f64::from(state.upper))
    }
}

/// By how much the squared distance of a token to the point that it rests on is above `upper`.
fn excess(tokens: &[f32], num_tokens: usize, token_idx: usize, face: &[Entry], upper: f64) -> f64 {
    let row = |token_idx: usize| tokens[token_idx * DIM..][..DIM].iter().map(|&x| f64::from(x));
    let mut residual: Vec<f64> = row(token_idx).collect();
    let mut sum = 0.0;
    for entry in face {
        let (support, weight) = (entry.vertex as usize, f64::from(entry.weight));
        if support >= num_tokens || weight < 0.0 {
            return f64::INFINITY;
        }
        sum += weight;
        residual.iter_mut().zip(row(support)).for_each(|(r, x)| *r -= weight * x);
    }
    let squared: f64 = residual.iter().map(|r| r * r).sum();
    // Weights sum to at most 1; what they are off by moves the point by as much.
    larger(squared - upper, (sum - 1.0).max(0.0))
}

/// Rounding of a squared distance in the worst case.
fn margin<D: Device>(device: &D) -> f32 {
    certified_margin(DIM, device.limits().truncates)
}

fn params<D: Device>(device: &D, num_items: usize) -> SelectionParams {
    SelectionParams {
        num_items: num_items as u32,
        scoring: CLAMPED,
        is_project: 0,
        inside: EPSILON * EPSILON,
        stop: -1.0,
        rounding: ROUNDING,
        margin: margin(device),
        max_steps: u32::MAX,
        ..SelectionParams::default()
    }
}

fn variant<D: Device>(device: &D, kernel: Kernel) -> Variant {
    Variant {
        kernel,
        encoding: Encoding::F32,
        subgroups: device.limits().subgroup_sizes.is_some(),
        cooperative: None,
        is_wide: false,
    }
}

/// Bytes of the matrices and of what is said of each token.
fn work<D: Device>(docs: &Docs<D>, token_bytes: usize) -> Work {
    let tokens = docs.corpus.num_tokens();
    Work { bytes: (docs.gram_len * 4 + tokens * token_bytes) as u64, flop: None, tokens: tokens as u64 }
}

fn dominance<D: Device>(device: &D, options: &Options, docs: &Docs<D>) -> Result<Row, BenchError> {
    let (num_tokens, shape) = (docs.corpus.num_tokens(), format!("{}, epsilon {EPSILON}", docs.shape()));
    let chunks = |doc: &Doc| {
        let doc_idx = doc.doc_idx;
        (0..doc.num_tokens).step_by(DOMINANCE_THREADS as usize).map(move |first| [doc_idx, first])
    };
    let items: Vec<[u32; 2]> = docs.docs.iter().flat_map(chunks).collect();
    let items_buffer = filled(device, &items)?;
    let faces = Faces::new(device, num_tokens)?;
    let launch = Launch {
        variant: variant(device, Kernel::Dominance),
        arguments: vec![&docs.gram, &docs.docs_buffer, &items_buffer, &faces.faces, &faces.states],
        params: bytemuck::bytes_of(&params(device, items.len())).to_vec(),
        num_workgroups: items.len() as u64,
    };
    launch.start(device)?;
    let found = faces.download(device, num_tokens)?;
    let worst = |doc: &Doc| {
        let tokens = docs.corpus.doc_f32(doc.doc_idx as usize);
        let removable = |i: &usize| found.states[doc.first_token as usize + i].status == TOKEN_SOLVED;
        let excess = |i| found.excess(&tokens, doc, i);
        (0..doc.num_tokens as usize).filter(removable).map(excess).fold(0.0, larger)
    };
    let difference = (docs.docs.par_iter().map(worst).reduce(|| 0.0, larger), f64::from(margin(device)));
    check("dominance", &shape, "a squared distance", difference.0, difference.1)?;
    let expected = CpuEngine::new().decide(&docs.corpus.batch(), Scoring::Clamped, EPSILON)?;
    let differs = |(decision, state): &(Decision, &TokenState)| match state.status {
        TOKEN_SOLVED => !matches!(decision, Decision::Removable(_)),
        TOKEN_NEEDED => *decision != Decision::Needed,
        _ => false,
    };
    let num_different = expected.into_iter().flatten().zip(&found.states).filter(differs).count();
    check("dominance", &shape, "the share of decisions", num_different as f64 / num_tokens as f64, TIES)?;
    let num_stalled = found.states.iter().filter(|state| state.status == TOKEN_STALLED).count();
    check("dominance", &shape, "the share of undecided tokens", num_stalled as f64 / num_tokens as f64, 0.05)?;
    let timing = launch.time(device, options)?;
    Ok(Row { name: "dominance", shape, work: work(docs, size_of::<TokenState>()), difference, timing, cold: None })
}

/// An order that has the longest token of each document and no more.
fn longest_first<D: Device>(docs: &Docs<D>) -> Vec<u32> {
    let mut first = vec![0u32; docs.corpus.num_tokens()];
    for doc in &docs.docs {
        let tokens = docs.corpus.doc_f32(doc.doc_idx as usize);
        let norms = tokens.chunks_exact(DIM).map(|row| row.iter().map(|x| x * x).sum::<f32>());
        let longest = norms.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(i, _)| i);
        first[doc.first_token as usize] = longest as u32;
    }
    first
}

fn selection<D: Device>(device: &D, options: &Options, docs: &Docs<D>) -> Result<Row, BenchError> {
    let (num_tokens, shape) = (docs.corpus.num_tokens(), format!("{}, epsilon {EPSILON}", docs.shape()));
    let order = filled(device, &longest_first(docs))?;
    let curve = empty::<D, f32>(device, num_tokens)?;
    let results = empty::<D, DocResult>(device, docs.docs.len())?;
    let faces = Faces::new(device, num_tokens)?;
    let launch = Launch {
        variant: variant(device, Kernel::Selection),
        arguments: vec![&docs.gram, &docs.docs_buffer, &faces.faces, &faces.states, &order, &curve, &results],
        params: bytemuck::bytes_of(&params(device, docs.docs.len())).to_vec(),
        num_workgroups: docs.docs.len() as u64,
    };
    launch.start(device)?;
    let found = faces.download(device, num_tokens)?;
    let order: Vec<u32> = download(device, &order, num_tokens)?;
    let results: Vec<DocResult> = download(device, &results, docs.docs.len())?;
    let worst = |doc: &Doc| {
        let result = results[doc.doc_idx as usize];
        let (start, n) = (doc.first_token as usize, doc.num_tokens as usize);
        let mut kept = vec![false; n];
        for &i in &order[start..start + (result.num_kept as usize).min(n)] {
            if i as usize >= n || std::mem::replace(&mut kept[i as usize], true) {
                return f64::INFINITY;
            }
        }
        let tokens = docs.corpus.doc_f32(doc.doc_idx as usize);
        let excess = |i: usize| {
            let above = f64::from(found.states[start + i].upper) - f64::from(EPSILON * EPSILON);
            larger(found.excess(&tokens, doc, i), above)
        };
        (0..n).filter(|&i| !kept[i]).map(excess).fold(0.0, larger)
    };
    let difference = (docs.docs.par_iter().map(worst).reduce(|| 0.0, larger), f64::from(margin(device)));
    check("selection", &shape, "a squared distance", difference.0, difference.1)?;
    let num_unfinished = results.iter().filter(|result| result.status != DOC_DONE).count();
    check("selection", &shape, "the number of finished documents", num_unfinished as f64, 0.0)?;
    let expected = CpuEngine::new().select(&docs.corpus.batch(), Scoring::Clamped, Goal::Epsilon(EPSILON), None)?;
    let expected: usize = expected.iter().map(|selection| selection.order.len()).sum();
    let num_kept: usize = results.iter().map(|result| result.num_kept as usize).sum();
    let off = num_kept.abs_diff(expected) as f64 / num_tokens as f64;
    check("selection", &shape, "the share of kept tokens", off, TIES)?;
    let timing = launch.time(device, options)?;
    let shape = format!("{shape}, {:.0} % kept", 100.0 * num_kept as f64 / num_tokens as f64);
    Ok(Row { name: "selection", shape, work: work(docs, size_of::<TokenState>()), difference, timing, cold: None })
}

/// A buffer that [`Kernel::CeilingCopy`] can copy.
fn copyable<D: Device>(device: &D, values: &[u32]) -> Result<D::Buffer, BenchError> {
    let mut padded = values.to_vec();
    padded.resize(values.len().next_multiple_of(4 * COPY_CHUNKS as usize), 0);
    Ok(filled(device, &padded)?)
}

fn copy<'a, D: Device>(device: &D, from: &'a D::Buffer, to: &'a D::Buffer, len: usize) -> Launch<'a, D> {
    let num_workgroups = len.div_ceil(4 * COPY_CHUNKS as usize);
    let params = CeilingParams { num_items: num_workgroups as u32, ..CeilingParams::default() };
    Launch {
        variant: variant(device, Kernel::CeilingCopy),
        arguments: vec![from, to],
        params: bytemuck::bytes_of(&params).to_vec(),
        num_workgroups: num_workgroups as u64,
    }
}

fn compact<D: Device>(device: &D, options: &Options, docs: &Docs<D>) -> Result<Row, BenchError> {
    let (num_tokens, num_docs) = (docs.corpus.num_tokens(), docs.docs.len());
    let shape = format!("{}, epsilon {EPSILON}", docs.shape());
    let chunks = |doc: &Doc| {
        let (doc, most) = (*doc, doc.num_tokens - doc.num_first);
        (0..most).step_by(COMPACT_THREADS as usize).map(move |first_removed| Doc { first_removed, ..doc })
    };
    let chunks: Vec<Doc> = docs.docs.iter().flat_map(chunks).collect();
    let (chunks_buffer, faces) = (filled(device, &chunks)?, Faces::new(device, num_tokens)?);
    let order = copyable(device, &longest_first(docs))?;
    let curve = empty::<D, f32>(device, num_tokens)?;
    let results = empty::<D, DocResult>(device, num_docs)?;
    let entries = empty::<D, Entry>(device, num_tokens * FACE_CAP as usize)?;
    let cursor = copyable(device, &[0])?;
    let selection = Launch {
        variant: variant(device, Kernel::Selection),
        arguments: vec![&docs.gram, &docs.docs_buffer, &faces.faces, &faces.states, &order, &curve, &results],
        params: bytemuck::bytes_of(&params(device, num_docs)).to_vec(),
        num_workgroups: num_docs as u64,
    };
    selection.start(device)?;
    let kept: Vec<u32> = download(device, &order, num_tokens)?;
    let found = faces.download(device, num_tokens)?;
    // What a launch of it takes up is given back before the next.
    let (kept_buffer, zero) = (copyable(device, &kept)?, copyable(device, &[0])?);
    let (places_back, cursor_back) = (copy(device, &kept_buffer, &order, num_tokens), copy(device, &zero, &cursor, 1));
    let launch = Launch {
        variant: variant(device, Kernel::Compact),
        arguments: vec![&docs.gram, &chunks_buffer, &faces.faces, &faces.states, &order, &results, &entries, &cursor],
        params: bytemuck::bytes_of(&params(device, chunks.len())).to_vec(),
        num_workgroups: chunks.len() as u64,
    };
    launch.start(device)?;
    let results: Vec<DocResult> = download(device, &results, num_docs)?;
    let places: Vec<u32> = download(device, &order, num_tokens)?;
    let num_entries = download::<D, u32>(device, &cursor, 1)?[0] as usize;
    let entries: Vec<Entry> = download(device, &entries, num_entries.min(num_tokens * FACE_CAP as usize))?;
    let worst = |doc: &Doc| {
        let (start, n) = (doc.first_token as usize, doc.num_tokens as usize);
        let num_kept = (results[doc.doc_idx as usize].num_kept as usize).min(n);
        let (kept, places) = places[start..start + n].split_at(num_kept);
        let tokens = docs.corpus.doc_f32(doc.doc_idx as usize);
        let removed = (0..n).filter(|&i| !kept.contains(&(i as u32)));
        let excess = |(i, &place): (usize, &u32)| {
            let (first, len) = ((place / PLACE_STRIDE) as usize, (place % PLACE_STRIDE) as usize);
            match len.checked_sub(1).and_then(|len| entries.get(first..first + len)) {
                Some(face) => excess(&tokens, n, i, face, f64::from(EPSILON * EPSILON)),
                None => f64::INFINITY,
            }
        };
        removed.zip(places).map(excess).fold(0.0, larger)
    };
    let difference = (docs.docs.par_iter().map(worst).reduce(|| 0.0, larger), f64::from(margin(device)));
    check("compact", &shape, "a squared distance", difference.0, difference.1)?;
    let num_removed = num_tokens - results.iter().map(|result| result.num_kept as usize).sum::<usize>();
    let num_before: usize = found.states.iter().map(|state| state.num_support as usize).sum();
    let timing = measure(options, |num_launches| {
        device.time(&mut || {
            (0..num_launches).try_for_each(|_| {
                places_back.start(device)?;
                cursor_back.start(device)?;
                launch.start(device)
            })
        })
    })?;
    // Nothing is timed that had been done before; faces that were shrunk may shrink further.
    let again = download::<D, u32>(device, &cursor, 1)?[0] as usize;
    let missing = if again == 0 { num_entries } else { again.saturating_sub(num_entries) };
    check("compact", &shape, "the number of entries, timed,", missing as f64, 0.0)?;
    let per_removed = |num_entries: usize| num_entries as f64 / num_removed.max(1) as f64;
    let shape =
        format!("{shape}, {:.1} entries a removed token of {:.1}", per_removed(num_entries), per_removed(num_before));
    let work = work(docs, size_of::<TokenState>());
    let work = Work { bytes: work.bytes + ((num_before + num_entries) * size_of::<Entry>()) as u64, ..work };
    Ok(Row { name: "compact", shape, work, difference, timing, cold: None })
}

pub(super) fn run<D: Device>(device: &D, options: &Options, each: &mut Each<'_>) -> Result<(), BenchError> {
    if !["dominance", "selection", "compact"].iter().any(|name| options.wants(name)) {
        return Ok(());
    }
    for lengths in [Lengths::Ragged, Lengths::Even] {
        let docs = Docs::new(device, options, DType::F16, lengths)?;
        docs.gram().start(device)?;
        if options.wants("dominance") {
            deliver(each, dominance(device, options, &docs))?;
        }
        if options.wants("selection") {
            deliver(each, selection(device, options, &docs))?;
        }
        if options.wants("compact") {
            deliver(each, compact(device, options, &docs))?;
        }
    }
    Ok(())
}
