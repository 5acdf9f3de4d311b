//! The horizontal axis: `need = ceil(demand / target_concurrency)` within the policy's bounds.
//!
//! Up at once. Down only to the largest need of the hold, which lasts as long as twenty starts of a
//! replica: whatever a burst bought is kept until buying it again would have cost little. An entity
//! that may go to zero does so after an idle time, and a waiting request brings it back at once.
//!
//! Replicas that are still starting are part of what was decided before, so demand that they will
//! meet is not bought twice.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::units::{Concurrency, MonoTime};

/// The hold lasts this many start-ups (DESIGN, "The two axes").
pub const HOLD_STARTUPS: u32 = 20;
/// Means are sums of fractions: a demand of exactly two replicas must not buy a third.
const ROUNDING: f64 = 1e-9;

/// The bounds and times within which the axis moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HorizontalPolicy {
    pub min_replicas: u32,
    /// At least 1.
    pub max_replicas: u32,
    pub scale_to_zero: bool,
    /// Requests that each replica takes at once; at least 1.
    pub target_concurrency: u32,
    /// Capacity, in requests at once, that is kept whatever the demand.
    pub provisioned_concurrency: u32,
    pub hold_min: Duration,
    pub hold_max: Duration,
    /// Without demand for this long an entity that may goes to zero.
    pub idle: Duration,
}

/// What was measured of one served entity.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Observation {
    /// Mean of active plus queued requests over [`crate::window::LONG`].
    pub demand_long: Option<Concurrency>,
    /// The same over [`crate::window::SHORT`].
    pub demand_short: Option<Concurrency>,
    /// From placed to ready, where it was measured.
    pub startup: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    pub desired_replicas: u32,
    pub bound_by: Bound,
    pub inputs: Inputs,
}

/// The numbers that a decision was made from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Inputs {
    pub observation: Observation,
    /// What demand alone asks for; `None` where none was measured.
    pub need: Option<u32>,
    /// The largest need of the hold, this one included.
    pub held: u32,
    pub hold: Duration,
    pub previous: u32,
}

/// What fixed a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bound {
    /// The need itself.
    Demand,
    /// An earlier need that is still held.
    Hold,
    /// Minimum or provisioned concurrency.
    Floor,
    MaxReplicas,
    /// No demand yet not idle for long enough to go to zero.
    NotIdleYet,
    /// No demand for the idle time.
    Idle,
    /// A request waited at zero replicas.
    Wake,
    /// Nothing was measured: as before.
    NoData,
}

impl Bound {
    pub fn as_str(self) -> &'static str {
        match self {
            Bound::Demand => "demand",
            Bound::Hold => "hold",
            Bound::Floor => "floor",
            Bound::MaxReplicas => "max-replicas",
            Bound::NotIdleYet => "not-idle-yet",
            Bound::Idle => "idle",
            Bound::Wake => "wake",
            Bound::NoData => "no-data",
        }
    }
}

/// What the axis remembers between decisions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    desired: u32,
    /// Oldest first, no older than the longest hold.
    needs: VecDeque<Need>,
    #[serde(with = "crate::mono_millis")]
    last_busy: MonoTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Need {
    #[serde(with = "crate::mono_millis")]
    at: MonoTime,
    replicas: u32,
}

impl State {
    /// `desired` replicas are wanted already (a floor, or what a restart found): they are held like
    /// any other need.
    pub fn new(desired: u32, now: MonoTime) -> Self {
        Self {
            desired,
            needs: VecDeque::from([Need {
                at: now,
                replicas: desired,
            }]),
            last_busy: now,
        }
    }

    pub fn desired(&self) -> u32 {
        self.desired
    }

    fn remember(&mut self, replicas: u32, hold_max: Duration, now: MonoTime) {
        // A need that a later one reaches or tops can never be the largest again.
        while self
            .needs
            .back()
            .is_some_and(|need| need.replicas <= replicas)
        {
            self.needs.pop_back();
        }
        self.needs.push_back(Need { at: now, replicas });
        while self
            .needs
            .front()
            .is_some_and(|need| now.saturating_since(need.at) > hold_max)
        {
            self.needs.pop_front();
        }
    }

    fn largest_need(&self, hold: Duration, now: MonoTime) -> u32 {
        self.needs
            .iter()
            .filter(|need| now.saturating_since(need.at) <= hold)
            .map(|need| need.replicas)
            .max()
            .unwrap_or(0)
    }
}

impl HorizontalPolicy {
    /// Never below: the minimum, what provisioned concurrency needs, and 1 unless zero is allowed.
    pub fn floor(&self) -> u32 {
        let provisioned = replicas_for(
            f64::from(self.provisioned_concurrency),
            self.target_concurrency,
        );
        let least = u32::from(!self.scale_to_zero);
        self.min_replicas
            .max(provisioned)
            .max(least)
            .min(self.max_replicas)
    }

    /// How long the largest need binds, by how long a start takes. Where no start was measured the
    /// shortest hold applies.
    pub fn hold(&self, startup: Option<Duration>) -> Duration {
        let wanted = startup.map_or(Duration::ZERO, |startup| {
            startup.saturating_mul(HOLD_STARTUPS)
        });
        wanted.min(self.hold_max).max(self.hold_min)
    }

    fn longest_hold(&self) -> Duration {
        self.hold_max.max(self.hold_min)
    }
}

/// Decides how many replicas there should be.
pub fn horizontal(
    policy: &HorizontalPolicy,
    mut state: State,
    observation: Observation,
    now: MonoTime,
) -> (Decision, State) {
    let (floor, max) = (policy.floor(), policy.max_replicas);
    let hold = policy.hold(observation.startup);
    let previous = state.desired;
    let Some(demand) = larger(observation.demand_long, observation.demand_short) else {
        // What is kept is held too: a gap in the measurements must not let the hold run out.
        let kept = previous.clamp(floor, max);
        state.remember(kept, policy.longest_hold(), now);
        state.desired = kept;
        let inputs = Inputs {
            observation,
            need: None,
            held: kept,
            hold,
            previous,
        };
        return (decision(kept, Bound::NoData, inputs), state);
    };
    if demand.get() > 0.0 {
        state.last_busy = now;
    }
    let need = replicas_for(demand.get(), policy.target_concurrency);
    state.remember(need, policy.longest_hold(), now);
    // A hold keeps, it never buys: one that grew with the start-up time must not bring back what an
    // earlier decision gave up.
    let held = state.largest_need(hold, now).min(previous.max(need));
    let idle = now.saturating_since(state.last_busy) >= policy.idle;

    let (desired, bound_by) = if held > max {
        (max, Bound::MaxReplicas)
    } else if held > need && held > floor {
        (held, Bound::Hold)
    } else if need >= floor && need > 0 {
        (need, Bound::Demand)
    } else if floor > 0 {
        (floor, Bound::Floor)
    } else if idle || previous == 0 {
        (0, Bound::Idle)
    } else {
        (1.min(max), Bound::NotIdleYet)
    };
    state.desired = desired;
    let inputs = Inputs {
        observation,
        need: Some(need),
        held,
        hold,
        previous,
    };
    (decision(desired, bound_by, inputs), state)
}

/// A request waits and there is no replica: decides at once, by what is queued.
pub fn wake(
    policy: &HorizontalPolicy,
    mut state: State,
    queued: u32,
    now: MonoTime,
) -> (Decision, State) {
    let previous = state.desired;
    let need = replicas_for(f64::from(queued), policy.target_concurrency).max(1);
    let desired = need
        .max(previous)
        .max(policy.floor())
        .min(policy.max_replicas);
    state.remember(desired, policy.longest_hold(), now);
    state.last_busy = now;
    state.desired = desired;
    let inputs = Inputs {
        observation: Observation::default(),
        need: Some(need),
        held: desired,
        hold: policy.hold(None),
        previous,
    };
    (decision(desired, Bound::Wake, inputs), state)
}

/// `ceil(demand / target_concurrency)`.
pub fn replicas_for(demand: f64, target_concurrency: u32) -> u32 {
    let replicas = demand / f64::from(target_concurrency.max(1));
    // `as` saturates, which is what an absurd demand deserves: the maximum binds.
    (replicas - ROUNDING).ceil().max(0.0) as u32
}

fn decision(desired_replicas: u32, bound_by: Bound, inputs: Inputs) -> Decision {
    Decision {
        desired_replicas,
        bound_by,
        inputs,
    }
}

fn larger(a: Option<Concurrency>, b: Option<Concurrency>) -> Option<Concurrency> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if b > a { b } else { a }),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests;
