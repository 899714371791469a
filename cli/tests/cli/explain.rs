//! The reasons, token by token.

use crate::support::Bench;

/// Two unit vectors and a point near the middle between them.
fn corpus(bench: &Bench) {
    bench.f32_corpus("corpus", 2, &[1, 3], &[1.0, 1.0, 1.0, 0.0, 0.5, 0.48, 0.0, 1.0]);
    bench.write("pieces.jsonl", b"[\"alone\"]\n[\"wing\", \"slip\", \"flow\"]\n");
}

#[test]
fn names_what_a_removed_token_rests_on() {
    let bench = Bench::new();
    corpus(&bench);
    let args = ["explain", "corpus", "--doc", "1", "--epsilon", "0.1", "--pieces", "pieces.jsonl"];
    let ran = bench.run(&args);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 4, "{}", ran.stdout);
    assert!(lines[0].contains("1 of 3 tokens removed"), "{}", ran.stdout);
    assert!(lines[1].contains("\"wing\"") && lines[1].contains("kept: some query needs it (loses 1.414"));
    // The foot of (0.5, 0.48) on the segment, 0.02 / sqrt(2) away.
    assert!(lines[2].ends_with("removed: 0.51·t0 \"wing\" + 0.49·t2 \"flow\", residual 0.014"), "{}", lines[2]);

    let one = bench.run(&[&args[..], &["--token", "1", "--json"]].concat()).json();
    let tokens = one["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0]["decision"], "removed");
    assert_eq!(tokens[0]["support"][0]["piece"], "wing");
    assert!((tokens[0]["support"][0]["weight"].as_f64().unwrap() - 0.51).abs() < 1e-6);
}

#[test]
fn a_single_token_always_stays() {
    let bench = Bench::new();
    corpus(&bench);
    let ran = bench.run(&["explain", "corpus", "--doc", "0", "--epsilon", "9"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("it is the only one"), "{}", ran.stdout);
    let report = bench.run(&["explain", "corpus", "--doc", "0", "--epsilon", "9", "--json"]).json();
    assert!(report["tokens"][0]["loss_without"].is_null());
}

#[test]
fn refuses_what_is_not_there() {
    let bench = Bench::new();
    corpus(&bench);
    bench.write("short.jsonl", b"[\"alone\"]\n[\"wing\"]\n");
    bench.write("broken.jsonl", b"\nwing\n");
    for (args, code, message) in [
        (&["--doc", "2"][..], 2, "the corpus has 2 documents"),
        (&["--doc", "1", "--token", "3"], 2, "document 1 has 3 tokens"),
        (&["--doc", "1", "--epsilon", "-1"], 2, "epsilon"),
        (&["--doc", "1", "--pieces", "none.jsonl"], 3, "none.jsonl: no such file"),
        (&["--doc", "1", "--pieces", "short.jsonl"], 3, "1 pieces in line 2, and the document has 3 tokens"),
        (&["--doc", "1", "--pieces", "broken.jsonl"], 3, "line 2 is not a JSON list of strings"),
    ] {
        let ran = bench.run(&[&["explain", "corpus"][..], args].concat());
        assert_eq!(ran.code, code, "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(message), "{args:?}: {}", ran.stderr);
    }
}
