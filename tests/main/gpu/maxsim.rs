//! MaxSim on a device: the same bits as the CPU where sums are exact, close to it elsewhere, and nothing missing when the
//! device refuses, runs short of memory or is lost.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use maxhull::device::wgpu::{Download, WgpuDevice};
use maxhull::device::{Device, DeviceError, Limits};
use maxhull::engine::Notice;
use maxhull::kernel::Variant;
use maxhull::{DType, Scorer, Scoring};

use crate::common::{Random, encoder_like};
use crate::score::definition::{DTYPES, Ragged};

/// The best device of this machine, opened once plain and once with every check in its kernels. Absence is announced,
/// and a failure where `REQUIRE_BACKENDS` names wgpu.
fn devices() -> Vec<Arc<WgpuDevice>> {
    static DEVICES: LazyLock<Vec<Arc<WgpuDevice>>> = LazyLock::new(|| {
        let opened: Result<Vec<_>, _> =
            [false, true].map(|checked| WgpuDevice::open_with(None, checked).map(Arc::new)).into_iter().collect();
        opened.unwrap_or_else(|error| {
            println!("no device for this test: {error}");
            Vec::new()
        })
    });
    let required = std::env::var("REQUIRE_BACKENDS").unwrap_or_default();
    assert!(!DEVICES.is_empty() || !required.contains("wgpu"), "REQUIRE_BACKENDS asks for wgpu");
    DEVICES.clone()
}

const SCORINGS: [Scoring; 2] = [Scoring::Plain, Scoring::Clamped];

fn lattice(seed: u64, dtype: DType, lens: &[usize], dim: usize) -> Ragged {
    Ragged::new(dtype, &Random(seed).lattice(dtype, lens.iter().sum::<usize>() * dim), lens, dim)
}

fn unit(seed: u64, dtype: DType, lens: &[usize], dim: usize) -> Ragged {
    Ragged::new(dtype, &encoder_like(&mut Random(seed), lens.iter().sum(), dim), lens, dim)
}

/// Scales that are powers of 2, so that nothing rounds.
fn scales(seed: u64, ragged: &Ragged) -> Option<Vec<f32>> {
    let mut random = Random(seed);
    Some((0..ragged.offsets[ragged.offsets.len() - 1]).map(|_| [0.25, 0.5, 1.0, 2.0][random.below(4)]).collect())
}

/// On the CPU, with a score for empty documents.
fn cpu(scoring: Scoring) -> Scorer {
    Scorer::new(scoring).with_empty_doc_score(-7.0)
}

/// Demands the CPU's bits from every method on every device.
fn same_as_cpu(what: &str, queries: &Ragged, docs: &Ragged) {
    let (num_queries, num_docs) = (queries.batch().num_docs(), docs.batch().num_docs());
    let mut random = Random(7);
    let pairs: Vec<(u32, u32)> =
        (0..2 * num_docs).map(|_| (random.below(num_queries) as u32, random.below(num_docs) as u32)).collect();
    for device in devices() {
        for scoring in SCORINGS {
            let (cpu, gpu) = (cpu(scoring), cpu(scoring).on(Arc::clone(&device)));
            let expected = cpu.scores(queries.tokens(), docs.tokens()).unwrap();
            assert_eq!(gpu.scores(queries.tokens(), docs.tokens()).unwrap(), expected, "{what} {scoring}");
            let expected = cpu.pair_matches(queries.tokens(), docs.tokens(), &pairs).unwrap();
            let found = gpu.pair_matches(queries.tokens(), docs.tokens(), &pairs).unwrap();
            for ((found, expected), pair) in found.iter().zip(&expected).zip(&pairs) {
                assert_eq!(found, expected, "{what} {scoring} {pair:?}");
            }
            let found = gpu.pair_scores(queries.tokens(), docs.tokens(), &pairs).unwrap();
            assert_eq!(found, expected.iter().map(|pair| pair.score).collect::<Vec<_>>(), "{what} {scoring}");
        }
    }
}

#[test]
fn lattice_scores_are_the_cpus_at_every_length() {
    let queries = [0, 1, 31, 32, 33];
    let docs = [0, 1, 31, 32, 33, 63, 64, 65, 0, 127, 128, 129, 2];
    for dtype in DTYPES {
        same_as_cpu(&format!("{dtype}"), &lattice(1, dtype, &queries, 48), &lattice(2, dtype, &docs, 48));
    }
}

#[test]
fn long_queries_and_long_documents_are_the_cpus() {
    let (queries, docs) = ([64, 1, 65, 200], [3, 1023, 1024, 1025, 1, 2049]);
    same_as_cpu("long", &lattice(3, DType::F16, &queries, 16), &lattice(4, DType::F16, &docs, 16));
}

#[test]
fn every_dim_is_the_cpus() {
    for dim in [1, 7, 48, 96, 128, 384] {
        for dtype in DTYPES {
            let (queries, docs) = (lattice(5, dtype, &[5, 32], dim), lattice(6, dtype, &[7, 40, 1], dim));
            same_as_cpu(&format!("{dtype} {dim}"), &queries, &docs);
        }
    }
}

#[test]
fn mixed_types_meet_in_f32() {
    for query_type in DTYPES {
        for doc_type in DTYPES {
            let (queries, docs) = (lattice(8, query_type, &[3, 9], 20), lattice(9, doc_type, &[7, 33], 20));
            same_as_cpu(&format!("{query_type} {doc_type}"), &queries, &docs);
        }
    }
}

#[test]
fn scales_count_before_the_maximum() {
    for query_type in [DType::I8, DType::F32] {
        let (mut queries, mut docs) =
            (lattice(10, query_type, &[3, 33], 24), lattice(11, DType::I8, &[7, 1100, 2], 24));
        docs.scales = scales(12, &docs);
        same_as_cpu("scaled documents", &queries, &docs);
        if query_type == DType::I8 {
            queries.scales = scales(13, &queries);
            same_as_cpu("scaled queries and documents", &queries, &docs);
            docs.scales = None;
            same_as_cpu("scaled queries", &queries, &docs);
        }
    }
}

#[test]
fn one_long_document_among_tiny_ones() {
    let mut lens = vec![2; 60];
    lens[17] = 20_000;
    same_as_cpu("20,000", &lattice(14, DType::F16, &[4, 2], 8), &lattice(15, DType::F16, &lens, 8));
}

#[test]
fn negative_maxima_stay_negative() {
    for dtype in DTYPES {
        let positive = |seed, lens: &[usize], sign: f32| {
            let values: Vec<f32> = Random(seed)
                .lattice(dtype, lens.iter().sum::<usize>() * 12)
                .iter()
                .map(|value| sign * (value.abs() + 1.0))
                .collect();
            Ragged::new(dtype, &values, lens, 12)
        };
        let (queries, docs) = (positive(16, &[3, 31, 33], 1.0), positive(17, &[1, 5, 31, 130, 1025], -1.0));
        same_as_cpu(&format!("{dtype}"), &queries, &docs);
        for device in devices() {
            let scores = Scorer::new(Scoring::Plain).on(device).scores(queries.tokens(), docs.tokens()).unwrap();
            assert!(scores.iter().all(|&score| score < 0.0), "{dtype} {scores:?}");
        }
    }
}

#[test]
fn other_scores_are_close() {
    let (lens, query_lens) = ([20, 77, 300, 5, 130], [32, 32, 7]);
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        let (queries, docs) = (unit(18, dtype, &query_lens, 128), unit(19, dtype, &lens, 128));
        for device in devices() {
            let (cpu, gpu) = (cpu(Scoring::Plain), cpu(Scoring::Plain).on(device));
            let expected = cpu.scores(queries.tokens(), docs.tokens()).unwrap();
            let found = gpu.scores(queries.tokens(), docs.tokens()).unwrap();
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let bound = query_lens[i / lens.len()] as f32 * 128.0 * f32::EPSILON;
                assert!((found - expected).abs() <= bound, "{dtype} {i}: {found}, expected {expected}");
            }
            assert_eq!(gpu.scores(queries.tokens(), docs.tokens()).unwrap(), found, "run to run");
            let pairs: Vec<(u32, u32)> = (0..3).flat_map(|q| (0..5).map(move |d| (q, d))).collect();
            let pair_scores = gpu.pair_scores(queries.tokens(), docs.tokens(), &pairs).unwrap();
            assert_eq!(pair_scores, found, "the same bits from whichever method");
            let matches = gpu.pair_matches(queries.tokens(), docs.tokens(), &pairs).unwrap();
            assert_eq!(matches.iter().map(|pair| pair.score).collect::<Vec<_>>(), found);
        }
    }
}

/// What `subgroup_size_changes_no_bit` runs in processes of its own.
#[test]
fn scores_as_bits() {
    let (queries, docs) = (unit(20, DType::F16, &[32, 9], 96), unit(21, DType::F16, &[30, 200, 1500], 96));
    for device in devices() {
        let scores = Scorer::new(Scoring::Plain).on(device).scores(queries.tokens(), docs.tokens()).unwrap();
        println!("scores as bits {:x?}", scores.iter().map(|score| score.to_bits()).collect::<Vec<_>>());
    }
}

/// Mesa's software device takes its subgroup size, 4, 8 or 16, from the environment.
#[test]
fn subgroup_size_changes_no_bit() {
    if devices().first().is_none_or(|device| !device.limits().is_software) {
        return;
    }
    let run = |width: &str| {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.env("LP_NATIVE_VECTOR_WIDTH", width).args(["gpu::maxsim::scores_as_bits", "--exact", "--nocapture"]);
        let stdout = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let lines: Vec<String> = stdout.lines().filter(|line| line.contains("bits [")).map(str::to_owned).collect();
        assert_eq!(lines.len(), 2, "{width}: {stdout}");
        lines
    };
    let expected = run("128");
    assert_eq!(expected[0].split("bits").last(), expected[1].split("bits").last(), "with and without checks");
    for width in ["256", "512"] {
        assert_eq!(run(width), expected, "{width}");
    }
}

#[test]
fn more_pairs_than_a_side_of_the_grid() {
    let (queries, docs) = (lattice(22, DType::I8, &[1, 2, 0], 4), lattice(23, DType::I8, &[1, 3, 2, 5], 4));
    let mut random = Random(24);
    let pairs: Vec<(u32, u32)> = (0..70_000).map(|_| (random.below(3) as u32, random.below(4) as u32)).collect();
    let expected = cpu(Scoring::Plain).pair_scores(queries.tokens(), docs.tokens(), &pairs).unwrap();
    for device in devices() {
        let found = cpu(Scoring::Plain).on(device).pair_scores(queries.tokens(), docs.tokens(), &pairs).unwrap();
        assert!(found == expected);
    }
}

/// NaN has no equal, so scores are compared as bits, any NaN as one.
fn bits(scores: &[f32]) -> Vec<u32> {
    scores.iter().map(|score| if score.is_nan() { f32::NAN.to_bits() } else { score.to_bits() }).collect()
}

#[test]
fn what_is_not_finite_or_too_large_is_the_cpus() {
    let dim = 5;
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38] {
            if dtype == DType::F16 && value == 3e38 {
                continue;
            }
            let mut random = Random(25);
            let mut values = random.lattice(dtype, 40 * dim);
            values[17 * dim + 3] = value;
            let wild = Ragged::new(dtype, &values, &[9, 8, 20, 0, 3], dim);
            let tame = lattice(26, dtype, &[4, 33], dim);
            for device in devices() {
                for scoring in SCORINGS {
                    let (cpu, gpu) = (cpu(scoring), cpu(scoring).on(Arc::clone(&device)));
                    let expected = cpu.scores(tame.tokens(), wild.tokens()).unwrap();
                    assert_eq!(bits(&gpu.scores(tame.tokens(), wild.tokens()).unwrap()), bits(&expected), "{dtype}");
                    let expected = cpu.scores(wild.tokens(), tame.tokens()).unwrap();
                    assert_eq!(bits(&gpu.scores(wild.tokens(), tame.tokens()).unwrap()), bits(&expected), "{dtype}");
                    let pairs: Vec<(u32, u32)> = (0..5).flat_map(|d| [(1, d), (0, d)]).collect();
                    let expected = cpu.pair_scores(tame.tokens(), wild.tokens(), &pairs).unwrap();
                    assert_eq!(bits(&gpu.pair_scores(tame.tokens(), wild.tokens(), &pairs).unwrap()), bits(&expected));
                }
            }
        }
    }
}

#[test]
fn a_nan_scale_is_a_nan_token() {
    let (queries, mut docs) = (lattice(27, DType::I8, &[3], 6), lattice(28, DType::I8, &[2, 4, 1], 6));
    docs.scales = Some(vec![1.0, 1.0, 1.0, f32::NAN, 1.0, 1.0, 1.0]);
    for device in devices() {
        let scores = Scorer::new(Scoring::Plain).on(device).scores(queries.tokens(), docs.tokens()).unwrap();
        assert_eq!(scores.iter().map(|score| score.is_nan()).collect::<Vec<_>>(), [false, true, false]);
    }
}

#[test]
fn long_bytes_are_exact() {
    for dim in [1024, 1025] {
        let values: Vec<f32> =
            (0..3 * dim).map(|i| if i < dim { -128.0 } else { ((i * 37) % 255) as f32 - 127.0 }).collect();
        let tokens = Ragged::new(DType::I8, &values, &[1, 2], dim);
        same_as_cpu(&format!("{dim}"), &tokens, &tokens);
    }
}

#[test]
fn ties_rank_by_document_and_parts_add_up() {
    let lens = vec![1; 300];
    let values: Vec<f32> = (0..300).map(|i| ((i * 37) % 50) as f32).collect();
    let (queries, docs) =
        (Ragged::new(DType::F32, &[1.0, -1.0], &[1, 1], 1), Ragged::new(DType::F32, &values, &lens, 1));
    for device in devices() {
        let (cpu, gpu) = (cpu(Scoring::Plain), cpu(Scoring::Plain).on(device));
        for k in [0, 1, 7, 300, 1000] {
            let expected = cpu.top_k(queries.tokens(), docs.tokens(), k).unwrap();
            assert_eq!(gpu.top_k(queries.tokens(), docs.tokens(), k).unwrap(), expected, "{k}");
        }
        let expected = cpu.top_k(queries.tokens(), docs.tokens(), 9).unwrap();
        let mut parts = maxhull::TopK::new(2, 9);
        for start in [200, 0, 100] {
            let part = docs.batch().docs(start..start + 100);
            gpu.add_to_top_k(queries.tokens(), part, start as u64, &mut parts).unwrap();
        }
        assert_eq!(parts.into_hits(), expected);
    }
}

#[test]
fn rules_and_errors_are_those_of_the_cpu() {
    let (queries, docs) = (lattice(29, DType::F32, &[2, 0], 3), lattice(30, DType::F32, &[1, 0, 2], 3));
    let none = lattice(31, DType::F32, &[], 3);
    for device in devices() {
        for scoring in SCORINGS {
            let (cpu, gpu) = (Scorer::new(scoring), Scorer::new(scoring).on(Arc::clone(&device)));
            assert_eq!(gpu.scores(queries.batch(), docs.batch()), cpu.scores(queries.batch(), docs.batch()));
            assert_eq!(gpu.top_k(queries.batch(), docs.batch(), 2), cpu.top_k(queries.batch(), docs.batch(), 2));
            let pairs = [(0, 0), (1, 2), (9, 9)];
            assert_eq!(
                gpu.pair_scores(queries.batch(), docs.batch(), &pairs),
                cpu.pair_scores(queries.batch(), docs.batch(), &pairs)
            );
            assert_eq!(gpu.pair_scores(queries.batch(), docs.batch(), &[]), Ok(vec![]));
            assert_eq!(gpu.scores(none.batch(), docs.batch().docs(0..1)), Ok(vec![]));
            assert_eq!(gpu.scores(queries.batch(), none.batch()), Ok(vec![]));
        }
    }
}

#[test]
fn a_slice_of_a_store_scores_like_a_copy() {
    for dim in [4, 5] {
        let store = lattice(32, DType::F32, &[3, 5, 2, 4], dim);
        for device in devices() {
            let (cpu, gpu) = (cpu(Scoring::Plain), cpu(Scoring::Plain).on(device));
            let (queries, docs) = (store.batch().docs(1..3), store.batch().docs(2..4));
            assert_eq!(gpu.scores(queries, docs), cpu.scores(queries, docs));
        }
    }
}

/// A device with smaller buffers, which runs out of memory or is lost when it is told to.
struct Frail {
    inner: WgpuDevice,
    limits: Limits,
    /// Launches before it is lost.
    launches_left: AtomicUsize,
    /// Buffers larger than this are refused.
    most_bytes: AtomicUsize,
    num_launches: AtomicUsize,
}

impl Frail {
    fn new(max_buffer_bytes: u64) -> Option<Self> {
        let inner = WgpuDevice::open(None).ok()?;
        let limits = Limits { max_buffer_bytes, ..inner.limits().clone() };
        let never = || AtomicUsize::new(usize::MAX);
        Some(Frail { inner, limits, launches_left: never(), most_bytes: never(), num_launches: AtomicUsize::new(0) })
    }
}

impl Device for Frail {
    type Buffer = <WgpuDevice as Device>::Buffer;
    type Download = Download;

    fn name(&self) -> String {
        self.inner.name()
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn alloc(&self, size_bytes: u64) -> Result<Self::Buffer, DeviceError> {
        assert!(size_bytes <= self.limits.max_buffer_bytes, "{size_bytes} bytes were asked for");
        if size_bytes as usize > self.most_bytes.load(Ordering::Relaxed) {
            return Err(DeviceError::OutOfMemory(format!("{size_bytes} bytes")));
        }
        self.inner.alloc(size_bytes)
    }

    fn upload(&self, to: &Self::Buffer, bytes: &[u8]) -> Result<(), DeviceError> {
        // As where a parallel iterator waits for other threads: this one takes up another task meanwhile.
        rayon::yield_now();
        self.inner.upload(to, bytes)
    }

    fn launch(
        &self,
        variant: Variant,
        arguments: &[&Self::Buffer],
        params: &[u8],
        num_workgroups: u64,
    ) -> Result<(), DeviceError> {
        self.num_launches.fetch_add(1, Ordering::Relaxed);
        if self.launches_left.fetch_sub(1, Ordering::Relaxed) == 0 {
            self.inner.lose();
        }
        self.inner.launch(variant, arguments, params, num_workgroups)
    }

    fn download(&self, from: &[(&Self::Buffer, u64)]) -> Result<Download, DeviceError> {
        self.inner.download(from)
    }

    fn is_ready(&self, download: &Download) -> bool {
        self.inner.is_ready(download)
    }

    fn read(&self, download: Download, each: &mut dyn FnMut(&[&[u8]])) -> Result<(), DeviceError> {
        self.inner.read(download, each)
    }
}

/// A scorer on a device, and what it says.
fn listening(device: Arc<Frail>, scoring: Scoring) -> (Scorer, Arc<Mutex<Vec<Notice>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&heard);
    let notify = Arc::new(move |notice: &Notice| hears.lock().unwrap().push(notice.clone()));
    (cpu(scoring).on(device).with_notices(notify), heard)
}

#[test]
fn a_device_without_f16_unpacks_it() {
    let (queries, docs) = (lattice(39, DType::F16, &[3, 40], 24), lattice(40, DType::F16, &[7, 130, 1], 24));
    let Some(mut device) = Frail::new(1 << 20) else { return };
    device.limits.has_f16 = false;
    let (gpu, _) = listening(Arc::new(device), Scoring::Plain);
    assert_eq!(gpu.scores(queries.batch(), docs.batch()), cpu(Scoring::Plain).scores(queries.batch(), docs.batch()));
}

#[test]
fn small_buffers_give_many_batches_and_blocks() {
    let mut lens: Vec<usize> = (0..90).map(|i| i * 7 % 40).collect();
    lens[40] = 600;
    let queries = lattice(33, DType::F32, &[30, 0, 40, 64, 70, 1, 200, 5], 16);
    let docs = lattice(34, DType::F32, &lens, 16);
    let pairs: Vec<(u32, u32)> = (0..400).map(|i| (i * 5 % 8, i * 11 % 90)).collect();
    for scoring in SCORINGS {
        // 8 KiB: 128 tokens.
        let Some(device) = Frail::new(8 << 10).map(Arc::new) else { return };
        let (gpu, heard) = listening(Arc::clone(&device), scoring);
        let cpu = cpu(scoring);
        assert_eq!(gpu.scores(queries.batch(), docs.batch()), cpu.scores(queries.batch(), docs.batch()));
        assert!(device.num_launches.load(Ordering::Relaxed) > 50);
        let heard = std::mem::take(&mut *heard.lock().unwrap());
        assert!(!heard.is_empty());
        assert!(heard.iter().all(|notice| *notice == Notice::DocTooLong { doc_idx: 40, num_tokens: 600 }), "{heard:?}");
        assert_eq!(
            gpu.pair_matches(queries.batch(), docs.batch(), &pairs),
            cpu.pair_matches(queries.batch(), docs.batch(), &pairs)
        );
        assert_eq!(gpu.top_k(queries.batch(), docs.batch(), 9), cpu.top_k(queries.batch(), docs.batch(), 9));
    }
}

#[test]
fn a_lost_device_leaves_nothing_out() {
    let lens: Vec<usize> = (0..60).map(|i| i * 7 % 40).collect();
    let (queries, docs) = (lattice(35, DType::F16, &[9, 3, 70], 16), lattice(36, DType::F16, &lens, 16));
    let pairs: Vec<(u32, u32)> = (0..200).map(|i| (i % 3, i * 11 % 60)).collect();
    let cpu = cpu(Scoring::Plain);
    for launches_left in [0, 1, 2, 5, 9] {
        let frail = || {
            let device = Arc::new(Frail::new(8 << 10)?);
            device.launches_left.store(launches_left, Ordering::Relaxed);
            Some(listening(device, Scoring::Plain))
        };
        let Some((gpu, heard)) = frail() else { return };
        assert_eq!(gpu.scores(queries.batch(), docs.batch()), cpu.scores(queries.batch(), docs.batch()));
        assert!(matches!(&heard.lock().unwrap()[..], [Notice::FellBack { .. }]));
        assert_eq!(gpu.scores(queries.batch(), docs.batch()), cpu.scores(queries.batch(), docs.batch()));
        assert_eq!(heard.lock().unwrap().len(), 1, "once is enough");
        let Some((gpu, heard)) = frail() else { return };
        assert_eq!(
            gpu.pair_matches(queries.batch(), docs.batch(), &pairs),
            cpu.pair_matches(queries.batch(), docs.batch(), &pairs)
        );
        assert!(matches!(&heard.lock().unwrap()[..], [Notice::FellBack { .. }]));
        let Some((gpu, _)) = frail() else { return };
        assert_eq!(gpu.top_k(queries.batch(), docs.batch(), 9), cpu.top_k(queries.batch(), docs.batch(), 9));
    }
}

#[test]
fn calls_from_the_tasks_of_a_pool_do_not_wait_for_each_other() {
    use rayon::prelude::*;
    let lens: Vec<usize> = (0..60).map(|i| i * 7 % 40).collect();
    let (queries, docs) = (lattice(41, DType::F16, &[9, 3], 16), lattice(42, DType::F16, &lens, 16));
    let Some(device) = Frail::new(1 << 20).map(Arc::new) else { return };
    let (gpu, heard) = listening(device, Scoring::Plain);
    let expected = cpu(Scoring::Plain).scores(queries.batch(), docs.batch());
    let (send, received) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let calls = || (0..4).into_par_iter().with_max_len(1).map(|_| gpu.scores(queries.batch(), docs.batch()));
        send.send(pool.install(|| calls().collect::<Vec<_>>())).unwrap();
    });
    let found = received.recv_timeout(std::time::Duration::from_secs(60)).expect("an answer");
    assert!(found.iter().all(|found| *found == expected));
    assert_eq!(*heard.lock().unwrap(), []);
}

#[test]
fn short_memory_halves_the_batches() {
    let lens = vec![500; 40];
    let (queries, docs) = (lattice(37, DType::F32, &[2], 64), lattice(38, DType::F32, &lens, 64));
    let Some(device) = Frail::new(1 << 30).map(Arc::new) else { return };
    device.most_bytes.store(2 << 20, Ordering::Relaxed);
    let (gpu, heard) = listening(device, Scoring::Plain);
    let expected = cpu(Scoring::Plain).scores(queries.batch(), docs.batch());
    assert_eq!(gpu.scores(queries.batch(), docs.batch()), expected);
    let halved = heard.lock().unwrap().clone();
    assert_eq!(halved, vec![Notice::BatchHalved; 6], "64 MiB down to 1");
}
