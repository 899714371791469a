//! Which device a person asked for.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{CpuEngine, Engine, Notify};
use crate::Error;
use crate::device::DeviceError;

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

#[cfg(feature = "wgpu")]
impl DeviceSpec {
    /// Opens it; `None` is the CPU.
    ///
    /// # Errors
    /// [`DeviceError`] for a device that was asked for by name and does not open.
    pub fn open_wgpu(self) -> Result<Option<crate::device::wgpu::WgpuDevice>, DeviceError> {
        use crate::device::wgpu;
        match self {
            DeviceSpec::Cpu => Ok(None),
            DeviceSpec::Wgpu(idx) => wgpu::WgpuDevice::open(idx).map(Some),
            DeviceSpec::Cuda(_) => Err(DeviceError::Unsuitable("CUDA is not built into this version".into())),
            DeviceSpec::Auto => {
                let mut discrete = wgpu::adapters().into_iter().filter(|adapter| adapter.kind == "discrete");
                Ok(discrete.find_map(|adapter| wgpu::WgpuDevice::open(Some(adapter.idx)).ok()))
            }
        }
    }
}

impl DeviceSpec {
    /// Opens an engine; `notify` hears what goes to the CPU in place of the device that was asked for.
    ///
    /// # Errors
    /// [`Error::Device`] for a device that was asked for by name and does not open.
    pub fn open(self, notify: Notify) -> Result<Arc<dyn Engine>, Error> {
        #[cfg(feature = "wgpu")]
        {
            let opened = self.open_wgpu().map_err(|problem| Error::Device { device: self.to_string(), problem })?;
            if let Some(device) = opened {
                return Ok(Arc::new(super::GpuEngine::new(Arc::new(device)).with_notices(notify)));
            }
        }
        #[cfg(not(feature = "wgpu"))]
        let _ = notify;
        match self {
            DeviceSpec::Auto | DeviceSpec::Cpu => Ok(Arc::new(CpuEngine::new())),
            DeviceSpec::Wgpu(_) | DeviceSpec::Cuda(_) => {
                let problem = DeviceError::Unsuitable("it is not built into this version".into());
                Err(Error::Device { device: self.to_string(), problem })
            }
        }
    }
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
