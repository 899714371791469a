//! Peers that live in Python: a worker process that scores when it is told to.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};
use maxhull::DType;

use crate::data::Shape;
use crate::paths::{Path, Run};

/// numpy with OpenBLAS and maxsim-cpu, each with one and two threads; those that are not installed are announced.
pub fn all<'a>(python: &str, shape: &Shape) -> Result<Vec<Path<'a>>> {
    let mut paths = Vec::new();
    for peer in ["numpy", "maxsim-cpu"] {
        for threads in [1, 2] {
            match Worker::start(python, peer, threads, shape)? {
                Some(mut worker) => paths.push(Path {
                    name: worker.name.clone(),
                    dtype: DType::F32,
                    threads,
                    tolerance: 1e-5,
                    run: Box::new(move || worker.run()),
                }),
                None => println!("{peer} is not installed for {python}"),
            }
        }
    }
    Ok(paths)
}

struct Worker {
    name: String,
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    folder: std::path::PathBuf,
}

impl Worker {
    fn start(python: &str, peer: &str, threads: usize, shape: &Shape) -> Result<Option<Worker>> {
        let folder = std::env::temp_dir().join(format!("maxsim-bench-{}-{peer}-{threads}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        write_shape(&folder, shape)?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers.py");
        let mut command = Command::new(python);
        for variable in ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS"] {
            command.env(variable, threads.to_string());
        }
        // Or idle threads spin into the next path's round.
        command.env("OPENBLAS_THREAD_TIMEOUT", "4");
        command.args([script, peer]).arg(&folder).arg(shape.dim.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start python")?;
        let stdin = child.stdin.take().context("stdin of python")?;
        let stdout = BufReader::new(child.stdout.take().context("stdout of python")?);
        let mut worker = Worker { name: String::new(), child, stdin, stdout, folder };
        worker.name = worker.line()?;
        Ok(if worker.name == "absent" { None } else { Some(worker) })
    }

    fn run(&mut self) -> Result<Run> {
        writeln!(self.stdin, "run")?;
        self.stdin.flush()?;
        let seconds = self.line()?.parse()?;
        let bytes = std::fs::read(self.folder.join("scores"))?;
        let scores = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok(Run { scores, seconds: Some(seconds) })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The worker leaves when its input ends; nothing is lost if it has left already.
        let _ = writeln!(self.stdin, "quit");
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn write_shape(folder: &std::path::Path, shape: &Shape) -> Result<()> {
    let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    std::fs::write(folder.join("query"), floats(&shape.queries.f32))?;
    std::fs::write(folder.join("docs"), floats(&shape.docs.f32))?;
    let offsets: Vec<u8> = shape.doc_offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect();
    Ok(std::fs::write(folder.join("offsets"), offsets)?)
}
