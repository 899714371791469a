//! The binary from outside: what it prints, writes, refuses and leaves behind.

mod bench;
mod cuda;
mod devices;
mod evaluate;
mod explain;
mod inspect;
mod invalid_input;
mod output;
mod prune;
mod score;
#[path = "../../../tests/main/cuda/library.rs"]
mod shim_library;
mod support;
mod usage;
mod verify;
