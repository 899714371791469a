//! Without a driver, and with one that is too old, everything is a value.

use maxhull::device::DeviceError;
use maxhull::device::cuda::{CudaDevice, adapters};

#[test]
fn opening_never_panics() {
    let adapters = adapters();
    for adapter in &adapters {
        println!(
            "cuda:{} {} {:?} {} {}",
            adapter.idx, adapter.name, adapter.capability, adapter.driver, adapter.memory_bytes
        );
    }
    if let Err(error) = CudaDevice::open(None) {
        println!("{error}");
        assert!(matches!(error, DeviceError::NotFound(_) | DeviceError::Unsuitable(_)), "{error:?}");
    }
    let beyond = CudaDevice::open(Some(adapters.len()));
    assert!(matches!(beyond, Err(DeviceError::NotFound(_))));
}
