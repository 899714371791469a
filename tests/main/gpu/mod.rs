//! Kernels on a device, without the engine around them.

mod selection;

use std::sync::OnceLock;

use maxhull::device::wgpu::WgpuDevice;

/// The first usable device twice: as it is used, and with every bounds check in the kernels. None if there is no device;
/// that is announced, and a failure where `REQUIRE_BACKENDS` names `wgpu`.
fn devices() -> &'static [WgpuDevice] {
    static DEVICES: OnceLock<Vec<WgpuDevice>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let opened: Result<Vec<_>, _> =
            [false, true].into_iter().map(|checked| WgpuDevice::open_with(None, checked)).collect();
        opened.unwrap_or_else(|error| {
            let required = std::env::var("REQUIRE_BACKENDS").unwrap_or_default();
            assert!(!required.split(',').any(|name| name.trim() == "wgpu"), "REQUIRE_BACKENDS asks for wgpu: {error}");
            eprintln!("no wgpu device, kernels are not tested: {error}");
            Vec::new()
        })
    })
}
