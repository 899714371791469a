//! Scores `ndarray` matrices without a copy: `cargo run --example score_ndarray`.

use maxhull::{Scorer, Scoring, TokenBatch, TokenData};
use ndarray::{Array2, array};

/// Rows of a matrix as documents between `offsets`.
fn batch<'a>(tokens: &'a Array2<f32>, offsets: &'a [u64]) -> Result<TokenBatch<'a>, Box<dyn std::error::Error>> {
    let values = tokens.as_slice().ok_or("tokens must be contiguous and row-major")?;
    Ok(TokenBatch::new(TokenData::F32(values), offsets, tokens.ncols())?)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let query: Array2<f32> = array![[1.0, 0.0], [0.0, 1.0]];
    let docs: Array2<f32> = array![[0.5, 0.5], [1.0, 0.0], [0.0, 0.25]];

    let (query, docs) = (batch(&query, &[0, 2])?, batch(&docs, &[0, 1, 3])?);
    let scores = Scorer::new(Scoring::Plain).scores(query, docs)?;

    assert_eq!(scores, [0.5 + 0.5, 1.0 + 0.25]);
    println!("scores: {scores:?}");
    Ok(())
}
