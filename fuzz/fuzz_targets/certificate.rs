//! Certificates: no panic and no memory beyond the file's, whatever it claims.
#![no_main]

use libfuzzer_sys::fuzz_target;
use maxhull::certificate::{DocRecord, Reader};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = DocRecord::decode(0, bytes) {
        assert!(record.num_kept() <= record.num_tokens());
        let num_removed = record.num_tokens() - record.num_kept();
        assert!(record.removals().filter(Result::is_ok).count() <= num_removed);
    }
    let Ok(mut reader) = Reader::new(bytes) else { return };
    while let Ok(Some(record)) = reader.next_record() {
        record.removals().for_each(drop);
    }
});
