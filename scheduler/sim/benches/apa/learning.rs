//! target_concurrency from a cold guess, and after the knee moved.

use apa::Policy as Asked;
use serde::Serialize;
use sim::engine::{self, Options, Scenario};
use sim::plant::Plant;
use sim::policy::apa::Apa;
use sim::trace::Trace;

use crate::combos::{self, CPU, GPU, KNEES};
use crate::table::Target;
use crate::watched::{Seen, Watched};

/// Load for so long, and the target is found.
const FOUND_AFTER_S: usize = 300;
/// Then so long at the same load without a move.
const STEADY_S: usize = 3600;
/// The knee moves here, and is to be found again in as long.
const MOVES_AT_S: usize = FOUND_AFTER_S + STEADY_S;
const LENGTH_S: usize = MOVES_AT_S + FOUND_AFTER_S + STEADY_S / 4;
/// A move up of the vertical axis.
const STEP: f64 = 0.1;
/// Latency may lie beyond twice the objective for so long without a break.
const MOST_BEYOND_S: usize = 60;
/// Replicas, full at the knee, that the load would take.
const REPLICAS: f64 = 8.0;

/// One start.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Start {
    plant: String,
    knee: u32,
    guess: u32,
    after_5_min: u32,
    found: bool,
    /// The largest and the least target of the hour after, and whether they lie within a step.
    hour: (u32, u32),
    steady: bool,
    moved_knee: u32,
    after_5_min_of_moved: u32,
    found_again: bool,
    /// The longest time without a break with p95 above twice the objective.
    beyond_s: usize,
}

/// A service time against concurrency with a knee at `knee`, and at half of it later.
fn plants(knee: u32) -> [Plant; 3] {
    let half = (knee / 2).max(1);
    let cpu = |knee| format!("knee = {knee}");
    // Loses so little to batching that the knee is the batch.
    let gpu = |knee: u32| format!("knee = {knee}\nslope = {}", 0.4 / f64::from(knee));
    // A request takes 1.5 times what it takes alone where c (c - 1) coherency = 0.5.
    let usl = |knee: u32| {
        let pairs = f64::from(knee) * f64::from(knee.max(2) - 1);
        format!("contention = 0\ncoherency = {}", 0.5 / pairs)
    };
    let change = format!("[[changes]]\nat = \"{MOVES_AT_S}s\"");
    [
        combos::parse(
            &format!("cpu-{knee}"),
            &format!("kind = \"cpu\"\nservice_time = \"100ms\"\n{}", cpu(knee)),
            &format!("{CPU}{change}\n{}", cpu(half)),
        ),
        combos::parse(
            &format!("gpu-{knee}"),
            &format!("kind = \"gpu\"\nservice_time = \"500ms\"\n{}", gpu(knee)),
            &format!("{GPU}{change}\n{}", gpu(half)),
        ),
        combos::parse(
            &format!("usl-{knee}"),
            &format!("kind = \"usl\"\nservice_time = \"100ms\"\n{}", usl(knee)),
            &format!("{CPU}{change}\n{}", usl(half)),
        ),
    ]
}

/// Every plant with a guess of 1 and one that is ten times too high.
pub(crate) fn all() -> Vec<(Plant, u32)> {
    let plants = KNEES.into_iter().flat_map(plants);
    let starts = plants.flat_map(|plant| {
        let knee = plant.best_point() as u32;
        [(plant.clone(), 1), (plant, knee * 10)]
    });
    starts.collect()
}

pub(crate) fn start(plant: &Plant, guess: u32, seed: u64) -> Start {
    let knee = plant.best_point();
    let curve = plant.curve(std::time::Duration::ZERO);
    let rate = REPLICAS * curve.throughput(knee);
    let text = format!("t_seconds,rps\n0,{rate}\n{},{rate}\n", LENGTH_S - 1);
    let trace = steady(&text);
    let policy = Asked {
        initial_target: Some(guess),
        startup: Some(std::time::Duration::from_secs(10)),
        max_target: 10_000,
        ..Asked::default()
    };
    let scenario = Scenario {
        trace,
        plant: plant.clone(),
        options: Options {
            seed,
            ..Options::default()
        },
    };
    let mut watched = Watched::new(Apa::new(policy));
    engine::run(&scenario, &mut watched);
    let seconds = &watched.seconds;
    let after = |at: usize| seconds[at.min(seconds.len() - 1)].target;
    let hour = &seconds[FOUND_AFTER_S..MOVES_AT_S];
    let most = hour.iter().map(|it| it.target).max().unwrap_or(0);
    let least = hour.iter().map(|it| it.target).min().unwrap_or(0);
    let moved_knee = plant.best_point_at(std::time::Duration::from_secs(MOVES_AT_S as u64));
    let objective_ms = 1.5 * curve.time_s(1.0) * 1000.0;
    Start {
        plant: plant.name.clone(),
        knee: knee as u32,
        guess,
        after_5_min: after(FOUND_AFTER_S),
        found: near(after(FOUND_AFTER_S), knee),
        hour: (least, most),
        steady: f64::from(most - least) <= (STEP * f64::from(most)).max(1.0),
        moved_knee: moved_knee as u32,
        after_5_min_of_moved: after(MOVES_AT_S + FOUND_AFTER_S),
        found_again: near(after(MOVES_AT_S + FOUND_AFTER_S), moved_knee),
        beyond_s: longest(seconds, 2.0 * objective_ms),
    }
}

fn steady(text: &str) -> Trace {
    let fill = sim::trace::Fill::Yes;
    sim::trace::parse("steady", text.as_bytes(), fill).expect("the text here is right")
}

/// Within 20 % or one request.
fn near(target: u32, knee: f64) -> bool {
    (f64::from(target) - knee).abs() <= (0.2 * knee).max(1.0)
}

/// The longest run of seconds with p95 above `bound_ms`.
fn longest(seconds: &[Seen], bound_ms: f64) -> usize {
    let (mut longest, mut run) = (0, 0);
    for second in seconds {
        match second.p95_ms {
            Some(p95_ms) if p95_ms > bound_ms => run += 1,
            Some(_) => run = 0,
            // Nothing ended: neither better nor worse.
            None => {}
        }
        longest = longest.max(run);
    }
    longest
}

pub(crate) fn line(it: &Start) -> String {
    let mark = |good: bool| if good { "" } else { " NO" };
    format!(
        "{:<9} guess {:<5} 5 min {:<5}{}  hour {}..{}{}  knee moves to {:<4} 5 min {:<5}{}  beyond {} s{}",
        it.plant,
        it.guess,
        it.after_5_min,
        mark(it.found),
        it.hour.0,
        it.hour.1,
        mark(it.steady),
        it.moved_knee,
        it.after_5_min_of_moved,
        mark(it.found_again),
        it.beyond_s,
        mark(it.beyond_s <= MOST_BEYOND_S),
    )
}

pub(crate) fn targets(starts: &[Start]) -> Vec<Target> {
    let all = starts.len();
    let target = |what: &str, target: &str, good: fn(&Start) -> bool| {
        let count = starts.iter().filter(|it| good(it)).count();
        Target::new(
            what,
            format!("{count} of {all} starts"),
            target,
            count == all,
        )
    };
    vec![
        target(
            "target_concurrency after 5 min from a cold guess",
            "within 20 % or 1",
            |it| it.found,
        ),
        target(
            "then an hour of steady load",
            "no move beyond a step",
            |it| it.steady,
        ),
        target(
            "the knee moves by half: after 5 min",
            "within 20 % or 1",
            |it| it.found_again,
        ),
        target(
            "p95 above twice the objective",
            "never for over 60 s",
            |it| it.beyond_s <= MOST_BEYOND_S,
        ),
    ]
}
