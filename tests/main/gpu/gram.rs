//! `gram` and `centre` against the CPU and against sums in f64.

use bytemuck::cast_slice;
use maxhull::DType;
use maxhull::device::wgpu::WgpuDevice;
use maxhull::device::{Device, DeviceError};
use maxhull::engine::CpuEngine;
use maxhull::half::{bf16, f16};
use maxhull::kernel::{Doc, ENCODINGS, Encoding, GramParams, Kernel, TILE, Tile, Variant, gram_stride};
use maxhull::plan::gram_tiles;
use maxhull::reference;

use super::devices;
use crate::common::Random;

const LENGTHS: [usize; 8] = [0, 1, 63, 0, 64, 65, 200, 2];

fn dtype(encoding: Encoding) -> DType {
    match encoding {
        Encoding::F32 => DType::F32,
        Encoding::F16 | Encoding::F16Packed => DType::F16,
        Encoding::Bf16 => DType::Bf16,
        Encoding::I8 => DType::I8,
    }
}

/// A component in bytes, and what it is worth after rounding to the encoding.
fn encode(encoding: Encoding, value: f32) -> (Vec<u8>, f32) {
    match encoding {
        Encoding::F32 => (value.to_le_bytes().to_vec(), value),
        Encoding::F16 | Encoding::F16Packed => {
            let x = f16::from_f32(value);
            (x.to_le_bytes().to_vec(), x.to_f32())
        }
        Encoding::Bf16 => {
            let x = bf16::from_f32(value);
            (x.to_le_bytes().to_vec(), x.to_f32())
        }
        Encoding::I8 => {
            let x = value as i8;
            (x.to_le_bytes().to_vec(), f32::from(x))
        }
    }
}

/// Documents of these lengths as a device holds them.
struct Batch {
    encoding: Encoding,
    dim: usize,
    num_chunks: usize,
    docs: Vec<Doc>,
    tiles: Vec<Tile>,
    /// Rows padded with zeros to whole chunks.
    tokens: Vec<u8>,
    /// The same tokens, `[n, dim]`.
    values: Vec<f32>,
    gram_len: usize,
}

impl Batch {
    fn new(encoding: Encoding, dim: usize, lengths: &[usize], mut value: impl FnMut() -> f32) -> Self {
        let num_chunks = dim.div_ceil(encoding.chunk_dim());
        let (mut docs, mut tiles) = (Vec::new(), Vec::new());
        let (mut first_token, mut gram_start) = (0, 0);
        for (&len, doc_idx) in lengths.iter().zip(0..) {
            let num_tokens = len as u32;
            docs.push(Doc { first_token, num_tokens, gram_start, doc_idx, ..Doc::default() });
            tiles.extend(gram_tiles(doc_idx, num_tokens));
            first_token += num_tokens;
            gram_start += num_tokens * gram_stride(num_tokens);
        }
        let (mut tokens, mut values) = (Vec::new(), Vec::new());
        for _ in 0..first_token {
            for _ in 0..dim {
                let (bytes, worth) = encode(encoding, value());
                tokens.extend(bytes);
                values.push(worth);
            }
            tokens.resize(tokens.len().next_multiple_of(16), 0);
        }
        Batch { encoding, dim, num_chunks, docs, tiles, tokens, values, gram_len: gram_start as usize }
    }

    fn values_of(&self, doc: &Doc) -> &[f32] {
        let first = doc.first_token as usize * self.dim;
        &self.values[first..first + doc.num_tokens as usize * self.dim]
    }

    fn variant(&self, kernel: Kernel) -> Variant {
        Variant { kernel, encoding: self.encoding, subgroups: false, cooperative: None, is_wide: false }
    }

    /// Matrices of all documents; entries that no kernel writes are NaN.
    fn gram(&self, device: &WgpuDevice, is_centred: bool) -> Result<Vec<f32>, DeviceError> {
        self.gram_as(device, self.variant(Kernel::Gram), is_centred)
    }

    fn gram_as(&self, device: &WgpuDevice, variant: Variant, is_centred: bool) -> Result<Vec<f32>, DeviceError> {
        let filled = |bytes: &[u8]| {
            let buffer = device.alloc(bytes.len().next_multiple_of(16).max(16) as u64)?;
            device.upload(&buffer, bytes)?;
            Ok(buffer)
        };
        let tokens = filled(&self.tokens)?;
        let docs = filled(cast_slice(&self.docs))?;
        let tiles = filled(cast_slice(&self.tiles))?;
        let gram = filled(cast_slice(&vec![f32::NAN; self.gram_len]))?;
        let row_len = self.num_chunks * self.encoding.chunk_dim();
        let centres = filled(cast_slice(&vec![f32::NAN; self.docs.len() * row_len]))?;
        let mut params = GramParams {
            num_items: self.docs.len() as u32,
            num_chunks: self.num_chunks as u32,
            is_centred: u32::from(is_centred),
            padding: 0,
        };
        if is_centred {
            let arguments = [&tokens, &docs, &centres];
            device.launch(self.variant(Kernel::Centre), &arguments, cast_slice(&[params]), self.docs.len() as u64)?;
        }
        params.num_items = self.tiles.len() as u32;
        let arguments = [&tokens, &docs, &tiles, &centres, &gram];
        device.launch(variant, &arguments, cast_slice(&[params]), self.tiles.len() as u64)?;
        let mut found = Vec::new();
        let download = device.download(&[(&gram, 4 * self.gram_len as u64)])?;
        device.read(download, &mut |parts| {
            found = parts[0].chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
        })?;
        Ok(found)
    }

    /// Calls back with every document, its values, and its entries, after a look at their symmetry.
    fn each_doc(&self, gram: &[f32], mut check: impl FnMut(&Doc, &[f32], &dyn Fn(usize, usize) -> f32)) {
        for doc in &self.docs {
            let (n, stride) = (doc.num_tokens as usize, gram_stride(doc.num_tokens) as usize);
            let entry = |i: usize, j: usize| gram[doc.gram_start as usize + i * stride + j];
            for i in 0..n {
                for j in 0..i {
                    assert_eq!(entry(i, j).to_bits(), entry(j, i).to_bits(), "{doc:?} ({i}, {j}) is not symmetric");
                }
            }
            check(doc, self.values_of(doc), &entry);
        }
    }
}

/// Runs on every device that can read the encoding.
fn on_each_device(encoding: Encoding, check: impl FnMut(&WgpuDevice)) {
    let can_read = |device: &&WgpuDevice| encoding != Encoding::F16 || device.limits().has_f16;
    devices().iter().filter(can_read).for_each(check);
}

/// Every sum of the lattice is exact, so every bit must agree.
fn assert_equals_the_cpu(batch: &Batch, gram: &[f32]) {
    batch.each_doc(gram, |doc, values, entry| {
        let mut expected = Vec::new();
        let stride = CpuEngine::new().gram(values, batch.dim, &mut expected).unwrap();
        let n = doc.num_tokens as usize;
        for (i, j) in (0..n * n).map(|at| (at / n, at % n)) {
            let (found, expected) = (entry(i, j), expected[i * stride + j]);
            assert_eq!(
                found.to_bits(),
                expected.to_bits(),
                "{:?} dim {} {doc:?} ({i}, {j}): {found} for {expected}",
                batch.encoding,
                batch.dim
            );
        }
    });
}

#[test]
fn gram_equals_the_cpu_on_the_lattice() {
    let mut random = Random(1);
    for encoding in ENCODINGS {
        for dim in [1, 7, 48, 96, 128, 384] {
            let batch = Batch::new(encoding, dim, &LENGTHS, || random.lattice(dtype(encoding), 1)[0]);
            on_each_device(encoding, |device| assert_equals_the_cpu(&batch, &batch.gram(device, false).unwrap()));
        }
    }
}

#[test]
fn gram_in_cooperative_matrices_equals_the_cpu_on_the_lattice() {
    let mut random = Random(6);
    let opened = [false, true].into_iter().flat_map(|checked| WgpuDevice::open_cooperative(None, checked));
    let has_matrices = |device: &WgpuDevice| device.limits().cooperative.is_some();
    let devices: Vec<WgpuDevice> = opened.filter(has_matrices).collect();
    if devices.is_empty() {
        eprintln!("nothing was run in cooperative matrices: no device has them");
    }
    for dim in [1, 7, 48, 96, 128, 384] {
        let batch = Batch::new(Encoding::F16, dim, &LENGTHS, || random.lattice(DType::F16, 1)[0]);
        for device in &devices {
            let variant = Variant { cooperative: device.limits().cooperative, ..batch.variant(Kernel::Gram) };
            assert_equals_the_cpu(&batch, &batch.gram_as(device, variant, false).unwrap());
        }
    }
}

/// `dim * 2^-24 * |x| |y|` bounds the rounding of a chain of `dim` multiply-adds, fused or not, from zero.
#[test]
fn gram_of_any_tokens_is_within_rounding() {
    let mut random = Random(2);
    for encoding in ENCODINGS {
        for dim in [7, 128] {
            let scale = if encoding == Encoding::I8 { 127.0 } else { 1.0 };
            let batch = Batch::new(encoding, dim, &[65, 130], || random.signed() * scale);
            on_each_device(encoding, |device| {
                let gram = batch.gram(device, false).unwrap();
                batch.each_doc(&gram, |doc, values, entry| {
                    let rows: Vec<Vec<f64>> =
                        values.chunks_exact(dim).map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect();
                    check_entries(doc, &rows, 1.001 * dim as f64, entry);
                });
            });
        }
    }
}

/// Entries against sums in f64, within `factor * 2^-24 * |x| |y|`.
fn check_entries(doc: &Doc, rows: &[Vec<f64>], factor: f64, entry: &dyn Fn(usize, usize) -> f32) {
    let norms: Vec<f64> = rows.iter().map(|x| reference::norm(x)).collect();
    for (i, x) in rows.iter().enumerate() {
        for (j, y) in rows.iter().enumerate() {
            let expected: f64 = x.iter().zip(y).map(|(a, b)| a * b).sum();
            let error = (f64::from(entry(i, j)) - expected).abs();
            let most = factor * 2f64.powi(-24) * norms[i] * norms[j];
            assert!(error <= most, "{doc:?} ({i}, {j}): {} for {expected}, off by {error:e}", entry(i, j));
        }
    }
}

/// A direction common to all tokens, much longer than what tells them apart, and gone.
#[test]
fn centred_gram_is_that_of_the_differences() {
    let mut random = Random(3);
    for encoding in ENCODINGS {
        for dim in [5, 48, 128] {
            let (offset, spread) = if encoding == Encoding::I8 { (90.0, 30.0) } else { (4.0, 0.25) };
            let batch = Batch::new(encoding, dim, &LENGTHS, || offset + spread * random.signed());
            on_each_device(encoding, |device| {
                let gram = batch.gram(device, true).unwrap();
                batch.each_doc(&gram, |doc, values, entry| {
                    let n = doc.num_tokens as usize;
                    let mut rows: Vec<Vec<f64>> =
                        values.chunks_exact(dim).map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect();
                    for k in 0..dim {
                        let mean = rows.iter().map(|row| row[k]).sum::<f64>() / n as f64;
                        rows.iter_mut().for_each(|row| row[k] -= mean);
                    }
                    // The centre is a sum of n values of size `offset`: it is off by n roundings of these, and every
                    // difference with it.
                    let norm = rows.iter().map(|x| reference::norm(x)).fold(0.0, f64::max);
                    let shift = 2f64.powi(-24) * (n + 2) as f64 * f64::from(offset + spread) * (dim as f64).sqrt();
                    let most = shift * (2.0 * norm + shift) + 1.001 * dim as f64 * 2f64.powi(-24) * norm * norm;
                    for (i, j) in (0..n * n).map(|at| (at / n, at % n)) {
                        let expected: f64 = rows[i].iter().zip(&rows[j]).map(|(a, b)| a * b).sum();
                        let error = (f64::from(entry(i, j)) - expected).abs();
                        assert!(error <= most, "{encoding:?} dim {dim} {doc:?} ({i}, {j}): {error:e} > {most:e}");
                    }
                });
            });
        }
    }
}

/// More workgroups than a dimension of the grid holds, so that the last row of the folded grid is partly idle.
#[test]
fn gram_of_many_documents_is_one_launch() {
    let mut random = Random(4);
    let mut lengths = vec![1; 65_700];
    lengths[0] = 66;
    lengths[65_699] = 67;
    let batch = Batch::new(Encoding::F32, 3, &lengths, || random.lattice(DType::F32, 1)[0]);
    if let Some(device) = devices().first() {
        let gram = batch.gram(device, false).unwrap();
        batch.each_doc(&gram, |doc, values, entry| {
            let n = doc.num_tokens as usize;
            for (i, j) in (0..n * n).map(|at| (at / n, at % n)) {
                let expected: f32 = (0..3).map(|k| values[3 * i + k] * values[3 * j + k]).sum();
                assert_eq!(entry(i, j), expected, "{doc:?} ({i}, {j})");
            }
        });
    }
}

/// Entries that belong to no document stay as they were: a matrix ends where the next begins.
#[test]
fn gram_writes_nothing_outside_its_documents() {
    let mut random = Random(5);
    for num_tokens in [1, 3, 64, 65, 66, 127, 130] {
        // The first and the last document have room in the buffer and no tiles.
        let mut batch = Batch::new(Encoding::F32, 9, &[17, num_tokens, 18], || random.signed());
        batch.tiles.retain(|tile| tile.doc == 1);
        let (first, last) = (batch.docs[1].gram_start as usize, batch.docs[2].gram_start as usize);
        on_each_device(Encoding::F32, |device| {
            let gram = batch.gram(device, false).unwrap();
            let outside = gram[..first].iter().chain(&gram[last..]);
            assert!(outside.into_iter().all(|entry| entry.is_nan()), "{num_tokens} tokens");
            assert!(gram[first..last].iter().all(|entry| entry.is_finite()), "{num_tokens} tokens");
        });
    }
}

#[test]
fn gram_without_documents_is_empty() {
    assert_eq!(gram_tiles(0, 0).count(), 0);
    assert_eq!(gram_tiles(0, TILE).count(), 1);
    assert_eq!(gram_tiles(0, TILE + 1).count(), 3);
}
