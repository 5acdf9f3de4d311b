//! Samples that are lost, wrong or late against the same run without.

use sim::engine::{self, Disturbance};
use sim::policy::apa::Apa;
use sim::synth::Shape;
use sim::trace::Kind;

use crate::combos::{self, KNEES, Start};
use crate::table::Target;
use crate::watched::{Seen, Watched};

const NOISE: Disturbance = Disturbance {
    dropped: 0.2,
    outliers: 0.05,
    outlier_factor: 10.0,
    shift_s: 0.2,
};
/// Seconds in which replicas may lie further away.
const APART: f64 = 0.05;
/// Changes of direction beyond the clean run's and this many an hour are an oscillation.
const TURNS_AN_HOUR: f64 = 6.0;

fn seen(
    name: &str,
    shape: Shape,
    knee: u32,
    start: Start,
    seed: u64,
    noise: Disturbance,
) -> Vec<Seen> {
    let plant = combos::plant(knee);
    let trace = combos::sized(shape.trace(name, Kind::Rate, seed), &plant);
    let mut contest = combos::contest(trace, plant, start, seed);
    contest.scenario.options.disturbance = noise;
    let mut watched = Watched::new(Apa::new(contest.policy.clone()));
    engine::run(&contest.scenario, &mut watched);
    watched.seconds
}

fn mean(seconds: &[Seen]) -> f64 {
    let sum: f64 = seconds.iter().map(|it| f64::from(it.desired)).sum();
    sum / seconds.len().max(1) as f64
}

/// Times at which the replicas turn from growing to shrinking or back.
fn turns(seconds: &[Seen]) -> u32 {
    let mut turns = 0;
    let mut direction = std::cmp::Ordering::Equal;
    for pair in seconds.windows(2) {
        let next = pair[1].desired.cmp(&pair[0].desired);
        if next == std::cmp::Ordering::Equal {
            continue;
        }
        turns += u32::from(direction != std::cmp::Ordering::Equal && direction != next);
        direction = next;
    }
    turns
}

pub(crate) fn targets(seed: u64, told: impl Fn(String)) -> Vec<Target> {
    let (mut near, mut seconds) = (0_u64, 0_u64);
    let (mut worst, mut runs, mut good, mut learned, mut calm) = (1.0_f64, 0, 0, 0, 0);
    for (name, shape) in Shape::standard()
        .into_iter()
        .filter(|(name, _)| *name != "diurnal")
    {
        for knee in KNEES {
            let run = |start, noise| seen(name, shape, knee, start, seed, noise);
            let clean = run(Start::Pinned, Disturbance::default());
            let noisy = run(Start::Pinned, NOISE);
            let pairs = clean.iter().zip(&noisy);
            let close = pairs.filter(|(clean, noisy)| {
                let apart = f64::from(clean.desired.abs_diff(noisy.desired));
                apart <= (0.1 * f64::from(clean.desired)).max(1.0)
            });
            let close = close.count();
            let share = close as f64 / clean.len() as f64;
            let hours = clean.len() as f64 / 3600.0;
            let (before, after) = (turns(&clean), turns(&noisy));
            let quiet = f64::from(after) <= f64::from(before) + TURNS_AN_HOUR * hours;
            let (learned_clean, learned_noisy) = (
                run(Start::Cold, Disturbance::default()),
                run(Start::Cold, NOISE),
            );
            let last = |seen: &[Seen]| seen.last().map_or(0, |it| it.target);
            let (a, b) = (last(&learned_clean), last(&learned_noisy));
            let same = f64::from(a.abs_diff(b)) <= (0.2 * f64::from(a)).max(1.0);
            told(format!(
                "noise {name}/{knee}: near {:.1} % of the time, replicas {:.1} -> {:.1}, turns {before} -> {after}, target {a} -> {b}",
                share * 100.0,
                mean(&clean),
                mean(&noisy),
            ));
            near += close as u64;
            seconds += clean.len() as u64;
            worst = worst.min(share);
            runs += 1;
            good += u32::from(share >= 1.0 - APART);
            learned += u32::from(same);
            calm += u32::from(quiet);
        }
    }
    let of = |count: u32| format!("{count} of {runs} runs");
    vec![
        Target::new(
            "noise, target pinned: replicas within one or 10 % of the clean run",
            format!(
                "{:.1} % of the time, worst run {:.1} %, {}",
                100.0 * near as f64 / seconds.max(1) as f64,
                100.0 * worst,
                of(good)
            ),
            "95 % of the time",
            good == runs,
        ),
        Target::new(
            "noise: learned target within 20 % of the clean run's",
            of(learned),
            "all",
            learned == runs,
        ),
        Target::new(
            "noise: turns of the replicas",
            of(calm),
            "no oscillation",
            calm == runs,
        ),
    ]
}
