//! Builds the libcuda.so of `kernels/shim`, for the tests of the library and of the command line.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use maxhull::kernel::{KERNELS, Kernel};

pub fn compiler() -> Option<String> {
    let named = std::env::var("CXX").ok().into_iter();
    let mut candidates = named.chain(["g++".into(), "clang++".into(), "c++".into()]);
    candidates.find(|name| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()))
}

/// Everything that the library is made of, as one number.
fn fingerprint(compiler: &str, kernels: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    compiler.hash(&mut hasher);
    FLAGS.hash(&mut hasher);
    for folder in [kernels.to_owned(), kernels.join("shared"), kernels.join("shim")] {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths.into_iter().filter(|path| path.is_file()) {
            (path.file_name(), std::fs::read(&path).unwrap()).hash(&mut hasher);
        }
    }
    hasher.finish()
}

const FLAGS: &str = "-std=c++20 -O1 -Wall -Wextra -Werror -Wno-unknown-pragmas -fPIC -fvisibility=hidden \
                     -ffp-contract=off -DMAXHULL_SHIM";

fn compile(compiler: &str, arguments: &[&str]) {
    let output = Command::new(compiler).args(arguments).output().unwrap();
    let (text, line) = (String::from_utf8_lossy(&output.stderr), arguments.join(" "));
    assert!(output.status.success(), "{compiler} {line}\n{text}");
}

/// Folder of the shim's libcuda.so, built once.
pub fn folder(compiler: &str, repository: &Path) -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| build(compiler, &repository.join("kernels")))
}

fn build(compiler: &str, kernels: &Path) -> PathBuf {
    let name = format!("cuda-shim-{:016x}", fingerprint(compiler, kernels));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let library = folder.join("libcuda.so");
    if library.exists() {
        return folder;
    }
    let scratch = folder.join(std::process::id().to_string());
    std::fs::create_dir_all(&scratch).unwrap();
    let shim = kernels.join("shim");
    let include = format!("-I{}", shim.display());
    let mut units: Vec<(PathBuf, Vec<String>)> =
        vec![(shim.join("fibers.cpp"), Vec::new()), (shim.join("driver.cpp"), Vec::new())];
    let sources = KERNELS.map(|kernel| {
        let reads_tokens = kernel.arguments().iter().any(|&(name, _)| name == "tokens");
        let encodings: &[&str] = if reads_tokens { &["F32", "F16", "BF16", "I8"] } else { &[""] };
        let archs: &[&str] = if kernel == Kernel::CeilingMma { &["750", "800", "900"] } else { &["750", "800"] };
        (kernel.name(), encodings, archs)
    });
    let wide: (_, &[&str], &[&str]) = ("maxsim_wide", &["F16", "BF16", "I8"], &["800", "900"]);
    for (name, encodings, archs) in sources.into_iter().chain([wide]) {
        let path = kernels.join(format!("{name}.cu"));
        for encoding in encodings {
            for arch in archs {
                units.push((path.clone(), vec![format!("-DENCODING_{encoding}"), format!("-DSHIM_ARCH={arch}")]));
            }
        }
    }
    let place = |unit: usize| scratch.join(format!("{unit}.o")).display().to_string();
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |threads| threads.get()) {
            scope.spawn(|| {
                loop {
                    let unit = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some((path, defines)) = units.get(unit) else { break };
                    let (path, object) = (path.display().to_string(), place(unit));
                    let flags = FLAGS.split_whitespace().chain(defines.iter().map(String::as_str));
                    let rest = [include.as_str(), "-x", "c++", "-c", &path, "-o", &object];
                    compile(compiler, &flags.chain(rest).collect::<Vec<_>>());
                }
            });
        }
    });
    let objects: Vec<String> = (0..units.len()).map(place).collect();
    let fresh = scratch.join("libcuda.so").display().to_string();
    let flags = ["-shared", "-pthread", "-o", &fresh];
    compile(compiler, &flags.into_iter().chain(objects.iter().map(String::as_str)).collect::<Vec<_>>());
    std::fs::rename(fresh, &library).unwrap();
    std::fs::remove_dir_all(scratch).unwrap();
    folder
}
