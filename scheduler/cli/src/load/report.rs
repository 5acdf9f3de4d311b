//! What a load has found: the result as JSON, and as text for people. Pure.

use std::time::Duration;

use serde::Serialize;

use super::live;
use super::scale::Scale;
use super::schedule::Plan;
use super::tally::{Counts, Latencies, Tally};
use crate::output::format::UNKNOWN;
use crate::output::table::{Field, Table, Tone};

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(super) endpoint: String,
    pub(super) url: String,
    pub(super) rps_from: f64,
    pub(super) rps_to: f64,
    pub(super) over_s: f64,
    pub(super) warm_up_s: f64,
    pub(super) arrivals: super::schedule::Arrivals,
    pub(super) seed: u64,
    pub(super) max_in_flight: usize,
    pub(super) timeout_s: f64,
    /// From the first intended send to the last answer.
    pub(super) took_s: f64,
    /// Ended before its time.
    pub(super) interrupted: bool,
    pub(super) requests: Requests,
    pub(super) outcomes: Vec<OutcomeCount>,
    pub(super) latency: Latency,
    pub(super) phases: Vec<PhaseReport>,
    /// `None`: the scheduler never answered.
    pub(super) replicas: Option<Replicas>,
    pub(super) seconds: Vec<SecondReport>,
    pub(super) scale: Vec<Scale>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Requests {
    pub(super) intended: u64,
    pub(super) sent: u64,
    /// Due while `max_in_flight` were unanswered.
    pub(super) not_sent: u64,
    pub(super) succeeded: u64,
    pub(super) failed: u64,
    pub(super) intended_rps: f64,
    pub(super) succeeded_rps: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct OutcomeCount {
    pub(super) outcome: String,
    pub(super) success: bool,
    pub(super) count: u64,
    /// The first of them, in its own words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) said: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Latency {
    /// Of successes, from when they were to be sent.
    pub(super) from_intended: Percentiles,
    /// Of successes, from when they were sent.
    pub(super) from_send: Percentiles,
    /// Of all that were sent, from when they were to be sent.
    pub(super) with_failures: Percentiles,
}

/// Milliseconds; `None` where nothing was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Percentiles {
    pub(super) p50_ms: Option<f64>,
    pub(super) p90_ms: Option<f64>,
    pub(super) p95_ms: Option<f64>,
    pub(super) p99_ms: Option<f64>,
    pub(super) p999_ms: Option<f64>,
    pub(super) max_ms: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(super) struct PhaseReport {
    pub(super) from_s: f64,
    pub(super) to_s: f64,
    pub(super) rps_from: f64,
    pub(super) rps_to: f64,
    pub(super) intended: u64,
    pub(super) not_sent: u64,
    pub(super) succeeded: u64,
    pub(super) failed: u64,
    pub(super) latency: Percentiles,
    pub(super) ready_replicas_most: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Replicas {
    pub(super) ready_least: u32,
    pub(super) ready_most: u32,
    pub(super) desired_most: Option<u32>,
    pub(super) demand_most: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct SecondReport {
    pub(super) at_s: u64,
    pub(super) intended_rps: f64,
    pub(super) sent: u64,
    pub(super) not_sent: u64,
    pub(super) failed: u64,
    /// Successes that came in this second.
    pub(super) answered: u64,
    /// Of the requests due in this second.
    pub(super) p50_ms: Option<f64>,
    pub(super) p99_ms: Option<f64>,
}

fn ms(duration: Duration) -> f64 {
    // Histograms keep three digits; more would be invented.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

impl Percentiles {
    fn of(latencies: &Latencies) -> Self {
        let at = |quantile| latencies.quantile(quantile).map(ms);
        Self {
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p95_ms: at(0.95),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: latencies.max().map(ms),
        }
    }

    fn fields(&self) -> [Field; 6] {
        [
            self.p50_ms,
            self.p90_ms,
            self.p95_ms,
            self.p99_ms,
            self.p999_ms,
            self.max_ms,
        ]
        .map(|ms| live::milliseconds(ms).into())
    }
}

impl Requests {
    fn of(counts: Counts, over_s: f64, took_s: f64) -> Self {
        let rate = |n: u64, seconds: f64| {
            if seconds > 0.0 {
                n as f64 / seconds
            } else {
                0.0
            }
        };
        Self {
            intended: counts.intended,
            sent: counts.intended - counts.not_sent,
            not_sent: counts.not_sent,
            succeeded: counts.succeeded,
            failed: counts.failed,
            intended_rps: rate(counts.intended, over_s),
            succeeded_rps: rate(counts.succeeded, took_s),
        }
    }

    /// The share of what was due and did not succeed, 0 to 1.
    pub(super) fn lost(&self) -> f64 {
        if self.intended == 0 {
            return 0.0;
        }
        (self.failed + self.not_sent) as f64 / self.intended as f64
    }
}

/// What is measured: everything a report needs beside the settings.
pub(super) struct Found<'a> {
    pub(super) plan: &'a Plan,
    pub(super) tally: &'a Tally,
    pub(super) scale: &'a [Scale],
    /// When sending ended, since the start of the load without its warm-up.
    pub(super) sent_for: Duration,
}

impl Found<'_> {
    pub(super) fn requests(&self) -> Requests {
        let last_end = self.tally.last_end.saturating_sub(self.plan.warm_up);
        let took = last_end.max(self.sent_for);
        let counts = self.tally.counts;
        Requests::of(counts, self.sent_for.as_secs_f64(), took.as_secs_f64())
    }

    pub(super) fn took_s(&self) -> f64 {
        let last_end = self.tally.last_end.saturating_sub(self.plan.warm_up);
        last_end.max(self.sent_for).as_secs_f64()
    }

    pub(super) fn outcomes(&self) -> Vec<OutcomeCount> {
        let outcomes = self.tally.outcomes.iter();
        outcomes
            .map(|(outcome, (count, said))| OutcomeCount {
                outcome: outcome.to_string(),
                success: outcome.is_success(),
                count: *count,
                said: said.clone(),
            })
            .collect()
    }

    pub(super) fn latency(&self) -> Latency {
        Latency {
            from_intended: Percentiles::of(&self.tally.from_intended),
            from_send: Percentiles::of(&self.tally.from_send),
            with_failures: Percentiles::of(&self.tally.with_failures),
        }
    }

    pub(super) fn phases(&self) -> Vec<PhaseReport> {
        let phases = self.tally.phases.iter().enumerate();
        phases
            .map(|(n, phase)| {
                let [(start, rps_from), (end, rps_to)] = self.tally.phase_bounds(n);
                let (start, end) = (start.as_secs_f64(), end.as_secs_f64());
                let within = self
                    .scale
                    .iter()
                    .filter(|it| (start..end).contains(&it.at_s));
                PhaseReport {
                    from_s: start,
                    to_s: end,
                    rps_from,
                    rps_to,
                    intended: phase.counts.intended,
                    not_sent: phase.counts.not_sent,
                    succeeded: phase.counts.succeeded,
                    failed: phase.counts.failed,
                    latency: Percentiles::of(&phase.latencies),
                    ready_replicas_most: within.map(|it| it.ready_replicas).max(),
                }
            })
            .collect()
    }

    pub(super) fn replicas(&self) -> Option<Replicas> {
        let looks = || self.scale.iter();
        let demands = looks().filter_map(|it| it.demand);
        Some(Replicas {
            ready_least: looks().map(|it| it.ready_replicas).min()?,
            ready_most: looks().map(|it| it.ready_replicas).max()?,
            desired_most: looks().filter_map(|it| it.desired_replicas).max(),
            demand_most: demands.reduce(f64::max),
        })
    }

    pub(super) fn seconds(&self) -> Vec<SecondReport> {
        let seconds = self.tally.seconds.iter().zip(0_u64..);
        seconds
            .map(|(second, at_s)| {
                let at = |s: u64| {
                    self.plan
                        .intended_until(self.plan.warm_up + Duration::from_secs(s))
                };
                SecondReport {
                    at_s,
                    intended_rps: at(at_s + 1) - at(at_s),
                    sent: second.counts.intended - second.counts.not_sent,
                    not_sent: second.counts.not_sent,
                    failed: second.counts.failed,
                    answered: second.answered,
                    p50_ms: second.closed.map(|it| ms(it.p50)),
                    p99_ms: second.closed.map(|it| ms(it.p99)),
                }
            })
            .collect()
    }
}

impl Report {
    /// Title lines and tables, in the order in which they are shown.
    pub(super) fn tables(&self) -> Vec<(String, Table)> {
        let mut all = vec![
            (self.headline(), self.outcome_table()),
            ("\nlatency".to_owned(), self.latency_table()),
        ];
        if self.phases.len() > 1 {
            all.push((
                "\nphases, latency from the intended send".into(),
                self.phase_table(),
            ));
        }
        all
    }

    fn headline(&self) -> String {
        let requests = &self.requests;
        format!(
            "{} requests due in {}, {:.1}/s; {} succeeded, {:.1}/s",
            requests.intended,
            live::seconds(self.took_s.min(self.over_s)),
            requests.intended_rps,
            requests.succeeded,
            requests.succeeded_rps,
        )
    }

    /// One line on the replicas, where they are known.
    pub(super) fn replica_line(&self) -> String {
        let Some(replicas) = &self.replicas else {
            return "\nreplicas: the scheduler did not say".into();
        };
        let number = |n: Option<u32>| n.map_or_else(|| UNKNOWN.into(), |n| n.to_string());
        format!(
            "\nreplicas: {} to {} ready, at most {} wanted; demand up to {}",
            replicas.ready_least,
            replicas.ready_most,
            number(replicas.desired_most),
            live::demand(replicas.demand_most),
        )
    }

    fn outcome_table(&self) -> Table {
        let mut table = Table::new(
            ["OUTCOME", "REQUESTS", "SHARE", "FIRST SAID"],
            "no request ended",
        );
        let share = |n: u64| {
            format!(
                "{:.2} %",
                100.0 * n as f64 / self.requests.intended.max(1) as f64
            )
        };
        for one in &self.outcomes {
            let tone = if one.success { Tone::Good } else { Tone::Bad };
            table.row([
                Field::toned(&one.outcome, tone),
                one.count.into(),
                share(one.count).into(),
                one.said.as_deref().unwrap_or_default().into(),
            ]);
        }
        if self.requests.not_sent > 0 {
            let why = format!("{} were in flight: --max-in-flight", self.max_in_flight);
            table.row([
                Field::toned("not sent", Tone::Bad),
                self.requests.not_sent.into(),
                share(self.requests.not_sent).into(),
                why.into(),
            ]);
        }
        table
    }

    fn latency_table(&self) -> Table {
        let mut table = Table::new(
            ["SUCCESSES", "P50", "P90", "P95", "P99", "P99.9", "MAX"],
            "nothing was measured",
        );
        let latency = &self.latency;
        let mut row = |name: &str, percentiles: &Percentiles| {
            let [a, b, c, d, e, f] = percentiles.fields();
            table.row([name.into(), a, b, c, d, e, f]);
        };
        row("from intended send", &latency.from_intended);
        row("from actual send", &latency.from_send);
        if self.requests.failed > 0 {
            row("with failures, from intended", &latency.with_failures);
        }
        table
    }

    fn phase_table(&self) -> Table {
        let mut table = Table::new(
            [
                "TIME", "RPS", "REQUESTS", "FAILED", "NOT SENT", "P50", "P99", "MAX", "READY",
            ],
            "no phase",
        );
        for phase in &self.phases {
            table.row([
                format!("{:.0}..{:.0} s", phase.from_s, phase.to_s).into(),
                format!("{:.0}..{:.0}", phase.rps_from, phase.rps_to).into(),
                phase.intended.into(),
                phase.failed.into(),
                phase.not_sent.into(),
                live::milliseconds(phase.latency.p50_ms).into(),
                live::milliseconds(phase.latency.p99_ms).into(),
                live::milliseconds(phase.latency.max_ms).into(),
                phase
                    .ready_replicas_most
                    .map_or_else(|| UNKNOWN.into(), |n| n.to_string())
                    .into(),
            ]);
        }
        table
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::outcome::{Done, Outcome};
    use super::super::schedule::Arrivals;
    use super::super::schedule::tests::plan;
    use super::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    /// 20 seconds of 5 to 25 requests a second; in the last five seconds every tenth is refused.
    pub(crate) fn example() -> Report {
        let plan = plan("5..25", 20, Arrivals::Uniform);
        let mut tally = Tally::new(plan);
        for (n, intended) in plan.sends(StdRng::seed_from_u64(1)).enumerate() {
            let late = intended.as_secs() >= 15;
            tally.due(intended, n % 50 != 49);
            if n % 50 == 49 {
                continue;
            }
            let bad = late && n % 10 == 0;
            tally.done(&Done {
                intended,
                sent: intended + Duration::from_micros(200),
                ended: intended + Duration::from_millis(20 + 10 * intended.as_secs()),
                outcome: Outcome::Status(if bad { 429 } else { 200 }),
                said: bad.then(|| "every slot is taken and the queue is full".to_owned()),
            });
        }
        tally.finish();
        let look = |at: u32| Scale {
            at_s: f64::from(at),
            demand: (at > 0).then(|| f64::from(at) / 5.0),
            target_concurrency: Some(1),
            desired_replicas: Some(1 + at / 7),
            ready_replicas: 1 + at / 9,
            replicas: 1 + at / 7,
        };
        let scale: Vec<Scale> = (0..20).map(look).collect();
        let found = Found {
            plan: &plan,
            tally: &tally,
            scale: &scale,
            sent_for: plan.over,
        };
        Report {
            endpoint: "iris".into(),
            url: "https://127.0.0.1:8443/serving-endpoints/iris/invocations".into(),
            rps_from: 5.0,
            rps_to: 25.0,
            over_s: 20.0,
            warm_up_s: 0.0,
            arrivals: Arrivals::Uniform,
            seed: 1,
            max_in_flight: 512,
            timeout_s: 30.0,
            took_s: found.took_s(),
            interrupted: false,
            requests: found.requests(),
            outcomes: found.outcomes(),
            latency: found.latency(),
            phases: found.phases(),
            replicas: found.replicas(),
            seconds: found.seconds(),
            scale: scale.clone(),
        }
    }

    #[test]
    fn the_result_says_outcomes_percentiles_phases_and_replicas() {
        let report = example();
        let mut text = String::new();
        for (title, table) in report.tables() {
            text.push_str(&format!("{title}\n{}\n", table.render(None, false)));
        }
        text.push_str(&report.replica_line());
        insta::assert_snapshot!(text);
    }

    #[test]
    fn what_was_not_sent_is_lost_as_much_as_what_failed() {
        let report = example();
        let requests = report.requests;
        assert_eq!(requests.intended, 300);
        assert_eq!(requests.sent + requests.not_sent, 300);
        assert_eq!(requests.succeeded + requests.failed, requests.sent);
        let lost = (requests.failed + requests.not_sent) as f64 / 300.0;
        assert_eq!(requests.lost(), lost);
        let seconds: u64 = report.seconds.iter().map(|second| second.answered).sum();
        assert_eq!(seconds, requests.succeeded);
    }
}
