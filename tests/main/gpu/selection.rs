//! `selection` and `dominance` against the CPU engine and the proofs, from Gram matrices made here. The tests of CUDA run
//! all of it too.

use std::collections::BTreeSet;

use maxhull::certificate::{DocProver, ProofScratch, Proposal, TokenProver, Weights};
use maxhull::device::Device;
use maxhull::engine::{self, CpuEngine, Decision, Engine, Goal};
use maxhull::half::f16;
use maxhull::kernel::{self, Doc, DocResult, Encoding, Entry, Kernel, SelectionParams, TokenState, Variant};
use maxhull::{Scoring, TokenBatch, TokenData, reference};

use super::{TestDevice, devices};
use crate::common::{Random, encoder_like, offsets};

const SCORINGS: [Scoring; 2] = [Scoring::Plain, Scoring::Clamped];
/// As the CPU engine's.
const ROUNDING: f32 = 2e-6;
/// Steps of a launch: few, since software devices leave loops after 65,535 turns.
const MAX_STEPS: u32 = 3;
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
            scoring: match self.scoring {
                Scoring::Plain => kernel::PLAIN,
                Scoring::Clamped => kernel::CLAMPED,
            },
            is_project: 0,
            inside: -1.0,
            stop: -1.0,
            rounding: ROUNDING,
            margin: margin(self.dim),
            max_steps: MAX_STEPS,
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
    device: &'a TestDevice,
}

impl Buffers<'_> {
    fn filled(&self, bytes: &[u8]) -> <TestDevice as Device>::Buffer {
        let buffer = self.device.alloc((bytes.len() as u64).next_multiple_of(16).max(16)).unwrap();
        self.device.upload(&buffer, bytes).unwrap();
        buffer
    }

    fn untouched(&self, num_words: usize) -> <TestDevice as Device>::Buffer {
        self.filled(bytemuck::cast_slice(&vec![UNTOUCHED; num_words.next_multiple_of(4).max(4)]))
    }

    fn read(&self, buffer: &<TestDevice as Device>::Buffer, num_words: usize) -> Vec<u32> {
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
    Variant { kernel, encoding: Encoding::F32, subgroups, cooperative: None, is_wide: false }
}

fn select(device: &TestDevice, subgroups: bool, input: &Input, params: SelectionParams) -> Vec<Output> {
    let num_tokens: usize = input.lengths.iter().sum();
    let slots = kernel::FACE_CAP as usize * num_tokens;
    let with = Buffers { device };
    let gram = with.filled(bytemuck::cast_slice(&input.gram));
    let docs = with.filled(bytemuck::cast_slice(&input.docs));
    let faces = with.untouched(2 * slots);
    let states = with.untouched(4 * num_tokens);
    let order = with.filled(bytemuck::cast_slice(&input.order));
    let (curve, results) = (with.untouched(num_tokens), with.untouched(4 * input.docs.len()));
    let arguments = [&gram, &docs, &faces, &states, &order, &curve, &results];
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
    let faces = faces_of(&with.read(&faces, 2 * slots));
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
            supports: supports_of(&faces, &states, first..first + n),
        });
    }
    outputs.into_iter().flatten().collect()
}

fn dominate(device: &TestDevice, input: &Input, epsilon: f32) -> Vec<Output> {
    let threads = kernel::DOMINANCE_THREADS;
    let items: Vec<[u32; 2]> = (0u32..)
        .zip(&input.docs)
        .flat_map(|(at, doc)| (0..doc.num_tokens).step_by(threads as usize).map(move |token| [at, token]))
        .collect();
    let params = SelectionParams { inside: epsilon * epsilon, ..input.params(items.len()) };
    let num_tokens: usize = input.lengths.iter().sum();
    let slots = kernel::FACE_CAP as usize * num_tokens;
    let with = Buffers { device };
    let gram = with.filled(bytemuck::cast_slice(&input.gram));
    let docs = with.filled(bytemuck::cast_slice(&input.docs));
    let item_buffer = with.filled(bytemuck::cast_slice(&items));
    let faces = with.untouched(2 * slots);
    let states = with.untouched(4 * num_tokens);
    let arguments = [&gram, &docs, &item_buffer, &faces, &states];
    let num_workgroups = items.len() as u64 + 1;
    device.launch(variant(Kernel::Dominance, false), &arguments, bytemuck::bytes_of(&params), num_workgroups).unwrap();
    let faces = faces_of(&with.read(&faces, 2 * slots));
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
                supports: supports_of(&faces, &states, tokens),
            }
        })
        .collect();
    outputs.reverse();
    outputs
}

fn states_of(words: &[u32]) -> Vec<TokenState> {
    bytemuck::pod_collect_to_vec(words)
}

fn faces_of(words: &[u32]) -> Vec<Entry> {
    bytemuck::pod_collect_to_vec(words)
}

fn supports_of(faces: &[Entry], states: &[TokenState], tokens: std::ops::Range<usize>) -> Vec<Vec<(u32, f32)>> {
    let support_of = |token: usize| {
        let len = if states[token].num_support > kernel::FACE_CAP { 0 } else { states[token].num_support };
        let face = &faces[token * kernel::FACE_CAP as usize..][..len as usize];
        face.iter().map(|entry| (entry.vertex, entry.weight)).collect()
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
        assert!(proven.is_ok(), "{} doc {doc_idx} token {token_idx}: {proven:?}", input.scoring);
    }
}

/// What the kernel is asked for, and what the CPU engine is.
fn parameters(input: Input, goal: Goal) -> (Input, SelectionParams) {
    let input = match goal {
        Goal::KeepRatio(ratio) => input.with_max_kept(|n| ((ratio * n as f64).ceil() as usize).clamp(1, n.max(1))),
        Goal::MaxTokens(max_kept) => input.with_max_kept(|_| max_kept as usize),
        _ => input,
    };
    let mut params = input.params(input.docs.len());
    match goal {
        Goal::Epsilon(epsilon) => params.inside = epsilon * epsilon,
        Goal::Curve(stop) => params.stop = stop,
        Goal::Project => params.is_project = 1,
        Goal::KeepRatio(_) | Goal::MaxTokens(_) | Goal::Order => {}
    }
    (input, params)
}

/// Runs kernel and CPU engine, proves what the kernel removed, and counts tokens that only one of them keeps, tokens
/// that the kernel keeps, and documents that it left to the CPU.
fn differences(device: &TestDevice, input: Input, goal: Goal, always_kept: Option<&[bool]>) -> (usize, usize, usize) {
    let (input, params) = parameters(input, goal);
    let found = select(device, false, &input, params);
    let offsets = input.offsets();
    let batch = TokenBatch::new(TokenData::F32(&input.tokens), &offsets, input.dim).unwrap();
    let expected = CpuEngine::new().select(&batch, input.scoring, goal, always_kept).unwrap();
    let (mut num_different, mut num_kept, mut num_too_fine) = (0, 0, 0);
    for (doc_idx, (output, selection)) in found.iter().zip(&expected).enumerate() {
        if output.result.status == kernel::DOC_TOO_FINE {
            num_too_fine += 1;
            continue;
        }
        assert_eq!(output.result.status, kernel::DOC_DONE);
        let tolerance = if let Goal::Epsilon(epsilon) = goal { epsilon } else { f32::INFINITY };
        prove(&input, doc_idx, output, tolerance);
        check_states(&input, doc_idx, output);
        let cpu: BTreeSet<u32> = selection.order.iter().copied().collect();
        num_different += output.kept().symmetric_difference(&cpu).count();
        num_kept += output.order.len();
    }
    (num_different, num_kept, num_too_fine)
}

/// Kept tokens and no others are marked so; supports are kept tokens, once each, with weights that fit the scoring.
fn check_states(input: &Input, doc_idx: usize, output: &Output) {
    let kept = output.kept();
    assert_eq!(kept.len(), output.order.len(), "doc {doc_idx}: each token once");
    for (token_idx, (state, support)) in (0..).zip(output.states.iter().zip(&output.supports)) {
        let is_kept = kept.contains(&token_idx);
        assert_eq!(state.upper == -1.0, is_kept, "doc {doc_idx} token {token_idx}: {state:?}");
        assert!(is_kept || (state.upper >= 0.0 && state.upper.is_finite()), "{state:?}");
        assert!(state.status <= kernel::TOKEN_STALLED, "{state:?}");
        let vertices: BTreeSet<u32> = support.iter().map(|pair| pair.0).collect();
        assert!(vertices.len() == support.len() && vertices.is_subset(&kept), "{support:?}");
        let sum: f32 = support.iter().map(|pair| pair.1).sum();
        let least = if input.scoring == Scoring::Plain && !is_kept { 1.0 - 1e-5 } else { 0.0 };
        assert!(support.iter().all(|pair| pair.1 >= 0.0) && (least..1.0 + 1e-5).contains(&sum), "{support:?}");
    }
}

#[test]
fn keeps_what_the_cpu_engine_keeps() {
    let Some(device) = devices().first() else { return };
    let mut random = Random(11);
    let goals = [Goal::Epsilon(0.3), Goal::Epsilon(0.15), Goal::KeepRatio(0.3), Goal::MaxTokens(9), Goal::Order];
    for (dim, lengths) in [(7, vec![1, 2, 63, 64, 65]), (48, vec![130, 0, 1, 2, 64]), (128, vec![65, 0, 300])] {
        let tokens = encoder_like(&mut random, lengths.iter().sum(), dim);
        for scoring in SCORINGS {
            for goal in goals {
                let input = Input::new(&tokens, &lengths, dim, scoring, &[]);
                let (num_different, num_kept, num_too_fine) = differences(device, input, goal, None);
                // A bracket closes to 3 % of a squared distance: two ways to get there may choose another of two tokens
                // that are about as far away.
                println!("{scoring} dim {dim} {goal:?}: {num_different} of {num_kept} differ, {num_too_fine} too fine");
                assert!(
                    num_different <= 2 + num_kept / 25,
                    "{scoring} dim {dim} {goal:?}: {num_different} of {num_kept}"
                );
                // Two tokens are on a line.
                let num_lines = lengths.iter().filter(|&&len| len == 2).count();
                assert!(num_too_fine <= num_lines, "{scoring} dim {dim} {goal:?}: {num_too_fine} too fine");
            }
        }
    }
}

#[test]
fn tokens_that_are_always_kept_come_first() {
    let Some(device) = devices().first() else { return };
    let mut random = Random(12);
    let (dim, lengths) = (24, [70, 5, 1]);
    let tokens = encoder_like(&mut random, lengths.iter().sum(), dim);
    let always_kept = [vec![3, 17, 18, 41, 69], vec![0, 1, 2, 3, 4], vec![0]];
    let mut flags = vec![false; lengths.iter().sum()];
    for (first, always) in [0, 70, 75].into_iter().zip(&always_kept) {
        always.iter().for_each(|&token_idx| flags[first + token_idx as usize] = true);
    }
    for scoring in SCORINGS {
        for goal in [Goal::Project, Goal::Epsilon(0.3), Goal::MaxTokens(20)] {
            let input = || Input::new(&tokens, &lengths, dim, scoring, &always_kept);
            let (input_now, params) = parameters(input(), goal);
            for (output, always) in select(device, false, &input_now, params).iter().zip(&always_kept) {
                assert_eq!(&output.order[..always.len()], always);
                assert!(goal != Goal::Project || output.order.len() == always.len());
            }
            let (num_different, _, num_too_fine) = differences(device, input(), goal, Some(&flags));
            assert!(num_different <= 2 && num_too_fine == 0, "{scoring} {goal:?}: {num_different} tokens differ");
        }
    }
}

#[test]
fn the_curve_holds_and_its_values_are_reached() {
    let Some(device) = devices().first() else { return };
    let mut random = Random(13);
    let (dim, n) = (32, 40);
    for scoring in SCORINGS {
        let input = || Input::new(&encoder_like(&mut Random(14), n, dim), &[n], dim, scoring, &[]);
        let (full, params) = parameters(input(), Goal::Order);
        let output = select(device, false, &full, params).remove(0);
        assert_eq!((output.result.status, output.order.len()), (kernel::DOC_DONE, n), "{scoring}");
        let doc = reference::rows(TokenData::F32(&full.tokens), dim);
        for k in (1..n).step_by(6) {
            let mut kept = vec![false; n];
            output.order[..k].iter().for_each(|&token_idx| kept[token_idx as usize] = true);
            let (worst, _) = reference::worst_loss(&doc, &kept, scoring);
            let promised = f64::from(output.curve[k - 1]);
            assert!(worst <= promised, "{scoring} k {k}: {worst} > {promised}");
            assert!(promised <= (worst * worst * 1.04 + 2e-4).sqrt(), "{scoring} k {k}: {promised} for {worst}");
        }
        let stop = output.curve[random.below(n)];
        let num_kept = output.curve.iter().position(|&bound| bound <= stop).unwrap() + 1;
        let (input, params) = parameters(input(), Goal::Curve(stop));
        let found = select(device, false, &input, params).remove(0);
        assert_eq!(found.order, output.order[..num_kept], "{scoring} at {stop}");
    }
}

/// Subgroup operations or none, bounds checks or none, steps of a launch, the order of the documents, and a scale by a
/// power of two: the same bits.
#[test]
fn the_result_does_not_depend_on_how_it_is_computed() {
    let Some(device) = devices().first() else { return };
    // More than are tested at once in one of them.
    let (dim, lengths) = (48, [66, 1, 130, 0, 600, 64, 7]);
    for scoring in SCORINGS {
        let tokens = encoder_like(&mut Random(15), lengths.iter().sum(), dim);
        let input = || Input::new(&tokens, &lengths, dim, scoring, &[]);
        let (input, params) = parameters(input(), Goal::MaxTokens(24));
        let expected = select(device, false, &input, params);
        for device in devices() {
            for subgroups in [false, true] {
                if subgroups && device.limits().subgroup_sizes.is_none() {
                    continue;
                }
                let found = select(device, subgroups, &input, params);
                assert_eq!(found, expected, "{scoring} subgroups {subgroups}");
            }
        }
        let found = select(device, false, &input, SelectionParams { max_steps: 1, ..params });
        assert_eq!(found, expected, "{scoring}");

        let scaled: Vec<f32> = tokens.iter().map(|x| x * 1024.0).collect();
        let mut scaled = Input::new(&scaled, &lengths, dim, scoring, &[]);
        scaled.docs.rotate_left(2);
        scaled.docs.iter_mut().for_each(|doc| doc.max_kept = 24);
        for (found, expected) in select(device, false, &scaled, params).iter().zip(&expected) {
            assert_eq!((&found.order, &found.supports), (&expected.order, &expected.supports), "{scoring}");
        }
    }
}

#[test]
fn equal_zero_and_collinear_tokens() {
    let Some(device) = devices().first() else { return };
    let dim = 4;
    let mut random = Random(16);
    let mut docs: Vec<Vec<f32>> = Vec::new();
    // Each token twice.
    let single = encoder_like(&mut random, 20, dim);
    docs.push([&single[..], &single[..]].concat());
    // Zeros between others.
    let mut zeros = encoder_like(&mut random, 12, dim);
    zeros[4..12].fill(0.0);
    docs.push(zeros);
    // On a line, through the origin and not.
    docs.push((0..30).flat_map(|t| [0.1, -0.2, 0.3, 0.1].map(|x| x * (t as f32 - 9.0) / 20.0)).collect());
    docs.push((0..30).flat_map(|t| [0.1, 0.2 + t as f32 / 40.0, 0.3, 0.1 - t as f32 / 60.0]).collect());
    // All the same, and all zero.
    docs.push([0.5, 0.25, 0.125, 0.5].repeat(70));
    docs.push(vec![0.0; 5 * dim]);
    let lengths: Vec<usize> = docs.iter().map(|doc| doc.len() / dim).collect();
    let tokens = docs.concat();
    for scoring in SCORINGS {
        for goal in [Goal::Epsilon(0.1), Goal::MaxTokens(3), Goal::Order] {
            let input = Input::new(&tokens, &lengths, dim, scoring, &[]);
            let (num_different, num_kept, num_too_fine) = differences(device, input, goal, None);
            // Tokens at distance 0 from the hull are kept in any order where a count asks for more.
            assert!(num_different <= 4, "{scoring} {goal:?}: {num_different} of {num_kept}");
            println!("{scoring} {goal:?}: {num_different} of {num_kept} differ, {num_too_fine} too fine");
            // Zeros have no unit, nor have equal tokens once they are centred. Tokens on a line have no spread to order.
            let expected = match (goal, scoring) {
                (Goal::Epsilon(_), Scoring::Plain) => 2,
                (Goal::Epsilon(_), Scoring::Clamped) => 1,
                _ => 4,
            };
            assert!(num_too_fine <= expected, "{scoring} {goal:?}: {num_too_fine} too fine");
        }
    }
}

#[test]
fn what_is_out_of_range_is_left_to_the_cpu() {
    let Some(device) = devices().first() else { return };
    let (dim, lengths) = (3, [10, 70]);
    for scoring in SCORINGS {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e18, 1e-22] {
            let mut tokens = encoder_like(&mut Random(17), 80, dim);
            match value {
                1e-22 => tokens[..10 * dim].iter_mut().for_each(|x| *x *= value),
                _ => tokens[3 * dim] = value,
            }
            let (input, params) = parameters(Input::new(&tokens, &lengths, dim, scoring, &[]), Goal::Epsilon(0.2));
            let found = select(device, false, &input, params);
            assert_eq!(found[0].result.status, kernel::DOC_TOO_FINE, "{scoring} {value}");
            assert_eq!(found[1].result.status, kernel::DOC_DONE, "{scoring} {value}");
            for (token_idx, state) in dominate(device, &input, 0.2)[0].states.iter().enumerate() {
                assert_eq!(state.status, kernel::TOKEN_STALLED, "{scoring} {value} token {token_idx}");
            }
        }
    }
}

#[test]
fn real_vectors_rarely_stall() {
    let Some(device) = devices().first() else { return };
    let lengths = [174, 258, 33, 102];
    let num_tokens: usize = lengths.iter().sum();
    let bytes = std::fs::read("examples/cranfield/embeddings.npy").unwrap();
    // 13,017 rows follow the header.
    let rows = &bytes[bytes.len() - 13_017 * 256..][..num_tokens * 256];
    let tokens: Vec<f32> = bytemuck::pod_collect_to_vec::<u8, f16>(rows).iter().map(|x| x.to_f32()).collect();
    for scoring in SCORINGS {
        for epsilon in [0.2, 0.05] {
            let input = Input::new(&tokens, &lengths, 128, scoring, &[]);
            let (input, params) = parameters(input, Goal::Epsilon(epsilon));
            let found = select(device, false, &input, params);
            let num_kept: usize = found.iter().map(|output| output.order.len()).sum();
            let num_undecided: u32 = found.iter().map(|output| output.result.num_undecided).sum();
            let stalled = |output: &Output| output.states.iter().filter(|state| state.status != 0).count();
            let num_stalled: usize = found.iter().map(stalled).sum();
            println!("{scoring} at {epsilon}: {num_undecided} of {num_kept} undecided, {num_stalled} removed stalled");
            assert!((num_undecided as usize + num_stalled) * 100 <= num_tokens, "{scoring} at {epsilon}");
            let (num_different, ..) = differences(device, input, Goal::Epsilon(epsilon), None);
            assert!(num_different <= 2 + num_kept / 100, "{scoring} at {epsilon}: {num_different} tokens differ");
        }
    }
}

#[test]
fn dominance_decides_as_the_cpu_engine_does() {
    let Some(_) = devices().first() else { return };
    let mut random = Random(18);
    for (dim, lengths) in [(4, vec![1, 2, 65, 40]), (24, vec![64, 0, 130]), (128, vec![1, 150])] {
        let tokens = encoder_like(&mut random, lengths.iter().sum(), dim);
        let offsets = offsets(0, &lengths);
        let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, dim).unwrap();
        for scoring in SCORINGS {
            for epsilon in [0.1f32, 0.25] {
                let input = Input::new(&tokens, &lengths, dim, scoring, &[]);
                let expected = CpuEngine::new().decide(&batch, scoring, epsilon).unwrap();
                let by_device: Vec<_> = devices().iter().map(|device| dominate(device, &input, epsilon)).collect();
                by_device.windows(2).for_each(|pair| assert_eq!(pair[0], pair[1], "with checks and without"));
                let mut num_open = 0;
                for (doc_idx, (output, decisions)) in by_device[0].iter().zip(&expected).enumerate() {
                    let mut scratch = ProofScratch::default();
                    let mut prover = TokenProver::new(batch.doc(doc_idx), dim, scoring, &mut scratch).unwrap();
                    for (token_idx, (state, decision)) in output.states.iter().zip(decisions).enumerate() {
                        match state.status {
                            kernel::TOKEN_SOLVED => {
                                let found = output.proposal(token_idx, scoring);
                                let weights = Weights::Fixed(&found.weights);
                                let proposal =
                                    Proposal { token_idx: token_idx as u32, support: &found.support, weights };
                                assert!(prover.prove(&proposal, epsilon).is_ok(), "{scoring} token {token_idx}");
                                assert!(matches!(decision, Decision::Removable(_)), "{scoring} token {token_idx}");
                            }
                            kernel::TOKEN_NEEDED => assert_eq!(decision, &Decision::Needed, "token {token_idx}"),
                            _ => num_open += 1,
                        }
                    }
                }
                println!("{scoring} dim {dim} at {epsilon}: {num_open} of {} open", batch.num_tokens());
                assert!(num_open <= 1 + batch.num_tokens() / 100, "{scoring} dim {dim} at {epsilon}: {num_open} open");
            }
        }
    }
}
