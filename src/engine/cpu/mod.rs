//! SIMD and threads.

pub(crate) mod maxsim;
