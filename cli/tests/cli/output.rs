//! An output appears whole or not at all, and nothing else is ever touched.

use crate::support::{Bench, example_tokens, names_in, npy};

const PRUNE: [&str; 5] = ["prune", "corpus", "--lossless", "-o", "out"];

#[test]
fn existing_output_needs_force() {
    let bench = Bench::new();
    bench.example("corpus", 2);
    assert_eq!(bench.run(&PRUNE).code, 0);
    let before = std::fs::read(bench.path("out/manifest.json")).unwrap();
    let ran = bench.run(&["prune", "corpus", "--epsilon", "0.5", "-o", "out"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("--force"), "{}", ran.stderr);
    assert_eq!(std::fs::read(bench.path("out/manifest.json")).unwrap(), before);

    let ran = bench.run(&["prune", "corpus", "--epsilon", "0.5", "-o", "out", "--force"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_ne!(std::fs::read(bench.path("out/manifest.json")).unwrap(), before);
    assert_eq!(bench.names(), ["corpus", "out"]);
}

#[test]
fn an_empty_folder_is_filled() {
    let bench = Bench::new();
    bench.example("corpus", 1);
    std::fs::create_dir(bench.path("out")).unwrap();
    assert_eq!(bench.run(&PRUNE).code, 0);
    assert_eq!(names_in(&bench.path("out")).len(), 6);
}

#[test]
fn force_replaces_only_what_maxhull_wrote() {
    let bench = Bench::new();
    bench.example("corpus", 1);
    let force = [&PRUNE[..], &["--force"]].concat();
    let refused = |message: &str| {
        let ran = bench.run(&force);
        assert_eq!(ran.code, 2, "{message}");
        assert!(ran.stderr.contains(message), "{}", ran.stderr);
    };
    bench.write("out", b"a file");
    refused("is not a folder");
    std::fs::remove_file(bench.path("out")).unwrap();
    bench.write("out/thesis.tex", b"years of work");
    refused("is not a folder that maxhull wrote");
    bench.write("out/manifest.json", b"{\"format\": \"somebody else's\", \"format_version\": 1}");
    refused("is not a folder that maxhull wrote");
    bench.write("out/manifest.json", b"{\"format\": \"maxhull pruned corpus\", \"format_version\": 1}");
    refused("thesis.tex");
    assert_eq!(std::fs::read(bench.path("out/thesis.tex")).unwrap(), b"years of work");
    std::fs::remove_file(bench.path("out/thesis.tex")).unwrap();
    assert_eq!(bench.run(&force).code, 0);
}

#[test]
fn the_input_is_never_overwritten() {
    let bench = Bench::new();
    bench.example("outer/corpus", 2);
    // Even when everything else would allow it.
    bench.write("outer/corpus/manifest.json", b"{\"format\": \"maxhull pruned corpus\", \"format_version\": 1}");
    let before = std::fs::read(bench.path("outer/corpus/embeddings.npy")).unwrap();
    for (corpus, out) in [
        ("outer/corpus", "outer/corpus"),
        ("outer/corpus", "outer"),
        ("outer/corpus", "outer/corpus/"),
        ("outer/corpus", "outer/../outer/corpus"),
        ("outer/corpus/embeddings.npy", "outer/corpus"),
    ] {
        let ran = bench.run(&["prune", corpus, "-o", out, "--lossless", "--force"]);
        assert_eq!(ran.code, 2, "{out}: {}", ran.stderr);
        assert!(ran.stderr.contains("the input is never overwritten"), "{}", ran.stderr);
    }
    // Inside the corpus folder there is room.
    let ran = bench.run(&["prune", "outer/corpus", "-o", "outer/corpus/pruned", "--lossless"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(std::fs::read(bench.path("outer/corpus/embeddings.npy")).unwrap(), before);
}

#[test]
fn an_output_without_a_parent_is_a_failure() {
    let bench = Bench::new();
    bench.example("corpus", 1);
    let ran = bench.run(&["prune", "corpus", "--lossless", "-o", "no/such/place"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("no/such"), "{}", ran.stderr);
    assert_eq!(bench.names(), ["corpus"]);
}

#[cfg(unix)]
#[test]
fn interrupting_leaves_nothing() {
    interrupt_a_run("");
}

/// Started with `nohup`, a run ignores hang-ups; it must not lose its other signals with them.
#[cfg(unix)]
#[test]
fn interrupting_a_run_without_a_terminal_leaves_nothing() {
    interrupt_a_run("trap '' HUP INT;");
}

#[cfg(unix)]
fn interrupt_a_run(shell_setup: &str) {
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    let bench = Bench::new();
    // Large enough to be at work for seconds, in release too.
    let (tokens, lengths) = example_tokens(70);
    let (tokens, lengths) = (tokens.repeat(8), lengths.repeat(8));
    let shape = format!("({}, 128)", lengths.iter().sum::<usize>());
    bench.corpus("corpus", &npy("<f2", &shape, &tokens), &format!("{lengths:?}"));
    let script = format!("{shell_setup} exec {} {}", env!("CARGO_BIN_EXE_maxhull"), PRUNE.join(" "));
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &script]).current_dir(bench.path("")).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = shell.spawn().unwrap();
    let started = Instant::now();
    while bench.names().len() < 2 {
        assert!(started.elapsed() < Duration::from_secs(30) && child.try_wait().unwrap().is_none(), "never started");
        std::thread::sleep(Duration::from_millis(1));
    }
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130), "{}", String::from_utf8_lossy(&ended.stderr));
    assert_eq!(bench.names(), ["corpus"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_that_cannot_grow_is_a_failure() {
    let bench = Bench::new();
    bench.example("corpus", 20);
    // The shell's limit on the size of files stands in for a full disk: 64 blocks, of 512 or 1024 bytes.
    let script = format!("ulimit -f 64; trap '' XFSZ; exec {} {}", env!("CARGO_BIN_EXE_maxhull"), PRUNE.join(" "));
    let mut shell = std::process::Command::new("sh");
    let ran = crate::support::Ran::from(shell.args(["-c", &script]).current_dir(bench.path("")).output().unwrap());
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("could not be written"), "{}", ran.stderr);
    assert_eq!(bench.names(), ["corpus"]);
}
