//! Backtests of the warm pool: what share of claims would have found a unit ready, and how large a
//! pool that took, for our rule and for those that it has to beat. Pure.
//!
//! ```text
//! each minute:  units ordered a lead time ago arrive, then claims take what idles (a hit each),
//!               then the rule says how large the pool should be, and what lacks is ordered
//! ```
//!
//! The pool's size is what idles and what is on order: both are paid for. Rules are compared at equal
//! hit rate, since a larger pool misses less: each is run over its own knob, and read where its curve
//! has the hit rate asked for.

use std::collections::VecDeque;
use std::time::Duration;

use apa::pool;
use shared::units::MonoTime;

/// A rule for the size of a pool.
pub trait Rule {
    /// Units that should idle or be on order after `minute`, in which `claims` came. Called once a
    /// minute, in order.
    fn size(&mut self, minute: u64, claims: u32, lead_minutes: u32) -> u32;
}

/// What a rule brought about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Share of claims that found a unit, 0 to 1; 1 where nothing was claimed.
    pub hit_rate: f64,
    /// Mean over the minutes of units that idled or were on order.
    pub mean_size: f64,
}

/// One rule over all settings of its own knob.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    pub rule: &'static str,
    pub outcomes: Vec<Outcome>,
}

/// Claims of each minute from the replicas that were needed in it: every increase, where what was
/// needed in the `hold` minutes before is still there.
pub fn replica_starts(needed: &[u32], hold: usize) -> Vec<u32> {
    let held = |minute: usize| {
        let window = &needed[minute.saturating_sub(hold)..=minute];
        window.iter().copied().max().unwrap_or(0)
    };
    let starts = (1..needed.len()).map(|minute| held(minute).saturating_sub(held(minute - 1)));
    std::iter::once(0)
        .chain(starts)
        .take(needed.len())
        .collect()
}

/// Runs a rule over claims by the minute. The first `lead_in` minutes are not counted: nobody knows
/// anything in them. A lead time of no minute is taken for one of a minute.
pub fn run(rule: &mut dyn Rule, claims: &[u32], lead_minutes: u32, lead_in: usize) -> Outcome {
    let lead = u64::from(lead_minutes.max(1));
    let mut stock = Stock::default();
    let (mut hits, mut claimed, mut held) = (0_u64, 0_u64, 0_u64);
    for (minute, &count) in (0_u64..).zip(claims) {
        stock.arrive(minute);
        let found = stock.take(count);
        stock.aim_at(rule.size(minute, count, lead_minutes.max(1)), minute + lead);
        if minute >= lead_in as u64 {
            hits += u64::from(found);
            claimed += u64::from(count);
            held += stock.size();
        }
    }
    let minutes = claims.len().saturating_sub(lead_in).max(1);
    Outcome {
        hit_rate: if claimed == 0 {
            1.0
        } else {
            hits as f64 / claimed as f64
        },
        mean_size: held as f64 / minutes as f64,
    }
}

/// Every rule: ours first, then those that it has to beat: the rolling maximum of two hours scaled, the
/// best fixed size in hindsight, and a moving average with a multiple of its spread.
pub fn curves(claims: &[u32], lead_minutes: u32, lead_in: usize) -> Vec<Curve> {
    let run = |rule: &mut dyn Rule| run(rule, claims, lead_minutes, lead_in);
    let most = most_in_a_lead_time(claims, lead_minutes);
    let curve = |rule, outcomes| Curve { rule, outcomes };
    vec![
        curve("ours", TAUS.map(|tau| run(&mut Ours::new(tau))).to_vec()),
        curve(
            "rolling maximum of 2 h",
            FACTORS
                .map(|factor| run(&mut RollingMaximum::new(120, factor)))
                .to_vec(),
        ),
        curve(
            "best fixed size in hindsight",
            (0..=most).map(|size| run(&mut Fixed(size))).collect(),
        ),
        curve(
            "moving average and spread",
            SIGMAS
                .map(|sigmas| run(&mut MovingAverage::new(sigmas)))
                .to_vec(),
        ),
    ]
}

const TAUS: [f64; 16] = [
    0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.985, 0.99, 0.993, 0.995, 0.997, 0.999,
];
const FACTORS: [f64; 10] = [0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5, 2.0];
const SIGMAS: [f64; 8] = [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0];

impl Curve {
    /// The mean size at which the rule has the hit rate (0 to 1), between the two nearest of its
    /// settings that are worth it: none has more hits for a smaller pool. `None`: no setting of it
    /// reaches the hit rate.
    pub fn size_at(&self, hit_rate: f64) -> Option<f64> {
        let mut sorted = self.outcomes.clone();
        sorted.sort_by(|a, b| b.hit_rate.total_cmp(&a.hit_rate));
        let mut above: Option<Outcome> = None;
        for outcome in sorted {
            if above.is_some_and(|above| above.mean_size <= outcome.mean_size) {
                continue;
            }
            if outcome.hit_rate < hit_rate {
                let above = above?;
                let share = (hit_rate - outcome.hit_rate) / (above.hit_rate - outcome.hit_rate);
                return Some(outcome.mean_size + share * (above.mean_size - outcome.mean_size));
            }
            above = Some(outcome);
        }
        above.map(|above| above.mean_size)
    }
}

fn most_in_a_lead_time(claims: &[u32], lead_minutes: u32) -> u32 {
    let windows = claims.windows(lead_minutes.max(1) as usize);
    let sums = windows.map(|window| window.iter().sum::<u32>());
    sums.max().unwrap_or_else(|| claims.iter().sum())
}

/// Units that idle, and those on order with the minute in which they arrive.
#[derive(Default)]
struct Stock {
    idle: u32,
    ordered: VecDeque<(u64, u32)>,
}

impl Stock {
    fn arrive(&mut self, minute: u64) {
        while let Some(&(due, count)) = self.ordered.front()
            && due <= minute
        {
            self.idle += count;
            self.ordered.pop_front();
        }
    }

    /// Takes what there is of `count`.
    fn take(&mut self, count: u32) -> u32 {
        let found = self.idle.min(count);
        self.idle -= found;
        found
    }

    /// Orders what lacks; what is too much is taken from the last orders first.
    fn aim_at(&mut self, size: u32, due: u64) {
        let has = self.size();
        let wanted = u64::from(size);
        if has < wanted {
            self.ordered.push_back((due, (wanted - has) as u32));
            return;
        }
        let mut surplus = (has - wanted) as u32;
        while surplus > 0 {
            let Some((_, count)) = self.ordered.back_mut() else {
                self.idle -= surplus;
                return;
            };
            let taken = surplus.min(*count);
            *count -= taken;
            surplus -= taken;
            if *count == 0 {
                self.ordered.pop_back();
            }
        }
    }

    fn size(&self) -> u64 {
        let ordered: u64 = self
            .ordered
            .iter()
            .map(|(_, count)| u64::from(*count))
            .sum();
        u64::from(self.idle) + ordered
    }
}

/// The scheduler's own code.
pub struct Ours {
    policy: pool::Policy,
    state: pool::State,
}

impl Ours {
    /// `tau`: the share of minutes in which the pool should suffice, 0.5 to 0.9995.
    pub fn new(tau: f64) -> Self {
        let policy = pool::Policy {
            max: u32::MAX,
            miss_cost: tau / (1.0 - tau),
            ..pool::Policy::default()
        };
        Self {
            policy,
            state: pool::State::new(&policy),
        }
    }
}

impl Rule for Ours {
    fn size(&mut self, minute: u64, claims: u32, lead_minutes: u32) -> u32 {
        let observation = pool::Observation {
            claims: Some(claims),
            lead: Some(Duration::from_secs(60 * u64::from(lead_minutes))),
            known: 0,
        };
        let now = MonoTime::from_secs(60 * minute);
        let blank = pool::State::new(&self.policy);
        let state = std::mem::replace(&mut self.state, blank);
        let (decision, state) = pool::decide(&self.policy, state, &observation, now);
        self.state = state;
        decision.after
    }
}

/// The same size always.
pub struct Fixed(pub u32);

impl Rule for Fixed {
    fn size(&mut self, _minute: u64, _claims: u32, _lead_minutes: u32) -> u32 {
        self.0
    }
}

/// Claims of the last minutes, for what is claimed in a lead time.
#[derive(Default)]
struct LeadDemand {
    claims: VecDeque<u32>,
}

impl LeadDemand {
    fn after(&mut self, claims: u32, lead_minutes: u32) -> u32 {
        self.claims.push_back(claims);
        while self.claims.len() > lead_minutes as usize {
            self.claims.pop_front();
        }
        self.claims.iter().sum()
    }
}

/// The most that was claimed in any lead time of the last `minutes`, times a factor.
pub struct RollingMaximum {
    minutes: usize,
    factor: f64,
    demand: LeadDemand,
    last: VecDeque<u32>,
}

impl RollingMaximum {
    pub fn new(minutes: usize, factor: f64) -> Self {
        Self {
            minutes,
            factor,
            demand: LeadDemand::default(),
            last: VecDeque::new(),
        }
    }
}

impl Rule for RollingMaximum {
    fn size(&mut self, _minute: u64, claims: u32, lead_minutes: u32) -> u32 {
        let demand = self.demand.after(claims, lead_minutes);
        self.last.push_back(demand);
        while self.last.len() > self.minutes {
            self.last.pop_front();
        }
        let most = self.last.iter().max().copied().unwrap_or(0);
        (f64::from(most) * self.factor).ceil() as u32
    }
}

/// The exponentially weighted mean of a lead time's claims and a multiple of its standard deviation.
pub struct MovingAverage {
    sigmas: f64,
    demand: LeadDemand,
    mean: f64,
    variance: f64,
}

/// Weight of the newest minute: a memory of about twenty.
const NEWEST: f64 = 0.05;

impl MovingAverage {
    pub fn new(sigmas: f64) -> Self {
        Self {
            sigmas,
            demand: LeadDemand::default(),
            mean: 0.0,
            variance: 0.0,
        }
    }
}

impl Rule for MovingAverage {
    fn size(&mut self, _minute: u64, claims: u32, lead_minutes: u32) -> u32 {
        let off = f64::from(self.demand.after(claims, lead_minutes)) - self.mean;
        self.mean += NEWEST * off;
        self.variance = (1.0 - NEWEST) * (self.variance + NEWEST * off * off);
        (self.mean + self.sigmas * self.variance.sqrt()).ceil() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    #[test]
    fn starts_are_increases_of_what_is_needed_and_held() {
        let needed = [1, 3, 2, 3, 5, 1, 1, 4];
        assert_eq!(replica_starts(&needed, 0), [0, 2, 0, 1, 2, 0, 0, 3]);
        // What was needed two minutes ago is still there.
        assert_eq!(replica_starts(&needed, 2), [0, 2, 0, 0, 2, 0, 0, 0]);
        assert!(replica_starts(&[], 5).is_empty());
    }

    #[test]
    fn a_unit_that_was_claimed_is_back_after_one_lead_time() {
        let claims = [0, 0, 1, 1, 0, 0, 1];
        let outcome = run(&mut Fixed(1), &claims, 2, 0);
        // Ordered in minute 0, there in 2; claimed in 2, back in 4: the claim of minute 3 finds none.
        assert!((outcome.hit_rate - 2.0 / 3.0).abs() < 1e-9, "{outcome:?}");
        assert!((outcome.mean_size - 1.0).abs() < 1e-9, "{outcome:?}");
    }

    #[test]
    fn a_rule_is_read_between_its_settings_and_not_beyond_them() {
        let outcome = |hit_rate, mean_size| Outcome {
            hit_rate,
            mean_size,
        };
        let curve = Curve {
            rule: "of a test",
            // The third has fewer hits for more.
            outcomes: vec![outcome(0.5, 1.0), outcome(0.9, 3.0), outcome(0.8, 4.0)],
        };
        let between = curve.size_at(0.7).expect("reached");
        assert!((between - 2.0).abs() < 1e-9, "{between}");
        assert_eq!(curve.size_at(0.2), Some(1.0));
        assert_eq!(curve.size_at(0.95), None);
    }

    /// Three days of replica starts: a busy half of each day, trains of bursts, and a job on the hour.
    fn synthetic() -> Vec<u32> {
        let mut rng = SmallRng::seed_from_u64(7);
        let mut train = 0;
        let claims = (0..3 * 1440_u32).map(|minute| {
            let busy = (480..1080).contains(&(minute % 1440));
            if busy && train == 0 && rng.random_bool(0.02) {
                train = rng.random_range(5..20);
            }
            train = u32::saturating_sub(train, 1);
            let burst = if train > 0 && rng.random_bool(0.4) {
                rng.random_range(1..5)
            } else {
                0
            };
            burst + if minute % 60 == 0 { 6 } else { 0 }
        });
        claims.collect()
    }

    #[test]
    fn at_equal_hit_rate_ours_needs_a_smaller_pool_than_the_rules_that_it_has_to_beat() {
        let curves = curves(&synthetic(), 2, 1440);
        for hit_rate in [0.85, 0.9, 0.95] {
            let size = |curve: &Curve| curve.size_at(hit_rate);
            let ours = size(&curves[0]).expect("reached");
            for other in &curves[1..] {
                let theirs = size(other);
                let beaten = theirs.is_none_or(|theirs| ours < theirs);
                assert!(
                    beaten,
                    "{} at {hit_rate}: {theirs:?} for {ours}",
                    other.rule
                );
            }
        }
    }

    proptest! {
        #[test]
        fn no_rule_makes_hits_out_of_nothing_and_what_is_held_is_what_was_asked_for(
            claims in proptest::collection::vec(0_u32..9, 1..120), size in 0_u32..12, lead in 0_u32..5,
        ) {
            let outcome = run(&mut Fixed(size), &claims, lead, 0);
            prop_assert!((0.0..=1.0).contains(&outcome.hit_rate));
            prop_assert!((outcome.mean_size - f64::from(size)).abs() < 1e-9);
            let larger = run(&mut Fixed(size + 1), &claims, lead, 0);
            prop_assert!(larger.hit_rate >= outcome.hit_rate);
        }
    }
}
