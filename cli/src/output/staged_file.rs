//! One file that is written beside its final name and renamed when it is whole.

use std::path::{Path, PathBuf};

use anyhow::Context;
use tempfile::TempDir;

use super::staging::sync_dir;
use crate::error::{Error, Result};
use crate::interrupt;

/// The file under construction, in a folder of its own. Dropping it (an error, a panic, Ctrl-C) removes it.
#[derive(Debug)]
pub struct StagedFile {
    dir: TempDir,
    out: PathBuf,
    force: bool,
    on_exit: interrupt::RemoveOnExit,
}

impl StagedFile {
    /// Checks that `out` may be written and prepares a place beside it. `inputs` are files that must not be replaced.
    ///
    /// # Errors
    /// [`Error::Usage`] when `out` exists and `force` is not given, or when it is no file or one of the inputs.
    pub fn new(out: &Path, inputs: &[&Path], force: bool) -> Result<Self> {
        let out = std::path::absolute(out).with_context(|| format!("{}: not a usable path", out.display()))?;
        let (Some(parent), Some(name)) = (out.parent(), out.file_name()) else {
            return Err(Error::Usage(format!("{}: the output needs a name of its own", out.display())));
        };
        check_out(&out, inputs, force)?;
        let prefix = format!(".{}.partial-", name.to_string_lossy());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent);
        let dir = dir.with_context(|| format!("{}: no file can be created here", parent.display()))?;
        let on_exit = interrupt::RemoveOnExit::new(dir.path());
        Ok(StagedFile { dir, out, force, on_exit })
    }

    /// Path of the file under construction, which the caller creates.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("file")
    }

    /// Gives the file its final name. It must have been synced.
    ///
    /// # Errors
    /// [`Error::Failure`], or [`Error::Usage`] for a file that appeared meanwhile; what `out` was is then still there.
    pub fn publish(self) -> Result<()> {
        check_out(&self.out, &[], self.force)?;
        std::fs::rename(self.path(), &self.out)
            .with_context(|| format!("{}: the finished output could not be given this name", self.out.display()))?;
        drop(self.on_exit);
        drop(self.dir);
        self.out.parent().map_or(Ok(()), sync_dir)
    }
}

fn check_out(out: &Path, inputs: &[&Path], force: bool) -> Result<()> {
    let metadata = match std::fs::metadata(out) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(anyhow::Error::new(error).context(format!("{}", out.display())).into()),
    };
    let usage = |why: &str| Err(Error::Usage(format!("{}: {why}", out.display())));
    let same = |input: &&Path| matches!((out.canonicalize(), input.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if inputs.iter().any(same) {
        return usage("is an input, and the input is never overwritten; choose another output");
    }
    if !metadata.is_file() {
        return usage("exists and is not a file; choose another output");
    }
    if !force {
        return usage("exists; choose another output, or replace it with --force");
    }
    Ok(())
}
