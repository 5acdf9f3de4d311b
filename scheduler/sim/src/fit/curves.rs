//! Fits the three curves to points by least squares of the relative error.

use super::Point;
use crate::plant::Curve;

/// Knees that are tried, a factor apart.
const KNEE_STEP: f64 = 1.01;
/// A curve of another kind must fit better than a simpler one by this factor of the squared error.
const BETTER: f64 = 0.8;
/// A knee is where throughput all but stops to grow: a time that grows by less than this share of what
/// would stop it bends, and has no knee.
const KNEE_SLOPE: f64 = 0.5;
/// Errors below this are the points' own: a hundredth.
const OWN_ERROR: f64 = 1e-4;

/// The curve that fits best and the root of its mean squared relative error.
pub(super) fn best(points: &[Point]) -> (Curve, f64) {
    let universal = universal(points);
    let mut best = flat_then_linear(points).unwrap_or(universal);
    for other in batching(points).into_iter().chain([universal]) {
        if other.1 + OWN_ERROR < BETTER * (best.1 + OWN_ERROR) {
            best = other;
        }
    }
    (best.0, best.1.sqrt())
}

fn knees(points: &[Point]) -> impl Iterator<Item = f64> {
    let highest = points.iter().map(|it| it.concurrency).fold(1.0, f64::max);
    std::iter::successors(Some(1.0), |knee| Some(knee * KNEE_STEP))
        .take_while(move |knee| *knee <= highest)
}

/// The best of curves of one kind; each comes with its squared error.
fn least(curves: impl Iterator<Item = (Curve, f64)>) -> Option<(Curve, f64)> {
    curves.min_by(|one, other| one.1.total_cmp(&other.1))
}

/// `S = a + b max(0, c - knee)`.
fn flat_then_linear(points: &[Point]) -> Option<(Curve, f64)> {
    least(knees(points).filter_map(|knee| {
        let [a, b] = solve(points, [&|_| 1.0, &|c| (c - knee).max(0.0)]);
        if a <= 0.0 || b * knee < KNEE_SLOPE * a {
            return None;
        }
        let curve = Curve::FlatThenLinear {
            service_s: a,
            knee,
            slope: b * knee / a,
        };
        Some((curve, squared_error(points, &curve)))
    }))
}

/// `S = (a + b c)`, beyond the batch as at its end but for the wait.
fn batching(points: &[Point]) -> Option<(Curve, f64)> {
    least(knees(points).filter_map(|batch| {
        let [a, b] = solve(points, [&|c| (c / batch).max(1.0), &|c| c]);
        if a <= 0.0 {
            return None;
        }
        let curve = Curve::Batching {
            service_s: a,
            batch,
            slope: b / a,
        };
        Some((curve, squared_error(points, &curve)))
    }))
}

/// `S = a + b (c - 1) + d c (c - 1)`: each part with and without the others, so that none is negative.
fn universal(points: &[Point]) -> (Curve, f64) {
    let alone = |_: f64| 1.0;
    let contention = |c: f64| c - 1.0;
    let coherency = |c: f64| c * (c - 1.0);
    let curve = |a: f64, b: f64, d: f64| {
        let curve = Curve::Universal {
            service_s: a.max(f64::MIN_POSITIVE),
            contention: if a > 0.0 { (b / a).min(1.0) } else { 0.0 },
            coherency: if a > 0.0 { (d / a).min(1.0) } else { 0.0 },
        };
        (curve, squared_error(points, &curve))
    };
    let [a, b] = solve(points, [&alone, &contention]);
    let [a2, d2] = solve(points, [&alone, &coherency]);
    let (a3, b3, d3) = three(points, [&alone, &contention, &coherency]);
    let all = (a3 > 0.0 && b3 >= 0.0 && d3 >= 0.0).then(|| curve(a3, b3, d3));
    least(
        [curve(a, b, 0.0), curve(a2, 0.0, d2)]
            .into_iter()
            .chain(all),
    )
    .expect("two are always there")
}

type Part<'a> = &'a dyn Fn(f64) -> f64;

/// Weights of two parts, none negative. Each point is divided by its time: errors are relative.
fn solve(points: &[Point], parts: [Part<'_>; 2]) -> [f64; 2] {
    let (mut aa, mut ab, mut bb, mut ay, mut by) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (weight, [a, b]) in scaled(points, parts) {
        aa += weight * a * a;
        ab += weight * a * b;
        bb += weight * b * b;
        ay += weight * a;
        by += weight * b;
    }
    let determinant = aa * bb - ab * ab;
    let only_first = [ay / aa, 0.0];
    if determinant <= 1e-12 * aa * bb {
        return only_first;
    }
    let first = (ay * bb - by * ab) / determinant;
    let second = (by * aa - ay * ab) / determinant;
    match (first >= 0.0, second >= 0.0) {
        (true, true) => [first, second],
        (true, false) => only_first,
        (false, _) => [0.0, by / bb],
    }
}

/// Each point's weight and parts over its time, which itself becomes 1.
fn scaled<const N: usize>(
    points: &[Point],
    parts: [Part<'_>; N],
) -> impl Iterator<Item = (f64, [f64; N])> {
    points.iter().map(move |point| {
        let weight = weight(point);
        (
            weight,
            parts.map(|part| part(point.concurrency.max(1.0)) / point.time_s),
        )
    })
}

/// A point of many blocks is surer, but not so much that it drowns the others.
fn weight(point: &Point) -> f64 {
    (point.blocks as f64).min(6.0)
}

/// Weights of three parts, by Cramer's rule; zeros where they cannot be told apart.
fn three(points: &[Point], parts: [Part<'_>; 3]) -> (f64, f64, f64) {
    let mut m = [[0.0; 3]; 3];
    let mut y = [0.0; 3];
    for (weight, values) in scaled(points, parts) {
        for i in 0..3 {
            y[i] += weight * values[i];
            for j in 0..3 {
                m[i][j] += weight * values[i] * values[j];
            }
        }
    }
    let determinant = |m: &[[f64; 3]; 3]| {
        m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1])
            - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0])
            + m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0])
    };
    let whole = determinant(&m);
    if whole <= 1e-12 * m[0][0] * m[1][1] * m[2][2] {
        return (0.0, 0.0, 0.0);
    }
    let with = |column: usize| {
        let mut replaced = m;
        for (row, value) in replaced.iter_mut().zip(y) {
            row[column] = value;
        }
        determinant(&replaced) / whole
    };
    (with(0), with(1), with(2))
}

fn squared_error(points: &[Point], curve: &Curve) -> f64 {
    let (mut sum, mut weights) = (0.0, 0.0);
    for point in points {
        let error = curve.time_s(point.concurrency) / point.time_s - 1.0;
        sum += weight(point) * error * error;
        weights += weight(point);
    }
    sum / weights
}
