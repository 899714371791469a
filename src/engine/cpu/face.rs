//! The affine minimiser on a small face: the inner step of Wolfe's minimum-norm-point method.
//!
//! Points are seen from the target: `y_s = x_s - x_i`, and the origin of `clamped` scoring is a vertex `-x_i`. The point
//! of the affine hull of `{y_s}` nearest 0 has weights `u / sum(u)` with `M u = 1`, `M = SHIFT * 1 1^T + (y_s . y_t)`
//! (P. Wolfe, "Finding the nearest point in a polytope", 1976, section 4). `M` is positive definite exactly while the
//! vertices are affinely independent. Its inverse is kept explicitly: adding or dropping a vertex is then one product
//! and one rank-one update without a dependent chain of divisions, and faces are small (7 to 11 vertices on real data).

/// Most vertices of a face; a target that needs more is left to the `f64` solver.
pub(crate) const FACE_CAP: usize = 48;

/// The vertex that stands for the origin under `clamped` scoring.
pub(crate) const ORIGIN: u32 = u32::MAX;

/// Any positive value makes `M` definite; tokens are scaled to norms near 1, and so is this.
pub(crate) const SHIFT: f64 = 0.25;

/// A vertex whose distance to the affine hull of the others, squared and relative to its own entry, is smaller than
/// this is taken as dependent: below it the entries, rounded to `f32`, carry no information.
const DEPENDENT: f64 = 1e-6;

const LANE: usize = 8;

/// Vertices, weights (positive, sum 1) and the inverse of `M`.
pub(crate) struct Face {
    len: usize,
    vertices: [u32; FACE_CAP],
    weights: [f64; FACE_CAP],
    /// `inverse * 1`.
    ones: [f64; FACE_CAP],
    /// Row-major, stride `FACE_CAP`; zero outside `len x len`.
    inverse: Box<[f64; FACE_CAP * FACE_CAP]>,
}

impl Face {
    pub(crate) fn new() -> Self {
        Face {
            len: 0,
            vertices: [0; FACE_CAP],
            weights: [0.0; FACE_CAP],
            ones: [0.0; FACE_CAP],
            inverse: Box::new([0.0; FACE_CAP * FACE_CAP]),
        }
    }

    #[inline(always)]
    pub(crate) fn clear(&mut self) {
        for row in 0..self.len {
            self.inverse[row * FACE_CAP..][..FACE_CAP].fill(0.0);
        }
        self.ones.fill(0.0);
        self.len = 0;
    }

    #[inline(always)]
    pub(crate) fn vertices(&self) -> &[u32] {
        &self.vertices[..self.len]
    }

    #[inline(always)]
    pub(crate) fn weights(&self) -> &[f64] {
        &self.weights[..self.len]
    }

    /// Adds a vertex with the given weight. `products[s]` is its entry of `M` with vertex `s`, `own` its diagonal entry.
    /// Returns whether it was independent; otherwise nothing changes.
    #[inline(always)]
    pub(crate) fn push(&mut self, vertex: u32, weight: f64, products: &[f64; FACE_CAP], own: f64) -> bool {
        let len = self.len;
        if len == FACE_CAP {
            return false;
        }
        let blocks = len.div_ceil(LANE);
        // solved = inverse * products, one column block at a time (the inverse is symmetric)
        let mut solved = [0.0; FACE_CAP];
        for block in 0..blocks {
            let mut sum = [0.0; LANE];
            for row in 0..len {
                let p = products[row];
                let entries = &self.inverse[row * FACE_CAP + block * LANE..][..LANE];
                for lane in 0..LANE {
                    sum[lane] += p * entries[lane];
                }
            }
            solved[block * LANE..][..LANE].copy_from_slice(&sum);
        }
        let mut rest = own;
        let mut total = 0.0;
        for row in 0..len {
            rest -= products[row] * solved[row];
            total += solved[row];
        }
        if rest <= DEPENDENT * own {
            return false;
        }
        let scale = 1.0 / rest;
        for row in 0..len {
            let factor = solved[row] * scale;
            let entries = &mut self.inverse[row * FACE_CAP..][..FACE_CAP];
            for block in 0..blocks {
                for lane in block * LANE..block * LANE + LANE {
                    entries[lane] += factor * solved[lane];
                }
            }
            entries[len] = -factor;
        }
        let own_ones = (1.0 - total) * scale;
        for col in 0..len {
            self.inverse[len * FACE_CAP + col] = -solved[col] * scale;
            self.ones[col] -= solved[col] * own_ones;
        }
        self.inverse[len * FACE_CAP + len] = scale;
        self.ones[len] = own_ones;
        self.vertices[len] = vertex;
        self.weights[len] = weight;
        self.len = len + 1;
        true
    }

    /// Moves the weights to the minimiser of the face, dropping vertices whose weight would turn negative (Wolfe's minor
    /// cycle). Returns false when rounding has made the inverse meaningless; the weights are then still convex.
    #[inline(always)]
    pub(crate) fn descend(&mut self) -> bool {
        loop {
            let mut total = 0.0;
            for s in 0..self.len {
                total += self.ones[s];
            }
            if !(total > 0.0 && total.is_finite()) {
                return false;
            }
            let scale = 1.0 / total;
            let mut step = 1.0;
            let mut drop = None;
            for s in 0..self.len {
                let target = self.ones[s] * scale;
                if target <= 0.0 {
                    let ratio = self.weights[s] / (self.weights[s] - target);
                    if ratio < step || drop.is_none() {
                        step = ratio;
                        drop = Some(s);
                    }
                }
            }
            for s in 0..self.len {
                let target = self.ones[s] * scale;
                self.weights[s] = (self.weights[s] + step * (target - self.weights[s])).max(0.0);
            }
            let Some(s) = drop else {
                return true;
            };
            if self.len == 1 {
                return false;
            }
            self.remove(s);
        }
    }

    /// Drops vertex `q`: a rank-one downdate, then the last vertex takes its place.
    #[inline(always)]
    fn remove(&mut self, q: usize) {
        let len = self.len;
        let blocks = len.div_ceil(LANE);
        let mut column = [0.0; FACE_CAP];
        column.copy_from_slice(&self.inverse[q * FACE_CAP..][..FACE_CAP]);
        let scale = 1.0 / column[q];
        let ones = self.ones[q] * scale;
        for row in 0..len {
            let factor = -column[row] * scale;
            let entries = &mut self.inverse[row * FACE_CAP..][..FACE_CAP];
            for block in 0..blocks {
                for lane in block * LANE..block * LANE + LANE {
                    entries[lane] += factor * column[lane];
                }
            }
            self.ones[row] -= column[row] * ones;
        }
        let last = len - 1;
        if q != last {
            self.inverse.copy_within(last * FACE_CAP..last * FACE_CAP + len, q * FACE_CAP);
            for row in 0..len {
                self.inverse[row * FACE_CAP + q] = self.inverse[row * FACE_CAP + last];
            }
            self.inverse[q * FACE_CAP + q] = self.inverse[last * FACE_CAP + last];
            self.ones[q] = self.ones[last];
            self.vertices[q] = self.vertices[last];
            self.weights[q] = self.weights[last];
        }
        self.inverse[last * FACE_CAP..][..FACE_CAP].fill(0.0);
        for row in 0..last {
            self.inverse[row * FACE_CAP + last] = 0.0;
        }
        self.ones[last] = 0.0;
        self.len = last;
    }
}
