//! MaxSim through the scorer: the CPU's bits wherever sums are exact, and close elsewhere.

use std::sync::{Arc, Mutex};

use maxhull::device::cuda::{Buffer, CudaDevice, Download};
use maxhull::device::{Device, DeviceError, Limits};
use maxhull::engine::Notice;
use maxhull::kernel::{CLAMPED, Kernel, MaxsimItem, MaxsimPair, MaxsimParams, PLAIN, Variant};
use maxhull::{DType, Scorer, Scoring};

use super::{DTYPES, Packed, components, dot, fetched, filled, open, packed, variant};
use crate::common::{Random, encoder_like};
use crate::score::definition::Ragged;

const SCORINGS: [Scoring; 2] = [Scoring::Plain, Scoring::Clamped];

pub fn lattice(seed: u64, dtype: DType, lens: &[usize], dim: usize) -> Ragged {
    let len = lens.iter().sum::<usize>() * dim;
    Ragged::new(dtype, &components(&mut Random(seed), dtype, len, true), lens, dim)
}

/// A scorer of the CPU and one of the device, which must not hand anything back.
pub fn scorers<D: Device>(device: &Arc<D>, scoring: Scoring) -> (Scorer, Scorer) {
    let cpu = || Scorer::new(scoring).with_empty_doc_score(-7.0);
    let refuse = Arc::new(|notice: &Notice| panic!("{notice:?}"));
    (cpu(), cpu().on(Arc::clone(device)).with_notices(refuse))
}

pub fn same_as_cpu<D: Device>(device: &Arc<D>, what: &str, queries: &Ragged, docs: &Ragged) {
    let (num_queries, num_docs) = (queries.batch().num_docs(), docs.batch().num_docs());
    let mut random = Random(7);
    let pairs: Vec<(u32, u32)> =
        (0..num_docs).map(|_| (random.below(num_queries) as u32, random.below(num_docs) as u32)).collect();
    for scoring in SCORINGS {
        let (cpu, cuda) = scorers(device, scoring);
        let expected = cpu.scores(queries.tokens(), docs.tokens()).unwrap();
        assert_eq!(cuda.scores(queries.tokens(), docs.tokens()).unwrap(), expected, "{what} {scoring}");
        let expected = cpu.pair_matches(queries.tokens(), docs.tokens(), &pairs).unwrap();
        let found = cuda.pair_matches(queries.tokens(), docs.tokens(), &pairs).unwrap();
        assert_eq!(found, expected, "{what} {scoring}");
        let expected: Vec<f32> = expected.iter().map(|pair| pair.score).collect();
        assert_eq!(cuda.pair_scores(queries.tokens(), docs.tokens(), &pairs).unwrap(), expected, "{what} {scoring}");
    }
}

/// The device as if it ran another number of workgroups at once.
struct Sized {
    inner: CudaDevice,
    resident: Option<u32>,
}

impl Device for Sized {
    type Buffer = Buffer;
    type Download = Download;

    fn name(&self) -> String {
        self.inner.name()
    }

    fn limits(&self) -> &Limits {
        self.inner.limits()
    }

    fn alloc(&self, size_bytes: u64) -> Result<Buffer, DeviceError> {
        self.inner.alloc(size_bytes)
    }

    fn upload(&self, to: &Buffer, bytes: &[u8]) -> Result<(), DeviceError> {
        self.inner.upload(to, bytes)
    }

    fn launch(&self, variant: Variant, arguments: &[&Buffer], params: &[u8], num: u64) -> Result<(), DeviceError> {
        self.inner.launch(variant, arguments, params, num)
    }

    fn resident_workgroups(&self, _variant: Variant) -> Result<Option<u32>, DeviceError> {
        Ok(self.resident)
    }

    fn download(&self, from: &[(&Buffer, u64)]) -> Result<Download, DeviceError> {
        self.inner.download(from)
    }

    fn is_ready(&self, download: &Download) -> bool {
        self.inner.is_ready(download)
    }

    fn read(&self, download: Download, each: &mut dyn FnMut(&[&[u8]])) -> Result<(), DeviceError> {
        self.inner.read(download, each)
    }
}

#[test]
fn on_device_any_number_of_workgroups_gives_the_same_bits() {
    let mut lens: Vec<usize> = (0..50).map(|i| i * 37 % 70).collect();
    lens[17] = 20_000;
    let (queries, docs) = (lattice(30, DType::F16, &[4, 33], 8), lattice(31, DType::F16, &lens, 8));
    for resident in [Some(1), Some(5), Some(400), None] {
        let Some(inner) = open() else { return };
        same_as_cpu(&Arc::new(Sized { inner, resident }), &format!("{resident:?}"), &queries, &docs);
    }
}

/// One query of up to 32 tokens and documents of up to 1024, an item each.
struct Case {
    dtype: DType,
    query: Vec<f32>,
    docs: Packed,
    lens: Vec<usize>,
    scoring: u32,
}

impl Case {
    fn new(seed: u64, dtype: DType, num_query: usize, lens: &[usize], dim: usize) -> Self {
        let mut random = Random(seed);
        let num_tokens = lens.iter().sum::<usize>();
        let docs = packed(dtype, &components(&mut random, dtype, num_tokens * dim, false), dim);
        let mut query = packed(dtype, &components(&mut random, dtype, num_query * dim, false), dim).values;
        if dtype != DType::F32 && seed % 2 == 1 {
            // No longer numbers of the type.
            query.iter_mut().for_each(|value| *value *= 1.0 + 3e-5);
        }
        Case { dtype, query, docs, lens: lens.to_vec(), scoring: if seed.is_multiple_of(3) { CLAMPED } else { PLAIN } }
    }

    fn num_query(&self) -> usize {
        self.query.len() / self.docs.row_len
    }

    /// The scores with these shares, in one launch or two.
    fn scores(&self, device: &CudaDevice, shares: &[u32], is_summed: bool) -> Vec<f32> {
        let num_query = self.num_query() as u32;
        let (mut items, mut pairs, mut first_token) = (Vec::new(), Vec::new(), 0);
        for (doc_idx, &len) in (0..).zip(&self.lens) {
            items.push(MaxsimItem {
                num_query_tokens: num_query,
                first_token,
                num_tokens: len as u32,
                first_maximum: if is_summed { doc_idx } else { doc_idx * num_query },
                ..MaxsimItem::default()
            });
            let first_maximum = doc_idx * num_query;
            pairs.push(MaxsimPair { first_maximum, chunk_stride: 0, num_chunks: 1, num_query_tokens: num_query });
            first_token += len as u32;
        }
        let params = |num_items: usize| MaxsimParams {
            num_items: num_items as u32,
            num_chunks: self.docs.num_chunks as u32,
            scoring: self.scoring,
            is_summed: u32::from(is_summed),
            ..MaxsimParams::default()
        };
        let (query, tokens, none) =
            (filled(device, &self.query), filled(device, &self.docs.bytes), filled(device, &[0u32]));
        let (items, shares_buffer) = (filled(device, &items), filled(device, shares));
        let maxima = filled(device, &vec![f32::NAN; self.lens.len() * self.num_query()]);
        let num_shares = shares.len() - 1;
        let arguments = [&query, &tokens, &none, &none, &items, &shares_buffer, &maxima, &none];
        let maxsim = variant(Kernel::Maxsim, self.dtype);
        device.launch(maxsim, &arguments, bytemuck::bytes_of(&params(num_shares)), num_shares as u64).unwrap();
        if is_summed {
            return fetched(device, &maxima, self.lens.len());
        }
        let (pairs, scores) = (filled(device, &pairs), filled(device, &vec![f32::NAN; self.lens.len()]));
        let sum = variant(Kernel::MaxsimSum, self.dtype);
        let params = params(self.lens.len());
        device.launch(sum, &[&maxima, &pairs, &scores], bytemuck::bytes_of(&params), self.lens.len() as u64).unwrap();
        fetched(device, &scores, self.lens.len())
    }

    /// By the definition, and what rounding explains.
    fn expected(&self, doc_idx: usize) -> (f64, f64) {
        let row_len = self.docs.row_len;
        let first = self.lens[..doc_idx].iter().sum::<usize>() * row_len;
        let tokens = || self.docs.values[first..first + self.lens[doc_idx] * row_len].chunks(row_len);
        let of_token = |row: &[f32]| {
            let (best, size) = tokens()
                .map(|token| dot(row, token))
                .fold((f64::MIN, 0.0), |all: (f64, f64), found| (all.0.max(found.0), all.1.max(found.1)));
            (if self.scoring == CLAMPED { best.max(0.0) } else { best }, size)
        };
        let (score, size) = self
            .query
            .chunks(row_len)
            .map(of_token)
            .fold((0.0, 0.0), |all: (f64, f64), found| (all.0 + found.0, all.1 + found.1));
        (score, size * (row_len + self.num_query()) as f64 * 2f64.powi(-23))
    }
}

/// A launch, in bits.
fn bits(scores: &[f32]) -> Vec<u32> {
    scores.iter().map(|score| score.to_bits()).collect()
}

#[test]
fn on_device_shares_and_sums_change_no_bit() {
    let Some(device) = open() else { return };
    let lens = [1, 31, 32, 33, 300, 64, 129, 2, 96, 1024, 1, 1, 40, 128];
    let num_docs = lens.len() as u32;
    let all_shares: [&[u32]; 4] = [
        &[0, num_docs],
        // Some have nothing, first, last and in between.
        &[0, 0, 3, 3, 3, 9, 10, num_docs, num_docs],
        &[0, 1, 5, num_docs],
        &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 14, 14],
    ];
    for (seed, dtype) in (0..6).flat_map(|seed| DTYPES.map(|dtype| (seed, dtype))) {
        let (num_query, dim) = ([32, 5, 17, 1, 32, 31][seed as usize], [128, 40, 72, 200, 64, 16][seed as usize]);
        let case = Case::new(seed, dtype, num_query, &lens, dim);
        let each: Vec<u32> = (0..=num_docs).collect();
        let expected = case.scores(&device, &each, false);
        for (doc_idx, &found) in expected.iter().enumerate() {
            let (score, rounding) = case.expected(doc_idx);
            assert!((f64::from(found) - score).abs() <= rounding, "{seed} {dtype} {doc_idx}: {found} and {score}");
        }
        for shares in all_shares {
            for is_summed in [false, true] {
                let found = case.scores(&device, shares, is_summed);
                assert_eq!(bits(&found), bits(&expected), "{seed} {dtype} {shares:?} {is_summed}");
            }
        }
    }
}

#[test]
fn on_device_f32_queries_of_any_size_keep_their_precision() {
    let Some(device) = open() else { return };
    for dtype in [DType::F16, DType::Bf16] {
        for exponent in [-60, -20, -14, 0, 14, 20] {
            let mut case = Case::new(1, dtype, 9, &[40, 7], 96);
            case.query.iter_mut().for_each(|value| *value *= 2f32.powi(exponent));
            for (doc_idx, &found) in case.scores(&device, &[0, 2], true).iter().enumerate() {
                let (score, rounding) = case.expected(doc_idx);
                assert!((f64::from(found) - score).abs() <= rounding, "{dtype} {exponent}: {found} and {score}");
            }
        }
    }
}

#[test]
fn on_device_f32_queries_in_parts_are_exact() {
    let Some(device) = open().map(Arc::new) else { return };
    for dtype in [DType::F16, DType::Bf16] {
        for (dim, num_query) in [(48, 33), (128, 3), (200, 2), (512, 2)] {
            let mut random = Random(40);
            // No 16-bit type has these, and every sum is exact.
            let values: Vec<f32> = (0..num_query * dim)
                .map(|_| (random.below(3) as f32 - 1.0) + (random.below(17) as f32 - 8.0) * 2f32.powi(-12))
                .collect();
            let queries = Ragged::new(DType::F32, &values, &[num_query], dim);
            same_as_cpu(&device, &format!("{dtype} {dim}"), &queries, &lattice(41, dtype, &[70, 1, 33, 200], dim));
        }
    }
}

#[test]
fn on_device_lattice_scores_are_the_cpus() {
    let Some(device) = open().map(Arc::new) else { return };
    let (queries, docs) = ([0, 1, 31, 32, 33], [0, 1, 7, 8, 9, 31, 32, 33, 0, 63, 64, 65, 127, 128, 129, 2]);
    for dtype in DTYPES {
        same_as_cpu(&device, &format!("{dtype}"), &lattice(1, dtype, &queries, 48), &lattice(2, dtype, &docs, 48));
        for dim in [1, 7, 64, 96, 128, 384, 512] {
            let (queries, docs) = (lattice(5, dtype, &[5, 32], dim), lattice(6, dtype, &[7, 40, 1], dim));
            same_as_cpu(&device, &format!("{dtype} {dim}"), &queries, &docs);
        }
    }
}

#[test]
fn on_device_long_documents_and_rows_are_the_cpus() {
    let Some(device) = open().map(Arc::new) else { return };
    for dtype in [DType::F16, DType::F32] {
        let (queries, docs) =
            (lattice(3, dtype, &[64, 1, 65], 16), lattice(4, dtype, &[3, 1023, 1024, 1025, 2049], 16));
        same_as_cpu(&device, "long", &queries, &docs);
    }
    // Rows that shared memory does not hold.
    same_as_cpu(&device, "dim 520", &lattice(3, DType::F16, &[3], 520), &lattice(4, DType::F16, &[40], 520));
}

#[test]
fn on_device_mixed_types_meet_in_f32() {
    let Some(device) = open().map(Arc::new) else { return };
    for query_type in DTYPES {
        for doc_type in DTYPES {
            let (queries, docs) = (lattice(8, query_type, &[3, 9], 20), lattice(9, doc_type, &[7, 33], 20));
            same_as_cpu(&device, &format!("{query_type} {doc_type}"), &queries, &docs);
        }
    }
}

#[test]
fn on_device_scales_count_before_the_maximum() {
    let Some(device) = open().map(Arc::new) else { return };
    let scales = |seed, num_tokens: usize| {
        let mut random = Random(seed);
        Some((0..num_tokens).map(|_| [0.25, 0.5, 1.0, 2.0][random.below(4)]).collect())
    };
    let (mut queries, mut docs) = (lattice(10, DType::I8, &[3, 33], 24), lattice(11, DType::I8, &[7, 1100, 2], 24));
    docs.scales = scales(12, 1109);
    same_as_cpu(&device, "scaled documents", &queries, &docs);
    queries.scales = scales(13, 36);
    same_as_cpu(&device, "scaled queries and documents", &queries, &docs);
}

#[test]
fn on_device_scores_round_within_their_bound() {
    let Some(device) = open().map(Arc::new) else { return };
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        // f32 queries that no 16-bit type has, too.
        for query_type in [dtype, DType::F32] {
            let (num_query, dim) = (40, 128);
            let queries = Ragged::new(query_type, &encoder_like(&mut Random(20), num_query, dim), &[num_query], dim);
            let docs = Ragged::new(dtype, &encoder_like(&mut Random(21), 500, dim), &[200, 300], dim);
            for scoring in SCORINGS {
                let (cpu, cuda) = scorers(&device, scoring);
                let expected = cpu.scores(queries.tokens(), docs.tokens()).unwrap();
                let found = cuda.scores(queries.tokens(), docs.tokens()).unwrap();
                for (a, b) in expected.iter().zip(&found) {
                    let bound = (num_query * dim) as f32 * 2f32.powi(-22);
                    assert!((a - b).abs() <= bound, "{query_type} {dtype} {scoring}: {a} and {b}");
                }
                assert_eq!(found, cuda.scores(queries.tokens(), docs.tokens()).unwrap(), "the same from call to call");
                let pairs = [(0, 0), (0, 1)];
                let matches = cuda.pair_matches(queries.tokens(), docs.tokens(), &pairs).unwrap();
                assert_eq!(matches.iter().map(|pair| pair.score).collect::<Vec<_>>(), found, "with matches");
            }
        }
    }
}

#[test]
fn on_device_a_lost_device_is_announced() {
    let Some(device) = open().map(Arc::new) else { return };
    let (queries, docs) = (lattice(1, DType::F16, &[3], 16), lattice(2, DType::F16, &[9, 4], 16));
    let expected = Scorer::new(Scoring::Plain).scores(queries.tokens(), docs.tokens()).unwrap();
    let notices = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&notices);
    let notify = Arc::new(move |notice: &Notice| heard.lock().unwrap().push(notice.clone()));
    device.lose();
    let cuda = Scorer::new(Scoring::Plain).on(device).with_notices(notify);
    assert_eq!(cuda.scores(queries.tokens(), docs.tokens()).unwrap(), expected);
    assert!(!notices.lock().unwrap().is_empty());
}
