//! Several devices: apart from one another, and together over one batch. Where there is only one GPU it plays both.

use std::sync::{Arc, Mutex};

use maxhull::device::Device;
use maxhull::device::cuda::{CudaDevice, adapters};
use maxhull::engine::{CpuEngine, Engine, Goal, GpuEngine, ManyEngines, Notice, Selection};
use maxhull::{Scoring, TokenBatch, TokenData};

use super::open;
use crate::common::{Random, encoder_like, offsets, to_f16};

type Heard = Arc<Mutex<Vec<Notice>>>;

/// All devices, or one twice.
fn devices() -> Option<Vec<Arc<CudaDevice>>> {
    open()?;
    let num_devices = adapters().len();
    Some((0..num_devices.max(2)).map(|idx| Arc::new(CudaDevice::open(Some(idx % num_devices)).unwrap())).collect())
}

fn engines() -> Option<(Vec<Arc<GpuEngine<CudaDevice>>>, Heard)> {
    let heard = Heard::default();
    let engine = |(idx, device)| {
        let heard = Arc::clone(&heard);
        let notify = Arc::new(move |notice: &Notice| heard.lock().unwrap().push(notice.clone()));
        Arc::new(GpuEngine::new(device).with_notices(Notice::on_device(format!("cuda:{idx}"), notify)))
    };
    Some((devices()?.into_iter().enumerate().map(engine).collect(), heard))
}

fn many(engines: &[Arc<GpuEngine<CudaDevice>>]) -> ManyEngines {
    ManyEngines::new(engines.iter().map(|engine| Arc::clone(engine) as _).collect()).with_piece_tokens(60, 200)
}

fn pool(num_threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap()
}

#[test]
fn on_device_uploads_to_several_devices_share_the_threads() {
    let Some(devices) = devices() else { return };
    // Now and then a thread's neighbour takes over a part of its copy, and while it waits for that it takes up an upload
    // to another device, in the middle of its own.
    let values: Vec<u32> = (0..1 << 20).map(|at: u32| at.wrapping_mul(0x9e37_79b9)).collect();
    let size_bytes = 4 * values.len() as u64;
    let buffers: Vec<_> = devices.iter().map(|device| device.alloc(size_bytes).unwrap()).collect();
    let mut random = Random(40);
    pool(2).in_place_scope(|scope| {
        for task in 0..400 {
            let place = task % devices.len();
            let (device, buffer, values) = (&devices[place], &buffers[place], &values);
            scope.spawn(move |_| device.upload(buffer, bytemuck::cast_slice(values)).unwrap());
            std::thread::sleep(std::time::Duration::from_micros(random.below(2000) as u64));
        }
    });
    for (device, buffer) in devices.iter().zip(&buffers) {
        let download = device.download(&[(buffer, size_bytes)]).unwrap();
        device.read(download, &mut |parts| assert!(parts[0] == bytemuck::cast_slice::<u32, u8>(&values))).unwrap();
    }
}

#[test]
fn on_device_several_devices_find_what_one_finds() {
    let Some((engines, heard)) = engines() else { return };
    let mut random = Random(41);
    let lengths: Vec<usize> = (0..30).map(|_| random.below(70)).chain([130, 0, 1]).collect();
    let dim = 24;
    let values = to_f16(&encoder_like(&mut random, lengths.iter().sum::<usize>() + 5, dim));
    let offsets = offsets(5, &lengths);
    let batch = TokenBatch::new(TokenData::F16(&values), &offsets, dim).unwrap();
    let always: Vec<bool> = (0..batch.num_tokens()).map(|i| i % 9 == 2).collect();
    let many = many(&engines);
    println!("{}", many.name());
    for (scoring, goal, always_kept) in [
        (Scoring::Plain, Goal::Epsilon(0.3), None),
        (Scoring::Clamped, Goal::Project, Some(&always[..])),
        (Scoring::Plain, Goal::Order, None),
    ] {
        let expected = engines[0].select(&batch, scoring, goal, always_kept).unwrap();
        for num_threads in [1, 2, 4] {
            let found = pool(num_threads).install(|| many.select(&batch, scoring, goal, always_kept).unwrap());
            assert_eq!(found, expected, "{scoring} {goal:?} on {num_threads} threads");
        }
    }
    let expected = engines[0].decide(&batch, Scoring::Plain, 0.3).unwrap();
    assert_eq!(pool(3).install(|| many.decide(&batch, Scoring::Plain, 0.3).unwrap()), expected);
    assert_eq!(*heard.lock().unwrap(), []);
}

#[test]
fn on_device_notices_name_the_device_and_the_document_of_the_batch() {
    let Some((engines, heard)) = engines() else { return };
    let mut lengths = vec![20; 40];
    lengths[33] = 5000;
    let values = to_f16(&encoder_like(&mut Random(42), lengths.iter().sum(), 8));
    let offsets = offsets(0, &lengths);
    let batch = TokenBatch::new(TokenData::F16(&values), &offsets, 8).unwrap();
    many(&engines).select(&batch, Scoring::Clamped, Goal::MaxTokens(5), None).unwrap();
    let heard = heard.lock().unwrap();
    let [Notice::OnDevice { device, notice }] = &heard[..] else { panic!("{heard:?}") };
    assert!(device.starts_with("cuda:"));
    assert_eq!(**notice, Notice::DocTooLong { doc_idx: 33, num_tokens: 5000 });
}

#[test]
fn on_device_a_lost_device_leaves_the_rest_to_the_others() {
    let Some((engines, heard)) = engines() else { return };
    let lengths = [30; 60];
    let values = to_f16(&encoder_like(&mut Random(43), lengths.iter().sum(), 16));
    let offsets = offsets(0, &lengths);
    let batch = TokenBatch::new(TokenData::F16(&values), &offsets, 16).unwrap();
    let goal = Goal::KeepRatio(0.4);
    let by_device = engines[1].select(&batch, Scoring::Plain, goal, None).unwrap();
    let by_cpu = CpuEngine::new().select(&batch, Scoring::Plain, goal, None).unwrap();
    let mut found = vec![Selection::default(); batch.num_docs()];
    many(&engines)
        .select_each(&batch, 0..batch.num_docs(), Scoring::Plain, goal, None, &mut |docs| {
            engines[0].device().lose();
            docs.into_iter().for_each(|(doc_idx, selection)| found[doc_idx] = selection);
        })
        .unwrap();
    for (doc_idx, found) in found.iter().enumerate() {
        assert!(*found == by_device[doc_idx] || *found == by_cpu[doc_idx], "document {doc_idx}");
    }
    assert!(engines[0].is_lost() && !engines[1].is_lost());
    let heard = heard.lock().unwrap();
    let [Notice::OnDevice { device, notice }] = &heard[..] else { panic!("{heard:?}") };
    assert!(device == "cuda:0" && matches!(**notice, Notice::FellBack { .. }), "{heard:?}");
}
