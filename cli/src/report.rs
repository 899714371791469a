//! Numbers for people, and JSON for programs, on standard output.

use std::io::Write;

use serde::Serialize;

use crate::error::{Error, Result};

/// What a command has to say.
pub trait Report: Serialize {
    /// The text form; ends with a newline.
    fn text(&self) -> String;
}

/// Prints a report as text or as one JSON object.
pub fn print(report: &impl Report, json: bool) -> Result<()> {
    if json { print_json(report) } else { write(report.text().as_bytes()) }
}

/// Prints one JSON object.
pub fn print_json(report: &impl Serialize) -> Result<()> {
    write((serde_json::to_string_pretty(report).map_err(anyhow::Error::new)? + "\n").as_bytes())
}

/// Writes to standard output.
pub fn write(bytes: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(Error::stdout)
}

/// 1234567 as `1,234,567`.
pub fn count(number: u64) -> String {
    indicatif::HumanCount(number).to_string()
}

/// In powers of 1000, as sizes are given on the command line.
pub fn bytes(number: u64) -> String {
    indicatif::DecimalBytes(number).to_string()
}

/// A share as percent with one decimal.
pub fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}

/// What the certificate promises, in a sentence.
pub fn guarantee(scoring: maxhull::Scoring, worst_bound: f32) -> String {
    if worst_bound == 0.0 {
        return format!("no query loses anything on any document ({scoring} scoring)");
    }
    format!(
        "a query of m tokens of norm at most 1 loses at most m x {worst_bound} on any document, and never gains \
         ({scoring} scoring)"
    )
}
