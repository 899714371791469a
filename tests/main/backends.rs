//! Which backends this run tests. Absent hardware is announced, never skipped in silence: `REQUIRE_BACKENDS=cpu,wgpu`
//! turns absence into failure.

use maxhull::engine::{CpuEngine, Engine};

/// Whatever opens here, under the name that reports give it: the first word is the backend's.
fn names() -> Vec<String> {
    let engines = CpuEngine::all().iter().map(|engine| engine.name()).collect::<Vec<_>>();
    engines.into_iter().chain(wgpu_devices()).chain(cuda_devices()).collect()
}

#[cfg(feature = "cuda")]
fn cuda_devices() -> Vec<String> {
    use maxhull::device::Device;
    use maxhull::device::cuda::{CudaDevice, adapters};
    let mut names = Vec::new();
    for adapter in adapters() {
        match CudaDevice::open(Some(adapter.idx)) {
            Ok(device) => names.push(device.name()),
            Err(error) => println!("cuda:{} does not open: {error}", adapter.idx),
        }
    }
    names
}

#[cfg(not(feature = "cuda"))]
fn cuda_devices() -> Vec<String> {
    println!("built without the feature cuda");
    Vec::new()
}

#[cfg(feature = "wgpu")]
fn wgpu_devices() -> Vec<String> {
    use maxhull::device::Device;
    use maxhull::device::wgpu::{WgpuDevice, adapters};
    let mut names = Vec::new();
    for adapter in adapters() {
        match WgpuDevice::open(Some(adapter.idx)) {
            Ok(device) => names.push(device.name()),
            Err(error) => println!("wgpu:{} does not open: {error}", adapter.idx),
        }
    }
    names
}

#[cfg(not(feature = "wgpu"))]
fn wgpu_devices() -> Vec<String> {
    println!("built without the feature wgpu");
    Vec::new()
}

#[test]
fn required_backends_are_present() {
    let names = names();
    println!("backends found: {}", names.join(", "));
    let required = std::env::var("REQUIRE_BACKENDS").unwrap_or_default();
    for backend in required.split(',').map(str::trim).filter(|backend| !backend.is_empty()) {
        assert!(
            names.iter().any(|name| name.split(' ').next() == Some(backend)),
            "REQUIRE_BACKENDS asks for {backend}; found {}",
            names.join(", ")
        );
    }
}
