//! A model of one replica: how long requests take in it, how it starts, and what it shows of itself.
//!
//! A plant is read from a file ([`Plant::parse`]); the built-in ones are such files too
//! ([`Plant::built_in`]). Inside, every number is checked.

mod curve;
mod file;
mod write;

use std::time::Duration;

use apa::{HardwareClass, Resources};

pub use curve::{Curve, TOLERANCE};
pub use file::{BUILT_IN, PlantMistake};

/// One kind of replica.
#[derive(Clone, Debug, PartialEq)]
pub struct Plant {
    /// The file's name, or the built-in's.
    pub name: String,
    pub class: HardwareClass,
    /// The first curve holds from the start; later ones from their time on.
    phases: Vec<Phase>,
    pub startup: Startup,
    pub noise: Noise,
    /// Requests that gateways let wait for a replica; more are turned away.
    pub queue: f64,
    /// Requests a replica takes at once whatever a policy says; `None`: as many as come.
    pub hard_limit: Option<HardLimit>,
    pub usage: Usage,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Phase {
    from: Duration,
    curve: Curve,
}

/// From wanted to ready: a lognormal draw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Startup {
    pub mean_s: f64,
    /// Standard deviation over the mean.
    pub spread: f64,
}

/// What makes two equal requests, and two equal readings, differ.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Noise {
    /// Standard deviation of the logarithm of a request's service time; its mean stays.
    pub service: f64,
    /// Relative standard deviation of each gauge that is read.
    pub gauges: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HardLimit {
    pub requests: f64,
    pub beyond: Beyond,
}

/// What happens to requests beyond a replica's hard limit where the policy lets them through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beyond {
    /// They wait inside the replica: throughput stays at the limit's, time in the replica grows.
    Wait,
    /// The replica answers that it is full: they are counted as rejected.
    Refuse,
}

/// How busy each resource is; `None`: this hardware cannot say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    pub cpu: Option<Use>,
    pub gpu_sm: Option<Use>,
    pub gpu_tensor: Option<Use>,
    pub gpu_membw: Option<Use>,
    pub memory: Option<Use>,
    pub io_wait: Option<Use>,
    pub pressure: Option<Use>,
}

/// One resource's use, 0 to 1: `idle` without requests, `full` at the best point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Use {
    pub idle: f64,
    pub full: f64,
    pub follows: Follows,
}

/// What a resource's use grows with, from `idle` to `full`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follows {
    /// Throughput over the best point's, never above `full`: whatever does the work.
    Throughput,
    /// Requests at once over the best point's, up to 1: what each holds while it is there (memory).
    Concurrency,
    /// The share of its time that a request spends on nothing but the others: `1 - S(1) / S(c)`.
    Waiting,
}

/// Requests that may wait where nothing is said.
const DEFAULT_QUEUE: f64 = 1000.0;

impl Plant {
    /// A plant with one curve, a queue of 1000 and no hard limit.
    pub(crate) fn of(
        name: &str,
        class: HardwareClass,
        curve: Curve,
        startup: Startup,
        noise: Noise,
        usage: Usage,
    ) -> Plant {
        Plant {
            name: name.to_owned(),
            class,
            phases: vec![Phase {
                from: Duration::ZERO,
                curve,
            }],
            startup,
            noise,
            queue: DEFAULT_QUEUE,
            hard_limit: None,
            usage,
        }
    }

    /// The curve that holds at a time.
    pub fn curve(&self, at: Duration) -> &Curve {
        let holds = self.phases.iter().rev().find(|phase| phase.from <= at);
        &holds.unwrap_or(&self.phases[0]).curve
    }

    /// Times at which the curve changes, in order.
    pub fn changes(&self) -> impl Iterator<Item = Duration> + '_ {
        self.phases.iter().skip(1).map(|phase| phase.from)
    }

    /// The knee at the start: see [`Curve::best_point`], and never above the hard limit.
    pub fn best_point(&self) -> f64 {
        self.best_point_at(Duration::ZERO)
    }

    pub fn best_point_at(&self, at: Duration) -> f64 {
        let best = self.curve(at).best_point();
        self.hard_limit
            .map_or(best, |limit| best.min(limit.requests))
    }

    /// Time in a replica with `c` requests at once, in seconds.
    pub fn time_s(&self, curve: &Curve, c: f64) -> f64 {
        match self.hard_limit {
            Some(limit) if c > limit.requests => {
                curve.time_s(limit.requests) * (c / limit.requests)
            }
            _ => curve.time_s(c),
        }
    }

    /// Requests that a replica ends in a second with `c` at once.
    pub fn throughput(&self, curve: &Curve, c: f64) -> f64 {
        c / self.time_s(curve, c)
    }

    /// What a replica shows of itself with `c` requests at once.
    pub fn resources(&self, curve: &Curve, best: f64, c: f64) -> Resources {
        let throughput = (self.throughput(curve, c) / self.throughput(curve, best)).min(1.0);
        let concurrency = c / best;
        let waiting = 1.0 - curve.time_s(1.0) / self.time_s(curve, c);
        let used = |usage: Option<Use>| {
            usage.map(|usage| {
                let share = match usage.follows {
                    Follows::Throughput => throughput,
                    Follows::Concurrency => concurrency,
                    Follows::Waiting => waiting,
                };
                (usage.idle + (usage.full - usage.idle) * share).clamp(0.0, 1.0)
            })
        };
        let usage = &self.usage;
        Resources {
            cpu: used(usage.cpu),
            gpu_sm: used(usage.gpu_sm),
            gpu_tensor: used(usage.gpu_tensor),
            gpu_membw: used(usage.gpu_membw),
            memory: used(usage.memory),
            io_wait: used(usage.io_wait),
            pressure: used(usage.pressure),
        }
    }

    /// The same plant with another start-up time, its spread kept.
    pub fn with_startup(mut self, mean: Duration) -> Self {
        self.startup.mean_s = mean.as_secs_f64();
        self
    }
}

#[cfg(test)]
mod documented;
#[cfg(test)]
mod tests;
