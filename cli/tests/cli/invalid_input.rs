//! Every way in which input can be wrong: exit code 3, a message of its own, nothing left behind.

use std::collections::HashSet;

use crate::support::{Bench, Packing, f32_bytes, npy, npy_header, npz};

/// Two documents of two tokens of two components.
const LENGTHS: &str = "[2, 2]";

fn data() -> Vec<u8> {
    f32_bytes(&[0.5, 0.25, -1.0, 0.125, 0.0, 1.0, 0.75, 0.5])
}

/// Runs every command on `corpus` and demands `message`; gives the message.
fn refused(bench: &Bench, corpus: &str, message: &str) -> String {
    let before = bench.names();
    let ran = bench.run(&["prune", corpus, "-o", "out", "--epsilon", "0.2"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (3, ""), "{message}: {}", ran.stderr);
    assert!(ran.stderr.contains(message), "expected {message:?} in {:?}", ran.stderr);
    assert_eq!(bench.names(), before, "{message}: something was left behind");
    let inspected = bench.run(&["inspect", corpus]);
    assert_eq!((inspected.code, &inspected.stderr), (3, &ran.stderr));
    ran.stderr
}

fn all_different(messages: impl IntoIterator<Item = String>) {
    let mut seen = HashSet::new();
    for message in messages {
        assert!(seen.insert(message.clone()), "two cases share a message: {message}");
    }
}

fn dict(descr: &str, fortran_order: &str, shape: &str) -> Vec<u8> {
    npy_header(&format!("{{'descr': {descr}, 'fortran_order': {fortran_order}, 'shape': {shape}, }}"))
}

#[test]
fn token_files() {
    let good = npy("<f4", "(4, 2)", &data());
    let huge_header = [b"\x93NUMPY\x02\x00".to_vec(), u32::MAX.to_le_bytes().to_vec()].concat();
    let deep = npy_header(&format!("{{'descr': {}{}}}", "[".repeat(3000), "]".repeat(3000)));
    let with_data = |header: Vec<u8>| [header, data()].concat();
    let cases: &[(&str, Vec<u8>)] = &[
        ("is not a .npy file", b"PK\x03\x04 not numpy".to_vec()),
        ("is not a .npy file", Vec::new()),
        ("ends inside the .npy header, at byte 7", good[..7].to_vec()),
        ("ends inside the .npy header, at byte 9", good[..9].to_vec()),
        ("ends inside the .npy header, at byte 100", good[..100].to_vec()),
        ("is a .npy of version 9.1", [b"\x93NUMPY\x09\x01".to_vec(), good[8..].to_vec()].concat()),
        ("claims 4294967295 bytes", huge_header),
        ("brackets nest too deeply", deep),
        ("not a Python dictionary", npy_header("{'descr': ")),
        ("it is not a dictionary", npy_header("(1, 2)")),
        ("the key 'shape' is missing", npy_header("{'descr': '<f4', 'fortran_order': False, }")),
        ("neither True nor False", dict("'<f4'", "0", "(4, 2)")),
        ("'shape' is not a tuple;", dict("'<f4'", "False", "'4, 2'")),
        ("'shape' holds -2, which is no count", dict("'<f4'", "False", "(4, -2)")),
        ("dtype is |i1: quantised bytes", npy("|i1", "(4, 2)", &[0; 8])),
        ("dtype is |u1: quantised bytes", npy("|u1", "(4, 2)", &[0; 8])),
        ("dtype is >f4, big-endian; convert with array.astype('<f4')", npy(">f4", "(4, 2)", &data())),
        ("dtype is >f2, big-endian; convert with array.astype('<f2')", npy(">f2", "(4, 4)", &data())),
        ("dtype is <f8, and tokens must be <f2 or <f4", npy("<f8", "(4, 1)", &data())),
        ("dtype is |O, and tokens must be", npy("|O", "(4, 2)", &data())),
        ("dtype is [('x', '<f4')], and tokens must be", with_data(dict("[('x', '<f4')]", "False", "(4, 2)"))),
        ("Fortran (column-major) order", with_data(dict("'<f4'", "True", "(4, 2)"))),
        ("has shape [8], where tokens need 2 dimensions", npy("<f4", "(8,)", &data())),
        ("has shape [2, 2, 2], where tokens need 2 dimensions", npy("<f4", "(2, 2, 2)", &data())),
        ("has shape [], where tokens need 2 dimensions", npy("<f4", "()", &data())),
        ("dim is 0", npy("<f4", "(4, 0)", &[])),
        ("more bytes than 64 bits can count", npy("<f4", "(9223372036854775807, 9223372036854775807)", &data())),
        ("'shape' holds 99999999999999999999, which", npy("<f4", "(99999999999999999999, 2)", &data())),
        ("36028797018963968 bytes of data from byte 128, and holds 32", npy("<f4", "(4503599627370496, 2)", &data())),
        ("32 bytes of data from byte 128, and holds 31; the file is truncated", good[..good.len() - 1].to_vec()),
        ("32 bytes of data from byte 128, and holds 33; more than declared", [good.clone(), vec![0]].concat()),
    ];
    let bench = Bench::new();
    let refusals = cases.iter().map(|(message, embeddings)| {
        bench.corpus("corpus", embeddings, LENGTHS);
        refused(&bench, "corpus", message)
    });
    let refusals: Vec<String> = refusals.collect();
    // An empty file is not a .npy for the same reason as any other that lacks its first bytes.
    all_different(refusals.into_iter().skip(1));
}

#[test]
fn lengths_files() {
    let cases = [
        ("list of document lengths such as [12, 7, 180]: EOF", ""),
        ("invalid type: map, expected a list of document lengths", "{\"lengths\": [2, 2]}"),
        ("trailing characters at line 1 column 8", "[2, 2] [1]"),
        ("EOF while parsing a list at line 1 column 5", "[2, 2"),
        ("invalid type: string \"2\", expected a document length", "[2, \"2\"]"),
        ("invalid type: sequence, expected a document length", "[2, [2]]"),
        ("the length of document 1 is -2, and", "[2, -2]"),
        ("the length of document 0 is 1.5, and", "[1.5, 2.5]"),
        ("the length of document 1 is null", "[2, null]"),
        ("the length of document 1 is 4294967296", "[2, 4294967296]"),
        ("number out of range", "[2, 1e999]"),
        ("the lengths of 2 documents sum to 3 tokens, and corpus/embeddings.npy holds 4", "[2, 1]"),
        ("the lengths of 3 documents sum to 5 tokens", "[2, 2, 1]"),
        ("holds no documents", "[]"),
    ];
    let bench = Bench::new();
    all_different(cases.map(|(message, lengths)| {
        bench.corpus("corpus", &npy("<f4", "(4, 2)", &data()), lengths);
        refused(&bench, "corpus", message)
    }));
    bench.corpus("corpus", &npy("<f4", "(0, 2)", &[]), "[0, 0, 0]");
    refused(&bench, "corpus", "all 3 documents are empty");
    bench.corpus("corpus", &npy("<f4", "(0, 2)", &[]), "[]");
    refused(&bench, "corpus", "holds no documents");
}

#[test]
fn missing_files() {
    let bench = Bench::new();
    let good = npy("<f4", "(4, 2)", &data());
    bench.write("no_lengths/embeddings.npy", &good);
    bench.write("no_tokens/embeddings_lengths.json", LENGTHS.as_bytes());
    bench.write("alone.npy", &good);
    bench.write("corpus.parquet", b"PAR1");
    all_different([
        refused(&bench, "nowhere", "nowhere: no such file"),
        refused(&bench, "no_lengths", "no_lengths/embeddings_lengths.json: no such file"),
        refused(&bench, "no_tokens", "no_tokens/embeddings.npy: no such file"),
        refused(&bench, "alone.npy", "alone_lengths.json: no such file"),
        refused(&bench, "corpus.parquet", "is neither a folder nor a .npy or .npz file"),
    ]);
}

#[test]
fn components_that_are_no_numbers() {
    let bench = Bench::new();
    let mut values = vec![0.5; 8];
    values[5] = f32::NAN;
    bench.f32_corpus("nan", 2, &[2, 2], &values);
    refused(&bench, "nan", "document 1, token 0, component 1 is NaN");
    values[5] = 0.5;
    values[2] = f32::INFINITY;
    bench.f32_corpus("inf", 2, &[2, 2], &values);
    refused(&bench, "inf", "document 0, token 1, component 0 is inf");
    // Positions are those of the corpus, in whatever batch the token was met.
    values[2] = 0.5;
    values[7] = f32::NEG_INFINITY;
    bench.f32_corpus("late", 2, &[1, 1, 2], &values);
    let ran = bench.run(&["prune", "late", "-o", "out", "--epsilon", "0.2", "--batch-tokens", "1"]);
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.contains("document 2, token 1, component 1 is -inf"), "{}", ran.stderr);
    assert_eq!(bench.names(), ["inf", "late", "nan"]);
}

#[test]
fn archives() {
    let tokens = || ("tokens", npy("<f4", "(4, 2)", &data()));
    let array = |name: &'static str, values: &[i64]| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        (name, npy("<i8", &format!("({},)", values.len()), &bytes))
    };
    let good = npz(Packing::Compressed, &[tokens(), array("lengths", &[2, 2])]);
    let mut damaged = good.clone();
    let at = damaged.windows(10).position(|bytes| bytes == b"tokens.npy").unwrap() + 10;
    damaged[at..at + 8].fill(0xff);
    let two_members = |first, second| npz(Packing::Stored, &[first, second]);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("is not a readable .npz (zip) file", b"nothing like it".to_vec()),
        ("starts like a zip file and has no end", good[..good.len() / 2].to_vec()),
        ("array `tokens` ", damaged),
        ("holds no array `tokens` (found: lengths)", npz(Packing::Stored, &[array("lengths", &[2, 2])])),
        ("holds no array `lengths` (found: tokens)", npz(Packing::Stored, &[tokens()])),
        (
            "holds both `offsets` and `lengths`",
            npz(Packing::Stored, &[tokens(), array("lengths", &[2, 2]), array("offsets", &[0, 2, 4])]),
        ),
        ("array `lengths` the length of document 1 is -2", two_members(tokens(), array("lengths", &[2, -2]))),
        ("the first offset is 1, expected 0", two_members(tokens(), array("offsets", &[1, 2, 4]))),
        ("document 1 starts at token 3 and ends at 2", two_members(tokens(), array("offsets", &[0, 3, 2, 4]))),
        ("document 0 starts at token 0 and ends at -3", two_members(tokens(), array("offsets", &[0, -3, 4]))),
        ("sum to 3 tokens", two_members(tokens(), array("offsets", &[0, 2, 3]))),
        ("holds no documents", two_members(tokens(), array("offsets", &[0]))),
        (
            "array `lengths` dtype is <f4, and lengths and offsets must be",
            two_members(tokens(), ("lengths", npy("<f4", "(2,)", &f32_bytes(&[2.0, 2.0])))),
        ),
        (
            "array `lengths` has shape [2, 1], expected one dimension",
            two_members(tokens(), ("lengths", npy("<i4", "(2, 1)", &[2, 0, 0, 0, 2, 0, 0, 0]))),
        ),
        (
            "array `lengths` declares shape [3]",
            two_members(tokens(), ("lengths", npy("<i4", "(3,)", &[2, 0, 0, 0, 2, 0, 0, 0]))),
        ),
        (
            "array `lengths` declares shape [4611686018427387904], more bytes",
            two_members(tokens(), ("lengths", npy("<i8", "(4611686018427387904,)", &[0; 16]))),
        ),
        (
            "array `tokens` declares shape [5, 2]",
            two_members(("tokens", npy("<f4", "(5, 2)", &data())), array("lengths", &[2, 3])),
        ),
        (
            "array `tokens` dtype is |i1: quantised",
            two_members(("tokens", npy("|i1", "(4, 2)", &[0; 8])), array("lengths", &[2, 2])),
        ),
    ];
    let bench = Bench::new();
    all_different(cases.into_iter().map(|(message, bytes)| {
        bench.write("corpus.npz", &bytes);
        refused(&bench, "corpus.npz", message)
    }));
}
