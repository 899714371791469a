//! `maxhull completions SHELL`

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;
use crate::error::Result;

/// Prints the script.
pub fn run(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "maxhull", &mut script);
    crate::report::write(&script)
}
