//! What `evaluate` counts, by hand, and what it refuses.

use crate::support::Bench;

fn evaluate(run: &str, qrels: &str, k: &str) -> serde_json::Value {
    let bench = Bench::new();
    bench.write("run.trec", run.as_bytes());
    bench.write("qrels.txt", qrels.as_bytes());
    let ran = bench.run(&["evaluate", "--run", "run.trec", "--qrels", "qrels.txt", "--k", k, "--json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    ran.json()
}

#[track_caller]
fn assert_measures(report: &serde_json::Value, ndcg: f64, mrr: f64, recall: f64, precision: f64) {
    for (name, expected) in [("ndcg", ndcg), ("mrr", mrr), ("recall", recall), ("precision", precision)] {
        let found = report[name].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-12, "{name}: {found}, expected {expected}");
    }
}

/// Lines of a run from query, document and score; the ranks are wrong on purpose.
fn run(lines: &[(&str, &str, &str)]) -> String {
    lines.iter().map(|(query, doc, score)| format!("{query} Q0 {doc} 77 {score} x\n")).collect()
}

#[test]
fn graded_gains_at_several_depths() {
    let ranking = run(&[("q", "c", "1.5"), ("q", "a", "3"), ("q", "b", "2e0"), ("q", "d", "-1")]);
    let qrels = "q 0 b 2\nq 0 c 1\nq 0 z 3\nq 0 d 0\nq 0 a -1\n";
    let log2 = |rank: f64| (rank + 1.0).log2();
    // Ranking: a (-1), b (2), c (1), d (0); best: z (3), b (2), c (1).
    let best = 3.0 + 2.0 / log2(2.0) + 1.0 / log2(3.0);
    let found = 2.0 / log2(2.0) + 1.0 / log2(3.0);
    assert_measures(&evaluate(&ranking, qrels, "10"), found / best, 0.5, 2.0 / 3.0, 0.2);
    assert_measures(&evaluate(&ranking, qrels, "3"), found / best, 0.5, 2.0 / 3.0, 2.0 / 3.0);
    let best_2 = 3.0 + 2.0 / log2(2.0);
    assert_measures(&evaluate(&ranking, qrels, "2"), 2.0 / log2(2.0) / best_2, 0.5, 1.0 / 3.0, 0.5);
    assert_measures(&evaluate(&ranking, qrels, "1"), 0.0, 0.0, 0.0, 0.0);
}

#[test]
fn equal_scores_rank_by_name_descending() {
    // trec_eval's order is 9, 10, 1: names as text, the larger first.
    let ranking = run(&[("q", "1", "1"), ("q", "10", "1"), ("q", "9", "1")]);
    assert_eq!(evaluate(&ranking, "q 0 9 1\n", "5")["mrr"], 1.0);
    assert_eq!(evaluate(&ranking, "q 0 10 1\n", "5")["mrr"], 0.5);
    assert_measures(&evaluate(&ranking, "q 0 1 1\n", "5"), 0.5, 1.0 / 3.0, 1.0, 0.2);
}

#[test]
fn means_are_over_the_judged_queries() {
    // q1 is perfect, q2 is missing, q3 has nothing relevant, q4 and q5 are not judged.
    let ranking = run(&[("q1", "a", "1"), ("q3", "a", "1"), ("q4", "a", "1"), ("q5", "a", "1")]);
    let report = evaluate(&ranking, "q1 0 a 1\nq2 0 a 1\nq3 0 a 0\nq3 0 b -2\n", "1");
    assert_measures(&report, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0);
    let counts = ["num_judged_queries", "num_missing_queries", "num_unjudged_queries"].map(|name| &report[name]);
    assert_eq!(counts, [3, 1, 2]);
}

#[test]
fn text_names_measures_and_what_does_not_count() {
    let bench = Bench::new();
    bench.write("run.trec", b"1\tQ0\ta  1 0.5 x\r\n\n2 Q0 a 1 0.5 x");
    bench.write("qrels.txt", b"1 0 a 1\n3 0 a 1\n");
    let ran = bench.run(&["evaluate", "--run", "run.trec", "--qrels", "qrels.txt"]);
    let expected = "nDCG@10      0.5000\nMRR@10       0.5000\nrecall@10    0.5000\nP@10         0.0500\n\
                    queries      2 judged, 1 of them not in the run, which count 0; \
                    1 of the run without judgements do not count\n";
    assert_eq!((ran.code, ran.stdout.as_str()), (0, expected), "{}", ran.stderr);
}

#[test]
fn malformed_files_are_exit_code_3() {
    let bench = Bench::new();
    let good = ("1 Q0 a 1 0.5 x\n", "1 0 a 1\n");
    let long = format!("{}{} 0 a 1\n", good.1, "q".repeat(70_000));
    let runs: &[(&[u8], &str)] = &[
        (b"", "run.trec: holds no lines"),
        (b" \n\t\n", "run.trec: holds no lines"),
        (
            b"1 Q0 a 1 0.5 x\n1 Q0 b 2 x\n",
            "run.trec: line 2: has 5 of 6 fields, expected `query Q0 document rank score tag`",
        ),
        (b"1 Q0 a 1 0.5 x y\n", "line 1: has more than 6 fields"),
        (b"\n1 Q0 a one 0.5 x\n", "line 2: the rank is \"one\""),
        (b"1 Q0 a -1 0.5 x\n", "line 1: the rank is \"-1\""),
        (b"1 Q0 a 1 best x\n", "line 1: the score is \"best\""),
        (b"1 Q0 a 1 nan x\n", "line 1: the score is \"nan\""),
        (b"1 Q0 a 1 1e999 x\n", "line 1: the score is \"1e999\""),
        (
            b"1 Q0 a 1 1 x\n1 Q0 b 2 1 x\n2 Q0 a 1 1 x\n1 Q0 a 3 1 x\n",
            "line 4: names document \"a\" of query \"1\" a second",
        ),
        (b"1 Q0 a 1 1 x\n1 Q0 \xff 2 1 x\n", "line 2: byte 5 is not UTF-8"),
    ];
    let qrels: &[(&[u8], &str)] = &[
        (b"", "qrels.txt: holds no lines"),
        (b"1 a 1\n", "qrels.txt: line 1: has 3 of 4 fields, expected `query 0 document gain`"),
        (b"1 0 a 1 1\n", "line 1: has more than 4 fields"),
        (b"1 0 a 1.5\n", "line 1: the gain is \"1.5\""),
        (b"1 0 a 2147483648\n", "line 1: the gain is \"2147483648\""),
        (b"1 0 a 1\n1 0 a 1\n", "line 2: names document \"a\" of query \"1\" a second"),
        (long.as_bytes(), "line 2: is longer than 65536 bytes"),
    ];
    let refused = |run: &[u8], qrels: &[u8], message: &str| {
        bench.write("run.trec", run);
        bench.write("qrels.txt", qrels);
        let ran = bench.run(&["evaluate", "--run", "run.trec", "--qrels", "qrels.txt"]);
        assert_eq!((ran.code, ran.stdout.as_str()), (3, ""), "{message}: {}", ran.stderr);
        assert!(ran.stderr.contains(message), "expected {message:?} in {:?}", ran.stderr);
    };
    runs.iter().for_each(|(run, message)| refused(run, good.1.as_bytes(), message));
    qrels.iter().for_each(|(qrels, message)| refused(good.0.as_bytes(), qrels, message));
    std::fs::remove_file(bench.path("qrels.txt")).unwrap();
    let ran = bench.run(&["evaluate", "--run", "run.trec", "--qrels", "qrels.txt"]);
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.contains("qrels.txt: no such file"), "{}", ran.stderr);
    let ran = bench.run(&["evaluate", "--run", "run.trec", "--qrels", "qrels.txt", "--k", "0"]);
    assert_eq!(ran.code, 2);
}
