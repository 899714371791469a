//! The binary from outside: what it prints, writes, refuses and leaves behind.

mod explain;
mod inspect;
mod invalid_input;
mod output;
mod prune;
mod support;
mod usage;
mod verify;
