//! What the workgroups of `maxsim` do.

use crate::kernel::{MAXSIM_CHUNK, MaxsimItem, MaxsimPair};

/// What an item costs besides its tokens, in tokens.
const ITEM_TOKENS: u64 = 32;
/// Tokens by which the largest share may exceed the mean: a workgroup is expected to take as long for them as another launch
/// does, which sums the parts of a document.
const MOST_OVER: u64 = 384;

/// Parts of a document, in tokens, that are tried where longer ones would leave workgroups without work.
const FINER_CHUNKS: [u32; 3] = [MAXSIM_CHUNK / 2, MAXSIM_CHUNK / 4, MAXSIM_CHUNK / 8];

/// What the kernels are given to do.
#[derive(Default)]
pub(crate) struct Items {
    /// Of `maxsim`, and of the wide one.
    pub items: [Vec<MaxsimItem>; 2],
    pub pairs: Vec<MaxsimPair>,
    pub num_maxima: usize,
    /// Every pair is an item, which goes to the place of its score.
    pub is_summed: bool,
}

impl Items {
    /// Those of documents in parts of so many tokens that every workgroup has something to do, as far as that is worth
    /// it.
    pub fn even(resident: [Option<u32>; 2], with_chunk: impl Fn(u32) -> Items) -> Items {
        let with_chunk = |chunk| {
            let mut work = with_chunk(chunk);
            // One after the other those with the same query tokens, which the wide kernel keeps.
            work.items[1].sort_by_key(|item| item.first_query_token);
            work
        };
        let mut work = with_chunk(MAXSIM_CHUNK);
        for chunk in FINER_CHUNKS {
            let is_even = work.items.iter().zip(resident).all(|(items, resident)| !is_uneven(items, resident));
            if is_even {
                break;
            }
            if work.items.iter().flatten().any(|item| item.num_tokens > chunk) {
                work = with_chunk(chunk);
            }
        }
        work
    }

    /// Lets every item write its pair's score where each is one.
    pub fn sum(&mut self) {
        let [items, wide] = &mut self.items;
        let is_pair = |(item, pair): (&MaxsimItem, &MaxsimPair)| {
            let of_pair = (pair.first_maximum, pair.num_query_tokens, pair.num_chunks);
            (item.first_maximum, item.num_query_tokens, 1) == of_pair
        };
        self.is_summed =
            wide.is_empty() && items.len() == self.pairs.len() && items.iter().zip(&self.pairs).all(is_pair);
        if self.is_summed {
            (0..).zip(items).for_each(|(pair_idx, item)| item.first_maximum = pair_idx);
        }
    }
}

fn cost(item: &MaxsimItem) -> u64 {
    u64::from(item.num_tokens) + ITEM_TOKENS
}

/// Contiguous shares of nearly equal cost, one a workgroup that runs at once: `shares[b] .. shares[b + 1]` are those of
/// workgroup `b`. An item each if there are no more of them, or where nobody says how many run at once.
pub(crate) fn shares(items: &[MaxsimItem], resident: Option<u32>) -> Vec<u32> {
    let num_items = items.len() as u32;
    let Some(num_shares) = resident.filter(|&resident| resident < num_items) else {
        return (0..=num_items).collect();
    };
    let total: u64 = items.iter().map(cost).sum();
    let mut shares = vec![0];
    let mut before = 0;
    for (item_idx, item) in (0..).zip(items) {
        // An item belongs to the share that its middle falls into.
        let share = (2 * before + cost(item)) * u64::from(num_shares) / (2 * total);
        shares.resize(shares.len().max(share as usize + 1), item_idx);
        before += cost(item);
    }
    shares.resize(num_shares as usize + 1, num_items);
    shares
}

/// Whether parts of the documents smaller than these items would spread the work better.
fn is_uneven(items: &[MaxsimItem], resident: Option<u32>) -> bool {
    let Some(resident) = resident.filter(|&resident| resident > 0) else { return false };
    // Of so many, one more or less makes no difference.
    if items.len() as u64 > 16 * u64::from(resident) {
        return false;
    }
    let bounds = shares(items, Some(resident));
    let of = |range: &[u32]| items[range[0] as usize..range[1] as usize].iter().map(cost).sum::<u64>();
    let largest = bounds.windows(2).map(of).max().unwrap_or(0);
    let mean = items.iter().map(cost).sum::<u64>() / u64::from(resident);
    4 * largest > 5 * mean && largest > mean + MOST_OVER
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(lens: impl IntoIterator<Item = u32>) -> Vec<MaxsimItem> {
        lens.into_iter().map(|num_tokens| MaxsimItem { num_tokens, ..MaxsimItem::default() }).collect()
    }

    fn costs(items: &[MaxsimItem], shares: &[u32]) -> Vec<u64> {
        shares.windows(2).map(|share| items[share[0] as usize..share[1] as usize].iter().map(cost).sum()).collect()
    }

    #[test]
    fn few_items_are_a_share_each() {
        assert_eq!(shares(&[], Some(4)), [0]);
        assert_eq!(shares(&items([5, 6, 7]), Some(3)), [0, 1, 2, 3]);
        assert_eq!(shares(&items([5, 6, 7]), None), [0, 1, 2, 3]);
    }

    #[test]
    fn every_item_is_in_one_share_and_shares_are_nearly_equal() {
        for (num_items, resident) in [(1000, 396), (10_000, 396), (5000, 7), (13, 12), (9, 1)] {
            let items = items((0..num_items).map(|i| i * 619 % 300 + 1));
            let shares = shares(&items, Some(resident));
            assert_eq!((shares[0], shares[resident as usize]), (0, num_items));
            assert_eq!(shares.len(), resident as usize + 1);
            assert!(shares.is_sorted());
            let total: u64 = items.iter().map(cost).sum();
            let most = costs(&items, &shares).into_iter().max();
            assert!(most <= Some(total / u64::from(resident) + 333), "{num_items} {resident} {most:?}");
        }
    }

    #[test]
    fn a_long_item_leaves_shares_empty() {
        let mut lens = vec![1; 50];
        lens[20] = 100_000;
        let items = items(lens);
        let shares = shares(&items, Some(8));
        assert_eq!((shares.len(), shares[8]), (9, 50));
        assert!(shares.is_sorted());
    }

    #[test]
    fn only_what_is_worth_a_launch_is_uneven() {
        assert!(!is_uneven(&items([300; 1000]), Some(396)));
        assert!(!is_uneven(&items([60; 10]), Some(396)));
        assert!(!is_uneven(&items([1024; 3]), None));
        assert!(is_uneven(&items([1000; 300]), Some(528)));
        let mut lens = vec![72; 1000];
        lens[500] = 512;
        assert!(!is_uneven(&items(lens), Some(528)));
        assert!(is_uneven(&items([1024; 3]), Some(396)));
    }
}
