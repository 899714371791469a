//! Relevance judgements of TREC: no panic, and what was read reads the same when it is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use maxhull_cli::trec;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(qrels) = trec::read_qrels(bytes) {
        let mut text = String::new();
        for (query, docs) in &qrels {
            for (doc, gain) in docs {
                text += &format!("{query}\t0 {doc}  {gain}\r\n");
            }
        }
        assert_eq!(trec::read_qrels(text.as_bytes()).unwrap(), qrels);
        text += text.clone().as_str();
        assert!(trec::read_qrels(text.as_bytes()).is_err());
    }
});
