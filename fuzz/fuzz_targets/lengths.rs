//! Lists of lengths in JSON: no panic, offsets ascend from 0, and a second JSON reader agrees.
#![no_main]

use libfuzzer_sys::fuzz_target;
use maxhull_cli::corpus::lengths;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(offsets) = lengths::from_json(bytes) {
        assert_eq!(offsets[0], 0);
        assert!(offsets.is_sorted());
        let text = format!("{:?}", offsets.windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<_>>());
        assert_eq!(lengths::from_json(text.as_bytes()).unwrap(), offsets);
    }
});
