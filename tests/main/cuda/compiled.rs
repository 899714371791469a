//! The checked-in kernels are those of the sources.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use maxhull::device::cuda::entry_name;
use maxhull::kernel::{ENCODINGS, Encoding, Kernel, Variant};

use super::DTYPES;

fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

fn names(folder: &str, ending: &str) -> Vec<String> {
    let entries = std::fs::read_dir(kernels().join(folder)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(ending)).collect();
    names.sort();
    names
}

/// FNV-1a of the bytes as git stores them, as `kernels/build` has it.
fn fingerprint(bytes: &[u8]) -> u64 {
    let bytes = bytes.iter().filter(|&&byte| byte != b'\r');
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[test]
fn the_manifest_is_that_of_the_sources() {
    let text = std::fs::read_to_string(kernels().join("compiled/manifest")).unwrap();
    let noted: BTreeMap<String, String> = text
        .lines()
        .map(|line| line.split_once("  ").map(|(hash, path)| (path.into(), hash.into())).unwrap())
        .collect();
    let sources = [("", ".cu"), ("shared", ".cuh"), ("", "build")];
    let files = sources.into_iter().chain([".ptx", ".cubin", ".rs"].map(|ending| ("compiled", ending)));
    let paths = files.flat_map(|(folder, ending)| {
        names(folder, ending).into_iter().map(move |name| Path::new(folder).join(name).display().to_string())
    });
    let found: BTreeMap<String, String> = paths
        .map(|path| {
            let hash = fingerprint(&std::fs::read(kernels().join(&path)).unwrap());
            (path, format!("{hash:016x}"))
        })
        .collect();
    assert!(found == noted, "stale: run kernels/build\nfound {found:#?}\nnoted {noted:#?}");
}

/// Fails unless a variant is there for these architectures, in a version that all drivers load.
fn assert_compiled(variant: Variant, targets: &[&str]) {
    let entry = entry_name(variant);
    for target in targets {
        let ptx = std::fs::read_to_string(kernels().join(format!("compiled/{entry}.sm_{target}.ptx")))
            .unwrap_or_else(|error| panic!("{entry}: {error}, of {:?}", names("compiled", ".ptx")));
        assert!(ptx.contains(&format!(".visible .entry {entry}(")), "{entry}");
        assert!(ptx.contains(&format!(".target sm_{target}\n")), "{entry}");
        let cubin = std::fs::read(kernels().join(format!("compiled/{entry}.sm_{target}.cubin")));
        let is_elf = cubin.is_ok_and(|cubin| cubin.starts_with(b"\x7fELF"));
        assert_eq!(is_elf, target.ends_with('a'), "{entry}: machine code for one architecture alone, and only then");
        let newest = ptx.lines().next().unwrap().strip_prefix(".version ").unwrap().to_owned();
        assert_eq!(newest, "8.4", "{entry}: drivers from 550 on load PTX 8.4");
    }
}

#[test]
fn every_kernel_with_a_source_is_compiled() {
    for kernel in maxhull::kernel::KERNELS {
        if !kernels().join(format!("{}.cu", kernel.name())).exists() {
            continue;
        }
        for encoding in ENCODINGS {
            let variant = Variant { kernel, encoding, subgroups: false, cooperative: None, is_wide: false };
            assert_compiled(variant, &["75"]);
            if kernel == Kernel::Maxsim && encoding != Encoding::F32 {
                assert_compiled(Variant { is_wide: true, ..variant }, &["80", "90a"]);
            }
        }
    }
    assert_eq!(DTYPES.map(|dtype| Encoding::of(dtype, true)).len(), 4);
}

#[test]
fn compiling_again_changes_nothing() {
    let mut command = Command::new("python3");
    command.arg(kernels().join("build")).arg("--check");
    if let Some(wheels) = std::env::var_os("CUDA_WHEELS") {
        command.arg("--wheels").arg(wheels);
    }
    let Ok(output) = command.output() else {
        println!("no python3: the kernels are not compiled again");
        return;
    };
    let text = String::from_utf8_lossy(&output.stderr);
    if text.starts_with("the compilers are not there") {
        println!("no CUDA compilers (see kernels/README.md): the kernels are not compiled again");
        return;
    }
    assert!(output.status.success(), "{text}");
}
