//! NVIDIA GPUs through the CUDA driver, which is loaded at run time. The kernels come compiled, see `kernels/README.md`.
//!
//! The trait promises that uploads, launches and downloads happen in the order in which they were asked for. Three
//! streams, one for each, keep that promise wherever it can be seen: what uses a buffer waits for what used it before,
//! so the copies of one batch run beside the kernels of another.

mod driver;
mod trial;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rayon::prelude::*;

use self::driver::{Context, Event, Function, HostMemory, Memory, Stream};
use super::{Device, DeviceError, Limits};
use crate::kernel::{Access, Encoding, Kernel, Variant};

/// What compiled code can be loaded on, by compute capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// This one and all newer ones.
    Since(u32),
    /// This one alone: an architecture whose name ends with "a".
    Only(u32),
}

use Target::{Only, Since};
use driver::Image::{self, Cubin, Ptx};

impl Target {
    fn takes(self, capability: u32) -> bool {
        match self {
            Since(least) => least <= capability,
            Only(one) => one == capability,
        }
    }

    /// The larger, the more of the device it uses.
    fn rank(self) -> (u32, bool) {
        match self {
            Since(least) => (least, false),
            Only(one) => (one, true),
        }
    }

    fn name(self) -> String {
        match self {
            Since(least) => format!("sm_{least}"),
            Only(one) => format!("sm_{one}a"),
        }
    }
}

/// Name, architectures and code of every compiled kernel.
const COMPILED: &[(&str, Target, Image)] = include!("../../kernels/compiled/list.rs");

/// The least compute capability of any kernel, and of the wide `maxsim`.
const LEAST_CAPABILITY: u32 = 75;
const LEAST_WIDE_CAPABILITY: u32 = 80;

/// From so many query tokens on documents go to the wide `maxsim`: the narrow one asks the L2 cache for a document once
/// every 32 query tokens. Where the two are really equal has not been measured.
const WIDE_QUERY_TOKENS: u32 = 64;

/// Driver API version that can load the PTX: 12.4 came with driver 550.
const NEEDED_DRIVER: u32 = 12_040;

/// Uploads travel in pieces of this many bytes, through pinned memory that is used again and again.
const STAGING_BYTES: usize = 8 << 20;

/// Most pieces on their way; then an upload waits.
const MAX_STAGED: usize = 8;

/// Copies into pinned memory are shared among threads in parts of this many bytes.
const COPY_BYTES: usize = 1 << 20;

/// A GPU that the driver offers, usable or not.
#[derive(Debug, Clone)]
pub struct AdapterInfo {
    /// Its place in the driver's list: `cuda:0`, `cuda:1` and so on.
    pub idx: usize,
    /// As the driver calls it.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// CUDA version of the driver.
    pub driver: String,
    /// All of its memory.
    pub memory_bytes: u64,
    /// What it can take.
    pub limits: Limits,
    /// Why it cannot be used, if so.
    pub unsuitable: Option<String>,
}

/// Every NVIDIA GPU, in the driver's order. Empty where there is no driver.
pub fn adapters() -> Vec<AdapterInfo> {
    let num_devices = driver::num_devices().unwrap_or(0);
    (0..num_devices).filter_map(|idx| describe(idx).ok()).collect()
}

fn describe(idx: usize) -> Result<AdapterInfo, DeviceError> {
    let found = driver::describe(idx)?;
    let (major, minor) = found.capability;
    let (has_major, has_minor) = (found.driver_version / 1000, found.driver_version % 1000 / 10);
    let capability = capability_code(found.capability);
    let unsuitable = if capability < LEAST_CAPABILITY {
        Some(format!("its compute capability is {major}.{minor}, 7.5 is needed"))
    } else if found.driver_version < NEEDED_DRIVER {
        Some(format!("its driver is for CUDA {has_major}.{has_minor}, 12.4 (driver 550) or newer is needed"))
    } else {
        None
    };
    Ok(AdapterInfo {
        idx,
        name: found.name,
        capability: found.capability,
        driver: format!("CUDA {has_major}.{has_minor}"),
        memory_bytes: found.memory_bytes,
        limits: Limits {
            max_buffer_bytes: found.memory_bytes,
            max_workgroups: i32::MAX as u64,
            workgroup_bytes: found.shared_bytes,
            max_threads: found.max_threads,
            subgroup_sizes: Some((32, 32)),
            has_f16: true,
            // The kernels choose matrix instructions by themselves.
            cooperative: None,
            truncates: true,
            is_software: false,
            wide_query_tokens: (capability >= LEAST_WIDE_CAPABILITY).then_some(WIDE_QUERY_TOKENS),
        },
        unsuitable,
    })
}

fn capability_code((major, minor): (u32, u32)) -> u32 {
    10 * major + minor
}

/// Threads of a block; `THREADS` in the kernel's source.
pub fn block_threads(variant: Variant) -> u32 {
    match variant.kernel {
        Kernel::Maxsim if variant.is_wide => 256,
        Kernel::Centre | Kernel::Gram | Kernel::Dominance | Kernel::Compact | Kernel::Maxsim => 128,
        Kernel::Selection => 256,
        Kernel::MaxsimSum => 32,
        Kernel::CeilingCopy | Kernel::CeilingFma | Kernel::CeilingMma => crate::kernel::CEILING_THREADS,
    }
}

/// Shared memory that the host gives a block besides what the kernel declares; `SHARED_BYTES` in the kernel's source.
pub fn shared_bytes(variant: Variant) -> u32 {
    if variant.is_wide { 5 * (16 << 10) + 1008 } else { 0 }
}

/// Entry point of a variant: the kernel's name, and the encoding where it reads tokens.
pub fn entry_name(variant: Variant) -> String {
    let kernel = if variant.is_wide { format!("{}_wide", variant.kernel.name()) } else { variant.kernel.name().into() };
    match variant.encoding {
        _ if !variant.reads_tokens() => kernel,
        Encoding::F16 | Encoding::F16Packed => format!("{kernel}_f16"),
        encoding => format!("{kernel}_{}", encoding.name()),
    }
}

/// An NVIDIA GPU.
pub struct CudaDevice {
    shared: Arc<Shared>,
    name: String,
    limits: Limits,
    capability: u32,
    num_multiprocessors: u32,
}

/// What buffers and downloads hold on to as well.
struct Shared {
    // First: its streams end what they run before anything else is freed.
    queue: Mutex<Queue>,
    /// Loaded kernels by entry point; not the device's own, which may go while its streams still run.
    functions: Mutex<HashMap<String, (Target, Arc<Function>)>>,
    /// Pinned memory for downloads that nobody uses.
    readable: Mutex<Vec<HostMemory>>,
    is_lost: AtomicBool,
    // Last: everything above is freed within it.
    context: Context,
}

/// The streams.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lane {
    Upload,
    Launch,
    Download,
}

const LANES: [Lane; 3] = [Lane::Upload, Lane::Launch, Lane::Download];

/// A moment: everything that a lane was given up to this number has run. 0 is before everything.
type Ticket = u64;

struct Queue {
    lanes: [LaneState; 3],
    free_events: Vec<Event>,
    /// Filled pinned memory, and the upload that reads it.
    staged: Vec<(HostMemory, Ticket)>,
    free_staging: Vec<HostMemory>,
    num_staging: usize,
}

struct LaneState {
    stream: Stream,
    /// The last ticket given out.
    last: Ticket,
    /// Up to here all has run.
    done: Ticket,
    /// An event for each later ticket, in order.
    events: std::collections::VecDeque<(Ticket, Event)>,
    /// Up to where this lane waits for the others.
    awaited: [Ticket; 3],
}

/// Memory on the GPU, and who used it last.
pub struct Buffer {
    memory: Memory,
    last_upload: AtomicU64,
    last_write: AtomicU64,
    last_launch: AtomicU64,
    last_download: AtomicU64,
    shared: Arc<Shared>,
}

/// Bytes on their way to the host.
pub struct Download {
    // Taken when the download is dropped or read.
    host: Option<HostMemory>,
    event: Event,
    /// Start and size of each part.
    parts: Vec<(usize, usize)>,
    shared: Arc<Shared>,
}

impl CudaDevice {
    /// The GPU of this place in [`adapters`], or the first usable one.
    ///
    /// # Errors
    /// [`DeviceError::NotFound`], [`DeviceError::Unsuitable`], and what the driver says.
    pub fn open(idx: Option<usize>) -> Result<Self, DeviceError> {
        let num_devices = driver::num_devices()?;
        let chosen = match idx {
            _ if num_devices == 0 => return Err(DeviceError::NotFound("the CUDA driver offers no GPU".into())),
            Some(idx) if idx >= num_devices => {
                return Err(DeviceError::NotFound(format!("cuda:{idx} of {num_devices} GPUs, counted from 0")));
            }
            Some(idx) => idx,
            None => adapters().iter().find(|adapter| adapter.unsuitable.is_none()).map_or(0, |adapter| adapter.idx),
        };
        let info = describe(chosen)?;
        if let Some(why) = info.unsuitable {
            return Err(DeviceError::Unsuitable(format!("{}: {why}", info.name)));
        }
        let context = Context::new(chosen)?;
        let lane = || -> Result<LaneState, DeviceError> {
            let stream = Stream::new(&context)?;
            Ok(LaneState { stream, last: 0, done: 0, events: Default::default(), awaited: [0; 3] })
        };
        let queue = Queue {
            lanes: [lane()?, lane()?, lane()?],
            free_events: Vec::new(),
            staged: Vec::new(),
            free_staging: Vec::new(),
            num_staging: 0,
        };
        let shared = Shared {
            queue: Mutex::new(queue),
            functions: Mutex::default(),
            readable: Mutex::default(),
            is_lost: AtomicBool::new(false),
            context,
        };
        let (major, minor) = info.capability;
        Ok(CudaDevice {
            shared: Arc::new(shared),
            name: format!("cuda ({}, compute capability {major}.{minor}, {})", info.name, info.driver),
            limits: info.limits,
            capability: capability_code(info.capability),
            num_multiprocessors: driver::num_multiprocessors(chosen)?,
        })
    }

    /// Gives the device up as if it had been unplugged; every later call fails. For tests of what happens then.
    #[doc(hidden)]
    pub fn lose(&self) {
        self.shared.is_lost.store(true, Ordering::Release);
    }

    /// Architecture that a kernel was compiled for, of those that this device could load. For tests.
    ///
    /// # Errors
    /// [`DeviceError`].
    #[doc(hidden)]
    pub fn architecture(&self, variant: Variant) -> Result<String, DeviceError> {
        self.shared.enter()?;
        Ok(self.function(variant)?.0.name())
    }

    fn function(&self, variant: Variant) -> Result<(Target, Arc<Function>), DeviceError> {
        let name = entry_name(variant);
        if let Some((target, function)) = lock(&self.shared.functions).get(&name) {
            return Ok((*target, Arc::clone(function)));
        }
        let (target, function) = self.load(variant, &name)?;
        let function = Arc::new(function);
        lock(&self.shared.functions).insert(name, (target, Arc::clone(&function)));
        Ok((target, function))
    }

    /// The newest code that the device takes, machine code before text. What is for it alone has to show first that it
    /// computes what it should: where the driver refuses it, or an answer is wrong, it is the next one.
    fn load(&self, variant: Variant, name: &str) -> Result<(Target, Function), DeviceError> {
        let context = &self.shared.context;
        let mut usable: Vec<_> =
            COMPILED.iter().filter(|&&(of, target, _)| of == name && target.takes(self.capability)).collect();
        usable.sort_by_key(|(_, target, image)| std::cmp::Reverse((target.rank(), matches!(image, Cubin(_)))));
        for &&(_, target, image) in &usable {
            let loaded = Function::load(context, image, name, block_threads(variant), shared_bytes(variant));
            match (target, loaded) {
                (Since(_), loaded) => return Ok((target, loaded?)),
                (Only(_), Ok(function)) => {
                    // A bench checks for itself.
                    if !variant.is_wide || trial::is_right(context, &function, variant.encoding)? {
                        return Ok((target, function));
                    }
                }
                (Only(_), Err(DeviceError::Unsuitable(_) | DeviceError::Refused(_))) => {}
                (Only(_), Err(error)) => return Err(error),
            }
        }
        Err(DeviceError::Refused(format!("{name} is not among the compiled kernels")))
    }
}

impl Shared {
    /// Makes the context the thread's own; every call of the driver needs it.
    fn enter(&self) -> Result<(), DeviceError> {
        if self.is_lost.load(Ordering::Acquire) {
            return Err(DeviceError::Lost("given up".into()));
        }
        self.context.enter()
    }

    /// Pinned memory for a piece of an upload.
    fn staging(&self) -> Result<HostMemory, DeviceError> {
        let mut queue = lock(&self.queue);
        queue.reclaim()?;
        while queue.free_staging.is_empty() && queue.num_staging >= MAX_STAGED {
            queue.lanes[Lane::Upload as usize].wait_for_oldest()?;
            queue.reclaim()?;
            if queue.free_staging.is_empty() && queue.staged.is_empty() {
                // All are being filled by other threads; one more does no harm.
                break;
            }
        }
        if let Some(free) = queue.free_staging.pop() {
            return Ok(free);
        }
        let fresh = HostMemory::new(&self.context, STAGING_BYTES)?;
        queue.num_staging += 1;
        Ok(fresh)
    }
}

impl LaneState {
    /// Notes what has run, and takes back its events.
    fn retire(&mut self, free_events: &mut Vec<Event>) -> Result<(), DeviceError> {
        while let Some((ticket, event)) = self.events.front() {
            if !event.has_happened()? {
                break;
            }
            self.done = *ticket;
            free_events.extend(self.events.pop_front().map(|(_, event)| event));
        }
        Ok(())
    }

    fn wait_for_oldest(&self) -> Result<(), DeviceError> {
        self.events.front().map_or(Ok(()), |(_, event)| event.wait())
    }
}

impl Queue {
    fn reclaim(&mut self) -> Result<(), DeviceError> {
        for lane in &mut self.lanes {
            lane.retire(&mut self.free_events)?;
        }
        let done = self.lanes[Lane::Upload as usize].done;
        for place in (0..self.staged.len()).rev() {
            if self.staged[place].1 <= done {
                self.free_staging.push(self.staged.swap_remove(place).0);
            }
        }
        Ok(())
    }

    fn event(&mut self, context: &Context) -> Result<Event, DeviceError> {
        self.free_events.pop().map_or_else(|| Event::new(context), Ok)
    }

    /// Gives `lane` a command that waits for these moments of the lanes.
    fn enqueue(
        &mut self,
        context: &Context,
        lane: Lane,
        after: [Ticket; 3],
        command: impl FnOnce(&Stream) -> Result<(), DeviceError>,
    ) -> Result<Ticket, DeviceError> {
        self.reclaim()?;
        for other in LANES.into_iter().filter(|&other| other != lane) {
            let ticket = after[other as usize];
            let LaneState { done, events, .. } = &self.lanes[other as usize];
            let awaited = self.lanes[lane as usize].awaited[other as usize];
            if ticket <= (*done).max(awaited) {
                continue;
            }
            // Tickets have no gaps, and what is not done has its event.
            let place = events.partition_point(|&(at, _)| at < ticket);
            if let Some((_, event)) = events.get(place) {
                self.lanes[lane as usize].stream.wait_for(event)?;
            }
            self.lanes[lane as usize].awaited[other as usize] = ticket;
        }
        let event = self.event(context)?;
        let state = &mut self.lanes[lane as usize];
        command(&state.stream)?;
        event.record(&state.stream)?;
        state.last += 1;
        state.events.push_back((state.last, event));
        Ok(state.last)
    }
}

impl Buffer {
    /// What must have happened before this buffer is read or written. All are read and written under the queue's lock.
    fn users(&self, is_written: bool) -> [Ticket; 3] {
        let load = |ticket: &AtomicU64| ticket.load(Ordering::Relaxed);
        let launch = if is_written { load(&self.last_launch) } else { load(&self.last_write) };
        [load(&self.last_upload), launch, if is_written { load(&self.last_download) } else { 0 }]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // What still uses the memory must end first.
        let after = self.users(true);
        let queue = lock(&self.shared.queue);
        let entered = self.shared.context.enter();
        for (lane, ticket) in queue.lanes.iter().zip(after) {
            let event = lane.events.iter().find(|&&(at, _)| at >= ticket);
            if let (Ok(()), true, Some((_, event))) = (&entered, ticket > lane.done, event) {
                // An error here is the device's end, and shows with the next call.
                let _ = event.wait();
            }
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // Unread bytes may still be arriving.
        if let Some(host) = self.host.take() {
            let arrived = self.shared.context.enter().and_then(|()| self.event.wait());
            if arrived.is_ok() {
                lock(&self.shared.readable).push(host);
            }
        }
    }
}

impl Device for CudaDevice {
    type Buffer = Buffer;
    type Download = Download;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn alloc(&self, size_bytes: u64) -> Result<Buffer, DeviceError> {
        self.shared.enter()?;
        let most = self.limits.max_buffer_bytes;
        if size_bytes > most {
            return Err(DeviceError::OutOfMemory(format!(
                "a buffer of {size_bytes} bytes, at most {most} are allowed"
            )));
        }
        Ok(Buffer {
            memory: Memory::new(&self.shared.context, size_bytes)?,
            last_upload: AtomicU64::new(0),
            last_write: AtomicU64::new(0),
            last_launch: AtomicU64::new(0),
            last_download: AtomicU64::new(0),
            shared: Arc::clone(&self.shared),
        })
    }

    fn upload(&self, to: &Buffer, bytes: &[u8]) -> Result<(), DeviceError> {
        self.shared.enter()?;
        to.memory.check(bytes.len())?;
        for (piece_idx, piece) in bytes.chunks(STAGING_BYTES).enumerate() {
            let mut staged = self.shared.staging()?;
            // Not under the lock: a thread that helps here may take up a task that wants it.
            let parts = staged.bytes_mut()[..piece.len()].par_chunks_mut(COPY_BYTES);
            parts.zip(piece.par_chunks(COPY_BYTES)).for_each(|(to, from)| to.copy_from_slice(from));
            // That task may be another device's, which made its context the thread's own.
            self.shared.enter()?;
            let mut queue = lock(&self.shared.queue);
            let ticket = queue.enqueue(&self.shared.context, Lane::Upload, to.users(true), |stream| {
                stream.upload(&to.memory, piece_idx * STAGING_BYTES, &staged, piece.len())
            })?;
            to.last_upload.store(ticket, Ordering::Relaxed);
            queue.staged.push((staged, ticket));
        }
        Ok(())
    }

    fn launch(
        &self,
        variant: Variant,
        arguments: &[&Buffer],
        params: &[u8],
        num_workgroups: u64,
    ) -> Result<(), DeviceError> {
        self.shared.enter()?;
        let kernel = variant.kernel;
        let accesses = kernel.arguments();
        if (arguments.len(), params.len()) != (accesses.len(), kernel.params_bytes()) {
            return Err(DeviceError::Refused(format!(
                "{} takes {} buffers and {} bytes, not {} and {}",
                kernel.name(),
                accesses.len(),
                kernel.params_bytes(),
                arguments.len(),
                params.len()
            )));
        }
        let num_blocks = match u32::try_from(num_workgroups) {
            Ok(num_blocks) if num_workgroups <= self.limits.max_workgroups => num_blocks,
            _ => {
                let most = self.limits.max_workgroups;
                return Err(DeviceError::Refused(format!("{num_workgroups} workgroups, at most {most} fit")));
            }
        };
        let (_, function) = self.function(variant)?;
        let mut queue = lock(&self.shared.queue);
        let mut after = [0; 3];
        for (buffer, &(_, access)) in arguments.iter().zip(accesses) {
            for (after, ticket) in after.iter_mut().zip(buffer.users(access == Access::Write)) {
                *after = ticket.max(*after);
            }
        }
        let memories: Vec<&Memory> = arguments.iter().map(|buffer| &buffer.memory).collect();
        let ticket = queue.enqueue(&self.shared.context, Lane::Launch, after, |stream| {
            stream.launch(&function, &memories, params, num_blocks)
        })?;
        for (buffer, &(_, access)) in arguments.iter().zip(accesses) {
            buffer.last_launch.store(ticket, Ordering::Relaxed);
            if access == Access::Write {
                buffer.last_write.store(ticket, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn resident_workgroups(&self, variant: Variant) -> Result<Option<u32>, DeviceError> {
        self.shared.enter()?;
        let blocks = self.function(variant)?.1.resident_blocks()?;
        Ok(Some(blocks.saturating_mul(self.num_multiprocessors).max(1)))
    }

    fn download(&self, from: &[(&Buffer, u64)]) -> Result<Download, DeviceError> {
        self.shared.enter()?;
        let mut parts = Vec::with_capacity(from.len());
        let mut size = 0;
        for &(buffer, size_bytes) in from {
            let size_bytes = buffer.memory.check(size_bytes as usize)?;
            parts.push((size, size_bytes));
            size += size_bytes.next_multiple_of(16);
        }
        let mut readable = lock(&self.shared.readable);
        let found = readable.iter().position(|host| host.len() >= size).map(|place| readable.swap_remove(place));
        if found.is_none() {
            // Those that are too small now will be too small again.
            readable.clear();
        }
        drop(readable);
        let host = match found {
            Some(host) => host,
            None => HostMemory::new(&self.shared.context, size.next_power_of_two().max(4096))?,
        };
        let mut queue = lock(&self.shared.queue);
        // From here on the memory is only given back once the copies have ended.
        let event = queue.event(&self.shared.context)?;
        let download = Download { host: Some(host), event, parts, shared: Arc::clone(&self.shared) };
        let mut begin = || {
            let Some(host) = &download.host else { return Ok(()) };
            for (&(buffer, _), &(start, size_bytes)) in from.iter().zip(&download.parts) {
                let ticket = queue.enqueue(&self.shared.context, Lane::Download, buffer.users(false), |stream| {
                    stream.download(&buffer.memory, host, start, size_bytes)
                })?;
                buffer.last_download.store(ticket, Ordering::Relaxed);
            }
            if from.is_empty() {
                // Nothing to bring: only everything before it to wait for.
                let everything = LANES.map(|lane| queue.lanes[lane as usize].last);
                queue.enqueue(&self.shared.context, Lane::Download, everything, |_| Ok(()))?;
            }
            Ok(())
        };
        let begun = begin();
        let recorded = download.event.record(&queue.lanes[Lane::Download as usize].stream);
        // The lock first: dropping a download waits.
        drop(queue);
        begun.and(recorded).map(|()| download)
    }

    /// From when the first launch could begin to the end of the last, by the device's clock; what is not a launch counts
    /// as far as launches wait for it.
    fn time(&self, work: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<Duration, DeviceError> {
        self.read(self.download(&[])?, &mut |_| ())?;
        let (begun, ended) = (Event::timed(&self.shared.context)?, Event::timed(&self.shared.context)?);
        let record = |event: &Event| {
            self.shared.enter()?;
            event.record(&lock(&self.shared.queue).lanes[Lane::Launch as usize].stream)
        };
        record(&begun)?;
        work()?;
        record(&ended)?;
        ended.wait()?;
        ended.since(&begun)
    }

    fn is_ready(&self, download: &Download) -> bool {
        // An error here shows when the download is read.
        self.shared.enter().is_err() || download.event.has_happened().unwrap_or(true)
    }

    fn read(&self, mut download: Download, each: &mut dyn FnMut(&[&[u8]])) -> Result<(), DeviceError> {
        self.shared.enter()?;
        download.event.wait()?;
        if let Some(host) = download.host.take() {
            let bytes = host.bytes();
            let parts: Vec<&[u8]> = download.parts.iter().map(|&(start, size)| &bytes[start..start + size]).collect();
            each(&parts);
            lock(&self.shared.readable).push(host);
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole at every moment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
