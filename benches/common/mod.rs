//! What the benches share: a corpus, the units of work that are timed, and the checks that come before the clock.

#![allow(dead_code, reason = "each bench uses a part of this")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use maxhull::certificate::{
    DocProver, Header, ProofScratch, Proposal, ProvenDoc, TokenProver, Weights, Writer, verify,
};
use maxhull::engine::{CpuEngine, Decision, Engine, Goal, Selection};
use maxhull::half::f16;
use maxhull::{Method, PruneOptions, Pruned, Pruner, Scoring, Target, TokenBatch, TokenData, reference};
use npyz::{DType, NpyFile, TypeChar};
use rayon::prelude::*;

/// Scoring of every bench: what the example corpus was trained for.
pub const SCORING: Scoring = Scoring::Clamped;
/// Tolerance of the benches that name no other.
pub const EPSILON: f32 = 0.2;

pub type Failure = Box<dyn Error + Send + Sync>;

/// A corpus in memory.
pub struct Corpus {
    /// Last two folders of its path.
    pub name: String,
    tokens: Tokens,
    offsets: Vec<u64>,
    dim: usize,
}

enum Tokens {
    F16(Vec<f16>),
    F32(Vec<f32>),
}

impl Corpus {
    /// The corpus that comes with the project.
    pub fn example() -> Self {
        let dir = example_dir();
        Corpus::open(&dir).unwrap_or_else(|e| panic!("the example corpus must open: {e}"))
    }

    /// Reads `embeddings.npy` (`[num_tokens, dim]`, f16 or f32) and `embeddings_lengths.json`.
    pub fn open(dir: &Path) -> Result<Self, Failure> {
        let npy = NpyFile::new(std::io::BufReader::new(std::fs::File::open(dir.join("embeddings.npy"))?))?;
        let &[_, dim] = npy.shape() else {
            return Err(format!("shape {:?}, expected two numbers", npy.shape()).into());
        };
        let tokens = match npy.dtype() {
            DType::Plain(ty) if ty.type_char() == TypeChar::Float && ty.size_field() == 2 => {
                Tokens::F16(npy.into_vec()?)
            }
            DType::Plain(ty) if ty.type_char() == TypeChar::Float && ty.size_field() == 4 => {
                Tokens::F32(npy.into_vec()?)
            }
            other => return Err(format!("element type {}, expected f16 or f32", other.descr()).into()),
        };
        let lengths: Vec<u64> = serde_json::from_reader(std::fs::File::open(dir.join("embeddings_lengths.json"))?)?;
        let mut offsets = vec![0];
        offsets.extend(lengths.iter().scan(0, |end, len| {
            *end += len;
            Some(*end)
        }));
        let corpus = Corpus { name: last_folders(dir), tokens, offsets, dim: usize::try_from(dim)? };
        TokenBatch::new(corpus.data(), &corpus.offsets, corpus.dim)?.check_finite()?;
        Ok(corpus)
    }

    fn data(&self) -> TokenData<'_> {
        match &self.tokens {
            Tokens::F16(tokens) => TokenData::F16(tokens),
            Tokens::F32(tokens) => TokenData::F32(tokens),
        }
    }

    pub fn batch(&self) -> TokenBatch<'_> {
        TokenBatch::new(self.data(), &self.offsets, self.dim).expect("checked when it was opened")
    }

    /// The first documents only.
    pub fn truncate(&mut self, num_docs: usize) {
        self.offsets.truncate(num_docs.saturating_add(1));
    }

    /// All documents, again and again.
    pub fn repeated(mut self, num_copies: usize) -> Self {
        match &mut self.tokens {
            Tokens::F16(tokens) => *tokens = tokens.repeat(num_copies),
            Tokens::F32(tokens) => *tokens = tokens.repeat(num_copies),
        }
        let (once, end) = (self.offsets.clone(), *self.offsets.last().expect("a first offset"));
        for copy in 1..num_copies as u64 {
            self.offsets.extend(once[1..].iter().map(|offset| copy * end + offset));
        }
        self
    }

    /// The document whose length is nearest to `num_tokens`; the first of equals.
    pub fn doc_of(&self, num_tokens: usize) -> usize {
        let batch = self.batch();
        (0..batch.num_docs()).min_by_key(|&doc_idx| batch.doc_len(doc_idx).abs_diff(num_tokens)).expect("documents")
    }
}

pub fn example_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/cranfield")
}

/// A name that says nothing of the machine.
fn last_folders(dir: &Path) -> String {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let names: Vec<_> = dir.iter().map(|name| name.to_string_lossy()).collect();
    names[names.len().saturating_sub(2)..].join(" ")
}

pub fn pool(num_threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().expect("threads start")
}

/// A document as the Gram kernel takes it.
pub fn to_f32(data: TokenData<'_>) -> Vec<f32> {
    let mut values = vec![0.0; data.len()];
    data.to_f32(&mut values);
    values
}

pub fn pruner(engine: &Arc<dyn Engine>, target: Target) -> Pruner {
    let options = PruneOptions { scoring: SCORING, method: Method::Hull(target) };
    Pruner::new(engine.clone(), options).expect("valid options")
}

/// Gram matrices of all documents, one at a time in each thread's cache; `docs` as [`to_f32`] returns them.
pub fn gram_all(engine: &CpuEngine, docs: &[Vec<f32>], dim: usize) {
    let docs = docs.par_iter().with_max_len(1);
    docs.for_each_init(Vec::new, |out, doc| {
        engine.gram(doc, dim, out).expect("whole tokens");
        std::hint::black_box(out);
    });
}

/// Decisions about every token.
pub fn decide(engine: &dyn Engine, batch: &TokenBatch<'_>) -> Vec<Vec<Decision>> {
    engine.decide(batch, SCORING, EPSILON).expect("the CPU engine does not fail")
}

/// Decisions about every token, each removable one proven; how many were.
pub fn decide_and_prove(engine: &dyn Engine, batch: &TokenBatch<'_>) -> usize {
    let decisions = decide(engine, batch);
    let docs = decisions.par_iter().enumerate().with_max_len(1);
    docs.map_init(ProofScratch::default, |scratch, (doc_idx, decisions)| {
        let mut prover = TokenProver::new(batch.doc(doc_idx), batch.dim(), SCORING, scratch).expect("a valid batch");
        let proven = |(token_idx, decision): (usize, &Decision)| match decision {
            Decision::Removable(proposal) => {
                let weights = Weights::Fixed(&proposal.weights);
                let proposal = Proposal { token_idx: token_idx as u32, support: &proposal.support, weights };
                prover.prove(&proposal, EPSILON).is_ok()
            }
            Decision::Needed | Decision::Undecided => false,
        };
        decisions.iter().enumerate().map(proven).filter(|&proven| proven).count()
    })
    .sum()
}

pub fn select(engine: &dyn Engine, batch: &TokenBatch<'_>, goal: Goal) -> Vec<Selection> {
    engine.select(batch, SCORING, goal, None).expect("the CPU engine does not fail")
}

/// Proves the removals of every selection, as the first walk does.
pub fn prove(batch: &TokenBatch<'_>, selections: &[Selection]) -> Vec<ProvenDoc> {
    let docs = selections.par_iter().enumerate().with_max_len(1);
    docs.map_init(ProofScratch::default, |scratch, (doc_idx, selection)| {
        let mut kept = vec![true; batch.doc_len(doc_idx)];
        selection.removals.iter().for_each(|(token_idx, ..)| kept[token_idx as usize] = false);
        let mut prover =
            DocProver::new(batch.doc(doc_idx), batch.dim(), SCORING, &kept, scratch).expect("a valid batch");
        for (token_idx, support, weights) in selection.removals.iter() {
            // A refused removal keeps its token; the checks count them.
            let _ = prover.remove(&Proposal { token_idx, support, weights: Weights::Fixed(weights) }, EPSILON);
        }
        prover.finish()
    })
    .collect()
}

/// A pruned corpus with its certificate, in memory.
pub struct Certified {
    kept: Tokens,
    offsets: Vec<u64>,
    dim: usize,
    pub certificate: Vec<u8>,
}

impl Certified {
    pub fn new(batch: &TokenBatch<'_>, pruned: &Pruned) -> Result<Self, Failure> {
        let header = Header { scoring: SCORING, dtype: batch.dtype(), dim: batch.dim() as u32 };
        let mut writer = Writer::new(Vec::new(), header)?;
        pruned.docs.iter().try_for_each(|doc| writer.append(doc.record()))?;
        let bytes = pruned.gather(batch);
        let kept = match batch.dtype() {
            maxhull::DType::F16 => Tokens::F16(values(&bytes, f16::from_ne_bytes)),
            _ => Tokens::F32(values(&bytes, f32::from_ne_bytes)),
        };
        Ok(Certified { kept, offsets: pruned.offsets(), dim: batch.dim(), certificate: writer.finish()?.0 })
    }

    fn batch(&self) -> TokenBatch<'_> {
        let data = match &self.kept {
            Tokens::F16(kept) => TokenData::F16(kept),
            Tokens::F32(kept) => TokenData::F32(kept),
        };
        TokenBatch::new(data, &self.offsets, self.dim).expect("gathered from a valid batch")
    }

    /// The worst bound that was proven again.
    pub fn verify(&self, original: &TokenBatch<'_>) -> Result<f32, maxhull::Error> {
        Ok(verify(original, &self.batch(), &self.certificate)?.worst_bound)
    }
}

fn values<T, const N: usize>(bytes: &[u8], from: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|&value| from(value)).collect()
}

/// Compares the Gram matrix of a document with plain products in `f64`.
pub fn check_gram(engine: &CpuEngine, data: TokenData<'_>, dim: usize) {
    let (rows, mut gram) = (reference::rows(data, dim), Vec::new());
    let stride = engine.gram(&to_f32(data), dim, &mut gram).expect("whole tokens");
    for (i, a) in rows.iter().enumerate() {
        for (j, b) in rows.iter().enumerate() {
            let (found, expected) = (f64::from(gram[i * stride + j]), reference::dot(a, b));
            // One rounding for each of `dim` multiply-adds (Higham 3.1).
            let allowed = dim as f64 * f64::from(f32::EPSILON) * reference::norm(a) * reference::norm(b);
            assert!((found - expected).abs() <= allowed, "G[{i}][{j}] is {found}, expected {expected}");
        }
    }
}

/// Every removable token must have a proof; on one small document every needed token must be as far as the definition says.
pub fn check_decisions(engine: &dyn Engine, corpus: &Corpus) {
    let batch = corpus.batch();
    let decisions = decide(engine, &batch);
    let removable = |decision: &&Decision| matches!(decision, Decision::Removable(_));
    let claimed = decisions.iter().flatten().filter(removable).count();
    assert_eq!(decide_and_prove(engine, &batch), claimed, "removable tokens with a proof");
    let small = corpus.doc_of(40);
    let doc = reference::rows(batch.doc(small), batch.dim());
    for (token_idx, decision) in decisions[small].iter().enumerate() {
        let others: Vec<_> =
            doc.iter().enumerate().filter(|(at, _)| *at != token_idx).map(|(_, x)| x.clone()).collect();
        let is_needed = reference::distance(&doc[token_idx], &others, SCORING) > f64::from(EPSILON);
        assert_eq!(*decision == Decision::Needed, is_needed, "document {small}, token {token_idx}");
    }
}

/// On one small document the curve must bound what the definition says the first `k` tokens lose, without much slack.
pub fn check_order(orders: &[Selection], corpus: &Corpus) {
    let batch = corpus.batch();
    let small = corpus.doc_of(40);
    let (doc, selection) = (reference::rows(batch.doc(small), batch.dim()), &orders[small]);
    assert_eq!(selection.order.len(), doc.len(), "every token has its place");
    for k in [1, doc.len() / 4, doc.len() / 2, doc.len()] {
        let mut kept = vec![false; doc.len()];
        selection.order[..k].iter().for_each(|&token_idx| kept[token_idx as usize] = true);
        let (worst, bound) = (reference::worst_loss(&doc, &kept, SCORING).0, f64::from(selection.curve[k - 1]));
        // The curve comes from squared distances in f32, with a margin for rounding.
        assert!(
            worst <= bound && bound <= 1.05 * worst + 0.01,
            "first {k} tokens lose {worst}, the curve says {bound}"
        );
    }
}

/// Bounds must hold, and the certificate must verify and be refused when a bit of it is flipped.
pub fn check_pruned(batch: &TokenBatch<'_>, pruned: &Pruned, epsilon: f32) -> Result<Certified, Failure> {
    assert!(pruned.stats.worst_bound <= epsilon, "bound {} at tolerance {epsilon}", pruned.stats.worst_bound);
    let mut certified = Certified::new(batch, pruned)?;
    assert_eq!(certified.verify(batch)?, pruned.stats.worst_bound, "the bound that verifies");
    let middle = certified.certificate.len() / 2;
    certified.certificate[middle] ^= 1;
    assert!(certified.verify(batch).is_err(), "a flipped bit is refused");
    certified.certificate[middle] ^= 1;
    Ok(certified)
}
