//! The wide `maxsim`: what its kernels give, item for item, and that the scorer takes them where it should.

use std::sync::Arc;

use maxhull::device::Device;
use maxhull::device::cuda::CudaDevice;
use maxhull::kernel::{Kernel, MaxsimItem, MaxsimParams, Variant};
use maxhull::{DType, Scoring};

use super::maxsim::{lattice, same_as_cpu, scorers};
use super::{Packed, components, dot, fetched, filled, open, packed, variant};
use crate::common::Random;
use crate::score::definition::Ragged;

const DTYPES: [DType; 3] = [DType::F16, DType::Bf16, DType::I8];

/// A device that has the kernel.
fn open_wide() -> Option<CudaDevice> {
    open().filter(|device| device.limits().wide_query_tokens.is_some())
}

fn wide(dtype: DType) -> Variant {
    Variant { is_wide: true, ..variant(Kernel::Maxsim, dtype) }
}

/// What a launch is about.
#[derive(Debug, Clone)]
struct Input {
    dtype: DType,
    dim: usize,
    /// Query tokens and tokens of each item; items in a row with as many query tokens share these.
    items: Vec<(usize, usize)>,
    num_shares: usize,
    is_lattice: bool,
    has_scales: bool,
    has_matches: bool,
}

impl Input {
    fn new(dtype: DType, dim: usize, items: &[(usize, usize)]) -> Self {
        let items = items.to_vec();
        Input { dtype, dim, items, num_shares: 1, is_lattice: true, has_scales: false, has_matches: false }
    }

    fn tokens(&self, random: &mut Random, num_tokens: usize) -> Packed {
        packed(self.dtype, &components(random, self.dtype, num_tokens * self.dim, self.is_lattice), self.dim)
    }

    /// Runs the kernel, and compares with plain loops.
    fn check(&self, device: &CudaDevice) {
        let mut random = Random(self.dim as u64);
        let (mut items, mut first_tokens) = (Vec::<MaxsimItem>::new(), 0);
        let (mut num_query_tokens, mut num_maxima) = (0, 0);
        for &(of_query, num_tokens) in &self.items {
            if items.last().is_none_or(|last| last.num_query_tokens as usize != of_query) {
                num_query_tokens += of_query;
            }
            items.push(MaxsimItem {
                first_query_token: (num_query_tokens - of_query) as u32,
                num_query_tokens: of_query as u32,
                first_token: first_tokens,
                num_tokens: num_tokens as u32,
                first_maximum: num_maxima as u32,
                first_match: 5,
                padding: [0; 2],
            });
            first_tokens += num_tokens as u32;
            num_maxima += of_query;
        }
        let queries = self.tokens(&mut random, num_query_tokens);
        let docs = self.tokens(&mut random, first_tokens as usize);
        let mut scales =
            |len: usize| -> Vec<f32> { (0..len).map(|_| [0.25, 0.5, 1.0, 2.0][random.below(4)]).collect() };
        let (query_scales, token_scales) = (scales(num_query_tokens), scales(first_tokens as usize));
        let shares: Vec<u32> = (0..=self.num_shares).map(|b| (b * items.len() / self.num_shares) as u32).collect();
        let params = MaxsimParams {
            num_items: self.num_shares as u32,
            num_chunks: docs.num_chunks as u32,
            has_matches: u32::from(self.has_matches),
            has_query_scales: u32::from(self.has_scales),
            has_token_scales: u32::from(self.has_scales),
            ..MaxsimParams::default()
        };
        let (maxima, matches) =
            (filled(device, &vec![f32::NAN; num_maxima]), filled(device, &vec![u32::MAX; num_maxima]));
        let arguments = [
            &filled(device, &queries.values),
            &filled(device, &docs.bytes),
            &filled(device, &query_scales),
            &filled(device, &token_scales),
            &filled(device, &items),
            &filled(device, &shares),
            &maxima,
            &matches,
        ];
        device.launch(wide(self.dtype), &arguments, bytemuck::bytes_of(&params), self.num_shares as u64).unwrap();
        let (maxima, matches): (Vec<f32>, Vec<u32>) =
            (fetched(device, &maxima, num_maxima), fetched(device, &matches, num_maxima));
        let row =
            |packed: &'_ Packed, at: u32| packed.values[at as usize * packed.row_len..][..packed.row_len].to_vec();
        for item in items {
            for i in 0..item.num_query_tokens {
                let query_token = item.first_query_token + i;
                let scale =
                    |scales: &[f32], at: u32| if self.has_scales { f64::from(scales[at as usize]) } else { 1.0 };
                let query = row(&queries, query_token);
                let mut best = (f64::NEG_INFINITY, 0);
                let mut magnitude = 0f64;
                for j in 0..item.num_tokens {
                    let token = item.first_token + j;
                    let (value, sum) = dot(&query, &row(&docs, token));
                    let scale = scale(&token_scales, token);
                    magnitude = magnitude.max(sum * scale);
                    if value * scale > best.0 {
                        best = (value * scale, item.first_match + j);
                    }
                }
                let expected = best.0 * scale(&query_scales, query_token);
                let place = (item.first_maximum + i) as usize;
                let bound = if self.is_lattice { 0.0 } else { magnitude * 2.0 * 2f64.powi(-19) };
                let found = f64::from(maxima[place]);
                assert!((found - expected).abs() <= bound, "{self:?}: {i} of {item:?}: {found}, not {expected}");
                if self.has_matches && self.is_lattice {
                    assert_eq!(matches[place], best.1, "{self:?}: {i} of {item:?}");
                }
            }
        }
    }
}

#[test]
fn on_device_every_number_of_tokens_is_right() {
    let Some(device) = open_wide() else { return };
    for dtype in DTYPES {
        let query_tokens = [1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256].map(|len| (len, 66));
        Input::new(dtype, 16, &query_tokens).check(&device);
        let tokens = [1, 7, 8, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1023, 1024].map(|len| (40, len));
        Input::new(dtype, 16, &tokens).check(&device);
        let both = [(256, 3), (256, 200), (100, 64), (200, 1), (200, 65), (256, 64), (3, 130)];
        Input { has_matches: true, ..Input::new(dtype, 16, &both) }.check(&device);
    }
}

#[test]
fn on_device_every_dim_is_right() {
    let Some(device) = open_wide() else { return };
    for dtype in DTYPES {
        for dim in [1, 7, 48, 63, 64, 65, 96, 128] {
            Input::new(dtype, dim, &[(130, 70), (5, 3)]).check(&device);
        }
    }
    for dim in [129, 200, 256] {
        Input::new(DType::I8, dim, &[(130, 70), (5, 3)]).check(&device);
    }
}

#[test]
fn on_device_shares_scales_and_matches_are_right() {
    let Some(device) = open_wide() else { return };
    let items = [(70, 65), (70, 129), (20, 300), (256, 17), (256, 130), (1, 1), (140, 64)];
    for dtype in DTYPES {
        for num_shares in [1, 3, 7] {
            for (has_scales, has_matches) in [(false, false), (true, false), (false, true), (true, true)] {
                let input = Input::new(dtype, 24, &items);
                Input { num_shares, has_scales, has_matches, ..input }.check(&device);
            }
        }
        // A share of nothing.
        Input { num_shares: 5, ..Input::new(dtype, 24, &[(70, 65), (70, 129)]) }.check(&device);
    }
}

#[test]
fn on_device_products_round_within_their_bound() {
    let Some(device) = open_wide() else { return };
    for dtype in DTYPES {
        Input { is_lattice: false, ..Input::new(dtype, 128, &[(256, 150), (33, 70)]) }.check(&device);
    }
}

#[test]
fn on_device_the_scorer_is_the_cpus() {
    let Some(device) = open_wide().map(Arc::new) else { return };
    for dtype in DTYPES {
        // Short and long queries together; a query alone; documents in parts.
        let (queries, docs) =
            (lattice(1, dtype, &[0, 1, 31, 32, 33, 70, 300], 48), lattice(2, dtype, &[0, 1, 63, 64, 65, 0, 130], 48));
        same_as_cpu(&device, "wide", &queries, &docs);
        same_as_cpu(&device, "wide, long", &lattice(3, dtype, &[64], 16), &lattice(4, dtype, &[3, 1025, 2049], 16));
    }
    // f32 queries that the documents' type has, and tokens that are too long.
    same_as_cpu(&device, "f32", &lattice(5, DType::F32, &[70, 3], 20), &lattice(6, DType::F16, &[65, 7], 20));
    same_as_cpu(&device, "dim 136", &lattice(5, DType::F16, &[70], 136), &lattice(6, DType::F16, &[65], 136));
}

#[test]
fn on_device_queries_between_the_documents_numbers_are_not_rounded() {
    let Some(device) = open_wide().map(Arc::new) else { return };
    let (num_query, dim) = (70, 20);
    let queries = Ragged::new(DType::F32, &Random(5).units(num_query * dim), &[num_query], dim);
    let docs = lattice(6, DType::F16, &[65, 7], dim);
    for scoring in [Scoring::Plain, Scoring::Clamped] {
        let (cpu, cuda) = scorers(&device, scoring);
        let expected = cpu.scores(queries.tokens(), docs.tokens()).unwrap();
        let found = cuda.scores(queries.tokens(), docs.tokens()).unwrap();
        for (a, b) in expected.iter().zip(&found) {
            // Rounded queries would be off by a hundred times as much.
            assert!((a - b).abs() <= (num_query * dim) as f32 * 2f32.powi(-22), "{a} and {b}");
        }
    }
}

#[test]
fn on_device_hopper_has_its_own() {
    let Some(device) = open_wide() else { return };
    let is_hopper = device.name().contains("compute capability 9.0");
    let is_wrong = std::env::var_os("SHIM_WGMMA_LIES").is_some();
    for dtype in DTYPES {
        let expected = if is_hopper && !is_wrong { "sm_90a" } else { "sm_80" };
        assert_eq!(device.architecture(wide(dtype)).unwrap(), expected);
        assert_eq!(device.limits().wide_query_tokens, Some(64));
    }
}
