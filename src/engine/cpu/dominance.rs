//! The distance of one token to the hull of others: projected gradient on an active face, in Gram space.
//!
//! With weights `w` on a support `S`, `r = x_i - sum_s w_s x_s` and `g_j = x_j . r` for every candidate `j`:
//!
//! 1. `|r|` bounds the distance from above, `(x_i . r - max_j g_j) / |r|` from below (the origin counts as a candidate
//!    with `g = 0` under `clamped` scoring), so every iterate brackets it and a decision needs no convergence.
//! 2. The candidate with the largest `g_j` joins the face; the weights move to the minimiser of the face, dropping
//!    vertices on the way ([`super::face`]).
//!
//! All of it reads inner products only. In `f32` with tokens scaled to norms below 1 the square of `|r|` carries an
//! error near 1e-6, so results are *proposals*: the certificate proves them, the `f64` solver refines what is too close.

use super::face::{FACE_CAP, Face, ORIGIN, Row, SHIFT, ZERO};
use super::products::Products;
use crate::Scoring;
use crate::simd::Lanes;

/// Iterations after which a projection is left as it is; real ones take fewer than twenty.
const MAX_ITERATIONS: usize = 4 * FACE_CAP;

/// Gap, relative to the squared distance, at which a projection counts as converged.
const RELATIVE_GAP: f32 = 3e-2;

/// Rounding of a squared residual, for tokens of norm at most 1, as seen on real vectors with margin.
pub(crate) const ROUNDING: f32 = 2e-6;

/// Why a projection stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The upper bound reached the tolerance.
    Inside,
    /// The lower bound exceeds the tolerance.
    Outside,
    /// The bracket closed to [`RELATIVE_GAP`] or to rounding.
    Converged,
    /// A dependent vertex, a full face or rounding: the upper bound holds, the lower one is loose.
    Stalled,
}

/// When to stop early, in squared distances of scaled tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tolerance {
    /// Upper bounds up to this are good enough; negative if none is.
    pub(crate) inside: f32,
    /// Lower bounds above this are good enough.
    pub(crate) outside: f32,
}

/// Where a projection stands; weights are those of the solver's face.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Iterate {
    /// `|r|^2`, an upper bound of the squared distance up to rounding.
    pub(crate) upper: f32,
    /// `x_j . r` that a candidate must exceed to bring the projection closer.
    pub(crate) level: f32,
    pub(crate) stop: Stop,
}

/// Scratch of one worker.
pub(crate) struct Solver {
    pub(crate) face: Face,
    g: Vec<f32>,
    /// Squared norms of the candidates of cold starts.
    norms: Vec<f32>,
    products: Row,
    support: Vec<u32>,
    weights: Vec<f32>,
    scoring: Scoring,
}

impl Solver {
    pub(crate) fn new() -> Self {
        Solver {
            face: Face::new(),
            g: Vec::new(),
            norms: Vec::new(),
            products: ZERO,
            support: Vec::with_capacity(FACE_CAP),
            weights: Vec::with_capacity(FACE_CAP),
            scoring: Scoring::Plain,
        }
    }

    /// Prepares for documents of up to `n` tokens.
    pub(crate) fn start(&mut self, n: usize, scoring: Scoring) {
        self.g.clear();
        self.g.resize(n.next_multiple_of(32) + 64, 0.0);
        self.scoring = scoring;
    }

    pub(crate) fn scoring(&self) -> Scoring {
        self.scoring
    }

    /// Prepares for cold starts against any of the positions `0..n`.
    #[inline(always)]
    pub(crate) fn start_cold<P: Products>(&mut self, products: &P, n: usize) {
        self.norms.clear();
        // A zero token never helps: its gain is 0 whatever it is divided by.
        for j in 0..n {
            self.norms.push(products.entry(j, j).max(f32::MIN_POSITIVE));
        }
    }

    /// Vertices without the origin, and their weights.
    pub(crate) fn support(&self) -> (&[u32], &[f32]) {
        (&self.support, &self.weights)
    }

    /// Projects position `i` on the hull of positions `0..k` without `exclude`, from the best single vertex.
    #[inline(always)]
    pub(crate) fn project_cold<L: Lanes, P: Products>(
        &mut self,
        products: &mut P,
        i: usize,
        k: usize,
        exclude: usize,
        tolerance: Tolerance,
    ) -> Iterate {
        self.face.clear();
        match self.scoring {
            Scoring::Clamped => self.start_on_ray::<L, P>(products, i, k, exclude),
            Scoring::Plain => self.start_nearest::<L, P>(products, i, k, exclude),
        }
        self.descend_from::<L, P>(products, i, k, exclude, tolerance)
    }

    /// Starts from the nearest candidate.
    #[inline(always)]
    fn start_nearest<L: Lanes, P: Products>(&mut self, products: &P, i: usize, k: usize, exclude: usize) {
        // |x_i - x_j|^2 is smallest where this is largest
        for (j, (gain, &norm)) in self.g.iter_mut().zip(&self.norms).enumerate().take(k) {
            *gain = 2.0 * products.entry(i, j) - norm;
        }
        let (_, j) = self.steepest::<L>(0..k, exclude);
        self.add::<L, P>(products, i, j as u32, 1.0);
    }

    /// Starts from the nearest point on any segment between the origin and a candidate.
    #[inline(always)]
    fn start_on_ray<L: Lanes, P: Products>(&mut self, products: &P, i: usize, k: usize, exclude: usize) {
        // The squared distance to the ray of `x_j` is `|x_i|^2 - (x_i . x_j)^2 / |x_j|^2` where the product is positive.
        for (j, (gain, &norm)) in self.g.iter_mut().zip(&self.norms).enumerate().take(k) {
            let along = products.entry(i, j);
            *gain = along * along.abs() / norm;
        }
        let (gain, j) = self.steepest::<L>(0..k, exclude);
        if gain <= 0.0 {
            self.add::<L, P>(products, i, ORIGIN, 1.0);
            return;
        }
        let weight = f64::from(products.entry(i, j) / self.norms[j]).min(1.0);
        self.add::<L, P>(products, i, j as u32, weight);
        if weight < 1.0 {
            self.add::<L, P>(products, i, ORIGIN, 1.0 - weight);
        }
    }

    /// Adds one vertex to the face; false when it depends on the others.
    #[inline(always)]
    pub(crate) fn add<L: Lanes, P: Products>(&mut self, products: &P, i: usize, vertex: u32, weight: f64) -> bool {
        let own = f64::from(products.entry(i, i));
        let (to_target, diagonal) = match vertex {
            ORIGIN => (0.0, 0.0),
            v => (f64::from(products.entry(i, v as usize)), f64::from(products.entry(v as usize, v as usize))),
        };
        let offset = SHIFT + own - to_target;
        let row = self.products.as_flattened_mut();
        for (product, &s) in row.iter_mut().zip(self.face.vertices()) {
            let (between, towards) = match (s, vertex) {
                (ORIGIN, _) => (0.0, 0.0),
                (s, ORIGIN) => (0.0, f64::from(products.entry(i, s as usize))),
                (s, v) => (f64::from(products.entry(v as usize, s as usize)), f64::from(products.entry(i, s as usize))),
            };
            *product = offset + (between - towards);
        }
        // Whole blocks are read: past the face they must be zero.
        let len = self.face.vertices().len();
        row[len..len.next_multiple_of(8)].fill(0.0);
        self.face.push::<L::Wide>(vertex, weight, &self.products, offset + (diagonal - to_target))
    }

    /// Largest gradient among positions `range` without `exclude`, and the first position that has it.
    #[inline(always)]
    fn steepest<L: Lanes>(&mut self, range: std::ops::Range<usize>, exclude: usize) -> (f32, usize) {
        let first = range.start / L::LANES * L::LANES;
        let end = range.end.next_multiple_of(L::LANES);
        self.g[first..range.start].fill(f32::NEG_INFINITY);
        self.g[range.end..end].fill(f32::NEG_INFINITY);
        if range.contains(&exclude) {
            self.g[exclude] = f32::NEG_INFINITY;
        }
        largest::<L>(&self.g[first..end], first)
    }

    /// Whether any position in `range` improves on `iterate`, given the stored support.
    #[inline(always)]
    pub(crate) fn improvement<L: Lanes, P: Products>(
        &mut self,
        products: &mut P,
        i: usize,
        (support, weights): (&[u32], &[f32]),
        range: std::ops::Range<usize>,
        iterate: Iterate,
    ) -> Option<usize> {
        products.gradient::<L>(i, support, weights, range.clone(), &mut self.g);
        let (top, position) = self.steepest::<L>(range, usize::MAX);
        (top - iterate.level > gap_allowed(iterate.upper)).then_some(position)
    }

    /// Moves to the minimiser of the face, then iterates until the tolerance or the optimum.
    #[inline(always)]
    pub(crate) fn descend_from<L: Lanes, P: Products>(
        &mut self,
        products: &mut P,
        i: usize,
        k: usize,
        exclude: usize,
        tolerance: Tolerance,
    ) -> Iterate {
        let own = products.entry(i, i);
        let mut last = f32::INFINITY;
        for _ in 0..MAX_ITERATIONS {
            let sound = self.face.descend::<L::Wide>();
            self.collect();
            products.gradient::<L>(i, &self.support, &self.weights, 0..k, &mut self.g);
            let (upper, level) = self.residual(products, i, own);
            let at = |stop| Iterate { upper, level, stop };
            if upper <= tolerance.inside {
                return at(Stop::Inside);
            }
            if !sound || upper > last + ROUNDING {
                return at(Stop::Stalled);
            }
            last = upper;
            let (mut top, position) = self.steepest::<L>(0..k, exclude);
            let mut vertex = position as u32;
            if self.scoring == Scoring::Clamped && top <= 0.0 {
                (top, vertex) = (0.0, ORIGIN);
            }
            // lower = (upper + level - top) / |r|
            let lower = upper + level - top;
            if lower > 0.0 && lower * lower > tolerance.outside * upper {
                return at(Stop::Outside);
            }
            // A wide bracket around the tolerance decides nothing: close it further.
            let straddles = lower * lower.abs() <= tolerance.inside * upper;
            if top - level <= if straddles { 0.25 * ROUNDING } else { gap_allowed(upper) } {
                return at(Stop::Converged);
            }
            if self.face.vertices().contains(&vertex) || !self.add::<L, P>(products, i, vertex, 0.0) {
                return at(Stop::Stalled);
            }
        }
        let (upper, level) = self.residual(products, i, own);
        Iterate { upper, level, stop: Stop::Stalled }
    }

    /// Copies the face's vertices without the origin.
    #[inline(always)]
    fn collect(&mut self) {
        self.support.clear();
        self.weights.clear();
        for (&vertex, &weight) in self.face.vertices().iter().zip(self.face.weights()) {
            if vertex != ORIGIN {
                self.support.push(vertex);
                self.weights.push(weight as f32);
            }
        }
    }

    /// `(|r|^2, p . r)` with `p` the current point; the gradient at the support must be in `g`.
    #[inline(always)]
    fn residual<P: Products>(&self, products: &P, i: usize, own: f32) -> (f32, f32) {
        let mut target = f64::from(own);
        let mut level = 0.0;
        for (&s, &weight) in self.support.iter().zip(&self.weights) {
            let weight = f64::from(weight);
            target -= weight * f64::from(products.entry(i, s as usize));
            level += weight * f64::from(self.g[s as usize]);
        }
        (((target - level) as f32).max(0.0), level as f32)
    }
}

/// Optimality gap that counts as closed at squared distance `upper`.
#[inline(always)]
fn gap_allowed(upper: f32) -> f32 {
    (RELATIVE_GAP * upper).max(0.25 * ROUNDING)
}

/// Largest value and its first position, counted from `first`; whole registers.
#[inline(always)]
pub(crate) fn largest<L: Lanes>(values: &[f32], first: usize) -> (f32, usize) {
    let mut top = L::splat(f32::NEG_INFINITY);
    for register in values.chunks_exact(L::LANES) {
        top = top.max(L::load(register));
    }
    let largest = top.reduce_max();
    let top = L::splat(largest);
    for (block, register) in values.chunks_exact(L::LANES).enumerate() {
        let mask = L::load(register).equal(top);
        if mask != 0 {
            return (largest, first + block * L::LANES + mask.trailing_zeros() as usize);
        }
    }
    (largest, first)
}
