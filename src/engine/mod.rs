//! How the work is done; today on the CPU.

pub(crate) mod cpu;
