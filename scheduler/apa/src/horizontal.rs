//! The horizontal axis: how many replicas, from what is offered.
//!
//! ```text
//! steady  = max(mean of 20 s, mean of the short view)
//! need    = steady + Z * sigma + growth over the start-up time   (requests at once)
//! up      : ceil((need + backlog / time to drain it) / target_concurrency), at once
//! down    : to the high quantile of the needs over a hold of 20 start-up times (60 s to 5 min)
//! ```
//!
//! It is due every 5 s, and every second for a jump that cannot be chance. Sigma is what the last
//! two minutes showed, never less than chance alone gives (square-root staffing: Halfin and Whitt
//! 1981), so headroom costs a large steady service little and gives a small bursty one much.
//!
//! Not here: what a replica takes (see `vertical`), what is measured (see `signal`).

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::units::MonoTime;

use crate::autoscaler::{Decision, Policy};
use crate::explain::{Explanation, Input};
use crate::signal::{JUMP_SIGMAS, Signal};

/// Decisions lie this far apart, but for jumps.
pub const PERIOD: Duration = Duration::from_secs(5);
/// The hold lasts this many start-ups: what took a start to buy is kept until buying it again would
/// have cost little.
pub const HOLD_STARTUPS: u32 = 20;
/// Standard deviations of headroom over the steady need.
const HEADROOM_SIGMAS: f64 = 1.0;
/// Growth is foreseen over a start-up time of at most this, and this much more, seconds.
const FORESIGHT_MOST_S: f64 = 30.0;
const FORESIGHT_MORE_S: f64 = 5.0;
/// Share of the foreseen growth that is bought where it may be a jump that is over.
const JUMP_SHARE: f64 = 0.5;
/// A backlog is to be gone one start-up time and this many seconds later.
const DRAIN_S: f64 = 10.0;
/// Down goes to this quantile of the needs within the hold: a single peak need not be kept.
const HELD_QUANTILE: f64 = 0.9;
/// Where they fell all through the hold: a decline and no dip.
const HELD_QUANTILE_FALLING: f64 = 0.25;
/// While the target is a guess, replicas beyond these would be bought on a guess.
pub const GUESS_REPLICAS: u32 = 6;
/// One decision at most multiplies the replicas by this, and adds as many to start with.
const UP_FACTOR: u32 = 10;
/// One decision at most halves them.
const DOWN_DIVISOR: u32 = 2;
/// Assumed before the first start was measured, seconds.
const STARTUP_UNKNOWN_S: f64 = 10.0;
/// Means are sums of fractions: a demand of exactly two replicas must not buy a third.
const ROUNDING: f64 = 1e-9;

/// What was measured of one served entity, and what each of its replicas takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observation {
    /// `None`: nothing was measured lately.
    pub signal: Option<Signal>,
    /// What a replica takes at once, the mean over classes; at least 1.
    pub target: f64,
    /// No bound of the target has been seen yet.
    pub guess: bool,
    /// Replicas that take requests.
    pub ready: u32,
    /// Replicas that do not yet.
    pub starting: u32,
}

/// What fixed a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    Demand,
    /// A jump beyond chance, between the regular decisions.
    Jump,
    /// Replicas for a backlog, beyond those that steady demand needs.
    Backlog,
    /// Earlier needs that are still held.
    Hold,
    /// Minimum or provisioned concurrency.
    Floor,
    MaxReplicas,
    /// The target is a guess: no more is bought on it.
    GuessBudget,
    UpRate,
    DownRate,
    /// No demand, yet not for long enough to go to zero.
    NotIdleYet,
    Idle,
    /// A request waited at zero replicas.
    Wake,
    /// Nothing was measured: as before.
    NoData,
}

impl Rule {
    pub fn as_str(self) -> &'static str {
        match self {
            Rule::Demand => "demand",
            Rule::Jump => "jump",
            Rule::Backlog => "backlog",
            Rule::Hold => "hold",
            Rule::Floor => "floor",
            Rule::MaxReplicas => "max-replicas",
            Rule::GuessBudget => "guess-budget",
            Rule::UpRate => "up-rate",
            Rule::DownRate => "down-rate",
            Rule::NotIdleYet => "not-idle-yet",
            Rule::Idle => "idle",
            Rule::Wake => "wake",
            Rule::NoData => "no-data",
        }
    }
}

/// What the axis remembers between decisions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    desired: u32,
    /// Needs by the time they were seen, oldest first, no older than the longest hold.
    needs: VecDeque<Need>,
    #[serde(with = "crate::mono_millis")]
    last_busy: MonoTime,
    #[serde(with = "crate::mono_millis")]
    next: MonoTime,
    /// The last decision was made without measurements: the first one that comes is looked at at once.
    blind: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Need {
    #[serde(with = "crate::mono_millis")]
    at: MonoTime,
    /// Requests at once: what a replica takes may change before the hold ends.
    requests: f64,
}

impl State {
    /// `desired` replicas are wanted already: they are held like any other need.
    pub fn new(desired: u32, target: f64, now: MonoTime) -> Self {
        Self {
            desired,
            needs: VecDeque::from([Need {
                at: now,
                requests: f64::from(desired) * target.max(1.0),
            }]),
            last_busy: now,
            next: now,
            blind: true,
        }
    }

    /// Stands where a state was taken from for a moment; costs no memory.
    pub(crate) fn taken() -> Self {
        Self {
            desired: 0,
            needs: VecDeque::new(),
            last_busy: MonoTime::ZERO,
            next: MonoTime::ZERO,
            blind: false,
        }
    }

    pub fn desired(&self) -> u32 {
        self.desired
    }

    /// `measured`: there is a sample of this second.
    pub fn due(&self, measured: bool, now: MonoTime) -> bool {
        now >= self.next || (self.blind && measured)
    }

    fn remember(&mut self, requests: f64, policy: &Policy, now: MonoTime) {
        // Decisions between the regular ones must not outvote them in the quantile: one need a
        // period, the largest.
        let newest = self
            .needs
            .back_mut()
            .filter(|newest| now.saturating_since(newest.at) < PERIOD);
        match newest {
            Some(newest) => newest.requests = newest.requests.max(requests),
            None => self.needs.push_back(Need { at: now, requests }),
        }
        let longest = policy.hold_max.max(policy.hold_min);
        while (self.needs.front()).is_some_and(|need| now.saturating_since(need.at) > longest) {
            self.needs.pop_front();
        }
    }

    /// The largest need of the longest hold.
    fn peak(&self) -> f64 {
        (self.needs.iter().map(|need| need.requests)).fold(0.0, f64::max)
    }

    /// The needs' high quantile within the hold.
    fn held(&self, hold: Duration, now: MonoTime) -> f64 {
        let mut within: Vec<f64> = (self.needs.iter().rev())
            .take_while(|need| now.saturating_since(need.at) <= hold)
            .map(|need| need.requests)
            .collect();
        if within.is_empty() {
            return 0.0;
        }
        // A hold that is not over yet holds all that it saw.
        let covered =
            (self.needs.front()).is_some_and(|oldest| now.saturating_since(oldest.at) >= hold);
        let quantile = match (covered, falls(&within)) {
            (false, _) => 1.0,
            (true, false) => HELD_QUANTILE,
            (true, true) => HELD_QUANTILE_FALLING,
        };
        let rank = ((within.len() - 1) as f64 * quantile).ceil() as usize;
        *within.select_nth_unstable_by(rank, f64::total_cmp).1
    }
}

/// Whether needs, newest first, fell all through: each quarter lies below the mean of the one before.
fn falls(newest_first: &[f64]) -> bool {
    let quarter = newest_first.len() / 4;
    if quarter < 2 {
        return false;
    }
    let quarters = newest_first.chunks_exact(quarter);
    let (means, tops): (Vec<f64>, Vec<f64>) = quarters
        .take(4)
        .map(|needs| {
            let top = needs.iter().copied().fold(0.0, f64::max);
            (needs.iter().sum::<f64>() / needs.len() as f64, top)
        })
        .unzip();
    means[1..]
        .iter()
        .zip(&tops)
        .all(|(older, newer)| newer < older)
}

/// How long needs bind. Where no start was measured the shortest hold applies.
pub fn hold(policy: &Policy) -> Duration {
    let wanted = (policy.startup).map_or(Duration::ZERO, |startup| {
        startup.saturating_mul(HOLD_STARTUPS)
    });
    wanted.min(policy.hold_max).max(policy.hold_min)
}

/// Never below: the minimum, what provisioned concurrency needs, and 1 unless zero is allowed.
pub fn floor(policy: &Policy, target: f64) -> u32 {
    let provisioned = replicas_for(f64::from(policy.provisioned_concurrency), target);
    let least = u32::from(!policy.scale_to_zero);
    (policy.min_replicas.max(provisioned).max(least)).min(policy.max_replicas)
}

/// `ceil(requests / target)`.
pub fn replicas_for(requests: f64, target: f64) -> u32 {
    // `as` saturates, which is what an absurd demand deserves: the maximum binds.
    (requests / target.max(1.0) - ROUNDING).ceil().max(0.0) as u32
}

/// The parts of the need, in requests at once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Needed {
    steady: f64,
    headroom: f64,
    growth: f64,
    backlog: f64,
}

impl Needed {
    /// `peak`: the largest need of the last minutes.
    fn of(signal: &Signal, startup_s: f64, peak: f64) -> Self {
        let offered = signal.long.max(signal.short);
        // Callers that wait for their answers before they ask again offer only what is served: those
        // who have waited all through the view are demand like any other.
        let steady = offered.max(if signal.standing > 0.0 {
            signal.active + signal.standing
        } else {
            0.0
        });
        let ahead_s = startup_s.min(FORESIGHT_MOST_S) + FORESIGHT_MORE_S;
        let share = if signal.ramp { 1.0 } else { JUMP_SHARE };
        // Nothing varies where nothing comes: the spread of what has ended keeps no replica.
        let headroom = if steady > 0.0 {
            HEADROOM_SIGMAS * signal.sigma
        } else {
            0.0
        };
        let foreseen = share * signal.slope * ahead_s;
        // Load that comes and goes is not foreseen to rise above where it was a moment ago; what has
        // never been this high may go anywhere.
        let returning = peak - steady - headroom;
        Self {
            steady,
            headroom,
            growth: if returning > 0.0 {
                foreseen.min(returning)
            } else {
                foreseen
            },
            backlog: signal.backlog * signal.service_s / (DRAIN_S + startup_s),
        }
    }

    fn lasting(&self) -> f64 {
        self.steady + self.headroom + self.growth
    }

    fn all(&self) -> f64 {
        self.lasting() + self.backlog
    }
}

/// Decides how many replicas there should be. Where no decision is due in this second there is none.
pub fn decide(
    policy: &Policy,
    mut state: State,
    observation: &Observation,
    now: MonoTime,
) -> (Option<Decision>, State) {
    let regular = state.due(observation.signal.is_some(), now);
    let startup_s = policy
        .startup
        .map_or(STARTUP_UNKNOWN_S, |startup| startup.as_secs_f64());
    let target = observation.target.max(1.0);
    let Some(signal) = &observation.signal else {
        if !regular {
            return (None, state);
        }
        return keep(policy, state, observation, now);
    };
    if signal.busy {
        state.last_busy = now;
    }
    let needed = Needed::of(signal, startup_s, state.peak());
    let asked = replicas_for(needed.all(), target);
    let jumped = signal.jump > JUMP_SIGMAS && asked > state.desired;
    if !regular && !jumped {
        return (None, state);
    }
    state.next = if regular { now + PERIOD } else { state.next };
    state.blind = false;
    state.remember(needed.steady + needed.headroom, policy, now);

    let previous = state.desired;
    let held = replicas_for(state.held(hold(policy), now), target);
    let bounds = Bounds::of(policy, observation, previous);
    let (desired, rule) = choose(
        policy,
        &bounds,
        Choice {
            asked,
            lasting: replicas_for(needed.lasting(), target),
            held: held.min(previous),
            previous,
            idle: now.saturating_since(state.last_busy) >= policy.idle,
            jumped: jumped && !regular,
        },
    );
    state.desired = desired;
    let told = Told {
        policy,
        observation,
        signal,
        needed,
        held,
        bounds,
    };
    let decision = Decision {
        before: previous,
        after: desired,
        explanation: told.explain(rule, desired),
    };
    (Some(decision), state)
}

/// Nothing was measured: what there is stays, within bounds that may have changed, and is held too,
/// so that a gap does not let the hold run out.
fn keep(
    policy: &Policy,
    mut state: State,
    observation: &Observation,
    now: MonoTime,
) -> (Option<Decision>, State) {
    let before = state.desired;
    let after = before.clamp(floor(policy, observation.target), policy.max_replicas);
    state.next = now + PERIOD;
    state.blind = true;
    state.remember(f64::from(after) * observation.target.max(1.0), policy, now);
    state.desired = after;
    let explanation = Explanation {
        rule: Rule::NoData.as_str().into(),
        because: format!(
            "no gateway has reported in the last seconds: {} as before",
            replicas(after)
        ),
        inputs: vec![Input::new("replicas", f64::from(before), "replicas")],
        would_change: "a report from a gateway".into(),
    };
    (
        Some(Decision {
            before,
            after,
            explanation,
        }),
        state,
    )
}

/// A request waits and there is no replica: decides at once, by what is queued.
pub fn wake(
    policy: &Policy,
    mut state: State,
    queued: u32,
    target: f64,
    now: MonoTime,
) -> (Decision, State) {
    let before = state.desired;
    let after = replicas_for(f64::from(queued), target)
        .max(1)
        .max(before)
        .max(floor(policy, target))
        .min(GUESS_REPLICAS.max(before).max(floor(policy, target)))
        .min(policy.max_replicas);
    state.remember(f64::from(after) * target.max(1.0), policy, now);
    state.last_busy = now;
    state.desired = after;
    let explanation = Explanation {
        rule: Rule::Wake.as_str().into(),
        because: format!("{queued} requests waited and there was no replica"),
        inputs: vec![Input::new("queued", f64::from(queued), "requests")],
        would_change: format!("no request for {} s", policy.idle.as_secs()),
    };
    (
        Decision {
            before,
            after,
            explanation,
        },
        state,
    )
}

/// What no decision leaves: the one place where bounds are enforced.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    floor: u32,
    max: u32,
    /// What may be bought while the target is a guess.
    budget: u32,
    most: u32,
    least: u32,
}

impl Bounds {
    fn of(policy: &Policy, observation: &Observation, previous: u32) -> Self {
        let floor = floor(policy, observation.target);
        let max = policy.max_replicas.max(floor);
        let budget = if observation.guess {
            GUESS_REPLICAS.max(floor).max(previous.min(max))
        } else {
            u32::MAX
        };
        Self {
            floor,
            max,
            budget,
            most: previous.saturating_mul(UP_FACTOR).saturating_add(UP_FACTOR),
            least: previous / DOWN_DIVISOR,
        }
    }
}

struct Choice {
    asked: u32,
    lasting: u32,
    /// At most what there was: a hold keeps, it never buys.
    held: u32,
    previous: u32,
    idle: bool,
    jumped: bool,
}

fn choose(policy: &Policy, bounds: &Bounds, choice: Choice) -> (u32, Rule) {
    let Choice {
        asked,
        lasting,
        held,
        previous,
        idle,
        jumped,
    } = choice;
    // What asks the most, and why.
    let (wanted, rule) = if held > asked && held > bounds.floor {
        (held, Rule::Hold)
    } else if asked > lasting && asked > bounds.floor {
        (asked, Rule::Backlog)
    } else if asked >= bounds.floor && asked > 0 {
        (asked, if jumped { Rule::Jump } else { Rule::Demand })
    } else if bounds.floor > 0 {
        (bounds.floor, Rule::Floor)
    } else if idle || previous == 0 {
        (0, Rule::Idle)
    } else {
        (1, Rule::NotIdleYet)
    };
    let zero_allowed = wanted == 0 && policy.scale_to_zero;
    let mut bound = (wanted, rule);
    if bound.0 < bounds.least && !zero_allowed {
        bound = (bounds.least, Rule::DownRate);
    }
    for (limit, rule) in [
        (bounds.budget, Rule::GuessBudget),
        (bounds.most, Rule::UpRate),
        (bounds.max, Rule::MaxReplicas),
    ] {
        if bound.0 > limit {
            bound = (limit, rule);
        }
    }
    // A floor that was raised holds at once, whatever the rates say.
    if bound.0 < bounds.floor {
        bound = (bounds.floor, Rule::Floor);
    }
    bound
}

/// All that a decision was made from, for its explanation.
struct Told<'a> {
    policy: &'a Policy,
    observation: &'a Observation,
    signal: &'a Signal,
    needed: Needed,
    held: u32,
    bounds: Bounds,
}

impl Told<'_> {
    fn explain(&self, rule: Rule, desired: u32) -> Explanation {
        Explanation {
            rule: rule.as_str().into(),
            because: self.because(rule, desired),
            inputs: self.inputs(),
            would_change: self.would_change(rule, desired),
        }
    }

    fn because(&self, rule: Rule, desired: u32) -> String {
        let Needed {
            steady,
            headroom,
            growth,
            backlog,
        } = self.needed;
        let target = self.observation.target;
        let sum = format!(
            "{:.1} requests at once ({steady:.1} steady, {headroom:.1} headroom, {growth:.1} growth) at {target:.0} a replica",
            self.needed.lasting()
        );
        match rule {
            Rule::Demand => sum,
            Rule::Jump => format!(
                "load jumped by {:.1} standard deviations: {sum}",
                self.signal.jump
            ),
            Rule::Backlog => format!(
                "{:.0} requests wait and are to be drained: {backlog:.1} on top of {sum}",
                self.signal.backlog
            ),
            Rule::Hold => format!(
                "the last {} s needed up to {}; now {sum}",
                hold(self.policy).as_secs(),
                replicas(self.held)
            ),
            Rule::Floor => format!("the floor is {}; {sum}", replicas(self.bounds.floor)),
            Rule::MaxReplicas => format!("max_replicas is {}; {sum}", self.bounds.max),
            Rule::GuessBudget => format!(
                "target_concurrency is still a guess, on which no more than {} are bought; {sum}",
                replicas(desired)
            ),
            Rule::UpRate => format!("one decision adds no more; {sum}"),
            Rule::DownRate => format!("one decision halves at most; {sum}"),
            Rule::NotIdleYet => format!(
                "no request, but not for {} s yet",
                self.policy.idle.as_secs()
            ),
            Rule::Idle => format!("no request for {} s", self.policy.idle.as_secs()),
            Rule::Wake | Rule::NoData => String::new(),
        }
    }

    fn would_change(&self, rule: Rule, desired: u32) -> String {
        let target = self.observation.target.max(1.0);
        let above = f64::from(desired) * target;
        match rule {
            Rule::Demand | Rule::Jump | Rule::Backlog | Rule::Floor => format!(
                "a need above {above:.0} requests at once adds a replica; one below {:.0} for {} s takes one away",
                (above - target).max(0.0),
                hold(self.policy).as_secs()
            ),
            Rule::Hold => format!(
                "the high needs leave the hold of {} s, or a need above {above:.0} requests at once",
                hold(self.policy).as_secs()
            ),
            Rule::MaxReplicas => "a higher max_replicas, or less load".into(),
            Rule::GuessBudget => {
                "a target_concurrency that is known (see the vertical axis)".into()
            }
            Rule::UpRate | Rule::DownRate => "the next decision goes on".into(),
            Rule::NotIdleYet => "no request until the idle time is over".into(),
            Rule::Idle | Rule::Wake | Rule::NoData => "a request".into(),
        }
    }

    fn inputs(&self) -> Vec<Input> {
        let Needed {
            steady,
            headroom,
            growth,
            backlog,
        } = self.needed;
        let signal = self.signal;
        let startup_s = self.policy.startup.map(|startup| startup.as_secs_f64());
        [
            ("offered_20s", Some(signal.long), "requests"),
            ("offered_short", Some(signal.short), "requests"),
            ("short_view", Some(signal.short_s), "s"),
            ("service_time", Some(signal.service_s), "s"),
            ("steady", Some(steady), "requests"),
            ("headroom", Some(headroom), "requests"),
            ("growth", Some(growth), "requests"),
            ("backlog", Some(backlog), "requests"),
            ("queued", Some(signal.backlog), "requests"),
            ("jump", Some(signal.jump), "sigma"),
            (
                "target_concurrency",
                Some(self.observation.target),
                "requests",
            ),
            ("startup", startup_s, "s"),
            ("held", Some(f64::from(self.held)), "replicas"),
            ("ready", Some(f64::from(self.observation.ready)), "replicas"),
            (
                "starting",
                Some(f64::from(self.observation.starting)),
                "replicas",
            ),
        ]
        .into_iter()
        .map(|(name, value, unit)| Input::new(name, value, unit))
        .collect()
    }
}

fn replicas(count: u32) -> String {
    format!("{count} replica{}", if count == 1 { "" } else { "s" })
}
