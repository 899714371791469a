//! Vulkan, Metal and DirectX 12 through wgpu.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use wgpu::{BufferUsages, Features, MapMode, PollType};

use super::{Device, DeviceError, Limits};
use crate::kernel::{Access, Kernel, Variant};

/// Uploads travel in pieces of this many bytes, through staging buffers that are used again and again.
const STAGING_BYTES: u64 = 16 << 20;

/// Threads that every kernel needs in a workgroup.
const NEEDED_THREADS: u32 = 128;

/// Buffers that the largest kernel is given.
const NEEDED_BUFFERS: u32 = 8;

/// An adapter that the system offers, usable or not.
#[derive(Debug, Clone)]
pub struct AdapterInfo {
    /// Its place in the list: `wgpu:0`, `wgpu:1` and so on.
    pub idx: usize,
    /// As the driver calls it.
    pub name: String,
    /// Vulkan, Metal or Dx12.
    pub api: String,
    /// Driver and its version.
    pub driver: String,
    /// Discrete, integrated, virtual, or a CPU that plays a GPU.
    pub kind: String,
    /// What it can take.
    pub limits: Limits,
    /// Why it cannot be used, if so.
    pub unsuitable: Option<String>,
}

/// Every adapter, best kind first: discrete, integrated, virtual, software. Empty where there is no driver or loader.
pub fn adapters() -> Vec<AdapterInfo> {
    enumerate().iter().enumerate().map(|(idx, adapter)| describe(idx, adapter)).collect()
}

fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12,
        // Validation layers are a developer's choice, made outside.
        flags: wgpu::InstanceFlags::empty().with_env(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    })
}

fn enumerate() -> Vec<wgpu::Adapter> {
    let mut adapters = pollster::block_on(instance().enumerate_adapters(wgpu::Backends::all()));
    adapters.sort_by_key(|adapter| match adapter.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    });
    adapters
}

fn describe(idx: usize, adapter: &wgpu::Adapter) -> AdapterInfo {
    let info = adapter.get_info();
    AdapterInfo {
        idx,
        name: info.name.clone(),
        api: info.backend.to_string(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        kind: match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete",
            wgpu::DeviceType::IntegratedGpu => "integrated",
            wgpu::DeviceType::VirtualGpu => "virtual",
            wgpu::DeviceType::Cpu => "software",
            wgpu::DeviceType::Other => "other",
        }
        .to_owned(),
        limits: limits(adapter),
        unsuitable: unsuitable(adapter),
    }
}

fn limits(adapter: &wgpu::Adapter) -> Limits {
    let (limits, features, info) = (adapter.limits(), adapter.features(), adapter.get_info());
    let side = u64::from(limits.max_compute_workgroups_per_dimension);
    Limits {
        // Some drivers allow all but one byte of a power of two; buffers are whole multiples of 16.
        max_buffer_bytes: limits.max_buffer_size.min(limits.max_storage_buffer_binding_size) & !15,
        max_workgroups: side * side,
        workgroup_bytes: limits.max_compute_workgroup_storage_size,
        max_threads: limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x),
        subgroup_sizes: features
            .contains(Features::SUBGROUP)
            .then_some((info.subgroup_min_size, info.subgroup_max_size)),
        has_f16: features.contains(Features::SHADER_F16),
        cooperative: cooperative(adapter),
        truncates: false,
        is_software: info.device_type == wgpu::DeviceType::Cpu,
        wide_query_tokens: None,
    }
}

/// The larger side that `gram_cooperative` can be built for: square, f16 summed in f32.
fn cooperative(adapter: &wgpu::Adapter) -> Option<u32> {
    let needed = Features::EXPERIMENTAL_COOPERATIVE_MATRIX | Features::SHADER_F16 | Features::SUBGROUP;
    if !adapter.features().contains(needed) {
        return None;
    }
    let types = (wgpu::CooperativeScalarType::F16, wgpu::CooperativeScalarType::F32);
    let offered = adapter.cooperative_matrix_properties();
    [16, 8].into_iter().find(|&side| {
        offered.iter().any(|offer| {
            (offer.ab_type, offer.cr_type) == types && [offer.m_size, offer.n_size, offer.k_size] == [side; 3]
        })
    })
}

fn unsuitable(adapter: &wgpu::Adapter) -> Option<String> {
    let limits = adapter.limits();
    let compute = wgpu::DownlevelFlags::COMPUTE_SHADERS;
    if !adapter.get_downlevel_capabilities().flags.contains(compute) {
        return Some("it has no compute shaders".into());
    }
    let needs = [
        ("storage buffers of a kernel", limits.max_storage_buffers_per_shader_stage, NEEDED_BUFFERS),
        ("threads of a workgroup", limits.max_compute_invocations_per_workgroup, NEEDED_THREADS),
        ("bytes of workgroup memory", limits.max_compute_workgroup_storage_size, 16 << 10),
    ];
    let lacking = needs.iter().find(|&&(_, has, needed)| has < needed);
    lacking.map(|(what, has, needed)| format!("it has {has} {what}, {needed} are needed"))
}

/// A GPU, or a CPU that plays one.
pub struct WgpuDevice {
    device: wgpu::Device,
    queue: wgpu::Queue,
    name: String,
    limits: Limits,
    checked: bool,
    side: u64,
    pipelines: Mutex<HashMap<Variant, Arc<wgpu::ComputePipeline>>>,
    recording: Mutex<Recording>,
    /// Staging buffers for downloads that nobody uses.
    readable: Mutex<Vec<wgpu::Buffer>>,
    problem: Arc<Mutex<Option<DeviceError>>>,
}

/// Commands that have not been submitted, and the staging buffers that they read.
#[derive(Default)]
struct Recording {
    encoder: Option<wgpu::CommandEncoder>,
    filled: Vec<wgpu::Buffer>,
    /// Mapped and ready to be filled; submissions give theirs back when they have run.
    writable: Arc<Mutex<Vec<wgpu::Buffer>>>,
}

impl WgpuDevice {
    /// The adapter of this place in [`adapters`], or the first usable one.
    ///
    /// # Errors
    /// [`DeviceError::NotFound`], [`DeviceError::Unsuitable`], and what the driver says.
    pub fn open(idx: Option<usize>) -> Result<Self, DeviceError> {
        Self::open_with(idx, false)
    }

    /// As [`WgpuDevice::open`]; `checked` keeps every bounds check in the kernels, to find out what they hide.
    ///
    /// # Errors
    /// As [`WgpuDevice::open`].
    pub fn open_with(idx: Option<usize>, checked: bool) -> Result<Self, DeviceError> {
        Self::open_as(idx, checked, false)
    }

    /// As [`WgpuDevice::open_with`], with cooperative matrices where the adapter has them: experimental in wgpu, and
    /// never run by the tests. What a device opened otherwise reports in [`Limits::cooperative`] is none.
    ///
    /// # Errors
    /// As [`WgpuDevice::open`].
    pub fn open_cooperative(idx: Option<usize>, checked: bool) -> Result<Self, DeviceError> {
        Self::open_as(idx, checked, true)
    }

    fn open_as(idx: Option<usize>, checked: bool, cooperative: bool) -> Result<Self, DeviceError> {
        let mut adapters = enumerate();
        if adapters.is_empty() {
            return Err(DeviceError::NotFound(
                "no Vulkan, Metal or DirectX 12 driver offers an adapter; install the vendor's driver (and on Linux \
                 the Vulkan loader, libvulkan1)"
                    .into(),
            ));
        }
        let num_adapters = adapters.len();
        let place = match idx {
            Some(idx) if idx >= num_adapters => {
                return Err(DeviceError::NotFound(format!("wgpu:{idx} of {num_adapters} adapters, counted from 0")));
            }
            Some(idx) => idx,
            None => adapters.iter().position(|adapter| unsuitable(adapter).is_none()).unwrap_or(0),
        };
        let adapter = adapters.swap_remove(place);
        if let Some(why) = unsuitable(&adapter) {
            return Err(DeviceError::Unsuitable(format!("{}: {why}", adapter.get_info().name)));
        }
        Self::from_adapter(&adapter, checked, cooperative)
    }

    fn from_adapter(adapter: &wgpu::Adapter, checked: bool, cooperative: bool) -> Result<Self, DeviceError> {
        let info = adapter.get_info();
        let mut wanted = Features::SHADER_F16 | Features::SUBGROUP | Features::TIMESTAMP_QUERY;
        let mut experimental = wgpu::ExperimentalFeatures::disabled();
        let mut limits = limits(adapter);
        if !cooperative {
            limits.cooperative = None;
        }
        if limits.cooperative.is_some() {
            wanted |= Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
            // SAFETY: the only experimental feature in use is cooperative matrices, in shaders that stay within the
            // sizes that the adapter offers.
            experimental = unsafe { wgpu::ExperimentalFeatures::enabled() };
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("maxhull"),
            required_features: adapter.features() & wanted,
            required_limits: adapter.limits(),
            experimental_features: experimental,
            memory_hints: wgpu::MemoryHints::Performance,
            trace: wgpu::Trace::Off,
        };
        let opened = pollster::block_on(adapter.request_device(&descriptor));
        let (device, queue) = opened.map_err(|error| DeviceError::Unsuitable(error.to_string()))?;
        let problem = Arc::new(Mutex::new(None));
        let errors = Arc::clone(&problem);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| note(&errors, classify(&error))));
        let losses = Arc::clone(&problem);
        device.set_device_lost_callback(move |reason, message| {
            // A loss explains every error after it.
            let lost = DeviceError::Lost(format!("{reason:?}: {message}"));
            *lock(&losses) = Some(lost);
        });
        Ok(WgpuDevice {
            name: format!("wgpu ({}, {}, {} {})", info.name, info.backend, info.driver, info.driver_info),
            limits,
            checked,
            side: u64::from(adapter.limits().max_compute_workgroups_per_dimension),
            device,
            queue,
            pipelines: Mutex::default(),
            recording: Mutex::default(),
            readable: Mutex::default(),
            problem,
        })
    }

    /// Gives the device up as if it had been unplugged; every later call fails. For tests of what happens then.
    #[doc(hidden)]
    pub fn lose(&self) {
        self.device.destroy();
        note(&self.problem, DeviceError::Lost("given up".into()));
    }

    /// Reports what went wrong since it was last asked. A loss stays.
    fn check(&self) -> Result<(), DeviceError> {
        let mut problem = lock(&self.problem);
        match &*problem {
            None => Ok(()),
            Some(lost @ DeviceError::Lost(_)) => Err(lost.clone()),
            Some(_) => Err(problem.take().unwrap_or(DeviceError::Lost(String::new()))),
        }
    }

    fn pipeline(&self, variant: Variant) -> Result<Arc<wgpu::ComputePipeline>, DeviceError> {
        if let Some(pipeline) = lock(&self.pipelines).get(&variant) {
            return Ok(Arc::clone(pipeline));
        }
        let pipeline = Arc::new(self.compile(variant)?);
        self.check()?;
        lock(&self.pipelines).insert(variant, Arc::clone(&pipeline));
        Ok(pipeline)
    }

    fn compile(&self, variant: Variant) -> Result<wgpu::ComputePipeline, DeviceError> {
        let name = variant.kernel.name();
        let source = variant.wgsl().ok_or_else(|| DeviceError::Refused(format!("{name} has no such shader")))?;
        let source = wgpu::ShaderSource::Wgsl(source.into());
        let descriptor = wgpu::ShaderModuleDescriptor { label: Some(name), source };
        let module = if self.checked {
            self.device.create_shader_module(descriptor)
        } else {
            // SAFETY: the kernels index within the sizes that the plan gave their buffers, their loops end, and they
            // divide by nothing that can be 0; the tests run them with every check as well.
            unsafe { self.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
        };
        let layout = self.layout(variant.kernel);
        Ok(self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(name),
            layout: Some(&self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(name),
                bind_group_layouts: &[Some(&layout)],
                immediate_size: 0,
            })),
            module: &module,
            entry_point: Some(name),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[],
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        }))
    }

    fn layout(&self, kernel: Kernel) -> wgpu::BindGroupLayout {
        let storage = |read_only| wgpu::BufferBindingType::Storage { read_only };
        let types = kernel.arguments().iter().map(|&(_, access)| storage(access == Access::Read));
        let types = types.chain([wgpu::BufferBindingType::Uniform]);
        let entries: Vec<wgpu::BindGroupLayoutEntry> = (0..)
            .zip(types)
            .map(|(binding, ty)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
                count: None,
            })
            .collect();
        let descriptor = wgpu::BindGroupLayoutDescriptor { label: Some(kernel.name()), entries: &entries };
        self.device.create_bind_group_layout(&descriptor)
    }

    fn create_buffer(
        &self,
        size: u64,
        usage: BufferUsages,
        mapped_at_creation: bool,
    ) -> Result<wgpu::Buffer, DeviceError> {
        // Scopes are the thread's own: a lack of memory is nobody else's, who would leave an invalid buffer in commands
        // that all threads share.
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer =
            self.device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation });
        match pollster::block_on(scope.pop()) {
            Some(error) => Err(classify(&error)),
            None => self.check().map(|()| buffer),
        }
    }

    /// A filled staging buffer, unmapped.
    fn stage(&self, recording: &Recording, bytes: &[u8]) -> Result<wgpu::Buffer, DeviceError> {
        let writable = |buffer: &wgpu::Buffer| buffer.size() >= bytes.len() as u64;
        let mut free = lock(&recording.writable);
        let found = free.iter().position(writable).map(|place| free.swap_remove(place));
        drop(free);
        let buffer = match found {
            Some(buffer) => buffer,
            None => self.create_buffer(STAGING_BYTES, BufferUsages::MAP_WRITE | BufferUsages::COPY_SRC, true)?,
        };
        match buffer.slice(..bytes.len() as u64).get_mapped_range_mut() {
            Ok(mut view) => view.copy_from_slice(bytes),
            Err(error) => return Err(DeviceError::Refused(error.to_string())),
        }
        buffer.unmap();
        Ok(buffer)
    }

    fn encoder<'a>(&self, recording: &'a mut Recording) -> &'a mut wgpu::CommandEncoder {
        recording.encoder.get_or_insert_with(|| self.device.create_command_encoder(&Default::default()))
    }

    /// Notes the device's clock before or after the commands recorded here.
    fn mark(&self, queries: &wgpu::QuerySet, is_end: bool) {
        let mut recording = lock(&self.recording);
        let timestamp_writes = wgpu::ComputePassTimestampWrites {
            query_set: queries,
            beginning_of_pass_write_index: (!is_end).then_some(0),
            end_of_pass_write_index: is_end.then_some(1),
        };
        let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes: Some(timestamp_writes) };
        drop(self.encoder(&mut recording).begin_compute_pass(&descriptor));
    }

    /// As [`Device::time`], by the device's clock.
    fn time_by_device(
        &self,
        work: &mut dyn FnMut() -> Result<(), DeviceError>,
        fence: &wgpu::Buffer,
    ) -> Result<Duration, DeviceError> {
        let descriptor = wgpu::QuerySetDescriptor { label: None, ty: wgpu::QueryType::Timestamp, count: 2 };
        let queries = self.device.create_query_set(&descriptor);
        let resolved = self.create_buffer(16, BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC, false)?;
        self.mark(&queries, false);
        work()?;
        self.mark(&queries, true);
        let mut recording = lock(&self.recording);
        let encoder = self.encoder(&mut recording);
        encoder.resolve_query_set(&queries, 0..2, &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, fence, 0, 16);
        drop(recording);
        let mut ticks = 0;
        self.read(self.download(&[(fence, 16)])?, &mut |parts| {
            let (begin, end): (u64, u64) = bytemuck::pod_read_unaligned::<[u64; 2]>(parts[0]).into();
            ticks = end.saturating_sub(begin);
        })?;
        let nanoseconds = ticks as f64 * f64::from(self.queue.get_timestamp_period());
        Ok(Duration::from_nanos(nanoseconds as u64))
    }

    /// Sends what was recorded on its way; none where nothing was.
    fn submit(&self, recording: &mut Recording) -> Option<wgpu::SubmissionIndex> {
        let submission = self.queue.submit([recording.encoder.take()?.finish()]);
        for buffer in recording.filled.drain(..) {
            let writable = Arc::clone(&recording.writable);
            let mapped = buffer.clone();
            buffer.map_async(MapMode::Write, .., move |result| {
                if result.is_ok() {
                    lock(&writable).push(mapped);
                }
            });
        }
        Some(submission)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole at every moment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the first problem: later ones follow from it.
fn note(problem: &Mutex<Option<DeviceError>>, error: DeviceError) {
    lock(problem).get_or_insert(error);
}

fn classify(error: &wgpu::Error) -> DeviceError {
    match error {
        wgpu::Error::OutOfMemory { source } => DeviceError::OutOfMemory(source.to_string()),
        wgpu::Error::Validation { description, .. } => DeviceError::Refused(description.clone()),
        wgpu::Error::Internal { description, .. } => DeviceError::Refused(description.clone()),
    }
}

/// Bytes on their way to the host.
pub struct Download {
    buffer: wgpu::Buffer,
    /// Start and size of each part.
    parts: Vec<(u64, u64)>,
    submission: Option<wgpu::SubmissionIndex>,
    is_mapped: Arc<AtomicBool>,
    has_failed: Arc<AtomicBool>,
}

impl Device for WgpuDevice {
    type Buffer = wgpu::Buffer;
    type Download = Download;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn alloc(&self, size_bytes: u64) -> Result<wgpu::Buffer, DeviceError> {
        self.check()?;
        if size_bytes > self.limits.max_buffer_bytes {
            let most = self.limits.max_buffer_bytes;
            return Err(DeviceError::OutOfMemory(format!(
                "a buffer of {size_bytes} bytes, at most {most} are allowed"
            )));
        }
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        self.create_buffer(size_bytes, usage, false)
    }

    fn upload(&self, to: &wgpu::Buffer, bytes: &[u8]) -> Result<(), DeviceError> {
        let mut recording = lock(&self.recording);
        for (piece_idx, piece) in (0..).zip(bytes.chunks(STAGING_BYTES as usize)) {
            let staged = self.stage(&recording, piece)?;
            let (offset, size) = (piece_idx * STAGING_BYTES, piece.len() as u64);
            self.encoder(&mut recording).copy_buffer_to_buffer(&staged, 0, to, offset, size);
            recording.filled.push(staged);
        }
        self.check()
    }

    fn launch(
        &self,
        variant: Variant,
        arguments: &[&wgpu::Buffer],
        params: &[u8],
        num_workgroups: u64,
    ) -> Result<(), DeviceError> {
        let pipeline = self.pipeline(variant)?;
        let uniform = self.create_buffer(params.len() as u64, BufferUsages::UNIFORM, true)?;
        match uniform.slice(..).get_mapped_range_mut() {
            Ok(mut view) => view.copy_from_slice(params),
            Err(error) => return Err(DeviceError::Refused(error.to_string())),
        }
        uniform.unmap();
        let buffers = arguments.iter().copied().chain([&uniform]);
        let entries: Vec<wgpu::BindGroupEntry<'_>> = (0..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let bind_group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(variant.kernel.name()),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        self.check()?;
        // A linear grid folded into two dimensions; the last row may be partly idle.
        let width = num_workgroups.min(self.side);
        let height = num_workgroups.div_ceil(width.max(1));
        if height > self.side {
            return Err(DeviceError::Refused(format!(
                "{num_workgroups} workgroups, at most {} fit",
                self.side * self.side
            )));
        }
        let mut recording = lock(&self.recording);
        let mut pass = self.encoder(&mut recording).begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &bind_group, &[]);
        pass.dispatch_workgroups(width as u32, height as u32, 1);
        drop(pass);
        drop(recording);
        self.check()
    }

    fn download(&self, from: &[(&wgpu::Buffer, u64)]) -> Result<Download, DeviceError> {
        let mut parts = Vec::with_capacity(from.len());
        let mut size = 0;
        for &(_, size_bytes) in from {
            parts.push((size, size_bytes));
            size += size_bytes.next_multiple_of(wgpu::MAP_ALIGNMENT);
        }
        let size = size.max(wgpu::MAP_ALIGNMENT);
        let mut free = lock(&self.readable);
        let found = free.iter().position(|buffer| buffer.size() >= size).map(|place| free.swap_remove(place));
        if found.is_none() {
            // Those that are too small now will be too small again.
            free.clear();
        }
        drop(free);
        let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
        let buffer = match found {
            Some(buffer) => buffer,
            None => self.create_buffer(size.next_power_of_two(), usage, false)?,
        };
        let mut recording = lock(&self.recording);
        for (&(source, size_bytes), &(start, _)) in from.iter().zip(&parts) {
            self.encoder(&mut recording).copy_buffer_to_buffer(source, 0, &buffer, start, size_bytes);
        }
        let submission = self.submit(&mut recording);
        drop(recording);
        let download = Download { buffer, parts, submission, is_mapped: Arc::default(), has_failed: Arc::default() };
        let (is_mapped, has_failed) = (Arc::clone(&download.is_mapped), Arc::clone(&download.has_failed));
        download.buffer.map_async(MapMode::Read, ..size, move |result| match result {
            Ok(()) => is_mapped.store(true, Ordering::Release),
            Err(_) => has_failed.store(true, Ordering::Release),
        });
        self.check().map(|()| download)
    }

    fn is_ready(&self, download: &Download) -> bool {
        // An error here shows when the download is read.
        let _ = self.device.poll(PollType::Poll);
        download.is_mapped.load(Ordering::Acquire) || download.has_failed.load(Ordering::Acquire)
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<Duration, DeviceError> {
        let fence = self.alloc(16)?;
        let wait = || self.read(self.download(&[(&fence, 16)])?, &mut |_| ());
        wait()?;
        if self.device.features().contains(Features::TIMESTAMP_QUERY) {
            let time = self.time_by_device(work, &fence)?;
            if !time.is_zero() {
                return Ok(time);
            }
        }
        // Nothing is submitted before the download, so that recording it costs no time here.
        work()?;
        let started = Instant::now();
        wait()?;
        Ok(started.elapsed())
    }

    fn read(&self, download: Download, each: &mut dyn FnMut(&[&[u8]])) -> Result<(), DeviceError> {
        while !download.is_mapped.load(Ordering::Acquire) {
            self.check()?;
            if download.has_failed.load(Ordering::Acquire) {
                return Err(DeviceError::Lost("a download did not arrive".into()));
            }
            // Not for what was submitted since: the device is to have work while the host looks at this.
            let submission_index = download.submission.clone();
            let polled = self.device.poll(PollType::Wait { submission_index, timeout: None });
            if let Err(error) = polled {
                self.check()?;
                return Err(DeviceError::Lost(error.to_string()));
            }
        }
        self.check()?;
        let view = |&(start, size): &(u64, u64)| download.buffer.slice(start..start + size).get_mapped_range();
        let views: Result<Vec<_>, _> = download.parts.iter().filter(|(_, size)| *size > 0).map(view).collect();
        let views = views.map_err(|error| DeviceError::Refused(error.to_string()))?;
        let mut filled = views.iter();
        let parts: Vec<&[u8]> = download
            .parts
            .iter()
            .map(|&(_, size)| if size == 0 { &[][..] } else { filled.next().map_or(&[][..], |view| &view[..]) })
            .collect();
        each(&parts);
        drop(parts);
        drop(views);
        download.buffer.unmap();
        lock(&self.readable).push(download.buffer);
        Ok(())
    }
}
