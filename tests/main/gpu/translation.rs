//! Kernels without a device: every variant parses, is valid, and translates to SPIR-V and Metal's language.

use maxhull::kernel::{ENCODINGS, Encoding, Kernel, Variant};
use naga::back::{msl, spv};
use naga::front::wgsl;
use naga::valid::{Capabilities, ValidationFlags, Validator};

fn variants() -> Vec<Variant> {
    let of = |kernel, encoding, cooperative| Variant { kernel, encoding, subgroups: false, cooperative };
    let readers = [Kernel::Centre, Kernel::Gram];
    let plain = ENCODINGS.iter().flat_map(|&encoding| readers.map(|kernel| of(kernel, encoding, None)));
    plain.chain([8, 16].map(|side| of(Kernel::Gram, Encoding::F16, Some(side)))).collect()
}

/// What wgpu allows a variant.
fn capabilities(variant: Variant) -> Capabilities {
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    if variant.encoding == Encoding::F16 {
        capabilities |= Capabilities::SHADER_FLOAT16;
    }
    if variant.cooperative.is_some() {
        capabilities |= Capabilities::COOPERATIVE_MATRIX | Capabilities::SUBGROUP;
    }
    capabilities
}

#[test]
fn every_variant_is_valid_and_translates() {
    for variant in variants() {
        let source = variant.wgsl();
        let mut options = wgsl::Options::new();
        options.capabilities = capabilities(variant);
        let parsed = wgsl::Frontend::new_with_options(options).parse(&source);
        let module = parsed.unwrap_or_else(|error| panic!("{variant:?}: {}", error.emit_to_string(&source)));
        let mut validator = Validator::new(ValidationFlags::all(), capabilities(variant));
        let info = validator.validate(&module);
        let info = info.unwrap_or_else(|error| panic!("{variant:?}: {}", error.emit_to_string(&source)));
        assert_eq!(module.entry_points.len(), 1, "{variant:?}");
        assert_eq!(module.entry_points[0].name, variant.kernel.name(), "{variant:?}");
        // Buffers in the order of the arguments, then the parameters.
        let mut bindings: Vec<_> = module.global_variables.iter().filter_map(|(_, global)| global.binding).collect();
        bindings.sort_unstable_by_key(|binding| binding.binding);
        let num_bindings = variant.kernel.arguments().len() as u32 + 1;
        assert_eq!(bindings.iter().map(|binding| binding.binding).collect::<Vec<_>>(), Vec::from_iter(0..num_bindings));
        for &(name, _) in variant.kernel.arguments() {
            let is_bound = module.global_variables.iter().any(|(_, global)| global.name.as_deref() == Some(name));
            assert!(is_bound, "{variant:?} has no {name}");
        }
        let workgroup_bytes: u32 = module
            .global_variables
            .iter()
            .filter(|(_, global)| global.space == naga::AddressSpace::WorkGroup)
            .map(|(_, global)| module.types[global.ty].inner.size(module.to_ctx()))
            .sum();
        assert!(workgroup_bytes <= 16 << 10, "{variant:?} wants {workgroup_bytes} bytes of workgroup memory");
        let words = spv::write_vec(&module, &info, &spv::Options { lang_version: (1, 3), ..Default::default() }, None);
        assert!(words.is_ok(), "{variant:?}: {:?}", words.err());
        let options = msl::Options { lang_version: (3, 1), fake_missing_bindings: true, ..Default::default() };
        let metal = msl::write_string(&module, &info, &options, &msl::PipelineOptions::default());
        assert!(metal.is_ok(), "{variant:?}: {:?}", metal.err());
    }
}
