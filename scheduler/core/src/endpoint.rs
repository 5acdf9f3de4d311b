//! One endpoint: its record, and what is remembered of a roll-out beside it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::history::History;
use shared::ids::{EntityName, NodeName, ReplicaId, Revision};
use shared::spec::{Endpoint, EndpointConfig, PendingConfig};
use shared::units::MonoTime;

use crate::records::{EndpointRecord, Generations, VERSION};
use crate::set::{SetId, same_build};

/// Ended replicas kept for `describe` and logs.
const ENDED_KEPT: usize = 20;
/// A roll-out is told to be done once every gateway works by its routes, or after this: a gateway
/// that hangs must not hold up whoever waits.
pub(crate) const CONFIRM_LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub record: Endpoint,
    pub active_generations: Generations,
    pub pending_generations: Generations,
    /// When the roll-out under way began, or the scheduler started.
    pub rollout_since: MonoTime,
    pub confirming: Option<Confirming>,
    pub history: BTreeMap<EntityName, History>,
    /// Newest last.
    pub ended: VecDeque<Ended>,
}

/// A config that has become active, and is not in every gateway's routes yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Confirming {
    pub since: MonoTime,
    /// `None` until the routes are published.
    pub revision: Option<Revision>,
}

/// A replica that is no more.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub id: ReplicaId,
    pub entity: EntityName,
    pub node: NodeName,
    pub failed: bool,
    pub why: String,
    pub at: MonoTime,
}

impl Entry {
    pub(crate) fn new(record: Endpoint, now: MonoTime) -> Self {
        Self {
            record,
            active_generations: Generations::new(),
            pending_generations: Generations::new(),
            rollout_since: now,
            confirming: None,
            history: BTreeMap::new(),
            ended: VecDeque::new(),
        }
    }

    /// The config that is being rolled out; a failed one is not.
    pub(crate) fn rolling(&self) -> Option<&PendingConfig> {
        self.record
            .pending
            .as_ref()
            .filter(|pending| pending.failure.is_none())
    }

    /// Whether a config update is under way, in the words of the API.
    pub(crate) fn in_progress(&self) -> bool {
        self.rolling().is_some() || self.confirming.is_some()
    }

    pub(crate) fn active_set(&self, entity: &EntityName) -> Option<SetId> {
        self.set_id(&self.active_generations, entity)
    }

    /// The sets of the entities that serve.
    pub(crate) fn active_sets(&self) -> Vec<SetId> {
        let entities = self.active_generations.keys();
        entities.filter_map(|it| self.active_set(it)).collect()
    }

    pub(crate) fn pending_set(&self, entity: &EntityName) -> Option<SetId> {
        self.set_id(&self.pending_generations, entity)
    }

    /// Begins the roll-out of a config: entities whose build is the active one's share its sets.
    pub(crate) fn roll_out(&mut self, config: EndpointConfig, unix_ms: u64, now: MonoTime) {
        let active = self.record.active.as_ref();
        let generation = |entity: &shared::spec::ServedEntity| {
            let same = active
                .into_iter()
                .flat_map(|config| &config.entities)
                .any(|old| old.name == entity.name && same_build(old, entity));
            let kept = self.active_generations.get(&entity.name).filter(|_| same);
            kept.copied().unwrap_or(config.version)
        };
        self.pending_generations = config
            .entities
            .iter()
            .map(|entity| (entity.name.clone(), generation(entity)))
            .collect();
        self.record.last_config_version = config.version;
        self.record.updated_unix_ms = unix_ms;
        self.record.pending = Some(PendingConfig {
            config,
            started_unix_ms: unix_ms,
            failure: None,
        });
        self.rollout_since = now;
    }

    /// The rolled-out config becomes the active one.
    pub(crate) fn switch(&mut self, now: MonoTime) {
        if let Some(pending) = self.record.pending.take() {
            self.record.active = Some(pending.config);
            self.active_generations = std::mem::take(&mut self.pending_generations);
            self.confirming = Some(Confirming {
                since: now,
                revision: None,
            });
        }
    }

    pub(crate) fn remember_ended(&mut self, ended: Ended) {
        while self.ended.len() >= ENDED_KEPT {
            self.ended.pop_front();
        }
        self.ended.push_back(ended);
    }

    pub(crate) fn stored(&self) -> EndpointRecord {
        EndpointRecord {
            v: VERSION,
            endpoint: self.record.clone(),
            active_generations: self.active_generations.clone(),
            pending_generations: self.pending_generations.clone(),
        }
    }

    fn set_id(&self, generations: &Generations, entity: &EntityName) -> Option<SetId> {
        Some(SetId {
            endpoint: self.record.id.clone(),
            entity: entity.clone(),
            generation: *generations.get(entity)?,
        })
    }
}
