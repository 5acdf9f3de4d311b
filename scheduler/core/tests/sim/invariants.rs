//! What must hold after every step of every scenario.

use std::collections::BTreeSet;

use scheduler_core::events::{Filter, MAX_EVENTS};
use shared::ids::ReplicaId;
use shared::report::ReplicaPhase;

use super::Sim;

impl Sim {
    pub(crate) fn check(&self) {
        self.check_routes();
        self.check_store();
        self.check_revoked();
        self.check_events();
        for node in self.nodes.values() {
            let cut = !self.may_cut && !node.cut.is_empty();
            assert!(!cut, "{}: stopped with requests in it", node.name);
        }
        for endpoint in &self.must_serve {
            assert!(self.serves(endpoint), "{endpoint} has no ready replica");
        }
    }

    fn check_routes(&self) {
        let known: BTreeSet<ReplicaId> = self.stored_replicas();
        for endpoint in &self.routes.endpoints {
            let percent: u32 = endpoint.entities.iter().map(|it| it.percent).sum();
            assert_eq!(percent, 100, "{}", endpoint.name);
            for replica in endpoint.entities.iter().flat_map(|it| &it.replicas) {
                assert!(
                    known.contains(&replica.id),
                    "routes name {}, which is not there",
                    replica.id
                );
            }
        }
        assert!(
            self.core.routes() == self.routes,
            "routes changed without being sent"
        );
    }

    /// What is planned is what a restart would find.
    fn check_store(&self) {
        let stored = self.stored_replicas();
        let mut planned = BTreeSet::new();
        for name in self.nodes.keys() {
            if let Some(plan) = self.core.plan_for(name) {
                let node = &self.nodes[name];
                if node.agent_connected {
                    assert_eq!(node.plan.as_ref(), Some(&plan), "a plan was not sent");
                }
                planned.extend(plan.replicas.into_iter().map(|it| it.id));
            }
        }
        let unplanned = planned.difference(&stored).next();
        assert_eq!(unplanned, None, "planned and not stored");
    }

    fn check_revoked(&self) {
        for node in self.core.registry.nodes().filter(|node| node.revoked) {
            assert_eq!(self.core.plan_for(&node.name), None);
            let routed = self
                .routes
                .endpoints
                .iter()
                .flat_map(|endpoint| &endpoint.entities)
                .flat_map(|entity| &entity.replicas)
                .any(|replica| replica.node == node.name);
            assert!(!routed, "routes name a replica on revoked {}", node.name);
        }
    }

    /// What is shown is bounded, in its order, and in the store.
    fn check_events(&self) {
        let events = self.core.events().newest(&Filter::default(), usize::MAX);
        let events = events.events;
        assert!(events.len() <= MAX_EVENTS);
        assert!(events.is_sorted_by_key(|event| event.seq));
        for event in events.iter().rev().take(3) {
            let key = format!("event/{:020}", event.seq);
            assert!(self.entries.contains_key(&key), "{key} is not stored");
        }
    }

    pub(crate) fn stored_replicas(&self) -> BTreeSet<ReplicaId> {
        let keys = self.entries.keys();
        keys.filter_map(|key| key.strip_prefix("replica/"))
            .map(|id| ReplicaId::parse(id).expect("valid"))
            .collect()
    }

    /// Whether every gateway's routes name a replica that really is healthy.
    fn serves(&self, endpoint: &str) -> bool {
        let gateways = self.nodes.values().filter(|node| node.running);
        let mut tables = gateways.filter_map(|node| node.routes.as_ref());
        tables.all(|routes| {
            let endpoints = routes.endpoints.iter();
            endpoints
                .filter(|it| it.name.as_str() == endpoint)
                .flat_map(|it| &it.entities)
                .filter(|entity| entity.percent > 0)
                .all(|entity| {
                    entity.replicas.iter().any(|replica| {
                        !replica.draining
                            && self.nodes.get(&replica.node).is_some_and(|node| {
                                node.containers.get(&replica.id).is_some_and(|it| {
                                    it.healthy && it.phase == ReplicaPhase::Running
                                })
                            })
                    })
                })
        })
    }
}
