//! What `stokehold describe` and `stokehold node list` show: replicas, decisions, nodes.

use std::time::Duration;

use shared::api::events::EventInfo;
use shared::api::{
    Blocked, DecisionInfo, EndpointDescription, NodeDescription, NodeSummary, ReplicaInfo,
};
use shared::ids::{EntityName, NodeName, ReplicaId};
use shared::report::{NodeCapacity, ReplicaPhase};
use shared::units::MonoTime;

use crate::axes::Axes;
use crate::core::Core;
use crate::endpoint::{Ended, Entry};
use crate::error::ApiError;
use crate::events::Filter;
use crate::history::{History, Point};
use crate::node::{Contact, Node};
use crate::replica::{Replica, Stage};
use crate::set::SetId;

/// For how long a problem with a node's identity is shown after it was last seen.
const PROBLEM_SHOWN: Duration = Duration::from_secs(120);
/// Agents report each second; a node that missed this much is shown as silent.
const SILENT_AFTER: Duration = Duration::from_secs(5);
/// Events that a description ends with.
const EVENTS_SHOWN: usize = 10;

impl Core {
    pub(crate) fn description(&self, entry: &Entry) -> EndpointDescription {
        let id = &entry.record.id;
        let living = self.replicas.values().filter(|r| r.set.endpoint == *id);
        let mut replicas: Vec<ReplicaInfo> = living.map(|r| self.replica_info(r)).collect();
        let ended = entry.ended.iter().rev();
        replicas.extend(
            ended
                .filter(|ended| !self.replicas.contains_key(&ended.id))
                .map(|ended| self.ended_info(entry, ended)),
        );
        let active = entry.record.active.iter().flat_map(|c| &c.entities);
        let decisions = active.filter_map(|entity| {
            let set = self.sets.get(&entry.active_set(&entity.name)?)?;
            let history = entry.history.get(&entity.name);
            let last = history.and_then(History::last_horizontal);
            let decided = last.map_or(self.started, |kept| kept.at());
            Some(DecisionInfo {
                entity: entity.name.clone(),
                desired_replicas: set.desired(),
                ready_replicas: self.ready_members(set),
                target_concurrency: set.axes.target()?,
                target_origin: Axes::origin(entity, set.axes.targets().first()),
                demand: history.and_then(History::last).map(Point::demand),
                bound_by: last.map_or_else(String::new, |kept| kept.rule().to_owned()),
                age_s: age(decided, self.now),
            })
        });
        EndpointDescription {
            endpoint: self.detailed(entry),
            replicas,
            decisions: decisions.collect(),
            events: self.last_events(Filter {
                endpoint: Some(entry.record.name.clone()),
                // Of this endpoint, not of one before it that had its name.
                from_unix_ms: entry.record.created_unix_ms,
                ..Filter::default()
            }),
            blocked: self.blocked(entry),
        }
    }

    pub(crate) fn node_description(&self, name: &NodeName) -> Result<NodeDescription, ApiError> {
        let summaries = self.node_summaries();
        let node = summaries.into_iter().find(|node| node.name == *name);
        let node = node.ok_or_else(|| {
            ApiError::not_found(format!("node {name} does not exist: it never joined"))
        })?;
        let here = self.replicas.values().filter(|it| it.node == *name);
        Ok(NodeDescription {
            node,
            replicas: here.map(|replica| self.replica_info(replica)).collect(),
            events: self.last_events(Filter {
                node: Some(name.clone()),
                ..Filter::default()
            }),
        })
    }

    fn last_events(&self, filter: Filter) -> Vec<EventInfo> {
        self.log.newest(&filter, EVENTS_SHOWN).events
    }

    /// Entities whose next replica finds no place: of the config that is rolled out, or else of the one
    /// that serves.
    fn blocked(&self, entry: &Entry) -> Vec<Blocked> {
        let blocked = |(entity, id): (&EntityName, Option<SetId>)| {
            let blocked = self.sets.get(&id?)?.blocked.as_ref()?;
            Some(Blocked {
                entity: entity.clone(),
                reason: blocked.reason.clone(),
                for_good: blocked.for_good,
            })
        };
        match (entry.rolling(), &entry.record.active) {
            (Some(pending), _) => {
                let names = pending.config.entities.iter().map(|entity| &entity.name);
                names
                    .map(|name| (name, entry.pending_set(name)))
                    .filter_map(blocked)
                    .collect()
            }
            (None, Some(active)) => {
                let names = active.entities.iter().map(|entity| &entity.name);
                names
                    .map(|name| (name, entry.active_set(name)))
                    .filter_map(blocked)
                    .collect()
            }
            (None, None) => Vec::new(),
        }
    }

    /// Whether a roll-out stands still until somebody changes something: then another config may take
    /// its place at once, which is how it is mended.
    pub(crate) fn stands_still(&self, entry: &Entry) -> bool {
        entry.rolling().is_some() && self.blocked(entry).iter().any(|blocked| blocked.for_good)
    }

    pub(crate) fn locations(
        &self,
        entry: &Entry,
        entity: Option<&str>,
    ) -> Result<Vec<(ReplicaId, NodeName)>, ApiError> {
        if let Some(entity) = entity {
            let pending = entry.record.pending.as_ref().map(|pending| &pending.config);
            let configs = entry.record.active.iter().chain(pending);
            let mut known = configs.flat_map(|config| &config.entities);
            let ended = entry.ended.iter().any(|it| it.entity.as_str() == entity);
            if !known.any(|known| known.name.as_str() == entity) && !ended {
                let shown: String = entity.chars().take(80).collect();
                return Err(ApiError::not_found(format!(
                    "endpoint {} has no served entity {shown:?}",
                    entry.record.name
                )));
            }
        }
        let wanted = |name: &str| entity.is_none_or(|entity| entity == name);
        let mut living: Vec<&Replica> = self
            .replicas
            .values()
            .filter(|r| r.set.endpoint == entry.record.id && wanted(r.set.entity.as_str()))
            .collect();
        living.sort_by_key(|replica| std::cmp::Reverse(replica.placed_at));
        let ended = entry.ended.iter().rev();
        let ended = ended
            .filter(|it| wanted(it.entity.as_str()) && !self.replicas.contains_key(&it.id))
            .map(|it| (it.id.clone(), it.node.clone()));
        let living = living.iter().map(|r| (r.id.clone(), r.node.clone()));
        Ok(living.chain(ended).collect())
    }

    pub(crate) fn node_summaries(&self) -> Vec<NodeSummary> {
        let mut summaries: Vec<NodeSummary> = self
            .nodes
            .iter()
            .map(|(name, node)| self.node_summary(name, node))
            .collect();
        let unseen = self.registry.nodes();
        for record in unseen.filter(|record| !self.nodes.contains_key(&record.name)) {
            let mut node = Node::new(self.now);
            node.revoked = record.revoked;
            summaries.push(self.node_summary(&record.name, &node));
        }
        summaries.sort_by(|a, b| a.name.cmp(&b.name));
        summaries
    }

    fn node_summary(&self, name: &NodeName, node: &Node) -> NodeSummary {
        let here = || node.replicas.iter().filter_map(|id| self.replicas.get(id));
        let silence = self.now.saturating_since(node.heard);
        let state = match node.agent_contact(self.settings.lease, self.now) {
            _ if node.revoked => "revoked",
            Contact::Awaited => "joined",
            Contact::Silent if node.reported => "lost",
            Contact::Silent => "joined",
            Contact::Fresh if node.agent_up && silence <= SILENT_AFTER => "ready",
            Contact::Fresh => "silent",
        };
        let known = node.reported.then_some(&node.capacity);
        let gpus = |capacity: &NodeCapacity| {
            let gpus = capacity.gpus.iter();
            gpus.map(|gpu| gpu.name.clone()).collect()
        };
        let address = Some(&node.gateway.client_address).filter(|it| !it.is_empty());
        NodeSummary {
            name: name.clone(),
            state: state.into(),
            agent_connected: node.agent_up,
            gateway_connected: node.gateway.up,
            last_report_age_s: node.reported.then(|| age(node.heard, self.now)),
            cpu_millis: known.map(|capacity| capacity.cpu_millis),
            cpu_millis_planned: here().fold(0, |sum: u32, replica| {
                sum.saturating_add(replica.entity.resources.cpu_millis)
            }),
            memory_bytes: known.map(|capacity| capacity.memory_bytes),
            memory_bytes_planned: here().map(|r| r.entity.resources.memory_bytes).sum(),
            cpu: node.sample.cpu,
            memory_used_bytes: node.sample.memory_used_bytes,
            gpus: known.map_or_else(Vec::new, gpus),
            gpus_absent: known.and_then(|capacity| capacity.gpus_absent.clone()),
            replicas: u32::try_from(here().count()).unwrap_or(u32::MAX),
            gateway: address.cloned(),
            problem: self.problem_of(node),
        }
    }

    /// Shown for a while after it was last seen: whoever causes it tries again every few seconds.
    fn problem_of(&self, node: &Node) -> Option<String> {
        let (at, problem) = node.problem.as_ref()?;
        let recent = self.now.saturating_since(*at) <= PROBLEM_SHOWN;
        recent.then(|| problem.clone())
    }

    fn replica_info(&self, replica: &Replica) -> ReplicaInfo {
        let sample = replica.seen.as_ref().and_then(|seen| seen.sample.as_ref());
        ReplicaInfo {
            id: replica.id.clone(),
            endpoint: replica.endpoint.clone(),
            entity: replica.set.entity.clone(),
            node: replica.node.clone(),
            state: state_name(replica).into(),
            reason: state_reason(replica),
            since_s: age(since(replica, self.now), self.now),
            in_flight: replica.probed.in_flight,
            cpu_cores: sample.and_then(|sample| sample.cpu_cores),
            memory_bytes: sample.and_then(|sample| sample.memory_bytes),
            memory_limit_bytes: sample.and_then(|sample| sample.memory_limit_bytes),
            ended: false,
        }
    }

    fn ended_info(&self, entry: &Entry, ended: &Ended) -> ReplicaInfo {
        let phase = if ended.failed {
            ReplicaPhase::Failed
        } else {
            ReplicaPhase::Stopped
        };
        ReplicaInfo {
            id: ended.id.clone(),
            endpoint: entry.record.name.clone(),
            entity: ended.entity.clone(),
            node: ended.node.clone(),
            state: phase.as_str().into(),
            reason: ended.why.clone(),
            since_s: age(ended.at, self.now),
            in_flight: 0,
            cpu_cores: None,
            memory_bytes: None,
            memory_limit_bytes: None,
            ended: true,
        }
    }
}

/// A replica's state in a word.
pub(crate) fn state_name(replica: &Replica) -> &'static str {
    match &replica.stage {
        Stage::Expected | Stage::Starting | Stage::Unready { .. } => phase_name(replica),
        Stage::Ready { .. } => "ready",
        Stage::Draining(_) => "draining",
        Stage::Stopping { .. } => ReplicaPhase::Stopping.as_str(),
        Stage::Lost { .. } => ReplicaPhase::Unknown.as_str(),
    }
}

/// Why it is in that state; empty where there is nothing to say.
pub(crate) fn state_reason(replica: &Replica) -> String {
    let said = || {
        let seen = replica.seen.as_ref();
        seen.map_or_else(String::new, |seen| seen.reason.clone())
    };
    match &replica.stage {
        Stage::Starting if phase_name(replica) == ReplicaPhase::Running.as_str() => {
            match (said(), replica.probed.detail.as_str()) {
                (said, "") if said.is_empty() => "no probe has succeeded yet".to_owned(),
                (said, detail) if said.is_empty() => {
                    format!("no probe has succeeded yet: {detail}")
                }
                (said, _) => said,
            }
        }
        Stage::Expected | Stage::Starting => said(),
        Stage::Ready { .. } => String::new(),
        Stage::Unready { why, .. } | Stage::Stopping { why, .. } => why.clone(),
        Stage::Draining(drain) => drain.why.clone(),
        Stage::Lost { .. } => "its node is lost".to_owned(),
    }
}

/// What its agent says of it.
fn phase_name(replica: &Replica) -> &'static str {
    let seen = replica.seen.as_ref();
    seen.map_or("waiting", |seen| seen.phase.as_str())
}

fn since(replica: &Replica, now: MonoTime) -> MonoTime {
    match &replica.stage {
        Stage::Expected | Stage::Starting => (replica.seen.as_ref())
            .map(|seen| seen.entered)
            .or(replica.placed_at)
            .unwrap_or(now),
        Stage::Ready { since }
        | Stage::Unready { since, .. }
        | Stage::Stopping { since, .. }
        | Stage::Lost { since } => *since,
        Stage::Draining(drain) => drain.since,
    }
}

fn age(at: MonoTime, now: MonoTime) -> f64 {
    now.saturating_since(at).as_secs_f64()
}
