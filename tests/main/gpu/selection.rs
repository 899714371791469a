//! `selection` and `dominance` against the CPU engine and the proofs, from Gram matrices made here.

use std::collections::BTreeSet;

use maxhull::certificate::{DocProver, ProofScratch, Proposal, TokenProver, Weights};
use maxhull::device::Device;
use maxhull::device::wgpu::WgpuDevice;
use maxhull::engine::{self, CpuEngine, Decision, Engine, Goal};
use maxhull::kernel::{self, Doc, DocResult, Encoding, Kernel, SelectionParams, TokenState, Variant};
use maxhull::{Scoring, TokenBatch, TokenData, reference};

use super::devices;
use crate::common::{Random, encoder_like, offsets};

const SCORINGS: [Scoring; 2] = [Scoring::Plain, Scoring::Clamped];
/// As the CPU engine's.
const ROUNDING: f32 = 2e-6;
/// Rounds of a launch.
const MAX_ROUNDS: u32 = 4;
/// What buffers hold where nothing was written.
const UNTOUCHED: u32 = 0xdead_beef;

/// Documents with their Gram matrices, in the order and with the gaps of a device batch.
struct Input {
    dim: usize,
    lengths: Vec<usize>,
    tokens: Vec<f32>,
    scoring: Scoring,
    gram: Vec<f32>,
    docs: Vec<Doc>,
    order: Vec<u32>,
}

impl Input {
    /// `always_kept[d]` lists the first tokens of document `d`; the longest where it is empty or missing.
    fn new(tokens: &[f32], lengths: &[usize], dim: usize, scoring: Scoring, always_kept: &[Vec<u32>]) -> Self {
        let num_tokens: usize = lengths.iter().sum();
        let mut order = vec![UNTOUCHED; num_tokens.max(4)];
        let (mut gram, mut docs) = (Vec::new(), Vec::new());
        let mut first = 0;
        for (doc_idx, &n) in lengths.iter().enumerate() {
            let rows = &tokens[first * dim..(first + n) * dim];
            let longest = longest(rows, dim);
            let always: &[u32] = always_kept.get(doc_idx).map_or(&[], Vec::as_slice);
            let kept = if always.is_empty() && n > 0 { &[longest][..] } else { always };
            order[first..first + kept.len()].copy_from_slice(kept);
            docs.push(Doc {
                first_token: first as u32,
                num_tokens: n as u32,
                gram_start: gram.len() as u32,
                num_first: kept.len().max(1) as u32,
                max_kept: n as u32,
                doc_idx: doc_idx as u32,
                ..Doc::default()
            });
            push_gram(&mut gram, rows, n, dim, scoring);
            first += n;
        }
        // Documents come in any order.
        docs.reverse();
        Input { dim, lengths: lengths.to_vec(), tokens: tokens.to_vec(), scoring, gram, docs, order }
    }

    fn random(random: &mut Random, lengths: &[usize], dim: usize, scoring: Scoring) -> Self {
        let tokens = encoder_like(random, lengths.iter().sum(), dim);
        Input::new(&tokens, lengths, dim, scoring, &[])
    }

    fn with_max_kept(mut self, max_kept: impl Fn(usize) -> usize) -> Self {
        for doc in &mut self.docs {
            doc.max_kept = max_kept(doc.num_tokens as usize) as u32;
        }
        self
    }

    fn offsets(&self) -> Vec<u64> {
        offsets(0, &self.lengths)
    }

    fn params(&self, num_items: usize) -> SelectionParams {
        SelectionParams {
            num_items: num_items as u32,
            num_tokens: self.lengths.iter().sum::<usize>() as u32,
            scoring: match self.scoring {
                Scoring::Plain => kernel::PLAIN,
                Scoring::Clamped => kernel::CLAMPED,
            },
            is_project: 0,
            inside: -1.0,
            stop: -1.0,
            rounding: ROUNDING,
            margin: margin(self.dim),
            max_rounds: MAX_ROUNDS,
            ..SelectionParams::default()
        }
    }
}

/// As the CPU engine's.
fn margin(dim: usize) -> f32 {
    (4 * dim + 4 * 48 + 64) as f32 / (1 << 24) as f32
}

fn longest(rows: &[f32], dim: usize) -> u32 {
    let mut best = (-1.0, 0);
    for (token_idx, row) in rows.chunks_exact(dim).enumerate() {
        let norm = row.iter().map(|x| x * x).sum::<f32>();
        if norm > best.0 {
            best = (norm, token_idx as u32);
        }
    }
    best.1
}

/// Appends the matrix of one document, centred where the kernels see it centred; NaN where nothing may be read.
fn push_gram(gram: &mut Vec<f32>, rows: &[f32], n: usize, dim: usize, scoring: Scoring) {
    let mut rows: Vec<f64> = rows.iter().map(|&x| f64::from(x)).collect();
    if scoring == Scoring::Plain {
        for k in 0..dim {
            let mean = rows.iter().skip(k).step_by(dim).sum::<f64>() / n as f64;
            rows.iter_mut().skip(k).step_by(dim).for_each(|x| *x -= mean);
        }
    }
    let row = |i: usize| &rows[i * dim..(i + 1) * dim];
    let start = gram.len();
    let stride = kernel::gram_stride(n as u32) as usize;
    gram.resize(start + n * stride, f32::NAN);
    for i in 0..n {
        for j in 0..=i {
            let product = row(i).iter().zip(row(j)).map(|(a, b)| a * b).sum::<f64>() as f32;
            gram[start + i * stride + j] = product;
            gram[start + j * stride + i] = product;
        }
    }
}

/// What a kernel left behind for one document.
#[derive(Debug, Clone, PartialEq)]
struct Output {
    result: DocResult,
    order: Vec<u32>,
    curve: Vec<f32>,
    states: Vec<TokenState>,
    supports: Vec<Vec<(u32, f32)>>,
}

impl Output {
    /// Token's support, ascending, in integer weights.
    fn proposal(&self, token_idx: usize, scoring: Scoring) -> engine::Proposal {
        let mut pairs = self.supports[token_idx].clone();
        pairs.sort_unstable_by_key(|pair| pair.0);
        let (support, weights): (Vec<u32>, Vec<f32>) = pairs.into_iter().unzip();
        engine::Proposal::quantise(&support, &weights, scoring)
    }

    fn kept(&self) -> BTreeSet<u32> {
        self.order.iter().copied().collect()
    }
}

struct Buffers<'a> {
    device: &'a WgpuDevice,
}

impl Buffers<'_> {
    fn filled(&self, bytes: &[u8]) -> <WgpuDevice as Device>::Buffer {
        let buffer = self.device.alloc((bytes.len() as u64).next_multiple_of(16).max(16)).unwrap();
        self.device.upload(&buffer, bytes).unwrap();
        buffer
    }

    fn untouched(&self, num_words: usize) -> <WgpuDevice as Device>::Buffer {
        self.filled(bytemuck::cast_slice(&vec![UNTOUCHED; num_words.next_multiple_of(4).max(4)]))
    }

    fn read(&self, buffer: &<WgpuDevice as Device>::Buffer, num_words: usize) -> Vec<u32> {
        if num_words == 0 {
            return Vec::new();
        }
        let download = self.device.download(&[(buffer, 4 * num_words as u64)]).unwrap();
        let mut words = Vec::new();
        self.device
            .read(download, &mut |parts| words.extend(bytemuck::pod_collect_to_vec::<u8, u32>(parts[0])))
            .unwrap();
        words
    }
}

fn variant(kernel: Kernel, subgroups: bool) -> Variant {
    Variant { kernel, encoding: Encoding::F32, subgroups, cooperative: false }
}

fn select(device: &WgpuDevice, subgroups: bool, input: &Input, params: SelectionParams) -> Vec<Output> {
    let num_tokens = params.num_tokens as usize;
    let slots = kernel::FACE_CAP as usize * num_tokens;
    let with = Buffers { device };
    let gram = with.filled(bytemuck::cast_slice(&input.gram));
    let docs = with.filled(bytemuck::cast_slice(&input.docs));
    let (support, weights) = (with.untouched(slots), with.untouched(slots));
    let states = with.untouched(4 * num_tokens);
    let order = with.filled(bytemuck::cast_slice(&input.order));
    let (curve, results) = (with.untouched(num_tokens), with.untouched(4 * input.docs.len()));
    let arguments = [&gram, &docs, &support, &weights, &states, &order, &curve, &results];
    let num_workgroups = u64::from(params.num_items) + 1;
    let mut params = params;
    loop {
        let bytes = bytemuck::bytes_of(&params);
        device.launch(variant(Kernel::Selection, subgroups), &arguments, bytes, num_workgroups).unwrap();
        let results = with.read(&results, 4 * input.docs.len());
        if results.chunks(4).all(|result| result[1] != kernel::DOC_UNFINISHED) {
            break;
        }
        params.is_resumed = 1;
    }
    let (support, weights) = (with.read(&support, slots), with.read(&weights, slots));
    let states = states_of(&with.read(&states, 4 * num_tokens));
    let (order, curve) = (with.read(&order, num_tokens), with.read(&curve, num_tokens));
    let results = with.read(&results, 4 * input.docs.len());
    let mut outputs = vec![None; input.docs.len()];
    for doc in &input.docs {
        let result: DocResult =
            bytemuck::pod_read_unaligned(bytemuck::cast_slice(&results[4 * doc.doc_idx as usize..][..4]));
        let (first, n, k) = (doc.first_token as usize, doc.num_tokens as usize, result.num_kept as usize);
        // Nothing is written where nobody asked for it.
        assert!(
            order[first + k.max(if n > 0 { doc.num_first as usize } else { 0 })..first + n]
                .iter()
                .all(|&x| x == UNTOUCHED)
        );
        let first_curve = (doc.num_first as usize - 1).min(n);
        assert!(curve[first..first + first_curve].iter().all(|&x| x == UNTOUCHED));
        assert!(curve[first + k..first + n].iter().all(|&x| x == UNTOUCHED));
        outputs[doc.doc_idx as usize] = Some(Output {
            result,
            order: order[first..first + k].to_vec(),
            curve: curve[first..first + k].iter().map(|&bits| f32::from_bits(bits)).collect(),
            states: states[first..first + n].to_vec(),
            supports: supports_of(&support, &weights, &states, first..first + n, num_tokens),
        });
    }
    outputs.into_iter().flatten().collect()
}

fn dominate(device: &WgpuDevice, input: &Input, epsilon: f32) -> Vec<Output> {
    let threads = kernel::DOMINANCE_THREADS;
    let items: Vec<[u32; 2]> = (0u32..)
        .zip(&input.docs)
        .flat_map(|(at, doc)| (0..doc.num_tokens).step_by(threads as usize).map(move |token| [at, token]))
        .collect();
    let params = SelectionParams { inside: epsilon * epsilon, ..input.params(items.len()) };
    let num_tokens = params.num_tokens as usize;
    let slots = kernel::FACE_CAP as usize * num_tokens;
    let with = Buffers { device };
    let gram = with.filled(bytemuck::cast_slice(&input.gram));
    let docs = with.filled(bytemuck::cast_slice(&input.docs));
    let item_buffer = with.filled(bytemuck::cast_slice(&items));
    let (support, weights) = (with.untouched(slots), with.untouched(slots));
    let states = with.untouched(4 * num_tokens);
    let arguments = [&gram, &docs, &item_buffer, &support, &weights, &states];
    let num_workgroups = items.len() as u64 + 1;
    device.launch(variant(Kernel::Dominance, false), &arguments, bytemuck::bytes_of(&params), num_workgroups).unwrap();
    let (support, weights) = (with.read(&support, slots), with.read(&weights, slots));
    let states = states_of(&with.read(&states, 4 * num_tokens));
    let mut outputs: Vec<Output> = input
        .docs
        .iter()
        .map(|doc| {
            let tokens = doc.first_token as usize..(doc.first_token + doc.num_tokens) as usize;
            Output {
                result: DocResult::default(),
                order: Vec::new(),
                curve: Vec::new(),
                states: states[tokens.clone()].to_vec(),
                supports: supports_of(&support, &weights, &states, tokens, num_tokens),
            }
        })
        .collect();
    outputs.reverse();
    outputs
}

fn states_of(words: &[u32]) -> Vec<TokenState> {
    bytemuck::pod_collect_to_vec(words)
}

fn supports_of(
    support: &[u32],
    weights: &[u32],
    states: &[TokenState],
    tokens: std::ops::Range<usize>,
    num_tokens: usize,
) -> Vec<Vec<(u32, f32)>> {
    let support_of = |token: usize| {
        let len = if states[token].num_support > kernel::FACE_CAP { 0 } else { states[token].num_support };
        let slots = (0..len as usize).map(|slot| slot * num_tokens + token);
        slots.map(|at| (support[at], f32::from_bits(weights[at]))).collect()
    };
    tokens.map(support_of).collect()
}

/// Proves every removal of a document and returns how far the tokens are; panics where a claim is refused.
fn prove(input: &Input, doc_idx: usize, output: &Output, tolerance: f32) {
    let offsets = input.offsets();
    let batch = TokenBatch::new(TokenData::F32(&input.tokens), &offsets, input.dim).unwrap();
    let n = input.lengths[doc_idx];
    let mut kept = vec![false; n];
    output.order.iter().for_each(|&token_idx| kept[token_idx as usize] = true);
    let mut scratch = ProofScratch::default();
    let mut prover = DocProver::new(batch.doc(doc_idx), input.dim, input.scoring, &kept, &mut scratch).unwrap();
    for token_idx in (0..n).filter(|&token_idx| !kept[token_idx]) {
        let found = output.proposal(token_idx, input.scoring);
        let weights = Weights::Fixed(&found.weights);
        let proposal = Proposal { token_idx: token_idx as u32, support: &found.support, weights };
        let upper = output.states[token_idx].upper;
        let unit = output.result.unit;
        let claimed = ((upper + ROUNDING * unit).sqrt() * 1.000_001).min(tolerance);
        let proven = prover.remove(&proposal, claimed);
        if !proven.is_ok() {
            let s = &output.supports[token_idx];
            println!("curve {:?} uppers {:?}", output.curve, output.states.iter().map(|s| s.upper).collect::<Vec<_>>());
            println!("{:?} {s:?} sum {}", output.states[token_idx], s.iter().map(|p| p.1).sum::<f32>());
        }
        assert!(proven.is_ok(), "{} doc {doc_idx} token {token_idx}: {proven:?}", input.scoring);
    }
}

#[test]
fn measure() {
    let Some(device) = devices().first() else { return };
    let mut random = Random(11);
    for (dim, lengths) in [(7, vec![1, 2, 63, 64, 65]), (48, vec![130, 0, 1, 2, 64]), (128, vec![300, 65, 130])] {
        for scoring in SCORINGS {
            let input = Input::random(&mut random, &lengths, dim, scoring);
            let offsets = input.offsets();
            let batch = TokenBatch::new(TokenData::F32(&input.tokens), &offsets, dim).unwrap();
            for epsilon in [0.3f32, 0.15] {
                let params = SelectionParams { inside: epsilon * epsilon, ..input.params(lengths.len()) };
                let begun = std::time::Instant::now();
                let found = select(device, false, &input, params);
                let took = begun.elapsed();
                let cpu = CpuEngine::new().select(&batch, scoring, Goal::Epsilon(epsilon), None).unwrap();
                for (d, (f, c)) in found.iter().zip(&cpu).enumerate() {
                    let ck: BTreeSet<u32> = c.order.iter().copied().collect();
                    let common = f.kept().intersection(&ck).count();
                    let stalled = f.states.iter().filter(|s| s.status == 1).count();
                    let most = f.supports.iter().map(Vec::len).max();
                    println!(
                        "{scoring} dim {dim} n {} eps {epsilon}: {:?} kept {} cpu {} common {common} stalled {stalled} support {most:?} {took:?}",
                        lengths[d],
                        f.result,
                        f.order.len(),
                        ck.len()
                    );
                    if f.result.status == kernel::DOC_DONE {
                        prove(&input, d, f, epsilon)
                    }
                }
            }
        }
    }
}
