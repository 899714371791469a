//! The engine of every GPU: batches, launches and decoding are the same for each [`Device`].
//!
//! ```text
//! plan -> upload -> centre -> gram -> selection, compact | dominance -> download -> decode -> deliver
//! ```
//!
//! Two batches are on their way at any time: while the device computes one, the host packs the next and hands over the
//! one before, and whoever proves it does so on the other threads. What the device cannot do (a document too long for
//! it, one whose distances `f32` cannot tell apart) goes to the CPU engine, and so does the rest of a call when the
//! device is lost.

pub(crate) mod batch;
mod buffers;
mod decode;
pub(crate) mod maxsim;
pub(crate) mod shares;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Decision, Deliver, Engine, Goal, Notice, Notify};
use crate::device::{Device, DeviceError};
use crate::engine::CpuEngine;
use crate::plan::{self, Capacity, Part};
use crate::{Error, Scoring, TokenBatch};
use batch::{Ask, Decoded, Found, Packed};
use buffers::BatchBuffers;

/// Batches on their way at a time.
const DEPTH: usize = 2;

/// Calls in progress up to which a thread takes up other work while it waits for the device. That may be another call,
/// which waits in its turn: without an end, a pool with many calls to make would have them all in progress on one stack.
const MOST_YIELDING: usize = 2;

/// Proposes on a device.
///
/// Each call in progress holds two sets of buffers on the device, reused by later calls: some 500 MB each for tokens of 256
/// bytes, and hardly ever more than 800. The kept sets are those of [`CpuEngine`] up to ties that the rounding of `f32`
/// decides, the same from call to call on the same device and driver.
pub struct GpuEngine<D: Device> {
    device: Arc<D>,
    cpu: CpuEngine,
    notify: Option<Notify>,
    is_given_up: AtomicBool,
    num_calls: AtomicUsize,
    /// How often the memory did not suffice: later calls start with batches that were small enough.
    num_halvings: AtomicUsize,
    idle: Mutex<Vec<BatchBuffers<D>>>,
}

impl<D: Device> GpuEngine<D> {
    /// An engine that says nothing when documents go to the CPU.
    pub fn new(device: Arc<D>) -> Self {
        GpuEngine {
            device,
            cpu: CpuEngine::new(),
            notify: None,
            is_given_up: AtomicBool::new(false),
            num_calls: AtomicUsize::new(0),
            num_halvings: AtomicUsize::new(0),
            idle: Mutex::default(),
        }
    }

    /// Calls `notify` with what goes to the CPU, and why.
    pub fn with_notices(self, notify: Notify) -> Self {
        GpuEngine { notify: Some(notify), ..self }
    }

    /// The device.
    pub fn device(&self) -> &Arc<D> {
        &self.device
    }

    fn announce(&self, notice: &Notice) {
        if let Some(notify) = &self.notify {
            notify(notice);
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<BatchBuffers<D>>> {
        // What a panic elsewhere leaves behind is only memory to be reused.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `ask` over these documents. `deliver` gets what the device answered and what the CPU did in its place, each
    /// document once.
    fn run<A: Ask>(&self, batch: &TokenBatch<'_>, docs: Range<usize>, ask: &A, deliver: &mut Deliver<'_, A::Answer>) {
        let (send, answers) = channel();
        self.num_calls.fetch_add(1, Ordering::Relaxed);
        let _ended = Ended(&self.num_calls);
        rayon::in_place_scope(|scope| {
            let fall_back = |docs: Vec<usize>| {
                let send = send.clone();
                scope.spawn(move |_| self.ask_cpu(batch, ask, docs, &send));
            };
            let mut call = Call { engine: self, batch, ask, deliver, answers: &answers, fall_back: &fall_back };
            call.run(docs);
        });
        drop(send);
        answers.iter().for_each(deliver);
    }

    fn ask_cpu<A: Ask>(
        &self,
        batch: &TokenBatch<'_>,
        ask: &A,
        docs: Vec<usize>,
        send: &Sender<Vec<(usize, A::Answer)>>,
    ) {
        use rayon::prelude::*;
        let answers =
            docs.into_par_iter().with_max_len(1).map(|doc_idx| (doc_idx, ask.on_cpu(&self.cpu, batch, doc_idx)));
        // The receiver outlives the scope that this runs in.
        let _ = send.send(answers.collect());
    }
}

/// Counts a call down when it ends, in a panic too.
struct Ended<'a>(&'a AtomicUsize);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One call: parts of the batch on their way through the device.
struct Call<'a, D: Device, A: Ask> {
    engine: &'a GpuEngine<D>,
    batch: &'a TokenBatch<'a>,
    ask: &'a A,
    deliver: &'a mut Deliver<'a, A::Answer>,
    answers: &'a Receiver<Vec<(usize, A::Answer)>>,
    fall_back: &'a dyn Fn(Vec<usize>),
}

/// A batch that the device works on.
struct InFlight<D: Device> {
    packed: Packed,
    buffers: BatchBuffers<D>,
    download: D::Download,
}

impl<D: Device, A: Ask> Call<'_, D, A> {
    fn run(&mut self, docs: Range<usize>) {
        let end = docs.end;
        let (mut capacity, mut num_halvings) = self.capacity();
        let mut parts = VecDeque::from(plan::parts(self.batch.offsets(), docs, capacity));
        let mut in_flight = VecDeque::with_capacity(DEPTH);
        while let Some(part) = parts.pop_front() {
            let docs = match part {
                Part::Device(docs) => docs,
                Part::TooLong(doc_idx) => {
                    let num_tokens = self.batch.doc_len(doc_idx);
                    self.engine.announce(&Notice::DocTooLong { doc_idx, num_tokens });
                    (self.fall_back)(vec![doc_idx]);
                    continue;
                }
            };
            if self.engine.is_given_up.load(Ordering::Relaxed) {
                (self.fall_back)(docs.collect());
                continue;
            }
            if in_flight.len() == DEPTH
                && let Some(oldest) = in_flight.pop_front()
            {
                self.finish(oldest);
            }
            match (self.start(docs.clone()), capacity.halved()) {
                (Ok(started), _) => in_flight.push_back(started),
                (Err(DeviceError::OutOfMemory(_)), Some(smaller)) => {
                    // What is on its way holds memory that the smaller batches may need.
                    in_flight.drain(..).for_each(|oldest| self.finish(oldest));
                    self.engine.idle().clear();
                    // So do the commands of the batch that failed.
                    buffers::settle(&*self.engine.device);
                    capacity = smaller;
                    num_halvings += 1;
                    // Calls that run beside this one meet the same lack; it is said once.
                    if self.engine.num_halvings.fetch_max(num_halvings, Ordering::Relaxed) < num_halvings {
                        self.engine.announce(&Notice::BatchHalved);
                    }
                    parts = plan::parts(self.batch.offsets(), docs.start..end, capacity).into();
                }
                (Err(error), _) => self.give_up(&error, docs),
            }
            self.pass_on();
        }
        in_flight.into_iter().for_each(|oldest| self.finish(oldest));
    }

    /// What a batch may hold after all that earlier calls met, and how often it was halved.
    fn capacity(&self) -> (Capacity, usize) {
        let whole = Capacity::of(self.engine.device.limits(), batch::row_bytes(self.batch));
        let asked = self.engine.num_halvings.load(Ordering::Relaxed);
        let halves = std::iter::successors(Some(whole), |capacity| capacity.halved()).take(asked + 1);
        halves.zip(0..).last().unwrap_or((whole, 0))
    }

    /// Packs and sends documents on their way.
    fn start(&self, docs: Range<usize>) -> Result<InFlight<D>, DeviceError> {
        let packed = Packed::new(self.batch, docs, self.engine.device.limits(), self.ask);
        let mut buffers = self.engine.idle().pop().unwrap_or_default();
        let device = &*self.engine.device;
        let download = buffers.send(device, self.batch, &packed, self.ask)?;
        Ok(InFlight { packed, buffers, download })
    }

    /// Waits for a batch and hands its documents over.
    fn finish(&mut self, in_flight: InFlight<D>) {
        let InFlight { packed, buffers, download } = in_flight;
        match self.read(&packed, &buffers, download) {
            Ok((answers, for_cpu)) => {
                self.engine.idle().push(buffers);
                (self.deliver)(answers);
                if !for_cpu.is_empty() {
                    (self.fall_back)(for_cpu);
                }
            }
            Err(error) => self.give_up(&error, packed.docs()),
        }
        self.pass_on();
    }

    /// Waits for the answers of a batch: those of the device, and the documents that it leaves to the CPU.
    fn read(
        &self,
        packed: &Packed,
        buffers: &BatchBuffers<D>,
        mut download: D::Download,
    ) -> Result<Found<A>, DeviceError> {
        let device = &*self.engine.device;
        let mut is_all = false;
        for _ in 0..packed.most_downloads() {
            // The threads of the pool have better things to do than to wait: proofs of the batches before this one.
            let may_yield = || self.engine.num_calls.load(Ordering::Relaxed) <= MOST_YIELDING;
            while may_yield() && !device.is_ready(&download) && rayon::yield_now() == Some(rayon::Yield::Executed) {}
            let mut decoded = Decoded::Unfinished;
            device.read(download, &mut |parts| decoded = packed.decode(self.batch, parts, self.ask, is_all))?;
            download = match decoded {
                Decoded::Found(found) => return Ok(found),
                // A launch ends before a device seems to hang; long documents take several.
                Decoded::Unfinished => buffers.ask(device, packed, self.ask, true)?,
                Decoded::Short(num_entries) => buffers.fetch(device, packed, num_entries)?,
            };
            is_all = matches!(decoded, Decoded::Short(_));
        }
        Err(DeviceError::Lost("it does not finish its documents".into()))
    }

    /// The CPU takes these documents, and everything after them.
    fn give_up(&self, error: &DeviceError, docs: Range<usize>) {
        if !self.engine.is_given_up.swap(true, Ordering::SeqCst) {
            let reason = error.to_string();
            self.engine.announce(&Notice::FellBack { reason });
        }
        (self.fall_back)(docs.collect());
    }

    /// Hands over what the CPU has finished.
    fn pass_on(&mut self) {
        self.answers.try_iter().for_each(&mut *self.deliver);
    }
}

impl<D: Device> Engine for GpuEngine<D> {
    fn name(&self) -> String {
        self.device.name()
    }

    fn overlaps(&self) -> bool {
        true
    }

    fn is_lost(&self) -> bool {
        self.is_given_up.load(Ordering::SeqCst)
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
        self.run(batch, docs, &batch::Select { scoring, goal, always_kept }, deliver);
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
        self.run(batch, docs, &batch::Decide { scoring, epsilon }, deliver);
        Ok(())
    }
}
