//! Ranks packed f16 documents and shows which token matched: `cargo run --example score_f16`.

use maxhull::half::f16;
use maxhull::{Error, Scorer, Scoring, TokenBatch, TokenData};

fn main() -> Result<(), Error> {
    // What an index holds: all tokens in a row, and where each document starts.
    let tokens: Vec<f16> = [0.5, 0.5, 1.0, 0.0, 0.0, 0.25].map(f16::from_f32).to_vec();
    let docs = TokenBatch::new(TokenData::F16(&tokens), &[0, 1, 3], 2)?;
    let query = TokenBatch::new(TokenData::F32(&[1.0, 0.0, 0.0, 1.0]), &[0, 2], 2)?;

    let scorer = Scorer::new(Scoring::Plain);
    let best = scorer.top_k(query, docs, 1)?[0][0];
    let matched = &scorer.pair_matches(query, docs, &[(0, best.doc_idx as u32)])?[0];

    assert_eq!((best.doc_idx, best.score), (1, 1.25));
    assert_eq!(matched.tokens[1].token_idx, Some(1));
    println!("document {}, score {}, matches {:?}", best.doc_idx, best.score, matched.tokens);
    Ok(())
}
