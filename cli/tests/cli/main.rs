//! The binary from outside: what it prints, writes, refuses and leaves behind.

mod bench;
mod devices;
mod evaluate;
mod explain;
mod inspect;
mod invalid_input;
mod output;
mod prune;
mod score;
mod support;
mod usage;
mod verify;
