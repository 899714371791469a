//! Scores an Arrow `list<fixed_size_list<f32, dim>>` without a copy: `cargo run --example score_arrow`.

use arrow_array::builder::{FixedSizeListBuilder, Float32Builder, LargeListBuilder};
use arrow_array::{cast::AsArray, types::Float32Type};
use maxhull::{Scorer, Scoring, TokenBatch, TokenData};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Two documents of one and two tokens.
    let mut column = LargeListBuilder::new(FixedSizeListBuilder::new(Float32Builder::new(), 2));
    for doc in [vec![[0.5, 0.5]], vec![[1.0, 0.0], [0.0, 0.25]]] {
        for token in doc {
            column.values().values().append_slice(&token);
            column.values().append(true);
        }
        column.append(true);
    }
    let column = column.finish();
    // Values and offsets are already what a batch borrows; a sliced column works too.
    let tokens = column.values().as_fixed_size_list();
    let values = tokens.values().as_primitive::<Float32Type>().values();
    let offsets: Vec<u64> = column.value_offsets().iter().map(|&offset| offset as u64).collect();
    let docs = TokenBatch::new(TokenData::F32(values), &offsets, tokens.value_length() as usize)?;

    let query = TokenBatch::new(TokenData::F32(&[1.0, 0.0, 0.0, 1.0]), &[0, 2], 2)?;
    let scores = Scorer::new(Scoring::Plain).scores(query, docs)?;
    assert_eq!(scores, [0.5 + 0.5, 1.0 + 0.25]);
    println!("scores: {scores:?}");
    Ok(())
}
