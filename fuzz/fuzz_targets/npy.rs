//! Headers of `.npy` files: no panic, and what is accepted is consistent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use maxhull_cli::corpus::lengths::{self, Kind};
use maxhull_cli::corpus::npy::NpyHeader;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    if let Ok(header) = NpyHeader::read(&mut rest) {
        assert_eq!(header.data_start, (bytes.len() - rest.len()) as u64);
        if let Ok(matrix) = header.tokens() {
            assert!(matrix.dim > 0);
            let values = u128::from(matrix.num_tokens) * matrix.dim as u128;
            assert_eq!(values * matrix.dtype.size_bytes() as u128, u128::from(matrix.num_bytes));
            let _ = header.check_len(matrix.num_bytes, rest.len() as u64);
        }
    }
    for kind in [Kind::Lengths, Kind::Offsets] {
        if let Ok(offsets) = lengths::from_npy(bytes, kind) {
            assert_eq!(offsets[0], 0);
            assert!(offsets.is_sorted());
        }
    }
});
