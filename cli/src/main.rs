//! `maxhull`: prune, verify and explain from the shell.

fn main() {}
