//! Fits a plant to a recorded run of a real endpoint.
//!
//! Ten seconds of samples give a block: requests at once per replica, throughput per replica, and by
//! Little's law the time in the replica. Blocks with about the same concurrency are put together by
//! their median, which no outlier moves. To these points three curves are fitted by least squares of
//! the relative error; the one that fits best is taken, the simpler one where two fit as well.
//!
//! A recording that never left low load shows no knee, and one that never was at low load shows no
//! time alone: both are refused.

mod curves;

use std::collections::BTreeMap;

use apa::{Group, HardwareClass, Resources};

use crate::plant::{Curve, Follows, Noise, Plant, Startup, Usage, Use};
use crate::record::Recording;

/// Seconds that are put together before Little's law is asked: requests that are under way at the
/// ends weigh little.
const BLOCK_S: u64 = 10;
/// Fewer points, or blocks, tell nothing.
const LEAST_POINTS: usize = 4;
const LEAST_BLOCKS: usize = 12;
/// Points lie this factor apart.
const BIN: f64 = 1.12;
/// A time that never grew by this factor shows no knee.
const GREW: f64 = 1.25;
/// The 95th percentile of a normal, in standard deviations.
const Z95: f64 = 1.645;

/// A plant and how well it fits.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    pub plant: Plant,
    /// Root of the mean squared relative error of the time in the replica, over the points.
    pub error: f64,
    /// What it was fitted to, by concurrency.
    pub points: Vec<Point>,
}

/// What replicas with about this many requests at once came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Requests at once per replica.
    pub concurrency: f64,
    /// Time in the replica, in seconds.
    pub time_s: f64,
    /// Blocks of ten seconds behind it.
    pub blocks: usize,
}

/// Why no plant can be fitted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FitError {
    #[error(
        "{blocks} stretches of {BLOCK_S} s with steady replicas and traffic, at {points} different \
         loads: expected at least {LEAST_BLOCKS} at {LEAST_POINTS}; record for longer, while the load \
         changes"
    )]
    TooLittle { blocks: usize, points: usize },
    #[error(
        "the recording never left low load: with up to {highest:.1} requests at once a replica took \
         only {grew:.2} times as long as with {lowest:.1}; expected {GREW} times or more: record \
         while its load goes beyond what it takes well"
    )]
    OnlyLowLoad {
        lowest: f64,
        highest: f64,
        grew: f64,
    },
    #[error(
        "the recording never was at low load: replicas had {lowest:.1} requests at once and more, and \
         were beyond their knee; expected lower loads too, which tell the time of a request alone"
    )]
    OnlyHighLoad { lowest: f64 },
}

/// Fits a plant to the replicas of one hardware class; `None`: of the class with most samples.
pub fn fit(
    name: &str,
    recording: &Recording,
    class: Option<&HardwareClass>,
) -> Result<Fit, FitError> {
    let class = match class {
        Some(class) => class.clone(),
        None => commonest_class(recording),
    };
    let blocks = blocks(recording, &class);
    let bins = bins(&blocks);
    let points: Vec<Point> = bins.iter().map(|bin| bin.point).collect();
    if blocks.len() < LEAST_BLOCKS || points.len() < LEAST_POINTS {
        return Err(FitError::TooLittle {
            blocks: blocks.len(),
            points: points.len(),
        });
    }
    let least = points.iter().map(|it| it.time_s).fold(f64::MAX, f64::min);
    let (lowest, highest) = (points[0].concurrency, points[points.len() - 1].concurrency);
    let grew = points.iter().map(|it| it.time_s).fold(0.0, f64::max) / least;
    if grew < GREW {
        return Err(FitError::OnlyLowLoad {
            lowest,
            highest,
            grew,
        });
    }
    let (curve, error) = curves::best(&points);
    let best = curve.best_point();
    if lowest > best {
        return Err(FitError::OnlyHighLoad { lowest });
    }
    let plant = Plant::of(
        name,
        class,
        curve,
        Startup {
            mean_s: 10.0,
            spread: 0.1,
        },
        Noise {
            service: service_noise(&blocks, best),
            gauges: 0.02,
        },
        usage(&bins, &curve, best),
    );
    Ok(Fit {
        plant,
        error,
        points,
    })
}

fn commonest_class(recording: &Recording) -> HardwareClass {
    let mut seen: BTreeMap<&HardwareClass, usize> = BTreeMap::new();
    for second in &recording.seconds {
        for group in &second.sample.groups {
            *seen.entry(&group.class).or_default() += 1;
        }
    }
    let most = seen.into_iter().max_by_key(|(_, count)| *count);
    most.map(|(class, _)| class.clone()).unwrap_or_default()
}

/// Seconds in a row with the same replicas.
struct Block {
    concurrency: f64,
    time_s: f64,
    /// Logarithm of the 95th percentile over the median, where both are known.
    spread: Option<f64>,
    resources: Vec<Resources>,
}

struct Bin {
    point: Point,
    resources: Vec<Resources>,
}

fn blocks(recording: &Recording, class: &HardwareClass) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut run: Vec<&Group> = Vec::new();
    let mut last = None;
    for second in &recording.seconds {
        let mut groups = second.sample.groups.iter();
        let group = groups.find(|group| group.class == *class && !group.exploring);
        let follows = last.is_none_or(|last| second.t == last + 1);
        let same = run.first().map(|first| first.replicas) == group.map(|group| group.replicas);
        if !(follows && same) {
            run.clear();
        }
        last = Some(second.t);
        let Some(group) = group else {
            continue;
        };
        run.push(group);
        if run.len() as u64 == BLOCK_S {
            blocks.extend(block(&run));
            run.clear();
        }
    }
    blocks
}

/// `None` where too few requests ended, or where the load moved too much to say what belongs to what.
fn block(run: &[&Group]) -> Option<Block> {
    let count = run.len() as f64;
    let replicas = f64::from(run.first()?.replicas);
    let active = run.iter().map(|group| group.active).sum::<f64>() / count / replicas;
    let ended = run.iter().map(|group| group.completions).sum::<f64>() / count / replicas;
    let half = |part: &[&Group]| {
        part.iter().map(|group| group.active).sum::<f64>() / part.len() as f64 / replicas
    };
    let (early, late) = run.split_at(run.len() / 2);
    let moved = (half(late) - half(early)).abs();
    let noise = 3.0 * (active / count).sqrt();
    if ended * count * replicas < 5.0 || moved > 0.3 * active + noise {
        return None;
    }
    let spreads = run.iter().filter_map(|group| {
        let (p50, p95) = (group.p50_ms?, group.p95_ms?);
        (p50 > 0.0 && group.completions >= 10.0).then(|| (p95 / p50).max(1.0).ln())
    });
    Some(Block {
        concurrency: active,
        time_s: active / ended,
        spread: median(spreads.collect()),
        resources: run.iter().map(|group| group.resources).collect(),
    })
}

fn bins(blocks: &[Block]) -> Vec<Bin> {
    let mut by_concurrency: BTreeMap<i64, Vec<&Block>> = BTreeMap::new();
    for block in blocks {
        // Below one nothing changes with concurrency.
        let bin = (block.concurrency.max(1.0).ln() / BIN.ln()).round() as i64;
        by_concurrency.entry(bin).or_default().push(block);
    }
    let bin = |blocks: Vec<&Block>| {
        let of = |value: fn(&Block) -> f64| median(blocks.iter().map(|it| value(it)).collect());
        Some(Bin {
            point: Point {
                concurrency: of(|it| it.concurrency)?,
                time_s: of(|it| it.time_s).filter(|time_s| *time_s > 0.0)?,
                blocks: blocks.len(),
            },
            resources: blocks
                .iter()
                .flat_map(|block| block.resources.iter().copied())
                .collect(),
        })
    };
    by_concurrency.into_values().filter_map(bin).collect()
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.retain(|value| value.is_finite());
    if values.is_empty() {
        return None;
    }
    let middle = (values.len() - 1) / 2;
    Some(*values.select_nth_unstable_by(middle, f64::total_cmp).1)
}

/// The spread of service times up to the knee, as a lognormal's deviation.
fn service_noise(blocks: &[Block], best: f64) -> f64 {
    let below = blocks.iter().filter(|block| block.concurrency <= best);
    let spread = median(below.filter_map(|block| block.spread).collect());
    (spread.unwrap_or(0.0) / Z95).clamp(0.0, 3.0)
}

fn usage(bins: &[Bin], curve: &Curve, best: f64) -> Usage {
    let full = curve.throughput(best);
    let throughput = |c: f64| (curve.throughput(c) / full).min(1.0);
    let concurrency = |c: f64| (c / best).min(1.0);
    let waiting = |c: f64| 1.0 - curve.time_s(1.0) / curve.time_s(c);
    let of = |read: fn(&Resources) -> Option<f64>, follows| {
        let share: &dyn Fn(f64) -> f64 = match follows {
            Follows::Throughput => &throughput,
            Follows::Concurrency => &concurrency,
            Follows::Waiting => &waiting,
        };
        let points: Vec<(f64, f64)> = bins
            .iter()
            .filter_map(|bin| {
                let used = median(bin.resources.iter().filter_map(read).collect())?;
                Some((share(bin.point.concurrency), used))
            })
            .collect();
        let (idle, full) = line(&points)?;
        Some(Use {
            idle,
            full,
            follows,
        })
    };
    Usage {
        cpu: of(|it| it.cpu, Follows::Throughput),
        gpu_sm: of(|it| it.gpu_sm, Follows::Throughput),
        gpu_tensor: of(|it| it.gpu_tensor, Follows::Throughput),
        gpu_membw: of(|it| it.gpu_membw, Follows::Throughput),
        memory: of(|it| it.memory, Follows::Concurrency),
        io_wait: of(|it| it.io_wait, Follows::Throughput),
        pressure: of(|it| it.pressure, Follows::Waiting),
    }
}

/// A line's values at 0 and at 1, by least squares, within 0 to 1.
fn line(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let count = points.len() as f64;
    if points.is_empty() {
        return None;
    }
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|it| it.0), mean(|it| it.1));
    let spread: f64 = points.iter().map(|it| (it.0 - x).powi(2)).sum();
    let along: f64 = points.iter().map(|it| (it.0 - x) * (it.1 - y)).sum();
    let slope = if spread > 1e-9 { along / spread } else { 0.0 };
    let at = |share: f64| (y + slope * (share - x)).clamp(0.0, 1.0);
    Some((at(0.0), at(1.0)))
}

#[cfg(test)]
mod tests;
