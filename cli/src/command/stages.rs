//! Stages that overlap on neighbouring batches: the next one is read while this one is computed.

use std::ops::Range;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use crate::corpus::Corpus;
use crate::error::Result;
use crate::interrupt;

/// Batches that may wait between two stages.
pub const QUEUED_BATCHES: usize = 2;

/// Hands each batch to `work` on the pool until it returns false, while a thread of its own reads the next; gives the
/// time spent reading.
///
/// # Errors
/// Those of `work`, and [`crate::error::Error::Interrupted`].
pub fn each_batch(
    corpus: &Corpus,
    pool: &rayon::ThreadPool,
    batch_tokens: u32,
    mut work: impl FnMut(Range<usize>) -> Result<bool> + Send,
) -> Result<Duration> {
    let (read_batch, batches) = bounded(QUEUED_BATCHES);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(corpus, batch_tokens, read_batch));
        let worked = pool.install(move || {
            for docs in batches {
                interrupt::check()?;
                if !work(docs)? {
                    break;
                }
            }
            interrupt::check()
        });
        let read = join(reader);
        worked.map(|()| read)
    })
}

fn read(corpus: &Corpus, batch_tokens: u32, batches: Sender<Range<usize>>) -> Duration {
    let mut busy = Duration::ZERO;
    for docs in corpus.batches(batch_tokens as usize) {
        let started = Instant::now();
        corpus.fault_in(&docs);
        busy += started.elapsed();
        if batches.send(docs).is_err() {
            break;
        }
    }
    busy
}

/// A panic of a stage goes on here, so that what is under construction is removed on the way.
pub fn join<T>(handle: std::thread::ScopedJoinHandle<'_, T>) -> T {
    handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
