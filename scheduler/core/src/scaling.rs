//! Runs the axes of every set that serves, once a second, and does what they order.

use std::collections::BTreeMap;

use apa::{ClassTarget, Orders};
use shared::ids::{EndpointId, NodeName, ReplicaId};
use shared::spec::ServedEntity;

use crate::core::{Core, Pass};
use crate::event::Note;
use crate::events::endpoints::scaled;
use crate::history::{Moment, Point, Room};
use crate::measured::{self, Member};
use crate::node::Node;
use crate::replica::Replica;
use crate::set::ReplicaSet;
use crate::settings::Settings;
use crate::traffic;

/// How often each rule of each axis decided.
pub(crate) type Decided = BTreeMap<&'static str, BTreeMap<String, u64>>;

impl Core {
    pub(crate) fn run_axes(&mut self, pass: &mut Pass<'_>) {
        let now = pass.now;
        let since_start = now.saturating_since(self.started);
        let room = Room::among(self.served_entities());
        let Core {
            nodes,
            endpoints,
            sets,
            replicas,
            settings,
            decided,
            ..
        } = self;
        let sums = traffic::sum(nodes, settings.lease, since_start, now);
        let gpus_planned = measured::gpus_planned(replicas.values());
        for entry in endpoints.values_mut() {
            for id in entry.active_sets() {
                let Some(set) = sets.get_mut(&id) else {
                    continue;
                };
                let Some(policy) = set.policy(settings) else {
                    continue;
                };
                let fleet = Fleet {
                    nodes,
                    replicas,
                    gpus_planned: &gpus_planned,
                    settings,
                };
                let (members, starting) = fleet.members(set, pass);
                let sample = sums.as_ref().map(|sums| {
                    let traffic = sums.get(&(&entry.record.name, &id.entity)).copied();
                    let traffic = traffic.unwrap_or_default();
                    measured::sample(&traffic, starting, &members, &set.axes)
                });
                let before = Standing::of(set);
                let point = sample.as_ref().map(|sample| Point::of(sample, now));
                let Some(orders) = set.axes.second(&policy, sample, now) else {
                    continue;
                };
                set.axes
                    .choose_explorers(|class, now| measured::explorer(class, now, &members));
                let history = entry.history.entry(id.entity).or_default();
                if let Some(point) = point {
                    history.record(point.wanting(&orders), room);
                }
                history.decided(&orders, room, moment(pass));
                count(decided, &orders);
                before.compare(set, &orders, point.as_ref(), pass);
            }
        }
    }

    fn served_entities(&self) -> usize {
        let configs = self.endpoints.values();
        let configs = configs.filter_map(|entry| entry.record.active.as_ref());
        configs.map(|config| config.entities.len()).sum()
    }

    /// A request waits where there is no replica: what brings an entity back from zero at once.
    pub(crate) fn wake(
        &mut self,
        id: &shared::ids::ServedEntityId,
        queued: u32,
        pass: &mut Pass<'_>,
    ) -> bool {
        let room = Room::among(self.served_entities());
        let Some(entry) = self.endpoints.get_mut(&id.endpoint) else {
            return false;
        };
        let Some(set_id) = entry.active_set(&id.entity) else {
            return false;
        };
        let Some(set) = self.sets.get_mut(&set_id) else {
            return false;
        };
        let Some(policy) = set.policy(&self.settings) else {
            return false;
        };
        if set.desired() > 0 {
            return false;
        }
        let before = Standing::of(set);
        let Some(orders) = set.axes.wake(&policy, queued, pass.now) else {
            return false;
        };
        set.waking = true;
        let history = entry.history.entry(id.entity.clone()).or_default();
        history.decided(&orders, room, moment(pass));
        count(&mut self.decided, &orders);
        before.compare(set, &orders, None, pass);
        true
    }

    /// What others have learned that a new set may begin with: the same entity's last version, the
    /// same model under another name in its endpoint, or else what most entities of its runtime on
    /// its kind of machine take. What was pinned says nothing of what a replica can do.
    pub(crate) fn prior(&self, endpoint: &EndpointId, entity: &ServedEntity) -> Option<u32> {
        let learned = self.sets.iter().filter_map(|(id, set)| {
            let other = set.active.as_deref()?;
            let target = set.axes.learned()?;
            other
                .scaling
                .pinned_target
                .is_none()
                .then_some((id, other, target))
        });
        let learned: Vec<_> = learned.collect();
        let siblings = || learned.iter().filter(|(id, ..)| id.endpoint == *endpoint);
        let same_name = siblings().find(|(_, other, _)| other.name == entity.name);
        let same_model = || siblings().find(|(_, other, _)| other.model == entity.model);
        if let Some((.., target)) = same_name.or_else(same_model) {
            return Some(*target);
        }
        let alike = learned.iter().filter(|(_, other, _)| {
            other.runtime == entity.runtime && other.workload_type == entity.workload_type
        });
        let mut alike: Vec<u32> = alike.map(|(.., target)| *target).collect();
        alike.sort_unstable();
        alike.get(alike.len() / 2).copied()
    }
}

/// What samples are made of.
struct Fleet<'a> {
    nodes: &'a BTreeMap<NodeName, Node>,
    replicas: &'a BTreeMap<ReplicaId, Replica>,
    gpus_planned: &'a BTreeMap<&'a NodeName, u32>,
    settings: &'a Settings,
}

impl<'a> Fleet<'a> {
    /// A set's ready replicas, and how many are still to become so.
    fn members(&self, set: &ReplicaSet, pass: &Pass<'_>) -> (Vec<Member<'a>>, u32) {
        let mut members = Vec::new();
        let mut starting = 0_u32;
        for replica in set.members.iter().filter_map(|id| self.replicas.get(id)) {
            if !replica.serves() {
                starting += u32::from(replica.counts());
                continue;
            }
            let Some(node) = self.nodes.get(&replica.node) else {
                continue;
            };
            members.push(Member {
                replica,
                node,
                gpus_planned: self.gpus_planned.get(&replica.node).copied().unwrap_or(0),
                agent: node.agent_contact(self.settings.lease, pass.now),
            });
        }
        (members, starting)
    }
}

fn count(decided: &mut Decided, orders: &Orders) {
    let mut count = |axis: &'static str, rule: &str| {
        let rules = decided.entry(axis).or_default();
        match rules.get_mut(rule) {
            Some(made) => *made += 1,
            None => drop(rules.insert(rule.to_owned(), 1)),
        }
    };
    if let Some(decision) = &orders.horizontal {
        count("horizontal", &decision.explanation.rule);
    }
    for (_, decision) in &orders.vertical {
        count("vertical", &decision.explanation.rule);
    }
}

fn moment(pass: &Pass<'_>) -> Moment {
    Moment {
        now: pass.now,
        unix_ms: pass.unix_ms,
    }
}

/// How a set stood before a decision.
struct Standing {
    desired: u32,
    targets: Vec<ClassTarget>,
}

impl Standing {
    fn of(set: &ReplicaSet) -> Self {
        Self {
            desired: set.axes.desired(),
            targets: set.axes.targets().to_vec(),
        }
    }

    /// Tells of what is different now.
    fn compare(
        self,
        set: &mut ReplicaSet,
        orders: &Orders,
        measured: Option<&Point>,
        pass: &mut Pass<'_>,
    ) {
        let endpoint = set.endpoint.clone();
        let Some(entity) = set.active.clone() else {
            return;
        };
        if orders.desired_replicas != self.desired {
            let demand = measured.map(Point::demand);
            let draft = scaled(&entity, self.desired, orders, demand);
            pass.tell(draft.endpoint(&endpoint));
            let rule = orders.horizontal.as_ref();
            let rule = rule.map_or("", |decision| &*decision.explanation.rule);
            let text = format!(
                "{endpoint}/{} goes from {} to {} replicas ({rule})",
                entity.name, self.desired, orders.desired_replicas
            );
            pass.effects
                .notes
                .push(Note::info(text).endpoint(&endpoint));
        }
        if orders.targets != self.targets {
            set.stored.changed();
        } else if !orders.vertical.is_empty() && measured.is_some_and(Point::busy) {
            set.stored.refreshed();
        }
        for (class, decision) in &orders.vertical {
            if decision.before != decision.after {
                let text = format!(
                    "a replica of {endpoint}/{} on {class} takes {} requests at once, {} before ({})",
                    entity.name, decision.after, decision.before, decision.explanation.rule
                );
                pass.effects
                    .notes
                    .push(Note::info(text).endpoint(&endpoint));
            }
        }
    }
}
