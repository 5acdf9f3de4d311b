//! The line that is shown while the load runs. Pure.

use std::time::Duration;

use super::scale::Scale;
use super::schedule::Plan;
use super::tally::{Counts, Recent};
use crate::output::format::UNKNOWN;

pub(super) struct Moment<'a> {
    pub(super) plan: &'a Plan,
    pub(super) now: Duration,
    /// Since the look before.
    pub(super) since: Duration,
    pub(super) recent: Recent,
    pub(super) counts: Counts,
    pub(super) in_flight: usize,
    /// `None`: the scheduler has not answered.
    pub(super) scale: Option<Scale>,
}

impl Moment<'_> {
    pub(super) fn line(&self) -> String {
        let since = self.since.as_secs_f64().max(0.001);
        let quantile = |q| {
            milliseconds(
                self.recent
                    .latencies
                    .quantile(q)
                    .map(|d| d.as_secs_f64() * 1e3),
            )
        };
        let mut line = format!(
            "{}  rps {:.0} sent {:.0} ok {:.0}  in flight {}  p50 {} p99 {}  failed {}",
            self.clock(),
            if self.now < self.plan.length() {
                self.plan.rate_at(self.now)
            } else {
                0.0
            },
            self.recent.sent as f64 / since,
            self.recent.succeeded as f64 / since,
            self.in_flight,
            quantile(0.5),
            quantile(0.99),
            self.counts.failed,
        );
        if self.counts.not_sent > 0 {
            line.push_str(&format!("  not sent {}", self.counts.not_sent));
        }
        line.push_str("  | ");
        line.push_str(&scale(self.scale.as_ref()));
        line
    }

    fn clock(&self) -> String {
        let Some(within) = self.now.checked_sub(self.plan.warm_up) else {
            return format!(
                "warm-up {}",
                seconds((self.plan.warm_up - self.now).as_secs_f64())
            );
        };
        format!(
            "{}/{}",
            within.as_secs().min(self.plan.over.as_secs()),
            seconds(self.plan.over.as_secs_f64())
        )
    }
}

/// `demand 2.4  target 1  replicas 2 of 3`: ready, and wanted.
pub(super) fn scale(scale: Option<&Scale>) -> String {
    let Some(scale) = scale else {
        return "the scheduler does not answer".into();
    };
    let number = |n: Option<u32>| n.map_or_else(|| UNKNOWN.into(), |n| n.to_string());
    format!(
        "demand {}  target {}  replicas {} of {}",
        demand(scale.demand),
        number(scale.target_concurrency),
        scale.ready_replicas,
        number(scale.desired_replicas),
    )
}

pub(super) fn demand(demand: Option<f64>) -> String {
    demand.map_or_else(|| UNKNOWN.into(), |demand| format!("{demand:.1}"))
}

/// `0.45 ms`, `21.3 ms`, `840 ms`, `2.10 s`.
pub(super) fn milliseconds(ms: Option<f64>) -> String {
    match ms {
        None => UNKNOWN.into(),
        Some(ms) if ms < 1.0 => format!("{ms:.2} ms"),
        Some(ms) if ms < 100.0 => format!("{ms:.1} ms"),
        Some(ms) if ms < 1000.0 => format!("{ms:.0} ms"),
        Some(ms) => format!("{:.2} s", ms / 1000.0),
    }
}

/// `60 s`, `2.5 s`.
pub(super) fn seconds(seconds: f64) -> String {
    let rounded = (seconds * 10.0).round() / 10.0;
    format!("{rounded} s")
}

#[cfg(test)]
mod tests {
    use super::super::outcome::{Done, Outcome};
    use super::super::schedule::Arrivals;
    use super::super::schedule::tests::plan;
    use super::super::tally::Tally;
    use super::*;

    fn moment(plan: &Plan, now_s: u64, scale: Option<Scale>) -> String {
        let mut tally = Tally::new(*plan);
        let at = Duration::from_secs(now_s);
        for n in 0..30_u64 {
            let sent = at - Duration::from_millis(n);
            tally.due(sent, n < 28);
            if n < 25 {
                tally.done(&Done {
                    intended: sent,
                    sent,
                    ended: sent + Duration::from_millis(20 + n),
                    outcome: Outcome::Status(if n == 3 { 500 } else { 200 }),
                    said: None,
                });
            }
        }
        let recent = tally.look(at);
        let moment = Moment {
            plan,
            now: at,
            since: Duration::from_secs(1),
            recent,
            counts: tally.counts,
            in_flight: 3,
            scale,
        };
        moment.line()
    }

    #[test]
    fn the_line_says_rates_latency_failures_and_the_endpoints_scale() {
        let plan = plan("10..50", 60, Arrivals::Uniform);
        let scale = Scale {
            at_s: 30.0,
            demand: Some(2.44),
            target_concurrency: Some(1),
            desired_replicas: Some(3),
            ready_replicas: 2,
            replicas: 3,
        };
        insta::assert_snapshot!(moment(&plan, 30, Some(scale)), @"30/60 s  rps 30 sent 28 ok 24  in flight 3  p50 32.0 ms p99 44.0 ms  failed 1  not sent 2  | demand 2.4  target 1  replicas 2 of 3");
        let alone = moment(&plan, 61, None);
        assert!(alone.starts_with("60/60 s  rps 0"), "{alone}");
        assert!(alone.ends_with("the scheduler does not answer"), "{alone}");
    }

    #[test]
    fn the_warm_up_counts_down() {
        let warm = Plan {
            warm_up: Duration::from_secs(10),
            ..plan("10", 60, Arrivals::Uniform)
        };
        assert!(moment(&warm, 4, None).starts_with("warm-up 6 s  rps 10"));
    }

    #[test]
    fn times_keep_three_digits() {
        let shown: Vec<String> = [0.4512, 21.26, 840.2, 2104.0]
            .map(|ms| milliseconds(Some(ms)))
            .to_vec();
        assert_eq!(shown, ["0.45 ms", "21.3 ms", "840 ms", "2.10 s"]);
        assert_eq!(milliseconds(None), "-");
    }
}
