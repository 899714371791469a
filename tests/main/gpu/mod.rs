//! The kernels: what their sources say, and what they compute.

mod shaders;
