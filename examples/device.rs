//! Prunes and scores on the best adapter that wgpu finds, or says why there is none.
//!
//!     cargo run --example device --features wgpu

use std::sync::Arc;

use maxhull::device::wgpu::WgpuDevice;
use maxhull::engine::{GpuEngine, Notice};
use maxhull::{Method, PruneOptions, Pruner, Scorer, Scoring, Target, TokenBatch, TokenData};

fn main() -> Result<(), maxhull::Error> {
    let device = match WgpuDevice::open(None) {
        Ok(device) => Arc::new(device),
        Err(error) => {
            eprintln!("{error}");
            return Ok(());
        }
    };
    // Two documents of three tokens each; offsets count tokens.
    let tokens: [f32; 12] = [0.9, 0.0, 0.0, 0.9, 0.5, 0.4, 0.8, 0.1, 0.1, 0.8, 0.2, 0.2];
    let docs = TokenBatch::new(TokenData::F32(&tokens), &[0, 3, 6], 2)?;

    let notify = Arc::new(|notice: &Notice| eprintln!("{notice}"));
    let engine = GpuEngine::new(Arc::clone(&device)).with_notices(notify);
    let options = PruneOptions { scoring: Scoring::Clamped, method: Method::Hull(Target::Epsilon(0.05)) };
    let pruned = Pruner::new(Arc::new(engine), options)?.prune(&docs, None)?;
    assert_eq!(pruned.docs[0].keep().kept().collect::<Vec<_>>(), [0, 1]);
    println!("{} of {} tokens stay", pruned.stats.num_kept, pruned.stats.num_tokens);

    let query = TokenBatch::new(TokenData::F32(&[1.0, 0.0, 0.0, 1.0]), &[0, 2], 2)?;
    let scores = Scorer::new(Scoring::Clamped).on(device).scores(query, docs)?;
    println!("scores {scores:?}");
    Ok(())
}
