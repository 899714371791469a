//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use maxhull::engine::{DeviceSpec, DeviceSpecs, Engine};

/// Prune the token vectors of late-interaction retrieval, with a proof of what any query can lose.
///
/// Exit codes: 0 done, 1 failure, 2 usage (an existing output without --force included), 3 invalid input,
/// 4 device or memory, 5 verification failed, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "maxhull", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Describe a corpus and predict what a pruning would keep
    Inspect(InspectArgs),
    /// Remove tokens, prove every removal, and write what stays
    Prune(PruneArgs),
    /// Prove a pruned corpus again from the original, what was kept and the certificate
    Verify(VerifyArgs),
    /// Say of each token of a document why it may go or must stay
    Explain(ExplainArgs),
    /// Score queries against a corpus: the best documents of each query, or every score
    Score(ScoreArgs),
    /// Measure a run against relevance judgements: nDCG, MRR, recall and precision at k
    Evaluate(EvaluateArgs),
    /// Say what can compute here, what to type for it, and which one `auto` takes
    Devices(DevicesArgs),
    /// Check and time every kernel on every device here
    Bench(BenchArgs),
    /// Print the completion script of a shell
    Completions {
        /// Shell to complete for
        shell: clap_complete::Shell,
    },
}

/// A corpus, and the output's form.
#[derive(Debug, Args)]
pub struct Common {
    /// Folder with embeddings.npy and embeddings_lengths.json, the .npy itself (its _lengths.json beside it), or an .npz
    /// with arrays `tokens` and `lengths` or `offsets`; f16 or f32
    pub corpus: PathBuf,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
    /// No progress bar
    #[arg(long, short)]
    pub quiet: bool,
    /// Threads that compute [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Tokens that are in work at a time; memory grows with it, the result does not depend on it [default: 65536, and
    /// 2097152 for each GPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_tokens: Option<u32>,
}

impl Common {
    /// Tokens that the CPU works on at a time.
    pub fn cpu_batch_tokens(&self) -> u32 {
        self.batch_tokens.unwrap_or(1 << 16)
    }

    /// Tokens that an engine is handed at a time.
    pub fn batch_tokens(&self, engine: &dyn Engine) -> u32 {
        if !engine.overlaps() {
            return self.cpu_batch_tokens();
        }
        self.batch_tokens.unwrap_or_else(|| self.gpu_batch_tokens().saturating_mul(engine.num_devices() as u32))
    }

    /// Tokens that a GPU is handed at a time: it overlaps what it is given, so it is given more.
    pub fn gpu_batch_tokens(&self) -> u32 {
        self.batch_tokens.unwrap_or(1 << 21)
    }
}

/// `maxhull inspect`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Input and form
    #[command(flatten)]
    pub common: Common,
    /// Scoring to predict for [default: both]
    #[arg(long, value_enum)]
    pub scoring: Option<ScoringArg>,
    /// Documents, evenly spaced, from which rank and keep rates are estimated
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub sample: u32,
}

/// `maxhull prune`
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Input and form
    #[command(flatten)]
    pub common: Common,
    /// Folder to write; appears whole or not at all
    #[arg(long, short, value_name = "OUT")]
    pub output: PathBuf,
    /// How far to prune
    #[command(flatten)]
    pub target: TargetArgs,
    /// Scoring that the bound holds for: `plain` is max q.x (ColBERT, PyLate), `clamped` is max(0, max q.x)
    #[arg(long, value_enum, default_value = "plain")]
    pub scoring: ScoringArg,
    /// How the kept tokens are chosen; whatever is removed is proven
    #[arg(long, value_enum, default_value = "hull")]
    pub strategy: StrategyArg,
    /// lp: share of the singular values that the truncation keeps, in (0, 1] [default: 0.7]
    #[arg(long, allow_negative_numbers = true, value_name = "SHARE")]
    pub theta: Option<f64>,
    /// norm: smallest norm that stays, in the units of the tokens [default: 0.5]
    #[arg(long, allow_negative_numbers = true, value_name = "NORM")]
    pub norm_threshold: Option<f32>,
    /// Tokens at the start of each document that always stay
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub protect_first: u32,
    /// Tokens at the end of each document that always stay
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub protect_last: u32,
    /// Where to compute: `cpu`, `wgpu`, `wgpu:N`, `cuda` or `cuda:N` (a GPU, see `maxhull devices`), several GPUs that
    /// share the work (`cuda:0,cuda:1`; `cuda:all` for every CUDA GPU), or `auto` for a discrete GPU if there is one (and
    /// with it every CUDA GPU of the same kind) and the CPU otherwise. Proofs are the CPU's in any case
    #[arg(long, value_name = "DEVICES", default_value = "auto", value_parser = devices)]
    pub device: DeviceSpecs,
    /// Replace an existing output, if it is empty or maxhull wrote it
    #[arg(long)]
    pub force: bool,
}

/// Exactly one of them for the strategy `hull`, none for the others.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct TargetArgs {
    /// Most that a query token of unit norm may lose on any document, in the units of the tokens; 0 is --lossless
    #[arg(long, allow_negative_numbers = true, value_name = "LOSS")]
    pub epsilon: Option<f32>,
    /// Share of each document's tokens to keep, in (0, 1]
    #[arg(long, allow_negative_numbers = true, value_name = "SHARE")]
    pub keep_ratio: Option<f64>,
    /// Most tokens to keep in a document
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,
    /// Most bytes of token data to keep over all documents (10G is 10^10, 10GiB is 10*2^30)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub max_bytes: Option<u64>,
    /// Remove only what provably never changes a score
    #[arg(long)]
    pub lossless: bool,
}

/// `maxhull verify`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Input and form
    #[command(flatten)]
    pub common: Common,
    /// Folder that `maxhull prune` wrote
    pub pruned: PathBuf,
}

/// `maxhull explain`
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Input and form
    #[command(flatten)]
    pub common: Common,
    /// Document, from 0
    #[arg(long, value_name = "D")]
    pub doc: usize,
    /// Token within the document, from 0 [default: all]
    #[arg(long, value_name = "T")]
    pub token: Option<usize>,
    /// Tolerance, as for `prune`
    #[arg(long, allow_negative_numbers = true, value_name = "LOSS", default_value_t = 0.2)]
    pub epsilon: f32,
    /// Scoring, as for `prune`
    #[arg(long, value_enum, default_value = "plain")]
    pub scoring: ScoringArg,
    /// File with the text of each document's tokens: one JSON list of strings per document and line
    #[arg(long, value_name = "FILE")]
    pub pieces: Option<PathBuf>,
}

/// `maxhull score`
#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// Folder with queries.npy and queries_lengths.json, the .npy itself (its _lengths.json beside it), or an .npz, laid
    /// out as a corpus; f16 or f32
    pub queries: PathBuf,
    /// Input and form
    #[command(flatten)]
    pub common: Common,
    /// Most documents a query, best first; equal scores rank by document [default: 100]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    pub top_k: Option<u32>,
    /// What a query token counts: `plain` is max q.x (ColBERT, PyLate), `clamped` is max(0, max q.x)
    #[arg(long, value_enum, default_value = "plain")]
    pub scoring: ScoringArg,
    /// File to write, whole or not at all. *.trec: lines `query Q0 document rank score maxhull`, queries and documents
    /// numbered from 1 in the order of the files. *.npy: every score, f32 [num_queries, num_docs]
    /// [default: TREC lines on standard output]
    #[arg(long, short, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Where to compute: `cpu`, `wgpu`, `wgpu:N`, `cuda` or `cuda:N` (a GPU, see `maxhull devices`), or `auto` for a
    /// discrete GPU if there is one and the CPU otherwise. One device, and of several GPUs the first
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = device)]
    pub device: DeviceSpec,
    /// Score of a document without tokens [default: 0 when clamped, an error when plain]
    #[arg(long, allow_negative_numbers = true, value_name = "SCORE")]
    pub empty_doc_score: Option<f32>,
    /// Replace an existing file
    #[arg(long)]
    pub force: bool,
}

/// `maxhull evaluate`
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// Ranking: lines `query Q0 document rank score tag`, as `maxhull score` writes them. Scores decide, ranks do not
    #[arg(long, value_name = "FILE")]
    pub run: PathBuf,
    /// Relevance judgements: lines `query 0 document gain`; a gain above 0 is relevant
    #[arg(long, value_name = "FILE")]
    pub qrels: PathBuf,
    /// Documents of each ranking that count
    #[arg(long, value_name = "K", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub k: u32,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// `maxhull devices`
#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// `maxhull bench`
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Device, as `maxhull devices` names it [default: all]
    #[arg(long, value_name = "DEVICE", value_parser = device)]
    pub device: Option<DeviceSpec>,
    /// Row to run; can be given several times [default: all]
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(maxhull::bench::NAMES))]
    pub kernel: Vec<String>,
    /// Small inputs and few repeats: enough to see that it works, not to quote
    #[arg(long)]
    pub quick: bool,
    /// Also run `gram` in cooperative matrices where the device has them: experimental in wgpu, and used by nothing else
    #[arg(long)]
    pub cooperative: bool,
    /// Real documents that the row `corpus` makes its own from, f16 or f32 [default: made-up ones]
    #[arg(long, value_name = "CORPUS")]
    pub corpus: Option<PathBuf>,
    /// Documents of the row `corpus` [default: 50000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub docs: Option<u64>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
    /// Print Markdown tables, to paste into an issue
    #[arg(long, conflicts_with = "json")]
    pub markdown: bool,
    /// Threads of the CPU [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

/// Scoring, as on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ScoringArg {
    /// max q.x: negative values count
    Plain,
    /// max(0, max q.x): negative values count 0
    Clamped,
}

impl From<ScoringArg> for maxhull::Scoring {
    fn from(scoring: ScoringArg) -> Self {
        match scoring {
            ScoringArg::Plain => maxhull::Scoring::Plain,
            ScoringArg::Clamped => maxhull::Scoring::Clamped,
        }
    }
}

/// Strategy, as on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StrategyArg {
    /// Farthest first to the hull of the kept tokens, down to a target
    Hull,
    /// Linear program after a truncated SVD (arXiv 2504.12778)
    Lp,
    /// Remove tokens of small norm (arXiv 2504.12778)
    Norm,
}

fn device(text: &str) -> Result<DeviceSpec, String> {
    text.parse().map_err(|_| match text.parse::<DeviceSpecs>() {
        Ok(_) => "one device at a time; only `prune` takes several".to_owned(),
        Err(_) => "auto, cpu, wgpu, wgpu:N, cuda or cuda:N, with N from 0".to_owned(),
    })
}

fn devices(text: &str) -> Result<DeviceSpecs, String> {
    text.parse().map_err(|_| {
        "auto, cpu, wgpu, wgpu:N, cuda, cuda:N, cuda:all, or several GPUs such as cuda:0,cuda:1, each once, with N from 0"
            .to_owned()
    })
}

fn size(text: &str) -> Result<u64, String> {
    parse_size::parse_size(text).map_err(|error| {
        format!("{error}; a size is a number of bytes such as 500M (powers of 1000) or 10GiB (of 1024)")
    })
}
