//! What one replica did since the last report, as its own gateway saw it. Pure.

use std::time::Duration;

use shared::report::ReplicaLoad;
use shared::units::MonoTime;

use crate::gauge::Gauge;
use crate::histogram::Histogram;

#[derive(Debug)]
pub(crate) struct Work {
    began: MonoTime,
    active: Gauge,
    completions: u64,
    service: Histogram,
}

impl Work {
    pub(crate) fn new(now: MonoTime) -> Self {
        Self {
            began: now,
            active: Gauge::new(now),
            completions: 0,
            service: Histogram::new(),
        }
    }

    pub(crate) fn entered(&mut self, now: MonoTime) {
        self.active.set(self.active.value() + 1, now);
    }

    pub(crate) fn left(&mut self, now: MonoTime) {
        self.active.set(self.active.value().saturating_sub(1), now);
    }

    /// A request that is about to leave was answered well, `service` after it entered.
    pub(crate) fn completed(&mut self, service: Duration) {
        self.completions += 1;
        self.service.record(service);
    }

    /// The load of the stretch that ends now. An idle stretch is one too.
    pub(crate) fn take(&mut self, now: MonoTime) -> ReplicaLoad {
        let load = ReplicaLoad {
            over: now.saturating_since(self.began),
            active: self.active.take(self.began, now),
            completions: std::mem::take(&mut self.completions),
            p50_ms: self.service.quantile_ms(0.5),
            p95_ms: self.service.quantile_ms(0.95),
        };
        self.service.clear();
        self.began = now;
        load
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> MonoTime {
        MonoTime::from_millis(millis)
    }

    #[test]
    fn a_request_counts_for_as_long_as_it_was_there_and_once_when_it_was_answered() {
        let mut work = Work::new(ms(0));
        work.entered(ms(0));
        work.entered(ms(500));
        work.completed(Duration::from_millis(750));
        work.left(ms(750));
        let load = work.take(ms(1000));
        assert!((load.active - 1.25).abs() < 1e-9, "{}", load.active);
        assert_eq!((load.completions, load.over), (1, Duration::from_secs(1)));
        let p50 = load.p50_ms.expect("one was answered");
        assert!((690.0..810.0).contains(&p50), "{p50}");
    }

    #[test]
    fn what_stays_counts_in_the_next_stretch_and_what_was_answered_does_not() {
        let mut work = Work::new(ms(0));
        work.entered(ms(0));
        work.entered(ms(0));
        work.completed(Duration::from_millis(10));
        work.left(ms(10));
        work.take(ms(1000));
        let load = work.take(ms(2000));
        assert!((load.active - 1.0).abs() < 1e-9, "{}", load.active);
        assert_eq!(
            (load.completions, load.p50_ms, load.p95_ms),
            (0, None, None)
        );
    }
}
