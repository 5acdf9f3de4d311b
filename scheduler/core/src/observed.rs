//! Takes events in: what was seen changes, what is wanted does not (but for a request that waits).
//!
//! Each function says whether something changed that a pass must look at now; what merely ages
//! (samples, traffic) waits for the next tick.

use std::collections::BTreeMap;

use shared::ids::{NodeName, Role};
use shared::report::{AgentReport, GatewayReport, Health, HoldState};
use shared::units::MonoTime;
use shared::wire::{Peer, close};

use crate::core::{Core, Pass};
use crate::event::{Event, Note};
use crate::node::Node;
use crate::replica::{Probed, Seen};
use crate::traffic::{WHOLE_SECOND, by_entity, is_whole};

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
            Event::Demand { id, queued } => self.wake(&id, queued, pass),
            Event::Tick => {
                self.run_axes(pass);
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
        if first {
            gateway.whole = now;
        }
        if is_whole(&report, gateway.whole, now) {
            gateway.whole = now;
            gateway.measured = true;
            gateway.traffic = by_entity(&report);
        }
        let mut said: BTreeMap<_, _> = report
            .replicas
            .into_iter()
            .map(|health| (health.id.clone(), health))
            .collect();
        for id in here {
            let Some(replica) = self.replicas.get_mut(&id) else {
                continue;
            };
            let (health, detail, in_flight, load) = match said.remove(&replica.id) {
                Some(said) => (Some(said.health), said.detail, said.in_flight, said.load),
                None => (None, String::new(), 0, None),
            };
            let before_it = &mut replica.probed;
            let (load, loaded) = match load {
                Some(load) => (Some(load), now),
                // Between two whole seconds a report carries none.
                None if now.saturating_since(before_it.loaded) < WHOLE_SECOND => {
                    (before_it.load.take(), before_it.loaded)
                }
                None => (None, now),
            };
            let before: Option<Health> = replica.probed.health;
            let same = before == health && !first;
            changed |= !same || replica.draining();
            replica.probed = Probed {
                health,
                detail,
                in_flight,
                load,
                loaded,
                since: if same { replica.probed.since } else { now },
            };
        }
        changed
    }
}
