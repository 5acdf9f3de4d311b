//! What comes, sub-step by sub-step, and what it would take to serve it at once.

use super::Arrivals;
use super::pool::{Requests, Serving};
use crate::chance::{Chance, Expected, Stream};
use crate::plant::Plant;
use crate::trace::{Kind, Segment, Trace};

/// Draws the arrivals of a trace. Nothing that a policy does changes them.
pub(crate) struct Traffic {
    kind: Kind,
    exact: bool,
    chance: Chance,
    substeps: u32,
    /// Time alone of an ordinary request, in seconds.
    ordinary_s: f64,
    /// Requests expected in each sub-step of this second.
    expected: Expected,
    work_each: f64,
    /// Counted requests of this second that have not come yet, and sub-steps in which they may.
    left: f64,
    left_in: u32,
    /// What an unlimited fleet would be working on, each request as slow as at the best point.
    unlimited: Requests,
}

impl Traffic {
    pub(crate) fn new(
        trace: &Trace,
        plant: &Plant,
        arrivals: Arrivals,
        substeps: u32,
        seed: u64,
    ) -> Self {
        let start = plant.curve(std::time::Duration::ZERO);
        Self {
            kind: trace.kind,
            exact: arrivals == Arrivals::Even,
            chance: Chance::new(seed, Stream::Arrivals),
            substeps,
            ordinary_s: start.time_s(1.0),
            expected: Expected::default(),
            work_each: 1.0,
            left: 0.0,
            left_in: 0,
            unlimited: Requests::default(),
        }
    }

    /// Begins a second.
    pub(crate) fn second(&mut self, segment: &Segment) {
        let service_s = segment.service_s.unwrap_or(self.ordinary_s);
        self.work_each = service_s / self.ordinary_s;
        let requests = match self.kind {
            Kind::Rate | Kind::Counts => segment.value,
            Kind::Concurrency => segment.value / service_s,
        };
        let expected = requests / f64::from(self.substeps);
        if expected != self.expected.mean {
            self.expected = Expected::new(expected);
        }
        self.left = requests;
        self.left_in = self.substeps;
    }

    /// The requests of the next sub-step.
    pub(crate) fn substep(&mut self) -> Requests {
        let count = if self.exact {
            self.expected.mean
        } else if self.kind == Kind::Counts {
            self.counted()
        } else {
            self.chance.poisson(&self.expected)
        };
        Requests::new(count, self.work_each)
    }

    /// Some of this second's counted requests, each as likely in one sub-step as in another.
    fn counted(&mut self) -> f64 {
        let share = 1.0 / f64::from(self.left_in.max(1));
        let count = if self.left_in <= 1 {
            self.left
        } else {
            self.chance.binomial(self.left, share)
        };
        self.left -= count;
        self.left_in = self.left_in.saturating_sub(1);
        count
    }

    /// Offered work after a sub-step, in requests at once: what an unlimited fleet would be working
    /// on.
    pub(crate) fn offered(&mut self, came: Requests, serving: &Serving<'_>, step_s: f64) -> f64 {
        self.unlimited.add(came);
        let takes_s = self.unlimited.work_each() * serving.best_s;
        // The same implicit step as a pool's, with replicas without end.
        let stays = 1.0 / (1.0 + step_s / takes_s);
        self.unlimited.split(1.0 - stays);
        self.unlimited.count
    }
}
