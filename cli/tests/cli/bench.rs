//! `maxhull bench`: what it reports; its numbers are nobody's business here.

use crate::support::Bench;

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
