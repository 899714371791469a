//! Which devices a person asked for.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{CpuEngine, Engine, ManyEngines, Notice, Notify};
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

/// Where to compute, on one device or several: as [`DeviceSpec`], or GPUs such as `cuda:0,cuda:1`, or `cuda:all`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum DeviceSpecs {
    /// Every CUDA GPU of the kind of the first that opens, else as [`DeviceSpec::Auto`].
    #[default]
    Auto,
    /// Every CUDA GPU that looks usable.
    AllCuda,
    /// These; several are GPUs, each named once.
    List(Vec<DeviceSpec>),
}

impl FromStr for DeviceSpecs {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let unknown = || Error::InvalidOption {
            name: "device",
            value: text.to_owned(),
            expected: "auto, cpu, wgpu, wgpu:N, cuda, cuda:N, cuda:all, or several GPUs such as cuda:0,cuda:1, each once",
        };
        match text {
            "auto" => return Ok(DeviceSpecs::Auto),
            "cuda:all" => return Ok(DeviceSpecs::AllCuda),
            _ => {}
        }
        let specs: Result<Vec<DeviceSpec>, Error> = text.split(',').map(|spec| spec.trim().parse()).collect();
        let specs = specs.map_err(|_| unknown())?;
        if specs.len() > 1 {
            // Without a number it may be the same device as one with.
            let is_gpu = |spec: &DeviceSpec| matches!(spec, DeviceSpec::Wgpu(Some(_)) | DeviceSpec::Cuda(Some(_)));
            let is_repeated = (1..specs.len()).any(|place| specs[..place].contains(&specs[place]));
            if is_repeated || !specs.iter().all(is_gpu) {
                return Err(unknown());
            }
        }
        Ok(DeviceSpecs::List(specs))
    }
}

impl fmt::Display for DeviceSpecs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceSpecs::Auto => f.write_str("auto"),
            DeviceSpecs::AllCuda => f.write_str("cuda:all"),
            DeviceSpecs::List(specs) => {
                let specs: Vec<String> = specs.iter().map(DeviceSpec::to_string).collect();
                f.write_str(&specs.join(","))
            }
        }
    }
}

impl DeviceSpecs {
    /// Opens every device, with what to type for each; empty is the CPU.
    ///
    /// # Errors
    /// [`Error::Device`] for the first device that was asked for by name and does not open.
    pub fn open_devices(&self) -> Result<Vec<(DeviceSpec, OpenDevice)>, Error> {
        let open = |spec: DeviceSpec| Ok(spec.open_device()?.map(|device| (spec, device)));
        match self {
            DeviceSpecs::Auto => Ok(auto()),
            DeviceSpecs::AllCuda => match all_cuda() {
                // The error says why there is none.
                none if none.is_empty() => Ok(open(DeviceSpec::Cuda(None))?.into_iter().collect()),
                specs => specs.into_iter().filter_map(|spec| open(spec).transpose()).collect(),
            },
            DeviceSpecs::List(specs) => specs.iter().filter_map(|&spec| open(spec).transpose()).collect(),
        }
    }

    /// Opens an engine, with several devices one that shares batches among them; `notify` hears what goes to the CPU in
    /// their place.
    ///
    /// # Errors
    /// As [`DeviceSpecs::open_devices`].
    pub fn open(&self, notify: Notify) -> Result<Arc<dyn Engine>, Error> {
        let devices = self.open_devices()?;
        Ok(match &devices[..] {
            [] => Arc::new(CpuEngine::new()),
            [(_, device)] => device.engine(notify),
            devices => {
                let engine = |(spec, device): &(DeviceSpec, OpenDevice)| {
                    device.engine(Notice::on_device(spec.to_string(), Arc::clone(&notify)))
                };
                Arc::new(ManyEngines::new(devices.iter().map(engine).collect()))
            }
        })
    }
}

/// The first discrete GPU that opens, and of CUDA all that are like it: equal ones answer alike, whichever takes what.
fn auto() -> Vec<(DeviceSpec, OpenDevice)> {
    let mut opened: Vec<(DeviceSpec, OpenDevice)> = Vec::new();
    for spec in DeviceSpec::discrete() {
        let is_first = opened.is_empty();
        let is_like_first = opened.first().is_some_and(|&(first, _)| are_alike(first, spec));
        if (is_first || is_like_first)
            && let Ok(Some(device)) = spec.open_device()
        {
            opened.push((spec, device));
        }
    }
    opened
}

#[cfg(feature = "cuda")]
fn are_alike(a: DeviceSpec, b: DeviceSpec) -> bool {
    let (DeviceSpec::Cuda(Some(a)), DeviceSpec::Cuda(Some(b))) = (a, b) else { return false };
    let adapters = crate::device::cuda::adapters();
    let kind = |idx| {
        let adapter = adapters.iter().find(|adapter| adapter.idx == idx);
        adapter.map(|adapter| (&adapter.name, adapter.capability))
    };
    kind(a) == kind(b)
}

#[cfg(not(feature = "cuda"))]
fn are_alike(_: DeviceSpec, _: DeviceSpec) -> bool {
    false
}

fn all_cuda() -> Vec<DeviceSpec> {
    DeviceSpec::discrete().into_iter().filter(|spec| matches!(spec, DeviceSpec::Cuda(_))).collect()
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
    fn a_list_reads_what_it_writes() {
        let list = |specs: &[DeviceSpec]| DeviceSpecs::List(specs.to_vec());
        let specs = [
            (DeviceSpecs::Auto, "auto"),
            (DeviceSpecs::AllCuda, "cuda:all"),
            (list(&[DeviceSpec::Cpu]), "cpu"),
            (list(&[DeviceSpec::Cuda(None)]), "cuda"),
            (list(&[DeviceSpec::Cuda(Some(1)), DeviceSpec::Wgpu(Some(0))]), "cuda:1,wgpu:0"),
        ];
        for (specs, text) in specs {
            assert_eq!(text.parse().as_ref(), Ok(&specs));
            assert_eq!(specs.to_string(), text);
        }
        assert_eq!("cuda:0, cuda:1".parse(), Ok(list(&[DeviceSpec::Cuda(Some(0)), DeviceSpec::Cuda(Some(1))])));
        for text in
            ["", "cuda:0,", "cuda:0,cuda:0", "cuda,cuda:0", "cpu,cuda:0", "auto,cuda:0", "cuda:all,wgpu:0", "all"]
        {
            let parsed = text.parse::<DeviceSpecs>();
            assert!(matches!(parsed, Err(Error::InvalidOption { name: "device", .. })), "{text}: {parsed:?}");
        }
    }

    #[test]
    fn other_words_are_refused() {
        for text in ["", "gpu", "cpu:0", "auto:1", "wgpu:", "wgpu:-1", "wgpu:x", "WGPU"] {
            assert!(matches!(text.parse::<DeviceSpec>(), Err(Error::InvalidOption { name: "device", .. })), "{text}");
        }
    }
}
