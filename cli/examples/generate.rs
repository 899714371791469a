//! Makes a corpus of any size from a small real one, for measuring at scale.
//!
//!     cargo run --release -p maxhull-cli --example generate -- CORPUS OUT [--docs 1000000] [--mean-tokens 67] [--seed 1]
//!
//! Each document is a run of consecutive tokens of a random real document, with a random rotation by sign changes and a
//! cyclic shift of the components (distances within the document stay as they are) and 1 % of noise, so that no two
//! documents are alike. Lengths spread from a third of the mean to twice the mean. The same seed gives the same bytes.

use std::io::Write;
use std::path::PathBuf;

use clap::Parser;
use maxhull::half::f16;
use maxhull_cli::corpus::{Corpus, LENGTHS_FILE, TOKENS_FILE};
use maxhull_cli::output::npy::NpyWriter;

#[derive(Parser)]
struct Args {
    /// Real corpus to draw from.
    corpus: PathBuf,
    /// Folder to create.
    out: PathBuf,
    /// Documents to make.
    #[arg(long, default_value_t = 1_000_000)]
    docs: u64,
    /// Mean tokens of a document.
    #[arg(long, default_value_t = 67)]
    mean_tokens: u64,
    /// Seed of the sequence.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let corpus = Corpus::open(&args.corpus)?;
    let dim = corpus.dim();
    std::fs::create_dir(&args.out)?;
    let mut tokens = NpyWriter::create(&args.out.join(TOKENS_FILE), "<f2", 2, Some(dim))?;
    let mut lengths = std::io::BufWriter::new(std::fs::File::create_new(args.out.join(LENGTHS_FILE))?);
    let mut random = Random(args.seed);
    let real = corpus.batch(0..corpus.num_docs())?;
    let mut rows = Vec::new();
    for doc_idx in 0..args.docs {
        let wanted = args.mean_tokens / 3 + random.below(args.mean_tokens * 4 / 3 + 1);
        let source = random.below(corpus.num_docs() as u64) as usize;
        let len = (wanted as usize).clamp(1, real.doc_len(source));
        let first = random.below((real.doc_len(source) - len + 1) as u64) as usize;
        rows.resize(len * dim, 0.0);
        real.doc(source).slice(first * dim..(first + len) * dim).to_f32(&mut rows);
        let (shift, signs) = (random.below(dim as u64) as usize, random.next());
        let mut halves = Vec::with_capacity(rows.len());
        for row in rows.chunks_exact(dim) {
            for k in 0..dim {
                let sign = if signs >> (k % 64) & 1 == 0 { 1.0 } else { -1.0 };
                // Uniform with the standard deviation of 1 % of a unit vector's component.
                let noise = (random.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
                let noise = noise * 0.0346 / (dim as f32).sqrt();
                halves.push(f16::from_f32(sign * row[(k + shift) % dim] + noise));
            }
        }
        tokens.write(bytemuck::cast_slice(&halves))?;
        write!(lengths, "{}{len}", if doc_idx == 0 { '[' } else { ',' })?;
    }
    writeln!(lengths, "]")?;
    lengths.flush()?;
    println!("{} tokens in {} documents", tokens.finish()?, args.docs);
    Ok(())
}
