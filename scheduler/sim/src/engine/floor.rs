//! The least excess that can be asked of someone who only reacts.

use std::collections::VecDeque;
use std::time::Duration;

use super::Scenario;
use super::pool::Serving;
use super::traffic::Traffic;

/// How far back one looks who keeps what was needed.
const LOOK_BACK_S: u32 = 300;

/// The excess share of someone who, one start-up time and a second late, holds the most that was
/// offered in the 5 min before, to a fraction of a replica. Over the same seconds as the measures.
pub fn floor(scenario: &Scenario) -> f64 {
    let Scenario {
        trace,
        plant,
        options,
    } = scenario;
    let late = (plant.startup.mean_s + 1.0).ceil() as u32;
    let mut offered = Offered::new(scenario);
    let mut recent: Highest = Highest::default();
    let mut past: VecDeque<f64> = VecDeque::new();
    let (mut sum, mut excess) = (0.0, 0.0);
    for (t, segment) in (0u32..).zip(trace.by_second()) {
        let now = offered.second(t, segment);
        // What was known `late` seconds ago; before that, what there is at the start.
        let held = if past.len() >= late as usize {
            let then = past.pop_front().expect("not empty");
            recent.push(t, then);
            recent.highest()
        } else {
            f64::from(options.initial_replicas) * plant.best_point()
        };
        past.push_back(now);
        if t >= options.lead_in_s {
            sum += now;
            excess += (now - held).max(0.0);
        }
    }
    if sum > 0.0 { excess / sum } else { 0.0 }
}

/// Offered work second by second, without any policy.
struct Offered<'a> {
    scenario: &'a Scenario,
    serving: Serving<'a>,
    traffic: Traffic,
    substeps: u32,
}

impl<'a> Offered<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let options = &scenario.options;
        let substeps = scenario.substeps();
        let plant = &scenario.plant;
        Self {
            scenario,
            serving: Serving::new(plant, *plant.curve(Duration::ZERO)),
            traffic: Traffic::new(
                &scenario.trace,
                plant,
                options.arrivals,
                substeps,
                options.seed,
            ),
            substeps,
        }
    }

    fn second(&mut self, t: u32, segment: &crate::trace::Segment) -> f64 {
        let plant = &self.scenario.plant;
        let at = Duration::from_secs(t.into());
        if *plant.curve(at) != self.serving.curve {
            self.serving = Serving::new(plant, *plant.curve(at));
        }
        self.traffic.second(segment);
        let step_s = 1.0 / f64::from(self.substeps);
        let mut sum = 0.0;
        for _ in 0..self.substeps {
            let came = self.traffic.substep();
            sum += self.traffic.offered(came, &self.serving, step_s) * step_s;
        }
        sum
    }
}

/// The highest of the last [`LOOK_BACK_S`] values: those that no later one exceeds, in order.
#[derive(Default)]
struct Highest(VecDeque<(u32, f64)>);

impl Highest {
    fn push(&mut self, t: u32, value: f64) {
        while self.0.back().is_some_and(|(_, last)| *last <= value) {
            self.0.pop_back();
        }
        self.0.push_back((t, value));
        while self.0.front().is_some_and(|(at, _)| at + LOOK_BACK_S <= t) {
            self.0.pop_front();
        }
    }

    fn highest(&self) -> f64 {
        self.0.front().map_or(0.0, |(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Arrivals, Options};
    use crate::plant::Plant;
    use crate::synth::Shape;
    use crate::trace::Kind;

    #[test]
    fn only_what_rises_within_a_start_up_lies_above_the_floor() {
        let step = Shape::Step {
            low: 40.0,
            high: 400.0,
            at_s: 100,
            for_s: 100,
            length_s: 300,
        };
        let scenario = Scenario {
            trace: step.trace("step", Kind::Rate, 1),
            plant: Plant::built_in("cpu").expect("there"),
            options: Options {
                arrivals: Arrivals::Even,
                ..Options::default()
            },
        };
        // 18 requests at once above what is held, for 11 of the seconds; 20 * 100 + 2 * 200 in all.
        let expected = 18.0 * 11.0 / 2400.0;
        assert!(
            (floor(&scenario) - expected).abs() < 0.001,
            "{}",
            floor(&scenario)
        );
    }
}
