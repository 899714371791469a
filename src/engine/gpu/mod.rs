//! What every device shares: buffers, launch order, batches.

pub(crate) mod maxsim;
