//! What the control loop counts about itself.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::executor::{Done, Outcome};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ActionLabels {
    action: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ActionLabel {
    action: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

#[derive(Clone)]
pub struct Metrics {
    actions: Family<ActionLabels, Counter>,
    action_seconds: Family<ActionLabel, Histogram>,
    replicas: Family<PhaseLabel, Gauge>,
    pass_seconds: Histogram,
    failed_looks: Counter,
    refused_plans: Counter,
    reports_dropped: Counter,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.001, 4.0, 10));
        let metrics = Self {
            actions: Family::default(),
            action_seconds: Family::new_with_constructor(seconds),
            replicas: Family::default(),
            pass_seconds: seconds(),
            failed_looks: Counter::default(),
            refused_plans: Counter::default(),
            reports_dropped: Counter::default(),
        };
        let prefix = registry.sub_registry_with_prefix("stokehold_agent");
        prefix.register(
            "actions",
            "Actions that ended, by kind and outcome",
            metrics.actions.clone(),
        );
        prefix.register(
            "action_duration_seconds",
            "How long actions took",
            metrics.action_seconds.clone(),
        );
        prefix.register("replicas", "Replicas by phase", metrics.replicas.clone());
        prefix.register(
            "pass_duration_seconds",
            "How long a pass of the control loop took, looking included",
            metrics.pass_seconds.clone(),
        );
        prefix.register(
            "looks_failed",
            "Looks at containerd that failed",
            metrics.failed_looks.clone(),
        );
        prefix.register(
            "plans_refused",
            "Plans that were refused",
            metrics.refused_plans.clone(),
        );
        prefix.register(
            "reports_dropped",
            "Reports that the session had no room for",
            metrics.reports_dropped.clone(),
        );
        metrics
    }

    pub(crate) fn done(&self, done: &Done) {
        let action = done.kind.as_str();
        let outcome = match done.outcome {
            Outcome::Done => "done",
            Outcome::Failed { .. } => "failed",
            Outcome::Unknown { .. } => "unknown",
        };
        self.actions
            .get_or_create(&ActionLabels { action, outcome })
            .inc();
        self.action_seconds
            .get_or_create(&ActionLabel { action })
            .observe(done.took.as_secs_f64());
    }

    pub(crate) fn pass(&self, took: Duration) {
        self.pass_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn look_failed(&self) {
        self.failed_looks.inc();
    }

    pub(crate) fn plan_refused(&self) {
        self.refused_plans.inc();
    }

    pub(crate) fn report_dropped(&self) {
        self.reports_dropped.inc();
    }

    /// `counts` holds every phase, so that one that emptied goes to zero.
    pub(crate) fn phases(&self, counts: impl IntoIterator<Item = (&'static str, i64)>) {
        for (phase, count) in counts {
            self.replicas
                .get_or_create(&PhaseLabel { phase })
                .set(count);
        }
    }
}
