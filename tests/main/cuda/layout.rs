//! What the CUDA sources say of arguments, structs and constants is what `src/kernel.rs` says.

use std::path::PathBuf;

use maxhull::device::cuda::block_threads;
use maxhull::kernel::{self, CONSTANTS, Encoding, KERNELS, Kernel, Variant};

fn source(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn constants_are_the_same() {
    let more = [
        ("TOKEN_SOLVED", kernel::TOKEN_SOLVED),
        ("TOKEN_STALLED", kernel::TOKEN_STALLED),
        ("TOKEN_NEEDED", kernel::TOKEN_NEEDED),
        ("DOC_DONE", kernel::DOC_DONE),
        ("DOC_TOO_FINE", kernel::DOC_TOO_FINE),
        ("DOC_UNFINISHED", kernel::DOC_UNFINISHED),
    ];
    let lines = CONSTANTS.iter().chain(&more).map(|(name, value)| format!("constexpr unsigned {name} = {value};\n"));
    let expected: String = lines.collect();
    let source = source("kernels/shared/constants.cuh");
    let (_, found) = source.split_once("#pragma once\n\n").unwrap();
    assert_eq!(found, expected);
}

/// Name and type of each field: `u` for an unsigned, `f` for a float, with the length of an array.
fn fields(body: &str, field: impl Fn(&str) -> Option<(String, String)>) -> Vec<(String, String)> {
    body.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).filter_map(field).collect()
}

fn rust_field(line: &str) -> Option<(String, String)> {
    let (name, ty) = line.strip_prefix("pub ")?.trim_end_matches(',').split_once(": ")?;
    let ty = match ty {
        "u32" => "u".into(),
        "f32" => "f".into(),
        array => format!("u{}", array.strip_prefix("[u32; ")?.trim_end_matches(']')),
    };
    Some((name.into(), ty))
}

fn cuda_field(line: &str) -> Option<(String, String)> {
    let (ty, name) = line.trim_end_matches(';').split_once(' ')?;
    let ty = if ty == "float" { "f" } else { "u" };
    Some(match name.split_once('[') {
        Some((name, len)) => (name.into(), format!("{ty}{}", len.trim_end_matches(']'))),
        None => (name.into(), ty.into()),
    })
}

#[test]
fn structs_are_the_same() {
    let (rust, cuda) = (source("src/kernel.rs"), source("kernels/shared/ragged.cuh"));
    let mut num_structs = 0;
    for part in cuda.split("\nstruct ").skip(1) {
        let (name, body) = part.split_once(" {\n").unwrap();
        let name = name.trim_start_matches("alignas(16) ");
        let body = body.split_once("};").unwrap().0;
        let (_, theirs) = rust.split_once(&format!("pub struct {name} {{\n")).unwrap_or_else(|| panic!("no {name}"));
        let theirs = theirs.split_once("\n}").unwrap().0;
        assert_eq!(fields(body, cuda_field), fields(theirs, rust_field), "{name}");
        num_structs += 1;
    }
    assert!(num_structs >= 8);
}

#[test]
fn arguments_and_threads_are_the_same() {
    let variants = KERNELS.map(|kernel| Variant {
        kernel,
        encoding: Encoding::F16,
        subgroups: false,
        cooperative: None,
        is_wide: false,
    });
    let wide = variants.into_iter().filter(|variant| variant.kernel == Kernel::Maxsim);
    for variant in variants.into_iter().chain(wide.map(|variant| Variant { is_wide: true, ..variant })) {
        let kernel = variant.kernel;
        let name = if variant.is_wide { format!("{}_wide", kernel.name()) } else { kernel.name().to_owned() };
        let path = format!("kernels/{name}.cu");
        if !PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(&path).exists() {
            println!("{name} has no CUDA source");
            continue;
        }
        let text = source(&path);
        let (_, rest) = text.split_once("\nKERNEL(THREADS)\n").unwrap();
        let list = rest.split_once(") {").unwrap().0.rsplit_once('(').unwrap().1;
        let arguments: Vec<&str> = list.split(',').map(str::trim).collect();
        let (params, pointers) = arguments.split_last().unwrap();
        let found: Vec<(&str, bool)> = pointers
            .iter()
            .map(|argument| (argument.rsplit([' ', '*']).next().unwrap(), !argument.starts_with("const ")))
            .collect();
        let expected = kernel.arguments().iter().map(|&(name, access)| (name, access == kernel::Access::Write));
        assert_eq!(found, expected.collect::<Vec<_>>(), "{name}");
        assert!(params.ends_with("Params params"), "{name}: {params}");
        let threads = text.split_once("constexpr unsigned THREADS = ").unwrap().1.split_once(';').unwrap().0;
        let threads = CONSTANTS
            .iter()
            .find(|(name, _)| *name == threads)
            .map_or_else(|| threads.parse().unwrap(), |&(_, value)| value);
        assert_eq!(threads, block_threads(variant), "{name}");
    }
}
