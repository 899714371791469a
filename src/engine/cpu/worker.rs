//! What one thread does with one document: convert, multiply, select, and say what it found in tokens and integers.

use std::collections::HashMap;

use super::document::Document;
use super::dominance::{ROUNDING, Stop, Tolerance};
use super::exact;
use super::face::FACE_CAP;
use super::products::{GramProducts, Products, StreamedProducts};
use super::selection::{Bounds, Selector};
use crate::engine::proposal::quantise_pairs;
use crate::engine::{Decision, Goal, Proposal, Removals, Selection};
use crate::simd::{Isa, Kernel, Lanes};
use crate::{Scoring, TokenData};

/// One document and how it is scored.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    pub(crate) data: TokenData<'a>,
    pub(crate) dim: usize,
    pub(crate) scoring: Scoring,
}

/// Scratch of one thread.
pub(crate) struct Worker {
    isa: Isa,
    gram_cap_bytes: usize,
    document: Document,
    gram: GramProducts,
    selector: Selector,
    pairs: Vec<(u32, u32)>,
}

impl Worker {
    pub(crate) fn new(isa: Isa, gram_cap_bytes: usize) -> Self {
        Worker {
            isa,
            gram_cap_bytes,
            document: Document::new(),
            gram: GramProducts::new(),
            selector: Selector::new(),
            pairs: Vec::new(),
        }
    }

    pub(crate) fn select(&mut self, job: Job<'_>, goal: Goal, always_kept: Option<&[bool]>) -> Selection {
        if job.data.is_empty() {
            return Selection::default();
        }
        let first = always_kept.map_or(Vec::new(), |flags| {
            (0..flags.len() as u32).filter(|&token_idx| flags[token_idx as usize]).collect()
        });
        let mut refiner = Refiner::new(job, goal);
        self.isa.run(Select { worker: self, job, goal, first, refiner: &mut refiner });
        let selection = self.collect(job, refiner);
        self.shrink();
        selection
    }

    pub(crate) fn decide(&mut self, job: Job<'_>, epsilon: f32) -> Vec<Decision> {
        if job.data.is_empty() {
            return Vec::new();
        }
        let mut decisions = self.isa.run(Decide { worker: self, job, epsilon });
        if decisions.contains(&Decision::Undecided) {
            refine(job, epsilon, &mut decisions);
        }
        self.shrink();
        decisions
    }

    fn has_gram(&self, n: usize) -> bool {
        GramProducts::size_bytes(n) <= self.gram_cap_bytes
    }

    /// One long document does not keep its memory.
    fn shrink(&mut self) {
        const KEEP_BYTES: usize = 8 << 20;
        self.gram.shrink(KEEP_BYTES);
        self.document.shrink(KEEP_BYTES);
        self.selector.shrink(KEEP_BYTES / (8 * FACE_CAP));
    }

    /// The selector's result in terms of tokens.
    fn collect(&mut self, job: Job<'_>, refiner: Refiner<'_>) -> Selection {
        let selector = &self.selector;
        let order = selector.order().to_vec();
        let mut curve: Vec<f32> =
            selector.curve().iter().map(|&squared| curve_value(squared, &self.document)).collect();
        if order.len() == self.document.n {
            // The last entry is 0 by definition: nothing is left out.
            if let Some(last) = curve.last_mut() {
                *last = 0.0;
            }
        }
        let mut removed = selector.removed().to_vec();
        removed.sort_unstable();
        let mut removals = Removals::default();
        for token_idx in removed {
            if let Some(proposal) = refiner.proposal(token_idx) {
                removals.push(token_idx, proposal.support.into_iter().zip(proposal.weights));
                continue;
            }
            let (support, weights) = selector.support(token_idx);
            let face = support.iter().map(|&position| order[position as usize]).zip(weights.iter().copied());
            quantise_pairs(face, job.scoring, &mut self.pairs);
            removals.push(token_idx, self.pairs.iter().copied());
        }
        Selection {
            order,
            curve,
            removals,
            num_undecided: refiner.num_undecided,
            num_refined: refiner.found.len() as u32,
        }
    }
}

/// Rounding of a squared residual in the worst case, for tokens of norm at most 1.
///
/// A Gram entry is a chain of `dim` multiply-adds of products that sum to at most 1 in magnitude: off by at most
/// `dim * u`, `u = 2^-24` (Higham, "Accuracy and Stability of Numerical Algorithms", 3.1). The squared residual sums
/// entries with weights whose magnitudes total at most 4, the gradient adds one rounding a vertex of numbers up to 2,
/// and scaling, centring and rounding the weights cost a few more.
fn certified_margin(dim: usize) -> f32 {
    const UNIT: f32 = 1.0 / (1 << 24) as f32;
    (4 * dim + 4 * FACE_CAP + 64) as f32 * UNIT
}

/// The curve's value, in the units of the tokens, of a squared bound of the scaled document. Never decreases.
fn curve_value(squared: f32, document: &Document) -> f32 {
    round_up(f64::from(squared + certified_margin(document.dim)).sqrt() / document.scale)
}

/// The largest squared bound whose curve value is at most `epsilon`; negative if there is none.
///
/// Undoing the arithmetic of [`curve_value`] would miss by a rounding, and a budget that was planned on the curve would
/// be exceeded; trying it out cannot.
fn squared_at(epsilon: f32, document: &Document) -> f32 {
    // Floats of one sign ascend with their bits.
    let (mut low, mut high) = (0, f32::MAX.to_bits() + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        if curve_value(f32::from_bits(middle), document) <= epsilon { low = middle + 1 } else { high = middle }
    }
    if low == 0 { -1.0 } else { f32::from_bits(low - 1) }
}

/// A tolerance in squared distances of the scaled document.
fn squared_tolerance(epsilon: f32, document: &Document) -> f32 {
    (f64::from(epsilon) * document.scale).powi(2).min(f64::from(f32::MAX) / 4.0) as f32
}

/// A value that is at least `value`.
fn round_up(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) < value { nearest.next_up() } else { nearest }
}

/// Asks the `f64` solver about tokens that are too close to the tolerance, or to the hull, for `f32`.
pub(crate) struct Refiner<'a> {
    job: Job<'a>,
    epsilon: Option<f32>,
    exact: Option<(exact::DocF64, exact::Solver)>,
    /// Factor of the scaled document.
    scale: f64,
    found: HashMap<u32, exact::Projection>,
    num_undecided: u32,
}

impl<'a> Refiner<'a> {
    fn new(job: Job<'a>, goal: Goal) -> Self {
        let epsilon = if let Goal::Epsilon(epsilon) = goal { Some(epsilon) } else { None };
        Refiner { job, epsilon, exact: None, scale: 1.0, found: HashMap::new(), num_undecided: 0 }
    }

    /// Projects `token` on the hull of `kept` and remembers the result. Gives the squared distance of the scaled
    /// document, or `None` when the token was only found to be farther away than the tolerance.
    ///
    /// Whether a token may go is all that counts, unless the order of what is left is at stake (`is_order`).
    #[inline(never)]
    pub(crate) fn refine(&mut self, token: u32, kept: &[u32], is_order: bool) -> Option<f32> {
        let stop = match self.epsilon {
            Some(epsilon) if !is_order => exact::Stop::Decide(f64::from(epsilon)),
            _ => exact::Stop::Gap { relative: 1e-2, absolute: 0.0 },
        };
        let projection = self.project(token, kept, stop);
        let (status, upper) = (projection.status, projection.upper);
        self.found.insert(token, projection);
        match (stop, status) {
            (exact::Stop::Gap { .. }, _) | (_, exact::Status::Removable) => {
                Some(round_up((upper * self.scale).powi(2).min(f64::from(f32::MAX) / 4.0)))
            }
            (_, exact::Status::Undecided) => {
                self.num_undecided += 1;
                None
            }
            _ => None,
        }
    }

    /// Whether what was found for `token` is within the tolerance.
    pub(crate) fn is_within_tolerance(&self, token: u32) -> bool {
        let upper = self.found.get(&token).map_or(f64::INFINITY, |projection| projection.upper);
        self.epsilon.is_some_and(|epsilon| upper <= f64::from(epsilon))
    }

    /// Decides about `token` against the hull of `candidates`, itself skipped.
    fn decide(&mut self, token: u32, candidates: &[u32], epsilon: f32) -> Decision {
        let projection = self.project(token, candidates, exact::Stop::Decide(f64::from(epsilon)));
        match projection.status {
            exact::Status::Removable => {
                let scoring = self.job.scoring;
                Decision::Removable(Proposal::quantise(&projection.support, &projection.weights, scoring))
            }
            exact::Status::Needed => Decision::Needed,
            exact::Status::Converged | exact::Status::Undecided => Decision::Undecided,
        }
    }

    fn project(&mut self, token: u32, candidates: &[u32], stop: exact::Stop) -> exact::Projection {
        let Job { data, dim, scoring } = self.job;
        let (doc, solver) =
            self.exact.get_or_insert_with(|| (exact::DocF64::from_tokens(data, dim), exact::Solver::new()));
        let before = self.found.get(&token);
        let warm = before.map(|found| (found.support.as_slice(), found.weights.as_slice()));
        solver.project(doc, token as usize, candidates, scoring, stop, warm)
    }

    fn proposal(&self, token: u32) -> Option<Proposal> {
        let found = self.found.get(&token)?;
        Some(Proposal::quantise(&found.support, &found.weights, self.job.scoring))
    }
}

struct Select<'a, 'b> {
    worker: &'a mut Worker,
    job: Job<'b>,
    goal: Goal,
    first: Vec<u32>,
    refiner: &'a mut Refiner<'b>,
}

impl Kernel for Select<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Select { worker, job, goal, mut first, refiner } = self;
        worker.document.load(job.data, job.dim, job.scoring);
        let document = &worker.document;
        refiner.scale = document.scale;
        if first.is_empty() {
            first.push(document.longest);
        }
        let bounds = bounds(goal, document, first.len());
        let n = document.n;
        if worker.has_gram(n) {
            worker.gram.fill::<L>(&document.tokens, job.dim);
            worker.selector.run::<L, _>(&mut worker.gram, n, job.scoring, &first, bounds, refiner);
        } else {
            let mut products = StreamedProducts::new(&document.tokens, job.dim, false);
            worker.selector.run::<L, _>(&mut products, n, job.scoring, &first, bounds, refiner);
        }
    }
}

/// The goal in squared distances of the scaled document.
fn bounds(goal: Goal, document: &Document, num_first: usize) -> Bounds {
    let everything = Bounds { inside: -1.0, unclear: -1.0, stop: -1.0, max_kept: usize::MAX };
    match goal {
        Goal::Epsilon(epsilon) => {
            let squared = squared_tolerance(epsilon, document);
            let inside = squared - ROUNDING;
            let unclear = squared + certified_margin(document.dim);
            // Stored bounds carry `ROUNDING` on top.
            Bounds { inside, unclear, stop: squared, ..everything }
        }
        Goal::KeepRatio(ratio) => {
            Bounds { max_kept: ((ratio * document.n as f64).ceil() as usize).clamp(1, document.n), ..everything }
        }
        Goal::MaxTokens(max_kept) => Bounds { max_kept: max_kept.max(1) as usize, ..everything },
        Goal::Order => everything,
        Goal::Curve(epsilon) => Bounds { stop: squared_at(epsilon, document), ..everything },
        Goal::Project => Bounds { max_kept: num_first, ..everything },
    }
}

struct Decide<'a, 'b> {
    worker: &'a mut Worker,
    job: Job<'b>,
    epsilon: f32,
}

impl Kernel for Decide<'_, '_> {
    type Output = Vec<Decision>;

    #[inline(always)]
    fn run<L: Lanes>(self) -> Vec<Decision> {
        let Decide { worker, job, epsilon } = self;
        worker.document.load(job.data, job.dim, job.scoring);
        if worker.has_gram(worker.document.n) {
            worker.gram.fill::<L>(&worker.document.tokens, job.dim);
            let Worker { gram, document, selector, pairs, .. } = worker;
            decide_all::<L, _>(gram, document, (selector, pairs), job.scoring, epsilon)
        } else {
            let Worker { document, selector, pairs, .. } = worker;
            let mut products = StreamedProducts::new(&document.tokens, job.dim, true);
            decide_all::<L, _>(&mut products, document, (selector, pairs), job.scoring, epsilon)
        }
    }
}

#[inline(always)]
fn decide_all<L: Lanes, P: Products>(
    products: &mut P,
    document: &Document,
    (selector, pairs): (&mut Selector, &mut Vec<(u32, u32)>),
    scoring: Scoring,
    epsilon: f32,
) -> Vec<Decision> {
    let n = document.n;
    let squared = squared_tolerance(epsilon, document);
    let tolerance = Tolerance { inside: squared - ROUNDING, outside: squared + ROUNDING };
    let solver = &mut selector.solver;
    solver.start(n, scoring);
    solver.start_cold(products, n);
    if n == 1 && scoring == Scoring::Plain {
        return vec![Decision::Needed];
    }
    let mut decisions = Vec::with_capacity(n);
    // NOTE: a loop, not an iterator over a closure: the standard library would call the closure from code that is not
    // compiled for the instruction set, and every register operation in it would become a call.
    for i in 0..n {
        let iterate = solver.project_cold::<L, P>(products, i, n, i, tolerance);
        decisions.push(match iterate.stop {
            Stop::Inside => {
                let (support, weights) = solver.support();
                quantise_pairs(support.iter().copied().zip(weights.iter().copied()), scoring, pairs);
                let (support, weights) = pairs.iter().copied().unzip();
                Decision::Removable(Proposal { support, weights })
            }
            Stop::Outside => Decision::Needed,
            Stop::Converged | Stop::Stalled => Decision::Undecided,
        });
    }
    decisions
}

/// Puts the `f64` solver's answer in place of every undecided one.
pub(super) fn refine(job: Job<'_>, epsilon: f32, decisions: &mut [Decision]) {
    let mut refiner = Refiner::new(job, Goal::Epsilon(epsilon));
    let tokens: Vec<u32> = (0..decisions.len() as u32).collect();
    for (decision, &token) in decisions.iter_mut().zip(&tokens) {
        if *decision == Decision::Undecided {
            *decision = refiner.decide(token, &tokens, epsilon);
        }
    }
}
