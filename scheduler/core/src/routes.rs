//! Renders where requests may go. One table for all gateways; its revision grows only where its
//! contents change.
//!
//! An endpoint whose first roll-out is under way is in the table without replicas, so that requests
//! wait for it instead of being told that it does not exist.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use shared::ids::{EndpointId, EntityName, Revision};
use shared::routes::{EndpointRoute, EntityRoute, GatewayAddress, ReplicaRoute, Routes};
use shared::spec::{DEFAULT_TARGET_CONCURRENCY, EndpointConfig, ServedEntity};
use shared::units::MonoTime;

use crate::core::Core;
use crate::endpoint::Entry;
use crate::measured::class_of;
use crate::replica::{Replica, Stage};
use crate::set::SetId;

/// Draining replicas by endpoint.
type Draining<'a> = BTreeMap<&'a EndpointId, Vec<&'a Replica>>;

impl Core {
    /// Renders the routes; says whether they changed. What waits for their revision learns it.
    pub(crate) fn publish_routes(&mut self, now: MonoTime) -> bool {
        let mut routes = self.render_routes();
        routes.revision = self.routes.revision;
        let changed = *self.routes != routes || routes.revision == Revision(0);
        if changed {
            routes.revision = Revision(routes.revision.0 + 1);
            self.routes = Arc::new(routes);
        }
        let revision = self.routes.revision;
        for replica in self.replicas.values_mut() {
            if let Stage::Draining(drain) = &mut replica.stage
                && drain.revision.is_none()
            {
                drain.revision = Some(revision);
            }
        }
        for entry in self.endpoints.values_mut() {
            if let Some(confirming) = &mut entry.confirming
                && confirming.revision.is_none()
            {
                confirming.revision = Some(revision);
                confirming.since = now;
            }
        }
        if changed {
            self.mark_routed();
        }
        changed
    }

    /// The newest routes that every gateway which may serve works by; before the first of this epoch
    /// where one has taken none, and beyond all where there is no gateway.
    pub(crate) fn taken_by_all(&self, now: MonoTime) -> Revision {
        let lease = self.settings.lease;
        let serving = self.nodes.values();
        serving
            .filter(|node| node.gateway_may_serve(lease, now))
            .map(|node| node.gateway.acked.unwrap_or(Revision(0)))
            .min()
            .unwrap_or(Revision(u64::MAX))
    }

    fn mark_routed(&mut self) {
        let routed: Vec<_> = self
            .routes
            .endpoints
            .iter()
            .flat_map(|endpoint| &endpoint.entities)
            .flat_map(|entity| &entity.replicas)
            .map(|replica| replica.id.clone())
            .collect();
        for id in routed {
            if let Some(replica) = self.replicas.get_mut(&id) {
                replica.routed = true;
            }
        }
    }

    fn render_routes(&self) -> Routes {
        let mut draining = Draining::new();
        for replica in self.replicas.values().filter(|replica| replica.draining()) {
            let endpoint = draining.entry(&replica.set.endpoint).or_default();
            endpoint.push(replica);
        }
        let revoked: BTreeSet<_> = self
            .registry
            .nodes()
            .filter(|node| node.revoked)
            .map(|node| node.name.clone())
            .collect();
        let gateways = self
            .nodes
            .iter()
            .filter(|(name, node)| {
                !revoked.contains(*name) && !node.gateway.peer_address.is_empty()
            })
            .map(|(name, node)| GatewayAddress {
                node: name.clone(),
                address: node.gateway.peer_address.clone(),
            })
            .collect();
        Routes {
            cluster: self.settings.cluster.clone(),
            epoch: self.epoch,
            revision: Revision(0),
            endpoints: self
                .endpoints
                .values()
                .filter_map(|entry| self.endpoint_route(entry, &draining))
                .collect(),
            tokens: self.registry.grants(),
            gateways,
            revoked_nodes: revoked.into_iter().collect(),
        }
    }

    fn endpoint_route(&self, entry: &Entry, draining: &Draining<'_>) -> Option<EndpointRoute> {
        let record = &entry.record;
        let pending = record.pending.as_ref().map(|pending| &pending.config);
        let config = record.active.as_ref().or(pending)?;
        let mut leaving: BTreeMap<&EntityName, Vec<&Replica>> = BTreeMap::new();
        for replica in draining.get(&record.id).into_iter().flatten() {
            leaving
                .entry(&replica.set.entity)
                .or_default()
                .push(replica);
        }
        let mut entities: Vec<EntityRoute> = config
            .entities
            .iter()
            .map(|entity| {
                let leaving = leaving.remove(&entity.name).unwrap_or_default();
                self.entity_route(entry, config, entity, &leaving)
            })
            .collect();
        // What left with an old config: known until it is empty, picked by nobody.
        entities.extend(leaving.into_values().filter_map(|leaving| {
            let first = leaving.first()?;
            Some(EntityRoute {
                name: first.set.entity.clone(),
                percent: 0,
                target_concurrency: self.target_of_build(&first.set, &first.entity),
                invocations_path: first.template.invocations_path.clone(),
                replicas: leaving.iter().map(|replica| self.route(replica)).collect(),
            })
        }));
        Some(EndpointRoute {
            name: record.name.clone(),
            id: record.id.clone(),
            entities,
            limits: self.settings.limits,
        })
    }

    fn entity_route(
        &self,
        entry: &Entry,
        config: &EndpointConfig,
        entity: &ServedEntity,
        leaving: &[&Replica],
    ) -> EntityRoute {
        let id = entry.active_set(&entity.name);
        let set = id.as_ref().and_then(|id| self.sets.get(id));
        let mut serving: Vec<&Replica> = set
            .into_iter()
            .flat_map(|set| self.counted(set))
            .filter(|replica| replica.serves())
            .collect();
        serving.extend(leaving);
        serving.sort_by(|a, b| a.id.cmp(&b.id));
        let running = serving.first().map(|replica| replica.template.as_ref());
        let template = running.or_else(|| self.settings.templates.get(&entity.runtime));
        let shares = config.traffic.iter();
        EntityRoute {
            name: entity.name.clone(),
            percent: shares
                .filter(|share| share.entity == entity.name)
                .map(|share| share.percent)
                .sum(),
            target_concurrency: match &id {
                Some(id) => self.target_of_build(id, entity),
                None => target_before_axes(entity),
            },
            invocations_path: template.map_or_else(
                || "/invocations".to_owned(),
                |template| template.invocations_path.clone(),
            ),
            replicas: serving.iter().map(|replica| self.route(replica)).collect(),
        }
    }

    /// What most replicas of a build take at once.
    fn target_of_build(&self, id: &SetId, entity: &ServedEntity) -> u32 {
        let target = self.sets.get(id).and_then(|set| set.axes.target());
        target.unwrap_or_else(|| target_before_axes(entity)).max(1)
    }

    fn route(&self, replica: &Replica) -> ReplicaRoute {
        ReplicaRoute {
            id: replica.id.clone(),
            node: replica.node.clone(),
            draining: replica.draining(),
            target_concurrency: self.own_target(replica),
        }
    }

    /// What a replica takes at once, where it is not what most of its siblings do.
    fn own_target(&self, replica: &Replica) -> Option<u32> {
        let axes = &self.sets.get(&replica.set)?.axes;
        if axes.uniform() {
            return None;
        }
        let class = class_of(replica, self.nodes.get(&replica.node)?)?;
        // One that drains has nothing left to find out.
        let explores = axes.exploring(&class, &replica.id);
        let explores = explores.filter(|_| replica.serves());
        let target = explores.or_else(|| axes.target_of(Some(&class)));
        target.filter(|target| Some(*target) != axes.target())
    }
}

/// The axes of an entity begin when it serves.
fn target_before_axes(entity: &ServedEntity) -> u32 {
    let pinned = entity.scaling.pinned_target;
    pinned.unwrap_or(DEFAULT_TARGET_CONCURRENCY)
}
