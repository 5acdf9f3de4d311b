//! `stokehold_scheduler_*`. Labels come from small sets only.

use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use scheduler_core::Census;
use shared::ids::Role;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRole {
    role: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    state: &'static str,
}

/// Rules are a small fixed set of words of the autoscaler's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRule {
    axis: &'static str,
    rule: String,
}

type CountGauge = Gauge<i64, AtomicI64>;

pub struct Metrics {
    pub commit_seconds: Histogram,
    sessions: Family<ByRole, CountGauge>,
    endpoints: CountGauge,
    replicas: Family<ByState, CountGauge>,
    decisions: Family<ByRule, Counter>,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            // 50 us to 1.6 s.
            commit_seconds: Histogram::new(exponential_buckets(50e-6, 2.0, 16)),
            sessions: Family::default(),
            endpoints: CountGauge::default(),
            replicas: Family::default(),
            decisions: Family::default(),
        };
        registry.register(
            "stokehold_scheduler_commit_seconds",
            "Time to write a batch of records to disk",
            metrics.commit_seconds.clone(),
        );
        registry.register(
            "stokehold_scheduler_sessions",
            "Connected agents and gateways",
            metrics.sessions.clone(),
        );
        registry.register(
            "stokehold_scheduler_endpoints",
            "Endpoints",
            metrics.endpoints.clone(),
        );
        registry.register(
            "stokehold_scheduler_replicas",
            "Replicas by state",
            metrics.replicas.clone(),
        );
        registry.register(
            "stokehold_scheduler_apa_decisions",
            "Decisions of the autoscaler by axis and rule",
            metrics.decisions.clone(),
        );
        metrics
    }

    pub fn set_sessions(&self, role: Role, count: usize) {
        let role = role.as_str();
        self.sessions
            .get_or_create(&ByRole { role })
            .set(gauge(count));
    }

    /// Counts endpoints and replicas, and the decisions made so far.
    pub fn count_core(&self, census: &Census) {
        self.endpoints.set(gauge(census.endpoints));
        // States that no replica is in any more go to zero instead of standing still.
        self.replicas.clear();
        for (state, count) in &census.replicas {
            self.replicas
                .get_or_create(&ByState { state })
                .set(gauge(*count));
        }
        for (axis, rules) in &census.decisions {
            for (rule, made) in rules {
                let rule = rule.clone();
                let counter = self.decisions.get_or_create(&ByRule { axis, rule });
                counter.inc_by(made.saturating_sub(counter.get()));
            }
        }
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
