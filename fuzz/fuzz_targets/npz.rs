//! Archives: no panic, and what is accepted is consistent.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use maxhull_cli::corpus::npz::read_layout;

fuzz_target!(|bytes: &[u8]| {
    if let Ok((layout, _)) = read_layout(Cursor::new(bytes)) {
        assert!(layout.matrix.dim > 0);
        assert_eq!(layout.offsets[0], 0);
        assert!(layout.offsets.is_sorted());
    }
});
