//! The last seconds of a served entity's traffic, and what the horizontal axis reads out of them:
//! steady need apart from backlog, spread, and growth.
//!
//! Need is offered work: requests that come in a second times the time that one takes at a replica
//! (Little's law), not the number in flight. What is in flight counts a backlog as if it were steady
//! demand, and a full replica's limit as if nobody else had come.
//!
//! A second in which nothing was measured is a gap: means are of the seconds that are there.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use shared::units::MonoTime;

use crate::sample::Sample;

/// Seconds that are kept: the longest stretch that anything looks at.
const KEPT: u64 = 120;
/// The view that steady need is read from.
pub(crate) const LONG: u64 = 20;
/// Older measurements decide nothing: what there is stays.
const FRESH: u64 = 3;
/// The shortest view; a request that takes longer than this asks for a longer one.
const SHORT_MIN: u64 = 3;
const SHORT_MAX: u64 = 15;
/// The service time is taken over this stretch.
const SERVICE_VIEW: u64 = 60;
/// Little's law says how long a request takes only where as many end as come; while load grows it
/// lies. The median of the measured medians bounds it: a mean lies within this of a median for the
/// spreads that model servers show.
const LITTLE_LEAST: f64 = 0.7;
const LITTLE_MOST: f64 = 1.6;
/// A request in this stretch keeps an entity from being idle: no decision's period misses one.
const BUSY_VIEW: u64 = 5;
/// Standard deviations from which a jump is no chance any more.
pub(crate) const JUMP_SIGMAS: f64 = 3.0;
/// Until anything was measured.
const SERVICE_UNKNOWN_S: f64 = 0.1;
/// A slope is growth beyond this many standard errors.
const GROWTH_SIGNIFICANT: f64 = 3.0;
/// A queue stands where neither it nor what is answered of what comes changes by more than this.
const STANDING_CHANGE: f64 = 0.1;
/// Headroom is at least this times the square root of the steady need.
const STAFFING: f64 = 0.5;
/// From the mean absolute second difference of normal draws to their standard deviation:
/// sqrt(pi / 2) / sqrt(6).
const DIFFERENCE_TO_SIGMA: f64 = 0.512;

/// One second, as far as the horizontal axis needs it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Second {
    /// Whole seconds since the origin: what lies between is a gap.
    at: u64,
    arrivals: f32,
    completions: f32,
    active: f32,
    queued: f32,
    p50_ms: f32,
}

/// The last [`KEPT`] seconds, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    seconds: VecDeque<Second>,
    /// What a request takes at a replica, in seconds, as last known: a stretch without requests does
    /// not forget it.
    service_s: Option<f64>,
}

/// What the window says now. Requests at once, where nothing else is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Signal {
    /// Offered work over 20 s.
    pub long: f64,
    /// Offered work over the short view.
    pub short: f64,
    /// Length of the short view in seconds.
    pub short_s: f64,
    /// Spread of the offered work from one short view to the next.
    pub sigma: f64,
    /// Offered work more a second, where it grows significantly; else 0.
    pub slope: f64,
    /// The growth is a ramp that went on through the whole view, not a jump within it.
    pub ramp: bool,
    /// Requests that wait: the fewest of the last 3 s.
    pub backlog: f64,
    /// Requests that have waited through the whole long view: callers who wait for their answers.
    pub standing: f64,
    /// Requests at replicas, mean over the short view.
    pub active: f64,
    /// Time that a request takes at a replica.
    pub service_s: f64,
    /// Mean work offered in the last two seconds, against the view before: in standard deviations.
    pub jump: f64,
    /// Any request at all, at a replica, waiting or coming, in the last 5 s.
    pub busy: bool,
}

impl Window {
    /// What a request takes stays known; the seconds go, since their times mean nothing any more.
    pub(crate) fn without_times(self) -> Self {
        Self {
            seconds: VecDeque::new(),
            service_s: self.service_s,
        }
    }

    pub(crate) fn record(&mut self, sample: &Sample, now: MonoTime) {
        let at = now.since_origin().as_secs();
        let p50 = median(sample.groups.iter().filter_map(|group| group.p50_ms));
        while (self.seconds.front()).is_some_and(|oldest| oldest.at + KEPT <= at)
            || self.seconds.len() >= KEPT as usize
        {
            self.seconds.pop_front();
        }
        self.seconds.push_back(Second {
            at,
            arrivals: sample.arrivals as f32,
            completions: sample.completions as f32,
            active: sample.active as f32,
            queued: sample.queued as f32,
            p50_ms: p50.map_or(f32::NAN, |p50| p50 as f32),
        });
    }

    /// `None` where nothing was measured in the last [`FRESH`] seconds.
    pub(crate) fn signal(&mut self, now: MonoTime) -> Option<Signal> {
        let at = now.since_origin().as_secs();
        let newest = *self.seconds.back()?;
        if newest.at + FRESH <= at {
            return None;
        }
        if let Some(measured) = self.measured_service(at) {
            self.service_s = Some(measured);
        }
        let service_s = self.service_s.unwrap_or(SERVICE_UNKNOWN_S);
        let view = |over: u64| self.last(at, over);
        let short_s = (service_s.round() as u64).clamp(SHORT_MIN, SHORT_MAX);
        let rate = |over: u64| mean(view(over).map(|second| second.arrivals));
        // A short view that fell into a gap says nothing: the long one stands in.
        let long = rate(LONG)? * service_s;
        let (jump, jumped_to) = self.jump(at, service_s);
        let mut short = rate(short_s).map_or(long, |rate| rate * service_s);
        if jump > JUMP_SIGMAS {
            // What came before a jump says nothing of what comes after it.
            short = short.max(jumped_to);
        }
        let fewest = |over: u64| least(view(over).map(|second| second.queued));
        // Requests at once vary from moment to moment by the square root of their number where
        // arrivals know nothing of each other, also where a second's mean hides it. The queue takes
        // half of that.
        let staffing = STAFFING * long.max(short).sqrt();
        let sigma = self.sigma(at, short_s, service_s).max(staffing);
        let (slope, ramp) = self.slope(at, service_s);
        Some(Signal {
            long,
            short,
            short_s: short_s as f64,
            sigma,
            slope,
            ramp,
            backlog: fewest(SHORT_MIN).unwrap_or(0.0),
            standing: self.standing(at).unwrap_or(0.0),
            active: mean(view(short_s).map(|second| second.active)).unwrap_or(0.0),
            service_s,
            jump,
            busy: view(BUSY_VIEW)
                .any(|second| second.arrivals + second.active + second.queued > 0.0),
        })
    }

    /// A backlog of independent callers grows while capacity lacks and shrinks while there is enough.
    /// A queue that stays, while as many are answered as come, is of callers who ask again as soon as
    /// they are answered.
    fn standing(&self, at: u64) -> Option<f64> {
        let view = self.last(at, LONG);
        let seconds = view.clone().count() as u64;
        let covered = self
            .seconds
            .front()
            .is_some_and(|oldest| oldest.at + LONG <= at + 1);
        if !covered || seconds < LONG / 2 {
            return None;
        }
        let (arrivals, completions) =
            view.clone()
                .fold((0.0, 0.0), |(arrivals, completions), second| {
                    (
                        arrivals + f64::from(second.arrivals),
                        completions + f64::from(second.completions),
                    )
                });
        let least = least(view.clone().map(|second| second.queued))?;
        let most = f64::from(view.map(|second| second.queued).reduce(f32::max)?);
        let steady = (arrivals - completions).abs() <= STANDING_CHANGE * arrivals
            && most - least <= STANDING_CHANGE * least + 1.0;
        // Callers are known to come back only where they have done so within the view.
        (steady && least > 0.0 && completions >= 2.0 * least).then_some(least)
    }

    /// Whether the last two seconds could be a jump at all: a cheap look, for the seconds in which no
    /// decision is due.
    pub(crate) fn may_jump(&self, now: MonoTime) -> bool {
        let at = now.since_origin().as_secs();
        let (Some(recent), Some(before)) = self.recent_and_before(at) else {
            return false;
        };
        let service_s = self.service_s.unwrap_or(SERVICE_UNKNOWN_S);
        (recent - before) * service_s > JUMP_SIGMAS * chance(before * service_s, service_s, 2.0)
    }

    /// Mean arrivals of the last two seconds, and of the rest of the long view.
    fn recent_and_before(&self, at: u64) -> (Option<f64>, Option<f64>) {
        let recent = mean(self.last(at, 2).map(|second| second.arrivals));
        let before = self.last(at, LONG).filter(|second| second.at + 2 <= at);
        (recent, mean(before.map(|second| second.arrivals)))
    }

    fn last(&self, at: u64, over: u64) -> impl Iterator<Item = &Second> + Clone {
        (self.seconds.iter().rev()).take_while(move |second| second.at + over > at)
    }

    /// Little's law over the last minute, held near the medians that were measured.
    fn measured_service(&self, at: u64) -> Option<f64> {
        let view = self.last(at, SERVICE_VIEW);
        let median = median(
            view.clone()
                .map(|second| f64::from(second.p50_ms))
                .filter(|p50| p50.is_finite() && *p50 > 0.0),
        )? / 1000.0;
        let (active, completions) = view.fold((0.0, 0.0), |(active, completions), second| {
            (
                active + f64::from(second.active),
                completions + f64::from(second.completions),
            )
        });
        if completions <= 0.0 {
            return Some(median);
        }
        let little = active / completions;
        Some(little.clamp(LITTLE_LEAST * median, LITTLE_MOST * median))
    }

    /// From the second differences of neighbouring short views, which a trend does not move. Never below what
    /// chance alone gives: arrivals that know nothing of each other.
    fn sigma(&self, at: u64, short_s: u64, service_s: f64) -> f64 {
        let blocks = (KEPT / short_s).min(24);
        let mut sum = 0.0;
        let mut count = 0_u32;
        let mut newest: Option<f64> = None;
        let mut newer: Option<f64> = None;
        let mut seconds = self.seconds.iter().rev().peekable();
        for block in 0..blocks {
            // The block's seconds lie in (end - short_s, end].
            let end = at.saturating_sub(block * short_s);
            let mut block_sum = 0.0;
            let mut in_block = 0_u32;
            while let Some(second) = seconds.peek() {
                if second.at + short_s <= end {
                    break;
                }
                block_sum += f64::from(second.arrivals);
                in_block += 1;
                seconds.next();
            }
            let this = (in_block > 0).then(|| block_sum / f64::from(in_block) * service_s);
            if let (Some(newest), Some(newer), Some(this)) = (newest, newer, this) {
                sum += (newest - 2.0 * newer + this).abs();
                count += 1;
            }
            newest = newer;
            newer = this;
        }
        if count >= 3 {
            sum / f64::from(count) * DIFFERENCE_TO_SIGMA
        } else {
            0.0
        }
    }

    /// Least squares over the long view.
    fn slope(&self, at: u64, service_s: f64) -> (f64, bool) {
        let points = self.last(at, LONG).map(|second| {
            (
                -((at - second.at) as f64),
                f64::from(second.arrivals) * service_s,
            )
        });
        let count = points.clone().count() as f64;
        if count < 8.0 {
            return (0.0, false);
        }
        let (sx, sy) = points
            .clone()
            .fold((0.0, 0.0), |(sx, sy), (x, y)| (sx + x, sy + y));
        let (mx, my) = (sx / count, sy / count);
        let (sxx, sxy, syy) = points.fold((0.0, 0.0, 0.0), |(sxx, sxy, syy), (x, y)| {
            let (dx, dy) = (x - mx, y - my);
            (sxx + dx * dx, sxy + dx * dy, syy + dy * dy)
        });
        if sxx <= 0.0 {
            return (0.0, false);
        }
        let slope = sxy / sxx;
        let residual = (syy - slope * sxy).max(0.0);
        // Chance moves a rate even where its residuals happen to be small.
        let variance = (residual / (count - 2.0)).max(my.max(0.0) * service_s);
        let error = (variance / sxx).sqrt();
        if slope <= 0.0 || slope < GROWTH_SIGNIFICANT * error {
            return (0.0, false);
        }
        // A ramp leaves little that the line does not explain; a jump leaves a quarter and more.
        (slope, residual < 0.15 * syy)
    }

    /// How far the last two seconds lie above the view before, in standard deviations, and the work
    /// that is offered since: the last second's alone where that is a jump of its own, since the one
    /// before may have begun without it.
    fn jump(&self, at: u64, service_s: f64) -> (f64, f64) {
        let (Some(recent), Some(before)) = self.recent_and_before(at) else {
            return (0.0, 0.0);
        };
        let (recent, before) = (recent * service_s, before * service_s);
        let spread = self
            .sigma(at, SHORT_MIN, service_s)
            .max(chance(before, service_s, 2.0));
        let sigmas = if spread > 0.0 {
            (recent - before) / spread
        } else {
            0.0
        };
        let newest = self.last(at, 1).next();
        let newest = newest.map_or(0.0, |second| f64::from(second.arrivals) * service_s);
        let alone = newest - before > JUMP_SIGMAS * std::f64::consts::SQRT_2 * spread;
        (sigmas, if alone { newest.max(recent) } else { recent })
    }
}

/// The standard deviation of offered work that independent arrivals alone give to a mean over
/// `over_s` seconds. Requests longer than the view overlap with their neighbours': the number at
/// once is what varies then (Poisson: variance equals mean).
pub(crate) fn chance(level: f64, service_s: f64, over_s: f64) -> f64 {
    (level.max(0.0) * (service_s / over_s).min(1.0)).sqrt()
}

fn mean(values: impl Iterator<Item = f32>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0_u32), |(sum, count), value| {
        (sum + f64::from(value), count + 1)
    });
    (count > 0).then(|| sum / f64::from(count))
}

fn least(values: impl Iterator<Item = f32>) -> Option<f64> {
    values.reduce(f32::min).map(f64::from)
}

/// Of up to 64 values, so that it costs no memory of its own.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted = [0.0; 64];
    let mut count = 0;
    for value in values.take(sorted.len()) {
        sorted[count] = value;
        count += 1;
    }
    let sorted = &mut sorted[..count];
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(count / 2).copied()
}
