//! Several engines over one batch: whoever takes which documents, and whenever, the result is that of one.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use maxhull::engine::{CpuEngine, Decision, Deliver, Engine, Goal, ManyEngines, Selection};
use maxhull::{Error, Method, PruneOptions, Pruner, Scoring, Target, TokenBatch, TokenData};

use crate::common::{Random, encoder_like, offsets, to_f16};

/// What goes wrong with a fake engine.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Fine,
    Panics,
    Fails,
    /// Is lost once it has taken this many pieces.
    IsLost(usize),
}

/// Of three engines.
#[derive(Default)]
struct Meeting {
    num_begun: Mutex<usize>,
    changed: Condvar,
}

impl Meeting {
    fn wait(&self, is_first: bool) {
        let mut num_begun = self.num_begun.lock().unwrap();
        *num_begun += usize::from(is_first);
        self.changed.notify_all();
        drop(self.changed.wait_while(num_begun, |num_begun| *num_begun < 3).unwrap());
    }
}

/// The CPU's answers, documents in random order, with random delays.
struct Fake {
    name: &'static str,
    cpu: CpuEngine,
    fate: Fate,
    /// Where pieces wait until all engines have begun one.
    meeting: Option<Arc<Meeting>>,
    random: Mutex<Random>,
    pieces: Mutex<Vec<Range<usize>>>,
    is_lost: AtomicBool,
    in_progress: AtomicUsize,
}

impl Fake {
    fn new(name: &'static str, seed: u64, fate: Fate) -> Arc<Self> {
        Arc::new(Self::meeting(name, seed, fate, None))
    }

    fn meeting(name: &'static str, seed: u64, fate: Fate, meeting: Option<Arc<Meeting>>) -> Self {
        Fake {
            name,
            cpu: CpuEngine::new(),
            fate,
            meeting,
            random: Mutex::new(Random(seed)),
            pieces: Mutex::default(),
            is_lost: AtomicBool::new(false),
            in_progress: AtomicUsize::new(0),
        }
    }

    fn below(&self, n: usize) -> usize {
        self.random.lock().unwrap().below(n)
    }

    fn begin(&self, piece: &Range<usize>) -> Result<(), Error> {
        assert!(self.in_progress.fetch_add(1, Ordering::Relaxed) < 2, "pieces of one engine");
        let mut pieces = self.pieces.lock().unwrap();
        pieces.push(piece.clone());
        let num_pieces = pieces.len();
        drop(pieces);
        if let Some(meeting) = &self.meeting {
            meeting.wait(num_pieces == 1);
        }
        std::thread::sleep(Duration::from_micros(self.below(2000) as u64));
        match self.fate {
            Fate::Panics => panic!("a fake engine's"),
            Fate::Fails => Err(Error::Cancelled),
            Fate::IsLost(after) if num_pieces > after => {
                self.is_lost.store(true, Ordering::SeqCst);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn deliver<T>(&self, mut docs: Vec<(usize, T)>, deliver: &mut Deliver<'_, T>) {
        while !docs.is_empty() {
            let some = docs.split_off(self.below(docs.len()));
            deliver(some);
        }
        self.in_progress.fetch_sub(1, Ordering::Relaxed);
    }

    fn num_pieces(&self) -> usize {
        self.pieces.lock().unwrap().len()
    }
}

impl Engine for Fake {
    fn name(&self) -> String {
        self.name.into()
    }

    fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::SeqCst)
    }

    fn select_each(
        &self,
        batch: &TokenBatch<'_>,
        docs: Range<usize>,
        scoring: Scoring,
        goal: Goal,
        always_kept: Option<&[bool]>,
        deliver: &mut Deliver<'_>,
    ) -> Result<(), Error> {
        self.begin(&docs)?;
        let mut all = Vec::new();
        self.cpu.select_each(batch, docs, scoring, goal, always_kept, &mut |docs| all.extend(docs))?;
        self.deliver(all, deliver);
        Ok(())
    }

    fn decide_each(
        &self,
        batch: &TokenBatch<'_>,
        docs: Range<usize>,
        scoring: Scoring,
        epsilon: f32,
        deliver: &mut Deliver<'_, Vec<Decision>>,
    ) -> Result<(), Error> {
        self.begin(&docs)?;
        let mut all = Vec::new();
        self.cpu.decide_each(batch, docs, scoring, epsilon, &mut |docs| all.extend(docs))?;
        self.deliver(all, deliver);
        Ok(())
    }
}

/// Small pieces, so that small batches have many.
fn many(engines: &[Arc<Fake>]) -> ManyEngines {
    ManyEngines::new(engines.iter().map(|engine| Arc::clone(engine) as _).collect()).with_piece_tokens(30, 120)
}

/// Waits for an answer, so that a deadlock is a failure.
fn in_pool<T: Send + 'static>(num_threads: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
        let found = pool.install(work);
        send.send(()).unwrap();
        found
    });
    match receive.recv_timeout(Duration::from_secs(120)) {
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("nobody goes on"),
        _ => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
    }
}

fn caught<T>(work: impl FnOnce() -> T) -> std::thread::Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
}

struct Docs {
    tokens: Vec<maxhull::half::f16>,
    offsets: Vec<u64>,
    always_kept: Vec<bool>,
}

const DIM: usize = 8;

impl Docs {
    fn new(lengths: &[usize]) -> Arc<Self> {
        let num_tokens = lengths.iter().sum::<usize>();
        let tokens = to_f16(&encoder_like(&mut Random(71), num_tokens + 3, DIM));
        Arc::new(Docs {
            tokens,
            offsets: offsets(3, lengths),
            always_kept: (0..num_tokens).map(|token| token % 13 == 4).collect(),
        })
    }

    fn batch(&self) -> TokenBatch<'_> {
        TokenBatch::new(TokenData::F16(&self.tokens), &self.offsets, DIM).unwrap()
    }

    fn select(&self, engine: &dyn Engine) -> Vec<Selection> {
        let batch = self.batch();
        let mut found: Vec<Option<Selection>> = vec![None; batch.num_docs()];
        let caller = std::thread::current().id();
        let always_kept = Some(&self.always_kept[..]);
        let all = 0..batch.num_docs();
        engine
            .select_each(&batch, all, Scoring::Plain, Goal::Epsilon(0.3), always_kept, &mut |docs| {
                assert_eq!(std::thread::current().id(), caller);
                for (doc_idx, selection) in docs {
                    assert!(found[doc_idx].replace(selection).is_none(), "document {doc_idx} twice");
                }
            })
            .unwrap();
        found.into_iter().map(|selection| selection.expect("every document")).collect()
    }
}

fn ragged() -> Arc<Docs> {
    let mut random = Random(72);
    let lengths: Vec<usize> = (0..200).map(|_| random.below(40)).collect();
    Docs::new(&lengths)
}

#[test]
fn any_number_of_engines_gives_the_same_result() {
    for docs in [ragged(), Docs::new(&[]), Docs::new(&[0, 0]), Docs::new(&[40]), Docs::new(&[50, 0, 60])] {
        let expected = docs.select(&CpuEngine::new());
        let decided = CpuEngine::new().decide(&docs.batch(), Scoring::Clamped, 0.3).unwrap();
        for num_engines in 1..4 {
            for num_threads in [1, 2, 5] {
                let engines: Vec<_> = (0..num_engines).map(|seed| Fake::new("a", seed, Fate::Fine)).collect();
                let (many, docs) = (many(&engines), Arc::clone(&docs));
                let (found, decisions) = in_pool(num_threads, move || {
                    (docs.select(&many), many.decide(&docs.batch(), Scoring::Clamped, 0.3).unwrap())
                });
                assert_eq!(found, expected, "{num_engines} engines, {num_threads} threads");
                assert_eq!(decisions, decided);
            }
        }
    }
}

#[test]
fn a_part_of_a_batch_keeps_its_indices() {
    let docs = ragged();
    let expected = docs.select(&CpuEngine::new());
    let engines = [Fake::new("a", 1, Fate::Fine), Fake::new("a", 2, Fate::Fine)];
    let mut found = Vec::new();
    let always_kept = Some(&docs.always_kept[..]);
    many(&engines)
        .select_each(&docs.batch(), 40..150, Scoring::Plain, Goal::Epsilon(0.3), always_kept, &mut |docs| {
            found.extend(docs);
        })
        .unwrap();
    found.sort_by_key(|&(doc_idx, _)| doc_idx);
    let expected: Vec<_> = (40..150).map(|doc_idx| (doc_idx, expected[doc_idx].clone())).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_document_of_20000_tokens_is_one_piece() {
    let docs = Docs::new(&[20_000, 30, 30, 30]);
    let engines = [Fake::new("a", 1, Fate::Fine), Fake::new("a", 2, Fate::Fine)];
    let batch = docs.batch();
    let found = many(&engines).select(&batch, Scoring::Clamped, Goal::MaxTokens(2), None).unwrap();
    assert_eq!(found, CpuEngine::new().select(&batch, Scoring::Clamped, Goal::MaxTokens(2), None).unwrap());
    let mut pieces: Vec<Range<usize>> =
        engines.iter().flat_map(|engine| engine.pieces.lock().unwrap().clone()).collect();
    pieces.sort_by_key(|piece| piece.start);
    assert_eq!(pieces[0], 0..1);
}

#[test]
fn all_engines_work_at_once() {
    let meeting = Arc::new(Meeting::default());
    let engine = |seed| Arc::new(Fake::meeting("a", seed, Fate::Fine, Some(Arc::clone(&meeting))));
    let engines: Vec<_> = (0..3).map(engine).collect();
    let (many, docs) = (many(&engines), ragged());
    in_pool(6, move || docs.select(&many));
}

#[test]
fn different_engines_always_get_the_same_documents() {
    let dealt = |seed| {
        let engines = [Fake::new("a", seed, Fate::Fine), Fake::new("b", seed + 1, Fate::Fine)];
        let (many, docs) = (many(&engines), ragged());
        assert_eq!(many.name(), "a + b");
        in_pool(1 + seed as usize % 4, move || docs.select(&many));
        engines.map(|engine| {
            let mut pieces = engine.pieces.lock().unwrap().clone();
            pieces.sort_by_key(|piece| piece.start);
            pieces
        })
    };
    let expected = dealt(0);
    (1..8).for_each(|seed| assert_eq!(dealt(seed), expected));
}

#[test]
fn a_panic_reaches_the_caller_and_ends_the_call() {
    for num_threads in [1, 6] {
        for place in 0..3 {
            let fate = |engine_idx| if engine_idx == place { Fate::Panics } else { Fate::Fine };
            // With a thread for every piece on its way that engine is sure to have its turn; on one it may come too late.
            let meeting = (num_threads >= 6).then(Arc::<Meeting>::default);
            let engine = |idx| Arc::new(Fake::meeting("a", idx as u64, fate(idx), meeting.clone()));
            let engines: Vec<_> = (0..3).map(engine).collect();
            let (many, docs) = (many(&engines), ragged());
            let caught = caught(|| in_pool(num_threads, move || docs.select(&many)));
            let has_begun = engines[place].num_pieces() > 0;
            assert_eq!(caught.is_err(), has_begun, "{num_threads} threads, engine {place}");
            assert!(has_begun || meeting.is_none());
        }
    }
}

#[test]
fn a_panic_while_documents_are_taken_ends_the_call() {
    let engines: Vec<_> = (0..3).map(|seed| Fake::new("a", seed, Fate::Fine)).collect();
    let (many, docs) = (many(&engines), ragged());
    let caught = caught(|| {
        in_pool(4, move || {
            let mut refuse = |_: Vec<(usize, Selection)>| panic!("the caller's");
            many.select_each(&docs.batch(), 0..200, Scoring::Plain, Goal::MaxTokens(3), None, &mut refuse)
        })
    });
    assert!(caught.is_err());
}

#[test]
fn a_failure_is_an_error() {
    let engines = [Fake::new("a", 1, Fate::Fails), Fake::new("a", 2, Fate::Fine)];
    let (many, docs) = (many(&engines), ragged());
    let found = in_pool(3, move || many.select(&docs.batch(), Scoring::Plain, Goal::MaxTokens(3), None));
    assert_eq!(found, Err(Error::Cancelled));
}

#[test]
fn a_lost_engine_leaves_the_rest_to_the_others() {
    for num_threads in [1, 2, 5] {
        for names in [["a", "a", "a"], ["a", "b", "a"], ["a", "b", "c"]] {
            for lost in [&[0][..], &[1], &[0, 2], &[0, 1, 2]] {
                let fate = |idx: &usize| if lost.contains(idx) { Fate::IsLost(2) } else { Fate::Fine };
                let engines: Vec<_> = (0..3).map(|idx| Fake::new(names[idx], idx as u64, fate(&idx))).collect();
                let (many, docs) = (many(&engines), ragged());
                let expected = docs.select(&CpuEngine::new());
                assert_eq!(in_pool(num_threads, move || docs.select(&many)), expected);
                if lost.len() < 3 {
                    // Those in progress when it was lost, and none after.
                    assert!(lost.iter().all(|&idx| engines[idx].num_pieces() <= 4));
                }
            }
        }
    }
}

#[test]
fn proofs_keep_up_on_any_number_of_threads() {
    let docs = ragged();
    let options = PruneOptions { scoring: Scoring::Plain, method: Method::Hull(Target::Epsilon(0.3)) };
    let expected = Pruner::new(Arc::new(CpuEngine::new()), options).unwrap().prune(&docs.batch(), None).unwrap();
    for num_threads in [1, 2, 5] {
        let engines: Vec<_> = (0..3).map(|seed| Fake::new("a", seed, Fate::Fine)).collect();
        let pruner = Pruner::new(Arc::new(many(&engines)), options).unwrap();
        let own = Arc::clone(&docs);
        let found = in_pool(num_threads, move || pruner.prune(&own.batch(), None).unwrap());
        assert_eq!(format!("{:?}", found.docs), format!("{:?}", expected.docs));
    }
}

#[test]
fn calls_within_calls_end() {
    use rayon::prelude::*;
    for num_threads in [1, 2] {
        let engines: Vec<Arc<dyn Engine>> = vec![Arc::new(CpuEngine::new()), Arc::new(CpuEngine::new())];
        let shared = ManyEngines::new(engines).with_piece_tokens(30, 120);
        let docs = ragged();
        let expected = docs.select(&CpuEngine::new());
        let all = in_pool(num_threads, move || {
            (0..20).into_par_iter().with_max_len(1).map(|_| docs.select(&shared)).collect::<Vec<_>>()
        });
        assert!(all.iter().all(|found| *found == expected));
    }
}
