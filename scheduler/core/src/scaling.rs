//! Feeds the horizontal axis: demand each second, a decision each five.

use std::collections::BTreeMap;
use std::time::Duration;

use apa::window::{LONG, SHORT};
use apa::{Observation, horizontal};
use shared::ids::{EndpointName, EntityName};
use shared::units::{Concurrency, MonoTime};

use crate::core::{Core, Pass};
use crate::endpoint::Entry;
use crate::event::Note;
use crate::events::endpoints::scaled;
use crate::node::Contact;
use crate::set::policy;

/// DESIGN: the horizontal axis decides every 5 s.
pub(crate) const DECISION_PERIOD: Duration = Duration::from_secs(5);

impl Core {
    /// One sample of each entity's demand: the sum over all gateways that can be believed. A gateway
    /// that missed a report counts as before until its lease passes; with none there is no sample.
    pub(crate) fn sample_demand(&mut self, now: MonoTime) {
        let lease = self.settings.lease;
        let believed: Vec<_> = self
            .nodes
            .values()
            .filter(|node| node.gateway_contact(lease, now) == Contact::Fresh)
            .map(|node| &node.gateway)
            .collect();
        if believed.is_empty() {
            return;
        }
        // Gateways name the entities that have traffic: few of all.
        let mut sums: BTreeMap<(&EndpointName, &EntityName), Concurrency> = BTreeMap::new();
        for (id, load) in believed.iter().flat_map(|gateway| &gateway.demand) {
            let sum = sums.entry((&id.endpoint, &id.entity)).or_default();
            *sum = *sum + *load;
        }
        for entry in self.endpoints.values_mut() {
            let Some(config) = &entry.record.active else {
                continue;
            };
            for entity in &config.entities {
                let sum = sums.get(&(&entry.record.name, &entity.name));
                let window = entry.demand.entry(entity.name.clone()).or_default();
                window.record(sum.copied().unwrap_or_default(), now);
            }
        }
    }

    pub(crate) fn decide_sizes(&mut self, pass: &mut Pass<'_>) {
        if pass.now < self.next_decision {
            return;
        }
        self.next_decision = pass.now + DECISION_PERIOD;
        for entry in self.endpoints.values() {
            let Some(config) = &entry.record.active else {
                continue;
            };
            for entity in &config.entities {
                let set = entry.active_set(&entity.name);
                let Some(set) = set.and_then(|id| self.sets.get_mut(&id)) else {
                    continue;
                };
                let policy = policy(entity, &self.settings);
                let observation = observation(entry, &entity.name, set.startup.get(), pass.now);
                let before = set.axis.desired();
                let (decision, axis) =
                    horizontal::horizontal(&policy, set.axis.clone(), observation, pass.now);
                set.axis = axis;
                set.decision = Some((decision, pass.now));
                *self.decided.entry(decision.bound_by.as_str()).or_default() += 1;
                if decision.desired_replicas != before {
                    pass.tell(scaled(entity, before, &decision).endpoint(&entry.record.name));
                    let text = format!(
                        "{}/{} goes from {before} to {} replicas ({})",
                        entry.record.name,
                        entity.name,
                        decision.desired_replicas,
                        decision.bound_by.as_str()
                    );
                    let note = Note::info(text).endpoint(&entry.record.name);
                    pass.effects.notes.push(note);
                }
            }
        }
    }
}

/// What is known of an entity's demand now.
pub(crate) fn observation(
    entry: &Entry,
    entity: &EntityName,
    startup: Option<Duration>,
    now: MonoTime,
) -> Observation {
    let window = entry.demand.get(entity);
    Observation {
        demand_long: window.and_then(|window| window.mean(LONG, now)),
        demand_short: window.and_then(|window| window.mean(SHORT, now)),
        startup,
    }
}
