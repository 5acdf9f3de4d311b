//! How large the warm pool is at equal hit rates, beside the rolling maximum, the best fixed size in
//! hindsight and a moving average.

use sim::pool::{curves, replica_starts};
use sim::synth::Shape;
use sim::trace::{Kind, Trace};

use crate::table::Target;

/// What a trace's busiest minute needs: replicas come and go by the dozen.
const MOST_NEEDED: f64 = 200.0;
/// At which pools are compared.
const HIT_RATES: [f64; 2] = [0.90, 0.95];
/// From wanted to ready with the base image unpacked.
const LEAD_MINUTES: u32 = 2;
/// Replicas stay for so long after they were needed.
const HOLD_MINUTES: usize = 5;
/// Nobody knows anything in them. A trace is at least twice as long.
const LEAD_IN_MINUTES: usize = 24 * 60;
const DAYS: u32 = 7;
const OURS: &str = "ours";
/// Told beside the others, and no target.
const NO_TARGET: &str = "moving average and spread";

/// Replicas that each minute of a trace needs, where its busiest one needs [`MOST_NEEDED`].
fn needed(trace: &Trace) -> Vec<u32> {
    let offered = trace
        .by_second()
        .map(|it| it.value * it.service_s.unwrap_or(1.0));
    let offered: Vec<f64> = offered.collect();
    let minutes: Vec<f64> = offered.chunks(60).map(|it| it.iter().sum()).collect();
    let most = minutes.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let share = minutes.iter().map(|it| it / most);
    share
        .map(|share| (share * MOST_NEEDED).ceil() as u32)
        .collect()
}

/// Days as days are: a course with noise.
fn days(seed: u64) -> Trace {
    let week = Shape::Diurnal {
        low: 600.0,
        high: 6000.0,
        noise: 0.1,
        days: DAYS,
        length_s: 86_400,
    };
    week.trace("a week", Kind::Rate, seed)
}

pub(crate) fn targets(files: &[Trace], seed: u64, told: impl Fn(String)) -> Vec<Target> {
    let week = days(seed);
    let traces = std::iter::once(&week).chain(files);
    let long = traces.filter(|trace| trace.length_s as usize >= 2 * LEAD_IN_MINUTES * 60);
    long.flat_map(|trace| compare(trace, &told)).collect()
}

fn compare(trace: &Trace, told: &impl Fn(String)) -> Vec<Target> {
    let claims = replica_starts(&needed(trace), HOLD_MINUTES);
    let curves = curves(&claims, LEAD_MINUTES, LEAD_IN_MINUTES);
    let shown = |size: Option<f64>| size.map_or("not reached".into(), |size| format!("{size:.2}"));
    let compared = HIT_RATES.map(|rate| {
        let name = &trace.name;
        let mut least = f64::INFINITY;
        let mut ours = None;
        for curve in &curves {
            let size = curve.size_at(rate);
            told(format!(
                "warm pool, {name}, hit rate {rate}: {}: {}",
                curve.rule,
                shown(size)
            ));
            if curve.rule == OURS {
                ours = size;
            } else if curve.rule != NO_TARGET {
                least = least.min(size.unwrap_or(f64::INFINITY));
            }
        }
        Target::new(
            format!("warm pool, {name}: mean size at a hit rate of {rate}"),
            shown(ours),
            format!("below {least:.2}, rolling maximum and fixed"),
            ours.is_some_and(|ours| ours < least),
        )
    });
    compared.into()
}
