//! `compact` by itself, on every device: what is downloaded is what `selection` found, or less that is proven.

use maxhull::certificate::{DocProver, ProofScratch, Proposal, Weights};
use maxhull::device::Device;
use maxhull::engine::Proposal as Rounded;
use maxhull::kernel::{self, Doc, DocResult, Encoding, Entry, Kernel, SelectionParams, TokenState, Variant};
use maxhull::kernel::{COMPACT_THREADS, FACE_CAP, PLACE_STRIDE};
use maxhull::{Scoring, TokenBatch, TokenData};

use crate::common::{Random, encoder_like, offsets};

const DIM: usize = 24;
const EPSILON: f32 = 0.25;
const ROUNDING: f32 = 2e-6;
/// What entries hold where nothing was written.
const UNTOUCHED: Entry = Entry { vertex: 0xdead_beef, weight: -7.0 };

/// Documents of every awkward length, one of them far longer than the others.
fn lengths() -> Vec<usize> {
    let edge = COMPACT_THREADS as usize;
    vec![1, 2, 0, edge, 3, 5 * edge + 9, 1, edge - 1, edge + 1, 0, 2 * edge, 2 * edge + 1, 4]
}

/// How far documents go.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Goal {
    Tolerance,
    Count(u32),
    /// Nothing is removed: every token is kept first.
    All,
}

/// Everything on the device after some launches.
#[derive(Debug, Clone, PartialEq)]
struct There {
    faces: Vec<Entry>,
    states: Vec<TokenState>,
    order: Vec<u32>,
    results: Vec<DocResult>,
    entries: Vec<Entry>,
    num_entries: u32,
}

impl There {
    fn removed(&self, doc: &Doc) -> Vec<usize> {
        let n = doc.num_tokens as usize;
        let kept = &self.order[doc.first_token as usize..][..self.results[doc.doc_idx as usize].num_kept as usize];
        (0..n).filter(|&i| !kept.contains(&(i as u32))).collect()
    }

    fn places(&self, doc: &Doc) -> &[u32] {
        let num_kept = self.results[doc.doc_idx as usize].num_kept;
        &self.order[(doc.first_token + num_kept) as usize..(doc.first_token + doc.num_tokens) as usize]
    }

    fn face(&self, doc: &Doc, i: usize) -> &[Entry] {
        let token = doc.first_token as usize + i;
        &self.faces[token * FACE_CAP as usize..][..self.states[token].num_support as usize]
    }

    fn entries_at(&self, place: u32) -> &[Entry] {
        &self.entries[(place / PLACE_STRIDE) as usize..][..(place % PLACE_STRIDE - 1) as usize]
    }
}

/// The documents on a device.
struct Documents<'a, D: Device> {
    device: &'a D,
    tokens: Vec<f32>,
    docs: Vec<Doc>,
    chunks: Vec<Doc>,
    params: SelectionParams,
    buffers: Vec<D::Buffer>,
}

fn filled<D: Device, T: bytemuck::Pod>(device: &D, values: &[T]) -> D::Buffer {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    let buffer = device.alloc((bytes.len() as u64).next_multiple_of(16).max(16)).unwrap();
    device.upload(&buffer, bytes).unwrap();
    buffer
}

fn fetched<D: Device, T: bytemuck::Pod>(device: &D, from: &D::Buffer, len: usize) -> Vec<T> {
    let download = device.download(&[(from, (len * size_of::<T>()) as u64)]).unwrap();
    let mut values = Vec::new();
    let mut take =
        |part: &[u8]| values.extend(part.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned::<T>));
    device.read(download, &mut |parts| take(parts[0])).unwrap();
    values
}

impl<'a, D: Device> Documents<'a, D> {
    fn new(device: &'a D, scoring: Scoring, goal: Goal, max_steps: u32) -> Self {
        let lengths = lengths();
        let num_tokens: usize = lengths.iter().sum();
        let tokens = encoder_like(&mut Random(51), num_tokens, DIM);
        let (mut docs, mut gram, mut order, mut first) = (Vec::new(), Vec::new(), vec![0; num_tokens], 0);
        for (doc_idx, &n) in (0..).zip(&lengths) {
            let rows: Vec<&[f32]> = tokens[first * DIM..(first + n) * DIM].chunks(DIM).collect();
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let longest = (0..n).max_by(|&a, &b| dot(rows[a], rows[a]).total_cmp(&dot(rows[b], rows[b])));
            let num_first = if goal == Goal::All { n.max(1) } else { 1 };
            match goal {
                Goal::All => order[first..first + n].iter_mut().zip(0..).for_each(|(to, i)| *to = i),
                _ => order[first..first + n.min(1)].fill(longest.unwrap_or(0) as u32),
            }
            docs.push(Doc {
                first_token: first as u32,
                num_tokens: n as u32,
                gram_start: gram.len() as u32,
                num_first: num_first as u32,
                max_kept: if let Goal::Count(count) = goal { count } else { n as u32 },
                doc_idx,
                ..Doc::default()
            });
            for i in 0..n {
                let entry = |j: usize| if j < n { dot(rows[i], rows[j]) as f32 } else { f32::NAN };
                gram.extend((0..kernel::gram_stride(n as u32) as usize).map(entry));
            }
            first += n;
        }
        // Documents and chunks come in any order.
        docs.reverse();
        let chunks_of = |doc: &Doc| {
            let (doc, most) = (*doc, doc.num_tokens.saturating_sub(doc.num_first));
            (0..most).step_by(COMPACT_THREADS as usize).map(move |first_removed| Doc { first_removed, ..doc })
        };
        let mut chunks: Vec<Doc> = docs.iter().flat_map(chunks_of).collect();
        chunks.sort_by_key(|chunk| chunk.first_removed % 3);
        let params = SelectionParams {
            scoring: if scoring == Scoring::Plain { kernel::PLAIN } else { kernel::CLAMPED },
            inside: if goal == Goal::Tolerance { EPSILON * EPSILON } else { -1.0 },
            stop: -1.0,
            rounding: ROUNDING,
            margin: 3e-5,
            max_steps,
            ..SelectionParams::default()
        };
        let slots = num_tokens * FACE_CAP as usize;
        let buffers = vec![
            filled(device, &gram),
            filled(device, &docs),
            filled(device, &chunks),
            filled(device, &vec![UNTOUCHED; slots]),
            filled(device, &vec![[u32::MAX; 4]; num_tokens]),
            filled(device, &order),
            filled(device, &vec![f32::NAN; num_tokens]),
            filled(device, &vec![[u32::MAX; 4]; docs.len()]),
            filled(device, &vec![UNTOUCHED; slots]),
            filled(device, &[0u32; 4]),
        ];
        Documents { device, tokens, docs, chunks, params, buffers }
    }

    /// `selection`; whether all documents are finished.
    fn select(&self, is_resumed: bool) -> bool {
        let params = SelectionParams { is_resumed: u32::from(is_resumed), ..self.params };
        self.launch(Kernel::Selection, &[0, 1, 3, 4, 5, 6, 7], params, self.docs.len());
        let results: Vec<DocResult> = fetched(self.device, &self.buffers[7], self.docs.len());
        results.iter().all(|result| result.status != kernel::DOC_UNFINISHED)
    }

    fn compact(&self) {
        if !self.chunks.is_empty() {
            self.launch(Kernel::Compact, &[0, 2, 3, 4, 5, 7, 8, 9], self.params, self.chunks.len());
        }
    }

    fn launch(&self, kernel: Kernel, arguments: &[usize], params: SelectionParams, num_items: usize) {
        let params = SelectionParams { num_items: num_items as u32, ..params };
        let subgroups = self.device.limits().subgroup_sizes.is_some();
        let variant = Variant { kernel, encoding: Encoding::F32, subgroups, cooperative: None, is_wide: false };
        let arguments: Vec<&D::Buffer> = arguments.iter().map(|&at| &self.buffers[at]).collect();
        // One workgroup more than there is work.
        self.device.launch(variant, &arguments, bytemuck::bytes_of(&params), num_items as u64 + 1).unwrap();
    }

    fn there(&self) -> There {
        let num_tokens = self.tokens.len() / DIM;
        let slots = num_tokens * FACE_CAP as usize;
        There {
            faces: fetched(self.device, &self.buffers[3], slots),
            states: fetched(self.device, &self.buffers[4], num_tokens),
            order: fetched(self.device, &self.buffers[5], num_tokens),
            results: fetched(self.device, &self.buffers[7], self.docs.len()),
            entries: fetched(self.device, &self.buffers[8], slots),
            num_entries: fetched(self.device, &self.buffers[9], 1)[0],
        }
    }

    /// Supports of all removed tokens, by document that is done and token.
    fn supports(&self, there: &There) -> Vec<Vec<Vec<(u32, u32)>>> {
        let bits = |entry: &Entry| (entry.vertex, entry.weight.to_bits());
        let support = |&place: &u32| there.entries_at(place).iter().map(bits).collect();
        let is_done = |doc: &&Doc| there.results[doc.doc_idx as usize].status == kernel::DOC_DONE;
        self.docs.iter().filter(is_done).map(|doc| there.places(doc).iter().map(support).collect()).collect()
    }

    fn prove(&self, doc: &Doc, i: usize, entries: &[Entry], scoring: Scoring, kept: &[bool]) {
        let offsets = offsets(0, &lengths());
        let batch = TokenBatch::new(TokenData::F32(&self.tokens), &offsets, DIM).unwrap();
        let mut scratch = ProofScratch::default();
        let mut prover = DocProver::new(batch.doc(doc.doc_idx as usize), DIM, scoring, kept, &mut scratch).unwrap();
        let mut pairs: Vec<(u32, f32)> = entries.iter().map(|entry| (entry.vertex, entry.weight)).collect();
        pairs.sort_unstable_by_key(|pair| pair.0);
        let (support, weights): (Vec<u32>, Vec<f32>) = pairs.into_iter().unzip();
        let rounded = Rounded::quantise(&support, &weights, scoring);
        let weights = Weights::Fixed(&rounded.weights);
        let proposal = Proposal { token_idx: i as u32, support: &rounded.support, weights };
        let proven = prover.remove(&proposal, EPSILON);
        assert!(proven.is_ok(), "{scoring} doc {} token {i}: {proven:?}", doc.doc_idx);
    }
}

/// Checks `compact` on a device.
pub fn check<D: Device>(device: &D) {
    // Matrices are not centred here; that is all that the scoring would change about them.
    for (scoring, goal) in [
        (Scoring::Clamped, Goal::Tolerance),
        (Scoring::Plain, Goal::Tolerance),
        (Scoring::Clamped, Goal::Count(7)),
        (Scoring::Plain, Goal::Count(40)),
        (Scoring::Clamped, Goal::All),
    ] {
        // Software devices leave loops after 65,535 turns.
        let max_steps = if device.limits().is_software { 3 } else { 1 << 12 };
        let documents = Documents::new(device, scoring, goal, max_steps);
        let mut is_resumed = false;
        while !documents.select(is_resumed) {
            is_resumed = true;
        }
        let before = documents.there();
        documents.compact();
        let after = documents.there();
        check_entries(&documents, scoring, goal, &before, &after);
        // Whoever was there has had a turn.
        documents.compact();
        assert_eq!(documents.there(), after, "{scoring} {goal:?}");

        // A few launches, after each of which those that are done are looked after.
        let slow = Documents::new(device, scoring, goal, 2);
        let mut num_launches = 0;
        loop {
            let is_done = slow.select(num_launches > 0);
            slow.compact();
            num_launches += 1;
            if is_done {
                break;
            }
        }
        assert!(goal == Goal::All || num_launches > 2, "{scoring} {goal:?}: {num_launches} launches");
        let there = slow.there();
        assert_eq!(there.num_entries, after.num_entries, "{scoring} {goal:?}");
        assert_eq!(slow.supports(&there), documents.supports(&after), "{scoring} {goal:?}");
    }
}

fn check_entries<D: Device>(documents: &Documents<'_, D>, scoring: Scoring, goal: Goal, before: &There, after: &There) {
    assert_eq!((&before.states, &before.results), (&after.states, &after.results));
    let (mut num_before, mut num_after, mut taken) = (0, 0, vec![false; after.num_entries as usize]);
    for doc in &documents.docs {
        let result = after.results[doc.doc_idx as usize];
        let (first, num_kept) = (doc.first_token as usize, result.num_kept as usize);
        if result.status != kernel::DOC_DONE {
            // Two tokens are on a line.
            assert!(result.status == kernel::DOC_TOO_FINE && doc.num_tokens == 2, "{doc:?} {result:?}");
            assert!(after.places(doc).iter().skip(1).all(|&place| place == 0));
            continue;
        }
        assert_eq!(before.order[first..first + num_kept], after.order[first..first + num_kept]);
        let removed = after.removed(doc);
        let mut kept = vec![true; doc.num_tokens as usize];
        removed.iter().for_each(|&i| kept[i] = false);
        assert_eq!(removed.len(), after.places(doc).len());
        for (&i, &place) in removed.iter().zip(after.places(doc)) {
            assert!(place % PLACE_STRIDE > 0, "{doc:?} token {i}");
            let (entries, stored) = (after.entries_at(place), before.face(doc, i));
            let first_entry = (place / PLACE_STRIDE) as usize;
            for taken in &mut taken[first_entry..first_entry + entries.len()] {
                assert!(!std::mem::replace(taken, true), "{doc:?} token {i}: an entry twice");
            }
            if goal == Goal::Tolerance {
                assert!(entries.len() <= stored.len());
                documents.prove(doc, i, entries, scoring, &kept);
            } else {
                assert_eq!(entries, stored, "{doc:?} token {i}");
            }
            num_before += stored.len();
            num_after += entries.len();
        }
    }
    assert!(taken.iter().all(|&taken| taken), "{scoring} {goal:?}: entries of no token");
    assert!(after.entries[taken.len()..].iter().all(|entry| *entry == UNTOUCHED));
    println!("{scoring} {goal:?}: {num_before} entries of faces, {num_after} here");
    assert!(goal != Goal::Tolerance || num_after * 10 <= num_before * 9, "{num_after} of {num_before}");
}
