//! Ctrl-C. The first asks the pipeline to stop at the next document; the second ends the process.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::{Error, Result};

static REQUESTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
/// The folder under construction, for the second Ctrl-C.
static UNFINISHED: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Starts listening for Ctrl-C and for a request to terminate.
///
/// A hang-up is left as it is: `nohup` has it ignored, and then it must stay so.
pub fn install() {
    // Fails only when the system has no resources left; a run without a listener still ends on Ctrl-C.
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else { return };
    std::thread::spawn(move || signals.forever().for_each(|_| interrupted()));
}

fn interrupted() {
    if REQUESTED.swap(true, Ordering::SeqCst) {
        if let Some(dir) = UNFINISHED.lock().ok().and_then(|mut dir| dir.take()) {
            let _ = std::fs::remove_dir_all(dir);
        }
        std::process::exit(i32::from(Error::Interrupted.exit_code()));
    }
    eprintln!("maxhull: stopping after the batch at hand; interrupt once more to stop at once");
}

/// The flag that Ctrl-C sets.
pub fn flag() -> Arc<AtomicBool> {
    Arc::clone(&REQUESTED)
}

/// # Errors
/// [`Error::Interrupted`] after Ctrl-C.
pub fn check() -> Result<()> {
    if REQUESTED.load(Ordering::SeqCst) { Err(Error::Interrupted) } else { Ok(()) }
}

/// Names the folder that a second Ctrl-C removes, until it is dropped.
#[derive(Debug)]
pub struct RemoveOnExit(());

impl RemoveOnExit {
    /// `dir` is under construction.
    pub fn new(dir: &Path) -> Self {
        set(Some(dir.to_owned()));
        RemoveOnExit(())
    }
}

impl Drop for RemoveOnExit {
    fn drop(&mut self) {
        set(None);
    }
}

fn set(dir: Option<PathBuf>) {
    if let Ok(mut unfinished) = UNFINISHED.lock() {
        *unfinished = dir;
    }
}
