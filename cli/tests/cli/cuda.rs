//! CUDA devices that the CPU plays: several of them, and one that computes something wrong.

use std::path::Path;

use crate::shim_library;
use crate::support::{Bench, Ran};

/// Runs `maxhull` with the shim for a CUDA driver; none where no compiler can build it.
fn run(bench: &Bench, settings: &[(&str, &str)], args: &[&str]) -> Option<Ran> {
    let compiler = shim_library::compiler().filter(|_| cfg!(target_os = "linux"));
    let Some(compiler) = compiler else {
        println!("no shim for CUDA here: these are not run");
        return None;
    };
    let folder = shim_library::folder(&compiler, &Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    let mut command = bench.command(args);
    command.env("LD_LIBRARY_PATH", folder).envs(settings.iter().copied());
    Some(Ran::from(command.output().unwrap()))
}

const FILES: [&str; 4] = ["embeddings.npy", "embeddings_lengths.json", "kept.npy", "certificate.bin"];

#[test]
fn several_devices_prune_as_one_does() {
    let bench = Bench::new();
    bench.example("corpus", 5);
    let prune = |devices: &str, num_devices: &str, out: &str| {
        let args = ["prune", "corpus", "-o", out, "--epsilon", "0.2", "--device", devices, "--json"];
        let ran = run(&bench, &[("SHIM_DEVICES", num_devices)], &args)?;
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        Some(ran.json()["device"].as_str().unwrap().to_owned())
    };
    let Some(one) = prune("cuda:1", "2", "one") else { return };
    assert!(one.starts_with("cuda (kernel shim"), "{one}");
    for (devices, num_devices, count) in [
        ("cuda:0,cuda:1", "2", 2),
        ("cuda:2,cuda:0", "3", 2),
        ("cuda:all", "3", 3),
        ("auto", "2", 2),
        ("cuda:all", "1", 1),
    ] {
        let found = prune(devices, num_devices, "several").unwrap();
        let expected = if count == 1 { one.clone() } else { format!("{count} x {one}") };
        assert_eq!(found, expected, "{devices}");
        for file in FILES {
            let read = |out: &str| std::fs::read(bench.path(out).join(file)).unwrap();
            assert!(read("one") == read("several"), "{devices}: {file}");
        }
        std::fs::remove_dir_all(bench.path("several")).unwrap();
    }
}

#[test]
fn devices_of_different_kinds_share_a_corpus() {
    let bench = Bench::new();
    bench.example("corpus", 3);
    let Some(devices) = run(&bench, &[], &["devices", "--json"]) else { return };
    let devices = devices.json();
    let is_wgpu = |adapter: &&serde_json::Value| adapter["device"] == "wgpu:0" && adapter["is_usable"] == true;
    if !devices["adapters"].as_array().unwrap().iter().any(|adapter| is_wgpu(&adapter)) {
        println!("no wgpu adapter: only one kind of device");
        return;
    }
    let args = ["prune", "corpus", "-o", "out", "--epsilon", "0.2", "--device", "cuda:0,wgpu:0", "--json"];
    let ran = run(&bench, &[], &args).unwrap();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let name = ran.json()["device"].as_str().unwrap().to_owned();
    assert!(name.starts_with("cuda (kernel shim") && name.contains(" + wgpu ("), "{name}");
    assert_eq!(bench.run(&["verify", "corpus", "out"]).code, 0);
}

#[test]
fn lists_of_devices_are_checked() {
    let bench = Bench::new();
    bench.example("corpus", 1);
    let prune = ["prune", "corpus", "-o", "out", "--epsilon", "0.2", "--device"];
    let score = ["score", "corpus", "corpus", "--device"];
    for (args, device, code, message) in [
        (&prune[..], "cuda:0,cuda:7", 4, "cuda:7"),
        (&prune, "cuda:0,cuda:0", 2, "each once"),
        (&prune, "cuda,cuda:1", 2, "each once"),
        (&prune, "cuda:0,cpu", 2, "several GPUs"),
        (&score, "cuda:0,cuda:1", 2, "one device at a time"),
        (&score, "cuda:all", 2, "one device at a time"),
    ] {
        let Some(ran) = run(&bench, &[("SHIM_DEVICES", "2")], &[args, &[device]].concat()) else { return };
        assert_eq!(ran.code, code, "{device}: {}", ran.stderr);
        assert!(ran.stderr.contains(message), "{device}: {}", ran.stderr);
    }
    assert!(!bench.path("out").exists());
}

#[test]
fn a_bench_of_a_kernel_that_computes_something_wrong_fails() {
    let bench = Bench::new();
    let args = ["bench", "--quick", "--device", "cuda:0", "--kernel", "centre", "--kernel", "gram", "--json"];
    let Some(ran) = run(&bench, &[], &args) else { return };
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let ran = run(&bench, &[("SHIM_OMIT", "centre_f16")], &args).unwrap();
    assert_eq!(ran.code, 5, "{}", ran.stderr);
    assert!(ran.stderr.contains("centre") && ran.stderr.contains("mean nothing"), "{}", ran.stderr);
    // The others were checked and timed all the same.
    let device = &ran.json()["devices"][0];
    let num_rows = |kernel: &str, dtype: &str| {
        let is_of = |row: &&serde_json::Value| {
            row["kernel"] == kernel && row["shape"].as_str().unwrap().ends_with(&format!(", {dtype}"))
        };
        device["rows"].as_array().unwrap().iter().filter(is_of).count()
    };
    let found = [("centre", "f16"), ("centre", "f32"), ("gram", "f16"), ("gram", "f32")];
    assert_eq!(found.map(|(kernel, dtype)| num_rows(kernel, dtype)), [0, 1, 2, 1], "{device}");
    let wrong = device["wrong"].as_array().unwrap();
    let is_centre = |wrong: &serde_json::Value| {
        wrong.as_str().unwrap().contains("centre (") && ran.stderr.contains(wrong.as_str().unwrap())
    };
    assert!(wrong.len() == 2 && wrong.iter().all(is_centre), "{device}");
}

#[test]
fn a_bench_keeps_what_it_timed_before_the_device_failed() {
    let bench = Bench::new();
    let args = ["bench", "--quick", "--device", "cuda:0", "--kernel", "centre", "--kernel", "gram", "--json"];
    let Some(ran) = run(&bench, &[("SHIM_FAIL", "gram_f16")], &args) else { return };
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert!(ran.stderr.contains("the device was lost"), "{}", ran.stderr);
    let device = &ran.json()["devices"][0];
    let rows = device["rows"].as_array().unwrap();
    assert!(!rows.is_empty() && rows.iter().all(|row| row["kernel"] == "centre"), "{rows:?}");
    assert!(device["ended"].as_str().unwrap().contains("lost"), "{device}");
}
