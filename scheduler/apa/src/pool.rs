//! The warm pool: how many nodes (or warm slots) of one class should stand ready for a runtime, ahead
//! of who will claim them. Pure.
//!
//! Base stock at the newsvendor quantile of lead-time demand, calibrated online. A unit that is claimed
//! takes one lead time to replace, so the pool has to hold what may be claimed in one lead time:
//!
//! ```text
//! d_t  = units claimed in (t - L, t], claims that found none included
//! F_t  = what is believed of the d one lead time ahead (see `forecast`)
//! tau* = c_u / (c_u + c_o)     a claim that finds none costs c_u, a unit that idles for L costs c_o
//! Q_t  = the least x with F_t(x) >= tau_t
//! tau_t = clip(tau + g_n (1[d_t > S_{t-L}] - (1 - tau*)), 0.50, 0.9995),  g_n = 0.02 n^-0.75
//! S_t  = max(Q_t + known floors and roll-outs, S_min): up at once, down by max(1, 5 %) a minute
//! ```
//!
//! The correction of `tau` is adaptive conformal inference (Gibbs and Candes 2021). Its step decays, as
//! in Angelopoulos, Barber and Bates 2024: with a step that stays, `tau` is high in the quiet after
//! every burst, which costs a tenth of the pool at the same hit rate.
//!
//! What always holds: never below the minimum nor above the maximum; never down faster than said; more
//! claims in a minute never ask for less in it; where nothing was observed nothing changes; the state
//! has a bound, however long it runs.

mod forecast;
mod history;

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::units::MonoTime;

use crate::autoscaler::Decision;
use crate::explain::{Explanation, Input};
use forecast::{Forecast, SOURCES, Weights};
use history::History;

/// How often the pool is decided on.
pub const PERIOD: Duration = Duration::from_secs(60);
/// The lead time before one was measured: a base image of some GB, pulled and unpacked.
pub const LEAD_UNKNOWN: Duration = Duration::from_secs(120);
/// A longer lead time is taken for this one: beyond lies a node that cannot pull.
pub const LEAD_MAX: Duration = Duration::from_secs(3600);
/// Of the last measured lead times this share is shorter than the one that counts.
pub const LEAD_QUANTILE: f64 = 0.9;
/// So many lead times are remembered.
pub const LEADS: usize = 50;
/// `tau` stays within these, whatever was missed (lower: half of all claims' minutes would miss;
/// upper: one minute in 2,000 does, fewer than a week's samples can tell).
pub const TAU_MIN: f64 = 0.50;
pub const TAU_MAX: f64 = 0.9995;
/// First step of the correction of `tau`, and how it decays with the number of decisions.
pub const STEP: f64 = 0.02;
pub const STEP_DECAY: f64 = 0.75;
/// Down by at most this share a minute, and by one where that is less than one.
pub const DOWN_SHARE: f64 = 0.05;

/// What an operator asked of a pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    pub min: u32,
    pub max: u32,
    /// What a claim that finds no unit costs, in units of `idle_cost`. Above 0.
    pub miss_cost: f64,
    /// What one idle unit costs over one lead time. Above 0.
    pub idle_cost: f64,
}

impl Default for Policy {
    /// A claim that waits for its image is worth fifty idle units: level 1 costs disk alone.
    fn default() -> Self {
        Self {
            min: 0,
            max: 1000,
            miss_cost: 50.0,
            idle_cost: 1.0,
        }
    }
}

/// What was seen in the minute before a decision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observation {
    /// Units that were claimed, those found missing included; `None`: nothing is known of the minute.
    pub claims: Option<u32>,
    /// From wanted to ready, see [`LeadTimes`]; `None`: not measured yet.
    pub lead: Option<Duration>,
    /// Units that will be claimed for certain: floors and roll-outs that are not placed yet.
    pub known: u32,
}

/// What a pool remembers. It may be written down; see [`State::resume`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    size: u32,
    tau: Option<f64>,
    /// Decisions that `tau` was corrected by.
    corrections: u64,
    weights: Weights,
    history: History,
    /// From minutes of the caller's clock to those of `history`.
    shift_minutes: i64,
    /// Sizes of the last minutes, oldest first, as far back as the longest lead time.
    sizes: VecDeque<u32>,
}

/// The last measured times from wanted to ready.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LeadTimes {
    /// Milliseconds, oldest first.
    millis: VecDeque<u64>,
}

impl LeadTimes {
    pub fn record(&mut self, took: Duration) {
        if self.millis.len() >= LEADS {
            self.millis.pop_front();
        }
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.millis.push_back(millis);
    }

    /// The 90th percentile; `None` before the first.
    pub fn get(&self) -> Option<Duration> {
        let mut sorted: Vec<u64> = self.millis.iter().copied().collect();
        sorted.sort_unstable();
        let rank = (LEAD_QUANTILE * sorted.len() as f64).ceil() as usize;
        let millis = sorted.get(rank.checked_sub(1)?)?;
        Some(Duration::from_millis(*millis))
    }
}

impl Policy {
    /// The share of minutes in which the pool should suffice.
    fn tau_star(&self) -> f64 {
        let tau = self.miss_cost / (self.miss_cost + self.idle_cost);
        if tau.is_finite() {
            tau.clamp(TAU_MIN, TAU_MAX)
        } else {
            TAU_MAX
        }
    }
}

impl State {
    pub fn new(policy: &Policy) -> Self {
        Self {
            size: policy.min,
            tau: None,
            corrections: 0,
            weights: Weights::default(),
            history: History::default(),
            shift_minutes: 0,
            sizes: VecDeque::new(),
        }
    }

    /// Units that should stand ready now.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Takes up a state that an earlier process wrote down `away` ago, and whose clock began elsewhere.
    /// The minutes in between are a gap. `None`: nobody knows how long it was, so the claims are
    /// forgotten, and what they taught stays.
    pub fn resume(mut self, away: Option<Duration>, now: MonoTime) -> Self {
        self.sizes.clear();
        self.shift_minutes = 0;
        match (away, self.history.last()) {
            (Some(away), Some(last)) => {
                let resumed = last.saturating_add(minutes(away));
                self.shift_minutes = signed(resumed).saturating_sub(signed(minute_of(now)));
            }
            (None, _) | (_, None) => self.history = History::default(),
        }
        self
    }

    /// The minute of `history` that `now` lies in.
    fn minute(&self, now: MonoTime) -> u64 {
        let minute = signed(minute_of(now)).saturating_add(self.shift_minutes);
        u64::try_from(minute).unwrap_or(0)
    }
}

/// Decides on the pool's size, once a minute. A call in a minute that was decided on already changes
/// nothing.
pub fn decide(
    policy: &Policy,
    mut state: State,
    observation: &Observation,
    now: MonoTime,
) -> (Decision, State) {
    let minute = state.minute(now);
    let before = state.size;
    let bounded = |size: u32| size.min(policy.max).max(policy.min.min(policy.max));
    let claims = observation.claims.filter(|_| state.history.is_new(minute));
    let Some(claims) = claims else {
        let least = policy.min.saturating_add(observation.known);
        state.size = bounded(before.max(least));
        let facts = Facts::unobserved(policy, &state, observation);
        return (facts.decision(Rule::NoData, before, state.size), state);
    };
    let lead = observation.lead.unwrap_or(LEAD_UNKNOWN).min(LEAD_MAX);
    let lead_minutes = minutes(lead).max(1);
    let tau_star = policy.tau_star();

    let expected = Forecast::of(&state.history, minute, lead_minutes);
    state.history.record(minute, claims);
    let demand = state.history.lead_demand(minute, lead_minutes);
    let tau = state.corrected_tau(demand, lead_minutes, tau_star);
    let ahead = Forecast::of(&state.history, minute + lead_minutes, lead_minutes);
    let quantile = ahead.quantile(&state.weights, tau);
    let wanted = quantile.unwrap_or(0).saturating_add(observation.known);
    let slowest = before.saturating_sub(most_down(before));
    let held = wanted.max(policy.min).max(slowest);
    state.size = bounded(held);

    let rule = match () {
        () if state.size < held => Rule::Maximum,
        () if wanted >= policy.min && wanted >= slowest => match observation.known {
            0 => Rule::Demand,
            _ => Rule::Known,
        },
        () if slowest > policy.min => Rule::SlowDown,
        () => Rule::Minimum,
    };
    let facts = Facts {
        claims: Some(claims),
        lead,
        demand,
        tau,
        quantile,
        known: observation.known,
        policy: *policy,
        weights: state.weights.shares(),
    };
    let decision = facts.decision(rule, before, state.size);
    // Only now, so that a claim more in this minute cannot turn to a source that asks for less.
    if let Some(demand) = demand {
        state.weights.learn(&expected, demand);
    }
    state.remember_size();
    (decision, state)
}

impl State {
    /// Adaptive conformal inference: what was missed raises `tau`, what sufficed lowers it a little.
    fn corrected_tau(&mut self, demand: Option<u32>, lead_minutes: u64, tau_star: f64) -> f64 {
        let mut tau = self.tau.unwrap_or(tau_star);
        let back = usize::try_from(lead_minutes).unwrap_or(usize::MAX);
        let then = self.sizes.len().checked_sub(back);
        let then = then.and_then(|at| self.sizes.get(at));
        if let (Some(demand), Some(size)) = (demand, then) {
            self.corrections = self.corrections.saturating_add(1);
            let step = STEP * (self.corrections as f64).powf(-STEP_DECAY);
            let missed = f64::from(u8::from(demand > *size));
            tau += step * (missed - (1.0 - tau_star));
        }
        let tau = tau.clamp(TAU_MIN, TAU_MAX);
        self.tau = Some(tau);
        tau
    }

    fn remember_size(&mut self) {
        let longest = usize::try_from(minutes(LEAD_MAX)).unwrap_or(usize::MAX);
        while self.sizes.len() >= longest {
            self.sizes.pop_front();
        }
        self.sizes.push_back(self.size);
    }
}

/// What a minute may take away at most.
fn most_down(size: u32) -> u32 {
    let share = (f64::from(size) * DOWN_SHARE).floor() as u32;
    share.max(1)
}

fn minute_of(now: MonoTime) -> u64 {
    now.as_millis() / 60_000
}

fn signed(minutes: u64) -> i64 {
    i64::try_from(minutes).unwrap_or(i64::MAX)
}

/// Whole minutes, the last one begun.
fn minutes(duration: Duration) -> u64 {
    duration.as_secs().div_ceil(60)
}

/// Which part of the formula fixed the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    NoData,
    Demand,
    Known,
    SlowDown,
    Minimum,
    Maximum,
}

impl Rule {
    fn as_str(self) -> &'static str {
        match self {
            Rule::NoData => "no-data",
            Rule::Demand => "lead-time-demand",
            Rule::Known => "known-claims",
            Rule::SlowDown => "slow-down",
            Rule::Minimum => "minimum",
            Rule::Maximum => "maximum",
        }
    }
}

/// The numbers of one decision.
struct Facts {
    claims: Option<u32>,
    lead: Duration,
    demand: Option<u32>,
    tau: f64,
    quantile: Option<u32>,
    known: u32,
    policy: Policy,
    weights: [f64; SOURCES.len()],
}

impl Facts {
    fn unobserved(policy: &Policy, state: &State, observation: &Observation) -> Self {
        Self {
            claims: None,
            lead: observation.lead.unwrap_or(LEAD_UNKNOWN).min(LEAD_MAX),
            demand: None,
            tau: state.tau.unwrap_or(policy.tau_star()),
            quantile: None,
            known: observation.known,
            policy: *policy,
            weights: state.weights.shares(),
        }
    }

    fn decision(&self, rule: Rule, before: u32, after: u32) -> Decision {
        let lead = self.lead.as_secs();
        let percent = 100.0 * self.tau;
        let quantile = self.quantile.unwrap_or(0);
        let because = match rule {
            Rule::NoData => {
                "nothing is known of the last minute's claims, so nothing changes".to_owned()
            }
            Rule::Demand => format!(
                "within one lead time of {lead} s at most {quantile} are claimed in {percent:.1} % of \
                 cases"
            ),
            Rule::Known => format!(
                "within one lead time of {lead} s at most {quantile} are claimed in {percent:.1} % of \
                 cases, and {} more are known to come",
                self.known
            ),
            Rule::SlowDown => format!(
                "{} would do now, and a pool shrinks by at most {} a minute",
                quantile.saturating_add(self.known),
                most_down(before)
            ),
            Rule::Minimum => format!(
                "{} would do now, and the minimum is {}",
                quantile.saturating_add(self.known),
                self.policy.min
            ),
            Rule::Maximum => format!(
                "more would be wanted, and the maximum is {}",
                self.policy.max
            ),
        };
        let would_change = match rule {
            Rule::NoData => "a minute whose claims are known".to_owned(),
            Rule::Demand | Rule::Known => format!(
                "more than {quantile} claims within {lead} s, or a time of day that had them"
            ),
            Rule::SlowDown => {
                "another minute with as few claims takes the next ones away".to_owned()
            }
            Rule::Minimum => {
                format!("more than {} claims within {lead} s", self.policy.min)
            }
            Rule::Maximum => "a higher maximum".to_owned(),
        };
        Decision {
            before,
            after,
            explanation: Explanation {
                rule: rule.as_str().into(),
                because,
                inputs: self.inputs(),
                would_change,
            },
        }
    }

    fn inputs(&self) -> Vec<Input> {
        let mut inputs = vec![
            Input::new(
                "claims in the last minute",
                self.claims.map(f64::from),
                "claims",
            ),
            Input::new("lead time", self.lead.as_secs_f64(), "s"),
            Input::new(
                "claims in the last lead time",
                self.demand.map(f64::from),
                "claims",
            ),
            Input::new("share of cases to suffice in", self.tau, "ratio"),
            Input::new(
                "claims that this share stays below",
                self.quantile.map(f64::from),
                "claims",
            ),
            Input::new("known claims to come", f64::from(self.known), "claims"),
        ];
        let sources = SOURCES.iter().zip(self.weights);
        inputs.extend(sources.map(|(source, weight)| {
            Input::new(format!("weight of {}", source.name()), weight, "ratio")
        }));
        inputs
    }
}

#[cfg(test)]
mod tests;
