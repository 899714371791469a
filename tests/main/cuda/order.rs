//! The device's promise: uploads, launches and downloads take effect in the order in which they were asked for.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use maxhull::DType;
use maxhull::device::cuda::CudaDevice;
use maxhull::device::{Device, DeviceError};
use maxhull::kernel::{CEILING_THREADS, CeilingParams, Doc, GramParams, Kernel};

use super::{fetched, filled, open, shim, variant};
use crate::common::Random;

/// Launches `centre` over one document of one token of 4 components: a copy from `tokens` to `centres`.
fn copy(
    device: &CudaDevice,
    tokens: &maxhull::device::cuda::Buffer,
    docs: &maxhull::device::cuda::Buffer,
    centres: &maxhull::device::cuda::Buffer,
) {
    let params = GramParams { num_items: 1, num_chunks: 1, is_centred: 0, padding: 0 };
    let block = bytemuck::bytes_of(&params);
    device.launch(variant(Kernel::Centre, DType::F32), &[tokens, docs, centres], block, 1).unwrap();
}

#[test]
fn on_device_everything_takes_effect_in_order() {
    let Some(device) = open() else { return };
    let docs = filled(&device, &[Doc { num_tokens: 1, num_first: 1, ..Doc::default() }]);
    let mut random = Random(8);
    // What each buffer must hold if all is done in order.
    let mut expected = [[0.0f32; 4]; 5];
    let buffers: Vec<_> = expected.iter().map(|values| filled(&device, values)).collect();
    let mut pending = std::collections::VecDeque::new();
    for step in 0..2000 {
        let (from, to) = (random.below(5), random.below(5));
        match random.below(4) {
            0 => {
                expected[to] = [step as f32, random.signed(), random.signed(), random.signed()];
                device.upload(&buffers[to], bytemuck::bytes_of(&expected[to])).unwrap();
            }
            1 if from != to => {
                expected[to] = expected[from];
                copy(&device, &buffers[from], &docs, &buffers[to]);
            }
            _ => {
                let parts = [(&buffers[from], 16), (&buffers[to], 8)];
                pending.push_back((device.download(&parts).unwrap(), expected[from], expected[to]));
            }
        }
        while pending.len() > random.below(12) {
            let Some((download, first, second)) = pending.pop_front() else { break };
            if random.below(4) == 0 {
                // Dropped unread.
                continue;
            }
            let mut seen = false;
            device
                .read(download, &mut |parts| {
                    assert_eq!(parts[0], bytemuck::bytes_of(&first), "step {step}");
                    assert_eq!(parts[1], &bytemuck::bytes_of(&second)[..8], "step {step}");
                    seen = true;
                })
                .unwrap();
            assert!(seen);
        }
    }
}

#[test]
fn on_device_large_uploads_arrive_whole() {
    let Some(device) = open() else { return };
    let mut random = Random(9);
    // More than all staging memory together, in the end of a piece, from several threads.
    let values: Vec<u64> = (0..(9 << 20) + 6).map(|_| random.next()).collect();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let buffer = filled(&device, &values);
                assert!(fetched::<u64>(&device, &buffer, values.len()) == values);
            });
        }
    });
}

#[test]
fn on_device_buffers_may_go_while_they_are_used() {
    let Some(device) = open() else { return };
    for step in 0..100 {
        let docs = filled(&device, &[Doc { num_tokens: 1, ..Doc::default() }]);
        let (from, to) = (filled(&device, &[step as f32; 4]), filled(&device, &[0.0f32; 4]));
        copy(&device, &from, &docs, &to);
        drop((from, docs));
        let download = device.download(&[(&to, 16)]).unwrap();
        drop(to);
        let reads = AtomicUsize::new(0);
        device
            .read(download, &mut |parts| {
                assert_eq!(parts[0], bytemuck::bytes_of(&[step as f32; 4]));
                reads.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
        assert_eq!(reads.into_inner(), 1);
    }
}

#[test]
fn on_device_downloads_become_ready() {
    let Some(device) = open() else { return };
    let buffer = filled(&device, &[1.0f32; 4]);
    let download = device.download(&[(&buffer, 0), (&buffer, 16)]).unwrap();
    while !device.is_ready(&download) {
        std::thread::yield_now();
    }
    device
        .read(download, &mut |parts| assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [0, 16]))
        .unwrap();
}

#[test]
fn on_device_launches_are_waited_for_and_timed() {
    let Some(device) = open() else { return };
    let sums = device.alloc(64 * u64::from(CEILING_THREADS) * 4).unwrap();
    // On a GPU long beside what a download costs on its own.
    let num_steps = if shim::is_inside() { 64 } else { 1 << 15 };
    let params = CeilingParams { num_items: 64, num_steps, factor: 0.5, summand: 1.0 };
    let launch = || device.launch(variant(Kernel::CeilingFma, DType::F32), &[&sums], bytemuck::bytes_of(&params), 64);
    let settle = || device.read(device.download(&[]).unwrap(), &mut |_| ()).unwrap();
    // Whatever is done once only.
    launch().unwrap();
    settle();
    let begun = Instant::now();
    launch().unwrap();
    settle();
    let waited = begun.elapsed();
    let begun = Instant::now();
    device.read(device.download(&[(&sums, 16)]).unwrap(), &mut |_| ()).unwrap();
    let after = begun.elapsed();
    assert!(after < waited, "a download of nothing took {waited:?}, and one of what was launched before it {after:?}");
    let timed = device.time(&mut || launch()).unwrap();
    assert!(timed > waited / 100, "{timed:?} by the device's clock, {waited:?} by the host's");
}

#[test]
fn on_device_mistakes_are_errors() {
    let Some(device) = open() else { return };
    let most = device.limits().max_buffer_bytes;
    assert!(matches!(device.alloc(most + 16), Err(DeviceError::OutOfMemory(_))));
    let mut held = Vec::new();
    let refused = (0..3).find_map(|_| device.alloc(most / 16 * 8).map(|buffer| held.push(buffer)).err());
    assert!(matches!(refused, Some(DeviceError::OutOfMemory(_))), "{refused:?}");
    drop(held);
    let buffer = device.alloc(most / 16 * 8).unwrap();
    drop(buffer);
    let buffer = filled(&device, &[0u32; 4]);
    assert!(matches!(device.upload(&buffer, &[0; 20]), Err(DeviceError::Refused(_))));
    assert!(matches!(device.download(&[(&buffer, 20)]), Err(DeviceError::Refused(_))));
    let launched = device.launch(variant(Kernel::Gram, DType::F16), &[&buffer], &[0; 16], 1);
    assert!(matches!(launched, Err(DeviceError::Refused(_))));
    device.lose();
    assert!(matches!(device.upload(&buffer, &[0; 16]), Err(DeviceError::Lost(_))));
}
