//! One file a command, and what several of them share.

pub mod bench;
pub mod completions;
pub mod devices;
pub mod evaluate;
pub mod explain;
pub mod inspect;
pub mod prune;
pub mod score;
mod stages;
pub mod verify;

use std::sync::Arc;

use maxhull::engine::{CpuEngine, DeviceSpec, DeviceSpecs, Engine, OpenDevice};
use maxhull::{Method, PruneOptions, Pruner, Scoring};

use crate::args::Common;
use crate::corpus::Corpus;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::notices::Notices;

/// The pool that computes.
fn thread_pool(common: &Common) -> Result<rayon::ThreadPool> {
    pool_of(common.threads)
}

/// A pool of this many threads, or one a core.
fn pool_of(threads: Option<u16>) -> Result<rayon::ThreadPool> {
    let threads = threads.map_or(0, usize::from);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|error| Error::Failure(anyhow::Error::new(error).context("threads could not be started")))
}

/// What computes.
fn open_engine(devices: &DeviceSpecs, notices: &Arc<Notices>) -> Result<Arc<dyn Engine>> {
    devices.open(Notices::notify(notices)).map_err(not_opened)
}

fn not_opened(error: maxhull::Error) -> Error {
    Error::Device(format!("{error}; `maxhull devices` lists what there is"))
}

/// What computes where the work is a handful of documents.
fn cpu_engine() -> Arc<dyn Engine> {
    Arc::new(CpuEngine::new())
}

/// The device that was asked for; `None` is the CPU.
fn open_device(spec: DeviceSpec) -> Result<Option<OpenDevice>> {
    spec.open_device().map_err(not_opened)
}

/// A pruner that ends on Ctrl-C.
fn new_pruner(engine: &Arc<dyn Engine>, scoring: Scoring, method: Method) -> Result<Pruner> {
    let pruner = Pruner::new(Arc::clone(engine), PruneOptions { scoring, method });
    Ok(pruner.map_err(|error| Error::Usage(error.to_string()))?.with_cancel(interrupt::flag()))
}

/// An error of the library about a batch that starts at `first_doc`.
fn library_error(error: maxhull::Error, corpus: &Corpus, first_doc: usize) -> Error {
    match error {
        maxhull::Error::InvalidOption { .. } => Error::Usage(error.to_string()),
        maxhull::Error::Cancelled => Error::Interrupted,
        maxhull::Error::Certificate(_) | maxhull::Error::Mismatch { .. } => {
            Error::Failure(anyhow::Error::new(error).context("internal error"))
        }
        _ => Error::Input(corpus.token_problem(error, first_doc)),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        crate::args::Cli::command().debug_assert();
    }
}
