//! The affine minimiser on a small face: the inner step of Wolfe's minimum-norm-point method.
//!
//! Points are seen from the target: `y_s = x_s - x_i`, and the origin of `clamped` scoring is a vertex `-x_i`. The point
//! of the affine hull of `{y_s}` nearest 0 has weights `u / sum(u)` with `M u = 1`, `M = SHIFT * 1 1^T + (y_s . y_t)`
//! (P. Wolfe, "Finding the nearest point in a polytope", 1976, section 4). `M` is positive definite exactly while the
//! vertices are affinely independent. Its inverse is kept explicitly: adding or dropping a vertex is then one product
//! and one rank-one update without a dependent chain of divisions, and faces are small (7 to 11 vertices on real data).

use crate::simd::Wide;

/// Most vertices of a face; a target that needs more is left to the `f64` solver.
pub(crate) const FACE_CAP: usize = 8 * BLOCKS;

/// Blocks of eight in a row of the inverse.
const BLOCKS: usize = 6;

/// The vertex that stands for the origin under `clamped` scoring.
pub(crate) const ORIGIN: u32 = u32::MAX;

/// Any positive value makes `M` definite; tokens are scaled to norms near 1, and so is this.
pub(crate) const SHIFT: f64 = 0.25;

/// A vertex whose distance to the affine hull of the others, squared and relative to its own entry, is smaller than
/// this is taken as dependent: below it the entries, rounded to `f32`, carry no information.
const DEPENDENT: f64 = 1e-6;

/// A row of the inverse, or one value for each vertex.
pub(crate) type Row = [[f64; 8]; BLOCKS];

pub(crate) const ZERO: Row = [[0.0; 8]; BLOCKS];

/// Vertices, weights (positive, sum 1) and the inverse of `M`.
pub(crate) struct Face {
    len: usize,
    vertices: [u32; FACE_CAP],
    /// Zero past `len`, as all that follows.
    weights: Row,
    /// `inverse * 1`.
    ones: Row,
    inverse: Box<[Row; FACE_CAP]>,
}

impl Face {
    pub(crate) fn new() -> Self {
        Face { len: 0, vertices: [0; FACE_CAP], weights: ZERO, ones: ZERO, inverse: Box::new([ZERO; FACE_CAP]) }
    }

    #[inline(always)]
    pub(crate) fn clear(&mut self) {
        let blocks = self.len.div_ceil(8);
        for row in &mut self.inverse[..self.len] {
            row[..blocks].fill([0.0; 8]);
        }
        self.ones[..blocks].fill([0.0; 8]);
        self.weights[..blocks].fill([0.0; 8]);
        self.len = 0;
    }

    #[inline(always)]
    pub(crate) fn vertices(&self) -> &[u32] {
        &self.vertices[..self.len]
    }

    #[inline(always)]
    pub(crate) fn weights(&self) -> &[f64] {
        &self.weights.as_flattened()[..self.len]
    }

    /// Adds a vertex with the given weight. `products[s]` is its entry of `M` with vertex `s` (zero past the face), `own`
    /// its diagonal entry. Returns whether it was independent; otherwise nothing changes.
    #[inline(always)]
    pub(crate) fn push<W: Wide>(&mut self, vertex: u32, weight: f64, products: &Row, own: f64) -> bool {
        let len = self.len;
        if len == FACE_CAP {
            return false;
        }
        let blocks = len.div_ceil(8);
        // solved = inverse * products (the inverse is symmetric, so its rows are its columns)
        let mut solved = ZERO;
        let mut along = W::splat(0.0);
        let mut total = W::splat(0.0);
        for block in 0..blocks {
            // Two chains, so that one addition does not wait for the other; past the face there are only zeros.
            let (mut even, mut odd) = (W::splat(0.0), W::splat(0.0));
            let pairs = self.inverse.as_chunks::<2>().0.iter().zip(products.as_flattened().as_chunks::<2>().0);
            for (rows, factors) in pairs.take(len.div_ceil(2)) {
                even = even.add(W::splat(factors[0]).mul(W::load(&rows[0][block])));
                odd = odd.add(W::splat(factors[1]).mul(W::load(&rows[1][block])));
            }
            let sum = even.add(odd);
            sum.store(&mut solved[block]);
            along = along.add(sum.mul(W::load(&products[block])));
            total = total.add(sum);
        }
        let rest = own - along.sum();
        if rest <= DEPENDENT * own {
            return false;
        }
        let scale = 1.0 / rest;
        let own_ones = (1.0 - total.sum()) * scale;
        let (end_block, end_lane) = (len / 8, len % 8);
        let mut last = ZERO;
        for block in 0..blocks {
            let here = W::load(&solved[block]);
            here.mul(W::splat(-scale)).store(&mut last[block]);
            let ones = W::load(&self.ones[block]).add(here.mul(W::splat(-own_ones)));
            ones.store(&mut self.ones[block]);
        }
        for (row, &factor) in self.inverse.iter_mut().zip(last.as_flattened()).take(len) {
            for block in 0..blocks {
                let entries = W::load(&row[block]).add(W::splat(-factor).mul(W::load(&solved[block])));
                entries.store(&mut row[block]);
            }
            row[end_block][end_lane] = factor;
        }
        last[end_block][end_lane] = scale;
        self.inverse[len] = last;
        self.ones[end_block][end_lane] = own_ones;
        self.weights[end_block][end_lane] = weight;
        self.vertices[len] = vertex;
        self.len = len + 1;
        true
    }

    /// Moves the weights to the minimiser of the face, dropping vertices whose weight would turn negative (Wolfe's minor
    /// cycle). Returns false when rounding has made the inverse meaningless; the weights are then still convex.
    #[inline(always)]
    pub(crate) fn descend<W: Wide>(&mut self) -> bool {
        loop {
            let blocks = self.len.div_ceil(8);
            let mut total = W::splat(0.0);
            let mut leaving = 0u64;
            for block in 0..blocks {
                let ones = W::load(&self.ones[block]);
                total = total.add(ones);
                leaving |= u64::from(ones.not_positive()) << (8 * block);
            }
            let total = total.sum();
            if !(total > 0.0 && total.is_finite()) {
                return false;
            }
            let scale = 1.0 / total;
            leaving &= (1 << self.len) - 1;
            if leaving == 0 {
                for block in 0..blocks {
                    W::load(&self.ones[block]).mul(W::splat(scale)).store(&mut self.weights[block]);
                }
                return true;
            }
            if self.len == 1 {
                return false;
            }
            let drop = self.step(leaving, scale);
            self.remove::<W>(drop);
        }
    }

    /// Walks towards the minimiser until the first weight is zero; returns its vertex.
    #[inline(always)]
    fn step(&mut self, mut leaving: u64, scale: f64) -> usize {
        let ones = self.ones.as_flattened();
        let weights = self.weights.as_flattened_mut();
        let (mut step, mut drop) = (f64::INFINITY, 0);
        while leaving != 0 {
            let s = leaving.trailing_zeros() as usize;
            leaving &= leaving - 1;
            let ratio = weights[s] / (weights[s] - ones[s] * scale);
            // `0 / 0`: neither the weight nor its target is positive, so it leaves at once.
            let ratio = if ratio.is_nan() { 0.0 } else { ratio };
            if ratio < step {
                (step, drop) = (ratio, s);
            }
        }
        for (weight, ones) in weights.iter_mut().zip(ones).take(self.len) {
            *weight = (*weight + step * (ones * scale - *weight)).max(0.0);
        }
        drop
    }

    /// Drops vertex `q`: a rank-one downdate, then the last vertex takes its place.
    #[inline(always)]
    fn remove<W: Wide>(&mut self, q: usize) {
        let len = self.len;
        let blocks = len.div_ceil(8);
        let column = self.inverse[q];
        let scale = -1.0 / column.as_flattened()[q];
        let ones = self.ones.as_flattened()[q] * scale;
        for (row, &entry) in self.inverse.iter_mut().zip(column.as_flattened()).take(len) {
            let factor = W::splat(entry * scale);
            for (entries, column) in row.iter_mut().zip(&column).take(blocks) {
                W::load(entries).add(factor.mul(W::load(column))).store(entries);
            }
        }
        for (values, column) in self.ones.iter_mut().zip(&column).take(blocks) {
            W::load(values).add(W::splat(ones).mul(W::load(column))).store(values);
        }
        self.close_gap(q);
    }

    /// Puts the last vertex in place of `q` and zeroes what it leaves.
    #[inline(always)]
    fn close_gap(&mut self, q: usize) {
        let last = self.len - 1;
        let (q_block, q_lane, last_block, last_lane) = (q / 8, q % 8, last / 8, last % 8);
        let mut moved = self.inverse[last];
        moved[q_block][q_lane] = moved[last_block][last_lane];
        moved[last_block][last_lane] = 0.0;
        for row in &mut self.inverse[..last] {
            row[q_block][q_lane] = row[last_block][last_lane];
            row[last_block][last_lane] = 0.0;
        }
        self.inverse[last] = ZERO;
        if q != last {
            self.inverse[q] = moved;
        }
        for values in [&mut self.ones, &mut self.weights] {
            values[q_block][q_lane] = values[last_block][last_lane];
            values[last_block][last_lane] = 0.0;
        }
        self.vertices[q] = self.vertices[last];
        self.len = last;
    }
}
