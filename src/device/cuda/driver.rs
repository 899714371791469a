//! The driver's handles as Rust values: the only file with `unsafe` calls of it. Every value holds the context that it
//! lives in; calls are made in threads that entered it.

use std::ffi::{CString, c_void};
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use crate::device::DeviceError;

/// What the driver said. Not a `From`, which would be public.
trait Told<T> {
    fn told(self) -> Result<T, DeviceError>;
}

impl<T> Told<T> for Result<T, DriverError> {
    fn told(self) -> Result<T, DeviceError> {
        self.map_err(explain)
    }
}

fn explain(error: DriverError) -> DeviceError {
    use sys::cudaError_enum as Code;
    let text = |text: Result<&std::ffi::CStr, DriverError>| {
        text.map_or_else(|_| format!("{}", error.0 as u32), |text| text.to_string_lossy().into_owned())
    };
    let message = format!("{} ({})", text(error.error_string()), text(error.error_name()));
    match error.0 {
        Code::CUDA_ERROR_OUT_OF_MEMORY => DeviceError::OutOfMemory(message),
        Code::CUDA_ERROR_NO_DEVICE | Code::CUDA_ERROR_INVALID_DEVICE => DeviceError::NotFound(message),
        Code::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | Code::CUDA_ERROR_NO_BINARY_FOR_GPU
        | Code::CUDA_ERROR_INVALID_PTX
        | Code::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
        | Code::CUDA_ERROR_SYSTEM_NOT_READY
        | Code::CUDA_ERROR_DEVICE_UNAVAILABLE
        | Code::CUDA_ERROR_NOT_INITIALIZED => DeviceError::Unsuitable(message),
        // After these the context is of no more use.
        Code::CUDA_ERROR_ILLEGAL_ADDRESS
        | Code::CUDA_ERROR_LAUNCH_TIMEOUT
        | Code::CUDA_ERROR_LAUNCH_FAILED
        | Code::CUDA_ERROR_ASSERT
        | Code::CUDA_ERROR_HARDWARE_STACK_ERROR
        | Code::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | Code::CUDA_ERROR_MISALIGNED_ADDRESS
        | Code::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | Code::CUDA_ERROR_INVALID_PC
        | Code::CUDA_ERROR_ECC_UNCORRECTABLE
        | Code::CUDA_ERROR_NVLINK_UNCORRECTABLE
        | Code::CUDA_ERROR_CONTEXT_IS_DESTROYED
        | Code::CUDA_ERROR_DEINITIALIZED
        | Code::CUDA_ERROR_UNKNOWN => DeviceError::Lost(message),
        _ => DeviceError::Refused(message),
    }
}

/// Loads the driver, once. Without the library every other call would panic.
fn load() -> Result<(), DeviceError> {
    static LOADED: OnceLock<Result<(), DeviceError>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| {
        // SAFETY: opens the library and closes it; NVIDIA's has initialisers that any program may run.
        if !unsafe { sys::is_culib_present() } {
            let (linux, windows) = ("libcuda.so", "nvcuda.dll");
            let name = if cfg!(windows) { windows } else { linux };
            return Err(DeviceError::NotFound(format!("no CUDA driver: {name} is not there")));
        }
        result::init().told()
    });
    loaded.clone()
}

/// What the driver says about a GPU.
pub struct Description {
    pub name: String,
    pub capability: (u32, u32),
    pub driver_version: u32,
    pub memory_bytes: u64,
    pub shared_bytes: u32,
    pub max_threads: u32,
}

pub fn num_devices() -> Result<usize, DeviceError> {
    load()?;
    Ok(usize::try_from(result::device::get_count().told()?).unwrap_or(0))
}

fn device(idx: usize) -> Result<sys::CUdevice, DeviceError> {
    load()?;
    let ordinal = i32::try_from(idx).map_err(|_| DeviceError::NotFound(format!("cuda:{idx}")))?;
    result::device::get(ordinal).told()
}

fn attribute(device: sys::CUdevice, attribute: sys::CUdevice_attribute_enum) -> Result<u32, DeviceError> {
    // SAFETY: the device was returned by the driver.
    let value = unsafe { result::device::get_attribute(device, attribute) }.told()?;
    Ok(u32::try_from(value).unwrap_or(0))
}

pub fn num_multiprocessors(idx: usize) -> Result<u32, DeviceError> {
    attribute(device(idx)?, sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
}

pub fn describe(idx: usize) -> Result<Description, DeviceError> {
    use sys::CUdevice_attribute_enum as Attribute;
    let device = device(idx)?;
    let attribute = |name| attribute(device, name);
    let mut driver_version = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut driver_version) }.result().told()?;
    Ok(Description {
        name: result::device::get_name(device).told()?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        driver_version: u32::try_from(driver_version).unwrap_or(0),
        // SAFETY: the device was returned by the driver.
        memory_bytes: unsafe { result::device::total_mem(device) }.told()? as u64,
        shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK)?,
        max_threads: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
    })
}

/// A GPU's primary context, held while anything lives in it.
#[derive(Clone)]
pub struct Context(Arc<Primary>);

struct Primary {
    context: sys::CUcontext,
    device: sys::CUdevice,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Primary {}
// SAFETY: the driver locks where it must.
unsafe impl Sync for Primary {}

impl Drop for Primary {
    fn drop(&mut self) {
        // SAFETY: retained once in `Context::new`. An error has nobody left to tell, here and in the other drops.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

impl Context {
    pub fn new(idx: usize) -> Result<Self, DeviceError> {
        let device = device(idx)?;
        // SAFETY: the device was returned by the driver.
        let context = unsafe { result::primary_ctx::retain(device) }.told()?;
        let context = Context(Arc::new(Primary { context, device }));
        context.enter()?;
        Ok(context)
    }

    /// Makes it the calling thread's.
    pub fn enter(&self) -> Result<(), DeviceError> {
        // SAFETY: retained while `self` lives.
        unsafe { result::ctx::set_current(self.0.context) }.told()
    }
}

macro_rules! handle {
    ($name:ident) => {
        // SAFETY: the driver's handles may be used from any thread.
        unsafe impl Send for $name {}
        // SAFETY: the driver locks where it must.
        unsafe impl Sync for $name {}
    };
}

/// Memory on the GPU.
pub struct Memory {
    address: sys::CUdeviceptr,
    size_bytes: usize,
    context: Context,
}

impl Memory {
    pub fn new(context: &Context, size_bytes: u64) -> Result<Self, DeviceError> {
        let too_large = |_| DeviceError::OutOfMemory(format!("a buffer of {size_bytes} bytes"));
        let size_bytes = usize::try_from(size_bytes).map_err(too_large)?;
        // SAFETY: nobody reads it before it is written.
        let address = unsafe { result::malloc_sync(size_bytes) }.told()?;
        Ok(Memory { address, size_bytes, context: context.clone() })
    }

    /// `size_bytes`, if that many fit.
    pub fn check(&self, size_bytes: usize) -> Result<usize, DeviceError> {
        if size_bytes > self.size_bytes {
            let has = self.size_bytes;
            return Err(DeviceError::Refused(format!("a copy of {size_bytes} bytes, the buffer has {has}")));
        }
        Ok(size_bytes)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: allocated in `new`; the owner has waited for its last use.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Pinned memory of the host, which the GPU copies from and to by itself.
pub struct HostMemory {
    start: NonNull<u8>,
    len: usize,
    context: Context,
}

handle!(HostMemory);

impl HostMemory {
    pub fn new(context: &Context, len: usize) -> Result<Self, DeviceError> {
        // SAFETY: filled below, before anybody reads it.
        let start = unsafe { result::malloc_host(len, 0) }.told()?.cast::<u8>();
        let start = NonNull::new(start).ok_or_else(|| DeviceError::OutOfMemory("pinned memory".into()))?;
        // SAFETY: the driver gave `len` bytes.
        unsafe { start.write_bytes(0, len) };
        Ok(HostMemory { start, len, context: context.clone() })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// No copy to it may be under way.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes, all written; owners look only once copies have ended.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// No copy from it may be under way.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: allocated in `new`. The driver ends copies that are under way first.
            let _ = unsafe { result::free_host(self.start.as_ptr().cast()) };
        }
    }
}

/// How long a thread asks for an event before it sleeps.
const PATIENCE: Duration = Duration::from_micros(100);

/// A moment in a stream.
pub struct Event {
    event: sys::CUevent,
    context: Context,
}

handle!(Event);

impl Event {
    pub fn new(context: &Context) -> Result<Self, DeviceError> {
        Self::with_flags(context, sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32)
    }

    /// One whose time can be asked for, which costs the device a little.
    pub fn timed(context: &Context) -> Result<Self, DeviceError> {
        Self::with_flags(context, 0)
    }

    fn with_flags(context: &Context, flags: u32) -> Result<Self, DeviceError> {
        let flags = flags | sys::CUevent_flags_enum::CU_EVENT_BLOCKING_SYNC as u32;
        let mut event = std::ptr::null_mut();
        // SAFETY: writes one handle.
        unsafe { sys::cuEventCreate(&mut event, flags) }.result().told()?;
        Ok(Event { event, context: context.clone() })
    }

    pub fn record(&self, stream: &Stream) -> Result<(), DeviceError> {
        // SAFETY: both are alive.
        unsafe { result::event::record(self.event, stream.stream) }.told()
    }

    pub fn has_happened(&self) -> Result<bool, DeviceError> {
        // SAFETY: it is alive.
        match unsafe { result::event::query(self.event) } {
            Ok(()) => Ok(true),
            Err(DriverError(sys::cudaError_enum::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(error) => Err(explain(error)),
        }
    }

    /// Time from `start` to this, by the device's clock. Both are timed and have happened.
    pub fn since(&self, start: &Event) -> Result<Duration, DeviceError> {
        // SAFETY: both are alive.
        let milliseconds = unsafe { result::event::elapsed(start.event, self.event) }.told()?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }

    /// Asks for a while, then sleeps: a single query's answer is near, and a batch's leaves the core to the proofs.
    pub fn wait(&self) -> Result<(), DeviceError> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if self.has_happened()? {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        // SAFETY: it is alive.
        unsafe { result::event::synchronize(self.event) }.told()
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: created in `new`; the driver keeps what still waits for it.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}

/// What the driver loads.
#[derive(Debug, Clone, Copy)]
pub enum Image {
    /// Text that it compiles for the device.
    Ptx(&'static str),
    /// Machine code, which drivers older than its compiler refuse.
    Cubin(&'static [u8]),
}

/// A loaded kernel.
pub struct Function {
    module: sys::CUmodule,
    function: sys::CUfunction,
    num_threads: u32,
    shared_bytes: u32,
    context: Context,
}

handle!(Function);

impl Function {
    /// With the threads of its blocks and the shared memory that the host gives each.
    pub fn load(
        context: &Context,
        image: Image,
        name: &str,
        num_threads: u32,
        shared_bytes: u32,
    ) -> Result<Self, DeviceError> {
        let text = |text: &str| CString::new(text).map_err(|_| DeviceError::Refused(format!("{name} holds a NUL")));
        let entry = text(name)?;
        let module = match image {
            Image::Ptx(ptx) => {
                let ptx = text(ptx)?;
                // SAFETY: a text that ends with NUL.
                unsafe { result::module::load_data(ptx.as_ptr().cast()) }
            }
            Image::Cubin(code) => {
                // In words, for the alignment of its headers.
                let mut words = vec![0u64; code.len().div_ceil(8)];
                bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..code.len()].copy_from_slice(code);
                // SAFETY: a whole ELF file, which says itself where it ends.
                unsafe { result::module::load_data(words.as_ptr().cast()) }
            }
        };
        let module = module.told()?;
        let function = std::ptr::null_mut();
        let mut loaded = Function { module, function, num_threads, shared_bytes, context: context.clone() };
        // SAFETY: the module was just loaded.
        loaded.function = unsafe { result::module::get_function(module, entry) }.told()?;
        if shared_bytes > 0 {
            // More than 48 KiB has to be asked for.
            let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = i32::try_from(shared_bytes).unwrap_or(i32::MAX);
            // SAFETY: the function is loaded while `loaded` lives.
            unsafe { result::function::set_function_attribute(loaded.function, most, bytes) }.told()?;
        }
        Ok(loaded)
    }

    /// Blocks that a multiprocessor holds at once.
    pub fn resident_blocks(&self) -> Result<u32, DeviceError> {
        let num_threads = i32::try_from(self.num_threads).unwrap_or(i32::MAX);
        // SAFETY: the function is loaded while `self` lives.
        let blocks = unsafe {
            result::occupancy::max_active_block_per_multiprocessor(
                self.function,
                num_threads,
                self.shared_bytes as usize,
            )
        };
        Ok(u32::try_from(blocks.told()?).unwrap_or(0))
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: loaded in `load`; the device's streams have ended.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}

/// A queue of the GPU.
pub struct Stream {
    stream: sys::CUstream,
    context: Context,
}

handle!(Stream);

impl Stream {
    pub fn new(context: &Context) -> Result<Self, DeviceError> {
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).told()?;
        Ok(Stream { stream, context: context.clone() })
    }

    pub fn wait_for(&self, event: &Event) -> Result<(), DeviceError> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are alive.
        unsafe { result::stream::wait_event(self.stream, event.event, flags) }.told()
    }

    /// Copies the first `len` bytes of `from` to byte `start` of `to`. Both must live, and `from` be left alone, until
    /// the copy has ended.
    pub fn upload(&self, to: &Memory, start: usize, from: &HostMemory, len: usize) -> Result<(), DeviceError> {
        to.check(start + len)?;
        // SAFETY: both ranges lie within their memory, and the caller keeps them.
        unsafe { result::memcpy_htod_async(to.address + start as u64, &from.bytes()[..len], self.stream) }.told()
    }

    /// Copies the first `len` bytes of `from` to byte `start` of `to`. Both must live, and `to` be left alone, until the
    /// copy has ended.
    pub fn download(&self, from: &Memory, to: &HostMemory, start: usize, len: usize) -> Result<(), DeviceError> {
        if len == 0 {
            return Ok(());
        }
        if start + len > to.len {
            return Err(DeviceError::Refused(format!("{len} bytes at {start} of {}", to.len)));
        }
        // SAFETY: both ranges lie within their memory, and the caller keeps them. No reference to the target is made.
        let status = unsafe {
            let target = to.start.as_ptr().add(start).cast::<c_void>();
            sys::cuMemcpyDtoHAsync_v2(target, from.address, from.check(len)?, self.stream)
        };
        status.result().told()
    }

    /// Runs a kernel with these buffers and its parameter block. They must live until it has ended.
    pub fn launch(
        &self,
        function: &Function,
        buffers: &[&Memory],
        params: &[u8],
        num_blocks: u32,
    ) -> Result<(), DeviceError> {
        let mut addresses: Vec<sys::CUdeviceptr> = buffers.iter().map(|memory| memory.address).collect();
        // In words, for their alignment.
        let mut block = vec![0u64; params.len().div_ceil(8)];
        bytemuck::cast_slice_mut::<u64, u8>(&mut block)[..params.len()].copy_from_slice(params);
        let addresses = addresses.iter_mut().map(|address| std::ptr::from_mut(address).cast::<c_void>());
        let mut arguments: Vec<*mut c_void> = addresses.chain([block.as_mut_ptr().cast()]).collect();
        let (grid, threads, shared_bytes) = ((num_blocks, 1, 1), (function.num_threads, 1, 1), function.shared_bytes);
        // SAFETY: the arguments are those of the kernel's declaration, in number, order and size, as the caller checked
        // and the tests compare; the driver copies them before it returns. The kernel stays within its buffers, which
        // the caller keeps.
        let launched = unsafe {
            result::launch_kernel(function.function, grid, threads, shared_bytes, self.stream, &mut arguments)
        };
        launched.told()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: created in `new`; what it runs is waited for, so that nothing outlives what it uses.
            let _ = unsafe { result::stream::synchronize(self.stream) };
            // SAFETY: as above.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
    }
}
