//! What a device says while it works.

use std::fmt;
use std::sync::Arc;

/// Something that whoever asked for a device may want to know. Results are complete and correct all the same.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A document does not fit the device's buffers; the CPU takes it.
    DocTooLong {
        /// Document.
        doc_idx: usize,
        /// Its tokens.
        num_tokens: usize,
    },
    /// The device ran out of memory; batches are half as large from here on.
    BatchHalved,
    /// The device failed; the CPU does the rest.
    FellBack {
        /// What the device reported.
        reason: String,
    },
    /// One of several devices says this.
    OnDevice {
        /// What to type for it.
        device: String,
        /// What it says.
        notice: Box<Notice>,
    },
}

impl Notice {
    /// Has `notify` hear every notice as one of this device.
    pub fn on_device(device: String, notify: Notify) -> Notify {
        Arc::new(move |notice| notify(&Notice::OnDevice { device: device.clone(), notice: Box::new(notice.clone()) }))
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::DocTooLong { doc_idx, num_tokens } => {
                write!(f, "document {doc_idx} has {num_tokens} tokens, too many for the device; the CPU takes it")
            }
            Notice::BatchHalved => f.write_str("the device is short of memory; batches are half as large from here on"),
            Notice::FellBack { reason } => write!(f, "{reason}; the CPU does the rest"),
            Notice::OnDevice { device, notice } => match &**notice {
                Notice::FellBack { reason } => {
                    write!(f, "{device}: {reason}; the other devices do the rest, or the CPU once none is left")
                }
                other => write!(f, "{device}: {other}"),
            },
        }
    }
}

/// Called with each notice, on whichever thread meets it.
pub type Notify = Arc<dyn Fn(&Notice) + Send + Sync>;
