//! The CUDA device and its kernels: on the machine's GPU if there is one, and always on a CPU that plays one.

mod absent;
mod compiled;
mod dominance;
mod engine;
mod gram;
mod layout;
mod maxsim;
#[allow(clippy::duplicate_mod, reason = "the same tests, on another device")]
#[path = "../gpu/selection.rs"]
mod on_device_selection;
mod order;
mod shim;

use std::sync::LazyLock;

use bytemuck::Pod;
use maxhull::device::cuda::CudaDevice;
use maxhull::device::{Device, DeviceError};
use maxhull::half::{bf16, f16};
use maxhull::kernel::{Encoding, Kernel, Variant};
use maxhull::{DType, device};

use super::common::Random;

const DTYPES: [DType; 4] = [DType::F32, DType::F16, DType::Bf16, DType::I8];

/// The device of the tests that are the same for others.
type TestDevice = CudaDevice;

/// The one device, or none.
fn devices() -> &'static [CudaDevice] {
    static DEVICES: LazyLock<Vec<CudaDevice>> = LazyLock::new(|| open().into_iter().collect());
    &DEVICES
}

/// The device that the tests named `on_device` use, or an announcement that there is none.
fn open() -> Option<CudaDevice> {
    match CudaDevice::open(None) {
        Ok(device) => Some(device),
        Err(DeviceError::NotFound(why)) if !shim::is_inside() => {
            println!("no CUDA device, only the shim runs these: {why}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn variant(kernel: Kernel, dtype: DType) -> Variant {
    Variant { kernel, encoding: Encoding::of(dtype, true), subgroups: true, cooperative: None }
}

/// A buffer that holds `values`, or 16 bytes where there are none.
fn filled<T: Pod>(device: &CudaDevice, values: &[T]) -> device::cuda::Buffer {
    let bytes = bytemuck::cast_slice(values);
    let buffer = device.alloc((bytes.len() as u64).next_multiple_of(16).max(16)).unwrap();
    device.upload(&buffer, bytes).unwrap();
    buffer
}

fn fetched<T: Pod>(device: &CudaDevice, from: &device::cuda::Buffer, len: usize) -> Vec<T> {
    let download = device.download(&[(from, (len * size_of::<T>()) as u64)]).unwrap();
    let mut values = Vec::new();
    let mut take =
        |part: &[u8]| values.extend(part.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned::<T>));
    device.read(download, &mut |parts| take(parts[0])).unwrap();
    values
}

/// Tokens as a device reads them, and what they stand for.
struct Packed {
    bytes: Vec<u8>,
    /// `[num_tokens, num_chunks * chunk_dim]`.
    values: Vec<f32>,
    num_chunks: usize,
    row_len: usize,
}

/// Rows of `dim` components, padded to whole chunks.
fn packed(dtype: DType, values: &[f32], dim: usize) -> Packed {
    let chunk_dim = Encoding::of(dtype, true).chunk_dim();
    let num_chunks = dim.div_ceil(chunk_dim);
    let row_len = num_chunks * chunk_dim;
    let mut packed = Packed { bytes: Vec::new(), values: Vec::new(), num_chunks, row_len };
    for row in values.chunks(dim) {
        let padded = row.iter().copied().chain(std::iter::repeat(0.0)).take(row_len);
        for value in padded {
            let stored = match dtype {
                DType::F32 => {
                    packed.bytes.extend(value.to_le_bytes());
                    value
                }
                DType::F16 => {
                    packed.bytes.extend(f16::from_f32(value).to_le_bytes());
                    f16::from_f32(value).to_f32()
                }
                DType::Bf16 => {
                    packed.bytes.extend(bf16::from_f32(value).to_le_bytes());
                    bf16::from_f32(value).to_f32()
                }
                DType::I8 => {
                    packed.bytes.push(value as i8 as u8);
                    f32::from(value as i8)
                }
            };
            packed.values.push(stored);
        }
    }
    packed
}

/// Components that any order of summation gives exactly, or any.
fn components(random: &mut Random, dtype: DType, len: usize, is_lattice: bool) -> Vec<f32> {
    match dtype {
        _ if is_lattice => random.lattice(dtype, len),
        DType::I8 => (0..len).map(|_| random.below(256) as f32 - 128.0).collect(),
        _ => random.units(len),
    }
}

fn dot(a: &[f32], b: &[f32]) -> (f64, f64) {
    let products = || a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b));
    (products().sum(), products().map(f64::abs).sum())
}
