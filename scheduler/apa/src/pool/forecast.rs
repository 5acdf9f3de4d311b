//! What is believed of the claims of one lead time: a mixture of what was seen, each source with the
//! weight that its past forecasts earned. Pure.
//!
//! Bursts come in trains (the last half hour knows), ramps last hours (the last two, the last six),
//! days repeat (the same time of day), and jobs start on the hour (the same minute of it). No source is
//! right for all, so each forecasts every minute, and is weighted by how probable it said what then
//! came was: a mixture of experts under log loss with fixed share (Herbster and Warmuth 1998).

use serde::{Deserialize, Serialize};

use super::history::History;

/// How fast weights follow the scores: half of what Bayes' rule says, since the claims of neighbouring
/// lead times overlap and are no independent evidence.
const LEARNING_RATE: f64 = 0.5;
/// Of the weights this share is dealt out evenly every minute, so that a source whose time comes again
/// is back within the hour.
const SHARED: f64 = 0.03;
/// A source is believed with this many samples that nobody saw, geometric from zero: what it has never
/// seen is improbable, not impossible.
const UNSEEN: f64 = 1.0;

const DAY: u64 = 24 * 60;
const DAYS: u64 = 7;
/// About the same time of day. A wider window foretells for so long before anything comes that it loses
/// its weight meanwhile; between 5 and 30 minutes the backtests hardly differ.
const ABOUT_MINUTES: u64 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The last minutes.
    Recent { minutes: u64 },
    /// The same time of day of the last seven days.
    TimeOfDay,
    /// The same minute of the hour, give or take one, of the last six hours.
    MinuteOfHour,
}

pub(super) const SOURCES: [Source; 5] = [
    Source::Recent { minutes: 30 },
    Source::Recent { minutes: 120 },
    Source::Recent { minutes: 360 },
    Source::TimeOfDay,
    Source::MinuteOfHour,
];

impl Source {
    pub(super) fn name(self) -> String {
        match self {
            Source::Recent { minutes } => format!("the last {minutes} min"),
            Source::TimeOfDay => "the same time of day".to_owned(),
            Source::MinuteOfHour => "the same minute of the hour".to_owned(),
        }
    }

    /// The minutes that tell of minute `target`, those that are not known yet included.
    fn minutes(self, target: u64, known: u64) -> Vec<u64> {
        let repeats = |period: u64, times: u64, about: u64| {
            let centres = (1..=times).filter_map(move |n| target.checked_sub(n * period));
            let around = move |centre: u64| centre.saturating_sub(about)..=centre + about;
            centres.flat_map(around).collect()
        };
        match self {
            Source::Recent { minutes } => ((known + 1).saturating_sub(minutes)..=known).collect(),
            Source::TimeOfDay => repeats(DAY, DAYS, ABOUT_MINUTES),
            Source::MinuteOfHour => repeats(60, 6, 1),
        }
    }
}

/// What each source has seen, sorted.
pub(super) struct Forecast {
    seen: [Vec<u32>; SOURCES.len()],
}

impl Forecast {
    /// Of the claims in the `lead` minutes up to and with `target`, from what is known.
    pub(super) fn of(history: &History, target: u64, lead: u64) -> Self {
        let known = history.last().unwrap_or(0);
        let seen = SOURCES.map(|source| {
            let minutes = source.minutes(target, known).into_iter();
            let demands = minutes.filter_map(|minute| history.lead_demand(minute, lead));
            let mut demands: Vec<u32> = demands.collect();
            demands.sort_unstable();
            demands
        });
        Self { seen }
    }

    /// The least `x` that is not exceeded with probability `tau`; `None` where nothing was seen.
    pub(super) fn quantile(&self, weights: &Weights, tau: f64) -> Option<u32> {
        let mut steps: Vec<(u32, f64)> = Vec::new();
        let mut total = 0.0;
        for (seen, weight) in self.seen.iter().zip(&weights.0) {
            if seen.is_empty() {
                continue;
            }
            total += weight;
            let each = weight / seen.len() as f64;
            steps.extend(seen.iter().map(|demand| (*demand, each)));
        }
        steps.sort_unstable_by_key(|(demand, _)| *demand);
        // Sums of many small numbers: a hair less than all is all.
        let goal = tau * total * (1.0 - 1e-9);
        let mut reached = 0.0;
        let found = steps.iter().find(|(_, each)| {
            reached += each;
            reached >= goal
        });
        found.or(steps.last()).map(|(demand, _)| *demand)
    }

    /// How probable a source said `demand` was.
    fn probability(seen: &[u32], demand: u32) -> f64 {
        let unseen = 0.5_f64.powi(demand.min(60) as i32 + 1);
        let times = seen.partition_point(|d| *d <= demand) - seen.partition_point(|d| *d < demand);
        (times as f64 + UNSEEN * unseen) / (seen.len() as f64 + UNSEEN)
    }
}

/// Of each source, in the order of [`SOURCES`]; their sum is 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Weights([f64; SOURCES.len()]);

impl Default for Weights {
    fn default() -> Self {
        Self([1.0 / SOURCES.len() as f64; SOURCES.len()])
    }
}

impl Weights {
    pub(super) fn shares(&self) -> [f64; SOURCES.len()] {
        self.0
    }

    /// `demand` came where `forecast` had been made.
    pub(super) fn learn(&mut self, forecast: &Forecast, demand: u32) {
        for (weight, seen) in self.0.iter_mut().zip(&forecast.seen) {
            *weight *= Forecast::probability(seen, demand).powf(LEARNING_RATE);
        }
        let total: f64 = self.0.iter().sum();
        if !(total.is_finite() && total > 0.0) {
            *self = Self::default();
            return;
        }
        let dealt = SHARED / SOURCES.len() as f64;
        for weight in &mut self.0 {
            *weight = *weight / total * (1.0 - SHARED) + dealt;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bursts on the hour that nothing else foretells.
    fn on_the_hour(hours: u64) -> History {
        let mut history = History::default();
        for minute in 0..hours * 60 {
            history.record(minute, if minute % 60 == 0 { 20 } else { 0 });
        }
        history
    }

    #[test]
    fn the_same_minute_of_the_hour_foretells_a_burst_and_earns_the_weight_for_it() {
        let mut weights = Weights::default();
        let mut history = History::default();
        for minute in 0..12 * 60 {
            let claims = if minute % 60 == 0 { 20 } else { 0 };
            let forecast = Forecast::of(&history, minute, 1);
            weights.learn(&forecast, claims);
            history.record(minute, claims);
        }
        let due = Forecast::of(&history, 12 * 60, 1).quantile(&weights, 0.9);
        let quiet = Forecast::of(&history, 12 * 60 + 30, 1).quantile(&weights, 0.9);
        assert_eq!((due, quiet), (Some(20), Some(0)));
    }

    #[test]
    fn weights_stay_shares_whatever_comes() {
        let history = on_the_hour(8);
        let mut weights = Weights::default();
        for demand in [0, 7, u32::MAX, 20, 0] {
            weights.learn(&Forecast::of(&history, 8 * 60, 1), demand);
            let total: f64 = weights.shares().iter().sum();
            assert!((total - 1.0).abs() < 1e-9, "{weights:?}");
            assert!(
                weights
                    .shares()
                    .iter()
                    .all(|share| *share >= SHARED / 5.0 - 1e-12)
            );
        }
    }

    #[test]
    fn nothing_seen_has_no_quantile() {
        let forecast = Forecast::of(&History::default(), 10, 2);
        assert_eq!(forecast.quantile(&Weights::default(), 0.9), None);
    }
}
