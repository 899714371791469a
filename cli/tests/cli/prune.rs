//! What a pruning writes.

use std::path::Path;

use crate::support::{Bench, EXAMPLE, Packing, example_tokens, names_in, npy, npz};

const FILES: [&str; 6] =
    ["bounds.npy", "certificate.bin", "embeddings.npy", "embeddings_lengths.json", "kept.npy", "manifest.json"];

fn assert_same(a: &Path, b: &Path, files: &[&str]) {
    for name in files {
        assert!(std::fs::read(a.join(name)).unwrap() == std::fs::read(b.join(name)).unwrap(), "{name} differs");
    }
}

/// An array as another reader of the format sees it.
fn read_npy<T: npyz::Deserialize>(path: &Path) -> (Vec<u64>, Vec<T>) {
    let bytes = std::fs::read(path).unwrap();
    let file = npyz::NpyFile::new(&bytes[..]).unwrap();
    assert_eq!(file.order(), npyz::Order::C);
    (file.shape().to_vec(), file.into_vec().unwrap())
}

#[test]
fn example_corpus_loses_most_tokens_and_verifies() {
    let bench = Bench::new();
    let report = bench.prune(EXAMPLE, "out", &["--epsilon", "0.2", "--scoring", "clamped", "--json"]).json();
    let removed = 1.0 - report["kept_share"].as_f64().unwrap();
    assert!((0.70..0.80).contains(&removed), "{removed} removed");
    assert!(report["worst_bound"].as_f64().unwrap() <= 0.2);
    assert!(report["worst_bound"].as_f64().unwrap() > 0.15);
    assert_eq!(names_in(&bench.path("out")), FILES);

    let verified = bench.run(&["verify", EXAMPLE, "out", "--json"]);
    assert_eq!(verified.code, 0, "{}", verified.stderr);
    let verified = verified.json();
    assert_eq!(verified["verified"], true);
    for entry in ["num_docs", "num_tokens", "num_kept", "worst_bound", "guarantee"] {
        assert_eq!(verified[entry], report[entry], "{entry}");
    }
}

#[test]
fn files_agree_with_each_other_and_the_original() {
    let bench = Bench::new();
    bench.example("corpus", 5);
    bench.prune("corpus", "out", &["--keep-ratio", "0.4"]);
    let out = bench.path("out");
    let (original, original_lengths) = example_tokens(5);
    let (shape, kept) = read_npy::<u32>(&out.join("kept.npy"));
    let lengths: Vec<usize> =
        serde_json::from_str(&std::fs::read_to_string(out.join("embeddings_lengths.json")).unwrap()).unwrap();
    assert_eq!(shape, [kept.len() as u64]);
    assert_eq!(lengths.iter().sum::<usize>(), kept.len());
    assert!(kept.len() < original.len() / 256, "nothing was removed");

    let mut expected = Vec::new();
    let (mut next, mut start) = (0, 0);
    for (len, original_len) in lengths.iter().zip(&original_lengths) {
        let positions = &kept[next..next + len];
        assert!(positions.is_sorted_by(|a, b| a < b));
        assert_eq!(*len, (original_len * 2).div_ceil(5));
        for &position in positions {
            let at = (start + position as usize) * 256;
            expected.extend_from_slice(&original[at..at + 256]);
        }
        (next, start) = (next + len, start + original_len);
    }
    let embeddings = std::fs::read(out.join("embeddings.npy")).unwrap();
    assert!(embeddings[128..] == expected, "the bytes of a survivor changed");
    let (shape, _) = read_npy::<half::f16>(&out.join("embeddings.npy"));
    assert_eq!(shape, [kept.len() as u64, 128]);
    let (shape, bounds) = read_npy::<f32>(&out.join("bounds.npy"));
    assert_eq!(shape, [5]);
    assert!(bounds.iter().all(|&bound| bound > 0.0 && bound < 1.0), "{bounds:?}");
}

#[test]
fn equal_runs_write_equal_bytes() {
    let bench = Bench::new();
    bench.example("corpus", 8);
    let target = ["--epsilon", "0.15", "--scoring", "clamped"];
    bench.prune("corpus", "one", &[&target[..], &["--threads", "1"]].concat());
    bench.prune("corpus", "two", &[&target[..], &["--threads", "2"]].concat());
    bench.prune("corpus", "small", &[&target[..], &["--threads", "2", "--batch-tokens", "100"]].concat());
    assert_same(&bench.path("one"), &bench.path("two"), &FILES);
    assert_same(&bench.path("one"), &bench.path("small"), &FILES);
}

#[test]
fn every_container_gives_the_same_output() {
    let bench = Bench::new();
    bench.example("folder", 4);
    let (tokens, lengths) = example_tokens(4);
    let tokens = npy("<f2", &format!("({}, 128)", lengths.iter().sum::<usize>()), &tokens);
    bench.write("flat.npy", &tokens);
    bench.write("flat_lengths.json", format!("{lengths:?}").as_bytes());
    let bytes = |values: Vec<i64>| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let lengths_npy = npy("<i8", "(4,)", &bytes(lengths.iter().map(|&len| len as i64).collect()));
    let offsets = (0..=4).map(|end| lengths[..end].iter().sum::<usize>() as i64).collect();
    let offsets_npy = npy("<i8", "(5,)", &bytes(offsets));
    let with_lengths = [("tokens", tokens.clone()), ("lengths", lengths_npy)];
    bench.write("stored.npz", &npz(Packing::Stored, &with_lengths));
    bench.write("packed.npz", &npz(Packing::Compressed, &with_lengths));
    // A first array of odd size puts the tokens at an odd byte.
    let odd = [("x", vec![0; 3]), ("tokens", tokens.clone()), ("offsets", offsets_npy.clone())];
    let even = [("x", vec![0; 4]), ("tokens", tokens), ("offsets", offsets_npy)];
    bench.write("odd.npz", &npz(Packing::Stored, &odd));
    bench.write("even.npz", &npz(Packing::Stored, &even));
    bench.prune("folder", "expected", &["--epsilon", "0.2"]);
    for corpus in ["flat.npy", "stored.npz", "packed.npz", "odd.npz", "even.npz"] {
        let out = format!("{corpus}.out");
        bench.prune(corpus, &out, &["--epsilon", "0.2"]);
        assert_same(&bench.path("expected"), &bench.path(&out), &FILES);
        assert_eq!(bench.run(&["verify", corpus, &out]).code, 0);
    }
}

#[test]
fn f32_tokens_with_empty_documents() {
    let bench = Bench::new();
    // The midpoint of two others goes without loss; the empty documents stay empty.
    let values = [1.0, 0.0, 0.0, 1.0, 0.5, 0.5, 2.0, 2.0];
    bench.f32_corpus("corpus", 2, &[0, 3, 0, 1, 0], &values);
    bench.prune("corpus", "out", &["--lossless"]);
    let lengths = std::fs::read_to_string(bench.path("out/embeddings_lengths.json")).unwrap();
    assert_eq!(lengths, "[0, 2, 0, 1, 0]\n");
    let (_, kept) = read_npy::<u32>(&bench.path("out/kept.npy"));
    assert_eq!(kept, [0, 1, 0]);
    let (_, bounds) = read_npy::<f32>(&bench.path("out/bounds.npy"));
    assert_eq!(bounds, [0.0; 5]);
    assert_eq!(bench.run(&["verify", "corpus", "out"]).code, 0);
}

#[test]
fn protected_tokens_stay() {
    let bench = Bench::new();
    bench.f32_corpus("corpus", 2, &[3, 3], &[0.0, 0.0, 0.1, 0.0, 1.0, 0.0, 0.0, 0.0, 0.1, 0.0, 1.0, 0.0]);
    let kept = |out: &str, more: &[&str]| {
        bench.prune("corpus", out, &[&["--scoring", "clamped", "--lossless"], more].concat());
        read_npy::<u32>(&bench.path(out).join("kept.npy")).1
    };
    assert_eq!(kept("free", &[]), [2, 2]);
    assert_eq!(kept("first", &["--protect-first", "1"]), [0, 2, 0, 2]);
    assert_eq!(kept("last", &["--protect-last", "2"]), [1, 2, 1, 2]);
    assert_eq!(kept("all", &["--protect-first", "9"]), [0, 1, 2, 0, 1, 2]);
}

#[test]
fn every_target_and_strategy_is_proven() {
    let bench = Bench::new();
    bench.example("corpus", 3);
    let cases: [&[&str]; 8] = [
        &["--epsilon", "0.3"],
        &["--keep-ratio", "0.5"],
        &["--max-tokens", "20"],
        &["--max-bytes", "20kB"],
        &["--lossless"],
        &["--strategy", "norm"],
        &["--strategy", "norm", "--norm-threshold", "0.4"],
        &["--strategy", "lp", "--theta", "0.5"],
    ];
    for (at, case) in cases.into_iter().enumerate() {
        let out = format!("out{at}");
        let report = bench.prune("corpus", &out, &[case, &["--scoring", "clamped", "--json"]].concat()).json();
        let verified = bench.run(&["verify", "corpus", &out, "--json"]);
        assert_eq!(verified.code, 0, "{case:?}: {}", verified.stderr);
        assert_eq!(verified.json()["num_kept"], report["num_kept"], "{case:?}");
        match case[0] {
            "--max-bytes" => {
                let bytes = report["token_bytes_after"].as_u64().unwrap();
                assert!((20_000 - 256..=20_000).contains(&bytes), "{bytes} bytes for 20,000");
            }
            "--max-tokens" => assert_eq!(report["num_kept"], 60),
            "--lossless" => assert_eq!(report["worst_bound"], 0.0),
            _ => assert!(report["num_kept"].as_u64() < report["num_tokens"].as_u64(), "{case:?} removed nothing"),
        }
    }
}
