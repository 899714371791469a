//! A folder that is written beside its final name and renamed when it is whole.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tempfile::TempDir;

use super::{FILES, MANIFEST_FILE};
use crate::error::{Error, Result};
use crate::interrupt;

/// The folder under construction. Dropping it (an error, a panic, Ctrl-C) removes everything.
#[derive(Debug)]
pub struct Staging {
    dir: TempDir,
    out: PathBuf,
    replace: bool,
    on_exit: interrupt::RemoveOnExit,
}

impl Staging {
    /// Checks that `out` may be written and creates a folder beside it.
    ///
    /// # Errors
    /// [`Error::Usage`] when `out` exists and `force` is not given, when it is no pruned corpus, or when replacing it
    /// would remove `corpus`.
    pub fn new(out: &Path, corpus: &Path, force: bool) -> Result<Self> {
        let out = std::path::absolute(out).with_context(|| format!("{}: not a usable path", out.display()))?;
        let (Some(parent), Some(name)) = (out.parent(), out.file_name()) else {
            return Err(Error::Usage(format!("{}: the output needs a name of its own", out.display())));
        };
        let replace = check_out(&out, corpus, force)?;
        let prefix = format!(".{}.partial-", name.to_string_lossy());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent);
        let dir = dir.with_context(|| format!("{}: no folder can be created here", parent.display()))?;
        let on_exit = interrupt::RemoveOnExit::new(dir.path());
        Ok(Staging { dir, out, replace, on_exit })
    }

    /// Path of a file under construction.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Gives the folder its final name. Every file in it must have been synced.
    ///
    /// # Errors
    /// [`Error::Failure`]; the previous output, if any, is then still in place.
    pub fn publish(self) -> Result<()> {
        sync_dir(self.dir.path())?;
        open_permissions(self.dir.path())?;
        let out = &self.out;
        let renamed = || format!("{}: the finished output could not be given this name", out.display());
        if !self.replace {
            // An empty folder of this name is replaced by the rename itself; anything else makes it fail.
            std::fs::rename(self.dir.path(), out).with_context(renamed)?;
        } else {
            let mut old = self.dir.path().as_os_str().to_owned();
            old.push(".old");
            let old = PathBuf::from(old);
            std::fs::rename(out, &old).with_context(renamed)?;
            if let Err(error) = std::fs::rename(self.dir.path(), out) {
                std::fs::rename(&old, out).with_context(|| format!("the previous output is now {}", old.display()))?;
                return Err(Error::Failure(anyhow::Error::new(error).context(renamed())));
            }
            std::fs::remove_dir_all(&old).with_context(|| format!("{}: left behind", old.display()))?;
        }
        drop(self.on_exit);
        // The name is gone; there is nothing left to remove.
        let _ = self.dir.keep();
        if let Some(parent) = out.parent() {
            sync_dir(parent)?;
        }
        Ok(())
    }
}

/// Whether `out` is a pruned corpus that is to be replaced.
fn check_out(out: &Path, corpus: &Path, force: bool) -> Result<bool> {
    let metadata = match std::fs::symlink_metadata(out) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(anyhow::Error::new(error).context(format!("{}", out.display())).into()),
    };
    let usage = |why: &str| Err(Error::Usage(format!("{}: {why}", out.display())));
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if b.starts_with(&a));
    if same(out, corpus) {
        return usage("is the corpus itself or holds it, and the input is never overwritten; choose another output");
    }
    if !metadata.is_dir() {
        return usage("exists and is not a folder; choose another output or remove it yourself");
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(out).with_context(|| format!("{}: cannot be listed", out.display()))? {
        let entry = entry.with_context(|| format!("{}: cannot be listed", out.display()))?;
        names.push(entry.file_name());
    }
    if names.is_empty() {
        return Ok(false);
    }
    if !force {
        return usage("exists; choose another output, or replace it with --force");
    }
    if !super::manifest::is_ours(&out.join(MANIFEST_FILE)) {
        return usage("is not a folder that maxhull wrote (no manifest.json of its own), so --force leaves it alone");
    }
    if let Some(foreign) = names.iter().find(|name| !FILES.iter().any(|ours| *name == ours)) {
        return usage(&format!("holds {}, which maxhull did not write, so --force leaves it alone", foreign.display()));
    }
    Ok(true)
}

/// Makes names durable, where the system can.
pub(super) fn sync_dir(path: &Path) -> Result<()> {
    if cfg!(unix) {
        let synced = File::open(path).and_then(|dir| dir.sync_all());
        synced.with_context(|| format!("{}: could not be synced", path.display()))?;
    }
    Ok(())
}

/// A temporary folder is private; an output has the permissions of any new folder.
#[cfg(unix)]
fn open_permissions(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    // The mode that the umask gives can only be seen on something new.
    let probe = path.join("umask");
    let mode = std::fs::create_dir(&probe).and_then(|()| std::fs::metadata(&probe)).map(|probe| probe.permissions());
    let set = mode.and_then(|mode| {
        std::fs::remove_dir(&probe)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode.mode() & 0o777))
    });
    Ok(set.with_context(|| format!("{}: permissions could not be set", path.display()))?)
}

#[cfg(not(unix))]
fn open_permissions(_path: &Path) -> Result<()> {
    Ok(())
}
