//! Several engines that share a batch, one a device.
//!
//! ```text
//! documents -> pieces, smaller towards the end -> whichever engine is free -> the caller's thread -> deliver
//! ```
//!
//! What is found about a document depends on that document alone, so it does not matter which of several equal devices
//! takes it, or when. Devices of different kinds round differently: there each kind has pieces of its own, dealt in
//! turn, so that timing still decides nothing.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::Scope;

use super::{Decision, Deliver, Engine, Goal, Selection};
use crate::{Error, Scoring, TokenBatch};

/// Pieces on their way through an engine at a time: while it computes one, the host packs the next or takes in the last.
const LANES: usize = 2;

/// Tokens of a piece: enough to keep a device busy, and no more than it takes in one batch.
const PIECE_TOKENS: (u64, u64) = (1 << 15, 1 << 18);

/// Engines that take pieces of a batch from one queue.
///
/// Results are those of any one of them where all have the same name. An engine that is lost ([`Engine::is_lost`])
/// leaves what it has not begun to the others. Runs on the rayon pool of the calling thread; with fewer threads than
/// engines, one thread waits for several of them.
pub struct ManyEngines {
    engines: Vec<Arc<dyn Engine>>,
    /// Of each engine, the first with the same name.
    kinds: Vec<usize>,
    piece_tokens: (u64, u64),
}

impl ManyEngines {
    /// # Panics
    /// Without any engine.
    pub fn new(engines: Vec<Arc<dyn Engine>>) -> Self {
        assert!(!engines.is_empty(), "at least one engine");
        let names: Vec<String> = engines.iter().map(|engine| engine.name()).collect();
        let first = |name: &String| names.iter().position(|other| other == name).unwrap_or(0);
        ManyEngines { kinds: names.iter().map(first).collect(), engines, piece_tokens: PIECE_TOKENS }
    }

    /// The same engines with another size of the last pieces and of the first ones, in tokens. A document is never split.
    pub fn with_piece_tokens(self, least: u64, most: u64) -> Self {
        ManyEngines { piece_tokens: (least.max(1), most.max(1)), ..self }
    }

    fn run<T: Send>(
        &self,
        batch: &TokenBatch<'_>,
        docs: Range<usize>,
        ask: &Ask<'_, T>,
        deliver: &mut Deliver<'_, T>,
    ) -> Result<(), Error> {
        if let [engine] = &self.engines[..] {
            return ask(&**engine, docs, deliver);
        }
        let pieces = pieces(batch.offsets(), docs, self.piece_tokens, LANES * self.engines.len());
        let mut queues = vec![VecDeque::new(); self.engines.len()];
        for (piece, kind) in pieces.into_iter().zip(self.kinds.iter().cycle()) {
            queues[*kind].push_back(piece);
        }
        let call = Call {
            many: self,
            ask,
            queues: Mutex::new(queues),
            is_over: AtomicBool::new(false),
            failure: Mutex::default(),
        };
        // Once, unless the last engines are lost in the same moment and each leaves the rest to the other.
        while !call.is_done() {
            call.work(deliver);
        }
        call.failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// Puts a question about some documents to an engine.
type Ask<'a, T> = dyn Fn(&dyn Engine, Range<usize>, &mut Deliver<'_, T>) -> Result<(), Error> + Sync + 'a;

/// One call: what is left to do.
struct Call<'a, T> {
    many: &'a ManyEngines,
    ask: &'a Ask<'a, T>,
    /// Of each kind, at the place of its first engine.
    queues: Mutex<Vec<VecDeque<Range<usize>>>>,
    /// An engine failed, or somebody panics: nothing more is begun.
    is_over: AtomicBool,
    failure: Mutex<Option<Error>>,
}

impl<T: Send> Call<'_, T> {
    /// The calling thread takes pieces as the others do, and hands over what all of them find. It never waits for them
    /// while there is something to do, so that a pool of one thread is enough.
    fn work(&self, deliver: &mut Deliver<'_, T>) {
        let all = 0..self.many.engines.len();
        let mut engines: Vec<usize> = all.clone().filter(|&idx| !self.many.engines[idx].is_lost()).collect();
        if engines.is_empty() {
            engines.extend(all);
        }
        let (send, found) = channel();
        rayon::in_place_scope(|scope| {
            let _ends = EndInPanic(&self.is_over);
            // Other threads start with what was put there first: an engine each before any gets its second.
            for &engine_idx in engines.iter().cycle().take(LANES * engines.len()).skip(1) {
                let send = send.clone();
                scope.spawn(move |scope| self.step(scope, engine_idx, send));
            }
            while let Some(piece) = self.take(engines[0]) {
                self.put(engines[0], piece, &mut |docs| {
                    deliver(docs);
                    found.try_iter().for_each(&mut *deliver);
                });
            }
        });
        drop(send);
        found.iter().for_each(deliver);
    }

    /// One piece for this engine; the next is a task of its own, so that a thread which took this one up while it waited
    /// for another engine returns to that.
    fn step<'s>(&'s self, scope: &Scope<'s>, engine_idx: usize, send: Sender<Vec<(usize, T)>>) {
        let _ends = EndInPanic(&self.is_over);
        let Some(piece) = self.take(engine_idx) else { return };
        // The receiver outlives the scope.
        self.put(engine_idx, piece, &mut |docs| drop(send.send(docs)));
        scope.spawn(move |scope| self.step(scope, engine_idx, send));
    }

    fn put(&self, engine_idx: usize, piece: Range<usize>, deliver: &mut Deliver<'_, T>) {
        if let Err(error) = (self.ask)(&*self.many.engines[engine_idx], piece, deliver) {
            lock(&self.failure).get_or_insert(error);
            self.is_over.store(true, Ordering::Relaxed);
        }
    }

    /// The next piece of this engine's kind; none for a lost one as long as there are others. Pieces of a kind that is
    /// lost as a whole are anybody's.
    fn take(&self, engine_idx: usize) -> Option<Range<usize>> {
        let is_alive: Vec<bool> = self.many.engines.iter().map(|engine| !engine.is_lost()).collect();
        if self.is_over.load(Ordering::Relaxed) || !is_alive[engine_idx] && is_alive.contains(&true) {
            return None;
        }
        let kinds = &self.many.kinds;
        let is_orphaned = |kind: usize| !kinds.iter().zip(&is_alive).any(|(&of, &is_alive)| of == kind && is_alive);
        let mut queues = lock(&self.queues);
        let own = queues[kinds[engine_idx]].pop_front();
        own.or_else(|| (0..queues.len()).filter(|&kind| is_orphaned(kind)).find_map(|kind| queues[kind].pop_front()))
    }

    fn is_done(&self) -> bool {
        self.is_over.load(Ordering::Relaxed) || lock(&self.queues).iter().all(VecDeque::is_empty)
    }
}

/// A panic is passed on when all threads have ended; none begins anything more.
struct EndInPanic<'a>(&'a AtomicBool);

impl Drop for EndInPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole at every moment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Splits documents, given by the offsets of the batch, into pieces in order: each of half of what every lane would get
/// of the rest, within limits, so that all end at about the same time. A document is at least a piece.
fn pieces(offsets: &[u64], docs: Range<usize>, (least, most): (u64, u64), num_lanes: usize) -> Vec<Range<usize>> {
    let mut pieces = Vec::new();
    let mut start = docs.start;
    while start < docs.end {
        let num_left = offsets[docs.end] - offsets[start];
        let wanted = (num_left / (2 * num_lanes as u64)).max(least).min(most);
        let fitting = offsets[start + 1..=docs.end].partition_point(|&end| end - offsets[start] <= wanted);
        let end = start + fitting.max(1);
        pieces.push(start..end);
        start = end;
    }
    pieces
}

impl Engine for ManyEngines {
    fn name(&self) -> String {
        let kinds = (0..self.engines.len()).filter(|&engine_idx| self.kinds[engine_idx] == engine_idx);
        let names = kinds.map(|kind| {
            let name = self.engines[kind].name();
            match self.kinds.iter().filter(|&&of| of == kind).count() {
                1 => name,
                count => format!("{count} x {name}"),
            }
        });
        names.collect::<Vec<_>>().join(" + ")
    }

    fn overlaps(&self) -> bool {
        self.engines.iter().any(|engine| engine.overlaps())
    }

    fn num_devices(&self) -> usize {
        self.engines.iter().map(|engine| engine.num_devices()).sum()
    }

    fn is_lost(&self) -> bool {
        self.engines.iter().all(|engine| engine.is_lost())
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
        let ask = |engine: &dyn Engine, docs: Range<usize>, deliver: &mut Deliver<'_, Selection>| {
            engine.select_each(batch, docs, scoring, goal, always_kept, deliver)
        };
        self.run(batch, docs, &ask, deliver)
    }

    fn decide_each(
        &self,
        batch: &TokenBatch<'_>,
        docs: Range<usize>,
        scoring: Scoring,
        epsilon: f32,
        deliver: &mut Deliver<'_, Vec<Decision>>,
    ) -> Result<(), Error> {
        let ask = |engine: &dyn Engine, docs: Range<usize>, deliver: &mut Deliver<'_, Vec<Decision>>| {
            engine.decide_each(batch, docs, scoring, epsilon, deliver)
        };
        self.run(batch, docs, &ask, deliver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_every_document_once_and_shrink() {
        let lengths = [vec![0; 5], vec![180; 9_000], vec![20_000], vec![0, 1, 300], vec![0; 5]].concat();
        let mut offsets = vec![17];
        lengths.iter().for_each(|len| offsets.push(offsets[offsets.len() - 1] + len));
        let sizes = |docs: Range<usize>, num_lanes| {
            let pieces = pieces(&offsets, docs.clone(), (1 << 10, 1 << 17), num_lanes);
            let mut next = docs.start;
            for piece in &pieces {
                assert!(piece.start == next && piece.end > piece.start);
                next = piece.end;
            }
            assert_eq!(next, docs.end.max(docs.start));
            pieces.iter().map(|piece| offsets[piece.end] - offsets[piece.start]).collect::<Vec<u64>>()
        };
        for num_lanes in [2, 4, 16] {
            let sizes = sizes(0..lengths.len(), num_lanes);
            assert!(sizes.iter().all(|&size| size <= (1 << 17)));
            assert!(sizes.len() > num_lanes);
            let last: u64 = sizes.iter().rev().take(num_lanes).sum();
            assert!(last < 40_000, "{sizes:?}");
        }
        assert_eq!(sizes(3..3, 4), [0; 0]);
        assert_eq!(sizes(9_005..9_006, 4), [20_000]);
        assert_eq!(sizes(0..5, 4), [0]);
    }
}
