//! Lies: each is refused with exit code 5 and the reason.

use std::path::PathBuf;

use crate::support::Bench;

/// A corpus and its pruning, to be damaged.
struct Case {
    bench: Bench,
}

impl Case {
    fn new() -> Self {
        let bench = Bench::new();
        bench.example("corpus", 3);
        bench.prune("corpus", "out", &["--epsilon", "0.2", "--scoring", "clamped"]);
        Case { bench }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.bench.path(name)
    }

    fn verify(&self) -> (i32, String) {
        let ran = self.bench.run(&["verify", "corpus", "out"]);
        (ran.code, ran.stderr)
    }

    /// Changes a file, verifies, and puts the file back.
    fn with(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> (i32, String) {
        let good = std::fs::read(self.path(name)).unwrap();
        let mut bad = good.clone();
        change(&mut bad);
        assert_ne!(good, bad);
        std::fs::write(self.path(name), bad).unwrap();
        let refusal = self.verify();
        std::fs::write(self.path(name), good).unwrap();
        assert_eq!(self.verify().0, 0);
        refusal
    }

    fn refuses(&self, name: &str, change: impl FnOnce(&mut Vec<u8>), reason: &str) {
        let (code, message) = self.with(name, change);
        assert_eq!(code, 5, "{name}, {reason}: {message}");
        assert!(message.contains(reason), "{name}: expected {reason:?} in {message:?}");
    }
}

#[test]
fn flipped_bits_in_tokens() {
    let case = Case::new();
    case.refuses("corpus/embeddings.npy", |bytes| bytes[128 + 256 * 7] ^= 1, "document 0");
    case.refuses("out/embeddings.npy", |bytes| bytes[128 + 9] ^= 1, "kept token 0");
    case.refuses("out/embeddings.npy", |bytes| *bytes.last_mut().unwrap() ^= 0x80, "document 2");
}

#[test]
fn flipped_bits_in_the_certificate() {
    let case = Case::new();
    let len = std::fs::read(case.path("out/certificate.bin")).unwrap().len();
    let name = "out/certificate.bin";
    case.refuses(name, |bytes| bytes[0] ^= 1, "not a maxhull certificate");
    case.refuses(name, |bytes| bytes[8] ^= 0xff, "version");
    case.refuses(name, |bytes| bytes[10] = 0, "hash");
    case.refuses(name, |bytes| bytes[10] = 7, "scoring");
    case.refuses(name, |bytes| bytes[12] ^= 1, "hash");
    // Wherever a bit flips, the file no longer has its hash.
    for at in (16..len).step_by(len / 97) {
        let (code, message) = case.with(name, |bytes| bytes[at] ^= 0x10);
        assert_eq!(code, 5, "byte {at}: {message}");
    }
}

#[test]
fn truncated_and_extended_certificates() {
    let case = Case::new();
    let name = "out/certificate.bin";
    let len = std::fs::read(case.path(name)).unwrap().len();
    for keep in [0, 7, 15, 16, 20, len / 2, len - 33, len - 1] {
        let (code, message) = case.with(name, |bytes| bytes.truncate(keep));
        assert_eq!(code, 5, "{keep} bytes: {message}");
        assert!(message.contains("ends") || message.contains("truncated"), "{keep} bytes: {message}");
    }
    case.refuses(name, |bytes| bytes.push(0), "data follows its end");
}

#[test]
fn the_certificate_of_another_corpus() {
    let case = Case::new();
    // Document 0 is another, of the same length.
    let mut other = std::fs::read(case.path("corpus/embeddings.npy")).unwrap();
    other[128..128 + 256].rotate_left(2);
    case.bench.write("other/embeddings.npy", &other);
    std::fs::copy(case.path("corpus/embeddings_lengths.json"), case.path("other/embeddings_lengths.json")).unwrap();
    case.bench.prune("other", "other_out", &["--epsilon", "0.2", "--scoring", "clamped"]);
    let foreign = std::fs::read(case.path("other_out/certificate.bin")).unwrap();
    case.refuses("out/certificate.bin", |bytes| *bytes = foreign, "document 0");
    let ran = case.bench.run(&["verify", "corpus", "other_out"]);
    assert_eq!(ran.code, 5, "{}", ran.stderr);

    case.bench.example("larger", 4);
    let ran = case.bench.run(&["verify", "larger", "out"]);
    assert_eq!(ran.code, 5);
    assert!(ran.stderr.contains("4 documents"), "{}", ran.stderr);
}

#[test]
fn the_other_files() {
    let case = Case::new();
    case.refuses("out/kept.npy", |bytes| bytes[128] ^= 0x40, "kept.npy says that token");
    case.refuses("out/bounds.npy", |bytes| bytes[128 + 4] ^= 1, "bounds.npy says");
    let replace = |from: &'static str, to: &'static str| {
        move |bytes: &mut Vec<u8>| *bytes = String::from_utf8(bytes.clone()).unwrap().replacen(from, to, 1).into_bytes()
    };
    case.refuses("out/manifest.json", replace("\"clamped\"", "\"plain\""), "manifest.json says scoring is plain");
    case.refuses("out/manifest.json", replace("\"dim\": 128", "\"dim\": 64"), "manifest.json says dim is 64");
    case.refuses("out/manifest.json", replace("\"worst_bound\": 0.", "\"worst_bound\": 0.0"), "worst_bound");
    case.refuses("out/manifest.json", replace("\"checksum\": \"", "\"checksum\": \"0"), "checksum");
}

#[test]
fn a_moved_token_is_found() {
    let case = Case::new();
    // One token moves from one document to the next: the sums agree, the documents do not.
    let lengths = std::fs::read_to_string(case.path("out/embeddings_lengths.json")).unwrap();
    let mut lengths: Vec<u64> = serde_json::from_str(&lengths).unwrap();
    lengths[0] -= 1;
    lengths[1] += 1;
    case.refuses("out/embeddings_lengths.json", |bytes| *bytes = serde_json::to_vec(&lengths).unwrap(), "document 0");
}

#[test]
fn what_is_no_pruned_corpus_is_invalid_input() {
    let case = Case::new();
    for (name, message) in [
        ("manifest.json", "manifest.json: no such file"),
        ("certificate.bin", "certificate.bin: no such file"),
        ("kept.npy", "kept.npy: no such file"),
        ("embeddings.npy", "embeddings.npy: no such file"),
    ] {
        let path = case.path("out").join(name);
        let aside = case.path("aside");
        std::fs::rename(&path, &aside).unwrap();
        let (code, stderr) = case.verify();
        assert_eq!(code, 3, "{name}: {stderr}");
        assert!(stderr.contains(message), "{stderr}");
        std::fs::rename(&aside, &path).unwrap();
    }
    for (name, change, message) in [
        ("out/manifest.json", "[]", "is not a manifest of maxhull"),
        ("out/manifest.json", "{\"format\": \"maxhull pruned corpus\", \"format_version\": 2}", "format version 2"),
        ("out/manifest.json", "{\"format\": \"maxhull pruned corpus\", \"format_version\": 1}", "is damaged"),
        ("out/kept.npy", "nothing", "is not a .npy file"),
    ] {
        let (code, stderr) = case.with(name, |bytes| *bytes = change.as_bytes().to_vec());
        assert_eq!(code, 3, "{name}: {stderr}");
        assert!(stderr.contains(message), "{stderr}");
    }
}

/// Where the parts of the first document's record lie, as `docs/certificate.md` has them.
struct FirstRecord {
    bound: usize,
    mask: usize,
    num_tokens: usize,
    /// Byte after the mask: the count of the first removal's support.
    removal: usize,
}

impl FirstRecord {
    fn find(certificate: &[u8]) -> Self {
        let num_tokens = u32::from_le_bytes(certificate[24..28].try_into().unwrap()) as usize;
        FirstRecord { bound: 28, mask: 48, num_tokens, removal: 48 + num_tokens.div_ceil(8) }
    }

    fn is_kept(&self, certificate: &[u8], token_idx: usize) -> bool {
        certificate[self.mask + token_idx / 8] >> (token_idx % 8) & 1 == 1
    }
}

/// A liar who knows the format: the hash over the file is right again.
fn sealed(lie: impl FnOnce(&mut Vec<u8>, FirstRecord)) -> impl FnOnce(&mut Vec<u8>) {
    |bytes| {
        let record = FirstRecord::find(bytes);
        lie(bytes, record);
        let end = bytes.len() - 32;
        let hash = blake3::hash(&bytes[..end]);
        bytes[end..].copy_from_slice(hash.as_bytes());
    }
}

#[test]
fn sealed_lies() {
    let case = Case::new();
    let name = "out/certificate.bin";
    let lower_bound = sealed(|bytes, record| {
        let bound = f32::from_le_bytes(bytes[record.bound..record.bound + 4].try_into().unwrap());
        bytes[record.bound..record.bound + 4].copy_from_slice(&(bound * 0.9).to_le_bytes());
    });
    case.refuses(name, lower_bound, "away from its combination, above the tolerance");
    let sum_above_one = sealed(|bytes, record| {
        let count = usize::from(bytes[record.removal]);
        assert!((2..254).contains(&count), "the example changed: choose another removal");
        let weights = record.removal + 1 + 2 * count;
        bytes[weights..weights + 3].fill(0xff);
    });
    case.refuses(name, sum_above_one, ", above 1");
    let rests_on_removed = sealed(|bytes, record| {
        let last_removed = (0..record.num_tokens).rev().find(|&at| !record.is_kept(bytes, at)).unwrap();
        let last_support = record.removal + 1 + 2 * (usize::from(bytes[record.removal]) - 1);
        bytes[last_support..last_support + 2].copy_from_slice(&(last_removed as u16).to_le_bytes());
    });
    case.refuses(name, rests_on_removed, "which does not stay");
    let other_weights = sealed(|bytes, record| {
        let count = usize::from(bytes[record.removal]);
        let weights = record.removal + 1 + 2 * count;
        bytes[weights..weights + 3 * count].fill(0);
    });
    case.refuses(name, other_weights, "away from its combination, above the tolerance");
    let other_scoring = sealed(|bytes, _| bytes[10] = 0);
    case.refuses(name, other_scoring, "plain scoring needs exactly 1");
    let other_digest = sealed(|bytes, record| bytes[record.bound + 4] ^= 1);
    case.refuses(name, other_digest, "document 0: these are not the tokens that were certified");
}
