//! What travels back from a pruning run: the supports alone, however many there are, and whatever they say.

use std::sync::{Arc, Mutex};

use maxhull::device::wgpu::WgpuDevice;
use maxhull::device::{Device, DeviceError, Limits};
use maxhull::engine::{CpuEngine, Engine, Goal, GpuEngine, Notice, Selection};
use maxhull::kernel::{FACE_CAP, PLACE_STRIDE, Variant};
use maxhull::{Method, PruneOptions, Pruner, Scoring, Target, TokenBatch, TokenData};

use super::devices;
use crate::common::{Random, encoder_like, offsets};

#[test]
fn supports_are_put_together() {
    devices().iter().for_each(crate::compact::check);
}

/// A lie: changes what was downloaded, part by part.
type Lie = Box<dyn Fn(&mut [Vec<u32>]) + Send + Sync>;

/// Another device that gives only so much memory at a time, notes what is downloaded, and changes what it says.
struct Between {
    device: WgpuDevice,
    most_bytes: u64,
    /// Words of each part.
    downloads: Mutex<Vec<Vec<usize>>>,
    lie: Lie,
}

impl Between {
    fn new(lie: impl Fn(&mut [Vec<u32>]) + Send + Sync + 'static) -> Option<Self> {
        devices().first()?;
        let device = WgpuDevice::open(None).expect("a device that opened once");
        Some(Between { device, most_bytes: u64::MAX, downloads: Mutex::default(), lie: Box::new(lie) })
    }
}

impl Device for Between {
    type Buffer = <WgpuDevice as Device>::Buffer;
    type Download = <WgpuDevice as Device>::Download;

    fn name(&self) -> String {
        self.device.name()
    }

    fn limits(&self) -> &Limits {
        self.device.limits()
    }

    fn alloc(&self, size_bytes: u64) -> Result<Self::Buffer, DeviceError> {
        if size_bytes > self.most_bytes {
            return Err(DeviceError::OutOfMemory(format!("{size_bytes} bytes")));
        }
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
        self.device.download(from)
    }

    fn is_ready(&self, download: &Self::Download) -> bool {
        self.device.is_ready(download)
    }

    fn read(&self, download: Self::Download, each: &mut dyn FnMut(&[&[u8]])) -> Result<(), DeviceError> {
        self.device.read(download, &mut |parts| {
            let mut words: Vec<Vec<u32>> = parts.iter().map(|part| bytemuck::pod_collect_to_vec(part)).collect();
            self.downloads.lock().unwrap().push(words.iter().map(Vec::len).collect());
            (self.lie)(&mut words);
            let parts: Vec<&[u8]> = words.iter().map(|words| bytemuck::cast_slice(words)).collect();
            each(&parts);
        })
    }
}

// Parts of a download.
const ORDER: usize = 0;
const RESULTS: usize = 2;
const CURSOR: usize = 3;
const ENTRIES: usize = 4;

const LENGTHS: [usize; 7] = [1, 90, 0, 64, 30, 2, 129];
const DIM: usize = 32;
const GOAL: Goal = Goal::Epsilon(0.3);

/// What an engine makes of a device that lies so, and the downloads that it took.
fn select(lie: impl Fn(&mut [Vec<u32>]) + Send + Sync + 'static) -> Option<(Vec<Selection>, Vec<Vec<usize>>)> {
    let refuse = Arc::new(|notice: &Notice| panic!("{notice:?}"));
    let engine = GpuEngine::new(Arc::new(Between::new(lie)?)).with_notices(refuse);
    let (tokens, offsets) = tokens();
    let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, DIM).unwrap();
    let found = engine.select(&batch, Scoring::Clamped, GOAL, None).unwrap();
    let downloads = engine.device().downloads.lock().unwrap().clone();
    Some((found, downloads))
}

fn tokens() -> (Vec<f32>, Vec<u64>) {
    (encoder_like(&mut Random(61), LENGTHS.iter().sum(), DIM), offsets(0, &LENGTHS))
}

/// Changes the place of every removed token.
fn at_places(change: impl Fn(u32) -> u32 + Send + Sync + 'static) -> impl Fn(&mut [Vec<u32>]) + Send + Sync {
    move |parts| {
        let mut start = 0;
        for (doc_idx, n) in LENGTHS.into_iter().enumerate() {
            // Documents of a token at most are not the device's.
            let num_kept = if n > 1 { parts[RESULTS][4 * doc_idx] as usize } else { n };
            parts[ORDER][start + num_kept..start + n].iter_mut().for_each(|place| *place = change(*place));
            start += n;
        }
    }
}

#[test]
fn a_device_that_lies_about_supports_costs_no_document() {
    let Some((truth, _)) = select(|_| ()) else { return };
    let (tokens, offsets) = tokens();
    let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, DIM).unwrap();
    let on_cpu = CpuEngine::new().select(&batch, Scoring::Clamped, GOAL, None).unwrap();
    // The CPU's supports are others, so that one sees who answered.
    let is_pruned = |doc_idx: &usize| truth[*doc_idx].order.len() < LENGTHS[*doc_idx];
    let pruned: Vec<usize> = (0..LENGTHS.len()).filter(is_pruned).collect();
    assert!(pruned.len() == 4 && pruned.iter().all(|&doc_idx| truth[doc_idx] != on_cpu[doc_idx]));
    let stride = PLACE_STRIDE;
    let entries =
        |change: fn(&mut [u32])| move |parts: &mut [Vec<u32>]| parts[ENTRIES].chunks_exact_mut(2).for_each(change);
    let lies: Vec<(&str, Lie)> = vec![
        ("no place", Box::new(at_places(|_| 0))),
        ("no number of entries", Box::new(at_places(move |place| place / stride * stride))),
        ("more entries than a face has", Box::new(at_places(move |place| place / stride * stride + FACE_CAP + 2))),
        ("the most entries", Box::new(at_places(move |place| place | (stride - 1)))),
        ("a place behind the end", Box::new(at_places(move |place| place % stride + (1 << 25)))),
        ("the last place", Box::new(at_places(|_| u32::MAX))),
        ("no such vertex", Box::new(entries(|entry| entry[0] = 1000))),
        ("the last vertex", Box::new(entries(|entry| entry[0] = u32::MAX))),
        ("NaN", Box::new(entries(|entry| entry[1] = f32::NAN.to_bits()))),
        ("a negative weight", Box::new(entries(|entry| entry[1] = (-0.25f32).to_bits()))),
        ("a weight above 1", Box::new(entries(|entry| entry[1] = 1.5f32.to_bits()))),
        ("no entries", Box::new(|parts| parts[ENTRIES].clear())),
        ("half an entry", Box::new(|parts| parts[ENTRIES].truncate(1))),
        ("no cursor", Box::new(|parts| parts[CURSOR].clear())),
    ];
    for (what, lie) in lies {
        let (found, _) = select(lie).unwrap();
        for &doc_idx in &pruned {
            assert!(found[doc_idx] == on_cpu[doc_idx], "{what}: document {doc_idx}");
        }
    }
}

#[test]
fn the_number_of_entries_is_not_believed() {
    let Some((truth, downloads)) = select(|_| ()) else { return };
    assert_eq!(downloads.len(), 1);
    let most = LENGTHS.iter().sum::<usize>() as u32 * FACE_CAP;
    for (claimed, num_downloads) in [(0, 1), (1, 1), (most, 2), (most + 1, 1), (u32::MAX, 1)] {
        let (found, downloads) = select(move |parts| parts[CURSOR] = vec![claimed]).unwrap();
        assert!(found == truth, "{claimed} entries");
        assert_eq!(downloads.len(), num_downloads, "{claimed} entries");
    }
    // More each time that it is asked.
    let claimed = Mutex::new(most - 10);
    let grow = move |parts: &mut [Vec<u32>]| {
        let mut claimed = claimed.lock().unwrap();
        *claimed += 1;
        parts[CURSOR] = vec![*claimed];
    };
    let (found, downloads) = select(grow).unwrap();
    assert!(found == truth);
    assert_eq!(downloads.len(), 2);
}

#[test]
fn supports_of_other_tokens_are_not_proven() {
    let lie = |parts: &mut [Vec<u32>]| {
        // The entries change hands.
        parts[ENTRIES].rotate_left(6);
    };
    let Some(device) = Between::new(lie) else { return };
    let (tokens, offsets) = tokens();
    let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, DIM).unwrap();
    let options = PruneOptions { scoring: Scoring::Clamped, method: Method::Hull(Target::Epsilon(0.3)) };
    let engine: Arc<dyn Engine> = Arc::new(GpuEngine::new(Arc::new(device)));
    let found = Pruner::new(engine, options).unwrap().prune(&batch, None).unwrap();
    println!("{:?}", found.stats);
    assert!(found.stats.worst_bound <= 0.3);
}

#[test]
fn supports_alone_travel() {
    let Some((found, downloads)) = select(|_| ()) else { return };
    let num_entries: usize =
        found.iter().flat_map(|selection| selection.removals.iter()).map(|(_, support, _)| support.len()).sum();
    let num_tokens: usize = LENGTHS.iter().sum();
    let bytes: usize = downloads.concat().iter().sum::<usize>() * 4;
    println!("{num_tokens} tokens: {bytes} bytes downloaded, {num_entries} entries");
    assert!(bytes < num_tokens * 48, "{bytes} bytes for {num_tokens} tokens");
}

#[test]
fn more_supports_than_expected_are_downloaded_as_well() {
    let Some(device) = Between::new(|_| ()) else { return };
    // The unit vectors stay, and every other token is a mixture of all of them.
    const DIM: usize = 20;
    let (lengths, mut random) = ([120, 1, 100, 0], Random(62));
    let mut component = |token_idx: usize, k: usize| match token_idx {
        ..DIM => f32::from(u8::from(token_idx == k)),
        _ => (1.0 + 0.5 * random.signed()) / (1.6 * DIM as f32),
    };
    let places = lengths.iter().flat_map(|&n| 0..n).flat_map(|token_idx| (0..DIM).map(move |k| (token_idx, k)));
    let tokens: Vec<f32> = places.map(|(token_idx, k)| component(token_idx, k)).collect();
    let offsets = offsets(0, &lengths);
    let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, DIM).unwrap();
    let refuse = Arc::new(|notice: &Notice| panic!("{notice:?}"));
    let engine = GpuEngine::new(Arc::new(device)).with_notices(refuse);
    let found = engine.select(&batch, Scoring::Clamped, Goal::MaxTokens(DIM as u32), None).unwrap();
    let downloads = engine.device().downloads.lock().unwrap().clone();
    let [.., guess, whole] = &downloads[..] else { panic!("{downloads:?}") };
    assert!(whole[ENTRIES] > guess[ENTRIES], "{downloads:?}");
    for (selection, n) in found.iter().zip(lengths) {
        assert_eq!(selection.removals.iter().count(), n.saturating_sub(DIM));
        assert!(selection.removals.iter().all(|(_, support, _)| support.len() == DIM));
    }
}

#[test]
fn short_memory_halves_the_batches() {
    let Some(mut small) = Between::new(|_| ()) else { return };
    let roomy = Between::new(|_| ()).expect("a device that opened once");
    // Faces and entries are the largest buffers: 256 bytes a token.
    small.most_bytes = 256 * 6000;
    let mut random = Random(63);
    let lengths: Vec<usize> = (0..250).map(|_| random.below(60)).collect();
    let (tokens, offsets) = (encoder_like(&mut random, lengths.iter().sum(), 8), offsets(0, &lengths));
    let batch = TokenBatch::new(TokenData::F32(&tokens), &offsets, 8).unwrap();
    let notices = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&notices);
    let notify = Arc::new(move |notice: &Notice| heard.lock().unwrap().push(notice.clone()));
    let small = GpuEngine::new(Arc::new(small)).with_notices(notify);
    let found = small.select(&batch, Scoring::Clamped, GOAL, None).unwrap();
    let expected = GpuEngine::new(Arc::new(roomy)).select(&batch, Scoring::Clamped, GOAL, None).unwrap();
    assert!(found == expected);
    let notices = notices.lock().unwrap();
    assert!(!notices.is_empty() && notices.iter().all(|notice| *notice == Notice::BatchHalved), "{notices:?}");
}
