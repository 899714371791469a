//! Every kernel in every variant, without a device: it is valid, every API's compiler gets a source, and its buffers
//! and structs are those of `kernel.rs`.
//!
//! Tools that are not installed are announced: `spirv-val` (Debian: spirv-tools), `tint` (browsers' compiler, strict
//! about barriers), `slangc` (reads HLSL).

use std::collections::BTreeSet;
use std::io::Write;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use maxhull::kernel::{
    Access, CONSTANTS, CeilingParams, Doc, DocResult, ENCODINGS, Encoding, Entry, GramParams, KERNELS, Kernel,
    MaxsimItem, MaxsimPair, MaxsimParams, SelectionParams, Tile, TokenState, Variant,
};
use naga::back::{hlsl, msl, spv};
use naga::front::wgsl;
use naga::proc::Layouter;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ShaderStage, StorageAccess, TypeInner};

/// What every WebGPU device has.
const MAX_THREADS: u32 = 256;
const MAX_WORKGROUP_BYTES: u32 = 16 << 10;

/// A kernel variant, read by naga.
struct Shader {
    variant: Variant,
    source: String,
    module: Module,
    info: ModuleInfo,
}

impl Shader {
    fn read(variant: Variant) -> Result<Self, String> {
        let source = variant.wgsl().ok_or("it has no shader")?;
        let mut options = wgsl::Options::new();
        options.capabilities = capabilities(variant);
        let parsed = wgsl::Frontend::new_with_options(options).parse(&source);
        let module = parsed.map_err(|error| error.emit_to_string(&source))?;
        let mut validator = Validator::new(ValidationFlags::all(), capabilities(variant));
        let info = validator.validate(&module).map_err(|error| error.emit_to_string(&source))?;
        Ok(Shader { variant, source, module, info })
    }

    fn size_of(&self, ty: naga::Handle<naga::Type>) -> u32 {
        let mut layouter = Layouter::default();
        layouter.update(self.module.to_ctx()).expect("a valid module has layouts");
        layouter[ty].size
    }

    fn globals(&self) -> impl Iterator<Item = &naga::GlobalVariable> {
        self.module.global_variables.iter().map(|(_, global)| global)
    }
}

/// Those of the features that a device is asked for when it runs this variant, and no others.
fn capabilities(variant: Variant) -> Capabilities {
    // To unpack f16 into f32 needs no feature, yet naga has a name for it.
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(Capabilities::SHADER_FLOAT16, variant.encoding == Encoding::F16);
    capabilities.set(Capabilities::SUBGROUP, variant.subgroups || variant.cooperative.is_some());
    capabilities.set(Capabilities::COOPERATIVE_MATRIX, variant.cooperative.is_some());
    capabilities
}

/// Every source once: options that a kernel does not look at make no variant.
fn variants() -> Vec<Variant> {
    let of =
        |kernel, encoding, subgroups, cooperative| Variant { kernel, encoding, subgroups, cooperative, is_wide: false };
    let encodings = |kernel| ENCODINGS.map(|encoding| (kernel, encoding));
    let plain = KERNELS.into_iter().flat_map(encodings);
    let plain =
        plain.flat_map(|(kernel, encoding)| [false, true].map(|subgroups| of(kernel, encoding, subgroups, None)));
    let cooperative = [8, 16].map(|side| of(Kernel::Gram, Encoding::F16, false, Some(side)));
    let mut seen = BTreeSet::new();
    let is_new = |variant: &Variant| variant.wgsl().is_some_and(|source| seen.insert((variant.kernel.name(), source)));
    plain.chain(cooperative).filter(is_new).collect()
}

/// Runs a check over every variant and reports all that fail.
fn each_shader(check: impl Fn(&Shader) -> Result<(), String>) {
    let problem = |variant| {
        let error = Shader::read(variant).and_then(|shader| check(&shader)).err()?;
        Some(format!("{variant:?}\n{error}"))
    };
    let problems: Vec<String> = variants().into_iter().filter_map(problem).collect();
    assert!(problems.is_empty(), "{} variants fail:\n{}", problems.len(), problems.join("\n"));
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what} is {found:?}, expected {expected:?}")) }
}

#[test]
fn every_kernel_is_valid_and_fits_every_device() {
    each_shader(|shader| {
        let [entry] = &shader.module.entry_points[..] else {
            return Err(format!("it has {} entry points", shader.module.entry_points.len()));
        };
        expect("the entry point", entry.name.as_str(), shader.variant.kernel.name())?;
        let threads = entry.workgroup_size.iter().product::<u32>();
        if threads == 0 || threads > MAX_THREADS || entry.workgroup_size[0] != threads {
            return Err(format!("workgroup_size is {:?}", entry.workgroup_size));
        }
        let shared = shader.globals().filter(|global| global.space == AddressSpace::WorkGroup);
        let bytes: u32 = shared.map(|global| shader.size_of(global.ty).next_multiple_of(16)).sum();
        if bytes > MAX_WORKGROUP_BYTES {
            return Err(format!("{bytes} bytes of workgroup memory, at most {MAX_WORKGROUP_BYTES}"));
        }
        Ok(())
    });
}

#[test]
fn bindings_are_the_arguments_of_the_kernel() {
    each_shader(|shader| {
        let kernel = shader.variant.kernel;
        let mut found: Vec<_> = shader.globals().filter_map(|global| Some((global.binding?, global))).collect();
        found.sort_by_key(|(binding, _)| (binding.group, binding.binding));
        let slots: Vec<_> = found.iter().map(|(binding, _)| (binding.group, binding.binding)).collect();
        let num_buffers = kernel.arguments().len() as u32;
        expect("the bindings", slots, (0..=num_buffers).map(|binding| (0, binding)).collect())?;
        for (&(name, access), (_, global)) in kernel.arguments().iter().zip(&found) {
            expect("an argument", global.name.as_deref(), Some(name))?;
            let stores = StorageAccess::STORE;
            let access = if access == Access::Write { StorageAccess::LOAD | stores } else { StorageAccess::LOAD };
            expect(name, global.space, AddressSpace::Storage { access })?;
        }
        let (_, params) = found[found.len() - 1];
        expect("the last argument", params.space, AddressSpace::Uniform)?;
        expect("its size", shader.size_of(params.ty) as usize, kernel.params_bytes())
    });
}

/// Name, size, and the offset of each member.
type Layout = (&'static str, usize, Vec<(&'static str, usize)>);

macro_rules! layout {
    ($name:ident { $($member:ident),* }) => {
        (stringify!($name), size_of::<$name>(), vec![$((stringify!($member), offset_of!($name, $member))),*])
    };
}

/// Structs that host and kernels share; padding is not listed.
fn layouts() -> Vec<Layout> {
    vec![
        layout!(Doc { first_token, num_tokens, gram_start, num_first, max_kept, doc_idx, first_removed }),
        layout!(Tile { doc, row_tile, column_tile }),
        layout!(GramParams { num_items, num_chunks, is_centred }),
        layout!(SelectionParams {
            num_items,
            scoring,
            is_project,
            inside,
            stop,
            rounding,
            margin,
            max_steps,
            is_resumed
        }),
        layout!(TokenState { upper, level, num_support, status }),
        layout!(DocResult { num_kept, status, num_undecided, unit }),
        layout!(MaxsimParams {
            num_items,
            num_chunks,
            scoring,
            has_matches,
            has_query_scales,
            has_token_scales,
            is_summed
        }),
        layout!(MaxsimItem {
            first_query_token,
            num_query_tokens,
            first_token,
            num_tokens,
            first_maximum,
            first_match
        }),
        layout!(MaxsimPair { first_maximum, chunk_stride, num_chunks, num_query_tokens }),
        layout!(CeilingParams { num_items, num_steps, factor, summand }),
    ]
}

/// Chunks of tokens are structs too, of 16 bytes and with no counterpart on the host.
const CHUNK: &str = "Chunk";

#[test]
fn structs_are_those_of_the_host() {
    let layouts = layouts();
    each_shader(|shader| {
        for global in shader.globals().filter(|global| global.binding.is_some()) {
            let argument = global.name.as_deref().unwrap_or_default();
            let element = match shader.module.types[global.ty].inner {
                TypeInner::Array { base, .. } => base,
                _ => global.ty,
            };
            let ty = &shader.module.types[element];
            let TypeInner::Struct { members, span } = &ty.inner else { continue };
            let name = ty.name.as_deref().unwrap_or_default();
            if name == CHUNK {
                expect("the size of a chunk", *span, 16)?;
                continue;
            }
            let Some((_, size, expected)) = layouts.iter().find(|layout| layout.0 == name) else {
                return Err(format!("{argument} holds {name}, which this test does not know: add it to layouts()"));
            };
            expect(name, *span as usize, *size)?;
            let member =
                |member: &naga::StructMember| (member.name.clone().unwrap_or_default(), member.offset as usize);
            let found: Vec<_> = members.iter().map(member).filter(|(name, _)| !name.starts_with("padding")).collect();
            expect(name, found, expected.iter().map(|&(name, offset)| (name.to_owned(), offset)).collect())?;
        }
        Ok(())
    });
}

/// Where a kernel reads these as vectors, their elements still have the size of the struct.
#[test]
fn elements_have_the_size_of_their_struct() {
    let sizes = [
        ("docs", size_of::<Doc>()),
        ("chunks", size_of::<Doc>()),
        ("faces", size_of::<Entry>()),
        ("entries", size_of::<Entry>()),
        ("tiles", size_of::<Tile>()),
        ("states", size_of::<TokenState>()),
        ("results", size_of::<DocResult>()),
        ("tokens", 16),
        ("queries", 16),
    ];
    each_shader(|shader| {
        for global in shader.globals().filter(|global| global.binding.is_some()) {
            let Some(&(name, size)) = sizes.iter().find(|(name, _)| global.name.as_deref() == Some(name)) else {
                continue;
            };
            let TypeInner::Array { stride, .. } = shader.module.types[global.ty].inner else {
                return Err(format!("{name} is no array"));
            };
            expect(name, stride as usize, size)?;
        }
        Ok(())
    });
}

#[test]
fn constants_have_their_names_once() {
    let names: BTreeSet<&str> = CONSTANTS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names.len(), CONSTANTS.len());
}

/// Every file belongs to a kernel, so that none is left behind.
#[test]
fn every_source_file_is_part_of_a_kernel() {
    let root = Path::new("shaders");
    if !root.is_dir() {
        println!("the sources are not here: only what was compiled in is checked");
        return;
    }
    let sources: Vec<String> = variants().into_iter().filter_map(Variant::wgsl).collect();
    for path in files(root) {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(sources.iter().any(|source| source.contains(&text)), "{} is in no kernel", path.display());
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn every_kernel_translates_to_spirv() {
    let validator = tool("spirv-val", "--version");
    each_shader(|shader| {
        let options = spv::Options { lang_version: (1, 3), ..spv::Options::default() };
        let words = spv::write_vec(&shader.module, &shader.info, &options, None).map_err(|error| error.to_string())?;
        if words.len() < 20 {
            return Err("the SPIR-V is empty".into());
        }
        // It does not know naga's cooperative matrices.
        if !validator || shader.variant.cooperative.is_some() {
            return Ok(());
        }
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        pipe(Command::new("spirv-val").args(["--target-env", "vulkan1.1", "-"]), &bytes)
    });
}

#[test]
fn every_kernel_translates_to_msl() {
    each_shader(|shader| {
        let options = msl::Options { lang_version: (3, 1), ..msl::Options::default() };
        let pipeline = msl::PipelineOptions::default();
        let (text, _) =
            msl::write_string(&shader.module, &shader.info, &options, &pipeline).map_err(|error| error.to_string())?;
        names_its_entry(shader, &text)
    });
}

#[test]
fn every_kernel_translates_to_hlsl() {
    let reader = tool("slangc", "-v");
    each_shader(|shader| {
        if shader.variant.cooperative.is_some() {
            // DirectX has none.
            return Ok(());
        }
        let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_2, ..hlsl::Options::default() };
        let pipeline =
            hlsl::PipelineOptions { entry_point: Some((ShaderStage::Compute, shader.variant.kernel.name().into())) };
        let mut text = String::new();
        let mut writer = hlsl::Writer::new(&mut text, &options, &pipeline);
        writer.write(&shader.module, &shader.info, None).map_err(|error| error.to_string())?;
        names_its_entry(shader, &text)?;
        if !reader {
            return Ok(());
        }
        let file = Scratch::new("hlsl", &text);
        let args = ["-lang", "hlsl", "-profile", "sm_6_2", "-target", "hlsl", "-stage", "compute", "-entry"];
        pipe(Command::new("slangc").args(args).arg(shader.variant.kernel.name()).arg(&file.path), &[])
    });
}

fn names_its_entry(shader: &Shader, text: &str) -> Result<(), String> {
    let name = shader.variant.kernel.name();
    // Translators add to names that their language has taken.
    if text.contains(&format!("void {name}")) { Ok(()) } else { Err(format!("no entry point {name} in\n{text}")) }
}

/// Browsers' compiler: besides another opinion on types, the only one that refuses barriers that not all threads of a
/// workgroup may reach.
#[test]
fn every_kernel_is_accepted_by_tint() {
    if !tool("tint", "--help") {
        return;
    }
    each_shader(|shader| {
        if shader.variant.cooperative.is_some() {
            return Ok(());
        }
        let enable = if shader.variant.subgroups { "enable subgroups;\n" } else { "" };
        let file = Scratch::new("wgsl", &format!("{enable}{}", shader.source));
        pipe(Command::new("tint").args(["--format", "wgsl", "-o", "/dev/null"]).arg(&file.path), &[])
    });
}

/// Whether a tool can be started; announces if not.
fn tool(name: &str, asks: &str) -> bool {
    let found = Command::new(name).arg(asks).stdin(Stdio::null()).output().is_ok();
    if !found {
        println!("{name} is not installed: its opinion is missing");
    }
    found
}

/// Runs a tool on `input`; what it prints when it fails.
fn pipe(command: &mut Command, input: &[u8]) -> Result<(), String> {
    let io = |error: std::io::Error| format!("a tool could not be run: {error}");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(io)?;
    // The tool may end before it has read everything: its exit says why.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input));
    let output = child.wait_with_output().map_err(io)?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

/// A file that goes when it is dropped.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new(extension: &str, text: &str) -> Self {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or_default().replace(':', "_");
        let path = std::env::temp_dir().join(format!("maxhull_{}_{name}.{extension}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Scratch { path }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left behind is only a file in the system's temporary folder.
        let _ = std::fs::remove_file(&self.path);
    }
}
