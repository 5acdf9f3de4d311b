//! Replica sets: the replicas of one build of a served entity, and how many of them there should be.
//!
//! A build is what makes a container (model, runtime, resources, environment). Served entities of
//! two config versions that agree in it share a set, so an update that only moves traffic or bounds
//! starts nothing. A set is named by the config version that first asked for it, its generation.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use apa::startup::StartupTime;
use apa::{Autoscaler, Policy};
use shared::ids::{EndpointId, EndpointName, EntityName, NodeName, ReplicaId};
use shared::spec::ServedEntity;
use shared::units::MonoTime;

use crate::axes::Axes;
use crate::events::blocked::Told;
use crate::learned::Stored;
use crate::settings::Settings;

/// The pause before a failed replica is replaced doubles from the first to the longest.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// A replica that has been ready this long proves that its set works: failures start from one again.
pub(crate) const PROVEN_AFTER: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SetId {
    pub endpoint: EndpointId,
    pub entity: EntityName,
    pub generation: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct ReplicaSet {
    pub endpoint: EndpointName,
    /// As the active config has it.
    pub active: Option<Arc<ServedEntity>>,
    /// As the config that is being rolled out has it.
    pub pending: Option<Arc<ServedEntity>>,
    /// Replicas that the roll-out waits for.
    pub needed: u32,
    pub axes: Axes,
    pub startup: StartupTime,
    /// What of this the store holds.
    pub stored: Stored,
    pub backoff: Backoff,
    /// Failures since the roll-out began.
    pub rollout_failures: u32,
    /// A request woke it from zero, and no replica is ready yet.
    pub waking: bool,
    /// Why the next replica cannot be placed.
    pub blocked: Option<Blocked>,
    /// What the log says of that.
    pub told_blocked: Option<Told>,
    pub members: BTreeSet<ReplicaId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blocked {
    pub reason: String,
    /// It waits until somebody changes something, and not only for room.
    pub for_good: bool,
}

impl Blocked {
    pub(crate) fn for_good(reason: String) -> Self {
        Self {
            reason,
            for_good: true,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Backoff {
    pub failures: u32,
    pub retry_at: Option<MonoTime>,
    /// Why the last replica failed, and where.
    pub last: Option<(NodeName, String)>,
}

impl ReplicaSet {
    pub(crate) fn new(endpoint: EndpointName) -> Self {
        Self {
            endpoint,
            active: None,
            pending: None,
            needed: 0,
            axes: Axes::default(),
            startup: StartupTime::default(),
            stored: Stored::default(),
            backoff: Backoff::default(),
            rollout_failures: 0,
            waking: false,
            blocked: None,
            told_blocked: None,
            members: BTreeSet::new(),
        }
    }

    /// The entity that its next replica is made for.
    pub(crate) fn entity(&self) -> Option<&Arc<ServedEntity>> {
        self.active.as_ref().or(self.pending.as_ref())
    }

    /// How many replicas there should be: what the axis decided, or what a roll-out waits for.
    pub(crate) fn desired(&self) -> u32 {
        let active = self.active.as_ref().map_or(0, |entity| {
            let (floor, max) = (self.axes.floor(entity), entity.scaling.max_replicas);
            self.axes.desired().clamp(floor, max.max(floor))
        });
        let pending = self.pending.as_ref().map_or(0, |_| self.needed);
        active.max(pending)
    }

    /// What its axes keep to; `None` where it does not serve.
    pub(crate) fn policy(&self, settings: &Settings) -> Option<Policy> {
        let entity = self.active.as_ref()?;
        Some(self.axes.policy(entity, self.startup.get(), settings))
    }

    /// Its axes begin, where it serves: `desired` replicas are there or coming.
    pub(crate) fn begin(
        &mut self,
        kept: Option<Autoscaler>,
        desired: u32,
        settings: &Settings,
        now: MonoTime,
    ) {
        match self.policy(settings) {
            Some(policy) => self.axes.begin(&policy, kept, desired, now),
            None => self.axes.expect(desired),
        }
    }
}

impl Backoff {
    pub(crate) fn failed(&mut self, node: &NodeName, why: &str, now: MonoTime) {
        self.failures = self.failures.saturating_add(1);
        let doublings = (self.failures - 1).min(6);
        let pause = (FIRST_BACKOFF * 2_u32.pow(doublings)).min(LONGEST_BACKOFF);
        self.retry_at = Some(now + pause);
        self.last = Some((node.clone(), why.to_owned()));
    }

    pub(crate) fn waits(&self, now: MonoTime) -> bool {
        self.retry_at.is_some_and(|retry_at| now < retry_at)
    }

    pub(crate) fn proven(&mut self) {
        *self = Self::default();
    }
}

/// Whether two entities of one name make the same container.
pub(crate) fn same_build(one: &ServedEntity, other: &ServedEntity) -> bool {
    one.model == other.model
        && one.model_version == other.model_version
        && one.manifest == other.manifest
        && one.runtime == other.runtime
        && one.resources == other.resources
        && one.environment == other.environment
        && one.workload_type == other.workload_type
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_after_failures_doubles_up_to_a_minute_and_starts_again_once_proven() {
        let mut backoff = Backoff::default();
        let node = NodeName::parse("n1").expect("valid");
        let mut pauses = Vec::new();
        for _ in 0..9 {
            backoff.failed(&node, "broken", MonoTime::ZERO);
            pauses.push(backoff.retry_at.expect("set").as_millis() / 1000);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        backoff.proven();
        assert!(!backoff.waits(MonoTime::ZERO));
    }
}
