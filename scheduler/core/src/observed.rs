//! Takes events in: what was seen changes, what is wanted does not (but for a request that waits).
//!
//! Each function says whether something changed that a pass must look at now; what merely ages
//! (samples, traffic) waits for the next tick.

use std::collections::BTreeMap;

use apa::horizontal;
use shared::ids::{NodeName, Role, ServedEntityId};
use shared::report::{AgentReport, GatewayReport, Health, HoldState};
use shared::units::{Concurrency, MonoTime};
use shared::wire::{Peer, close};

use crate::core::{Core, Pass};
use crate::event::{Event, Note};
use crate::events::endpoints::scaled;
use crate::node::Node;
use crate::replica::{Probed, Seen};
use crate::set::policy;

impl Core {
    pub(crate) fn observe(&mut self, event: Event, pass: &mut Pass<'_>) -> bool {
        match event {
            Event::AgentUp { node } => self.agent_up(&node, pass),
            Event::AgentDown { node } => {
                self.node(&node, pass.now).agent_up = false;
                pass.effects
                    .notes
                    .push(Note::info("agent disconnected").node(&node));
                pass.drafts.extend(self.disconnected(&node, Role::Agent));
                true
            }
            Event::AgentReport { node, report } => self.agent_report(&node, report, pass),
            Event::GatewayUp {
                node,
                peer_address,
                client_address,
            } => self.gateway_up(&node, peer_address, client_address, pass),
            Event::GatewayDown { node } => {
                self.node(&node, pass.now).gateway.up = false;
                pass.effects
                    .notes
                    .push(Note::info("gateway disconnected").node(&node));
                pass.drafts.extend(self.disconnected(&node, Role::Gateway));
                true
            }
            Event::GatewayReport { node, report } => self.gateway_report(&node, report, pass.now),
            Event::Demand { id, queued } => self.demand(&id, queued, pass),
            Event::Tick => {
                self.sample_demand(pass.now);
                self.decide_sizes(pass);
                true
            }
        }
    }

    fn node(&mut self, name: &NodeName, now: MonoTime) -> &mut Node {
        self.nodes
            .entry(name.clone())
            .or_insert_with(|| Node::new(now))
    }

    fn agent_up(&mut self, name: &NodeName, pass: &mut Pass<'_>) -> bool {
        if self.refuse_revoked(name, Role::Agent, pass) {
            return false;
        }
        self.node(name, pass.now).agent_up = true;
        let notes = &mut pass.effects.notes;
        notes.push(Note::info("agent connected").node(name));
        pass.drafts.extend(self.connected(name, Role::Agent));
        // A session that comes back may have missed the last plan; the same one twice does no harm.
        pass.effects.plans.extend(self.plans.get(name).cloned());
        true
    }

    fn gateway_up(
        &mut self,
        name: &NodeName,
        peer_address: String,
        client_address: String,
        pass: &mut Pass<'_>,
    ) -> bool {
        if self.refuse_revoked(name, Role::Gateway, pass) {
            return false;
        }
        let gateway = &mut self.node(name, pass.now).gateway;
        gateway.up = true;
        gateway.acked = None;
        let known = (&gateway.peer_address, &gateway.client_address);
        let moved = known != (&peer_address, &client_address);
        gateway.peer_address = peer_address;
        gateway.client_address = client_address;
        if moved {
            self.unwritten.gateways.insert(name.clone());
        }
        let notes = &mut pass.effects.notes;
        notes.push(Note::info("gateway connected").node(name));
        pass.drafts.extend(self.connected(name, Role::Gateway));
        true
    }

    fn refuse_revoked(&mut self, name: &NodeName, role: Role, pass: &mut Pass<'_>) -> bool {
        let revoked = self.registry.is_revoked(name);
        if revoked {
            let node = name.clone();
            pass.effects.close.push((
                Peer { role, node },
                close::REVOKED,
                format!("node {name} was revoked"),
            ));
        }
        revoked
    }

    fn agent_report(&mut self, name: &NodeName, report: AgentReport, pass: &mut Pass<'_>) -> bool {
        let now = pass.now;
        pass.drafts.extend(self.fetches(name, &report));
        let node = self.node(name, now);
        let mut changed = !node.reported || node.lost || node.capacity != report.capacity;
        node.reported = true;
        node.heard = now;
        node.capacity = report.capacity;
        node.sample = report.sample;
        node.images.clear();
        node.image_troubles.clear();
        for image in report.images {
            match image.state {
                HoldState::Ready => drop(node.images.insert(image.reference)),
                HoldState::Failed { reason } => {
                    node.image_troubles.insert(image.reference, reason);
                }
                HoldState::Fetching { .. } => {}
            }
        }
        node.models = report
            .models
            .into_iter()
            .filter(|model| model.state == HoldState::Ready)
            .map(|model| model.manifest)
            .collect();
        let mut said: BTreeMap<_, _> = report
            .replicas
            .into_iter()
            .map(|status| (status.id.clone(), status))
            .collect();
        let here = node.replicas.clone();
        for id in here {
            let Some(replica) = self.replicas.get_mut(&id) else {
                continue;
            };
            let seen = said.remove(&replica.id).map(|status| Seen {
                phase: status.phase,
                reason: status.reason,
                entered: now - status.since,
                exit: status.exit,
                sample: status.sample,
            });
            let phase = |seen: &Option<Seen>| seen.as_ref().map(|seen| seen.phase);
            changed |= phase(&replica.seen) != phase(&seen);
            let before = phase(&replica.seen);
            replica.seen = seen;
            let replica = self.replicas.get(&id);
            let started = replica.and_then(|replica| self.started(replica, before));
            pass.drafts.extend(started);
        }
        changed
    }

    fn gateway_report(&mut self, name: &NodeName, report: GatewayReport, now: MonoTime) -> bool {
        let epoch = self.epoch;
        let node = self.node(name, now);
        let here = node.replicas.clone();
        let gateway = &mut node.gateway;
        let first = gateway.reports == 0;
        gateway.heard = now;
        gateway.reports += 1;
        let acked = report
            .routes
            .filter(|(of, _)| *of == epoch)
            .map(|(_, revision)| revision);
        let mut changed = first || gateway.acked != acked;
        gateway.acked = acked;
        gateway.demand = demand_of(&report);
        let mut said: BTreeMap<_, _> = report
            .replicas
            .into_iter()
            .map(|health| (health.id.clone(), health))
            .collect();
        for id in here {
            let Some(replica) = self.replicas.get_mut(&id) else {
                continue;
            };
            let (health, detail, in_flight) = match said.remove(&replica.id) {
                Some(said) => (Some(said.health), said.detail, said.in_flight),
                None => (None, String::new(), 0),
            };
            let before: Option<Health> = replica.probed.health;
            let same = before == health && !first;
            changed |= !same || replica.draining();
            replica.probed = Probed {
                health,
                detail,
                in_flight,
                since: if same { replica.probed.since } else { now },
            };
        }
        changed
    }

    /// A request waits where there is no replica: what brings an entity back from zero at once.
    fn demand(&mut self, id: &ServedEntityId, queued: u32, pass: &mut Pass<'_>) -> bool {
        let set = self
            .endpoints
            .get(&id.endpoint)
            .and_then(|entry| entry.active_set(&id.entity))
            .and_then(|set| self.sets.get_mut(&set));
        let Some((set, entity)) = set.and_then(|set| {
            let entity = set.active.clone()?;
            Some((set, entity))
        }) else {
            return false;
        };
        if set.desired(&self.settings) > 0 {
            return false;
        }
        let policy = policy(&entity, &self.settings);
        let (decision, axis) = horizontal::wake(&policy, set.axis.clone(), queued, pass.now);
        set.axis = axis;
        set.decision = Some((decision, pass.now));
        set.waking = true;
        *self.decided.entry(decision.bound_by.as_str()).or_default() += 1;
        pass.tell(scaled(&entity, 0, &decision).endpoint(&id.endpoint));
        pass.effects.notes.push(
            Note::info(format!(
                "{id} wakes from zero to {} replicas for {queued} waiting requests",
                decision.desired_replicas
            ))
            .endpoint(&id.endpoint),
        );
        true
    }
}

/// Active plus queued by entity. Numbers that are no load (a gateway's bug) count as none.
fn demand_of(report: &GatewayReport) -> BTreeMap<ServedEntityId, Concurrency> {
    let mut demand = BTreeMap::new();
    for traffic in &report.traffic {
        let load = Concurrency::new(traffic.active + traffic.queued).unwrap_or_default();
        let sum = demand
            .entry(traffic.id.clone())
            .or_insert(Concurrency::ZERO);
        *sum = *sum + load;
    }
    demand
}
