//! Which backends this run tests. Absent hardware is announced, never skipped in silence: `REQUIRE_BACKENDS=cpu,wgpu`
//! turns absence into failure.

use maxhull::engine::{CpuEngine, Engine};

#[test]
fn required_backends_are_present() {
    let names: Vec<String> = CpuEngine::all().iter().map(|engine| engine.name()).collect();
    println!("backends found: {}", names.join(", "));
    let required = std::env::var("REQUIRE_BACKENDS").unwrap_or_default();
    for backend in required.split(',').map(str::trim).filter(|backend| !backend.is_empty()) {
        assert!(
            names.iter().any(|name| name.split(' ').next() == Some(backend)),
            "REQUIRE_BACKENDS asks for {backend}; found {}",
            names.join(", ")
        );
    }
}
