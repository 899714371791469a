//! The nested farthest-first order of one document, with a support for every token that does not stay.
//!
//! The definition: keep the longest token, then again and again the one farthest from the hull of those kept. Distances
//! only fall as the hull grows, so an old distance is an upper bound of today's, and the order can be lazy: look at the
//! token with the largest bound; if its distance is of today it is the farthest, otherwise bring it up to date and look
//! again. That bringing up to date is cheap too: only vertices kept since the last time can improve a projection, and
//! most do not.

use super::dominance::{Iterate, ROUNDING, Solver, Stop, Tolerance, largest};
use super::face::{FACE_CAP, ORIGIN};
use super::products::Products;
use super::worker::Refiner;
use crate::Scoring;
use crate::simd::Lanes;

/// Squared bounds up to this say little in `f32`. All of `f32`'s bounds carry [`ROUNDING`], so that none of them hides
/// below a finer one.
const FINE: f32 = 4.0 * ROUNDING;

/// When the order ends; squared distances of scaled tokens, negative for never.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// A token with an upper bound up to this is removed and not looked at again.
    pub(crate) inside: f32,
    /// A token above `inside` whose upper bound is not above this is too close for `f32`.
    pub(crate) unclear: f32,
    /// Stop once every upper bound is at most this.
    pub(crate) stop: f32,
    /// Keep at most this many tokens, at least one.
    pub(crate) max_kept: usize,
}

/// Scratch and result of one document.
pub(crate) struct Selector {
    pub(crate) solver: Solver,
    n: usize,
    num_kept: usize,
    /// Token at each position.
    token_at: Vec<u32>,
    /// Squared upper bound at each position; `NEG_INFINITY` for kept positions and padding.
    bounds: Vec<f32>,
    /// By token.
    states: Vec<State>,
    /// By token, `FACE_CAP` each: positions.
    supports: Vec<u32>,
    weights: Vec<f32>,
    /// Entry `k - 1`: squared bound with the first `k` positions kept.
    curve: Vec<f32>,
}

/// Where a token's projection stands.
#[derive(Clone, Copy)]
struct State {
    /// Vertices in its support, the origin not among them.
    len: u32,
    /// Kept positions that the projection has been compared with.
    checked: u32,
    /// Too fine for `f32`: the `f64` solver has taken over.
    is_fine: bool,
    iterate: Iterate,
}

impl Selector {
    pub(crate) fn new() -> Self {
        Selector {
            solver: Solver::new(),
            n: 0,
            num_kept: 0,
            token_at: Vec::new(),
            bounds: Vec::new(),
            states: Vec::new(),
            supports: Vec::new(),
            weights: Vec::new(),
            curve: Vec::new(),
        }
    }

    /// Tokens kept, in order.
    pub(crate) fn order(&self) -> &[u32] {
        &self.token_at[..self.num_kept]
    }

    /// Tokens not kept, in no particular order.
    pub(crate) fn removed(&self) -> &[u32] {
        &self.token_at[self.num_kept..self.n]
    }

    /// Squared bounds; entry `k - 1` for the first `k` tokens of the order.
    pub(crate) fn curve(&self) -> &[f32] {
        &self.curve
    }

    /// Support of a token that is not kept: positions in the order (vertex `v` is `order()[v]`) and weights.
    pub(crate) fn support(&self, token: u32) -> (&[u32], &[f32]) {
        let start = token as usize * FACE_CAP;
        let len = self.states[token as usize].len as usize;
        (&self.supports[start..start + len], &self.weights[start..start + len])
    }

    /// Runs the order. `first` lists tokens that are kept whatever happens, distinct and at least one.
    #[inline(always)]
    pub(crate) fn run<L: Lanes, P: Products>(
        &mut self,
        products: &mut P,
        n: usize,
        scoring: Scoring,
        first: &[u32],
        goal: Bounds,
        refiner: &mut Refiner<'_>,
    ) {
        self.reset(n, scoring);
        self.keep(products, first[0] as usize);
        self.start(products, scoring);
        for &token in &first[1..] {
            // Positions move as tokens are kept, so look the token up.
            let position = self.token_at.iter().position(|&t| t == token).unwrap_or(0);
            // No order ends before the last of them.
            self.curve.push(f32::INFINITY);
            self.keep(products, position);
        }
        while self.num_kept < n {
            let (bound, position) = self.worst::<L>();
            if bound <= goal.stop {
                break;
            }
            let state = self.states[self.token_at[position] as usize];
            if (state.checked as usize) < self.num_kept && !state.is_fine {
                self.bounds[position] = self.refresh::<L, P>(products, position, goal.inside) + ROUNDING;
                continue;
            }
            let too_close = bound <= goal.unclear.max(FINE) || state.iterate.stop == Stop::Stalled;
            if (state.checked as usize) < self.num_kept || (too_close && !state.is_fine) {
                self.bounds[position] = self.refine(position, goal, refiner);
                continue;
            }
            if self.num_kept >= goal.max_kept {
                break;
            }
            self.curve.push(bound);
            self.keep(products, position);
        }
        self.curve.push(if self.num_kept < n { self.worst::<L>().0 } else { 0.0 });
        // Bounds only fall; a later bracket that is looser by rounding does not undo an earlier one.
        for k in 1..self.curve.len() {
            self.curve[k] = self.curve[k].min(self.curve[k - 1]);
        }
    }

    fn reset(&mut self, n: usize, scoring: Scoring) {
        self.solver.start(n, scoring);
        self.n = n;
        self.num_kept = 0;
        self.token_at.clear();
        self.token_at.extend(0..n as u32);
        self.bounds.clear();
        self.bounds.resize(n.next_multiple_of(32), f32::NEG_INFINITY);
        self.states.clear();
        let iterate = Iterate { upper: 0.0, level: 0.0, stop: Stop::Converged };
        self.states.resize(n, State { len: 0, checked: 1, is_fine: false, iterate });
        self.supports.resize(n * FACE_CAP, 0);
        self.weights.resize(n * FACE_CAP, 0.0);
        self.curve.clear();
    }

    /// Gives back memory of a document much longer than `n`.
    pub(crate) fn shrink(&mut self, n: usize) {
        if self.supports.len() > n * FACE_CAP {
            self.supports = Vec::new();
            self.weights = Vec::new();
        }
    }

    /// Largest bound and its position.
    #[inline(always)]
    fn worst<L: Lanes>(&self) -> (f32, usize) {
        let first = self.num_kept / L::LANES * L::LANES;
        largest::<L>(&self.bounds[first..], first)
    }

    /// Moves a position to the end of the kept ones.
    #[inline(always)]
    fn keep<P: Products>(&mut self, products: &mut P, position: usize) {
        let end = self.num_kept;
        products.swap(end, position);
        self.token_at.swap(end, position);
        self.bounds.swap(end, position);
        self.bounds[end] = f32::NEG_INFINITY;
        self.num_kept = end + 1;
    }

    /// Projects every token on the hull of the first one kept, in closed form.
    #[inline(always)]
    fn start<P: Products>(&mut self, products: &P, scoring: Scoring) {
        let longest = products.entry(0, 0);
        for position in 1..self.n {
            let token = self.token_at[position] as usize;
            let own = products.entry(position, position);
            let along = products.entry(0, position);
            let weight = match scoring {
                Scoring::Plain => 1.0,
                Scoring::Clamped if along <= 0.0 => 0.0,
                Scoring::Clamped => (along / longest).min(1.0),
            };
            let upper = (own - weight * (2.0 * along - weight * longest)).max(0.0);
            let level = weight * (along - weight * longest);
            let state = &mut self.states[token];
            state.len = u32::from(weight > 0.0);
            state.iterate = Iterate { upper, level, stop: Stop::Converged };
            self.supports[token * FACE_CAP] = 0;
            self.weights[token * FACE_CAP] = weight;
            self.bounds[position] = upper + ROUNDING;
        }
    }

    /// Brings a token's projection up to date with the kept ones; returns its squared bound.
    #[inline(always)]
    fn refresh<L: Lanes, P: Products>(&mut self, products: &mut P, position: usize, inside: f32) -> f32 {
        let token = self.token_at[position] as usize;
        let state = self.states[token];
        let start = token * FACE_CAP;
        let stored = start..start + state.len as usize;
        let range = state.checked as usize..self.num_kept;
        self.states[token].checked = self.num_kept as u32;
        let support = (&self.supports[stored.clone()], &self.weights[stored.clone()]);
        let Some(vertex) = self.solver.improvement::<L, P>(products, position, support, range, state.iterate) else {
            return state.iterate.upper;
        };
        self.resume::<L, P>(products, position, stored);
        let added = self.solver.add::<L, P>(products, position, vertex as u32, 0.0);
        if !added {
            // Dependent on the stored face: as near as this solver can tell, the bound is what it was.
            self.states[token].iterate.stop = Stop::Stalled;
            return state.iterate.upper;
        }
        let tolerance = Tolerance { inside, outside: f32::INFINITY };
        let iterate = self.solver.descend_from::<L, P>(products, position, self.num_kept, usize::MAX, tolerance);
        if iterate.upper > state.iterate.upper {
            self.states[token].iterate.stop = Stop::Stalled;
            return state.iterate.upper;
        }
        let (support, weights) = self.solver.support();
        let len = support.len();
        self.supports[start..start + len].copy_from_slice(support);
        self.weights[start..start + len].copy_from_slice(weights);
        self.states[token].len = len as u32;
        self.states[token].iterate = iterate;
        iterate.upper
    }

    /// Has the `f64` solver bring a token up to date, now and from now on; returns its squared bound.
    fn refine(&mut self, position: usize, goal: Bounds, refiner: &mut Refiner<'_>) -> f32 {
        let token = self.token_at[position];
        let state = &mut self.states[token as usize];
        state.is_fine = true;
        state.checked = self.num_kept as u32;
        let bound = self.bounds[position];
        refiner.refine(token, &self.token_at[..self.num_kept], bound <= FINE).map_or(bound, |squared| {
            // Within the tolerance as `f64` sees it is within it, however the squares round.
            if squared <= goal.stop || refiner.is_within_tolerance(token) { squared.min(goal.stop) } else { squared }
        })
    }

    /// Rebuilds the solver's face from a stored support.
    #[inline(always)]
    fn resume<L: Lanes, P: Products>(&mut self, products: &P, position: usize, stored: std::ops::Range<usize>) {
        self.solver.face.clear();
        let mut rest = 1.0;
        for at in stored {
            let weight = f64::from(self.weights[at]);
            rest -= weight;
            self.solver.add::<L, P>(products, position, self.supports[at], weight);
        }
        // The origin carries what the others leave; as a vertex of weight 0 it would only be dropped again.
        if self.solver.scoring() == Scoring::Clamped && rest > f64::from(ROUNDING) {
            self.solver.add::<L, P>(products, position, ORIGIN, rest);
        }
    }
}
