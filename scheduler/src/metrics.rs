//! `stokehold_scheduler_*`. Labels come from small sets only.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use scheduler_core::Core;
use shared::ids::Role;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRole {
    role: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    state: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByBound {
    bound_by: String,
}

type CountGauge = Gauge<i64, AtomicI64>;

pub struct Metrics {
    pub commit_seconds: Histogram,
    sessions: Family<ByRole, CountGauge>,
    endpoints: CountGauge,
    replicas: Family<ByState, CountGauge>,
    decisions: Family<ByBound, Counter>,
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
            "stokehold_scheduler_decisions",
            "Decisions of the horizontal axis by what bound them",
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

    /// Counts endpoints, replicas, and the decisions made since the last count, `since` ago.
    pub fn count_core(&self, core: &Core, since: Duration) {
        let endpoints = core.list_endpoints();
        self.endpoints.set(gauge(endpoints.len()));
        let mut states: BTreeMap<String, usize> = BTreeMap::new();
        for endpoint in &endpoints {
            let Ok(description) = core.describe(endpoint.name.as_str()) else {
                continue;
            };
            for replica in description.replicas.iter().filter(|replica| !replica.ended) {
                *states.entry(replica.state.clone()).or_default() += 1;
            }
            for decision in description.decisions {
                if decision.age_s < since.as_secs_f64() {
                    let bound_by = decision.bound_by;
                    self.decisions.get_or_create(&ByBound { bound_by }).inc();
                }
            }
        }
        // States that no replica is in any more go to zero instead of standing still.
        self.replicas.clear();
        for (state, count) in states {
            self.replicas
                .get_or_create(&ByState { state })
                .set(gauge(count));
        }
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
