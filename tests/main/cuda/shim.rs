//! Runs the tests named `on_device` once more in a process whose CUDA driver is `kernels/shim`: the same device code on
//! the host's side, the same kernels, executed by the CPU.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use maxhull::kernel::{KERNELS, Kernel};

/// Set in the process that has the shim for a driver.
const INSIDE: &str = "MAXHULL_CUDA_SHIM";

pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

fn compiler() -> Option<String> {
    let named = std::env::var("CXX").ok().into_iter();
    let mut candidates = named.chain(["g++".into(), "clang++".into(), "c++".into()]);
    candidates.find(|name| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()))
}

/// Everything that the library is made of, as one number.
fn fingerprint(compiler: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    compiler.hash(&mut hasher);
    FLAGS.hash(&mut hasher);
    for folder in [kernels(), kernels().join("shared"), kernels().join("shim")] {
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
fn library(compiler: &str) -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| build(compiler))
}

fn build(compiler: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cuda-shim-{:016x}", fingerprint(compiler)));
    let library = folder.join("libcuda.so");
    if library.exists() {
        return folder;
    }
    let scratch = folder.join(std::process::id().to_string());
    std::fs::create_dir_all(&scratch).unwrap();
    let (shim, kernels) = (kernels().join("shim"), kernels());
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
        if !path.exists() {
            continue;
        }
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

/// Runs this binary's tests whose names contain `filter` under the shim.
fn run(filter: &str, settings: &[(&str, &str)]) {
    if is_inside() {
        return;
    }
    if !cfg!(target_os = "linux") {
        println!("the CUDA shim is for Linux");
        return;
    }
    let Some(compiler) = compiler() else {
        println!("no C++ compiler: the CUDA kernels are not executed");
        return;
    };
    let folder = library(&compiler);
    let mut command = Command::new(std::env::current_exe().unwrap());
    // One at a time, as the shim has it, and each with all the memory.
    command
        .args([filter, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .env("LD_LIBRARY_PATH", folder)
        .envs(settings.iter().copied());
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{settings:?}\n{out}\n{err}");
    assert!(!out.contains(" 0 passed"), "{filter} names no test");
}

#[test]
fn kernels_of_compute_80_run() {
    run("cuda::gram::on_device", &[]);
    run("cuda::maxsim::on_device", &[]);
}

#[test]
fn kernels_of_compute_75_run() {
    run("cuda::gram::on_device", &[("SHIM_CAPABILITY", "75")]);
    run("cuda::maxsim::on_device", &[("SHIM_CAPABILITY", "75")]);
}

#[test]
fn the_wide_kernels_run() {
    for capability in ["75", "80", "90", "100"] {
        run("cuda::wide::on_device", &[("SHIM_CAPABILITY", capability)]);
    }
    // Of which a trial convinces nobody.
    run("cuda::wide::on_device", &[("SHIM_CAPABILITY", "90"), ("SHIM_WGMMA_LIES", "1")]);
}

#[test]
fn benches_run() {
    for capability in ["75", "80", "90"] {
        run("cuda::bench::on_device_ceilings", &[("SHIM_CAPABILITY", capability)]);
    }
    run("cuda::bench::on_device_rows", &[("SHIM_CAPABILITY", "90")]);
}

#[test]
fn engines_run() {
    run("cuda::dominance::on_device", &[]);
    run("cuda::engine::on_device", &[]);
}

#[test]
fn the_device_keeps_its_promises() {
    run("cuda::order::on_device", &[("SHIM_MEMORY", "268435456")]);
}

#[test]
fn unsuitable_devices_are_refused() {
    for settings in [("SHIM_CAPABILITY", "61"), ("SHIM_DRIVER", "12030")] {
        run("cuda::shim::refused", &[settings, ("MAXHULL_CUDA_REFUSED", "1")]);
    }
}

#[test]
fn refused() {
    use maxhull::device::DeviceError;
    use maxhull::device::cuda::{CudaDevice, adapters};
    if std::env::var_os("MAXHULL_CUDA_REFUSED").is_none() {
        return;
    }
    let opened = CudaDevice::open(None).map(|_| ());
    assert!(matches!(&opened, Err(DeviceError::Unsuitable(why)) if why.contains("needed")), "{opened:?}");
    assert!(adapters()[0].unsuitable.is_some());
}
