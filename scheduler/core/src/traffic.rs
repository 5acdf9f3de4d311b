//! What gateways say of served entities: one gateway's last second, and the sum over all that can
//! be believed.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use shared::ids::{EndpointName, EntityName, NodeName, ServedEntityId};
use shared::report::{EntityTraffic, GatewayReport};
use shared::units::MonoTime;

use crate::node::{Contact, Node};

/// Gateways report traffic each second, and replicas' health in between without it: what came with
/// the last whole second stands until this is over.
pub(crate) const WHOLE_SECOND: Duration = Duration::from_millis(1500);
/// A stretch is not thought to be shorter: a count over almost nothing is no rate.
const SHORTEST: f64 = 0.1;

/// One second of one served entity.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Traffic {
    pub active: f64,
    pub queued: f64,
    /// A second, as the next two.
    pub arrivals: f64,
    pub completions: f64,
    pub rejected: f64,
    pub p50_ms: Quantile,
    pub p95_ms: Quantile,
}

/// The mean of quantiles, each weighted by how many requests it is of: the closest to the quantile
/// of all that can be had of quantiles alone.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Quantile {
    weighted: f64,
    weight: f64,
}

impl Quantile {
    pub(crate) fn add(&mut self, value: Option<f64>, weight: f64) {
        if let Some(value) = value.filter(|value| value.is_finite() && *value >= 0.0)
            && weight > 0.0
        {
            self.weighted += value * weight;
            self.weight += weight;
        }
    }

    fn merge(&mut self, other: Quantile) {
        self.weighted += other.weighted;
        self.weight += other.weight;
    }

    pub(crate) fn get(self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.weighted / self.weight)
    }
}

impl Traffic {
    fn of(report: &EntityTraffic) -> Self {
        let rate = |count: u64| rate(count, report.over);
        let completions = rate(report.completions);
        let mut traffic = Self {
            active: gauge(report.active),
            queued: gauge(report.queued),
            arrivals: rate(report.arrivals),
            completions,
            rejected: rate(report.rejected),
            ..Self::default()
        };
        traffic.p50_ms.add(report.p50_ms, completions);
        traffic.p95_ms.add(report.p95_ms, completions);
        traffic
    }

    fn add(&mut self, other: &Traffic) {
        self.active += other.active;
        self.queued += other.queued;
        self.arrivals += other.arrivals;
        self.completions += other.completions;
        self.rejected += other.rejected;
        self.p50_ms.merge(other.p50_ms);
        self.p95_ms.merge(other.p95_ms);
    }
}

/// A number that is no load (a gateway's bug) counts as none.
pub(crate) fn gauge(value: f64) -> f64 {
    if value.is_finite() {
        value.max(0.0)
    } else {
        0.0
    }
}

/// A count over a stretch as a rate a second.
pub(crate) fn rate(count: u64, over: Duration) -> f64 {
    count as f64 / over.as_secs_f64().max(SHORTEST)
}

/// A gateway's traffic by entity; one that is absent had none.
pub(crate) fn by_entity(report: &GatewayReport) -> BTreeMap<ServedEntityId, Traffic> {
    let mut traffic: BTreeMap<ServedEntityId, Traffic> = BTreeMap::new();
    for entity in &report.traffic {
        let sum = traffic.entry(entity.id.clone()).or_default();
        sum.add(&Traffic::of(entity));
    }
    traffic
}

/// Whether a report is of a whole second, rather than one that a change called for in between.
pub(crate) fn is_whole(report: &GatewayReport, last_whole: MonoTime, now: MonoTime) -> bool {
    let measured = report.replicas.iter().any(|replica| replica.load.is_some());
    let due = now.saturating_since(last_whole) >= WHOLE_SECOND;
    !report.traffic.is_empty() || measured || due
}

/// The sum over all gateways, by endpoint and entity.
pub(crate) type Sums<'a> = HashMap<(&'a EndpointName, &'a EntityName), Traffic>;

/// The sum over all gateways that can be believed. One that missed a report counts as before until
/// its lease passes. `None`: nothing is known of this second, which is not the same as no traffic.
///
/// `since_start` is how long the scheduler has run: until a lease has passed, gateways that it knows
/// from its store may simply not be back yet, and what the others see is only a part.
pub(crate) fn sum<'a>(
    nodes: &'a BTreeMap<NodeName, Node>,
    lease: Duration,
    since_start: Duration,
    now: MonoTime,
) -> Option<Sums<'a>> {
    let mut believed = 0;
    let mut sums = Sums::new();
    for node in nodes.values() {
        match node.gateway_contact(lease, now) {
            Contact::Fresh if node.gateway.measured => {}
            Contact::Fresh | Contact::Awaited
                if since_start <= lease && node.gateway_may_serve(lease, now) =>
            {
                return None;
            }
            Contact::Fresh | Contact::Awaited | Contact::Silent => continue,
        }
        believed += 1;
        // Gateways name the entities that have traffic: few of all.
        for (id, traffic) in &node.gateway.traffic {
            let sum = sums.entry((&id.endpoint, &id.entity)).or_default();
            sum.add(traffic);
        }
    }
    (believed > 0).then_some(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(over_ms: u64, count: u64, p95_ms: f64) -> EntityTraffic {
        EntityTraffic {
            id: ServedEntityId {
                endpoint: EndpointName::parse("e").expect("valid"),
                entity: EntityName::parse("e-1").expect("valid"),
            },
            over: Duration::from_millis(over_ms),
            arrivals: count,
            completions: count,
            rejected: 0,
            failed: 0,
            active: 2.0,
            queued: 1.0,
            p50_ms: None,
            p95_ms: Some(p95_ms),
            p99_ms: None,
        }
    }

    #[test]
    fn counts_become_rates_and_quantiles_are_weighted_by_what_they_are_of() {
        let of_both = GatewayReport {
            traffic: vec![report(2000, 60, 10.0), report(1000, 10, 50.0)],
            ..GatewayReport::default()
        };
        let traffic = by_entity(&of_both);
        let sum = traffic.values().next().expect("one entity");
        assert_eq!((sum.active, sum.queued), (4.0, 2.0));
        assert_eq!((sum.arrivals, sum.completions), (40.0, 40.0));
        assert_eq!(sum.p95_ms.get(), Some(20.0), "30 of 10 ms, 10 of 50 ms");
        assert_eq!(sum.p50_ms.get(), None);
    }

    #[test]
    fn what_no_load_can_be_counts_as_none() {
        let broken = EntityTraffic {
            active: f64::NAN,
            queued: -3.0,
            p95_ms: Some(f64::INFINITY),
            ..report(0, 1, 0.0)
        };
        let traffic = Traffic::of(&broken);
        assert_eq!((traffic.active, traffic.queued), (0.0, 0.0));
        assert_eq!(traffic.arrivals, 10.0, "over no less than a tenth");
        assert_eq!(traffic.p95_ms.get(), None);
    }

    #[test]
    fn a_report_without_traffic_is_of_a_second_only_when_one_was_due() {
        let at = MonoTime::from_millis;
        let empty = GatewayReport::default();
        assert!(!is_whole(&empty, at(1000), at(1300)));
        assert!(is_whole(&empty, at(1000), at(2500)));
        let busy = GatewayReport {
            traffic: vec![report(1000, 1, 1.0)],
            ..GatewayReport::default()
        };
        assert!(is_whole(&busy, at(1000), at(1300)));
    }
}
