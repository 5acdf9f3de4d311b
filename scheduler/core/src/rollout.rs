//! Roll-outs: a new config takes the traffic once every replica that it needs is ready, and not
//! before; a failed one changes nothing of what serves.
//!
//! ```text
//!   pending ── all ready ──> active (told as done once every gateway has its routes)
//!      ├── an entity's starts failed too often ──> failed, kept to be looked at
//!      └── deadline ──────────────────────────────^
//! ```

use std::sync::Arc;
use std::time::Duration;

use shared::ids::{EndpointName, EntityName};
use shared::spec::{DEFAULT_TARGET_CONCURRENCY, EndpointConfig, RolloutFailure, ServedEntity};
use shared::units::{Concurrency, MonoTime};

use crate::core::{Core, Pass};
use crate::endpoint::{CONFIRM_LIMIT, Entry};
use crate::event::Note;
use crate::events::endpoints as told;
use crate::set::{ReplicaSet, SetId};

/// A failure's message is cut to this, so that its record always fits the store.
pub(crate) const MAX_FAILURE_BYTES: usize = 500;

/// Stretches of demand that a roll-out is sized by: what is carried now, and a step that has just
/// come.
const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_secs(3);
/// Means are sums of fractions: a demand of exactly two replicas must not buy a third.
const ROUNDING: f64 = 1e-6;

/// What one pass finds of a roll-out.
enum Progress {
    Waiting,
    Done,
    Failed(RolloutFailure),
}

impl Core {
    pub(crate) fn advance_rollouts(&mut self, pass: &mut Pass<'_>) {
        let rolling: Vec<EndpointName> = self
            .endpoints
            .values()
            .filter(|entry| entry.rolling().is_some())
            .map(|entry| entry.record.name.clone())
            .collect();
        for name in rolling {
            self.set_needs(&name, pass.now);
            match self.progress(&name, pass.now) {
                Progress::Waiting => {}
                Progress::Done => self.switch(&name, pass),
                Progress::Failed(failure) => self.give_up(&name, failure, pass),
            }
        }
    }

    /// Clears the wait for gateways once all of them work by the new routes.
    pub(crate) fn confirm_switches(&mut self, now: MonoTime) {
        let taken = self.taken_by_all(now);
        for entry in self.endpoints.values_mut() {
            let Some(confirming) = entry.confirming else {
                continue;
            };
            let everywhere = confirming
                .revision
                .is_some_and(|serves_in| taken >= serves_in);
            if everywhere || now.saturating_since(confirming.since) > CONFIRM_LIMIT {
                entry.confirming = None;
            }
        }
    }

    /// Which sets an endpoint's configs want. Called whenever a config came, went or became active.
    pub(crate) fn assign_sets(&mut self, name: &EndpointName) {
        let Some(entry) = self.endpoints.get(name) else {
            return;
        };
        let id = &entry.record.id;
        for (set_id, set) in &mut self.sets {
            if set_id.endpoint == *id {
                set.active = None;
                set.pending = None;
                set.needed = 0;
                set.rollout_failures = 0;
            }
        }
        let active = entry.record.active.as_ref();
        for (set_id, entity) in sets_of(active, |entity| entry.active_set(entity)) {
            let set = self.sets.entry(set_id);
            let set = set.or_insert_with(|| ReplicaSet::new(name.clone()));
            set.active = Some(entity);
        }
        let pending = entry.rolling().map(|pending| &pending.config);
        for (set_id, entity) in sets_of(pending, |entity| entry.pending_set(entity)) {
            let set = self.sets.entry(set_id);
            let set = set.or_insert_with(|| ReplicaSet::new(name.clone()));
            set.pending = Some(entity);
        }
    }

    /// How many ready replicas each entity of the new config must have before it takes traffic: its
    /// floor, and its share of what the endpoint carries now.
    fn set_needs(&mut self, name: &EndpointName, now: MonoTime) {
        let Some(entry) = self.endpoints.get(name) else {
            return;
        };
        let Some(pending) = entry.rolling() else {
            return;
        };
        let (carried, measured) = self.carried(entry, now);
        for entity in &pending.config.entities {
            let share = pending.config.traffic.iter();
            let percent = share
                .filter(|share| share.entity == entity.name)
                .map(|share| share.percent)
                .sum::<u32>();
            let load = carried * f64::from(percent) / 100.0;
            let target = self.rollout_target(entry, entity);
            let Some(set) = entry
                .pending_set(&entity.name)
                .and_then(|id| self.sets.get_mut(&id))
            else {
                continue;
            };
            // What the last process waited for was made of measurements that this one does not have.
            if !measured && set.needed > 0 {
                continue;
            }
            // What serves already has shown that it starts; it may be at zero. What is new must
            // start once, whatever its floor.
            let least = u32::from(set.active.is_none());
            let floor = set.axes.floor(entity);
            let need = if set.active.is_some() && set.axes.desired() == 0 {
                floor
            } else {
                replicas_for(load, target)
                    .max(floor)
                    .max(least)
                    .min(entity.scaling.max_replicas.max(least))
            };
            // Never less than before: a lull would otherwise stop a replica that is being started.
            set.needed = set.needed.max(need);
        }
    }

    /// Requests at once that the endpoint carries: measured, or else what it is sized for; and whether
    /// all of it was measured.
    fn carried(&self, entry: &Entry, now: MonoTime) -> (f64, bool) {
        let entities = entry.record.active.iter().flat_map(|c| &c.entities);
        entities.fold((0.0, true), |(sum, all_measured), entity| {
            let history = entry.history.get(&entity.name);
            let measured = [LONG, SHORT]
                .into_iter()
                .filter_map(|over| history?.demand(over, now))
                .map(Concurrency::get)
                .reduce(f64::max);
            let sized = || {
                let set = entry.active_set(&entity.name);
                let set = set.and_then(|id| self.sets.get(&id));
                let replicas = set.map_or(0, ReplicaSet::desired);
                f64::from(replicas) * f64::from(self.rollout_target(entry, entity))
            };
            let load = measured.unwrap_or_else(sized);
            (sum + load, all_measured && measured.is_some())
        })
    }

    /// What a replica of an entity is thought to take while it is rolled out: what is fixed, what
    /// was learned of its build, of others like it, or else of what serves in its endpoint now, which
    /// it is to take the place of.
    fn rollout_target(&self, entry: &Entry, entity: &ServedEntity) -> u32 {
        let own = entry.pending_set(&entity.name);
        let own = own.or_else(|| entry.active_set(&entity.name));
        let own = own.and_then(|id| self.sets.get(&id)?.axes.target());
        let others = || {
            let serving = entry.active_sets().into_iter();
            serving
                .filter_map(|id| self.sets.get(&id)?.axes.target())
                .max()
        };
        let pinned = entity.scaling.pinned_target;
        pinned
            .or(own)
            .or_else(|| self.prior(&entry.record.id, entity))
            .or_else(others)
            .unwrap_or(DEFAULT_TARGET_CONCURRENCY)
            .max(1)
    }

    fn progress(&self, name: &EndpointName, now: MonoTime) -> Progress {
        let Some((entry, pending)) = self
            .endpoints
            .get(name)
            .and_then(|entry| Some((entry, entry.rolling()?)))
        else {
            return Progress::Waiting;
        };
        let sets = || {
            let sets = sets_of(Some(&pending.config), |entity| entry.pending_set(entity));
            sets.into_iter()
                .filter_map(|(id, entity)| Some((self.sets.get(&id)?, entity)))
        };
        if sets().all(|(set, _)| self.ready_members(set) >= set.needed) {
            return Progress::Done;
        }
        let limit = self.settings.max_start_failures;
        if let Some((set, entity)) =
            sets().find(|(set, _)| set.active.is_none() && set.rollout_failures >= limit)
        {
            let (node, why) = match &set.backoff.last {
                Some((node, why)) => (node.as_str(), why.as_str()),
                None => ("its node", "no reason given"),
            };
            return failed(
                &entity.name,
                format!("{limit} starts failed, the last on {node}: {why}"),
            );
        }
        let deadline: Duration = self.settings.deploy_deadline;
        if now.saturating_since(entry.rollout_since) > deadline {
            let late = sets().find(|(set, _)| self.ready_members(set) < set.needed);
            if let Some((set, entity)) = late {
                let seconds = deadline.as_secs();
                let waits = self.waits_for(set, set.needed, now);
                return failed(
                    &entity.name,
                    format!("not ready within {seconds} s: {waits}"),
                );
            }
        }
        Progress::Waiting
    }

    fn switch(&mut self, name: &EndpointName, pass: &mut Pass<'_>) {
        let now = pass.now;
        let Some(entry) = self.endpoints.get_mut(name) else {
            return;
        };
        let took = now.saturating_since(entry.rollout_since).as_secs();
        entry.switch(now);
        let version = entry.record.active.as_ref().map_or(0, |c| c.version);
        let entities: Vec<EntityName> = entry.active_generations.keys().cloned().collect();
        entry.history.retain(|entity, _| entities.contains(entity));
        let ids: Vec<SetId> = entities
            .iter()
            .filter_map(|e| entry.active_set(e))
            .collect();
        let sets = ids.iter().filter_map(|id| self.sets.get(id));
        let needed = sets.map(|set| set.needed).sum();
        pass.tell(told::rollout_done(name, version, needed, took));
        // Before what served is forgotten: the new begins with what the old has learned.
        let new = ids
            .into_iter()
            .filter_map(|id| {
                let set = self.sets.get(&id).filter(|set| set.active.is_none())?;
                let prior = self.prior(&id.endpoint, set.pending.as_ref()?);
                Some((id, set.needed, prior))
            })
            .collect::<Vec<_>>();
        self.assign_sets(name);
        for (id, needed, prior) in new {
            if let Some(set) = self.sets.get_mut(&id) {
                set.axes.guess_from(prior);
                // What the roll-out brought up is held like any need, until demand is known.
                set.begin(None, needed, &self.settings, now);
                set.stored.changed();
            }
        }
        self.unwritten.endpoints.insert(name.clone());
        let text = format!("config version {version} serves");
        pass.effects.notes.push(Note::info(text).endpoint(name));
    }

    fn give_up(&mut self, name: &EndpointName, failure: RolloutFailure, pass: &mut Pass<'_>) {
        let Some(entry) = self.endpoints.get_mut(name) else {
            return;
        };
        let text = format!(
            "config update failed at {}: {}",
            failure.entity, failure.message
        );
        if let Some(pending) = &mut entry.record.pending {
            let version = pending.config.version;
            pass.tell(told::rollout_failed(name, version, &failure));
            pending.failure = Some(failure);
        }
        self.assign_sets(name);
        self.unwritten.endpoints.insert(name.clone());
        pass.effects.notes.push(Note::warn(text).endpoint(name));
    }
}

/// `ceil(demand / target)`.
fn replicas_for(demand: f64, target: u32) -> u32 {
    let replicas = demand / f64::from(target.max(1));
    // `as` saturates, which is what an absurd demand deserves: the maximum binds.
    (replicas - ROUNDING).ceil().max(0.0) as u32
}

/// The sets of a config's entities.
fn sets_of(
    config: Option<&EndpointConfig>,
    id: impl Fn(&EntityName) -> Option<SetId>,
) -> Vec<(SetId, Arc<ServedEntity>)> {
    let entities = config.into_iter().flat_map(|config| &config.entities);
    entities
        .filter_map(|entity| Some((id(&entity.name)?, Arc::new(entity.clone()))))
        .collect()
}

fn failed(entity: &EntityName, message: String) -> Progress {
    Progress::Failed(RolloutFailure {
        entity: entity.clone(),
        message: cut(&message, MAX_FAILURE_BYTES),
    })
}

/// At most so many bytes of a text, whole characters.
pub(crate) fn cut(text: &str, bytes: usize) -> String {
    let end = (0..=bytes.min(text.len()))
        .rev()
        .find(|&end| text.is_char_boundary(end))
        .unwrap_or(0);
    text[..end].to_owned()
}
