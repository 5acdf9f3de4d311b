//! Knative's pod autoscaler (KPA), restated from its formulas.
//!
//! Source: knative/serving, `pkg/autoscaler/scaling/autoscaler.go`, `pkg/autoscaler/aggregation` and
//! `pkg/reconciler/autoscaling/kpa/scaler.go` as of August 2026; defaults from `config-autoscaler`.
//! Outputs of that code are restated in the tests.
//!
//! Every 2 s, from buckets of 1 s: `S = ceil(mean of 60 s / target)`, `P = ceil(mean of 6 s / target)`,
//! both between half of the ready replicas (rounded down) and 1000 times them. `P` at twice the ready
//! replicas or more begins a panic, or prolongs it; it ends 60 s after the last such tick. In a panic
//! the replicas never fall. A scale-down delay holds the largest of its stretch.
//!
//! Left out: the activator's place in the data path (target burst capacity) and the sampling of
//! pods, which change what is measured and not what is decided.

use std::collections::VecDeque;
use std::time::Duration;

use apa::Sample;
use shared::units::MonoTime;

use super::{Limits, Orders, Policy};

/// Between two decisions.
const TICK_S: u64 = 2;
/// `stable-window`.
const STABLE_WINDOW_S: u64 = 60;
/// `panic-window-percentage` 10 of the stable window.
const PANIC_WINDOW_S: u64 = 6;
/// `panic-threshold-percentage` 200.
const PANIC_THRESHOLD: f64 = 2.0;
/// `max-scale-up-rate`.
const MAX_SCALE_UP_RATE: f64 = 1000.0;
/// `max-scale-down-rate`.
const MAX_SCALE_DOWN_RATE: f64 = 2.0;
/// `scale-to-zero-grace-period`: one replica stays for so long after the last is not needed.
const SCALE_TO_ZERO_GRACE_S: u64 = 30;
/// The least target there is.
const MIN_TARGET: f64 = 0.01;
/// Means are rounded to six digits.
const PRECISION: f64 = 1e6;
/// `container-concurrency-target-default`: what a replica is taken for where nobody set a limit.
pub const DEFAULT_CONCURRENCY: u32 = 100;
/// `container-concurrency-target-percentage` 70.
pub const DEFAULT_UTILIZATION: f64 = 0.7;

/// The settings of a Knative revision that decide how it scales.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Requests that a replica admits at once (`containerConcurrency`).
    pub concurrency: u32,
    /// Share of it that is aimed at, 0 to 1.
    pub utilization: f64,
    /// `scale-down-delay`.
    pub scale_down_delay: Duration,
    pub limits: Limits,
}

impl Settings {
    /// What Knative does where nobody has set anything.
    pub fn untuned(limits: Limits) -> Self {
        Self::tuned(DEFAULT_CONCURRENCY, limits)
    }

    /// Knative's defaults with a replica's true limit given.
    pub fn tuned(concurrency: u32, limits: Limits) -> Self {
        Self {
            concurrency,
            utilization: DEFAULT_UTILIZATION,
            scale_down_delay: Duration::ZERO,
            limits,
        }
    }

    /// Requests at once that one replica is bought for.
    pub fn target(&self) -> f64 {
        (f64::from(self.concurrency) * self.utilization).max(MIN_TARGET)
    }
}

/// The autoscaler of one revision.
#[derive(Clone, Debug)]
pub struct Kpa {
    name: String,
    settings: Settings,
    stable: Window,
    panic: Window,
    panicking_since: Option<u64>,
    /// The most that was decided in this panic.
    max_panic: u32,
    /// Decisions of the scale-down delay, oldest first, falling: a later one that is as large makes
    /// an earlier one irrelevant.
    delayed: VecDeque<(u64, u32)>,
    next_tick: Option<u64>,
    /// When zero replicas were first enough.
    unneeded_since: Option<u64>,
    last: Option<Decision>,
    orders: Orders,
}

/// What one tick saw and decided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    pub desired: u32,
    /// Mean concurrency of the stable window, of the panic window.
    pub stable: f64,
    pub panic: f64,
    pub panicking: bool,
}

impl Kpa {
    pub fn new(name: &str, settings: Settings) -> Self {
        let orders = Orders {
            desired_replicas: settings.limits.floor(),
            target_concurrency: Some(settings.concurrency),
            warm: 0,
            horizontal: None,
            vertical: None,
        };
        Self {
            name: name.into(),
            settings,
            stable: Window::new(STABLE_WINDOW_S),
            panic: Window::new(PANIC_WINDOW_S),
            panicking_since: None,
            max_panic: 0,
            delayed: VecDeque::new(),
            next_tick: None,
            unneeded_since: None,
            last: None,
            orders,
        }
    }

    /// The last tick that had data; `None` before the first.
    pub fn last(&self) -> Option<Decision> {
        self.last
    }

    fn tick(&mut self, ready: u32, now_s: u64) -> Option<Decision> {
        let stable = self.stable.mean(now_s)?;
        // Data in the long window and none in the short one is no load in the short one.
        let panic = self.panic.mean(now_s).unwrap_or(0.0);
        let target = self.settings.target();
        let ready = f64::from(ready.max(1));
        let up = (MAX_SCALE_UP_RATE * ready).ceil();
        let down = (ready / MAX_SCALE_DOWN_RATE).floor();
        let (for_stable, for_panic) = ((stable / target).ceil(), (panic / target).ceil());
        let within = |replicas: f64| replicas.max(down).min(up) as u32;

        if for_panic / ready >= PANIC_THRESHOLD {
            self.panicking_since = Some(now_s);
        } else if (self.panicking_since).is_some_and(|since| since + STABLE_WINDOW_S < now_s) {
            self.panicking_since = None;
            self.max_panic = 0;
        }
        let panicking = self.panicking_since.is_some();
        let mut desired = within(for_stable);
        if panicking {
            self.max_panic = self.max_panic.max(desired).max(within(for_panic));
            desired = self.max_panic;
        }
        desired = self.delay(desired, now_s);
        let desired = self.keep_for_grace(desired, now_s);
        Some(Decision {
            desired: self.settings.limits.clamp(desired),
            stable,
            panic,
            panicking,
        })
    }

    fn delay(&mut self, desired: u32, now_s: u64) -> u32 {
        let delay_s = self.settings.scale_down_delay.as_secs();
        if delay_s == 0 {
            return desired;
        }
        while (self.delayed.back()).is_some_and(|(_, earlier)| *earlier <= desired) {
            self.delayed.pop_back();
        }
        self.delayed.push_back((now_s, desired));
        while (self.delayed.front()).is_some_and(|(at, _)| at + delay_s <= now_s) {
            self.delayed.pop_front();
        }
        self.delayed
            .front()
            .map_or(desired, |(_, largest)| *largest)
    }

    fn keep_for_grace(&mut self, desired: u32, now_s: u64) -> u32 {
        if desired > 0 {
            self.unneeded_since = None;
            return desired;
        }
        let since = *self.unneeded_since.get_or_insert(now_s);
        u32::from(now_s < since + SCALE_TO_ZERO_GRACE_S)
    }
}

impl Policy for Kpa {
    fn name(&self) -> &str {
        &self.name
    }

    fn second(&mut self, sample: Option<&Sample>, now: MonoTime) -> Orders {
        let now_s = now.since_origin().as_secs();
        let Some(sample) = sample else {
            return self.orders.clone();
        };
        let demand = sample.demand();
        self.stable.record(demand, now_s);
        self.panic.record(demand, now_s);
        // At zero the first request that waits is told to the autoscaler at once.
        let woken = self.orders.desired_replicas == 0 && demand > 0.0;
        if !woken && self.next_tick.is_some_and(|at| now_s < at) {
            return self.orders.clone();
        }
        self.next_tick = Some(now_s + TICK_S);
        if let Some(decision) = self.tick(sample.replicas_ready, now_s) {
            self.last = Some(decision);
            self.orders.desired_replicas = decision.desired;
            self.orders.horizontal = Some(format!(
                "{}: {:.1} requests in 60 s, {:.1} in 6 s, {:.1} a replica",
                if decision.panicking {
                    "panic"
                } else {
                    "stable"
                },
                decision.stable,
                decision.panic,
                self.settings.target(),
            ));
        }
        self.orders.clone()
    }
}

/// The mean of the last seconds. A second without data between two that have some counts as none; one
/// after the newest data shortens the stretch.
#[derive(Clone, Debug)]
struct Window {
    len_s: u64,
    /// Second and value, oldest first, none older than the window before the newest.
    buckets: VecDeque<(u64, f64)>,
    /// The first second since the window was last empty.
    first_s: u64,
}

impl Window {
    fn new(len_s: u64) -> Self {
        Self {
            len_s,
            buckets: VecDeque::new(),
            first_s: 0,
        }
    }

    fn record(&mut self, value: f64, at_s: u64) {
        let idle = (self.buckets.back()).is_none_or(|(newest, _)| newest + self.len_s <= at_s);
        if idle {
            self.buckets.clear();
            self.first_s = at_s;
        }
        self.buckets.push_back((at_s, value));
        while (self.buckets.front()).is_some_and(|(oldest, _)| oldest + self.len_s <= at_s) {
            self.buckets.pop_front();
        }
    }

    /// `None`: nothing in the whole window.
    fn mean(&self, now_s: u64) -> Option<f64> {
        let (newest, _) = *self.buckets.back()?;
        let stale = now_s.saturating_sub(newest);
        if stale >= self.len_s {
            return None;
        }
        let recent = self.buckets.iter();
        let recent = recent.filter(|(at, _)| at + self.len_s > now_s);
        let sum: f64 = recent.map(|(_, value)| value).sum();
        let seconds = (newest - self.first_s + 1).min(self.len_s - stale);
        Some((sum / seconds as f64 * PRECISION).round() / PRECISION)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLICA: u32 = 10;

    fn limits(max_replicas: u32) -> Limits {
        Limits {
            max_replicas,
            ..Limits::default()
        }
    }

    fn kpa(settings: Settings) -> Kpa {
        Kpa::new("kpa", settings)
    }

    fn sample(active: f64, replicas_ready: u32) -> Sample {
        Sample {
            active,
            replicas_ready,
            ..Sample::default()
        }
    }

    /// Second, desired replicas, mean of the stable and of the panic window: as Knative's own code
    /// gave them for this load, with 10 requests a replica.
    type Row = (u64, u32, &'static str, &'static str);

    /// Runs `load` through the autoscaler against replicas that are ready once they were wanted for
    /// `startup_s`, and compares the rows named.
    fn reproduces(load: impl Fn(u64) -> f64, startup_s: u64, rows: &[Row]) {
        let mut kpa = kpa(Settings::tuned(REPLICA, limits(1000)));
        let lag = usize::try_from(startup_s.max(TICK_S) / TICK_S).expect("small");
        let mut wanted = VecDeque::from(vec![1; lag]);
        let mut seen = Vec::new();
        let last_s = rows.iter().map(|row| row.0).max().expect("rows");
        for at_s in 0..=last_s {
            let ready = wanted.iter().copied().min().expect("never empty");
            let orders = kpa.second(Some(&sample(load(at_s), ready)), MonoTime::from_secs(at_s));
            if at_s % TICK_S == 0 {
                wanted.pop_front();
                wanted.push_back(orders.desired_replicas);
                let it = kpa.last().expect("decided");
                let means = (format!("{:.3}", it.stable), format!("{:.3}", it.panic));
                seen.push((at_s, it.desired, means));
            }
        }
        for (at_s, desired, stable, panic) in rows {
            let expected = (*at_s, *desired, (stable.to_string(), panic.to_string()));
            let found = seen.iter().find(|(at, _, _)| at == at_s);
            assert_eq!(found, Some(&expected));
        }
    }

    fn step(at_s: u64) -> f64 {
        if (120..420).contains(&at_s) {
            1000.0
        } else {
            10.0
        }
    }

    #[test]
    fn a_step_is_met_as_the_original_meets_it() {
        let rows = [
            (0, 2, "10.000", "10.000"),
            (118, 2, "10.000", "10.000"),
            (120, 25, "26.500", "175.000"),
            (122, 73, "59.500", "505.000"),
            (124, 120, "92.500", "835.000"),
            (126, 143, "125.500", "1000.000"),
            (178, 143, "983.500", "1000.000"),
            (420, 141, "983.500", "835.000"),
            (426, 127, "884.500", "10.000"),
            (440, 94, "653.500", "10.000"),
            (476, 9, "59.500", "10.000"),
            (480, 2, "10.000", "10.000"),
        ];
        reproduces(step, 0, &rows);
    }

    #[test]
    fn replicas_that_start_slowly_change_nothing_on_the_way_up() {
        let rows = [
            (120, 25, "26.500", "175.000"),
            (126, 143, "125.500", "1000.000"),
            (136, 143, "290.500", "1000.000"),
            (246, 143, "1000.000", "1000.000"),
        ];
        reproduces(step, 10, &rows);
    }

    #[test]
    fn a_sine_of_three_minutes_makes_it_panic_as_the_original_does() {
        let sine = |at_s: u64| {
            let phase = at_s as f64 / 180.0 * std::f64::consts::TAU;
            ((200.0 + 180.0 * phase.sin()) * 1000.0).round() / 1000.0
        };
        let rows = [
            (0, 29, "200.000", "200.000"),
            (2, 30, "206.279", "206.279"),
            (4, 31, "212.541", "212.541"),
            (50, 55, "320.394", "378.997"),
            (156, 9, "57.638", "56.501"),
            (176, 23, "62.968", "159.581"),
            (200, 44, "151.534", "303.060"),
            (240, 48, "330.202", "362.846"),
            (396, 53, "233.488", "365.397"),
        ];
        reproduces(sine, 10, &rows);
    }

    #[test]
    fn a_scale_down_delay_holds_the_largest_of_its_stretch() {
        let mut kpa = kpa(Settings {
            scale_down_delay: Duration::from_secs(60),
            ..Settings::tuned(REPLICA, limits(1000))
        });
        let mut at = |at_s: u64, load| {
            let sample = sample(load, 10);
            kpa.second(Some(&sample), MonoTime::from_secs(at_s))
                .desired_replicas
        };
        assert_eq!(at(0, 70.0), 10);
        let held: Vec<u32> = (1..60).map(|at_s| at(at_s, 0.0)).collect();
        assert!(held.iter().all(|replicas| *replicas == 10), "{held:?}");
        assert!(at(60, 0.0) < 10);
    }

    #[test]
    fn without_data_nothing_changes_and_after_an_idle_window_the_mean_starts_again() {
        let mut kpa = kpa(Settings::tuned(REPLICA, limits(1000)));
        let before = kpa.second(Some(&sample(70.0, 1)), MonoTime::from_secs(0));
        for at_s in 1..200 {
            assert_eq!(kpa.second(None, MonoTime::from_secs(at_s)), before);
        }
        kpa.second(Some(&sample(140.0, 10)), MonoTime::from_secs(200));
        assert_eq!(kpa.last().map(|it| it.stable), Some(140.0));
    }

    #[test]
    fn the_last_replica_goes_after_the_window_and_the_grace_and_a_request_brings_it_back_at_once() {
        let mut kpa = kpa(Settings::tuned(
            REPLICA,
            Limits {
                min_replicas: 0,
                scale_to_zero: true,
                ..limits(1000)
            },
        ));
        kpa.second(Some(&sample(5.0, 1)), MonoTime::ZERO);
        let mut gone_at = None;
        for at_s in 1..200 {
            let orders = kpa.second(Some(&sample(0.0, 1)), MonoTime::from_secs(at_s));
            if orders.desired_replicas == 0 {
                gone_at.get_or_insert(at_s);
            }
        }
        assert_eq!(gone_at, Some(STABLE_WINDOW_S + SCALE_TO_ZERO_GRACE_S));
        let back = kpa.second(Some(&sample(1.0, 0)), MonoTime::from_secs(201));
        assert_eq!(back.desired_replicas, 1);
    }
}
