//! `maxhull bench`: what it reports; its numbers are nobody's business here.

use crate::support::{Bench, EXAMPLE};

#[test]
fn a_quick_row_is_checked_and_timed() {
    let bench = Bench::new();
    let ran = bench.run(&["bench", "--quick", "--device", "cpu", "--kernel", "gram", "--threads", "1", "--json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let report = ran.json();
    assert_eq!(report["is_quick"], true);
    let device = &report["devices"][0];
    assert_eq!((&device["device"], &device["num_threads"]), (&"cpu".into(), &1.into()));
    let row = &device["rows"][0];
    assert_eq!(row["kernel"], "gram");
    assert!(row["timing"]["median_ms"].as_f64().unwrap() > 0.0);
    assert!(row["largest_difference"].as_f64().unwrap() <= row["allowed_difference"].as_f64().unwrap());
}

#[test]
fn every_device_here_is_timed() {
    let bench = Bench::new();
    let ran = bench.run(&["bench", "--quick", "--kernel", "centre", "--kernel", "gram", "--json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let report = ran.json();
    let devices = report["devices"].as_array().unwrap();
    assert_eq!(devices[devices.len() - 1]["device"], "cpu");
    for device in &devices[..devices.len() - 1] {
        assert!(device["ceilings"]["copy_gb_per_second"].as_f64().unwrap() > 0.0);
        assert!(device["rows"].as_array().unwrap().iter().all(|row| row["share_of_copy"].as_f64().unwrap() > 0.0));
    }
}

#[test]
fn a_corpus_is_made_and_pruned_with_the_time_in_each_stage() {
    let bench = Bench::new();
    for device in ["cpu", "wgpu"] {
        let args = ["bench", "--quick", "--device", device, "--kernel", "corpus", "--json"];
        let ran = bench.run(&[&args[..], &["--corpus", EXAMPLE, "--docs", "12"]].concat());
        if device == "wgpu" && ran.code == 4 {
            println!("no wgpu device: {}", ran.stderr);
            continue;
        }
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let report = &ran.json()["devices"][0];
        let corpus = &report["corpus"];
        assert_eq!((&corpus["num_docs"], &corpus["is_real"]), (&12.into(), &true.into()));
        assert!(corpus["num_kept"].as_u64().unwrap() < corpus["num_tokens"].as_u64().unwrap());
        assert!(corpus["worst_bound"].as_f64().unwrap() <= 0.2);
        let mut stages = vec!["read", "selection", "proof", "write"];
        if device == "wgpu" {
            stages.extend(["pack", "upload", "gram", "download", "decode"]);
            let figure = |name: &str| {
                let figures = report["figures"].as_array().unwrap();
                figures.iter().find(|figure| figure["name"] == name).unwrap()["measured"].as_f64()
            };
            assert_eq!(figure("corpus_s"), corpus["seconds"].as_f64());
            assert_eq!(figure("maxsim_10k_ms"), None);
        }
        for stage in stages {
            assert!(corpus["stage_seconds"][stage].as_f64().unwrap() > 0.0, "{device} {stage}: {corpus}");
        }
    }
    assert_eq!(bench.run(&["bench", "--device", "cpu", "--kernel", "corpus", "--corpus", "nowhere"]).code, 3);
}

#[test]
fn markdown_is_a_table() {
    let bench = Bench::new();
    let ran = bench.run(&["bench", "--quick", "--device", "cpu", "--kernel", "gram", "--markdown"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let table: Vec<&str> = ran.stdout.lines().filter(|line| line.starts_with('|')).collect();
    assert_eq!(table.len(), 3, "{}", ran.stdout);
    assert!(table[1].starts_with("|---|"));
    let columns = table[0].matches('|').count();
    assert!(table.iter().all(|line| line.matches('|').count() == columns), "{}", ran.stdout);
}

#[test]
fn what_is_not_there_is_refused() {
    let bench = Bench::new();
    assert_eq!(bench.run(&["bench", "--device", "wgpu:999"]).code, 4);
    assert_eq!(bench.run(&["bench", "--device", "tpu"]).code, 2);
    assert_eq!(bench.run(&["bench", "--kernel", "nothing"]).code, 2);
    assert_eq!(bench.run(&["bench", "--json", "--markdown"]).code, 2);
}
