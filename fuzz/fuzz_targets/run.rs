//! Runs of TREC: no panic, finite scores, and what was read reads the same when it is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use maxhull_cli::trec;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(run) = trec::read_run(bytes) {
        let mut text = String::new();
        for (query, docs) in &run {
            for (doc, score) in docs {
                assert!(score.is_finite());
                text += &format!("{query} Q0 {doc} 1 {score} tag\n");
            }
        }
        assert_eq!(trec::read_run(text.as_bytes()).unwrap(), run);
        text += text.clone().as_str();
        assert!(trec::read_run(text.as_bytes()).is_err());
    }
});
