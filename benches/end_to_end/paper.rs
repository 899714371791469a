//! The paper's own loop, one SciPy HiGHS LP a token, run by a script on the first documents of the same corpus.
//!
//! The script takes `embeddings.npy embeddings_lengths.json --theta T --docs N --json` and prints an object with
//! `summary.tokens_per_second`: tokens over the seconds spent in LPs, one thread.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::common::Failure;

/// Share of the spectrum that is kept; the paper's best.
pub const THETA: f64 = 0.7;

/// Where the baseline is, if anywhere.
pub struct Baseline {
    pub script: Option<PathBuf>,
    pub python: String,
    pub num_docs: usize,
}

impl Default for Baseline {
    fn default() -> Self {
        Baseline { script: None, python: "python3".into(), num_docs: 8 }
    }
}

impl Baseline {
    /// Why there is nothing to run, if so.
    pub fn unavailable(&self) -> Option<String> {
        match &self.script {
            None => Some("no --paper-lp script given".into()),
            Some(script) if !script.is_file() => Some(format!("{} is not a file", script.display())),
            Some(_) => None,
        }
    }

    /// Tokens a second, on one thread.
    pub fn run(&self, corpus: &Path) -> Result<f64, Failure> {
        let script = self.script.as_deref().ok_or("no script")?;
        let mut command = Command::new(&self.python);
        command.arg(script).args(["embeddings.npy", "embeddings_lengths.json"].map(|name| corpus.join(name)));
        command.args(["--json", "--theta", &THETA.to_string(), "--docs", &self.num_docs.to_string()]);
        for threads in ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"] {
            command.env(threads, "1");
        }
        let output = command.output().map_err(|e| format!("{}: {e}", self.python))?;
        if !output.status.success() {
            return Err(format!("the script failed: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
        }
        let printed: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let rate = printed["summary"]["tokens_per_second"].as_f64();
        Ok(rate.ok_or("the script printed no summary.tokens_per_second")?)
    }
}
