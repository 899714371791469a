//! The two strategies of arXiv 2504.12778. They propose what to keep; what they remove is projected and proven in the
//! full space like any other removal.

mod lp;
mod norm;

pub use lp::lp_kept;
pub use norm::norm_kept;
