//! The definitions, in f64 and plain loops: what tests quote, and what every fast path is measured against.
//!
//! Nothing here shares code with a solver, and nothing is fast. A document is a slice of rows.

use crate::{Scoring, TokenData};

/// Iterations after which [`nearest`] gives up and returns what it has.
const MAX_STEPS: usize = 200_000;

/// The tokens of `data`, `[num_tokens, dim]`, as rows.
///
/// # Panics
/// If `dim` is 0.
pub fn rows(data: TokenData<'_>, dim: usize) -> Vec<Vec<f64>> {
    let mut values = vec![0.0f32; data.len()];
    data.to_f32(&mut values);
    values.chunks_exact(dim).map(|x| x.iter().map(|&v| f64::from(v)).collect()).collect()
}

/// The rows whose flag is set.
pub fn keep(doc: &[Vec<f64>], kept: &[bool]) -> Vec<Vec<f64>> {
    doc.iter().zip(kept).filter(|(_, kept)| **kept).map(|(x, _)| x.clone()).collect()
}

/// `a . b`.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `|a|`.
pub fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// `h_K(q)`: the largest `q . x` over `x` in `tokens`, and 0 when clamped. NaN if any product is; minus infinity for
/// no tokens and plain scoring.
pub fn support_function(q: &[f64], tokens: &[Vec<f64>], scoring: Scoring) -> f64 {
    let mut best = match scoring {
        Scoring::Plain => f64::NEG_INFINITY,
        Scoring::Clamped => 0.0,
    };
    for x in tokens {
        let product = dot(q, x);
        if product > best || product.is_nan() {
            best = product;
        }
    }
    best
}

/// The MaxSim score: the sum of [`support_function`] over the query's tokens; 0 for an empty query.
pub fn maxsim(query: &[Vec<f64>], tokens: &[Vec<f64>], scoring: Scoring) -> f64 {
    query.iter().map(|q| support_function(q, tokens, scoring)).sum()
}

/// What a query token `q` loses per unit of its norm: `(h_X(q) - h_K(q)) / |q|`; 0 for `q = 0`.
pub fn loss(q: &[f64], doc: &[Vec<f64>], kept: &[bool], scoring: Scoring) -> f64 {
    let norm = norm(q);
    if norm == 0.0 {
        return 0.0;
    }
    (support_function(q, doc, scoring) - support_function(q, &keep(doc, kept), scoring)) / norm
}

/// `ε(K)` and a query that loses it: the largest distance of a removed token `x` to the hull of the kept ones, and
/// `x - p` with its projection `p`. 0 and an empty query if nothing was removed.
pub fn worst_loss(doc: &[Vec<f64>], kept: &[bool], scoring: Scoring) -> (f64, Vec<f64>) {
    let hull = keep(doc, kept);
    let mut worst = (0.0, Vec::new());
    for (x, _) in doc.iter().zip(kept).filter(|(_, kept)| !**kept) {
        let p = nearest(x, &hull, scoring);
        let q: Vec<f64> = x.iter().zip(&p).map(|(x, p)| x - p).collect();
        if norm(&q) > worst.0 {
            worst = (norm(&q), q);
        }
    }
    worst
}

/// `dist(x, C(K))` with `K = tokens`; infinite for no tokens and plain scoring.
pub fn distance(x: &[f64], tokens: &[Vec<f64>], scoring: Scoring) -> f64 {
    if tokens.is_empty() && scoring == Scoring::Plain {
        return f64::INFINITY;
    }
    let p = nearest(x, tokens, scoring);
    norm(&x.iter().zip(&p).map(|(x, p)| x - p).collect::<Vec<_>>())
}

/// The point of `C(K)`, `K = tokens`, nearest to `x`; its distance is right to about 1e-10 of the largest norm.
///
/// Pairwise steps (Mitchell, Demyanov, Malozemov 1974): move weight from the vertex of the point that lies farthest
/// back along `r = x - p` to the one of all that lies farthest ahead, as far as that helps. No linear system, no face.
///
/// # Panics
/// If there are no tokens and scoring is plain: the hull is empty.
pub fn nearest(x: &[f64], tokens: &[Vec<f64>], scoring: Scoring) -> Vec<f64> {
    let mut vertices = tokens.to_vec();
    if scoring == Scoring::Clamped {
        vertices.push(vec![0.0; x.len()]);
    }
    assert!(!vertices.is_empty(), "the hull of no tokens is empty");
    let scale = vertices.iter().map(|v| norm(v)).fold(norm(x), f64::max);
    let mut weights = vec![0.0; vertices.len()];
    weights[0] = 1.0;
    let mut p = vertices[0].clone();
    for step in 0..MAX_STEPS {
        if step % 64 == 0 {
            p = combination(&vertices, &weights);
        }
        let r: Vec<f64> = x.iter().zip(&p).map(|(x, p)| x - p).collect();
        let (mut ahead, mut back) = ((f64::NEG_INFINITY, 0), (f64::INFINITY, 0));
        for (at, vertex) in vertices.iter().enumerate() {
            let product = dot(vertex, &r);
            if product > ahead.0 {
                ahead = (product, at);
            }
            if weights[at] > 0.0 && product < back.0 {
                back = (product, at);
            }
        }
        // `(ahead - p . r) / |r|` is the gap between the bounds on the distance.
        let gap = ahead.0 - dot(&p, &r);
        if norm(&r) <= 1e-11 * scale || gap <= 1e-11 * scale * norm(&r) {
            break;
        }
        let edge: Vec<f64> = vertices[ahead.1].iter().zip(&vertices[back.1]).map(|(a, b)| a - b).collect();
        let length = (dot(&edge, &r) / dot(&edge, &edge)).min(weights[back.1]);
        if length.is_nan() || length <= 0.0 {
            break;
        }
        weights[back.1] -= length;
        weights[ahead.1] += length;
        p.iter_mut().zip(&edge).for_each(|(p, e)| *p += length * e);
    }
    combination(&vertices, &weights)
}

fn combination(vertices: &[Vec<f64>], weights: &[f64]) -> Vec<f64> {
    let mut p = vec![0.0; vertices[0].len()];
    for (vertex, &weight) in vertices.iter().zip(weights) {
        p.iter_mut().zip(vertex).for_each(|(p, v)| *p += weight * v);
    }
    p
}

/// The farthest-first order and its curve: the longest token first, then whichever is farthest from the hull of those
/// before (the first of equals). Entry `k - 1` holds the `k`-th token and `ε_k`, the largest distance that is left
/// when the first `k` are kept.
pub fn farthest_first(doc: &[Vec<f64>], scoring: Scoring) -> Vec<(usize, f64)> {
    let mut distances: Vec<f64> = doc.iter().map(|x| norm(x)).collect();
    let mut left: Vec<usize> = (0..doc.len()).collect();
    let mut order: Vec<(usize, f64)> = Vec::new();
    let mut hull: Vec<Vec<f64>> = Vec::new();
    let mut next = first_largest(&left, &distances);
    while let Some(chosen) = next {
        hull.push(doc[chosen].clone());
        left.retain(|&token_idx| token_idx != chosen);
        if hull.len() == 1 {
            left.iter().for_each(|&token_idx| distances[token_idx] = f64::INFINITY);
        }
        // Distances only fall, so an old one is an upper bound: renew it when it comes out on top.
        let mut is_new = vec![false; doc.len()];
        next = loop {
            match first_largest(&left, &distances) {
                Some(top) if !is_new[top] => {
                    distances[top] = distance(&doc[top], &hull, scoring);
                    is_new[top] = true;
                }
                top => break top,
            }
        };
        order.push((chosen, next.map_or(0.0, |top| distances[top])));
    }
    order
}

fn first_largest(left: &[usize], values: &[f64]) -> Option<usize> {
    left.iter().copied().reduce(|best, at| if values[at] > values[best] { at } else { best })
}
