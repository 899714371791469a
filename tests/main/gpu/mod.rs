//! The kernels on whatever adapter there is, each with and without run-time checks.

mod compact;
mod engine;
mod gram;
mod maxsim;
mod selection;
mod shaders;

use std::sync::LazyLock;

use maxhull::device::wgpu::WgpuDevice;

/// The device of the tests that are the same for others.
type TestDevice = WgpuDevice;

/// The first usable adapter twice: trusted, as engines open it, and with every check. Empty where there is none, which
/// is announced, and a failure if `REQUIRE_BACKENDS` asks for wgpu.
fn devices() -> &'static [WgpuDevice] {
    static DEVICES: LazyLock<Vec<WgpuDevice>> = LazyLock::new(|| match WgpuDevice::open_with(None, true) {
        Ok(checked) => vec![WgpuDevice::open(None).expect("a device that opened once"), checked],
        Err(error) => {
            eprintln!("no kernels were run: {error}");
            let required = std::env::var("REQUIRE_BACKENDS").unwrap_or_default();
            let is_required = required.split(',').any(|backend| backend.trim() == "wgpu");
            assert!(!is_required, "REQUIRE_BACKENDS asks for wgpu: {error}");
            Vec::new()
        }
    });
    &DEVICES
}
