//! MaxSim through the scorer: the CPU's bits wherever sums are exact, and close elsewhere.

use std::sync::{Arc, Mutex};

use maxhull::device::cuda::CudaDevice;
use maxhull::engine::Notice;
use maxhull::{DType, Scorer, Scoring};

use super::{DTYPES, components, open};
use crate::common::{Random, encoder_like};
use crate::score::definition::Ragged;

const SCORINGS: [Scoring; 2] = [Scoring::Plain, Scoring::Clamped];

pub fn lattice(seed: u64, dtype: DType, lens: &[usize], dim: usize) -> Ragged {
    let len = lens.iter().sum::<usize>() * dim;
    Ragged::new(dtype, &components(&mut Random(seed), dtype, len, true), lens, dim)
}

/// A scorer of the CPU and one of the device, which must not hand anything back.
pub fn scorers(device: &Arc<CudaDevice>, scoring: Scoring) -> (Scorer, Scorer) {
    let cpu = || Scorer::new(scoring).with_empty_doc_score(-7.0);
    let refuse = Arc::new(|notice: &Notice| panic!("{notice:?}"));
    (cpu(), cpu().on(Arc::clone(device)).with_notices(refuse))
}

pub fn same_as_cpu(device: &Arc<CudaDevice>, what: &str, queries: &Ragged, docs: &Ragged) {
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
    }
}

#[test]
fn on_device_lattice_scores_are_the_cpus() {
    let Some(device) = open().map(Arc::new) else { return };
    let (queries, docs) = ([0, 1, 31, 32, 33], [0, 1, 7, 8, 9, 31, 32, 33, 0, 63, 64, 65, 127, 128, 129, 2]);
    for dtype in DTYPES {
        same_as_cpu(&device, &format!("{dtype}"), &lattice(1, dtype, &queries, 48), &lattice(2, dtype, &docs, 48));
        for dim in [1, 7, 96, 128, 384] {
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
