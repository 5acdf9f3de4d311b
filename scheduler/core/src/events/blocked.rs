//! When it is told that a replica cannot be placed: once as it begins, then as the reason changes,
//! and not more often than each minute: what is free where changes with every replica elsewhere.

use std::time::Duration;

use shared::api::events::EventKind;
use shared::units::MonoTime;

use super::endpoints::no_room;
use crate::core::{Core, Pass};
use crate::node::Contact;
use crate::set::SetId;

const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// The reason that was told last, and when.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    reason: String,
    at: MonoTime,
}

impl Core {
    /// `missing`: replicas that the set lacked before it was tried to place some.
    pub(crate) fn tell_blocked(&mut self, id: &SetId, missing: u32, pass: &mut Pass<'_>) {
        // After a restart nodes report one by one; what is missing then says nothing.
        let lease = self.settings.lease;
        let awaited = self.nodes.values().any(|node| {
            node.takes_part() && node.agent_contact(lease, pass.now) == Contact::Awaited
        });
        let Some(set) = self.sets.get_mut(id) else {
            return;
        };
        let Some(reason) = set.blocked.as_ref().map(|blocked| &blocked.reason) else {
            if missing == 0 || !set.backoff.waits(pass.now) {
                set.told_blocked = None;
            }
            return;
        };
        let due = set.told_blocked.as_ref().is_none_or(|told| {
            told.reason != *reason && pass.now.saturating_since(told.at) >= AGAIN_AFTER
        });
        if due && !awaited {
            pass.tell(no_room(&set.endpoint, &id.entity, reason));
            set.told_blocked = Some(Told {
                reason: reason.clone(),
                at: pass.now,
            });
        }
    }

    /// What was told before a restart is not told again.
    pub(crate) fn resume_told(&mut self, now: MonoTime) {
        for (id, set) in &mut self.sets {
            let mut events = self.log.of_endpoint(&set.endpoint).filter(|event| {
                let kinds = [EventKind::NoRoom, EventKind::ReplicaPlaced];
                event.subject.entity.as_ref() == Some(&id.entity) && kinds.contains(&event.kind)
            });
            let last = events.next_back();
            let blocked = last.filter(|event| event.kind == EventKind::NoRoom);
            set.told_blocked = blocked.map(|event| Told {
                reason: event.cause.clone(),
                at: now,
            });
        }
    }
}
