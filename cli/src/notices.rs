//! What a device says while it works, on standard error.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use indicatif::ProgressBar;
use maxhull::engine::{Notice, Notify};

/// Documents that are named one by one; of the others there is only the count.
const MOST_NAMED: usize = 3;

/// Prints notices above the progress bar and counts documents that went to the CPU.
#[derive(Debug, Default)]
pub struct Notices {
    bar: OnceLock<ProgressBar>,
    /// Notices number documents within the batch at hand.
    first_doc: AtomicUsize,
    /// Each once, however many passes meet it.
    too_long: Mutex<BTreeSet<usize>>,
}

impl Notices {
    /// For an engine.
    pub fn notify(this: &Arc<Self>) -> Notify {
        let this = Arc::clone(this);
        Arc::new(move |notice| this.print(notice))
    }

    /// Where to print.
    pub fn print_above(&self, bar: &ProgressBar) {
        // A command has one bar.
        let _ = self.bar.set(bar.clone());
    }

    /// The batch at hand starts at this document.
    pub fn set_first_doc(&self, doc_idx: usize) {
        self.first_doc.store(doc_idx, Ordering::Relaxed);
    }

    /// Says how many documents were not named.
    pub fn finish(&self) {
        let num_too_long = self.too_long.lock().unwrap_or_else(PoisonError::into_inner).len();
        if num_too_long > MOST_NAMED {
            self.say(&format!("{num_too_long} documents in all were too long for the device; the CPU took them"));
        }
    }

    fn print(&self, notice: &Notice) {
        let Some((doc_idx, num_tokens)) = too_long(notice) else { return self.say(&notice.to_string()) };
        let doc_idx = self.first_doc.load(Ordering::Relaxed) + doc_idx;
        let mut too_long = self.too_long.lock().unwrap_or_else(PoisonError::into_inner);
        let is_named = too_long.insert(doc_idx) && too_long.len() <= MOST_NAMED;
        drop(too_long);
        if is_named {
            let named = Notice::DocTooLong { doc_idx, num_tokens };
            self.say(&match notice {
                Notice::OnDevice { device, .. } => {
                    Notice::OnDevice { device: device.clone(), notice: Box::new(named) }.to_string()
                }
                _ => named.to_string(),
            });
        }
    }

    fn say(&self, what: &str) {
        let print = || eprintln!("maxhull: {what}");
        match self.bar.get() {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

/// The document and its tokens, if that is what a device says.
fn too_long(notice: &Notice) -> Option<(usize, usize)> {
    match notice {
        Notice::DocTooLong { doc_idx, num_tokens } => Some((*doc_idx, *num_tokens)),
        Notice::OnDevice { notice, .. } => too_long(notice),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_counts_once_in_two_passes() {
        let notices = Notices::default();
        for first_doc in [0, 10, 0, 10] {
            notices.set_first_doc(first_doc);
            let too_long = Notice::DocTooLong { doc_idx: 3, num_tokens: 9000 };
            notices.print(&too_long);
            notices.print(&Notice::OnDevice { device: "cuda:1".into(), notice: Box::new(too_long) });
        }
        assert_eq!(*notices.too_long.lock().unwrap(), BTreeSet::from([3, 13]));
    }
}
