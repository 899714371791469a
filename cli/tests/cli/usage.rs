//! The command line itself.

use crate::support::Bench;

#[test]
fn wrong_usage_is_exit_code_2() {
    let bench = Bench::new();
    bench.example("corpus", 1);
    let prune = |more: &[&str]| bench.run(&[&["prune", "corpus", "-o", "out"][..], more].concat());
    let cases: &[(&[&str], &str)] = &[
        (&[], "one of --epsilon, --keep-ratio, --max-tokens, --max-bytes, --lossless"),
        (&["--epsilon", "0.1", "--lossless"], "cannot be used with"),
        (&["--strategy", "lp", "--epsilon", "0.1"], "take no target"),
        (&["--strategy", "norm", "--keep-ratio", "0.5"], "take no target"),
        (&["--epsilon", "0.1", "--theta", "0.5"], "--theta belongs to --strategy lp"),
        (&["--epsilon", "0.1", "--norm-threshold", "0.5"], "--norm-threshold belongs to --strategy norm"),
        (&["--epsilon", "-0.1"], "epsilon"),
        (&["--epsilon", "nan"], "epsilon"),
        (&["--keep-ratio", "0"], "keep"),
        (&["--keep-ratio", "1.5"], "keep"),
        (&["--max-tokens", "0"], "max"),
        (&["--max-bytes", "255"], "room for one token a document"),
        (&["--max-bytes", "many"], "invalid value 'many'"),
        (&["--strategy", "lp", "--theta", "0"], "theta"),
        (&["--strategy", "norm", "--norm-threshold=-1"], "threshold"),
        (&["--epsilon", "0.1", "--threads", "0"], "threads"),
        (&["--epsilon", "0.1", "--batch-tokens", "0"], "batch-tokens"),
    ];
    for (more, message) in cases {
        let ran = prune(more);
        assert_eq!(ran.code, 2, "{more:?}: {}{}", ran.stdout, ran.stderr);
        assert!(ran.stderr.contains(message), "{more:?}: {}", ran.stderr);
    }
    assert_eq!(bench.names(), ["corpus"]);
}

#[test]
fn other_devices_are_exit_code_4() {
    let bench = Bench::new();
    bench.example("corpus", 1);
    let ran = bench.run(&["prune", "corpus", "-o", "out", "--epsilon", "0.1", "--device", "cuda:0"]);
    assert_eq!(ran.code, 4);
    assert!(ran.stderr.contains("cuda:0"), "{}", ran.stderr);
    assert_eq!(bench.names(), ["corpus"]);
}

#[test]
fn every_flag_has_help() {
    let bench = Bench::new();
    for command in ["inspect", "prune", "verify", "explain", "score", "evaluate", "devices", "bench"] {
        let ran = bench.run(&[command, "--help"]);
        assert_eq!(ran.code, 0);
        // A flag without help is a line that ends after its name.
        let bare = ran.stdout.lines().filter(|line| line.trim_start().starts_with("--"));
        for flag in bare {
            let at = ran.stdout.find(flag).unwrap();
            let next = ran.stdout[at..].lines().nth(1).unwrap_or_default();
            assert!(flag.trim().contains("  ") || next.starts_with("          "), "{command}: {flag}");
        }
    }
}

#[test]
fn completions_name_the_commands() {
    let bench = Bench::new();
    for shell in ["bash", "zsh", "fish"] {
        let ran = bench.run(&["completions", shell]);
        assert_eq!(ran.code, 0);
        assert!(ran.stdout.contains("keep-ratio"), "{shell}");
    }
}

#[cfg(unix)]
#[test]
fn closed_stdout_is_no_failure() {
    let bench = Bench::new();
    let mut child = bench.command(&["completions", "bash"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
