//! What `score` computes, writes and refuses.

use std::path::Path;

use half::f16;

use crate::support::{Bench, EXAMPLE, Packing, f32_bytes, npy, npz};

/// Queries or documents of the example as f64, by document.
fn example(name: &str) -> Vec<Vec<[f64; 128]>> {
    let folder = Path::new(EXAMPLE);
    let lengths = std::fs::read_to_string(folder.join(format!("{name}_lengths.json"))).unwrap();
    let lengths: Vec<usize> = serde_json::from_str(&lengths).unwrap();
    tokens_of(&folder.join(format!("{name}.npy")), &lengths)
}

fn tokens_of(path: &Path, lengths: &[usize]) -> Vec<Vec<[f64; 128]>> {
    let values = std::fs::read(path).unwrap()[128..].to_vec();
    let mut values = values.chunks(2).map(|bytes| f16::from_le_bytes([bytes[0], bytes[1]]).to_f64());
    let mut token = || std::array::from_fn(|_| values.next().unwrap());
    lengths.iter().map(|&len| (0..len).map(|_| token()).collect()).collect()
}

/// The definition: for each query token the largest similarity, summed.
fn max_sim(query: &[[f64; 128]], doc: &[[f64; 128]], floor: f64) -> f64 {
    let dot = |q: &[f64; 128], x: &[f64; 128]| q.iter().zip(x).map(|(q, x)| q * x).sum::<f64>();
    query.iter().map(|q| doc.iter().map(|x| dot(q, x)).fold(floor, f64::max)).sum()
}

/// `scores.npy` as rows.
fn read_scores(path: &Path) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(path).unwrap();
    let file = npyz::NpyFile::new(&bytes[..]).unwrap();
    assert_eq!(file.order(), npyz::Order::C);
    let &[_, num_docs] = file.shape() else { panic!("{:?}", file.shape()) };
    let values: Vec<f32> = file.into_vec().unwrap();
    values.chunks(num_docs as usize).map(<[f32]>::to_vec).collect()
}

/// Query, document, rank and score of each line.
fn read_run(text: &str) -> Vec<(usize, usize, usize, f32)> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        let &[query, "Q0", doc, rank, score, "maxhull"] = fields.as_slice() else { panic!("{line}") };
        (query.parse().unwrap(), doc.parse().unwrap(), rank.parse().unwrap(), score.parse().unwrap())
    };
    text.lines().map(line).collect()
}

fn score(bench: &Bench, args: &[&str]) -> String {
    let ran = bench.run(&[&["score"][..], args].concat());
    assert_eq!(ran.code, 0, "{args:?}: {}", ran.stderr);
    ran.stdout
}

/// Demands a refusal that leaves nothing behind.
fn refused(bench: &Bench, code: i32, args: &[&str], message: &str) {
    let before = bench.names();
    let ran = bench.run(&[&["score"][..], args].concat());
    assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{args:?}: {}", ran.stderr);
    assert!(ran.stderr.contains(message), "expected {message:?} in {:?}", ran.stderr);
    assert_eq!(bench.names(), before, "{message}: something was left behind");
}

/// A folder of f32 queries.
fn f32_queries(bench: &Bench, name: &str, dim: usize, lengths: &[usize], values: &[f32]) {
    let shape = format!("({}, {dim})", lengths.iter().sum::<usize>());
    bench.write(&format!("{name}/queries.npy"), &npy("<f4", &shape, &f32_bytes(values)));
    bench.write(&format!("{name}/queries_lengths.json"), format!("{lengths:?}").as_bytes());
}

#[test]
fn scores_are_those_of_the_definition() {
    let bench = Bench::new();
    let (queries, docs) = (example("queries"), example("embeddings"));
    for (scoring, floor) in [("plain", f64::NEG_INFINITY), ("clamped", 0.0)] {
        let out = format!("{scoring}.npy");
        score(&bench, &[EXAMPLE, EXAMPLE, "--scoring", scoring, "--out", &out]);
        let scores = read_scores(&bench.path(&out));
        assert_eq!((scores.len(), scores[0].len()), (queries.len(), docs.len()));
        for (query_idx, doc_idx) in [(0, 0), (0, 69), (7, 33), (20, 1), (39, 0), (39, 69)] {
            let expected = max_sim(&queries[query_idx], &docs[doc_idx], floor);
            let found = f64::from(scores[query_idx][doc_idx]);
            assert!((found - expected).abs() < 1e-5, "{scoring} {query_idx} {doc_idx}: {found}, expected {expected}");
        }
    }
}

#[test]
fn a_run_is_the_sorted_scores() {
    let bench = Bench::new();
    score(&bench, &[EXAMPLE, EXAMPLE, "--out", "scores.npy"]);
    let scores = read_scores(&bench.path("scores.npy"));
    let run = score(&bench, &[EXAMPLE, EXAMPLE, "--top-k", "7"]);
    let mut expected = Vec::new();
    for (query_idx, row) in scores.iter().enumerate() {
        let mut docs: Vec<usize> = (0..row.len()).collect();
        docs.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).unwrap().then(a.cmp(&b)));
        let hits = (1..).zip(docs.into_iter().take(7));
        expected.extend(hits.map(|(rank, doc_idx)| (query_idx + 1, doc_idx + 1, rank, row[doc_idx])));
    }
    assert_eq!(read_run(&run), expected);
    let default = read_run(&score(&bench, &[EXAMPLE, EXAMPLE]));
    assert_eq!(default.len(), 40 * 70, "70 documents are fewer than the 100 of the default");
}

#[test]
fn threads_batches_and_containers_change_no_byte() {
    let bench = Bench::new();
    let lengths = std::fs::read(Path::new(EXAMPLE).join("queries_lengths.json")).unwrap();
    let queries = std::fs::read(Path::new(EXAMPLE).join("queries.npy")).unwrap();
    bench.write("q.npy", &queries);
    bench.write("q_lengths.json", &lengths);
    let lengths: Vec<i64> = serde_json::from_slice(&lengths).unwrap();
    let lengths = npy("<i8", "(40,)", &lengths.iter().flat_map(|len| len.to_le_bytes()).collect::<Vec<u8>>());
    bench.write("q.npz", &npz(Packing::Compressed, &[("tokens", queries), ("lengths", lengths)]));
    let variants: [&[&str]; 5] = [
        &[EXAMPLE, EXAMPLE, "--threads", "1"],
        &[EXAMPLE, EXAMPLE, "--threads", "2"],
        &[EXAMPLE, EXAMPLE, "--threads", "2", "--batch-tokens", "400"],
        &["q.npy", EXAMPLE, "--threads", "1", "--batch-tokens", "1"],
        &["q.npz", EXAMPLE],
    ];
    for ending in ["trec", "npy"] {
        let outputs = variants.iter().enumerate().map(|(at, variant)| {
            let out = format!("{at}.{ending}");
            score(&bench, &[variant, &["--scoring", "clamped", "--out", &out][..]].concat());
            std::fs::read(bench.path(&out)).unwrap()
        });
        let outputs: Vec<Vec<u8>> = outputs.collect();
        assert!(outputs.iter().all(|output| *output == outputs[0]), "{ending}");
    }
    let printed = score(&bench, &[EXAMPLE, EXAMPLE, "--scoring", "clamped"]);
    assert_eq!(printed.into_bytes(), std::fs::read(bench.path("0.trec")).unwrap());
}

#[test]
fn json_says_what_the_run_says() {
    let bench = Bench::new();
    let run = read_run(&score(&bench, &[EXAMPLE, EXAMPLE, "--top-k", "3"]));
    let json = score(&bench, &[EXAMPLE, EXAMPLE, "--top-k", "3", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["num_queries"], &json["num_docs"], &json["top_k"]), (&40.into(), &70.into(), &3.into()));
    let mut found = Vec::new();
    for ranking in json["rankings"].as_array().unwrap() {
        for (rank, hit) in (1..).zip(ranking["docs"].as_array().unwrap()) {
            let number = |value: &serde_json::Value| value.as_u64().unwrap() as usize;
            let score = hit["score"].to_string().parse::<f32>().unwrap();
            found.push((number(&ranking["query"]), number(&hit["doc"]), rank, score));
        }
    }
    assert_eq!(found, run);
    let report = score(&bench, &[EXAMPLE, EXAMPLE, "--out", "all.npy", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["output"], "all.npy");
    assert_eq!(report.get("top_k"), None);
}

#[test]
fn pruning_costs_no_query_more_than_its_bound() {
    let bench = Bench::new();
    bench.prune(EXAMPLE, "pruned", &["--epsilon", "0.2", "--scoring", "clamped"]);
    for (corpus, name) in [(EXAMPLE, "full"), ("pruned", "less")] {
        score(&bench, &[EXAMPLE, corpus, "--scoring", "clamped", "--out", &format!("{name}.npy")]);
        score(&bench, &[EXAMPLE, corpus, "--scoring", "clamped", "--out", &format!("{name}.trec")]);
        let qrels = format!("{EXAMPLE}/qrels.txt");
        let ran = bench.run(&["evaluate", "--run", &format!("{name}.trec"), "--qrels", &qrels, "--json"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!((0.4..0.7).contains(&ran.json()["ndcg"].as_f64().unwrap()), "{}", ran.stdout);
        assert_eq!(ran.json()["num_judged_queries"], 40);
    }
    let bounds = std::fs::read(bench.path("pruned/bounds.npy")).unwrap();
    let bounds: Vec<f32> = npyz::NpyFile::new(&bounds[..]).unwrap().into_vec().unwrap();
    let (full, less) = (read_scores(&bench.path("full.npy")), read_scores(&bench.path("less.npy")));
    let mut worst = 0.0f64;
    for (query_idx, query) in example("queries").iter().enumerate() {
        let norm = |token: &[f64; 128]| token.iter().map(|value| value * value).sum::<f64>().sqrt();
        let sum_of_norms: f64 = query.iter().map(norm).sum();
        for (doc_idx, &bound) in bounds.iter().enumerate() {
            let loss = f64::from(full[query_idx][doc_idx]) - f64::from(less[query_idx][doc_idx]);
            // Scores are sums in f32: what rounding may add is far below any loss that counts.
            assert!(loss >= -1e-5, "query {query_idx} gains {} on document {doc_idx}", -loss);
            assert!(loss <= f64::from(bound) * sum_of_norms + 1e-5, "query {query_idx} loses {loss} on {doc_idx}");
            worst = worst.max(loss);
        }
    }
    assert!(worst > 0.01, "nothing was lost, so nothing was tested");
}

#[test]
fn types_of_queries_and_documents_may_differ() {
    let bench = Bench::new();
    let values: Vec<f32> = (0..12).map(|at| (at as f32 - 5.0) / 8.0).collect();
    let halves: Vec<u8> = values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
    bench.f32_corpus("single", 2, &[3, 2, 1], &values);
    bench.corpus("half", &npy("<f2", "(6, 2)", &halves), "[3, 2, 1]");
    f32_queries(&bench, "queries", 2, &[2, 1], &values[..6]);
    assert_eq!(score(&bench, &["queries", "single"]), score(&bench, &["queries", "half"]));
}

#[test]
fn ties_empty_queries_and_empty_documents() {
    let bench = Bench::new();
    // Documents: (1, 0), none, (1, 0) and (0, 1), (-1, -1).
    bench.f32_corpus("corpus", 2, &[1, 0, 2, 1], &[1.0, 0.0, 1.0, 0.0, 0.0, 1.0, -1.0, -1.0]);
    f32_queries(&bench, "queries", 2, &[1, 0, 2], &[2.0, 0.0, 0.5, 0.0, 0.0, 0.25]);
    let clamped = score(&bench, &["queries", "corpus", "--scoring", "clamped"]);
    let expected = "1 Q0 1 1 2 maxhull\n1 Q0 3 2 2 maxhull\n1 Q0 2 3 0 maxhull\n1 Q0 4 4 0 maxhull\n\
                    2 Q0 1 1 0 maxhull\n2 Q0 2 2 0 maxhull\n2 Q0 3 3 0 maxhull\n2 Q0 4 4 0 maxhull\n\
                    3 Q0 3 1 0.75 maxhull\n3 Q0 1 2 0.5 maxhull\n3 Q0 2 3 0 maxhull\n3 Q0 4 4 0 maxhull\n";
    assert_eq!(clamped, expected);
    let plain = score(&bench, &["queries", "corpus", "--empty-doc-score", "-9.5"]);
    let first: Vec<&str> = plain.lines().take(4).collect();
    assert_eq!(
        first,
        ["1 Q0 1 1 2 maxhull", "1 Q0 3 2 2 maxhull", "1 Q0 4 3 -2 maxhull", "1 Q0 2 4 -9.5 maxhull"],
        "negative maxima stay"
    );
    let advice = "corpus/embeddings.npy: document 1 (from 0; 1 such of 4) has no tokens";
    refused(&bench, 3, &["queries", "corpus"], advice);
    refused(&bench, 3, &["queries", "corpus", "--out", "scores.npy"], "--empty-doc-score");
}

#[test]
fn invalid_input_is_exit_code_3() {
    let bench = Bench::new();
    let values = [0.5, 0.25, -1.0, 0.125, 0.0, 1.0, 0.75, 0.5];
    bench.f32_corpus("corpus", 2, &[2, 2], &values);
    bench.f32_corpus("wide", 4, &[1, 1], &values);
    f32_queries(&bench, "queries", 2, &[1, 3], &values);
    f32_queries(&bench, "short", 2, &[1, 2], &values[..6]);
    bench.write("short/queries_lengths.json", b"[1, 1]");
    bench.write("alone/queries.npy", &npy("<f4", "(4, 2)", &f32_bytes(&values)));
    bench.write("bytes/queries.npy", &npy("|i1", "(4, 2)", &[0; 8]));
    bench.write("bytes/queries_lengths.json", b"[4]");
    let with = |at: usize, value: f32| {
        let mut values = values;
        values[at] = value;
        values
    };
    bench.f32_corpus("nan", 2, &[2, 2], &with(5, f32::NAN));
    bench.f32_corpus("huge", 2, &[2, 2], &with(6, 3e38));
    f32_queries(&bench, "infinite", 2, &[1, 3], &with(7, f32::INFINITY));
    let cases: [(&[&str], &str); 9] = [
        (
            &["queries", "wide"],
            "wide/embeddings.npy: tokens have dim 4, and the queries in queries/queries.npy have dim 2",
        ),
        (&["corpus", "corpus"], "corpus/queries.npy: no such file; a folder of queries holds queries.npy"),
        (&["alone", "corpus"], "alone/queries_lengths.json: no such file"),
        (&["short", "corpus"], "short/queries_lengths.json: the lengths of 2 documents sum to 2 tokens"),
        (&["bytes", "corpus"], "bytes/queries.npy: dtype is |i1: quantised bytes"),
        (&["infinite", "corpus"], "infinite/queries.npy: query 1, token 2, component 1 is inf"),
        (&["queries", "nan"], "nan/embeddings.npy: document 1, token 0, component 1 is NaN"),
        (&["queries", "huge"], "huge/embeddings.npy: document 1 has a component of 3e38 and a query one of 1e0"),
        (&["queries", "queries"], "queries/embeddings.npy: no such file"),
    ];
    for (args, message) in cases {
        refused(&bench, 3, args, message);
        refused(&bench, 3, &[args, &["--out", "out.trec"]].concat(), message);
        refused(&bench, 3, &[args, &["--out", "out.npy", "--batch-tokens", "1"]].concat(), message);
    }
}

#[test]
fn outputs_are_replaced_only_when_asked() {
    let bench = Bench::new();
    bench.f32_corpus("corpus", 2, &[1], &[1.0, 0.5]);
    f32_queries(&bench, "queries", 2, &[1], &[1.0, 0.5]);
    bench.write("out.trec", b"mine");
    refused(&bench, 2, &["queries", "corpus", "--out", "out.trec"], "exists; choose another output");
    assert_eq!(std::fs::read(bench.path("out.trec")).unwrap(), b"mine");
    score(&bench, &["queries", "corpus", "--out", "out.trec", "--force"]);
    assert_eq!(std::fs::read(bench.path("out.trec")).unwrap(), b"1 Q0 1 1 1.25 maxhull\n");
    for input in ["corpus/embeddings.npy", "queries/queries.npy"] {
        let before = std::fs::read(bench.path(input)).unwrap();
        refused(&bench, 2, &["queries", "corpus", "--out", input, "--force"], "is an input");
        assert_eq!(std::fs::read(bench.path(input)).unwrap(), before);
    }
    std::fs::create_dir(bench.path("folder.npy")).unwrap();
    refused(&bench, 2, &["queries", "corpus", "--out", "folder.npy", "--force"], "is not a file");
    refused(&bench, 2, &["queries", "corpus", "--out", "run.txt"], "*.trec for a ranking or *.npy for all scores");
    refused(&bench, 2, &["queries", "corpus", "--out", "s.npy", "--top-k", "3"], "--top-k belongs to a ranking");
    refused(&bench, 2, &["queries", "corpus", "--top-k", "0"], "--top-k");
    refused(&bench, 2, &["queries", "corpus", "--empty-doc-score", "nan"], "a finite number is needed");
    refused(&bench, 1, &["queries", "corpus", "--out", "nowhere/s.npy"], "no file can be created here");
}

#[cfg(unix)]
#[test]
fn a_reader_that_leaves_is_no_failure() {
    let bench = Bench::new();
    let mut child = bench.command(&["score", EXAMPLE, EXAMPLE]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// 400 MB of tokens, and never more than a few batches of them in memory.
#[cfg(target_os = "linux")]
#[test]
fn memory_stays_flat_over_a_mapped_corpus() {
    let bench = Bench::new();
    let (num_docs, num_bytes) = (1600, 1_600_000 * 256);
    let path = bench.write("corpus/embeddings.npy", &npy("<f2", "(1600000, 128)", &[]));
    // A sparse file: zeros that take no disk, and as much memory as any others once they are mapped and read.
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() + num_bytes).unwrap();
    bench.write("corpus/embeddings_lengths.json", format!("{:?}", vec![1000; num_docs]).as_bytes());
    f32_queries(&bench, "queries", 128, &[1], &[0.5; 128]);
    let args = ["score", "queries", "corpus", "--batch-tokens", "8192", "--top-k", "2"];
    let mut child = bench.command(&args).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut largest = 0;
    while child.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        largest = largest.max(peak.map_or(0, |peak| peak.parse::<u64>().unwrap() * 1024));
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"1 Q0 1 1 0 maxhull\n1 Q0 2 2 0 maxhull\n");
    assert!((1 << 20..100 << 20).contains(&largest), "{largest} bytes resident at most");
}

#[test]
fn a_device_ranks_like_the_cpu_and_is_named() {
    let bench = Bench::new();
    let scores = |device: &str, out: &str| {
        let report = score(&bench, &[EXAMPLE, EXAMPLE, "--device", device, "--out", out, "--json"]);
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        (report["device"].as_str().unwrap().to_owned(), read_scores(&bench.path(out)))
    };
    let (name, expected) = scores("cpu", "cpu.npy");
    assert_eq!(name, "cpu");
    let opens = bench.run(&["score", EXAMPLE, EXAMPLE, "--device", "wgpu"]);
    if opens.code == 4 {
        println!("no device for this test: {}", opens.stderr);
        return;
    }
    let (name, found) = scores("wgpu", "wgpu.npy");
    assert!(name.starts_with("wgpu ("), "{name}");
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert!((found - expected).abs() < 1e-5, "{found}, expected {expected}");
    }
    // The run goes the other way, through the best of each batch.
    let run = read_run(&score(&bench, &[EXAMPLE, EXAMPLE, "--device", "wgpu", "--batch-tokens", "999"]));
    assert_eq!(run.len(), 40 * 70);
    for (query, doc, _, score) in run {
        assert_eq!(score, found[query - 1][doc - 1], "the same bits in any batch");
    }
}

#[test]
fn devices_that_are_not_there_are_refused() {
    let bench = Bench::new();
    refused(&bench, 4, &[EXAMPLE, EXAMPLE, "--device", "cuda:1"], "device cuda:1: ");
    refused(&bench, 4, &[EXAMPLE, EXAMPLE, "--device", "wgpu:99"], "device wgpu:99: no such device");
    refused(&bench, 2, &[EXAMPLE, EXAMPLE, "--device", "gpu"], "auto, cpu, wgpu, wgpu:N");
}
