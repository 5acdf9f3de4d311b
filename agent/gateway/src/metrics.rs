//! What `/metrics` says about requests.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use shared::ids::{EndpointName, ServedEntityId};

use crate::traffic::Outcome;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByEndpoint {
    endpoint: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByEntity {
    endpoint: String,
    entity: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    endpoint: String,
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKind {
    kind: UpstreamError,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: Turned,
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.as_str(), encoder)
    }
}

/// What went wrong between a gateway and a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the names are the label's values")]
pub(crate) enum UpstreamError {
    full,
    not_begun,
    lost,
}

/// Why a request never reached a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the names are the label's values")]
pub(crate) enum Turned {
    unauthenticated,
    no_route,
    unknown_endpoint,
    not_json,
    bad_body,
}

pub(crate) struct Metrics {
    /// stokehold_gateway_requests_total{endpoint,outcome}
    requests: Family<ByOutcome, Counter>,
    /// stokehold_gateway_request_seconds{endpoint}: from arrival to the end of the answer.
    seconds: Family<ByEndpoint, Histogram>,
    /// stokehold_gateway_turned_away_total{reason}
    turned_away: Family<ByReason, Counter>,
    /// stokehold_gateway_upstream_errors_total{kind}: each may have been retried.
    upstream_errors: Family<ByKind, Counter>,
    /// stokehold_gateway_peer_requests_total: requests of other gateways for replicas of this node.
    pub(crate) peer_requests: Counter,
    /// stokehold_gateway_in_flight{endpoint,entity}, stokehold_gateway_queue_depth{endpoint,entity}
    in_flight: Family<ByEntity, Gauge>,
    queue_depth: Family<ByEntity, Gauge>,
    /// stokehold_gateway_routes_revision
    pub(crate) routes_revision: Gauge,
    /// stokehold_gateway_routes_refused_total
    pub(crate) routes_refused: Counter,
    /// stokehold_gateway_reports_dropped_total
    pub(crate) reports_dropped: Counter,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.001, 2.0, 18))
            }),
            turned_away: Family::default(),
            upstream_errors: Family::default(),
            peer_requests: Counter::default(),
            in_flight: Family::default(),
            queue_depth: Family::default(),
            routes_revision: Gauge::default(),
            routes_refused: Counter::default(),
            reports_dropped: Counter::default(),
        };
        let registry = registry.sub_registry_with_prefix("stokehold_gateway");
        registry.register(
            "requests",
            "Requests by how they ended",
            metrics.requests.clone(),
        );
        registry.register(
            "request_seconds",
            "From a request's arrival to the end of its answer",
            metrics.seconds.clone(),
        );
        registry.register(
            "turned_away",
            "Requests that never reached a queue",
            metrics.turned_away.clone(),
        );
        registry.register(
            "upstream_errors",
            "Tries at a replica that gave no answer",
            metrics.upstream_errors.clone(),
        );
        registry.register(
            "peer_requests",
            "Requests of other gateways for replicas of this node",
            metrics.peer_requests.clone(),
        );
        registry.register(
            "in_flight",
            "Requests at replicas",
            metrics.in_flight.clone(),
        );
        registry.register(
            "queue_depth",
            "Requests that wait for a replica",
            metrics.queue_depth.clone(),
        );
        registry.register(
            "routes_revision",
            "Revision of the routes in use",
            metrics.routes_revision.clone(),
        );
        registry.register(
            "routes_refused",
            "Routes that were not taken over",
            metrics.routes_refused.clone(),
        );
        registry.register(
            "reports_dropped",
            "Reports that the scheduler could not be sent",
            metrics.reports_dropped.clone(),
        );
        metrics
    }

    pub(crate) fn ended(&self, endpoint: &EndpointName, outcome: Outcome, took: Duration) {
        let endpoint = endpoint.to_string();
        let by_endpoint = ByEndpoint {
            endpoint: endpoint.clone(),
        };
        self.seconds
            .get_or_create(&by_endpoint)
            .observe(took.as_secs_f64());
        self.requests
            .get_or_create(&ByOutcome { endpoint, outcome })
            .inc();
    }

    pub(crate) fn turned_away(&self, reason: Turned) {
        self.turned_away.get_or_create(&ByReason { reason }).inc();
    }

    pub(crate) fn upstream_error(&self, kind: UpstreamError) {
        self.upstream_errors.get_or_create(&ByKind { kind }).inc();
    }

    pub(crate) fn set_load(&self, id: &ServedEntityId, active: u32, queued: usize) {
        let labels = by_entity(id);
        self.in_flight.get_or_create(&labels).set(i64::from(active));
        let queued = i64::try_from(queued).unwrap_or(i64::MAX);
        self.queue_depth.get_or_create(&labels).set(queued);
    }

    /// An entity left the routes: its numbers no longer mean anything.
    pub(crate) fn forget(&self, id: &ServedEntityId) {
        let labels = by_entity(id);
        self.in_flight.remove(&labels);
        self.queue_depth.remove(&labels);
    }

    /// An endpoint left the routes.
    pub(crate) fn forget_endpoint(&self, endpoint: &EndpointName) {
        let endpoint = endpoint.to_string();
        for outcome in Outcome::ALL {
            self.requests.remove(&ByOutcome {
                endpoint: endpoint.clone(),
                outcome,
            });
        }
        self.seconds.remove(&ByEndpoint { endpoint });
    }
}

fn by_entity(id: &ServedEntityId) -> ByEntity {
    ByEntity {
        endpoint: id.endpoint.to_string(),
        entity: id.entity.to_string(),
    }
}
