//! The closed loop in virtual time: traffic meets replicas, a policy sees what production would have
//! seen of the second, and what it orders holds from the next second on.
//!
//! A second has sub-steps. In each, requests come, leave the gateways' queue for a replica that has a
//! slot, and end. Requests are a fluid: counts are real numbers, those at work are spread evenly over
//! the replicas, and each sub-step ends a share of them (see `pool`). Arrivals and ends are drawn,
//! unless they are to be even.
//!
//! What always holds: requests that came = those that ended + those rejected + those in the system;
//! the same scenario and policy give the same result; what a policy does changes no arrival.
//!
//! Not modelled: single requests (a queue shorter than a sub-step reads as no wait), how unevenly
//! gateways spread requests, nodes that fail, requests whose clients give up.

mod floor;
mod gauges;
mod line;
mod pool;
mod replicas;
mod run;
mod traffic;

use std::time::Duration;

use crate::fleet::FleetSize;
use crate::measure::{Measures, Series};
use crate::plant::Plant;
use crate::policy::Policy;
use crate::trace::Trace;

pub use floor::floor;

/// A trace, a plant and everything else that policies are compared under.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub trace: Trace,
    pub plant: Plant,
    pub options: Options,
}

/// Above this, a trace is long: what differs within tenths of a second no longer shows.
const LONG_S: u32 = 2 * 86_400;

impl Scenario {
    /// Sub-steps of a second.
    fn substeps(&self) -> u32 {
        let usual = if self.trace.length_s > LONG_S { 4 } else { 10 };
        self.options.substeps.unwrap_or(usual).max(1)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    pub seed: u64,
    /// Replicas that are ready at the start.
    pub initial_replicas: u32,
    /// This much at the start is simulated and not measured.
    pub lead_in_s: u32,
    pub arrivals: Arrivals,
    pub disturbance: Disturbance,
    pub fleet: FleetSize,
    /// What a start takes from a warm slot.
    pub warm_startup: Duration,
    /// Sub-steps of a second: more are finer and slower. `None`: 10, or 4 where the trace is longer
    /// than two days.
    pub substeps: Option<u32>,
    /// Points that a series has at most; 0: no series.
    pub series_points: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            initial_replicas: 1,
            lead_in_s: 0,
            arrivals: Arrivals::Drawn,
            disturbance: Disturbance::default(),
            fleet: FleetSize::default(),
            warm_startup: Duration::from_secs(1),
            substeps: None,
            series_points: 0,
        }
    }
}

/// How requests come, and end, within a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arrivals {
    /// Independently of each other: as many as Poisson draws around a rate, or as were counted, each
    /// at its own moment. How many end is drawn as well.
    #[default]
    Drawn,
    /// Evenly, fractions of requests too.
    Even,
}

/// What happens to samples on their way to the policy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Disturbance {
    /// Share of samples that are lost.
    pub dropped: f64,
    /// Share of samples whose gauges (requests at work, requests that wait) are too large.
    pub outliers: f64,
    pub outlier_factor: f64,
    /// A sample is taken up to this much before its second's end; the next one has the rest.
    pub shift_s: f64,
}

impl Default for Disturbance {
    fn default() -> Self {
        Self {
            dropped: 0.0,
            outliers: 0.0,
            outlier_factor: 10.0,
            shift_s: 0.0,
        }
    }
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub measures: Measures,
    pub series: Series,
    pub balance: Balance,
}

/// Every request of a run, the lead-in included: nothing appears and nothing is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Balance {
    pub arrived: f64,
    pub completed: f64,
    pub rejected: f64,
    /// In the queue and at replicas when the trace ended.
    pub remaining: f64,
}

/// Lets a policy meet a scenario.
pub fn run(scenario: &Scenario, policy: &mut dyn Policy) -> Outcome {
    run::Run::new(scenario).through(policy)
}

#[cfg(test)]
mod tests;
