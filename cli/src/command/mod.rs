//! One file a command.

pub mod completions;
pub mod explain;
pub mod inspect;
pub mod prune;
pub mod verify;

use crate::args::Common;
use crate::corpus::Corpus;
use crate::error::{Error, Result};

/// The pool that computes.
fn thread_pool(common: &Common) -> Result<rayon::ThreadPool> {
    let threads = common.threads.map_or(0, usize::from);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|error| Error::Failure(anyhow::Error::new(error).context("threads could not be started")))
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
