//! Runs and relevance judgements in the text formats of TREC: one line a document, fields between white space.
//!
//! ```text
//! run    query Q0 document rank score tag
//! qrels  query 0 document gain
//! ```
//!
//! Formats: <https://github.com/usnistgov/trec_eval>. Queries and documents are any text without white space. Blank
//! lines are skipped. Anything else that is not such a line is refused with its number.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{BufRead, Read};

use crate::error::Problem;

/// Longest line that is read, in bytes.
const MAX_LINE_BYTES: u64 = 64 * 1024;

/// Values by query, then by document.
pub type Table<T> = BTreeMap<String, BTreeMap<String, T>>;

/// Reads a run: the finite score of each ranked document. Ranks must be whole numbers and are not used.
///
/// # Errors
/// [`Problem::Line`] for the first line that is no ranked document or names one a second time; [`Problem::Other`] for
/// a file without lines.
pub fn read_run(reader: impl BufRead) -> Result<Table<f64>, Problem> {
    read_table(reader, |[query, _, doc, rank, score, _]: [&str; 6]| {
        if rank.parse::<u64>().is_err() {
            return Err(format!("the rank is {rank:?}, and ranks are whole numbers from 0"));
        }
        match score.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok((query, doc, value)),
            _ => Err(format!("the score is {score:?}, and scores are finite numbers")),
        }
    })
}

/// Reads judgements: the gain of each judged document; above 0 is relevant.
///
/// # Errors
/// As [`read_run`].
pub fn read_qrels(reader: impl BufRead) -> Result<Table<i32>, Problem> {
    read_table(reader, |[query, _, doc, gain]: [&str; 4]| match gain.parse() {
        Ok(value) => Ok((query, doc, value)),
        Err(_) => Err(format!("the gain is {gain:?}, and gains are whole numbers of 32 bits")),
    })
}

/// Lines of `N` fields, of which `parse` makes query, document and value.
fn read_table<const N: usize, T>(
    mut reader: impl BufRead,
    parse: impl Fn([&str; N]) -> Result<(&str, &str, T), String>,
) -> Result<Table<T>, Problem> {
    let mut table = Table::<T>::new();
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        if reader.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut bytes)? == 0 {
            break;
        }
        let parsed = split(&bytes).and_then(|fields| fields.map(&parse).transpose());
        let Some((query, doc, value)) = parsed.map_err(|why| Problem::Line { line, why })? else {
            continue;
        };
        // A query has many lines: its name is only copied for the first.
        if !table.contains_key(query) {
            table.insert(query.to_owned(), BTreeMap::new());
        }
        let docs = table.entry(query.to_owned()).or_default();
        match docs.entry(doc.to_owned()) {
            Entry::Vacant(entry) => entry.insert(value),
            Entry::Occupied(_) => {
                let why = format!("names document {doc:?} of query {query:?} a second time; a document has one line");
                return Err(Problem::Line { line, why });
            }
        };
    }
    if table.is_empty() {
        return Err(Problem::Other("holds no lines; there is nothing to evaluate".to_owned()));
    }
    Ok(table)
}

/// The fields of a line, or nothing for a blank one.
fn split<const N: usize>(bytes: &[u8]) -> Result<Option<[&str; N]>, String> {
    if bytes.len() as u64 > MAX_LINE_BYTES {
        return Err(format!("is longer than {MAX_LINE_BYTES} bytes, which no line of this format is"));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| format!("byte {} is not UTF-8", error.valid_up_to()))?;
    let fields: Vec<&str> = text.split_ascii_whitespace().take(N + 1).collect();
    let expected = if N == 6 { "query Q0 document rank score tag" } else { "query 0 document gain" };
    match <[&str; N]>::try_from(fields) {
        Ok(fields) => Ok(Some(fields)),
        Err(fields) if fields.is_empty() => Ok(None),
        Err(fields) if fields.len() > N => Err(format!("has more than {N} fields, expected `{expected}`")),
        Err(fields) => Err(format!("has {} of {N} fields, expected `{expected}`", fields.len())),
    }
}
