//! Predictions before a run.

use crate::support::Bench;

#[test]
fn counts_what_is_there() {
    let bench = Bench::new();
    // Two equal tokens (one with a -0), a zero token, and the same vector in another document, which is no duplicate.
    let values = [0.6, 0.0, 0.6, -0.0, 0.0, 0.0, 0.6, 0.0, 0.0, 0.5];
    bench.f32_corpus("corpus", 2, &[3, 0, 2], &values);
    let report = bench.run(&["inspect", "corpus", "--json"]).json();
    assert_eq!(report["num_docs"], 3);
    assert_eq!(report["num_empty_docs"], 1);
    assert_eq!(report["num_tokens"], 5);
    assert_eq!(report["num_duplicate_tokens"], 1);
    assert_eq!(report["num_zero_tokens"], 1);
    assert_eq!(report["on_a_sphere"], false);
    assert_eq!(report["rank"]["rank"], 2);
    assert_eq!(report["lengths"]["max"], 3);
    assert_eq!(report["dtype"], "f32");
}

#[test]
fn says_that_a_sphere_holds_nothing_but_duplicates() {
    let bench = Bench::new();
    bench.f32_corpus("corpus", 2, &[4], &[0.6, 0.8, 0.8, 0.6, 0.6, 0.8, 1.0, 0.0]);
    let ran = bench.run(&["inspect", "corpus"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let expected = "--lossless will find only the exact duplicate to remove: all tokens lie on one sphere";
    assert!(ran.stdout.contains(expected), "{}", ran.stdout);
}

#[test]
fn predicts_what_prune_keeps() {
    let bench = Bench::new();
    bench.example("corpus", 8);
    let inspect = ["inspect", "corpus", "--json", "--scoring", "clamped"];
    let report = bench.run(&inspect).json();
    let predicted = &report["predictions"][0]["keep"];
    for (at, epsilon) in ["0.05", "0.1", "0.2", "0.3"].into_iter().enumerate() {
        let predicted = predicted[at]["kept_share"].as_f64().unwrap();
        let args = ["--epsilon", epsilon, "--scoring", "clamped", "--json"];
        let kept = bench.prune("corpus", epsilon, &args).json()["kept_share"].as_f64().unwrap();
        assert!((predicted - kept).abs() < 0.02, "epsilon {epsilon}: predicted {predicted}, kept {kept}");
        assert!(kept < 0.9, "epsilon {epsilon}: nothing was removed");
    }
}

#[test]
fn predicts_what_lossless_removes() {
    let bench = Bench::new();
    // A square and its centre: four corners stay under plain scoring, the centre goes.
    bench.f32_corpus("corpus", 2, &[5], &[1.0, 0.0, 0.0, 1.0, -1.0, 0.0, 0.0, -1.0, 0.25, 0.25]);
    let ran = bench.run(&["inspect", "corpus", "--scoring", "plain"]);
    assert!(ran.stdout.contains("--lossless will find 20.0 % (plain) of the tokens"), "{}", ran.stdout);
    let report = bench.prune("corpus", "out", &["--lossless", "--json"]).json();
    assert_eq!(report["num_kept"], 4);
}
