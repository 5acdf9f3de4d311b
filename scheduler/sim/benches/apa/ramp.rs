//! 10 to 10,000 requests a second within a minute.

use sim::compare::Name;
use sim::engine::Outcome;
use sim::plant::Plant;
use sim::synth::Shape;
use sim::trace::Kind;

use crate::combos::{self, Start};
use crate::table::Target;

const PLANT: &str = "cpu";
/// With slots that start in a second.
const WAIT_WITH_SLOTS_S: f64 = 1.0;
/// A sub-step of the engine, to the width of a bucket of waits: differences below are none.
const RESOLUTION_S: f64 = 0.105;
const FULL_WITHIN_S: u32 = 15;

fn contest(startup_s: u64, start: Start, seed: u64) -> Option<(sim::compare::Contest, u32)> {
    let (name, shape) = Shape::standard()
        .into_iter()
        .find(|(name, _)| *name == "ramp")?;
    let Shape::Ramp { at_s, over_s, .. } = shape else {
        return None;
    };
    let plant = Plant::built_in(PLANT)?;
    let plant = plant.with_startup(std::time::Duration::from_secs(startup_s));
    let trace = shape.trace(name, Kind::Rate, seed);
    let mut contest = combos::contest(trace, plant, start, seed);
    contest.scenario.options.series_points = contest.scenario.trace.length_s;
    Some((contest, at_s + over_s))
}

/// Seconds from the ramp's end until ready replicas first carry what is offered.
fn full_after_s(outcome: &Outcome, end_s: u32) -> Option<u32> {
    let mut after = outcome.series.points.iter().filter(|it| it.t_s >= end_s);
    after
        .find(|it| it.capacity >= it.demand)
        .map(|it| it.t_s - end_s)
}

pub(crate) fn targets(start: Start, seed: u64) -> Vec<Target> {
    let mut targets = Vec::new();
    if let Some((contest, _)) = contest(1, start, seed) {
        let wait_s = contest.apa().measures.wait_p99_s;
        targets.push(Target::new(
            "10 -> 10K requests/s in 60 s, start-up 1 s: p99 wait",
            format!("{wait_s:.2} s"),
            "at most 1 s",
            wait_s <= WAIT_WITH_SLOTS_S,
        ));
    }
    if let Some((contest, end_s)) = contest(10, start, seed) {
        let apa = contest.apa();
        // Others set no limit near the knee: what waits there waits in replicas, and is not seen.
        let ray = contest.run(Name::Ray);
        let settings = contest.grid().map(|settings| contest.knative(settings));
        let waits = ray
            .into_iter()
            .chain(settings)
            .map(|it| it.measures.wait_p99_s);
        let best_s = waits.fold(f64::INFINITY, f64::min);
        let wait_s = apa.measures.wait_p99_s;
        targets.push(Target::new(
            "the same, start-up 10 s, no floor: p99 wait",
            format!("{wait_s:.2} s"),
            format!("at most {best_s:.2} s, the best of those with a limit"),
            wait_s <= best_s + RESOLUTION_S,
        ));
        let full = full_after_s(&apa, end_s);
        targets.push(Target::new(
            "the same: full capacity after the ramp's end",
            full.map_or("never".into(), |it| format!("{it} s")),
            format!("under {FULL_WITHIN_S} s"),
            full.is_some_and(|it| it < FULL_WITHIN_S),
        ));
    }
    targets
}
