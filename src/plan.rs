//! Plans of device work: pure functions of lengths.

use crate::kernel::{TILE, Tile};

/// The workgroups of `gram` for a document: every tile of its matrix on or above the diagonal, once, in the order of the
/// rows.
pub fn gram_tiles(doc: u32, num_tokens: u32) -> impl Iterator<Item = Tile> {
    let num_tiles = num_tokens.div_ceil(TILE);
    (0..num_tiles).flat_map(move |row_tile| {
        (row_tile..num_tiles).map(move |column_tile| Tile { doc, row_tile, column_tile, padding: 0 })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_tiles_cover_every_pair_once(num_tokens in 0u32..1500, i in any::<u32>(), j in any::<u32>()) {
            let tiles: Vec<Tile> = gram_tiles(7, num_tokens).collect();
            let num_tiles = u64::from(num_tokens.div_ceil(TILE));
            prop_assert_eq!(tiles.len() as u64, num_tiles * (num_tiles + 1) / 2);
            let distinct: HashSet<(u32, u32)> = tiles.iter().map(|tile| (tile.row_tile, tile.column_tile)).collect();
            prop_assert_eq!(distinct.len(), tiles.len());
            prop_assert!(tiles.iter().all(|tile| tile.doc == 7 && tile.row_tile <= tile.column_tile));
            prop_assert!(tiles.iter().all(|tile| tile.column_tile * TILE < num_tokens));
            if num_tokens > 0 {
                let (i, j) = (i % num_tokens, j % num_tokens);
                prop_assert!(distinct.contains(&(i.min(j) / TILE, i.max(j) / TILE)));
            }
        }
    }
}
