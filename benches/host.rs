//! What the host does in a run on a GPU, at the speed of a GPU that needs no time: a device's answers are recorded once
//! and played back. One thread, and all of them.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::{Corpus, EPSILON, check_pruned, pool, pruner};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use maxhull::device::wgpu::WgpuDevice;
use maxhull::device::{Device, DeviceError, Limits};
use maxhull::engine::{Engine, GpuEngine};
use maxhull::kernel::Variant;
use maxhull::{Pruned, Target};
use rayon::prelude::*;

/// Copies of the example corpus: enough for several batches, few enough for a software device to record.
const NUM_COPIES: usize = 4;

/// What the downloads of a run brought, in the order in which they were asked for.
type Tape = Arc<Mutex<Vec<Vec<Vec<u8>>>>>;

/// Records a device.
struct Recorder {
    device: WgpuDevice,
    tape: Tape,
}

impl Device for Recorder {
    type Buffer = <WgpuDevice as Device>::Buffer;
    type Download = (usize, <WgpuDevice as Device>::Download);

    fn name(&self) -> String {
        self.device.name()
    }

    fn limits(&self) -> &Limits {
        self.device.limits()
    }

    fn alloc(&self, size_bytes: u64) -> Result<Self::Buffer, DeviceError> {
        self.device.alloc(size_bytes)
    }

    fn upload(&self, to: &Self::Buffer, bytes: &[u8]) -> Result<(), DeviceError> {
        self.device.upload(to, bytes)
    }

    fn launch(
        &self,
        variant: Variant,
        arguments: &[&Self::Buffer],
        params: &[u8],
        num_workgroups: u64,
    ) -> Result<(), DeviceError> {
        self.device.launch(variant, arguments, params, num_workgroups)
    }

    fn download(&self, from: &[(&Self::Buffer, u64)]) -> Result<Self::Download, DeviceError> {
        let download = self.device.download(from)?;
        let mut tape = self.tape.lock().expect("nobody panics");
        tape.push(Vec::new());
        Ok((tape.len() - 1, download))
    }

    fn is_ready(&self, download: &Self::Download) -> bool {
        self.device.is_ready(&download.1)
    }

    fn read(&self, (at, download): Self::Download, each: &mut dyn FnMut(&[&[u8]])) -> Result<(), DeviceError> {
        self.device.read(download, &mut |parts| {
            self.tape.lock().expect("nobody panics")[at] = parts.iter().map(|part| part.to_vec()).collect();
            each(parts);
        })
    }
}

/// Plays a tape from its start, again and again.
struct Player {
    limits: Limits,
    tape: Vec<Vec<Vec<u8>>>,
    at: AtomicUsize,
    /// Where uploads go: a copy, as into pinned memory.
    staging: Mutex<Vec<u8>>,
}

impl Device for Player {
    type Buffer = ();
    type Download = usize;

    fn name(&self) -> String {
        "recorded".into()
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn alloc(&self, _: u64) -> Result<(), DeviceError> {
        Ok(())
    }

    fn upload(&self, (): &(), bytes: &[u8]) -> Result<(), DeviceError> {
        const COPY_BYTES: usize = 1 << 20;
        let mut staging = self.staging.lock().expect("nobody panics");
        let len = staging.len().max(bytes.len());
        staging.resize(len, 0);
        let parts = staging[..bytes.len()].par_chunks_mut(COPY_BYTES).zip(bytes.par_chunks(COPY_BYTES));
        parts.for_each(|(to, from)| to.copy_from_slice(from));
        Ok(())
    }

    fn launch(&self, _: Variant, _: &[&()], _: &[u8], _: u64) -> Result<(), DeviceError> {
        Ok(())
    }

    fn download(&self, _: &[(&(), u64)]) -> Result<usize, DeviceError> {
        Ok(self.at.fetch_add(1, Ordering::Relaxed) % self.tape.len())
    }

    fn is_ready(&self, _: &usize) -> bool {
        true
    }

    fn read(&self, at: usize, each: &mut dyn FnMut(&[&[u8]])) -> Result<(), DeviceError> {
        let parts: Vec<&[u8]> = self.tape[at].iter().map(Vec::as_slice).collect();
        each(&parts);
        Ok(())
    }
}

fn host(criterion: &mut Criterion) {
    let device = match WgpuDevice::open(None) {
        Ok(device) => device,
        Err(error) => return println!("host: nothing to record, {error}"),
    };
    let corpus = Corpus::example().repeated(NUM_COPIES);
    let batch = corpus.batch();
    let tape = Tape::default();
    let mut limits = device.limits().clone();
    let recorder: Arc<dyn Engine> = Arc::new(GpuEngine::new(Arc::new(Recorder { device, tape: Arc::clone(&tape) })));
    let target = Target::Epsilon(EPSILON);
    let expected = pruner(&recorder, target).prune(&batch, None).expect("a valid corpus");
    check_pruned(&batch, &expected, EPSILON).expect("the certificate holds");
    let tape = std::mem::take(&mut *tape.lock().expect("nobody panics"));
    let num_bytes: usize = tape.iter().flatten().map(Vec::len).sum();
    println!(
        "host: {} tokens, {:.1} bytes downloaded a token",
        batch.num_tokens(),
        num_bytes as f64 / batch.num_tokens() as f64
    );
    limits.is_software = true;
    let player = Player { limits, tape, at: AtomicUsize::new(0), staging: Mutex::default() };
    let engine: Arc<dyn Engine> = Arc::new(GpuEngine::new(Arc::new(player)));
    let mut group = criterion.benchmark_group("host");
    group.sample_size(20).throughput(Throughput::Elements(batch.num_tokens() as u64));
    for num_threads in [1, std::thread::available_parallelism().map_or(1, usize::from)] {
        let (pool, pruner) = (pool(num_threads), pruner(&engine, target));
        let found = pool.install(|| pruner.prune(&batch, None)).expect("a valid corpus");
        let records = |pruned: &Pruned| pruned.docs.iter().flat_map(|doc| doc.record().to_vec()).collect::<Vec<u8>>();
        assert!(records(&found) == records(&expected), "played back as recorded");
        group.bench_function(format!("epsilon_0.2/threads_{num_threads}"), |bencher| {
            bencher.iter(|| pool.install(|| pruner.prune(&batch, None)));
        });
    }
    group.finish();
}

criterion_group!(benches, host);
criterion_main!(benches);
