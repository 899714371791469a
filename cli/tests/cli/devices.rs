//! What can compute here. Whether there is a GPU depends on the machine, so the tests ask for what holds on any.

use crate::support::{Bench, Ran};

/// A run that finds no Vulkan driver. Only Linux's loader can be told so from outside.
#[cfg(target_os = "linux")]
fn without_gpu(bench: &Bench, args: &[&str]) -> Ran {
    let mut command = bench.command(args);
    let nowhere = bench.path("nowhere.json");
    Ran::from(command.env("VK_ICD_FILENAMES", &nowhere).env("VK_DRIVER_FILES", &nowhere).output().unwrap())
}

#[test]
fn the_cpu_is_always_listed() {
    let bench = Bench::new();
    let report = bench.run(&["devices", "--json"]).json();
    assert_eq!(report["cpu"]["device"], "cpu");
    assert!(report["cpu"]["engine"].as_str().unwrap().starts_with("cpu ("));
    assert!(report["cpu"]["num_threads"].as_u64().unwrap() > 0);
    let text = bench.run(&["devices"]);
    assert_eq!(text.code, 0, "{}", text.stderr);
    assert!(text.stdout.starts_with("cpu "), "{}", text.stdout);
}

#[test]
fn every_adapter_says_what_to_type_and_whether_it_works() {
    let bench = Bench::new();
    let report = bench.run(&["devices", "--json"]).json();
    let adapters = report["adapters"].as_array().unwrap();
    let (cuda, wgpu): (Vec<_>, Vec<_>) = adapters.iter().partition(|adapter| adapter["api"] == "CUDA");
    for (api, adapters) in [("cuda", &cuda), ("wgpu", &wgpu)] {
        for (idx, adapter) in adapters.iter().enumerate() {
            assert_eq!(adapter["device"], format!("{api}:{idx}"));
        }
    }
    for adapter in adapters {
        assert_eq!(adapter["is_usable"].as_bool().unwrap(), adapter.get("problem").is_none());
        assert!(adapter["limits"]["max_buffer_bytes"].as_u64().unwrap() > 0);
    }
    let known = adapters.iter().filter(|adapter| adapter["is_usable"] == true).map(|adapter| &adapter["device"]);
    assert!(report["auto"] == "cpu" || known.into_iter().any(|device| *device == report["auto"]));
    let required = std::env::var("REQUIRE_BACKENDS").unwrap_or_default();
    if required.split(',').any(|backend| backend.trim() == "wgpu") {
        assert!(adapters.iter().any(|adapter| adapter["is_usable"] == true), "{report}");
    }
    println!("adapters found: {}", adapters.len());
}

#[cfg(target_os = "linux")]
#[test]
fn no_gpu_is_no_failure_and_says_what_to_do() {
    let bench = Bench::new();
    let ran = without_gpu(&bench, &["devices"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("libvulkan1"), "{}", ran.stdout);
    assert!(ran.stdout.contains("auto     takes cpu"), "{}", ran.stdout);
    let report = without_gpu(&bench, &["devices", "--json"]).json();
    assert_eq!(report["adapters"].as_array().unwrap().len(), 0);
    assert_eq!(report["auto"], "cpu");
}
