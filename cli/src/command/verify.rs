//! `maxhull verify`: every claim of a pruned corpus, proven again from the original.

use std::fs::File;
use std::io::BufReader;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use maxhull::certificate::{self, CertificateError, DocRecord, Reader, Verifier};
use serde::Serialize;

use super::thread_pool;
use crate::args::VerifyArgs;
use crate::corpus::Corpus;
use crate::error::{Error, Problem, Result};
use crate::output::manifest::Manifest;
use crate::output::{ArrayReader, BOUNDS_FILE, CERTIFICATE_FILE, KEPT_FILE, MANIFEST_FILE};
use crate::report::{self, Report, count, percent};
use crate::{interrupt, progress};

/// Verifies and prints the report.
pub fn run(args: &VerifyArgs) -> Result<()> {
    let started = Instant::now();
    let original = Corpus::open(&args.common.corpus)?;
    let kept = Corpus::open(&args.pruned)?;
    let manifest = Manifest::read(&args.pruned.join(MANIFEST_FILE))?;
    let mut claims = Claims::open(&args.pruned)?;
    let mut verifier = Verifier::new(open_certificate(&args.pruned)?).map_err(refused)?;
    check_num_docs(&original, &kept)?;

    let bar = progress::bar(&args.common, "verifying", original.num_tokens());
    let pool = thread_pool(&args.common)?;
    for docs in original.batches(args.common.cpu_batch_tokens() as usize) {
        interrupt::check()?;
        let (original, kept) = (original.batch(docs.clone())?, kept.batch(docs.clone())?);
        pool.install(|| verifier.verify_next(&original, &kept)).map_err(refused)?;
        claims.check(docs)?;
        bar.inc(original.num_tokens() as u64);
    }
    let proven = verifier.finish().map_err(refused)?;
    claims.finish()?;
    check_manifest(&manifest, &proven)?;
    bar.finish_and_clear();
    report::print(&VerifyReport::new(args, &proven, started), args.common.json)
}

fn open_certificate(folder: &Path) -> Result<BufReader<File>> {
    let path = folder.join(CERTIFICATE_FILE);
    let hint = "a pruned corpus is a folder that `maxhull prune` wrote";
    let file = File::open(&path).map_err(|error| Problem::io(error, hint).at(&path))?;
    Ok(BufReader::with_capacity(1 << 20, file))
}

/// A certificate that does not hold; a disk that does not read is another matter.
fn refused(error: CertificateError) -> Error {
    match error {
        CertificateError::Io { .. } => Error::Failure(error.into()),
        _ => Error::Verification(error.to_string()),
    }
}

fn lie(claim: String) -> Error {
    Error::Verification(claim)
}

fn check_num_docs(original: &Corpus, kept: &Corpus) -> Result<()> {
    if original.num_docs() == kept.num_docs() {
        return Ok(());
    }
    let (before, after) = (original.num_docs(), kept.num_docs());
    Err(lie(format!("the original has {before} documents and the pruned corpus {after}; they do not belong together")))
}

/// The files beside the certificate that repeat what it says.
struct Claims {
    records: Reader<BufReader<File>>,
    positions: ArrayReader,
    bounds: ArrayReader,
}

impl Claims {
    fn open(folder: &Path) -> Result<Self> {
        Ok(Claims {
            positions: ArrayReader::open(&folder.join(KEPT_FILE), "<u4")?,
            bounds: ArrayReader::open(&folder.join(BOUNDS_FILE), "<f4")?,
            records: Reader::new(open_certificate(folder)?).map_err(refused)?,
        })
    }

    /// Documents `docs`, whose records were verified.
    fn check(&mut self, docs: Range<usize>) -> Result<()> {
        for doc_idx in docs {
            let Some(record) = self.records.next_record().map_err(refused)? else {
                return Err(lie(format!("the certificate ends before document {doc_idx}")));
            };
            self.check_bound(doc_idx, &record)?;
            self.check_positions(doc_idx, &record)?;
        }
        Ok(())
    }

    fn check_bound(&mut self, doc_idx: usize, record: &DocRecord) -> Result<()> {
        let Some(found) = self.bounds.read()?.map(f32::from_le_bytes) else {
            return Err(lie(format!("{BOUNDS_FILE} ends before document {doc_idx}")));
        };
        if found.to_bits() != record.bound().to_bits() {
            let proven = record.bound();
            return Err(lie(format!("{BOUNDS_FILE} says {found} for document {doc_idx}, and {proven} is certified")));
        }
        Ok(())
    }

    fn check_positions(&mut self, doc_idx: usize, record: &DocRecord) -> Result<()> {
        for (token_idx, _) in record.kept().iter().enumerate().filter(|(_, kept)| **kept) {
            let Some(found) = self.positions.read()?.map(u32::from_le_bytes) else {
                return Err(lie(format!("{KEPT_FILE} ends before document {doc_idx}, token {token_idx}")));
            };
            if found as usize != token_idx {
                return Err(lie(format!(
                    "{KEPT_FILE} says that token {found} of document {doc_idx} stays where the certificate has {token_idx}"
                )));
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        for (name, array) in [(KEPT_FILE, &self.positions), (BOUNDS_FILE, &self.bounds)] {
            if array.num_left() > 0 {
                return Err(lie(format!("{name} holds {} values after the last document", array.num_left())));
            }
        }
        Ok(())
    }
}

fn check_manifest(manifest: &Manifest, proven: &certificate::Report) -> Result<()> {
    let Manifest { options, original, pruned, .. } = manifest;
    let pairs = [
        ("scoring", options.scoring.clone(), proven.scoring.to_string()),
        ("dtype", original.dtype.clone(), proven.dtype.to_string()),
        ("dim", original.dim.to_string(), proven.dim.to_string()),
        ("original.num_docs", original.num_docs.to_string(), proven.num_docs.to_string()),
        ("original.num_tokens", original.num_tokens.to_string(), proven.num_tokens.to_string()),
        ("original.checksum", original.checksum.clone(), checksum(&proven.root)),
        ("pruned.num_tokens", pruned.num_tokens.to_string(), proven.num_kept.to_string()),
        ("pruned.worst_bound", pruned.worst_bound.to_string(), proven.worst_bound.to_string()),
    ];
    match pairs.iter().find(|(_, found, certified)| found != certified) {
        Some((name, found, certified)) => {
            Err(lie(format!("{MANIFEST_FILE} says {name} is {found}, and {certified} is certified")))
        }
        None => Ok(()),
    }
}

/// A root digest as the manifest has it.
pub fn checksum(root: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*root).to_hex().to_string()
}

#[derive(Debug, Serialize)]
struct VerifyReport {
    verified: bool,
    scoring: String,
    num_docs: u64,
    num_tokens: u64,
    num_kept: u64,
    worst_bound: f32,
    guarantee: String,
    checksum: String,
    wall_seconds: f64,
    tokens_per_second: f64,
    pruned: String,
}

impl VerifyReport {
    fn new(args: &VerifyArgs, proven: &certificate::Report, started: Instant) -> Self {
        let wall_seconds = started.elapsed().as_secs_f64();
        VerifyReport {
            verified: true,
            scoring: proven.scoring.to_string(),
            num_docs: proven.num_docs,
            num_tokens: proven.num_tokens,
            num_kept: proven.num_kept,
            worst_bound: proven.worst_bound,
            guarantee: report::guarantee(proven.scoring, proven.worst_bound),
            checksum: checksum(&proven.root),
            wall_seconds,
            tokens_per_second: proven.num_tokens as f64 / wall_seconds,
            pruned: args.pruned.display().to_string(),
        }
    }
}

impl Report for VerifyReport {
    fn text(&self) -> String {
        let removed = self.num_tokens - self.num_kept;
        format!(
            "verified   {pruned}\n\
             documents  {docs}\n\
             tokens     {before} -> {after}, {share} removed, every removal proven\n\
             bound      {worst} at worst\n\
             guarantee  {guarantee}\n\
             checksum   {checksum}\n\
             time       {wall:.2} s, {rate} tokens/s\n",
            pruned = self.pruned,
            docs = count(self.num_docs),
            before = count(self.num_tokens),
            after = count(self.num_kept),
            share = percent(removed, self.num_tokens),
            worst = self.worst_bound,
            guarantee = self.guarantee,
            checksum = self.checksum,
            wall = self.wall_seconds,
            rate = count(self.tokens_per_second as u64),
        )
    }
}
