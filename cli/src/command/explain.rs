//! `maxhull explain`: of each token of one document, why it may go or must stay.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use maxhull::certificate::{DocRecord, Removal, RemovalWeights, WEIGHT_ONE};
use maxhull::engine::cpu::exact::{DocF64, Solver, Stop};
use maxhull::{Method, Scoring, Target};
use serde::Serialize;

use super::{cpu_engine, library_error, new_pruner, thread_pool};
use crate::args::ExplainArgs;
use crate::corpus::Corpus;
use crate::error::{Error, Problem, Result};
use crate::report::{self, Report, count, percent};

/// Terms of a combination that the text form shows.
const SHOWN_TERMS: usize = 4;
/// How well the loss without a token is known, in the units of the tokens.
const LOSS_GAP: f64 = 1e-6;

/// Prunes one document in memory and prints the reasons.
pub fn run(args: &ExplainArgs) -> Result<()> {
    let corpus = Corpus::open(&args.common.corpus)?;
    if args.doc >= corpus.num_docs() {
        let num_docs = count(corpus.num_docs() as u64);
        return Err(Error::Usage(format!("--doc {}: the corpus has {num_docs} documents, numbered from 0", args.doc)));
    }
    let num_tokens = corpus.num_tokens_of(&(args.doc..args.doc + 1));
    if let Some(token_idx) = args.token.filter(|&token_idx| token_idx >= num_tokens) {
        let doc_idx = args.doc;
        return Err(Error::Usage(format!(
            "--token {token_idx}: document {doc_idx} has {num_tokens} tokens, numbered from 0"
        )));
    }
    let pieces = args.pieces.as_deref().map(|path| read_pieces(path, args.doc, num_tokens)).transpose()?;
    let report = thread_pool(&args.common)?.install(|| explain(args, &corpus, pieces.unwrap_or_default()))?;
    report::print(&report, args.common.json)
}

/// The text of each token: line `doc_idx` of a file of JSON lists.
fn read_pieces(path: &Path, doc_idx: usize, num_tokens: usize) -> Result<Vec<String>> {
    let read = || -> std::result::Result<Vec<String>, Problem> {
        let hint = "it holds one JSON list of strings per document and line";
        let file = File::open(path).map_err(|error| Problem::io(error, hint))?;
        let line = BufReader::new(file).lines().nth(doc_idx).transpose()?;
        let line = line.ok_or_else(|| Problem::Other(format!("has no line {} for document {doc_idx}", doc_idx + 1)))?;
        let pieces: Vec<String> = serde_json::from_str(&line)
            .map_err(|error| Problem::Other(format!("line {} is not a JSON list of strings: {error}", doc_idx + 1)))?;
        if pieces.len() != num_tokens {
            let found = pieces.len();
            let what = format!("has {found} pieces in line {}, and the document has {num_tokens} tokens", doc_idx + 1);
            return Err(Problem::Other(what));
        }
        Ok(pieces)
    };
    Ok(read().map_err(|problem| problem.at(path))?)
}

fn explain(args: &ExplainArgs, corpus: &Corpus, pieces: Vec<String>) -> Result<ExplainReport> {
    let scoring = Scoring::from(args.scoring);
    let method = Method::Hull(Target::Epsilon(args.epsilon));
    let pruner = new_pruner(&cpu_engine(), scoring, method)?;
    let batch = corpus.batch(args.doc..args.doc + 1)?;
    let pruned = pruner.prune(&batch, None).map_err(|error| library_error(error, corpus, args.doc))?;
    let [proven] = pruned.docs.as_slice() else {
        return Err(anyhow::anyhow!("{} documents came back of 1", pruned.docs.len()).into());
    };
    let record = DocRecord::decode(args.doc as u64, proven.record()).map_err(anyhow::Error::new)?;
    let doc = DocF64::from_tokens(batch.doc(0), corpus.dim());
    let kept: Vec<u32> = proven.keep().kept().collect();

    let mut removals = record.removals();
    let mut solver = Solver::new();
    let mut tokens = Vec::with_capacity(record.num_tokens());
    for (token_idx, is_kept) in record.kept().iter().enumerate() {
        // Every removal is decoded in its turn; only the token that was asked for is explained.
        let removal = if *is_kept { None } else { removals.next().transpose().map_err(anyhow::Error::new)? };
        if args.token.is_some_and(|wanted| wanted != token_idx) {
            continue;
        }
        let piece = pieces.get(token_idx).cloned();
        let reason = match removal {
            Some(removal) => Reason::removed(&doc, &removal, &pieces),
            None => {
                let stop = Stop::Gap { relative: 0.0, absolute: LOSS_GAP };
                let projection = solver.project(&doc, token_idx, &kept, scoring, stop, None);
                Reason::Kept { loss_without: projection.lower }
            }
        };
        tokens.push(Token { token: token_idx, piece, reason });
    }
    Ok(ExplainReport {
        doc: args.doc,
        scoring: scoring.to_string(),
        epsilon: args.epsilon,
        num_tokens: record.num_tokens(),
        num_kept: record.num_kept(),
        bound: proven.bound(),
        tokens,
    })
}

#[derive(Debug, Serialize)]
struct ExplainReport {
    doc: usize,
    scoring: String,
    epsilon: f32,
    num_tokens: usize,
    num_kept: usize,
    bound: f32,
    tokens: Vec<Token>,
}

#[derive(Debug, Serialize)]
struct Token {
    token: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    piece: Option<String>,
    #[serde(flatten)]
    reason: Reason,
}

#[derive(Debug, Serialize)]
#[serde(tag = "decision", rename_all = "lowercase")]
enum Reason {
    /// Within `residual` of a combination of tokens that stay.
    Removed { residual: f64, support: Vec<Term> },
    /// Some unit query loses this if the token goes too. `None`: it is the only one that stays, so it cannot go.
    Kept {
        #[serde(serialize_with = "finite")]
        loss_without: f64,
    },
}

/// JSON has no infinity: the loss without a document's only token is null.
fn finite<S: serde::Serializer>(value: &f64, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    value.is_finite().then_some(*value).serialize(serializer)
}

#[derive(Debug, Serialize)]
struct Term {
    weight: f64,
    token: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    piece: Option<String>,
}

impl Reason {
    fn removed(doc: &DocF64, removal: &Removal, pieces: &[String]) -> Self {
        let weights: Vec<f64> = match &removal.weights {
            RemovalWeights::Fixed(weights) => weights.iter().map(|&w| f64::from(w) / f64::from(WEIGHT_ONE)).collect(),
            RemovalWeights::Exact { numerators, denominator } => {
                numerators.iter().map(|numerator| ratio(numerator, denominator)).collect()
            }
        };
        let mut difference = doc.token(removal.token_idx as usize).to_vec();
        for (&token, &weight) in removal.support.iter().zip(&weights) {
            difference.iter_mut().zip(doc.token(token as usize)).for_each(|(value, x)| *value -= weight * x);
        }
        let piece = |token: u32| pieces.get(token as usize).cloned();
        let terms = removal.support.iter().zip(weights);
        let mut support: Vec<Term> =
            terms.map(|(&token, weight)| Term { weight, token, piece: piece(token) }).collect();
        support.sort_by(|a, b| b.weight.total_cmp(&a.weight));
        let residual = difference.iter().map(|value| value * value).sum::<f64>().sqrt();
        Reason::Removed { residual, support }
    }

    fn text(&self, epsilon: f32) -> String {
        match self {
            Reason::Removed { residual, support } if support.is_empty() => {
                format!("removed: 0, residual {residual:.3}")
            }
            Reason::Removed { residual, support } => {
                let shown = support.iter().take(SHOWN_TERMS).map(|term| {
                    let piece = term.piece.as_ref().map_or(String::new(), |piece| format!(" {piece:?}"));
                    format!("{:.2}·t{}{piece}", term.weight, term.token)
                });
                let mut combination = shown.collect::<Vec<_>>().join(" + ");
                if support.len() > SHOWN_TERMS {
                    combination += &format!(" + {} more", support.len() - SHOWN_TERMS);
                }
                format!("removed: {combination}, residual {residual:.3}")
            }
            Reason::Kept { loss_without } if !loss_without.is_finite() => {
                "kept: it is the only one, and a document is never emptied".to_owned()
            }
            Reason::Kept { loss_without } if *loss_without > f64::from(epsilon) => {
                format!("kept: some query needs it (loses {loss_without:.3} without it)")
            }
            Reason::Kept { loss_without } => {
                format!("kept: others rest on it (a query loses up to {loss_without:.3} on this token without it)")
            }
        }
    }
}

/// Both integers shortened to what an f64 holds, which is enough to print.
fn ratio(numerator: &maxhull::certificate::UBig, denominator: &maxhull::certificate::UBig) -> f64 {
    numerator.to_f64().value() / denominator.to_f64().value()
}

impl Report for ExplainReport {
    fn text(&self) -> String {
        let removed = (self.num_tokens - self.num_kept) as u64;
        let mut text = format!(
            "document {}: {} of {} tokens removed ({}) at epsilon {}, {} scoring; no unit query token loses more than {}\n",
            self.doc,
            removed,
            self.num_tokens,
            percent(removed, self.num_tokens as u64),
            self.epsilon,
            self.scoring,
            self.bound,
        );
        for token in &self.tokens {
            let piece = token.piece.as_ref().map_or(String::new(), |piece| format!("{piece:?}"));
            text += &format!("t{:<5}{piece:<16} {}\n", token.token, token.reason.text(self.epsilon));
        }
        text
    }
}
