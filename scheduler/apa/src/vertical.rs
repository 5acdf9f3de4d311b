//! The vertical axis: how many requests a replica of one hardware class takes at once.
//!
//! ```text
//!             nothing complains, driven to half: doubled      a bound is seen
//!   Climbing ---------------------------------------------> Known
//!      ^                                                      |  within a tenth: held
//!      |  below the knee again                                |  up 10 % after 3 that agree
//!   Falling <-------------------------------------------------+  down 30 % after 2, at once on stress
//!             the replica has become slower than it was known
//! ```
//!
//! The target is the least of three bounds, each read from the curve of what was measured (see
//! `curve`): the knee, where one more request adds less than a third of what the first did; the most
//! requests whose p95 keeps the latency objective (1.5 times the p95 at low load where none is
//! given); where the fullest resource reaches its threshold.
//!
//! What always holds: a replica that is not driven to half of its target teaches nothing upwards; a
//! move is capped; the regular decision is due every 30 s, only climbing and stress are faster;
//! nothing measured changes nothing.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::units::MonoTime;

use crate::autoscaler::{Decision, Policy};
use crate::block::Collector;
use crate::curve::{Block, Curve, Shape};
use crate::explain::{Explanation, Input};
use crate::sample::Group;

/// Regular decisions lie this far apart.
pub const PERIOD: Duration = Duration::from_secs(30);
/// A guess that is handed in may be ten times too high: the climb begins at this part of it.
const GUESS_DIVISOR: u32 = 64;
/// Climbing multiplies by this; after a change of what was known, by the smaller one.
const CLIMB: f64 = 2.0;
const CLIMB_AGAIN: f64 = 1.25;
/// A replica is driven where it holds at least this share of its target.
const DRIVEN: f64 = 0.5;
/// It has reached its target where it holds this share of it.
const CLOSE: f64 = 0.8;
/// Without an objective: p95 may be this many times what it is at low load.
const LATENCY_FACTOR: f64 = 1.5;
/// A resource is full from here on (CPU, GPU, memory alike).
const FULL: f64 = 0.95;
/// A bound counts as seen where requests beyond it were measured to take this many times what they
/// take at first: a knee within the noise of a few seconds is none.
const SLOWER: f64 = 1.2;
/// For this long after a bound was found the climb may go on to it, before the cautious rule holds.
const SETTLING: Duration = Duration::from_secs(240);
/// A bound this far from the target moves it.
const DEAD_BAND: f64 = 0.13;
/// The time that a request takes grows with this power of concurrency, or a higher one, where a
/// replica is full (0: not at all, 1: in proportion).
const SATURATED: f64 = 0.75;
const UP_AGREE: u8 = 3;
const DOWN_AGREE: u8 = 2;
const UP_FACTOR: f64 = 1.1;
const DOWN_FACTOR: f64 = 0.7;
/// Two stretches whose p95 is this many times the limit are stress.
const STRESS_FACTOR: f64 = 1.2;
const STRESS_STRETCHES: u8 = 2;
/// A stretch differs from what was known where its time is off by this share, and by more than
/// chance; so many in a row are a change.
const DRIFT: f64 = 0.25;
const DRIFT_SIGMAS: f64 = 4.0;
const DRIFT_STRETCHES: u8 = 2;

/// What one class's replicas showed in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Observation<'a> {
    /// `None`: nothing was measured, or there is no such replica.
    pub group: Option<&'a Group>,
    /// The replica that takes more on purpose.
    pub explorer: Option<&'a Group>,
}

/// What fixed a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// Set by the operator.
    Pinned,
    /// Nothing complains: doubled.
    Climb,
    /// The knee, the latency or a resource was seen: the target is there now.
    Found,
    /// The bound that was found is where the target is.
    AtBound,
    /// The replicas were not driven to half of their target.
    NotDriven,
    /// Too few settled stretches since the last decision.
    NoData,
    /// A bound asks for a move, but not often enough yet.
    Agreeing,
    Up,
    Down,
    /// The latency is over its limit: at once.
    Stress,
    /// The replica differs from what was known of it: learned again.
    Changed,
    MaxTarget,
}

impl Rule {
    pub fn as_str(self) -> &'static str {
        match self {
            Rule::Pinned => "pinned",
            Rule::Climb => "climb",
            Rule::Found => "found",
            Rule::AtBound => "at-bound",
            Rule::NotDriven => "not-driven",
            Rule::NoData => "no-data",
            Rule::Agreeing => "agreeing",
            Rule::Up => "up",
            Rule::Down => "down",
            Rule::Stress => "stress",
            Rule::Changed => "changed",
            Rule::MaxTarget => "max-target",
        }
    }
}

/// Which of the three bounds is the least.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Binding {
    Knee,
    Latency,
    Cpu,
    GpuSm,
    GpuTensor,
    GpuMemoryBandwidth,
    Memory,
}

impl Binding {
    fn resource(name: &str) -> Self {
        match name {
            "gpu_sm" => Binding::GpuSm,
            "gpu_tensor" => Binding::GpuTensor,
            "gpu_membw" => Binding::GpuMemoryBandwidth,
            "memory" => Binding::Memory,
            _ => Binding::Cpu,
        }
    }

    fn sentence(self) -> &'static str {
        match self {
            Binding::Knee => {
                "beyond it one more request adds less than a third of what the first did"
            }
            Binding::Latency => "beyond it the p95 leaves its limit",
            Binding::Cpu => "beyond it the CPU is full",
            Binding::GpuSm => "beyond it the GPU's multiprocessors are full",
            Binding::GpuTensor => "beyond it the GPU's tensor cores are full",
            Binding::GpuMemoryBandwidth => "beyond it the GPU's memory bandwidth is full",
            Binding::Memory => "beyond it the memory is full",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Bound {
    at: f64,
    binding: Binding,
}

impl Bound {
    /// Whether it was measured, and is no guess about what lies beyond the measurements.
    fn seen(&self, curve: &Curve) -> bool {
        match self.binding {
            Binding::Knee | Binding::Latency => curve.slower_beyond(self.at, SLOWER),
            // A resource fills up in proportion: its line may be drawn out a little.
            _ => curve
                .highest()
                .is_some_and(|highest| self.at <= highest / CLOSE),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Phase {
    Climbing { factor: f64 },
    Falling,
    Known,
}

/// What is remembered of one class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    target: u32,
    phase: Phase,
    /// No bound has been seen since the beginning.
    guess: bool,
    curve: Curve,
    collector: Collector,
    explorer: Collector,
    /// The last settled stretch since the last regular decision.
    latest: Option<Latest>,
    bound: Option<Bound>,
    up_agree: u8,
    down_agree: u8,
    strained: u8,
    drifted: i8,
    exploring: bool,
    #[serde(with = "crate::mono_millis")]
    next: MonoTime,
    /// Until then a bound that was just found is still being made exact.
    #[serde(with = "crate::mono_millis")]
    settles: MonoTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Latest {
    concurrency: f64,
    service_s: f64,
    p95_s: Option<f64>,
}

impl State {
    pub fn new(policy: &Policy, now: MonoTime) -> Self {
        let first = policy
            .initial_target
            .map_or(1, |guess| guess / GUESS_DIVISOR);
        let target = policy
            .pinned_target
            .unwrap_or(first)
            .clamp(1, policy.max_target.max(1));
        Self {
            target,
            phase: Phase::Climbing { factor: CLIMB },
            guess: true,
            curve: Curve::default(),
            collector: Collector::default(),
            explorer: Collector::default(),
            latest: None,
            bound: None,
            up_agree: 0,
            down_agree: 0,
            strained: 0,
            drifted: 0,
            exploring: false,
            next: now + PERIOD,
            settles: now,
        }
    }

    pub fn target(&self) -> u32 {
        self.target
    }

    /// No bound has been seen: the target may be far too low.
    pub fn guess(&self) -> bool {
        self.guess
    }

    /// What one replica is to take instead, where nothing is known beyond the target and the
    /// replicas are not driven to it.
    pub fn explore(&self, policy: &Policy) -> Option<u32> {
        let beyond = self.target.saturating_mul(2).min(policy.max_target);
        (self.exploring && beyond > self.target).then_some(beyond)
    }

    /// After a restart: the curve stays, what was under way begins anew.
    pub(crate) fn resume(&mut self, policy: &Policy, now: MonoTime) {
        let target = self.target.clamp(1, policy.max_target.max(1));
        self.move_to(target, now);
        self.drifted = 0;
        self.exploring = false;
        self.settles = now;
        self.next = now + PERIOD;
    }

    fn service_s(&self) -> f64 {
        self.latest
            .map(|latest| latest.service_s)
            .or(self.curve.low_service_s())
            .unwrap_or(0.1)
    }

    fn move_to(&mut self, target: u32, now: MonoTime) {
        self.target = target;
        self.up_agree = 0;
        self.down_agree = 0;
        self.strained = 0;
        let service_s = self.service_s();
        self.collector.restart(service_s, now);
        self.explorer.restart(service_s, now);
        self.latest = None;
    }
}

/// Decides what each replica of the class takes. Where no decision is due in this second there is
/// none.
pub fn decide(
    policy: &Policy,
    mut state: State,
    observation: Observation<'_>,
    now: MonoTime,
) -> (Option<Decision>, State) {
    if let Some(pinned) = policy.pinned_target {
        let before = std::mem::replace(&mut state.target, pinned);
        let due = now >= state.next;
        if due {
            state.next = now + PERIOD;
        }
        return (
            (due || before != pinned).then(|| told(before, &state, Rule::Pinned, None, policy)),
            state,
        );
    }
    let before = state.target;
    if before > policy.max_target {
        state.move_to(policy.max_target.max(1), now);
        return (
            Some(told(before, &state, Rule::MaxTarget, None, policy)),
            state,
        );
    }
    let climbing = !matches!(state.phase, Phase::Known);
    let service_s = state.service_s();
    let explored = observation
        .explorer
        .and_then(|group| state.explorer.add(group, service_s, climbing, now));
    let block = observation
        .group
        .and_then(|group| state.collector.add(group, service_s, climbing, now));
    let mut rule = None;
    if let Some(block) = &block {
        rule = learn(policy, &mut state, block, before, now);
    }
    if let Some(explored) = &explored
        && rule.is_none()
    {
        rule = learn_beyond(policy, &mut state, explored, now);
    }
    if rule.is_none() && now >= state.next {
        rule = Some(regular(policy, &mut state, now));
    }
    let Some(rule) = rule else {
        return (None, state);
    };
    let latest = block.as_ref().map(Latest::of).or(state.latest);
    if now >= state.next {
        state.next = now + PERIOD;
    }
    (Some(told(before, &state, rule, latest, policy)), state)
}

impl Latest {
    fn of(block: &Block) -> Self {
        Self {
            concurrency: block.concurrency,
            service_s: block.service_s,
            p95_s: block.p95_s,
        }
    }
}

/// A settled stretch: what it teaches, and what cannot wait for the regular decision.
fn learn(
    policy: &Policy,
    state: &mut State,
    block: &Block,
    target: u32,
    now: MonoTime,
) -> Option<Rule> {
    match compared(state, block) {
        Compared::Alike => {}
        // One that is off on its own teaches nothing.
        Compared::Odd => {
            state.latest = Some(Latest::of(block));
            return None;
        }
        Compared::Changed { slower } => return Some(changed(state, block, slower, now)),
    }
    state.curve.add(block);
    state.latest = Some(Latest::of(block));
    let driven = block.concurrency >= DRIVEN * f64::from(target);
    match state.phase {
        Phase::Climbing { factor } => climb(policy, state, block, factor, driven, now),
        Phase::Falling => fall(policy, state, now),
        Phase::Known => {
            let limit = limit_s(policy, state);
            let over = match (block.p95_s, limit) {
                (Some(p95), Some(limit)) => p95 > STRESS_FACTOR * limit,
                _ => false,
            };
            state.strained = if over && driven {
                state.strained + 1
            } else {
                0
            };
            if state.strained < STRESS_STRETCHES || state.target == 1 {
                return None;
            }
            let lower = down(state.target, 1);
            state.move_to(lower, now);
            Some(Rule::Stress)
        }
    }
}

/// The one replica beyond the target: where it is driven and nothing complains, its limit becomes
/// the target of all.
fn learn_beyond(policy: &Policy, state: &mut State, block: &Block, now: MonoTime) -> Option<Rule> {
    state.curve.add(block);
    let explored = state.explore(policy)?;
    let Phase::Climbing { factor } = state.phase else {
        return None;
    };
    let driven = block.concurrency >= DRIVEN * f64::from(explored);
    let kept = state.target;
    state.target = explored;
    let rule = climb(policy, state, block, factor, driven, now);
    match rule {
        // One step is what was tried: the climb's own step is not taken on top of it.
        Some(Rule::Climb) => {
            state.move_to(explored, now);
            Some(Rule::Climb)
        }
        Some(rule) => Some(rule),
        None => {
            state.target = kept;
            None
        }
    }
}

/// A stretch against what was known at its concurrency.
enum Compared {
    Alike,
    /// Far off, for the first time.
    Odd,
    /// Far off several times in a row.
    Changed {
        slower: bool,
    },
}

fn compared(state: &mut State, block: &Block) -> Compared {
    if !matches!(state.phase, Phase::Known) {
        return Compared::Alike;
    }
    let known = state.curve.near(block.concurrency).or_else(|| {
        let shape = state.curve.fit()?;
        Some((shape.service_s(block.concurrency.max(1.0)), 0.05))
    });
    let Some((known_s, known_error)) = known else {
        return Compared::Alike;
    };
    let off = block.service_s / known_s - 1.0;
    let chance =
        DRIFT_SIGMAS * (0.36 / block.completions.max(1.0) + known_error * known_error).sqrt();
    let direction: i8 = match off {
        off if off.abs() < DRIFT.max(chance) => 0,
        off if off > 0.0 => 1,
        _ => -1,
    };
    if direction == 0 {
        state.drifted = 0;
        return Compared::Alike;
    }
    let same_way = state.drifted.signum() == direction;
    state.drifted = direction + if same_way { state.drifted } else { 0 };
    if state.drifted.unsigned_abs() < DRIFT_STRETCHES {
        return Compared::Odd;
    }
    Compared::Changed {
        slower: direction > 0,
    }
}

/// The replica is not what it was: all that was known of it goes.
fn changed(state: &mut State, block: &Block, slower: bool, now: MonoTime) -> Rule {
    state.drifted = 0;
    state.curve.forget();
    state.curve.add(block);
    state.bound = None;
    let driven = block.concurrency >= DRIVEN * f64::from(state.target);
    let target = if slower && driven && state.target > 1 {
        state.phase = Phase::Falling;
        down(state.target, 1)
    } else {
        state.phase = Phase::Climbing {
            factor: CLIMB_AGAIN,
        };
        state.target
    };
    state.move_to(target, now);
    Rule::Changed
}

fn climb(
    policy: &Policy,
    state: &mut State,
    block: &Block,
    factor: f64,
    driven: bool,
    now: MonoTime,
) -> Option<Rule> {
    let bound = least_bound(policy, state);
    let over = matches!(
        (block.p95_s, policy.latency_objective),
        (Some(p95), Some(limit)) if p95 > limit.as_secs_f64()
    );
    let beyond = (state.curve.beyond_knee(block.concurrency))
        .filter(|_| state.curve.slower_beyond(1.0, SLOWER));
    let seen = bound.filter(|bound| bound.seen(&state.curve));
    match seen {
        Some(bound) if over || beyond.is_some() || bound.at < f64::from(state.target) => {
            return Some(found(policy, state, bound, now));
        }
        _ => {}
    }
    // No shape fits yet, but this much is plain: the last step gained too little.
    if let Some(last_good) =
        beyond.or((over && state.target > 1).then_some(block.concurrency * DOWN_FACTOR))
    {
        let binding = if over {
            Binding::Latency
        } else {
            Binding::Knee
        };
        return Some(found(
            policy,
            state,
            Bound {
                at: last_good,
                binding,
            },
            now,
        ));
    }
    if !driven {
        return None;
    }
    if state.target >= policy.max_target {
        state.phase = Phase::Known;
        state.guess = false;
        return Some(Rule::MaxTarget);
    }
    let higher = ((f64::from(state.target) * factor).ceil() as u32)
        .max(state.target + 1)
        .min(policy.max_target);
    state.exploring = false;
    state.move_to(higher, now);
    Some(Rule::Climb)
}

/// Going down, until a step makes requests hardly faster: only then is the knee among what was seen.
fn fall(policy: &Policy, state: &mut State, now: MonoTime) -> Option<Rule> {
    let close =
        (state.latest).is_some_and(|latest| latest.concurrency >= CLOSE * f64::from(state.target));
    // With one concurrency seen, a lower target shows another one if it is what holds requests back.
    let steepness = state.curve.steepness_at_the_low_end();
    let saturated = steepness.map_or(close, |steepness| steepness > SATURATED);
    if saturated && state.target > 1 {
        let lower = down(state.target, 1);
        state.move_to(lower, now);
        return Some(Rule::Down);
    }
    let bound = least_bound(policy, state).filter(|bound| bound.seen(&state.curve));
    if let Some(mut bound) = bound {
        // What lies far below all that was measured since the change is not known yet.
        let lowest = state.curve.lowest().unwrap_or(bound.at);
        bound.at = bound.at.max(DOWN_FACTOR * lowest);
        return Some(found(policy, state, bound, now));
    }
    state.phase = Phase::Climbing {
        factor: CLIMB_AGAIN,
    };
    None
}

fn found(policy: &Policy, state: &mut State, bound: Bound, now: MonoTime) -> Rule {
    state.phase = Phase::Known;
    state.guess = false;
    state.exploring = false;
    state.settles = now + SETTLING;
    state.bound = Some(bound);
    let target = whole(bound.at, policy);
    state.move_to(target, now);
    Rule::Found
}

/// The decision of every 30 s.
fn regular(policy: &Policy, state: &mut State, now: MonoTime) -> Rule {
    let Some(latest) = state.latest.take() else {
        return Rule::NoData;
    };
    let target = f64::from(state.target);
    let driven = latest.concurrency >= DRIVEN * target;
    if !matches!(state.phase, Phase::Known) {
        // Nothing beyond the target has been seen, and traffic does not drive all replicas there:
        // one of them is to take more.
        state.exploring = !driven && latest.concurrency >= 0.1 * target;
        return if driven {
            Rule::Agreeing
        } else {
            Rule::NotDriven
        };
    }
    let bound = least_bound(policy, state);
    let seen = bound.filter(|bound| bound.seen(&state.curve));
    state.bound = seen.or(state.bound);
    let wanted = match seen {
        Some(bound) => f64::from(whole(bound.at, policy)),
        // Nothing that was measured binds: the target itself is in the way, if it was reached.
        None if latest.concurrency >= CLOSE * target => {
            (target * UP_FACTOR * UP_FACTOR).max(target + 1.0)
        }
        None => target,
    };
    if wanted >= (target + 1.0).max(target * (1.0 + DEAD_BAND)) {
        state.down_agree = 0;
        if !driven {
            return Rule::NotDriven;
        }
        state.up_agree += 1;
        let (agree, factor) = if now < state.settles {
            (1, CLIMB_AGAIN)
        } else {
            (UP_AGREE, UP_FACTOR)
        };
        if state.up_agree < agree {
            return Rule::Agreeing;
        }
        let step = (target * factor).floor().max(target + 1.0).min(wanted);
        let higher = whole(step, policy);
        if higher <= state.target {
            return Rule::MaxTarget;
        }
        state.move_to(higher, now);
        return Rule::Up;
    }
    state.up_agree = 0;
    if wanted <= (target - 1.0).min(target * (1.0 - DEAD_BAND)) {
        state.down_agree += 1;
        if state.down_agree < DOWN_AGREE {
            return Rule::Agreeing;
        }
        let lower = down(state.target, wanted as u32);
        state.move_to(lower, now);
        return Rule::Down;
    }
    state.down_agree = 0;
    Rule::AtBound
}

fn whole(at: f64, policy: &Policy) -> u32 {
    (at.round().max(1.0) as u32).min(policy.max_target.max(1))
}

fn down(target: u32, least: u32) -> u32 {
    let lower = (f64::from(target) * DOWN_FACTOR).floor() as u32;
    lower.min(target - 1).max(least).max(1)
}

/// The p95 that must hold, in seconds.
fn limit_s(policy: &Policy, state: &State) -> Option<f64> {
    match policy.latency_objective {
        Some(objective) => Some(objective.as_secs_f64()),
        None => {
            let low = state
                .curve
                .fit()
                .map(|shape| shape.service_s(1.0))
                .or(state.curve.low_service_s())?;
            Some(LATENCY_FACTOR * low * state.curve.tail()?)
        }
    }
}

/// The least of the three bounds.
fn least_bound(policy: &Policy, state: &State) -> Option<Bound> {
    let most = f64::from(policy.max_target.max(2)) * 2.0;
    let shape: Option<Shape> = state.curve.fit();
    let knee = shape.and_then(|shape| shape.knee(most)).map(|at| Bound {
        at,
        binding: Binding::Knee,
    });
    let latency = shape.and_then(|shape| {
        let limit = match policy.latency_objective {
            // The p95 keeps its distance from the mean as the time grows.
            Some(objective) => objective.as_secs_f64() / state.curve.tail()?,
            None => LATENCY_FACTOR * shape.service_s(1.0),
        };
        Some(Bound {
            at: shape.within(limit, most)?,
            binding: Binding::Latency,
        })
    });
    let filling = state.curve.filling(FULL).map(|filling| Bound {
        at: filling.at,
        binding: Binding::resource(filling.name),
    });
    [knee, latency, filling]
        .into_iter()
        .flatten()
        .min_by(|a, b| a.at.total_cmp(&b.at))
}

fn told(
    before: u32,
    state: &State,
    rule: Rule,
    latest: Option<Latest>,
    policy: &Policy,
) -> Decision {
    let after = state.target;
    Decision {
        before,
        after,
        explanation: Explanation {
            rule: rule.as_str().into(),
            because: because(state, rule, latest),
            inputs: inputs(state, latest, policy),
            would_change: would_change(state, rule),
        },
    }
}

fn because(state: &State, rule: Rule, latest: Option<Latest>) -> String {
    let seen = latest.map_or_else(
        || "nothing settled was seen".to_owned(),
        |latest| {
            format!(
                "{:.1} requests at once a replica took {:.0} ms",
                latest.concurrency,
                latest.service_s * 1000.0
            )
        },
    );
    let bound = state.bound.map_or_else(
        || "no bound is known".to_owned(),
        |bound| format!("{:.1} is the bound: {}", bound.at, bound.binding.sentence()),
    );
    match rule {
        Rule::Pinned => "set by the operator".into(),
        Rule::Climb => format!("nothing complains: {seen}"),
        Rule::Found | Rule::AtBound => bound,
        Rule::NotDriven => format!("replicas are not driven to half of the target: {seen}"),
        Rule::NoData => "too little traffic since the last decision".into(),
        Rule::Agreeing => format!("a move waits until more decisions agree; {bound}"),
        Rule::Up | Rule::Down => bound,
        Rule::Stress => format!("p95 is over its limit: {seen}"),
        Rule::Changed => format!("the replica is not what it was: {seen}"),
        Rule::MaxTarget => format!("the highest target that is allowed; {seen}"),
    }
}

fn would_change(state: &State, rule: Rule) -> String {
    match rule {
        Rule::Pinned => {
            "leave target_concurrency out of the served entity, and it is learned".into()
        }
        Rule::NotDriven | Rule::NoData => format!(
            "replicas that hold {:.1} requests at once or more",
            f64::from(state.target) * DRIVEN
        ),
        Rule::Climb | Rule::Changed => {
            "slower requests, or a resource that fills up, end the climb".into()
        }
        Rule::Found | Rule::AtBound | Rule::Agreeing | Rule::Up | Rule::Down => format!(
            "a bound more than {:.0} % away from {}",
            DEAD_BAND * 100.0,
            state.target
        ),
        Rule::Stress => "a p95 within its limit".into(),
        Rule::MaxTarget => "a higher maximum".into(),
    }
}

fn inputs(state: &State, latest: Option<Latest>, policy: &Policy) -> Vec<Input> {
    let ms = |seconds: f64| seconds * 1000.0;
    let limit = limit_s(policy, state);
    vec![
        Input::new("concurrency", latest.map(|l| l.concurrency), "requests"),
        Input::new("service_time", latest.map(|l| ms(l.service_s)), "ms"),
        Input::new("p95", latest.and_then(|l| l.p95_s).map(ms), "ms"),
        Input::new("p95_limit", limit.map(ms), "ms"),
        Input::new(
            "service_time_low_load",
            state.curve.low_service_s().map(ms),
            "ms",
        ),
        Input::new("bound", state.bound.map(|bound| bound.at), "requests"),
        Input::new("highest_seen", state.curve.highest(), "requests"),
    ]
}
