//! The engine around the kernels: whole selections and prunings against those of the CPU engine.

use std::sync::{Arc, Mutex};

use maxhull::device::wgpu::WgpuDevice;
use maxhull::device::{Device, DeviceError, Limits};
use maxhull::engine::{CpuEngine, Decision, Engine, Goal, GpuEngine, ManyEngines, Notice, Selection};
use maxhull::half::f16;
use maxhull::kernel::{DOC_UNFINISHED, Variant};
use maxhull::{Method, PruneOptions, Pruner, Scoring, Target, TokenBatch, TokenData};

use crate::common::{Random, encoder_like, offsets, to_f16};

const SCORINGS: [Scoring; 2] = [Scoring::Plain, Scoring::Clamped];

/// What an engine said.
type Heard = Arc<Mutex<Vec<Notice>>>;

/// An engine of its own device, if there is one; what it says is kept.
fn engine() -> Option<(Arc<GpuEngine<WgpuDevice>>, Heard)> {
    super::devices().first()?;
    let device = Arc::new(WgpuDevice::open(None).expect("a device that opened once"));
    Some(with_notices(device))
}

fn with_notices<D: Device>(device: Arc<D>) -> (Arc<GpuEngine<D>>, Heard) {
    let notices = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&notices);
    let notify = Arc::new(move |notice: &Notice| heard.lock().unwrap().push(notice.clone()));
    (Arc::new(GpuEngine::new(device).with_notices(notify)), notices)
}

/// The corpus of the examples: real vectors, f16, dim 128.
fn cranfield() -> (Vec<f16>, Vec<u64>) {
    // Tests start in the folder of the package; `benches/gpu/run` brings them to machines where that is another one.
    let folder = std::path::Path::new("examples/cranfield");
    let file = std::fs::File::open(folder.join("embeddings.npy")).unwrap();
    let tokens: Vec<f16> = npyz::NpyFile::new(std::io::BufReader::new(file)).unwrap().into_vec().unwrap();
    let lengths = std::fs::read(folder.join("embeddings_lengths.json")).unwrap();
    let lengths: Vec<usize> = serde_json::from_slice(&lengths).unwrap();
    let offsets = offsets(0, &lengths);
    (tokens, offsets)
}

/// Tokens that one of the two keeps and the other does not.
fn num_different(a: &Selection, b: &Selection) -> usize {
    let differ = |x: &Selection, y: &Selection| x.order.iter().filter(|i| !y.order.contains(i)).count();
    differ(a, b) + differ(b, a)
}

#[test]
fn the_example_corpus_keeps_the_tokens_that_the_cpu_keeps() {
    let Some((gpu, notices)) = engine() else { return };
    let (tokens, offsets) = cranfield();
    let batch = TokenBatch::new(TokenData::F16(&tokens), &offsets, 128).unwrap();
    let cpu = CpuEngine::new();
    for scoring in SCORINGS {
        for goal in [Goal::Epsilon(0.2), Goal::KeepRatio(0.3)] {
            let expected = cpu.select(&batch, scoring, goal, None).unwrap();
            let found = gpu.select(&batch, scoring, goal, None).unwrap();
            assert_eq!(found, gpu.select(&batch, scoring, goal, None).unwrap(), "the same from call to call");
            let kept: usize = expected.iter().map(|selection| selection.order.len()).sum();
            let kept_here: usize = found.iter().map(|selection| selection.order.len()).sum();
            let different: usize = expected.iter().zip(&found).map(|(a, b)| num_different(a, b)).sum();
            for (doc_idx, (a, b)) in expected.iter().zip(&found).enumerate() {
                if num_different(a, b) > 0 {
                    println!(
                        "doc {doc_idx} n {} differ {} {} {} und {} {:?} {:?}",
                        batch.doc_len(doc_idx),
                        num_different(a, b),
                        a.order.len(),
                        b.order.len(),
                        b.num_undecided,
                        &a.order[..6],
                        &b.order[..6.min(b.order.len())]
                    );
                    println!("{:?} {:?}", &a.curve[..4], &b.curve[..4.min(b.curve.len())]);
                }
            }
            println!("{scoring} {goal:?}: {kept} kept by the CPU, {kept_here} here, {different} differ");
            // Brackets are closed to 3 %, so near-ties may fall either way and a few choices follow from each.
            assert!(different * 20 <= kept, "{scoring} {goal:?}: {different} of {kept} differ");
            assert!(kept.abs_diff(kept_here) * 100 <= kept, "{scoring} {goal:?}: {kept} and {kept_here} kept");
        }
    }
    assert_eq!(*notices.lock().unwrap(), []);
}

#[test]
fn a_pruning_of_the_example_corpus_is_proven() {
    let Some((gpu, notices)) = engine() else { return };
    let (tokens, offsets) = cranfield();
    let batch = TokenBatch::new(TokenData::F16(&tokens), &offsets, 128).unwrap();
    for scoring in SCORINGS {
        let method = Method::Hull(Target::Epsilon(0.2));
        let options = PruneOptions { scoring, method };
        let expected = Pruner::new(Arc::new(CpuEngine::new()), options).unwrap().prune(&batch, None).unwrap();
        let engine: Arc<dyn Engine> = Arc::clone(&gpu) as _;
        let found = Pruner::new(engine, options).unwrap().prune(&batch, None).unwrap();
        println!("{scoring}: {:?}", found.stats);
        assert!(found.stats.worst_bound <= 0.2);
        assert_eq!(found.docs.len(), batch.num_docs());
        // Nearly nothing that a device proposes has to be solved again.
        assert!(found.stats.num_resolved * 1000 <= found.stats.num_tokens);
        assert!(found.stats.num_undecided * 200 <= found.stats.num_tokens);
        assert!(found.stats.num_kept.abs_diff(expected.stats.num_kept) * 100 <= expected.stats.num_kept);
    }
    assert_eq!(*notices.lock().unwrap(), []);
}

#[test]
fn every_goal_holds_on_ragged_documents() {
    let Some((gpu, notices)) = engine() else { return };
    let mut random = Random(11);
    let lengths = [0, 1, 2, 63, 0, 64, 65, 1, 130, 20];
    for dim in [1, 7, 48] {
        let values = encoder_like(&mut random, lengths.iter().sum::<usize>() + 5, dim);
        // A slice of a larger store.
        let offsets = offsets(5, &lengths);
        let halves = to_f16(&values);
        for data in [TokenData::F32(&values), TokenData::F16(&halves)] {
            let batch = TokenBatch::new(data, &offsets, dim).unwrap();
            for scoring in SCORINGS {
                let always: Vec<bool> = (0..batch.num_tokens()).map(|i| i % 9 == 2).collect();
                for goal in [Goal::Epsilon(0.2), Goal::KeepRatio(0.4), Goal::MaxTokens(9), Goal::Order, Goal::Project] {
                    for always_kept in [None, Some(&always[..])] {
                        let selections = gpu.select(&batch, scoring, goal, always_kept).unwrap();
                        check(&batch, &selections, goal, always_kept);
                    }
                }
            }
        }
    }
    assert_eq!(*notices.lock().unwrap(), []);
}

/// What holds of every selection, whoever made it.
fn check(batch: &TokenBatch<'_>, selections: &[Selection], goal: Goal, always_kept: Option<&[bool]>) {
    assert_eq!(selections.len(), batch.num_docs());
    let mut start = 0;
    for (doc_idx, selection) in selections.iter().enumerate() {
        let n = batch.doc_len(doc_idx);
        let mut seen = vec![false; n];
        let removed = selection.removals.iter().map(|(token_idx, ..)| token_idx);
        for token_idx in selection.order.iter().copied().chain(removed) {
            assert!(!std::mem::replace(&mut seen[token_idx as usize], true), "document {doc_idx}: {token_idx} twice");
        }
        assert!(seen.iter().all(|&seen| seen), "document {doc_idx}: every token is kept or removed");
        assert_eq!(selection.curve.len(), selection.order.len());
        let flags = always_kept.map_or(&[][..], |flags| &flags[start..start + n]);
        let num_flagged = flags.iter().filter(|&&flag| flag).count();
        for (token_idx, _) in flags.iter().enumerate().filter(|&(_, &flag)| flag) {
            assert!(selection.order.contains(&(token_idx as u32)), "document {doc_idx}: {token_idx} is always kept");
        }
        let num_kept = selection.order.len();
        match goal {
            Goal::Order => assert_eq!(num_kept, n),
            Goal::MaxTokens(most) => assert!(num_kept <= (most as usize).max(num_flagged)),
            Goal::KeepRatio(ratio) => {
                let most = ((ratio * n as f64).ceil() as usize).max(num_flagged);
                assert!(num_kept <= most, "document {doc_idx}: {num_kept} kept of {n}");
            }
            Goal::Project => assert_eq!(num_kept, num_flagged.max(usize::from(n > 0))),
            Goal::Epsilon(_) | Goal::Curve(_) => {}
        }
        start += n;
    }
}

#[test]
fn a_goal_on_the_curve_keeps_what_the_curve_promised() {
    let Some((gpu, notices)) = engine() else { return };
    let mut random = Random(12);
    for dim in [2, 16, 64] {
        let tokens = encoder_like(&mut random, 60, dim);
        let offsets = [0, 60];
        let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, dim).unwrap();
        for scoring in SCORINGS {
            let full = gpu.select(&batch, scoring, Goal::Order, None).unwrap().remove(0);
            for &promised in full.curve.iter().step_by(7) {
                let num_kept = full.curve.iter().position(|&bound| bound <= promised).unwrap() + 1;
                let found = gpu.select(&batch, scoring, Goal::Curve(promised), None).unwrap().remove(0);
                assert_eq!(found.order, full.order[..num_kept], "{scoring} dim {dim} at {promised:e}");
            }
        }
    }
    assert_eq!(*notices.lock().unwrap(), []);
}

#[test]
fn decisions_are_those_of_the_cpu() {
    let Some((gpu, notices)) = engine() else { return };
    let mut random = Random(13);
    let lengths = [1, 0, 2, 64, 65, 100];
    let tokens = encoder_like(&mut random, lengths.iter().sum(), 24);
    let offsets = offsets(0, &lengths);
    let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, 24).unwrap();
    for scoring in SCORINGS {
        for epsilon in [0.1, 0.25] {
            let expected = CpuEngine::new().decide(&batch, scoring, epsilon).unwrap();
            let found = gpu.decide(&batch, scoring, epsilon).unwrap();
            for (expected, found) in expected.iter().flatten().zip(found.iter().flatten()) {
                let is_removable = |decision: &Decision| matches!(decision, Decision::Removable(_));
                assert_eq!(is_removable(expected), is_removable(found), "{scoring} {epsilon}: {expected:?} {found:?}");
            }
        }
    }
    assert_eq!(*notices.lock().unwrap(), []);
}

#[test]
fn what_f32_cannot_tell_apart_goes_to_the_cpu() {
    let Some((gpu, notices)) = engine() else { return };
    let mut random = Random(14);
    let mut tokens = encoder_like(&mut random, 40, 16);
    // One token a thousand times as long as the others takes all the precision of the Gram matrix.
    tokens[..16].iter_mut().for_each(|x| *x *= 1000.0);
    let offsets = [0, 40];
    let cpu = CpuEngine::new();
    for (factor, goal) in [
        (1.0, Goal::KeepRatio(0.4)),
        (1e20, Goal::KeepRatio(0.4)),
        (1e-20, Goal::KeepRatio(0.4)),
        (1.0, Goal::Epsilon(1e-4)),
    ] {
        let scaled: Vec<f32> = tokens.iter().map(|x| x * factor).collect();
        let batch = TokenBatch::new(TokenData::F32(&scaled), &offsets, 16).unwrap();
        for scoring in SCORINGS {
            let expected = cpu.select(&batch, scoring, goal, None).unwrap();
            assert_eq!(gpu.select(&batch, scoring, goal, None).unwrap(), expected, "{scoring} {goal:?} {factor:e}");
        }
    }
    assert_eq!(*notices.lock().unwrap(), []);
}

#[test]
fn a_document_too_long_for_the_device_is_announced_and_pruned() {
    let Some((gpu, notices)) = engine() else { return };
    let mut random = Random(15);
    let lengths = [30, 5000, 0, 40];
    let tokens = to_f16(&encoder_like(&mut random, lengths.iter().sum(), 8));
    let offsets = offsets(0, &lengths);
    let batch = TokenBatch::new(TokenData::F16(&tokens), &offsets, 8).unwrap();
    let selections = gpu.select(&batch, Scoring::Clamped, Goal::MaxTokens(5), None).unwrap();
    check(&batch, &selections, Goal::MaxTokens(5), None);
    let expected = Notice::DocTooLong { doc_idx: 1, num_tokens: 5000 };
    assert_eq!(*notices.lock().unwrap(), [expected]);
}

#[test]
fn a_lost_device_costs_no_document() {
    let Some((gpu, notices)) = engine() else { return };
    let (tokens, offsets) = cranfield();
    let batch = TokenBatch::new(TokenData::F16(&tokens), &offsets, 128).unwrap().docs(0..9);
    let goal = Goal::KeepRatio(0.5);
    gpu.select(&batch, Scoring::Plain, goal, None).unwrap();
    gpu.device().lose();
    for _ in 0..2 {
        let found = gpu.select(&batch, Scoring::Plain, goal, None).unwrap();
        assert_eq!(found, CpuEngine::new().select(&batch, Scoring::Plain, goal, None).unwrap());
    }
    let notices = notices.lock().unwrap();
    assert!(matches!(notices[..], [Notice::FellBack { .. }]), "said once: {notices:?}");
}

#[test]
fn two_devices_find_what_one_finds() {
    let Some((first, notices)) = engine() else { return };
    let second: Arc<dyn Engine> = Arc::new(GpuEngine::new(Arc::new(WgpuDevice::open(None).unwrap())));
    let many = ManyEngines::new(vec![Arc::clone(&first) as _, second]).with_piece_tokens(300, 900);
    let (tokens, offsets) = many_docs();
    let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, 8).unwrap().docs(0..60);
    for (scoring, goal) in [(Scoring::Plain, Goal::KeepRatio(0.3)), (Scoring::Clamped, Goal::MaxTokens(5))] {
        let expected = first.select(&batch, scoring, goal, None).unwrap();
        for num_threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
            let found = pool.install(|| many.select(&batch, scoring, goal, None).unwrap());
            assert_eq!(found, expected, "{scoring} {goal:?} on {num_threads} threads");
        }
    }
    assert_eq!(*notices.lock().unwrap(), []);
}

#[test]
fn threads_share_an_engine() {
    let Some((gpu, notices)) = engine() else { return };
    let (tokens, offsets) = many_docs();
    let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, 8).unwrap();
    // Each thread has documents of its own, so that answers that go astray are seen.
    let parts: Vec<TokenBatch<'_>> = (0..4).map(|part| batch.docs(part * 40..part * 40 + 40)).collect();
    let select = |part: &TokenBatch<'_>| gpu.select(part, Scoring::Plain, Goal::KeepRatio(0.3), None).unwrap();
    let expected: Vec<Vec<Selection>> = parts.iter().map(select).collect();
    std::thread::scope(|scope| {
        for (part, expected) in parts.iter().zip(&expected) {
            scope.spawn(|| (0..5).for_each(|_| assert_eq!(select(part), *expected)));
        }
    });
    assert_eq!(*notices.lock().unwrap(), []);
}

/// Has no more memory than it is told, fails when it is told, and answers the same word everywhere, zero unless told.
struct Fake {
    limits: Limits,
    memory: Mutex<u64>,
    failure: Option<DeviceError>,
    word: u32,
    /// Nothing arrives before it is waited for.
    is_slow: bool,
    /// Downloads on their way, now and at most.
    on_their_way: Mutex<(usize, usize)>,
    launches: Mutex<Vec<(Variant, u64)>>,
}

impl Fake {
    fn new(memory: u64) -> Self {
        let limits = Limits {
            max_buffer_bytes: 1 << 30,
            max_workgroups: 1 << 32,
            workgroup_bytes: 16 << 10,
            max_threads: 256,
            subgroup_sizes: None,
            has_f16: false,
            cooperative: None,
            truncates: false,
            is_software: false,
            wide_query_tokens: None,
        };
        Fake {
            limits,
            memory: Mutex::new(memory),
            failure: None,
            word: 0,
            is_slow: false,
            on_their_way: Mutex::default(),
            launches: Mutex::default(),
        }
    }
}

impl Device for Fake {
    type Buffer = u64;
    type Download = Vec<u64>;

    fn name(&self) -> String {
        "fake".into()
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn alloc(&self, size_bytes: u64) -> Result<u64, DeviceError> {
        assert!(size_bytes > 0 && size_bytes.is_multiple_of(16) && size_bytes <= self.limits.max_buffer_bytes);
        if size_bytes > *self.memory.lock().unwrap() {
            return Err(DeviceError::OutOfMemory(format!("{size_bytes} bytes")));
        }
        Ok(size_bytes)
    }

    fn upload(&self, to: &u64, bytes: &[u8]) -> Result<(), DeviceError> {
        assert!(bytes.len() as u64 <= *to && bytes.len().is_multiple_of(4));
        Ok(())
    }

    fn launch(&self, variant: Variant, arguments: &[&u64], params: &[u8], groups: u64) -> Result<(), DeviceError> {
        assert_eq!(arguments.len(), variant.kernel.arguments().len());
        assert_eq!(params.len(), variant.kernel.params_bytes());
        assert!(groups > 0);
        self.launches.lock().unwrap().push((variant, groups));
        self.failure.clone().map_or(Ok(()), Err)
    }

    fn download(&self, from: &[(&u64, u64)]) -> Result<Vec<u64>, DeviceError> {
        from.iter().for_each(|&(buffer, size)| assert!(size <= *buffer));
        let (now, most) = &mut *self.on_their_way.lock().unwrap();
        *now += 1;
        *most = (*most).max(*now);
        Ok(from.iter().map(|&(_, size)| size).collect())
    }

    fn is_ready(&self, _: &Vec<u64>) -> bool {
        !self.is_slow
    }

    fn read(&self, download: Vec<u64>, each: &mut dyn FnMut(&[&[u8]])) -> Result<(), DeviceError> {
        self.on_their_way.lock().unwrap().0 -= 1;
        // Aligned as the memory of a device would be.
        let words: Vec<Vec<u32>> = download.iter().map(|&size| vec![self.word; size as usize / 4]).collect();
        let parts: Vec<&[u8]> = words.iter().map(|words| bytemuck::cast_slice(words)).collect();
        each(&parts);
        Ok(())
    }
}

/// Many documents, of which a small device takes a few at a time.
fn many_docs() -> (Vec<f32>, Vec<u64>) {
    let mut random = Random(16);
    let lengths: Vec<usize> = (0..400).map(|_| random.below(90)).collect();
    (encoder_like(&mut random, lengths.iter().sum(), 8), offsets(0, &lengths))
}

#[test]
fn nonsense_from_a_device_goes_to_the_cpu() {
    // Zeros claim that documents keep nothing.
    let (engine, notices) = with_notices(Arc::new(Fake::new(u64::MAX)));
    let (tokens, offsets) = many_docs();
    let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, 8).unwrap();
    let goal = Goal::Epsilon(0.2);
    let found = engine.select(&batch, Scoring::Plain, goal, None).unwrap();
    assert_eq!(found, CpuEngine::new().select(&batch, Scoring::Plain, goal, None).unwrap());
    assert_eq!(*notices.lock().unwrap(), []);
    assert!(!engine.device().launches.lock().unwrap().is_empty());
}

#[test]
fn a_thread_that_waits_does_not_take_up_call_after_call() {
    use rayon::prelude::*;
    let (engine, notices) = with_notices(Arc::new(Fake { is_slow: true, ..Fake::new(u64::MAX) }));
    let (tokens, offsets) = many_docs();
    let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, 8).unwrap().docs(0..3);
    let expected = CpuEngine::new().select(&batch, Scoring::Plain, Goal::MaxTokens(3), None).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let calls = || (0..50).into_par_iter().with_max_len(1);
    let call = |_| engine.select(&batch, Scoring::Plain, Goal::MaxTokens(3), None).unwrap();
    let found: Vec<Vec<Selection>> = pool.install(|| calls().map(call).collect());
    assert!(found.iter().all(|found| *found == expected));
    assert_eq!(*notices.lock().unwrap(), []);
    let most = engine.device().on_their_way.lock().unwrap().1;
    assert!(most <= 5, "{most} at once");
}

#[test]
fn a_device_that_never_finishes_is_given_up() {
    // As a status it says that the document goes on in the next launch.
    let word = DOC_UNFINISHED;
    let (engine, notices) = with_notices(Arc::new(Fake { word, ..Fake::new(u64::MAX) }));
    let (tokens, offsets) = many_docs();
    let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, 8).unwrap();
    let goal = Goal::Epsilon(0.2);
    let found = engine.select(&batch, Scoring::Plain, goal, None).unwrap();
    assert_eq!(found, CpuEngine::new().select(&batch, Scoring::Plain, goal, None).unwrap());
    assert!(matches!(notices.lock().unwrap()[..], [Notice::FellBack { .. }]));
}

#[test]
fn a_device_without_enough_memory_gets_smaller_batches() {
    let (tokens, offsets) = many_docs();
    let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, 8).unwrap();
    let goal = Goal::MaxTokens(3);
    let expected = CpuEngine::new().select(&batch, Scoring::Plain, goal, None).unwrap();
    let launches = |engine: &GpuEngine<Fake>| engine.device().launches.lock().unwrap().len();
    let (roomy, _) = with_notices(Arc::new(Fake::new(u64::MAX)));
    assert_eq!(roomy.select(&batch, Scoring::Plain, goal, None).unwrap(), expected);
    let (small, notices) = with_notices(Arc::new(Fake::new(3 << 20)));
    assert_eq!(small.select(&batch, Scoring::Plain, goal, None).unwrap(), expected);
    assert!(launches(&small) > launches(&roomy));
    assert!(notices.lock().unwrap().iter().all(|notice| *notice == Notice::BatchHalved));
    assert!(!notices.lock().unwrap().is_empty());
    // Nothing fits: the CPU does it all, and says so once.
    let (none, notices) = with_notices(Arc::new(Fake::new(100)));
    assert_eq!(none.select(&batch, Scoring::Plain, goal, None).unwrap(), expected);
    assert!(matches!(notices.lock().unwrap().last(), Some(Notice::FellBack { .. })));
}

#[test]
fn a_device_that_refuses_commands_costs_no_document() {
    let (tokens, offsets) = many_docs();
    let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, 8).unwrap();
    let failure = Some(DeviceError::Refused("no".into()));
    let (engine, notices) = with_notices(Arc::new(Fake { failure, ..Fake::new(u64::MAX) }));
    let goal = Goal::KeepRatio(0.5);
    let found = engine.select(&batch, Scoring::Clamped, goal, None).unwrap();
    assert_eq!(found, CpuEngine::new().select(&batch, Scoring::Clamped, goal, None).unwrap());
    assert_eq!(notices.lock().unwrap().len(), 1);
}
