//! From a device's buffers to selections and decisions.

use crate::Scoring;
use crate::engine::proposal::quantise_pairs;
use crate::engine::{Decision, Proposal, Removals, Selection};
use crate::kernel::{
    DOC_DONE, DOC_UNFINISHED, Doc, DocResult, Entry, FACE_CAP, Kernel, PLACE_STRIDE, TOKEN_NEEDED, TOKEN_SOLVED,
    TokenState,
};

/// What a device sent back, by name.
#[derive(Default)]
pub(super) struct Answers<'a> {
    states: &'a [TokenState],
    order: &'a [u32],
    curve: &'a [f32],
    results: &'a [DocResult],
    faces: &'a [Entry],
    num_entries: u64,
    entries: &'a [Entry],
    /// First tokens of each document, as they were sent.
    first: &'a [u32],
}

impl<'a> Answers<'a> {
    /// The parts of a download of `kernel`; none if it has other parts than it should.
    pub(super) fn new(parts: &[&'a [u8]], kernel: Kernel, first: &'a [u32]) -> Option<Self> {
        let none = Answers { first, ..Answers::default() };
        let answers = match (kernel, parts) {
            (Kernel::Dominance, &[states, faces]) => Answers { states: cast(states)?, faces: cast(faces)?, ..none },
            (Kernel::Selection, &[order, curve, results, cursor, entries]) => Answers {
                order: cast(order)?,
                curve: cast(curve)?,
                results: cast(results)?,
                num_entries: u64::from(*cast::<u32>(cursor)?.first()?),
                entries: cast(entries)?,
                ..none
            },
            _ => return None,
        };
        Some(answers)
    }

    /// Whether a launch ended before the device had finished these documents.
    pub(super) fn is_unfinished(&self, docs: &[Doc]) -> bool {
        let result = |doc: &Doc| self.results.get(doc.doc_idx as usize);
        docs.iter().filter_map(result).any(|result| result.status == DOC_UNFINISHED)
    }

    /// All entries there are, where they are more than were downloaded and no more than there can be.
    pub(super) fn missing_entries(&self, most_entries: u64) -> Option<u64> {
        let downloaded = self.entries.len() as u64;
        (downloaded < self.num_entries && self.num_entries <= most_entries).then_some(self.num_entries)
    }

    /// A document's selection, or none where the CPU has to select.
    ///
    /// Nothing that a device says is believed: indices and places out of range, tokens kept twice or weights that are no
    /// numbers make the document the CPU's.
    pub(super) fn selection(&self, doc: &Doc, scoring: Scoring) -> Option<Selection> {
        let result = self.results.get(doc.doc_idx as usize)?;
        let (start, n) = (doc.first_token as usize, doc.num_tokens as usize);
        let num_kept = result.num_kept as usize;
        let num_first = doc.num_first as usize;
        if result.status != DOC_DONE || num_kept > n || num_kept < num_first {
            return None;
        }
        let order = &self.order[start..start + num_kept];
        let mut kept = vec![false; n];
        for &token_idx in order {
            let is_kept = kept.get_mut(token_idx as usize)?;
            if std::mem::replace(is_kept, true) {
                return None;
            }
        }
        if order[..num_first] != self.first[start..start + num_first] {
            return None;
        }
        let curve = &self.curve[start + num_first - 1..start + num_kept];
        let mut removals = Removals::default();
        let (mut face, mut pairs) = (Vec::new(), Vec::new());
        let removed = (0..n as u32).filter(|&token_idx| !kept[token_idx as usize]);
        for (token_idx, &place) in removed.zip(&self.order[start + num_kept..]) {
            support_of(self.entries_at(place)?, &mut face)?;
            if face.iter().any(|&(support_idx, _)| kept.get(support_idx as usize) != Some(&true)) {
                return None;
            }
            quantise_pairs(face.iter().copied(), scoring, &mut pairs);
            removals.push(token_idx, pairs.iter().copied());
        }
        Some(Selection {
            order: order.to_vec(),
            curve: certified_curve(num_first, curve, num_kept == n),
            removals,
            num_undecided: result.num_undecided,
            num_refined: 0,
        })
    }

    /// A document's decisions; what the device could not decide, or makes no sense, is undecided.
    pub(super) fn decisions(&self, doc: &Doc, scoring: Scoring) -> Vec<Decision> {
        let start = doc.first_token as usize;
        let (mut face, mut pairs) = (Vec::new(), Vec::new());
        let decide = |token_idx: u32| match self.states[start + token_idx as usize].status {
            TOKEN_NEEDED => Decision::Needed,
            TOKEN_SOLVED if self.face(start + token_idx as usize, &mut face).is_some() => {
                let is_other =
                    |&(support_idx, _): &(u32, f32)| support_idx < doc.num_tokens && support_idx != token_idx;
                if !face.iter().all(is_other) {
                    return Decision::Undecided;
                }
                quantise_pairs(face.iter().copied(), scoring, &mut pairs);
                let (support, weights) = pairs.iter().copied().unzip();
                Decision::Removable(Proposal { support, weights })
            }
            _ => Decision::Undecided,
        };
        (0..doc.num_tokens).map(decide).collect()
    }

    /// The entries of a removed token; none if they are out of range.
    fn entries_at(&self, place: u32) -> Option<&'a [Entry]> {
        let num_entries = (place % PLACE_STRIDE).checked_sub(1)?;
        let first = (place / PLACE_STRIDE) as usize;
        let entries = self.entries.get(first..first + num_entries as usize)?;
        (num_entries <= FACE_CAP).then_some(entries)
    }

    /// The support and weights of the token at a place of the batch; none if they are out of range.
    fn face(&self, token: usize, face: &mut Vec<(u32, f32)>) -> Option<()> {
        let num_support = self.states[token].num_support;
        if num_support > FACE_CAP {
            return None;
        }
        support_of(&self.faces[token * FACE_CAP as usize..][..num_support as usize], face)
    }
}

/// Vertices and weights; none if the weights are none.
fn support_of(entries: &[Entry], face: &mut Vec<(u32, f32)>) -> Option<()> {
    face.clear();
    face.extend(entries.iter().map(|&Entry { vertex, weight }| (vertex, weight)));
    // Weights sum to 1 up to rounding.
    entries.iter().all(|entry| (0.0..=1.001).contains(&entry.weight)).then_some(())
}

fn cast<T: bytemuck::Pod>(bytes: &[u8]) -> Option<&[T]> {
    bytemuck::try_cast_slice(bytes).ok()
}

/// The device's bounds from the last of the first tokens on, rounded up; infinite before, as no pruning stops there.
fn certified_curve(num_first: usize, bounds: &[f32], is_complete: bool) -> Vec<f32> {
    let mut curve = vec![f32::INFINITY; num_first - 1];
    let mut least = f32::INFINITY;
    for &bound in bounds {
        // Bounds only fall; a later one that is looser by rounding does not undo an earlier one.
        least = least.min(certified(bound));
        curve.push(least);
    }
    if is_complete && let Some(last) = curve.last_mut() {
        // Nothing is left out.
        *last = 0.0;
    }
    curve
}

/// What the curve says of a device's bound, which is off by a few roundings of the device's square root.
fn certified(bound: f32) -> f32 {
    let raised = f64::from(bound) * (1.0 + 1.0 / f64::from(1 << 20));
    let nearest = raised as f32;
    if f64::from(nearest) < raised { nearest.next_up() } else { nearest }
}

/// The largest of a device's bounds that the curve gives as at most `epsilon`; negative if there is none.
///
/// Found by trying out, so that a budget planned on the curve is met to the token.
pub(super) fn largest_below(epsilon: f32) -> f32 {
    // Floats of one sign ascend with their bits.
    let (mut low, mut high) = (0, f32::MAX.to_bits() + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        if certified(f32::from_bits(middle)) <= epsilon { low = middle + 1 } else { high = middle }
    }
    if low == 0 { -1.0 } else { f32::from_bits(low - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tolerance_taken_from_the_curve_stops_where_the_curve_says() {
        for bound in [0.0, 1e-30, 0.1, 0.2, 0.333, 1.0, 7.5e10] {
            let stop = largest_below(certified(bound));
            assert!(stop >= bound && certified(stop) == certified(bound), "{bound}: {stop}");
        }
        assert_eq!(largest_below(-1.0), -1.0);
    }

    #[test]
    fn a_curve_never_rises_and_ends_in_nothing() {
        let curve = certified_curve(3, &[0.5, 0.6, 0.25], true);
        assert_eq!(curve[..2], [f32::INFINITY; 2]);
        assert!(curve[2] >= 0.5 && curve[3] == curve[2] && curve[4] == 0.0);
    }
}
