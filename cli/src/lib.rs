//! The binary `maxhull`. A library only so that tests and fuzzers reach the parsers; no API is promised.
//!
//! A command walks `args → corpus → command → output`; every way to end badly is in `error`.

pub mod args;
mod command;
pub mod corpus;
pub mod error;
mod interrupt;
mod measures;
mod notices;
pub mod output;
mod progress;
mod report;
pub mod trec;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    // clap prints usage errors itself and exits with 2.
    let cli = Cli::parse();
    interrupt::install();
    let ended = match &cli.command {
        Command::Inspect(args) => command::inspect::run(args),
        Command::Prune(args) => command::prune::run(args),
        Command::Verify(args) => command::verify::run(args),
        Command::Explain(args) => command::explain::run(args),
        Command::Score(args) => command::score::run(args),
        Command::Evaluate(args) => command::evaluate::run(args),
        Command::Completions { shell } => command::completions::run(*shell),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error::Error::StdoutClosed) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("maxhull: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
