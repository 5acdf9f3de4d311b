//! What one served entity's traffic was since the last report. Pure.

use std::time::Duration;

use http::StatusCode;
use shared::ids::ServedEntityId;
use shared::report::EntityTraffic;
use shared::units::MonoTime;

use crate::gauge::Gauge;
use crate::histogram::Histogram;

/// How a request ended, seen from its entry gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// Answered by a replica with a status below 500, to the end of the body.
    Completed,
    /// Answered 5xx by a replica, or lost with it.
    Failed,
    /// Its deadline passed.
    TimedOut,
    /// Turned away by the gateway: queue full, or no replica.
    Rejected,
    /// The client left.
    Cancelled,
    /// The request itself was at fault.
    Refused,
}

impl Outcome {
    pub(crate) const ALL: [Self; 6] = [
        Outcome::Completed,
        Outcome::Failed,
        Outcome::TimedOut,
        Outcome::Rejected,
        Outcome::Cancelled,
        Outcome::Refused,
    ];

    /// Of a request whose answer has come to its end.
    pub(crate) fn of_answer(status: StatusCode) -> Self {
        if status.is_server_error() {
            Outcome::Failed
        } else {
            Outcome::Completed
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Outcome::Completed => "completed",
            Outcome::Failed => "failed",
            Outcome::TimedOut => "timed_out",
            Outcome::Rejected => "rejected",
            Outcome::Cancelled => "cancelled",
            Outcome::Refused => "refused",
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Traffic {
    began: MonoTime,
    active: Gauge,
    queued: Gauge,
    arrivals: u64,
    completions: u64,
    rejected: u64,
    failed: u64,
    service: Histogram,
}

impl Traffic {
    pub(crate) fn new(now: MonoTime) -> Self {
        Self {
            began: now,
            active: Gauge::new(now),
            queued: Gauge::new(now),
            arrivals: 0,
            completions: 0,
            rejected: 0,
            failed: 0,
            service: Histogram::new(),
        }
    }

    pub(crate) fn arrived(&mut self) {
        self.arrivals += 1;
    }

    pub(crate) fn set_active(&mut self, active: u32, now: MonoTime) {
        self.active.set(active, now);
    }

    pub(crate) fn set_queued(&mut self, queued: u32, now: MonoTime) {
        self.queued.set(queued, now);
    }

    /// `service` is the time at the replica, for requests that one answered.
    pub(crate) fn ended(&mut self, outcome: Outcome, service: Option<Duration>) {
        match outcome {
            Outcome::Completed => self.completions += 1,
            Outcome::Failed | Outcome::TimedOut => self.failed += 1,
            Outcome::Rejected => self.rejected += 1,
            Outcome::Cancelled | Outcome::Refused => {}
        }
        if let Some(service) = service {
            self.service.record(service);
        }
    }

    /// The report of the stretch that ends now. An idle stretch is one too: zero seen is not
    /// nothing seen.
    pub(crate) fn take(&mut self, id: &ServedEntityId, now: MonoTime) -> EntityTraffic {
        let over = now.saturating_since(self.began);
        let active = self.active.take(self.began, now);
        let queued = self.queued.take(self.began, now);
        let service = std::mem::replace(&mut self.service, Histogram::new());
        let report = EntityTraffic {
            id: id.clone(),
            over,
            arrivals: std::mem::take(&mut self.arrivals),
            completions: std::mem::take(&mut self.completions),
            rejected: std::mem::take(&mut self.rejected),
            failed: std::mem::take(&mut self.failed),
            active,
            queued,
            p50_ms: service.quantile_ms(0.5),
            p95_ms: service.quantile_ms(0.95),
            p99_ms: service.quantile_ms(0.99),
        };
        self.began = now;
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::ids::{EndpointName, EntityName};

    fn id() -> ServedEntityId {
        ServedEntityId {
            endpoint: EndpointName::parse("iris").expect("valid"),
            entity: EntityName::parse("iris-1").expect("valid"),
        }
    }

    fn ms(millis: u64) -> MonoTime {
        MonoTime::from_millis(millis)
    }

    #[test]
    fn means_are_weighted_by_how_long_a_value_held() {
        let mut traffic = Traffic::new(ms(0));
        traffic.set_active(4, ms(500));
        traffic.set_active(0, ms(750));
        traffic.set_queued(2, ms(900));
        let report = traffic.take(&id(), ms(1000));
        assert!((report.active - 1.0).abs() < 1e-9, "{}", report.active);
        assert!((report.queued - 0.2).abs() < 1e-9, "{}", report.queued);
        assert_eq!(report.over, Duration::from_secs(1));
    }

    #[test]
    fn a_value_that_held_through_a_report_counts_in_the_next_stretch() {
        let mut traffic = Traffic::new(ms(0));
        traffic.set_active(3, ms(0));
        traffic.take(&id(), ms(1000));
        let report = traffic.take(&id(), ms(2000));
        assert!((report.active - 3.0).abs() < 1e-9);
        assert_eq!((report.arrivals, report.p50_ms), (0, None));
    }

    #[test]
    fn outcomes_are_counted_once_and_cleared_by_the_report() {
        let mut traffic = Traffic::new(ms(0));
        for outcome in [
            Outcome::Completed,
            Outcome::Failed,
            Outcome::TimedOut,
            Outcome::Rejected,
            Outcome::Cancelled,
        ] {
            traffic.arrived();
            traffic.ended(outcome, Some(Duration::from_millis(20)));
        }
        let report = traffic.take(&id(), ms(1000));
        assert_eq!(
            (
                report.arrivals,
                report.completions,
                report.failed,
                report.rejected
            ),
            (5, 1, 2, 1)
        );
        assert!((18.0..22.0).contains(&report.p50_ms.expect("recorded")));
        assert_eq!(traffic.take(&id(), ms(2000)).arrivals, 0);
    }
}
