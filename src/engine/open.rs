//! Which device a person asked for.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{CpuEngine, Engine, Notify};
use crate::device::DeviceError;
use crate::{Error, Scorer};

/// Where to compute: `auto`, `cpu`, `wgpu`, `wgpu:1`, `cuda`, `cuda:1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceSpec {
    /// A discrete GPU if one opens, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An adapter of wgpu by its place in the list, or the best one.
    Wgpu(Option<usize>),
    /// A CUDA device by its number, or the first one.
    Cuda(Option<usize>),
}

impl FromStr for DeviceSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let unknown = || Error::InvalidOption {
            name: "device",
            value: text.to_owned(),
            expected: "auto, cpu, wgpu, wgpu:N, cuda or cuda:N",
        };
        let (api, idx) = match text.split_once(':') {
            None => (text, None),
            Some((api, idx)) => (api, Some(idx.parse().map_err(|_| unknown())?)),
        };
        match (api, idx) {
            ("auto", None) => Ok(DeviceSpec::Auto),
            ("cpu", None) => Ok(DeviceSpec::Cpu),
            ("wgpu", idx) => Ok(DeviceSpec::Wgpu(idx)),
            ("cuda", idx) => Ok(DeviceSpec::Cuda(idx)),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (api, idx) = match self {
            DeviceSpec::Auto => ("auto", None),
            DeviceSpec::Cpu => ("cpu", None),
            DeviceSpec::Wgpu(idx) => ("wgpu", *idx),
            DeviceSpec::Cuda(idx) => ("cuda", *idx),
        };
        f.write_str(api)?;
        idx.map_or(Ok(()), |idx| write!(f, ":{idx}"))
    }
}

/// A device that is open, whoever made it.
#[derive(Clone)]
pub enum OpenDevice {
    /// Vulkan, Metal or DirectX 12.
    #[cfg(feature = "wgpu")]
    Wgpu(Arc<crate::device::wgpu::WgpuDevice>),
    /// CUDA.
    #[cfg(feature = "cuda")]
    Cuda(Arc<crate::device::cuda::CudaDevice>),
}

impl OpenDevice {
    /// An engine on it; `notify` hears what goes to the CPU in its place.
    pub fn engine(&self, notify: Notify) -> Arc<dyn Engine> {
        match self {
            #[cfg(feature = "wgpu")]
            OpenDevice::Wgpu(device) => Arc::new(super::GpuEngine::new(Arc::clone(device)).with_notices(notify)),
            #[cfg(feature = "cuda")]
            OpenDevice::Cuda(device) => Arc::new(super::GpuEngine::new(Arc::clone(device)).with_notices(notify)),
            #[cfg(not(any(feature = "wgpu", feature = "cuda")))]
            _ => {
                // There are no such devices.
                drop(notify);
                Arc::new(CpuEngine::new())
            }
        }
    }

    /// The same scorer, on it.
    pub fn scorer(&self, scorer: Scorer) -> Scorer {
        match self {
            #[cfg(feature = "wgpu")]
            OpenDevice::Wgpu(device) => scorer.on(Arc::clone(device)),
            #[cfg(feature = "cuda")]
            OpenDevice::Cuda(device) => scorer.on(Arc::clone(device)),
            #[cfg(not(any(feature = "wgpu", feature = "cuda")))]
            _ => scorer,
        }
    }
}

impl DeviceSpec {
    /// The discrete GPUs that look usable, in the order in which `Auto` tries them.
    pub fn discrete() -> Vec<DeviceSpec> {
        #[allow(unused_mut, reason = "without devices there is nothing to add")]
        let mut specs = Vec::new();
        #[cfg(feature = "cuda")]
        {
            let usable = crate::device::cuda::adapters().into_iter().filter(|adapter| adapter.unsuitable.is_none());
            specs.extend(usable.map(|adapter| DeviceSpec::Cuda(Some(adapter.idx))));
        }
        #[cfg(feature = "wgpu")]
        {
            let discrete = crate::device::wgpu::adapters().into_iter().filter(|adapter| adapter.kind == "discrete");
            specs.extend(discrete.map(|adapter| DeviceSpec::Wgpu(Some(adapter.idx))));
        }
        specs
    }

    /// Opens the device; `None` is the CPU. `Auto` takes CUDA before wgpu, and only discrete GPUs.
    ///
    /// # Errors
    /// [`Error::Device`] for a device that was asked for by name and does not open.
    pub fn open_device(self) -> Result<Option<OpenDevice>, Error> {
        let opened = match self {
            DeviceSpec::Cpu => Ok(None),
            DeviceSpec::Auto => Ok(Self::discrete().into_iter().find_map(|spec| spec.open_device().ok()?)),
            DeviceSpec::Wgpu(idx) => open_wgpu(idx).map(Some),
            DeviceSpec::Cuda(idx) => open_cuda(idx).map(Some),
        };
        opened.map_err(|problem| Error::Device { device: self.to_string(), problem })
    }

    /// Opens an engine; `notify` hears what goes to the CPU in place of the device that was asked for.
    ///
    /// # Errors
    /// As [`DeviceSpec::open_device`].
    pub fn open(self, notify: Notify) -> Result<Arc<dyn Engine>, Error> {
        let device = self.open_device()?;
        Ok(device.map_or_else(|| Arc::new(CpuEngine::new()) as _, |device| device.engine(notify)))
    }
}

#[cfg(feature = "wgpu")]
fn open_wgpu(idx: Option<usize>) -> Result<OpenDevice, DeviceError> {
    Ok(OpenDevice::Wgpu(Arc::new(crate::device::wgpu::WgpuDevice::open(idx)?)))
}

#[cfg(not(feature = "wgpu"))]
fn open_wgpu(_: Option<usize>) -> Result<OpenDevice, DeviceError> {
    Err(DeviceError::Unsuitable("wgpu is not built into this version".into()))
}

#[cfg(feature = "cuda")]
fn open_cuda(idx: Option<usize>) -> Result<OpenDevice, DeviceError> {
    Ok(OpenDevice::Cuda(Arc::new(crate::device::cuda::CudaDevice::open(idx)?)))
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: Option<usize>) -> Result<OpenDevice, DeviceError> {
    Err(DeviceError::Unsuitable("CUDA is not built into this version".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_reads_what_it_writes() {
        let specs = [
            (DeviceSpec::Auto, "auto"),
            (DeviceSpec::Cpu, "cpu"),
            (DeviceSpec::Wgpu(None), "wgpu"),
            (DeviceSpec::Wgpu(Some(12)), "wgpu:12"),
            (DeviceSpec::Cuda(Some(0)), "cuda:0"),
        ];
        for (spec, text) in specs {
            assert_eq!(text.parse(), Ok(spec));
            assert_eq!(spec.to_string(), text);
        }
    }

    #[test]
    fn other_words_are_refused() {
        for text in ["", "gpu", "cpu:0", "auto:1", "wgpu:", "wgpu:-1", "wgpu:x", "WGPU"] {
            assert!(matches!(text.parse::<DeviceSpec>(), Err(Error::InvalidOption { name: "device", .. })), "{text}");
        }
    }
}
