//! Runs the tests named `on_device` once more in a process whose CUDA driver is `kernels/shim`: the same device code on
//! the host's side, the same kernels, executed by the CPU.

use std::path::Path;
use std::process::Command;

use super::library;

/// Set in the process that has the shim for a driver.
const INSIDE: &str = "MAXHULL_CUDA_SHIM";

pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs this binary's tests whose names contain `filter` under the shim.
fn run(filter: &str, settings: &[(&str, &str)]) {
    if is_inside() {
        return;
    }
    if !cfg!(target_os = "linux") {
        println!("the CUDA shim is for Linux");
        return;
    }
    let Some(compiler) = library::compiler() else {
        println!("no C++ compiler: the CUDA kernels are not executed");
        return;
    };
    let folder = library::folder(&compiler, Path::new(env!("CARGO_MANIFEST_DIR")));
    let mut command = Command::new(std::env::current_exe().unwrap());
    // One at a time, as the shim has it, and each with all the memory.
    command
        .args([filter, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .env("LD_LIBRARY_PATH", folder)
        .envs(settings.iter().copied());
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{settings:?}\n{out}\n{err}");
    assert!(!out.contains(" 0 passed"), "{filter} names no test");
}

#[test]
fn kernels_of_compute_80_run() {
    run("cuda::gram::on_device", &[]);
    run("cuda::maxsim::on_device", &[]);
}

#[test]
fn kernels_of_compute_75_run() {
    run("cuda::gram::on_device", &[("SHIM_CAPABILITY", "75")]);
    run("cuda::maxsim::on_device", &[("SHIM_CAPABILITY", "75")]);
}

#[test]
fn the_wide_kernels_run() {
    for capability in ["75", "80", "90", "100"] {
        run("cuda::wide::on_device", &[("SHIM_CAPABILITY", capability)]);
    }
    // Of which a trial convinces nobody.
    run("cuda::wide::on_device", &[("SHIM_CAPABILITY", "90"), ("SHIM_WGMMA_LIES", "1")]);
}

#[test]
fn benches_run() {
    for capability in ["75", "80", "90"] {
        run("cuda::bench::on_device_ceilings", &[("SHIM_CAPABILITY", capability)]);
    }
    run("cuda::bench::on_device_rows", &[("SHIM_CAPABILITY", "90")]);
}

#[test]
fn engines_run() {
    run("cuda::dominance::on_device", &[]);
    run("cuda::engine::on_device", &[]);
    run("cuda::on_device_selection", &[]);
}

#[test]
fn engines_of_compute_75_run() {
    run("cuda::dominance::on_device", &[("SHIM_CAPABILITY", "75")]);
    run("cuda::engine::on_device_supports", &[("SHIM_CAPABILITY", "75")]);
    run("cuda::on_device_selection::equal", &[("SHIM_CAPABILITY", "75")]);
}

#[test]
fn the_device_keeps_its_promises() {
    run("cuda::order::on_device", &[("SHIM_MEMORY", "268435456")]);
}

#[test]
fn several_devices_are_kept_apart() {
    run("cuda::many::on_device", &[("SHIM_DEVICES", "3")]);
}

#[test]
fn unsuitable_devices_are_refused() {
    for settings in [("SHIM_CAPABILITY", "61"), ("SHIM_DRIVER", "12030")] {
        run("cuda::shim::refused", &[settings, ("MAXHULL_CUDA_REFUSED", "1")]);
    }
}

#[test]
fn refused() {
    use maxhull::device::DeviceError;
    use maxhull::device::cuda::{CudaDevice, adapters};
    if std::env::var_os("MAXHULL_CUDA_REFUSED").is_none() {
        return;
    }
    let opened = CudaDevice::open(None).map(|_| ());
    assert!(matches!(&opened, Err(DeviceError::Unsuitable(why)) if why.contains("needed")), "{opened:?}");
    assert!(adapters()[0].unsuitable.is_some());
}
