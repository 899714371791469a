//! `centre` and `gram` against plain loops: every tail of a tile, every encoding.

use maxhull::DType;
use maxhull::device::Device;
use maxhull::device::cuda::CudaDevice;
use maxhull::kernel::{Doc, GramParams, Kernel, TILE, Tile, gram_stride};

use super::{DTYPES, Packed, components, dot, fetched, filled, open, packed, variant};
use crate::common::Random;

/// Empty documents, and lengths around a tile; tokens of nobody before and between.
const LENGTHS: [usize; 6] = [1, 0, 64, 63, 200, 65];

struct Batch {
    docs: Vec<Doc>,
    tiles: Vec<Tile>,
    num_tokens: usize,
    num_entries: usize,
}

fn batch(lengths: &[usize]) -> Batch {
    let mut batch = Batch { docs: Vec::new(), tiles: Vec::new(), num_tokens: 3, num_entries: 0 };
    for (doc, &n) in (0..).zip(lengths) {
        let stride = gram_stride(n as u32);
        batch.docs.push(Doc {
            first_token: batch.num_tokens as u32,
            num_tokens: n as u32,
            gram_start: batch.num_entries as u32,
            doc_idx: doc,
            ..Doc::default()
        });
        batch.num_tokens += n + 2;
        batch.num_entries += n * stride as usize;
        let num_tiles = (n as u32).div_ceil(TILE);
        let tiles = (0..num_tiles).flat_map(|row| (row..num_tiles).map(move |column| (row, column)));
        batch.tiles.extend(tiles.map(|(row_tile, column_tile)| Tile { doc, row_tile, column_tile, padding: 0 }));
    }
    batch
}

/// Centres and Gram matrices.
fn run(device: &CudaDevice, dtype: DType, batch: &Batch, tokens: &Packed, is_centred: bool) -> (Vec<f32>, Vec<f32>) {
    let num_centres = batch.docs.len() * tokens.row_len;
    let (data, docs, tiles) =
        (filled(device, &tokens.bytes), filled(device, &batch.docs), filled(device, &batch.tiles));
    let centres = device.alloc(num_centres as u64 * 4).unwrap();
    let matrix = device.alloc(batch.num_entries as u64 * 4).unwrap();
    let mut params = GramParams {
        num_items: batch.docs.len() as u32,
        num_chunks: tokens.num_chunks as u32,
        is_centred: u32::from(is_centred),
        padding: 0,
    };
    let block = bytemuck::bytes_of(&params);
    device.launch(variant(Kernel::Centre, dtype), &[&data, &docs, &centres], block, batch.docs.len() as u64).unwrap();
    params.num_items = batch.tiles.len() as u32;
    let block = bytemuck::bytes_of(&params);
    let arguments = [&data, &docs, &tiles, &centres, &matrix];
    device.launch(variant(Kernel::Gram, dtype), &arguments, block, batch.tiles.len() as u64).unwrap();
    (fetched(device, &centres, num_centres), fetched(device, &matrix, batch.num_entries))
}

fn check(device: &CudaDevice, dtype: DType, dim: usize, is_lattice: bool, is_centred: bool) {
    let mut random = Random(dim as u64 * 4 + u64::from(is_lattice) * 2 + u64::from(is_centred));
    let batch = batch(&LENGTHS);
    let tokens = packed(dtype, &components(&mut random, dtype, batch.num_tokens * dim, is_lattice), dim);
    let (centres, matrix) = run(device, dtype, &batch, &tokens, is_centred);
    let what = |doc: &Doc| {
        format!("{dtype:?}, dim {dim}, {} tokens, lattice {is_lattice}, centred {is_centred}", doc.num_tokens)
    };
    for doc in &batch.docs {
        let n = doc.num_tokens as usize;
        let row = |i: usize| &tokens.values[(doc.first_token as usize + i) * tokens.row_len..][..tokens.row_len];
        let centre = &centres[doc.doc_idx as usize * tokens.row_len..][..tokens.row_len];
        for (k, &mean) in centre.iter().enumerate() {
            let sum: f64 = (0..n).map(|i| f64::from(row(i)[k])).sum();
            let magnitude: f64 = (0..n).map(|i| f64::from(row(i)[k].abs())).sum();
            let exact = sum / n.max(1) as f64;
            let tolerance = magnitude / n.max(1) as f64 * 2f64.powi(-23) * (n as f64 + 2.0);
            assert!((f64::from(mean) - exact).abs() <= tolerance, "{}: centre {k}: {mean}, not {exact}", what(doc));
        }
        let moved: Vec<Vec<f32>> = (0..n)
            .map(|i| if is_centred { row(i).iter().zip(centre).map(|(x, c)| x - c).collect() } else { row(i).to_vec() })
            .collect();
        let stride = gram_stride(doc.num_tokens) as usize;
        for i in 0..n {
            for j in 0..n {
                let entry = matrix[doc.gram_start as usize + i * stride + j];
                let mirrored = matrix[doc.gram_start as usize + j * stride + i];
                assert_eq!(entry.to_bits(), mirrored.to_bits(), "{}: ({i}, {j}) and its mirror image", what(doc));
                let (exact, magnitude) = dot(&moved[i], &moved[j]);
                // Each step of the tensor cores may be off by a unit in the last place of the largest sum.
                let tolerance = match dtype {
                    _ if is_lattice && !is_centred => 0.0,
                    DType::I8 if !is_centred => magnitude * 2f64.powi(-24),
                    _ => magnitude * 2f64.powi(-23) * (tokens.row_len as f64 / 4.0 + 2.0),
                };
                let off = (f64::from(entry) - exact).abs();
                assert!(off <= tolerance, "{}: ({i}, {j}): {entry}, not {exact}", what(doc));
            }
        }
    }
}

#[test]
fn on_device_gram_is_exact_on_a_lattice() {
    let Some(device) = open() else { return };
    for dtype in DTYPES {
        for dim in [1, 7, 48, 96, 128, 384] {
            check(&device, dtype, dim, true, false);
        }
    }
}

#[test]
fn on_device_gram_rounds_within_its_bound() {
    let Some(device) = open() else { return };
    for dtype in DTYPES {
        for dim in [7, 128, 200] {
            check(&device, dtype, dim, false, false);
            check(&device, dtype, dim, false, true);
        }
        check(&device, dtype, 96, true, true);
    }
}

#[test]
fn on_device_centre_takes_rows_longer_than_a_block() {
    let Some(device) = open() else { return };
    // 150 chunks a row.
    check(&device, DType::F32, 600, true, false);
}
