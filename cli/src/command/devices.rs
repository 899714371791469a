//! `maxhull devices`: what can compute here, and what to type for it.

use maxhull::DType;
use maxhull::device::{self, cuda, wgpu};
use maxhull::engine::{CpuEngine, DeviceSpec, Engine};
use maxhull::kernel::Encoding;
use serde::Serialize;

use crate::args::DevicesArgs;
use crate::error::Result;
use crate::report::{self, Report, bytes, count};

/// What to do where no adapter shows up.
const NO_ADAPTER: &str = "no GPU: no Vulkan, Metal, DirectX 12 or CUDA driver offers one. Install the vendor's driver, \
    and on Linux the Vulkan loader (Debian and Ubuntu: libvulkan1); in a container, pass the GPU and its driver through";

/// Lists the devices; none but the CPU is no failure.
pub fn run(args: &DevicesArgs) -> Result<()> {
    report::print(&DevicesReport::new(), args.json)
}

#[derive(Debug, Serialize)]
struct DevicesReport {
    cpu: Cpu,
    adapters: Vec<Adapter>,
    /// What `--device auto` takes.
    auto: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct Cpu {
    device: &'static str,
    name: String,
    engine: String,
    num_threads: usize,
}

#[derive(Debug, Serialize)]
struct Adapter {
    device: String,
    name: String,
    api: String,
    driver: String,
    kind: String,
    limits: Limits,
    features: Features,
    /// How kernels read each type of tokens.
    tokens: Vec<TokenKernel>,
    is_usable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// What a device is called, and by whom.
struct Names {
    name: String,
    api: String,
    driver: String,
    kind: String,
}

#[derive(Debug, Serialize)]
struct Limits {
    max_buffer_bytes: u64,
    workgroup_bytes: u32,
    max_threads: u32,
    max_workgroups: u64,
}

#[derive(Debug, Serialize)]
struct Features {
    f16: bool,
    subgroup_sizes: Option<(u32, u32)>,
    /// Side of those that hold f16 and are summed in f32.
    cooperative_matrices: Option<u32>,
}

#[derive(Debug, Serialize)]
struct TokenKernel {
    dtype: String,
    variant: &'static str,
}

impl DevicesReport {
    fn new() -> Self {
        let of_wgpu = wgpu::adapters().into_iter().map(Adapter::of_wgpu);
        let of_cuda = cuda::adapters().into_iter().map(Adapter::of_cuda);
        let adapters: Vec<Adapter> = of_wgpu.chain(of_cuda).collect();
        let opens = |spec: &String| adapters.iter().any(|adapter| adapter.device == *spec && adapter.is_usable);
        let auto = DeviceSpec::discrete().iter().map(DeviceSpec::to_string).find(opens);
        DevicesReport {
            cpu: Cpu::new(),
            auto: auto.unwrap_or_else(|| "cpu".to_owned()),
            hint: adapters.is_empty().then_some(NO_ADAPTER),
            adapters,
        }
    }
}

impl Cpu {
    fn new() -> Self {
        let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
        Cpu { device: "cpu", name: cpu_name(), engine: CpuEngine::new().name(), num_threads }
    }
}

/// As the system calls it, or its architecture.
pub(super) fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).to_owned()
}

impl Adapter {
    fn of_wgpu(info: wgpu::AdapterInfo) -> Self {
        let spec = DeviceSpec::Wgpu(Some(info.idx));
        let names = Names { name: info.name, api: info.api, driver: info.driver, kind: info.kind };
        Self::new(spec, names, &info.limits, info.unsuitable)
    }

    fn of_cuda(info: cuda::AdapterInfo) -> Self {
        let spec = DeviceSpec::Cuda(Some(info.idx));
        let (major, minor) = info.capability;
        let name = format!("{}, compute capability {major}.{minor}, {}", info.name, bytes(info.memory_bytes));
        let driver = info.driver.trim_start_matches("CUDA ").to_owned();
        let names = Names { name, api: "CUDA".into(), driver, kind: "discrete".into() };
        Self::new(spec, names, &info.limits, info.unsuitable)
    }

    fn new(spec: DeviceSpec, names: Names, limits: &device::Limits, unsuitable: Option<String>) -> Self {
        // Limits can be enough and the driver refuse all the same: only opening it tells.
        let problem = unsuitable.or_else(|| spec.open_device().err().map(|error| error.to_string()));
        let variant =
            |dtype| TokenKernel { dtype: dtype_name(dtype), variant: Encoding::of(dtype, limits.has_f16).name() };
        Adapter {
            device: spec.to_string(),
            limits: Limits {
                max_buffer_bytes: limits.max_buffer_bytes,
                workgroup_bytes: limits.workgroup_bytes,
                max_threads: limits.max_threads,
                max_workgroups: limits.max_workgroups,
            },
            features: Features {
                f16: limits.has_f16,
                subgroup_sizes: limits.subgroup_sizes,
                cooperative_matrices: limits.cooperative,
            },
            tokens: [DType::F32, DType::F16, DType::Bf16, DType::I8].map(variant).into(),
            is_usable: problem.is_none(),
            problem,
            name: names.name,
            api: names.api,
            driver: names.driver,
            kind: names.kind,
        }
    }

    fn text(&self) -> String {
        let Limits { max_buffer_bytes, workgroup_bytes, max_threads, .. } = self.limits;
        let f16 = if self.features.f16 { "f16" } else { "no f16 (unpacked from u32)" };
        let subgroups = match self.features.subgroup_sizes {
            Some((least, most)) if least == most => format!("subgroups of {most}"),
            Some((least, most)) => format!("subgroups of {least} to {most}"),
            None => "no subgroups".to_owned(),
        };
        let cooperative = match self.features.cooperative_matrices {
            Some(side) => format!("cooperative matrices of {side} x {side} (not used unless asked for)"),
            None => "no cooperative matrices".to_owned(),
        };
        let tokens: Vec<&str> = self.tokens.iter().map(|token| token.variant).collect();
        let selection = if self.features.subgroup_sizes.is_some() { "with" } else { "without" };
        let usable = match &self.problem {
            Some(problem) => format!("not usable: {problem}"),
            None => format!("tokens as {}; selection {selection} subgroups", tokens.join(", ")),
        };
        format!(
            "{device:<8} {name}\n\
             \x20        driver    {api}, {driver}\n\
             \x20        kind      {kind}\n\
             \x20        limits    buffers of {buffer}, {shared} bytes and {threads} threads a workgroup\n\
             \x20        features  {f16}, {subgroups}, {cooperative}\n\
             \x20        kernels   {usable}\n",
            device = self.device,
            name = self.name,
            api = self.api,
            driver = self.driver,
            kind = self.kind,
            buffer = bytes(max_buffer_bytes),
            shared = count(workgroup_bytes.into()),
            threads = count(max_threads.into()),
        )
    }
}

fn dtype_name(dtype: DType) -> String {
    dtype.to_string()
}

impl Report for DevicesReport {
    fn text(&self) -> String {
        let Cpu { device, name, engine, num_threads } = &self.cpu;
        let mut text = format!(
            "{device:<8} {name}\n\
             \x20        engine    {engine}, {num_threads} threads\n"
        );
        self.adapters.iter().for_each(|adapter| text += &adapter.text());
        if let Some(hint) = self.hint {
            text += &format!("{hint}\n");
        }
        let why = if self.auto == "cpu" { "no discrete GPU that can be used" } else { "the first discrete GPU" };
        text += &format!("auto     takes {}: {why}\n", self.auto);
        // Equal GPUs of CUDA have the same name.
        let first = self.adapters.iter().find(|adapter| adapter.device == self.auto && adapter.api == "CUDA");
        let is_like = |adapter: &&Adapter| adapter.is_usable && first.is_some_and(|first| first.name == adapter.name);
        let num_alike = self.adapters.iter().filter(is_like).count();
        if num_alike > 1 {
            text += &format!("         for `prune` it takes all {num_alike} of that kind\n");
        }
        text
    }
}
