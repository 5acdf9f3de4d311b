//! The last seconds of a served entity's demand, one sample a second.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::units::{Concurrency, MonoTime};

/// The longest stretch that a mean is asked of (AUTOSCALING: up from the last 20 s).
pub const LONG: Duration = Duration::from_secs(20);
/// The stretch that sees a step at once. `max(mean of 20 s, mean of 3 s)` closes the gap that the
/// 20 s mean alone leaves after a step, with a fifth of the replica changes of Knative's panic mode.
pub const SHORT: Duration = Duration::from_secs(3);
/// More samples than a second apart are not worth keeping: a caller that ticks faster loses the
/// oldest, never memory.
const MAX_SAMPLES: usize = 64;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DemandWindow {
    /// Oldest first.
    samples: VecDeque<Sample>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Sample {
    #[serde(with = "crate::mono_millis")]
    at: MonoTime,
    demand: Concurrency,
}

impl DemandWindow {
    /// A second in which nothing was measured is left out: a gap, not a zero.
    pub fn record(&mut self, demand: Concurrency, at: MonoTime) {
        while self.samples.len() >= MAX_SAMPLES
            || (self.samples.front()).is_some_and(|oldest| at.saturating_since(oldest.at) >= LONG)
        {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample { at, demand });
    }

    /// The mean of the samples of the last `over`; `None` where there are none.
    pub fn mean(&self, over: Duration, now: MonoTime) -> Option<Concurrency> {
        let recent = self
            .samples
            .iter()
            .filter(|sample| now.saturating_since(sample.at) < over);
        let (sum, count) = recent.fold((0.0, 0_u32), |(sum, count), sample| {
            (sum + sample.demand.get(), count + 1)
        });
        if count == 0 {
            return None;
        }
        Concurrency::new(sum / f64::from(count))
    }

    /// The newest sample.
    pub fn last(&self) -> Option<Concurrency> {
        self.samples.back().map(|sample| sample.demand)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn concurrency(value: f64) -> Concurrency {
        Concurrency::new(value).expect("valid")
    }

    #[test]
    fn a_mean_is_of_its_stretch_only_and_nothing_measured_is_no_mean() {
        let mut window = DemandWindow::default();
        assert_eq!(window.mean(LONG, MonoTime::ZERO), None);
        for second in 1..=30 {
            let demand = if second > 27 { 40.0 } else { 0.0 };
            window.record(concurrency(demand), MonoTime::from_secs(second));
        }
        let now = MonoTime::from_secs(30);
        assert_eq!(window.mean(SHORT, now), Some(concurrency(40.0)));
        assert_eq!(window.mean(LONG, now), Some(concurrency(6.0)));
        assert_eq!(window.mean(LONG, MonoTime::from_secs(60)), None);
    }

    #[test]
    fn a_caller_that_ticks_too_fast_costs_no_memory() {
        let mut window = DemandWindow::default();
        for _ in 0..10_000 {
            window.record(Concurrency::ZERO, MonoTime::ZERO);
        }
        assert!(window.samples.len() <= MAX_SAMPLES);
    }
}
