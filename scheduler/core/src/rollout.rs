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

use apa::horizontal::replicas_for;
use shared::ids::{EndpointName, EntityName};
use shared::spec::{EndpointConfig, RolloutFailure, ServedEntity};
use shared::units::MonoTime;

use crate::core::{Core, Pass};
use crate::endpoint::{CONFIRM_LIMIT, Entry};
use crate::event::Note;
use crate::events::endpoints as told;
use crate::scaling::observation;
use crate::set::{ReplicaSet, SetId, policy};

/// A failure's message is cut to this, so that its record always fits the store.
pub(crate) const MAX_FAILURE_BYTES: usize = 500;

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
    pub(crate) fn assign_sets(&mut self, name: &EndpointName, now: MonoTime) {
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
            let set = set.or_insert_with(|| ReplicaSet::new(name.clone(), 0, now));
            set.active = Some(entity);
        }
        let pending = entry.rolling().map(|pending| &pending.config);
        for (set_id, entity) in sets_of(pending, |entity| entry.pending_set(entity)) {
            let set = self.sets.entry(set_id);
            let set = set.or_insert_with(|| ReplicaSet::new(name.clone(), 0, now));
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
        let carried = self.carried(entry, now);
        for entity in &pending.config.entities {
            let share = pending.config.traffic.iter();
            let percent = share
                .filter(|share| share.entity == entity.name)
                .map(|share| share.percent)
                .sum::<u32>();
            let policy = policy(entity, &self.settings);
            let load = carried * f64::from(percent) / 100.0;
            let Some(set) = entry
                .pending_set(&entity.name)
                .and_then(|id| self.sets.get_mut(&id))
            else {
                continue;
            };
            // What serves already has shown that it starts; it may be at zero. What is new must
            // start once, whatever its floor.
            let least = u32::from(set.active.is_none());
            let need = replicas_for(load, policy.target_concurrency)
                .max(policy.floor())
                .max(least)
                .min(policy.max_replicas.max(least));
            let need = if set.active.is_some() && set.axis.desired() == 0 {
                policy.floor()
            } else {
                need
            };
            // Never less than before: a lull would otherwise stop a replica that is being started.
            set.needed = set.needed.max(need);
        }
    }

    /// Requests at once that the endpoint carries: measured, or else what it is sized for.
    fn carried(&self, entry: &Entry, now: MonoTime) -> f64 {
        let entities = entry.record.active.iter().flat_map(|c| &c.entities);
        entities
            .map(|entity| {
                let seen = observation(entry, &entity.name, None, now);
                let measured = [seen.demand_long, seen.demand_short]
                    .into_iter()
                    .flatten()
                    .map(|demand| demand.get())
                    .reduce(f64::max);
                let sized = || {
                    let set = entry.active_set(&entity.name);
                    let set = set.and_then(|id| self.sets.get(&id));
                    let replicas = set.map_or(0, |set| set.desired(&self.settings));
                    f64::from(replicas) * f64::from(entity.scaling.target_concurrency)
                };
                measured.unwrap_or_else(sized)
            })
            .sum()
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
        entry.demand.retain(|entity, _| entities.contains(entity));
        let ids: Vec<SetId> = entities
            .iter()
            .filter_map(|e| entry.active_set(e))
            .collect();
        for id in &ids {
            let new = self.sets.get_mut(id).filter(|set| set.active.is_none());
            // What the roll-out brought up is held like any need, until demand is known.
            if let Some(set) = new {
                set.axis = apa::State::new(set.needed, now);
            }
        }
        let needed = ids.iter().filter_map(|id| self.sets.get(id));
        let needed = needed.map(|set| set.needed).sum();
        pass.tell(told::rollout_done(name, version, needed, took));
        self.assign_sets(name, now);
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
        self.assign_sets(name, pass.now);
        self.unwritten.endpoints.insert(name.clone());
        pass.effects.notes.push(Note::warn(text).endpoint(name));
    }
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
