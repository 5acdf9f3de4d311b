//! What is known of a replica: how long a request takes, and how full the hardware is, by how many
//! requests there are at once. And where, from that, its knee lies.
//!
//! Measurements go into bins of the logarithm of concurrency. Two shapes are fitted to the bins'
//! means, and the better one tells the knee: a time that grows slowly and then in proportion (a pool
//! of cores, a batch that is full), and the Universal Scalability Law (Gunther 2007), in which it
//! grows as a quadratic.

use serde::{Deserialize, Serialize};

use crate::sample::Resources;

/// Neighbouring bins' middles differ by this factor.
const BIN_FACTOR: f64 = 1.12;
/// Beyond: the last bin. 1.12^90 is 26,000 requests at once.
const BINS: usize = 90;
/// A bin remembers about this many blocks: older ones fade.
const BIN_MEMORY: f64 = 6.0;
/// The least relative error of a block's mean: what is no sampling error (other load, clocks).
const ERROR_LEAST: f64 = 0.02;
/// The spread of one request's time, relative; where it is not known.
const SPREAD: f64 = 0.6;
/// The knee is where one more request adds less than this share of what the first did. At a third a
/// curve that bends slowly is bound by its latency as much as by this.
const KNEE_SHARE: f64 = 0.33;
/// Below this mean concurrency most requests are alone: what they take says nothing of sharing.
const ALONE: f64 = 1.3;
/// A fit's error must be this much smaller (sum of squared, weighted) to be the better one.
const BETTER: f64 = 0.8;
/// A shape with a knee must explain this much more than one without (difference of the weighted
/// sums of squares; 9 is three standard errors).
const KNEE_SIGNIFICANT: f64 = 9.0;

/// A settled stretch of one class's replicas.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Block {
    /// Requests at once at a replica.
    pub concurrency: f64,
    /// Seconds that one takes there.
    pub service_s: f64,
    pub p95_s: Option<f64>,
    /// Requests that ended in the stretch.
    pub completions: f64,
    pub resources: Resources,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Bin {
    /// Blocks, fading.
    weight: f64,
    concurrency: f64,
    service_s: f64,
    /// Relative variance of `service_s`.
    variance: f64,
    /// `p95 / service`.
    tail: Option<f64>,
    resources: Resources,
}

/// Sparse: bins that were seen, by index.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Curve {
    bins: Vec<(u8, Bin)>,
}

/// A shape of the service time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Shape {
    /// `max(base * (1 + slope * (c - 1)), c / top)`.
    Saturating { base: f64, slope: f64, top: f64 },
    /// `base * (1 + sigma * (c - 1) + kappa * c * (c - 1))`.
    Scalability { base: f64, sigma: f64, kappa: f64 },
}

impl Shape {
    pub(crate) fn service_s(&self, c: f64) -> f64 {
        match *self {
            Shape::Saturating { base, slope, top } => {
                (base * (1.0 + slope * (c - 1.0))).max(c / top)
            }
            Shape::Scalability { base, sigma, kappa } => {
                base * (1.0 + sigma * (c - 1.0) + kappa * c * (c - 1.0))
            }
        }
    }

    /// Where one more request adds less than `KNEE_SHARE` of what the first did; `None` beyond `most`.
    pub(crate) fn knee(&self, most: f64) -> Option<f64> {
        let throughput = |c: f64| c / self.service_s(c);
        let first = throughput(1.0);
        // The marginal gain falls monotonically in both shapes: a search by halves.
        let gain = |c: f64| throughput(c + 0.5) - throughput(c - 0.5);
        if gain(most) >= KNEE_SHARE * first {
            return None;
        }
        let (mut low, mut high) = (1.0, most);
        for _ in 0..40 {
            let middle = f64::midpoint(low, high);
            if gain(middle) >= KNEE_SHARE * first {
                low = middle;
            } else {
                high = middle;
            }
        }
        Some(low)
    }

    /// The most requests at once that take no longer than `limit_s`; `None` beyond `most`.
    pub(crate) fn within(&self, limit_s: f64, most: f64) -> Option<f64> {
        if self.service_s(most) <= limit_s {
            return None;
        }
        let (mut low, mut high) = (1.0, most);
        for _ in 0..40 {
            let middle = f64::midpoint(low, high);
            if self.service_s(middle) <= limit_s {
                low = middle;
            } else {
                high = middle;
            }
        }
        Some(low)
    }
}

/// A resource that fills up with concurrency.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Filling {
    pub name: &'static str,
    /// Where it reaches its threshold.
    pub at: f64,
}

impl Curve {
    pub(crate) fn add(&mut self, block: &Block) {
        let index = index(block.concurrency);
        let sampled = SPREAD * SPREAD / block.completions.max(1.0);
        let variance = sampled.max(ERROR_LEAST * ERROR_LEAST);
        let tail = block.p95_s.map(|p95| p95 / block.service_s);
        let fresh = Bin {
            weight: 1.0,
            concurrency: block.concurrency,
            service_s: block.service_s,
            variance,
            tail,
            resources: block.resources,
        };
        match self.bins.binary_search_by_key(&index, |(index, _)| *index) {
            Ok(at) => self.bins[at].1.merge(&fresh),
            Err(at) => self.bins.insert(at, (index, fresh)),
        }
    }

    pub(crate) fn forget(&mut self) {
        self.bins.clear();
    }

    /// The power of concurrency with which the time grows between the two lowest that were seen;
    /// `None` before there are two.
    pub(crate) fn steepness_at_the_low_end(&self) -> Option<f64> {
        let [(_, low), (_, next), ..] = &self.bins[..] else {
            return None;
        };
        let wider = (next.concurrency / low.concurrency).ln();
        Some((next.service_s / low.service_s).ln() / wider.max(BIN_FACTOR.ln() / 2.0))
    }

    pub(crate) fn lowest(&self) -> Option<f64> {
        self.bins.first().map(|(_, bin)| bin.concurrency)
    }

    pub(crate) fn highest(&self) -> Option<f64> {
        self.bins.last().map(|(_, bin)| bin.concurrency)
    }

    /// What a request takes where the replica is hardly used: the least of the well-known bins.
    pub(crate) fn low_service_s(&self) -> Option<f64> {
        self.bins
            .iter()
            .map(|(_, bin)| bin.service_s)
            .reduce(f64::min)
    }

    /// `p95 / service` over all bins.
    pub(crate) fn tail(&self) -> Option<f64> {
        let (sum, weight) = self
            .bins
            .iter()
            .fold((0.0, 0.0), |(sum, weight), (_, bin)| {
                bin.tail.map_or((sum, weight), |tail| {
                    (sum + tail * bin.weight, weight + bin.weight)
                })
            });
        (weight > 0.0).then(|| sum / weight)
    }

    /// What was measured near this concurrency: seconds, and their relative error.
    pub(crate) fn near(&self, concurrency: f64) -> Option<(f64, f64)> {
        let index = index(concurrency);
        let at = self
            .bins
            .binary_search_by_key(&index, |(index, _)| *index)
            .ok()?;
        let bin = &self.bins[at].1;
        Some((bin.service_s, bin.error()))
    }

    /// Whether at `concurrency` or beyond, and beyond one request, requests were measured to take
    /// `factor` times what they take at least, by more than chance.
    pub(crate) fn slower_beyond(&self, concurrency: f64, factor: f64) -> bool {
        let fastest = self.bins.iter().map(|(_, bin)| bin);
        let Some(fastest) = fastest.min_by(|a, b| a.service_s.total_cmp(&b.service_s)) else {
            return false;
        };
        self.bins.iter().any(|(_, bin)| {
            let margin = bin.error().hypot(fastest.error());
            bin.concurrency >= concurrency.max(ALONE)
                && bin.service_s >= (factor + margin) * fastest.service_s
        })
    }

    /// Where what was measured at `concurrency` gained less throughput over what was measured below
    /// than the knee allows, by more than chance: the highest concurrency below.
    pub(crate) fn beyond_knee(&self, concurrency: f64) -> Option<f64> {
        let at = self
            .bins
            .binary_search_by_key(&index(concurrency), |(index, _)| *index)
            .ok()?;
        let here = &self.bins[at].1;
        let below = self.bins[..at].iter().rev().map(|(_, bin)| bin);
        let below = below
            .into_iter()
            .find(|bin| bin.concurrency < 0.8 * here.concurrency)?;
        let first = &self.bins.first()?.1;
        let rate = |bin: &Bin| bin.concurrency / bin.service_s;
        let gained = (rate(here) - rate(below)) / (here.concurrency - below.concurrency);
        let error = (rate(here) * here.error()).hypot(rate(below) * below.error())
            / (here.concurrency - below.concurrency);
        (gained + 2.0 * error < KNEE_SHARE / first.service_s).then_some(below.concurrency)
    }

    /// The better shape, where there is enough to fit one. It has a knee only where the measurements
    /// show one.
    pub(crate) fn fit(&self) -> Option<Shape> {
        if self.bins.len() < 2 {
            return None;
        }
        let straight = self.straight();
        let saturating = self.saturating();
        let scalability = self.scalability();
        let simple = straight.map_or(f64::INFINITY, |(_, error)| error);
        let best = match (saturating, scalability) {
            (Some(a), Some(b)) => Some(if b.1 < BETTER * a.1 { b } else { a }),
            (a, b) => a.or(b),
        };
        match best {
            Some((shape, error)) if simple - error >= KNEE_SIGNIFICANT => Some(shape),
            _ => straight.map(|(shape, _)| shape),
        }
    }

    /// Where the first resource that grows with concurrency reaches its threshold.
    pub(crate) fn filling(&self, threshold: f64) -> Option<Filling> {
        type Read = fn(&Resources) -> Option<f64>;
        let all: [(&'static str, Read); 5] = [
            ("cpu", |r| r.cpu),
            ("gpu_sm", |r| r.gpu_sm),
            ("gpu_tensor", |r| r.gpu_tensor),
            ("gpu_membw", |r| r.gpu_membw),
            ("memory", |r| r.memory),
        ];
        all.into_iter()
            .filter_map(|(name, read)| {
                Some(Filling {
                    name,
                    at: self.fills_at(read, threshold)?,
                })
            })
            .min_by(|a, b| a.at.total_cmp(&b.at))
    }

    /// A line through what is not yet full. A resource that is as full without load as with it says
    /// nothing about concurrency.
    fn fills_at(&self, read: fn(&Resources) -> Option<f64>, threshold: f64) -> Option<f64> {
        let points: Vec<(f64, f64, f64)> = (self.bins.iter())
            .filter_map(|(_, bin)| Some((bin.concurrency, read(&bin.resources)?, bin.weight)))
            .filter(|(_, used, _)| *used < 0.985)
            .collect();
        let (first, last) = (points.first()?, points.last()?);
        if last.0 < 1.5 * first.0 {
            return None;
        }
        let (intercept, slope) = line(&points)?;
        let grown = slope * (last.0 - first.0);
        if grown < 0.1 || intercept >= threshold {
            return None;
        }
        Some((threshold - intercept) / slope)
    }

    /// Concurrency, seconds and weight of each bin.
    fn points(&self) -> impl Iterator<Item = (f64, f64, f64)> + Clone {
        self.bins.iter().map(|(_, bin)| {
            let error = bin.error() * bin.service_s;
            (
                bin.concurrency.max(1.0),
                bin.service_s,
                1.0 / (error * error),
            )
        })
    }

    fn error_of(&self, shape: &Shape) -> f64 {
        // Relative to what the shape says, so that a slow bin's larger error does not hide it.
        self.points()
            .map(|(c, service, weight)| {
                let off = service - shape.service_s(c);
                off * off * weight
            })
            .sum()
    }

    /// Without a knee: a line.
    fn straight(&self) -> Option<(Shape, f64)> {
        let points: Vec<_> = self.points().collect();
        let (base, slope) = base_and_slope(&points)?;
        let shape = Shape::Saturating {
            base,
            slope,
            top: f64::INFINITY,
        };
        Some((shape, self.error_of(&shape)))
    }

    /// Each place between two bins may be the knee: a line below, a proportion above.
    fn saturating(&self) -> Option<(Shape, f64)> {
        let points: Vec<_> = self.points().collect();
        (1..points.len())
            .filter_map(|split| {
                let (below, above) = points.split_at(split);
                let (base, slope) = base_and_slope(below)?;
                // Throughput above the knee is one number: the weighted mean of c / S.
                let (sum, weight) =
                    above
                        .iter()
                        .fold((0.0, 0.0), |(sum, weight), (c, service, w)| {
                            let rate = c / service;
                            let w = w * service * service / (rate * rate);
                            (sum + rate * w, weight + w)
                        });
                let shape = Shape::Saturating {
                    base,
                    slope,
                    top: sum / weight,
                };
                Some((shape, self.error_of(&shape)))
            })
            .min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// A quadratic with weights, solved exactly; coefficients below zero have no meaning.
    fn scalability(&self) -> Option<(Shape, f64)> {
        let points: Vec<_> = self.points().collect();
        if points.len() < 3 {
            return None;
        }
        // s = b + p (c - 1) + q c (c - 1)
        let mut m = [[0.0; 4]; 3];
        for (c, service, weight) in &points {
            let row = [1.0, c - 1.0, c * (c - 1.0)];
            for i in 0..3 {
                for j in 0..3 {
                    m[i][j] += weight * row[i] * row[j];
                }
                m[i][3] += weight * row[i] * service;
            }
        }
        let [base, p, q] = solve(m)?;
        if base <= 0.0 || p < 0.0 || q < 0.0 {
            return None;
        }
        let shape = Shape::Scalability {
            base,
            sigma: p / base,
            kappa: q / base,
        };
        Some((shape, self.error_of(&shape)))
    }
}

impl Bin {
    fn error(&self) -> f64 {
        (self.variance / self.weight.max(1.0))
            .sqrt()
            .max(ERROR_LEAST / 2.0)
    }

    fn merge(&mut self, fresh: &Bin) {
        self.weight = (self.weight + 1.0).min(BIN_MEMORY);
        let share = 1.0 / self.weight;
        let mix = |old: f64, new: f64| old + share * (new - old);
        let mix_known = |old: Option<f64>, new: Option<f64>| match (old, new) {
            (Some(old), Some(new)) => Some(mix(old, new)),
            (old, new) => new.or(old),
        };
        self.concurrency = mix(self.concurrency, fresh.concurrency);
        self.service_s = mix(self.service_s, fresh.service_s);
        self.variance = mix(self.variance, fresh.variance);
        self.tail = mix_known(self.tail, fresh.tail);
        let (old, new) = (self.resources, fresh.resources);
        self.resources = Resources {
            cpu: mix_known(old.cpu, new.cpu),
            gpu_sm: mix_known(old.gpu_sm, new.gpu_sm),
            gpu_tensor: mix_known(old.gpu_tensor, new.gpu_tensor),
            gpu_membw: mix_known(old.gpu_membw, new.gpu_membw),
            memory: mix_known(old.memory, new.memory),
            io_wait: mix_known(old.io_wait, new.io_wait),
            pressure: mix_known(old.pressure, new.pressure),
        };
    }
}

fn index(concurrency: f64) -> u8 {
    let index = (concurrency.max(1.0).ln() / BIN_FACTOR.ln()).round() as usize;
    u8::try_from(index.min(BINS - 1)).unwrap_or(u8::MAX)
}

/// `y = base * (1 + slope * (x - 1))` with `slope >= 0`; one point is flat.
fn base_and_slope(points: &[(f64, f64, f64)]) -> Option<(f64, f64)> {
    let flat = || {
        let (sum, weight) = points.iter().fold((0.0, 0.0), |(sum, weight), (_, y, w)| {
            (sum + y * w, weight + w)
        });
        (weight > 0.0).then(|| (sum / weight, 0.0))
    };
    match line(points) {
        Some((intercept, slope)) if slope > 0.0 && intercept + slope > 0.0 => {
            let base = intercept + slope;
            Some((base, slope / base))
        }
        _ => flat(),
    }
}

/// Weighted least squares: intercept and slope.
fn line(points: &[(f64, f64, f64)]) -> Option<(f64, f64)> {
    let (mut sw, mut sx, mut sy) = (0.0, 0.0, 0.0);
    for (x, y, w) in points {
        sw += w;
        sx += w * x;
        sy += w * y;
    }
    let (mx, my) = (sx / sw, sy / sw);
    let (mut sxx, mut sxy) = (0.0, 0.0);
    for (x, y, w) in points {
        sxx += w * (x - mx) * (x - mx);
        sxy += w * (x - mx) * (y - my);
    }
    (sw > 0.0 && sxx > 0.0).then(|| (my - sxy / sxx * mx, sxy / sxx))
}

/// Gauss with pivots.
fn solve(mut m: [[f64; 4]; 3]) -> Option<[f64; 3]> {
    for column in 0..3 {
        let pivot =
            (column..3).max_by(|a, b| m[*a][column].abs().total_cmp(&m[*b][column].abs()))?;
        if m[pivot][column].abs() < 1e-300 {
            return None;
        }
        m.swap(column, pivot);
        for row in 0..3 {
            if row != column {
                let pivot = m[column];
                let factor = m[row][column] / pivot[column];
                for (value, by) in m[row].iter_mut().zip(pivot).skip(column) {
                    *value -= factor * by;
                }
            }
        }
    }
    let solution = [m[0][3] / m[0][0], m[1][3] / m[1][1], m[2][3] / m[2][2]];
    solution.iter().all(|x| x.is_finite()).then_some(solution)
}
