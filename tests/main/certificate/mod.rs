//! The prover and the checker, and the lies they must see through.

mod exact;
mod format;
mod lies;
mod prover;

use maxhull::certificate::{DocProver, Header, ProofScratch, Proposal, ProvenDoc, Weights, Writer};
use maxhull::half::f16;
use maxhull::{DType, Scoring, TokenBatch, TokenData};

const ONE: u32 = 1 << 24;
const HALF: u32 = 1 << 23;
const QUARTER: u32 = 1 << 22;

/// Support and weights of one token.
type Removal = (u32, Vec<u32>, Vec<u32>);

/// Proves every removal of one document, or panics.
fn prove(doc: TokenData<'_>, dim: usize, scoring: Scoring, removals: &[Removal], tolerance: f32) -> ProvenDoc {
    let mut kept = vec![true; doc.len() / dim];
    removals.iter().for_each(|(token_idx, ..)| kept[*token_idx as usize] = false);
    let mut scratch = ProofScratch::default();
    let mut prover = DocProver::new(doc, dim, scoring, &kept, &mut scratch).unwrap();
    for (token_idx, support, weights) in removals {
        let proposal = Proposal { token_idx: *token_idx, support, weights: Weights::Fixed(weights) };
        prover.remove(&proposal, tolerance).unwrap();
    }
    prover.finish()
}

/// Rows of `doc` that stay.
fn gather(doc: &[f16], dim: usize, proven: &ProvenDoc) -> Vec<f16> {
    proven.keep().kept().flat_map(|idx| doc[idx as usize * dim..][..dim].to_vec()).collect()
}

fn f16s(values: &[f32]) -> Vec<f16> {
    values.iter().map(|&value| f16::from_f32(value)).collect()
}

/// Three documents of dim 4: seven tokens of which four go, none, and three of which one goes.
struct Corpus {
    original: Vec<f16>,
    original_offsets: Vec<u64>,
    kept: Vec<f16>,
    kept_offsets: Vec<u64>,
    certificate: Vec<u8>,
}

impl Corpus {
    const DIM: usize = 4;
    const TOLERANCE: f32 = 0.6;
    const HEADER: Header = Header { scoring: Scoring::Clamped, dtype: DType::F16, dim: Self::DIM as u32 };

    fn tokens() -> (Vec<f16>, Vec<u64>) {
        #[rustfmt::skip]
        let values = f16s(&[
            1.0, 0.0, 0.0, 0.0,
            0.0, 1.0, 0.0, 0.0,
            0.5, 0.5, 0.0, 0.0, // the middle of the first two
            1.0, 0.0, 0.0, 0.0, // a duplicate of the first
            0.25, 0.25, 0.5, 0.0, // 0.5 away from half of the middle
            0.0, 0.0, 0.0, 1.0,
            0.0, 0.0, 0.0, 0.0, // the origin
            0.1, 0.2, 0.3, 0.4,
            0.3, 0.1, 0.0, 0.0,
            0.3, 0.1, 0.0, 0.01,
        ]);
        (values, vec![0, 7, 7, 10])
    }

    fn removals() -> Vec<Vec<Removal>> {
        vec![
            vec![
                (2, vec![0, 1], vec![HALF, HALF]),
                (3, vec![0], vec![ONE]),
                (4, vec![0, 1], vec![QUARTER, QUARTER]),
                (6, vec![], vec![]),
            ],
            vec![],
            vec![(2, vec![1], vec![ONE])],
        ]
    }

    fn new() -> Self {
        let (original, original_offsets) = Self::tokens();
        let batch = TokenBatch::new(TokenData::F16(&original), &original_offsets, Self::DIM).unwrap();
        let mut writer = Writer::new(Vec::new(), Self::HEADER).unwrap();
        let (mut kept, mut kept_offsets) = (Vec::new(), vec![0]);
        for (doc_idx, removals) in Self::removals().iter().enumerate() {
            let proven = prove(batch.doc(doc_idx), Self::DIM, Scoring::Clamped, removals, Self::TOLERANCE);
            writer.append(proven.record()).unwrap();
            let rows =
                original_offsets[doc_idx] as usize * Self::DIM..original_offsets[doc_idx + 1] as usize * Self::DIM;
            kept.extend(gather(&original[rows], Self::DIM, &proven));
            kept_offsets.push((kept.len() / Self::DIM) as u64);
        }
        let (certificate, _) = writer.finish().unwrap();
        Corpus { original, original_offsets, kept, kept_offsets, certificate }
    }

    fn original(&self) -> TokenBatch<'_> {
        TokenBatch::new(TokenData::F16(&self.original), &self.original_offsets, Self::DIM).unwrap()
    }

    fn kept(&self) -> TokenBatch<'_> {
        TokenBatch::new(TokenData::F16(&self.kept), &self.kept_offsets, Self::DIM).unwrap()
    }
}
