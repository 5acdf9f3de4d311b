//! When each request is to be sent, fixed before the first one is. Pure.
//!
//! What always holds: the times depend on the plan and the seed alone, never on how the endpoint
//! answers. That is what makes the load an open one: an endpoint that stalls does not slow down the
//! clients that wait for it.
//!
//! With `L(t)` the number of requests intended until `t`, the n-th uniform arrival is at `L⁻¹(n)`, and
//! a Poisson arrival at `L⁻¹` of a sum of exponential gaps of mean one.

use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use rand::{Rng, RngExt as _};
use serde::Serialize;

/// More is a mistake in the command line: one client does not send it.
const MAX_RPS: f64 = 100_000.0;

/// Requests a second: constant, or growing (or falling) evenly from one rate to another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Rates {
    pub(super) from: f64,
    pub(super) to: f64,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is no rate: expected requests a second such as 50, or a ramp such as 10..500 (at most 100000)"
)]
pub(crate) struct InvalidRates(String);

impl FromStr for Rates {
    type Err = InvalidRates;
    fn from_str(text: &str) -> Result<Self, InvalidRates> {
        let invalid = || InvalidRates(text.chars().take(80).collect());
        let rate = |text: &str| -> Result<f64, InvalidRates> {
            let rate: f64 = text.trim().parse().map_err(|_| invalid())?;
            let fits = (0.0..=MAX_RPS).contains(&rate);
            if fits { Ok(rate) } else { Err(invalid()) }
        };
        let rates = match text.split_once("..") {
            Some((from, to)) => Self {
                from: rate(from)?,
                to: rate(to)?,
            },
            None => Self {
                from: rate(text)?,
                to: rate(text)?,
            },
        };
        if rates.from.max(rates.to) > 0.0 {
            Ok(rates)
        } else {
            Err(invalid())
        }
    }
}

impl Rates {
    pub(super) fn is_ramp(&self) -> bool {
        self.from != self.to
    }
}

impl std::fmt::Display for Rates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_ramp() {
            write!(f, "{}..{}/s", self.from, self.to)
        } else {
            write!(f, "{}/s", self.from)
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Arrivals {
    /// By chance, as many independent clients send.
    Poisson,
    /// Evenly spaced.
    Uniform,
}

/// The load. Times are since its start, warm-up included.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Plan {
    pub(super) rates: Rates,
    /// At the first rate; not part of any figure.
    pub(super) warm_up: Duration,
    pub(super) over: Duration,
    pub(super) arrivals: Arrivals,
}

impl Plan {
    pub(super) fn length(&self) -> Duration {
        self.warm_up + self.over
    }

    /// Requests a second that are intended at `at`.
    pub(super) fn rate_at(&self, at: Duration) -> f64 {
        let Some(within) = at.checked_sub(self.warm_up) else {
            return self.rates.from;
        };
        let share = within.as_secs_f64() / self.over.as_secs_f64();
        self.rates.from + (self.rates.to - self.rates.from) * share.min(1.0)
    }

    /// `L(t)`: requests intended until `at`.
    pub(super) fn intended_until(&self, at: Duration) -> f64 {
        let before = self.rates.from * at.min(self.warm_up).as_secs_f64();
        let within = at.min(self.length()).saturating_sub(self.warm_up);
        let within = within.as_secs_f64();
        before + self.rates.from * within + self.growth() * within * within
    }

    /// Half of the change of the rate in a second.
    fn growth(&self) -> f64 {
        (self.rates.to - self.rates.from) / (2.0 * self.over.as_secs_f64())
    }

    /// `L⁻¹(n)`; `None` beyond the end.
    fn time_of(&self, n: f64) -> Option<Duration> {
        if n >= self.intended_until(self.length()) {
            return None;
        }
        let before = self.rates.from * self.warm_up.as_secs_f64();
        if n < before {
            return Some(Duration::from_secs_f64(n / self.rates.from));
        }
        let n = n - before;
        // The root that stays exact when the rate does not change.
        let under_root = (self.rates.from * self.rates.from + 4.0 * self.growth() * n).max(0.0);
        let divisor = self.rates.from + under_root.sqrt();
        let within = if n > 0.0 { 2.0 * n / divisor } else { 0.0 };
        let within = Duration::try_from_secs_f64(within).unwrap_or(self.over);
        Some(self.warm_up + within.min(self.over))
    }

    /// The intended send times, in order.
    pub(super) fn sends<R: Rng>(self, rng: R) -> Schedule<R> {
        Schedule {
            plan: self,
            rng,
            n: None,
        }
    }
}

pub(super) struct Schedule<R> {
    plan: Plan,
    rng: R,
    /// Of the last arrival.
    n: Option<f64>,
}

impl<R: Rng> Iterator for Schedule<R> {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let n = match (self.plan.arrivals, self.n) {
            (Arrivals::Uniform, None) => 0.0,
            (Arrivals::Uniform, Some(n)) => n + 1.0,
            (Arrivals::Poisson, n) => n.unwrap_or(0.0) + exponential(&mut self.rng),
        };
        self.n = Some(n);
        self.plan.time_of(n)
    }
}

/// A gap of mean one.
fn exponential(rng: &mut impl Rng) -> f64 {
    let uniform: f64 = rng.random_range(0.0..1.0);
    -(1.0 - uniform).ln()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert, proptest};
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    pub(crate) fn plan(rates: &str, over_s: u64, arrivals: Arrivals) -> Plan {
        Plan {
            rates: rates.parse().expect("rates"),
            warm_up: Duration::ZERO,
            over: Duration::from_secs(over_s),
            arrivals,
        }
    }

    fn sends(plan: Plan, seed: u64) -> Vec<Duration> {
        plan.sends(StdRng::seed_from_u64(seed)).collect()
    }

    #[test]
    fn a_constant_rate_is_evenly_spaced_and_starts_at_once() {
        let times = sends(plan("4", 2, Arrivals::Uniform), 0);
        let millis: Vec<u128> = times.iter().map(Duration::as_millis).collect();
        assert_eq!(millis, [0, 250, 500, 750, 1000, 1250, 1500, 1750]);
    }

    #[test]
    fn a_ramp_sends_its_mean_rate_in_all_and_more_in_its_second_half() {
        for (text, later_is_more) in [("10..500", true), ("500..10", false), ("0..510", true)] {
            let times = sends(plan(text, 60, Arrivals::Uniform), 0);
            assert!((15_299..=15_301).contains(&times.len()), "{}", times.len());
            let half = times.iter().filter(|t| t.as_secs() < 30).count();
            assert_eq!(half * 2 < times.len(), later_is_more, "{text}");
        }
    }

    #[test]
    fn a_warm_up_runs_at_the_first_rate_and_comes_before() {
        let warm = Plan {
            warm_up: Duration::from_secs(5),
            ..plan("10..30", 10, Arrivals::Uniform)
        };
        let times = sends(warm, 0);
        assert_eq!(times.iter().filter(|t| t.as_secs() < 5).count(), 50);
        assert_eq!(times.len(), 250);
        assert_eq!(warm.rate_at(Duration::from_secs(4)), 10.0);
        assert_eq!(warm.rate_at(Duration::from_secs(10)), 20.0);
        assert_eq!(warm.rate_at(Duration::from_secs(99)), 30.0);
    }

    #[test]
    fn a_rate_is_a_number_or_two() {
        for bad in [
            "", "0", "-1", "x", "1..", "..", "0..0", "nan", "inf", "1e9", "1..2..3",
        ] {
            assert!(bad.parse::<Rates>().is_err(), "{bad:?} was accepted");
        }
        let ramp: Rates = "0.5..60".parse().expect("a ramp");
        assert_eq!((ramp.from, ramp.to), (0.5, 60.0));
        assert_eq!(ramp.to_string(), "0.5..60/s");
        assert_eq!("50".parse::<Rates>().expect("a rate").to_string(), "50/s");
    }

    #[test]
    fn chance_is_the_seeds_and_its_gaps_vary_as_independent_arrivals_do() {
        let chance = plan("100", 100, Arrivals::Poisson);
        assert_eq!(sends(chance, 7), sends(chance, 7));
        assert_ne!(sends(chance, 7), sends(chance, 8));
        let times = sends(chance, 7);
        // 10,000 arrivals with a standard deviation of 100; seven of them are no accident.
        assert!((9_300..10_700).contains(&times.len()), "{}", times.len());
        let mut counts = vec![0.0_f64; 100];
        for time in &times {
            counts[time.as_secs() as usize] += 1.0;
        }
        let mean = counts.iter().sum::<f64>() / 100.0;
        let variance = counts.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / 99.0;
        // Of Poisson counts the variance is the mean; evenly spaced ones have none.
        assert!((0.5..2.0).contains(&(variance / mean)), "{variance} {mean}");
    }

    proptest! {
        #[test]
        fn times_are_in_order_within_the_plan_and_as_many_as_intended(
            from in 0.0..300.0_f64,
            to in 1.0..300.0_f64,
            warm_up in 0..3_000_u64,
            over in 100..20_000_u64,
            poisson in any::<bool>(),
            seed in any::<u64>(),
        ) {
            let plan = Plan {
                rates: Rates { from, to },
                warm_up: Duration::from_millis(warm_up),
                over: Duration::from_millis(over),
                arrivals: if poisson { Arrivals::Poisson } else { Arrivals::Uniform },
            };
            let times = sends(plan, seed);
            prop_assert!(times.is_sorted());
            prop_assert!(times.iter().all(|time| *time <= plan.length()));
            let intended = plan.intended_until(plan.length());
            // Eight standard deviations; for uniform ones a request more or less.
            let allowed = if poisson { 8.0 * intended.sqrt() + 12.0 } else { 1.0 };
            prop_assert!((times.len() as f64 - intended).abs() <= allowed, "{} {intended}", times.len());
        }

        #[test]
        fn uniform_arrivals_follow_the_intended_number_at_every_moment(
            from in 0.0..200.0_f64,
            to in 1.0..200.0_f64,
            moment in 0..10_000_u64,
        ) {
            let plan = Plan {
                rates: Rates { from, to },
                warm_up: Duration::from_secs(1),
                over: Duration::from_secs(9),
                arrivals: Arrivals::Uniform,
            };
            let moment = Duration::from_millis(moment);
            let until = sends(plan, 0).iter().filter(|time| **time < moment).count();
            prop_assert!((until as f64 - plan.intended_until(moment)).abs() <= 1.001);
        }
    }
}
