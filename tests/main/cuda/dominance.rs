//! `dominance` by itself, before the engine mends what it leaves open: what it claims holds in f64, and it claims nearly
//! everything.

use maxhull::engine::{CpuEngine, Decision, Engine};
use maxhull::kernel::{CLAMPED, DOMINANCE_THREADS, Doc, Entry, FACE_CAP, Kernel, PLAIN, SelectionParams};
use maxhull::kernel::{TOKEN_NEEDED, TOKEN_SOLVED, TokenState, gram_stride};
use maxhull::{DType, Scoring, TokenBatch, TokenData};

use super::{dot, fetched, filled, open, variant};
use crate::common::{Random, encoder_like, offsets};

const EPSILON: f32 = 0.3;
const ROUNDING: f32 = 2e-6;

/// Squared distance of a token to its claimed projection.
fn residual(rows: &[&[f32]], i: usize, face: &[(usize, f32)]) -> f64 {
    let component = |k: usize| {
        let projection: f64 = face.iter().map(|&(j, weight)| f64::from(weight) * f64::from(rows[j][k])).sum();
        f64::from(rows[i][k]) - projection
    };
    (0..rows[i].len()).map(|k| component(k).powi(2)).sum()
}

#[test]
fn on_device_dominance_claims_what_holds() {
    let Some(device) = open() else { return };
    let (lengths, dim) = ([90usize, 1, 64, 130, 2], 32);
    let num_tokens: usize = lengths.iter().sum();
    let values = encoder_like(&mut Random(41), num_tokens, dim);
    let offsets = offsets(0, &lengths);
    let batch = TokenBatch::new(TokenData::F32(&values), &offsets, dim).unwrap();
    let rows: Vec<&[f32]> = values.chunks(dim).collect();
    let (mut docs, mut items, mut gram) = (Vec::new(), Vec::new(), Vec::new());
    for (doc_idx, &n) in (0u32..).zip(&lengths) {
        let first = offsets[doc_idx as usize] as usize;
        let (first_token, num_tokens, gram_start) = (first as u32, n as u32, gram.len() as u32);
        docs.push(Doc { first_token, num_tokens, gram_start, num_first: 1, doc_idx, ..Doc::default() });
        items.extend((0..n as u32).step_by(DOMINANCE_THREADS as usize).map(|token| [doc_idx, token]));
        for i in 0..n {
            let row = (0..gram_stride(n as u32) as usize)
                .map(|j| if j < n { dot(rows[first + i], rows[first + j]).0 as f32 } else { f32::NAN });
            gram.extend(row);
        }
    }
    for scoring in [Scoring::Plain, Scoring::Clamped] {
        let params = SelectionParams {
            num_items: items.len() as u32,
            scoring: if scoring == Scoring::Plain { PLAIN } else { CLAMPED },
            inside: EPSILON * EPSILON,
            stop: -1.0,
            rounding: ROUNDING,
            margin: ROUNDING,
            ..SelectionParams::default()
        };
        let slots = FACE_CAP as usize * num_tokens;
        let (gram, docs_there, items) = (filled(&device, &gram), filled(&device, &docs), filled(&device, &items));
        let faces = filled(&device, &vec![Entry { vertex: u32::MAX, weight: f32::NAN }; slots]);
        let states = device_states(&device, num_tokens);
        let arguments = [&gram, &docs_there, &items, &faces, &states];
        let block = bytemuck::bytes_of(&params);
        let launched = variant(Kernel::Dominance, DType::F32);
        maxhull::device::Device::launch(&device, launched, &arguments, block, u64::from(params.num_items)).unwrap();
        let states: Vec<TokenState> = fetched(&device, &states, num_tokens);
        let faces = fetched::<Entry>(&device, &faces, slots);
        let expected = CpuEngine::new().decide(&batch, scoring, EPSILON).unwrap();
        let mut num_open = 0;
        for doc in &docs {
            let (first, n) = (doc.first_token as usize, doc.num_tokens as usize);
            for i in 0..n {
                let state = states[first + i];
                let expected = &expected[doc.doc_idx as usize][i];
                match state.status {
                    TOKEN_SOLVED => {
                        let face = faces.chunks(FACE_CAP as usize).nth(first + i).unwrap();
                        let face = &face[..state.num_support as usize];
                        let face: Vec<(usize, f32)> =
                            face.iter().map(|entry| (entry.vertex as usize, entry.weight)).collect();
                        assert!(
                            face.iter().all(|&(j, weight)| j < n && j != i && weight >= 0.0),
                            "{scoring} {i}: {face:?}"
                        );
                        let sum: f32 = face.iter().map(|pair| pair.1).sum();
                        let is_convex = sum <= 1.0 + 1e-5 && (scoring == Scoring::Clamped || sum >= 1.0 - 1e-5);
                        assert!(is_convex, "{scoring} {i}: {sum}");
                        let distance = residual(&rows[first..first + n], i, &face);
                        assert!(distance <= f64::from(params.inside), "{scoring} {i}: {distance}");
                        assert!((distance - f64::from(state.upper)).abs() < 1e-5, "{scoring} {i}: {distance}");
                        assert!(!matches!(expected, Decision::Needed), "{scoring} {i}");
                    }
                    TOKEN_NEEDED => assert!(!matches!(expected, Decision::Removable(_)), "{scoring} {i}"),
                    _ => num_open += 1,
                }
            }
        }
        println!("{scoring}: {num_open} of {num_tokens} left open");
        assert!(num_open * 50 <= num_tokens);
    }
}

fn device_states(device: &maxhull::device::cuda::CudaDevice, num_tokens: usize) -> maxhull::device::cuda::Buffer {
    filled(device, &vec![[u32::MAX; 4]; num_tokens])
}
