//! The pass: compares all that is wanted with all that was observed, and moves the fleet one step.
//!
//! It takes no hint of what changed and may run at any time; repeated without news it does nothing.
//! Order matters only for speed: what one step frees the next may use, the rest waits a second.

use shared::api::events::EventKind;
use shared::ids::{ReplicaId, Role};
use shared::units::MonoTime;
use shared::wire::{Peer, close};

use crate::core::{Core, Pass};
use crate::endpoint::Ended;
use crate::event::Note;
use crate::events::Draft;
use crate::node::{Contact, Node};
use crate::records::{GatewayRecord, VERSION, endpoint_key, gateway_key, replica_key};
use crate::replica::{Change, Facts, Replica, Stage};
use crate::set::{PROVEN_AFTER, ReplicaSet};
use crate::store_op::Op;

impl Core {
    pub(crate) fn settle(&mut self, pass: &mut Pass<'_>) {
        self.judge_nodes(pass);
        self.acknowledge_drains(pass.now);
        self.advance_replicas(pass);
        self.advance_rollouts(pass);
        self.resize_sets(pass);
        self.forget_unwanted_sets();
        if self.publish_routes(pass.now) {
            pass.effects.routes = Some(self.routes.clone());
        }
        self.confirm_switches(pass.now);
        let plans = self.publish_plans(pass.now);
        pass.effects
            .plans
            .retain(|plan| plans.iter().all(|newer| newer.node != plan.node));
        pass.effects.plans.extend(plans);
        self.keep_pools(pass);
        self.remember(pass);
        let mut writes = self.take_writes();
        let rides = !writes.is_empty() || !pass.effects.writes.is_empty();
        writes.extend(self.take_learned(rides, pass.now));
        writes.extend(self.log.take_writes(rides, pass.now));
        pass.effects.writes.extend(writes);
    }

    /// Notices nodes that fell silent, came back or were revoked.
    fn judge_nodes(&mut self, pass: &mut Pass<'_>) {
        let lease = self.settings.lease;
        for (name, node) in &mut self.nodes {
            let revoked = self.registry.is_revoked(name);
            if !revoked && node.revoked {
                // The name was given out again.
                node.revoked = false;
            }
            if revoked && !node.revoked {
                node.revoked = true;
                for (up, role) in [
                    (node.agent_up, Role::Agent),
                    (node.gateway.up, Role::Gateway),
                ] {
                    if up {
                        let node = name.clone();
                        let reason = format!("node {name} was revoked");
                        let peer = Peer { role, node };
                        pass.effects.close.push((peer, close::REVOKED, reason));
                    }
                }
            }
            let lost = node.agent_contact(lease, pass.now) == Contact::Silent;
            let matters = node.reported || !node.replicas.is_empty();
            if lost != node.lost && matters {
                let seconds = lease.as_secs();
                let (note, draft) = if lost {
                    (
                        Note::warn(format!("node lost: silent for more than {seconds} s")),
                        Draft::warning(EventKind::NodeLost, format!("node {name} is lost"))
                            .because(format!(
                                "it said nothing for more than its lease of {seconds} s"
                            )),
                    )
                } else {
                    (
                        Note::info("node is back"),
                        Draft::normal(EventKind::NodeBack, format!("node {name} is back"))
                            .because("its agent reported again")
                            .counting(true),
                    )
                };
                pass.effects.notes.push(note.node(name));
                pass.tell(draft.node(name));
            }
            node.lost = lost;
        }
    }

    /// Notes for each draining replica when every gateway that may serve has taken the routes in
    /// which it drains.
    fn acknowledge_drains(&mut self, now: MonoTime) {
        let taken = self.taken_by_all(now);
        for replica in self.replicas.values_mut() {
            let Stage::Draining(drain) = &mut replica.stage else {
                continue;
            };
            let everywhere = drain.revision.is_some_and(|drains_in| taken >= drains_in);
            if drain.acked_at_report.is_none() && everywhere {
                let node = self.nodes.get(&replica.node);
                drain.acked_at_report = node.map(|node| node.gateway.reports);
            }
        }
    }

    fn advance_replicas(&mut self, pass: &mut Pass<'_>) {
        let ids: Vec<ReplicaId> = self.replicas.keys().cloned().collect();
        for id in ids {
            while let Some(replica) = self.replicas.get_mut(&id) {
                let Some(node) = self.nodes.get(&replica.node) else {
                    break;
                };
                let facts = facts(node, &self.settings, pass.now);
                let Some(change) = replica.advance(&facts, pass.now) else {
                    break;
                };
                self.apply_change(&id, change, pass);
            }
        }
        for set in self.sets.values_mut() {
            let proven = set.backoff.failures > 0
                && set
                    .members
                    .iter()
                    .filter_map(|id| self.replicas.get(id))
                    .any(|r| ready_for(r, pass.now).is_some_and(|it| it >= PROVEN_AFTER));
            if proven {
                set.backoff.proven();
            }
        }
    }

    /// The consequences of one replica's change beyond itself.
    pub(crate) fn apply_change(&mut self, id: &ReplicaId, change: Change, pass: &mut Pass<'_>) {
        let Some(replica) = self.replicas.get(id).cloned() else {
            return;
        };
        if let Some(draft) = self.draft_of(&replica, &change) {
            pass.tell(draft);
        }
        let set = self.sets.get_mut(&replica.set);
        let mut note = |note: Note| {
            let note = note
                .endpoint(&replica.endpoint)
                .replica(id)
                .node(&replica.node);
            pass.effects.notes.push(note);
        };
        self.unwritten.replicas.insert(id.clone());
        match change {
            Change::Found => {}
            Change::Ready { startup } => {
                note(Note::info("replica is ready"));
                if let Some(set) = set {
                    set.waking = false;
                    if let Some(startup) = startup {
                        set.startup.record(startup);
                        set.stored.changed();
                    }
                }
            }
            Change::Unready { why } => note(Note::warn(format!("replica is not ready: {why}"))),
            Change::Failed { why, gone } => {
                note(Note::warn(format!("replica failed: {why}")));
                if let Some(set) = set {
                    set.backoff.failed(&replica.node, &why, pass.now);
                    set.rollout_failures = set.rollout_failures.saturating_add(1);
                }
                self.remember_ended(&replica, true, why, pass.now);
                if gone {
                    self.remove_replica(id);
                }
            }
            Change::Lost => note(Note::warn("replica lost with its node")),
            Change::Returned => note(Note::info("replica came back with its node")),
            Change::Drained { late } => note(if late {
                Note::warn("replica stops at its drain deadline with requests left")
            } else {
                Note::info("replica drained")
            }),
            Change::Gone { why } => {
                note(Note::info(format!("replica is gone: {why}")));
                self.remember_ended(&replica, false, why, pass.now);
                self.remove_replica(id);
            }
        }
    }

    /// Kept by the endpoint, unless it is gone or another one has its name.
    fn remember_ended(&mut self, replica: &Replica, failed: bool, why: String, now: MonoTime) {
        let entry = self.endpoints.get_mut(&replica.endpoint);
        let Some(entry) = entry.filter(|entry| entry.record.id == replica.set.endpoint) else {
            return;
        };
        // One that failed and then stopped is told once, by its failure.
        if entry.ended.iter().any(|ended| ended.id == replica.id) {
            return;
        }
        entry.remember_ended(Ended {
            id: replica.id.clone(),
            entity: replica.set.entity.clone(),
            node: replica.node.clone(),
            failed,
            why,
            at: now,
        });
    }

    pub(crate) fn insert_replica(&mut self, replica: Replica, now: MonoTime) {
        let set = self.sets.entry(replica.set.clone());
        let set = set.or_insert_with(|| ReplicaSet::new(replica.endpoint.clone()));
        set.members.insert(replica.id.clone());
        let node = self.nodes.entry(replica.node.clone());
        let node = node.or_insert_with(|| Node::new(now));
        node.replicas.insert(replica.id.clone());
        self.replicas.insert(replica.id.clone(), replica);
    }

    fn remove_replica(&mut self, id: &ReplicaId) {
        self.unwritten.replicas.insert(id.clone());
        let Some(replica) = self.replicas.remove(id) else {
            return;
        };
        if let Some(set) = self.sets.get_mut(&replica.set) {
            set.members.remove(id);
        }
        if let Some(node) = self.nodes.get_mut(&replica.node) {
            node.replicas.remove(id);
        }
    }

    /// What differs from the store, as it is now: one operation a record.
    fn take_writes(&mut self) -> Vec<Op> {
        let unwritten = std::mem::take(&mut self.unwritten);
        let mut writes = Vec::new();
        for name in unwritten.endpoints {
            writes.push(match self.endpoints.get(&name) {
                Some(entry) => entry
                    .stored()
                    .put()
                    .expect("validation left room for what the core adds to an endpoint's record"),
                None => Op::Delete {
                    key: endpoint_key(&name),
                },
            });
        }
        for id in unwritten.replicas {
            let planned = self.replicas.get(&id).filter(|replica| replica.planned());
            writes.push(match planned {
                Some(replica) => replica
                    .record()
                    .put(&id)
                    .expect("placement tried this record"),
                None => Op::Delete {
                    key: replica_key(&id),
                },
            });
        }
        let forgotten = unwritten.forgotten.into_iter();
        writes.extend(forgotten.map(|key| Op::Delete { key }));
        for name in unwritten.gateways {
            let Some(node) = self.nodes.get(&name) else {
                let key = gateway_key(&name);
                writes.push(Op::Delete { key });
                continue;
            };
            let record = GatewayRecord {
                v: VERSION,
                peer_address: node.gateway.peer_address.clone(),
                client_address: node.gateway.client_address.clone(),
            };
            // An address too long for a record is none that a gateway could listen on.
            writes.extend(Op::put(gateway_key(&name), &record));
        }
        writes
    }
}

fn facts(node: &Node, settings: &crate::settings::Settings, now: MonoTime) -> Facts {
    Facts {
        agent: node.agent_contact(settings.lease, now),
        agent_heard: node.heard,
        gateway: node.gateway_contact(settings.lease, now),
        gateway_reports: node.gateway.reports,
        revoked: node.revoked,
        drain_deadline: settings.drain_deadline,
    }
}

/// How long a replica has been ready without a break.
fn ready_for(replica: &Replica, now: MonoTime) -> Option<std::time::Duration> {
    match replica.stage {
        Stage::Ready { since } => Some(now.saturating_since(since)),
        _ => None,
    }
}
