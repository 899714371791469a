//! A folder of its own for each test, corpora to put there, and the binary.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;
use zip::write::SimpleFileOptions;

pub const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/cranfield");

/// Header of a `.npy` of version 1.0, written as text so that it can be wrong.
pub fn npy_header(dict: &str) -> Vec<u8> {
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    let text = format!("{dict:<width$}\n", width = (dict.len() + 11).next_multiple_of(64) - 11);
    header.extend((text.len() as u16).to_le_bytes());
    header.extend(text.bytes());
    header
}

pub fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    [npy_header(&dict), data.to_vec()].concat()
}

/// `values` as `<f4`.
pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// How the arrays of an `.npz` are stored.
#[derive(Clone, Copy, PartialEq)]
pub enum Packing {
    Stored,
    Compressed,
}

pub fn npz(packing: Packing, members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let method = match packing {
        Packing::Stored => zip::CompressionMethod::Stored,
        Packing::Compressed => zip::CompressionMethod::Deflated,
    };
    for (name, bytes) in members {
        let options = SimpleFileOptions::default().compression_method(method);
        archive.start_file(format!("{name}.npy"), options).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

/// A temporary folder; everything a test writes lies in it.
pub struct Bench {
    dir: TempDir,
}

impl Bench {
    pub fn new() -> Self {
        Bench { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// A folder with an `embeddings.npy` and its lengths.
    pub fn corpus(&self, name: &str, embeddings: &[u8], lengths: &str) -> PathBuf {
        self.write(&format!("{name}/embeddings.npy"), embeddings);
        self.write(&format!("{name}/embeddings_lengths.json"), lengths.as_bytes());
        self.path(name)
    }

    /// A folder of f32 tokens.
    pub fn f32_corpus(&self, name: &str, dim: usize, lengths: &[usize], values: &[f32]) -> PathBuf {
        let shape = format!("({}, {dim})", lengths.iter().sum::<usize>());
        self.corpus(name, &npy("<f4", &shape, &f32_bytes(values)), &format!("{lengths:?}"))
    }

    /// The first documents of the example corpus, as f16.
    pub fn example(&self, name: &str, num_docs: usize) -> PathBuf {
        let (tokens, lengths) = example_tokens(num_docs);
        let shape = format!("({}, 128)", lengths.iter().sum::<usize>());
        self.corpus(name, &npy("<f2", &shape, &tokens), &format!("{lengths:?}"))
    }

    /// Names in the folder, sorted.
    pub fn names(&self) -> Vec<String> {
        names_in(self.dir.path())
    }

    /// Runs `maxhull` here.
    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::from(self.command(args).output().unwrap())
    }

    pub fn command(&self, args: &[&str]) -> Command {
        // Cargo's answer at run time, or at build time where there is no cargo: `benches/gpu/run` brings its own binary.
        let binary = std::env::var_os("CARGO_BIN_EXE_maxhull").unwrap_or_else(|| env!("CARGO_BIN_EXE_maxhull").into());
        let mut command = Command::new(binary);
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        // Without it Mesa's window system layer complains on standard error, where the tests expect our words alone.
        if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
            command.env("XDG_RUNTIME_DIR", self.dir.path());
        }
        command
    }

    /// Prunes `corpus` to the folder `out` and demands success.
    pub fn prune(&self, corpus: &str, out: &str, more: &[&str]) -> Ran {
        let ran = self.run(&[&["prune", corpus, "-o", out][..], more].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran
    }
}

/// Little-endian f16 tokens and the lengths of the first documents of the example corpus.
pub fn example_tokens(num_docs: usize) -> (Vec<u8>, Vec<usize>) {
    let embeddings = std::fs::read(Path::new(EXAMPLE).join("embeddings.npy")).unwrap();
    let lengths = std::fs::read_to_string(Path::new(EXAMPLE).join("embeddings_lengths.json")).unwrap();
    let lengths: Vec<usize> = serde_json::from_str(&lengths).unwrap();
    let lengths = lengths[..num_docs].to_vec();
    let num_bytes = lengths.iter().sum::<usize>() * 256;
    (embeddings[128..128 + num_bytes].to_vec(), lengths)
}

pub fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What a run left on its streams.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
}
