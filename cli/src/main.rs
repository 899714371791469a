//! `maxhull`: prune, verify and explain from the shell.

fn main() -> std::process::ExitCode {
    maxhull_cli::main()
}
