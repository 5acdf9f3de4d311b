//! What is told of a replica's changes.

use shared::api::events::EventKind;
use shared::report::ReplicaPhase;

use super::Draft;
use crate::core::Core;
use crate::replica::{Change, Replica, Stage};

impl Core {
    /// What a change is told as, if at all: a restart's findings are none, and a replica that failed
    /// is not told to have stopped, too.
    pub(crate) fn draft_of(&self, replica: &Replica, change: &Change) -> Option<Draft> {
        use EventKind as Kind;
        let lease = self.settings.lease.as_secs();
        let node = &replica.node;
        let draft = match change {
            Change::Found => return None,
            Change::Ready { startup } => {
                let again = matches!(replica.stage, Stage::Ready { .. }) && startup.is_none();
                let (after, fails) = self.after_failures(replica);
                let (how, why) = match startup {
                    Some(startup) => (
                        after,
                        format!(", {:.1} s after it was placed", startup.as_secs_f64()),
                    ),
                    None if again => (" again", String::new()),
                    None => (after, String::new()),
                };
                Draft::normal(
                    Kind::ReplicaReady,
                    format!("replica on {node} is ready{how}"),
                )
                .because(format!("it runs and answers its probes{why}"))
                .counting(again || fails)
            }
            Change::Unready { why } => {
                let message = format!("replica on {node} is not ready any more");
                Draft::warning(Kind::ReplicaUnhealthy, message).because(why)
            }
            Change::Failed { why, .. } => {
                let exit = replica.seen.as_ref().and_then(|seen| seen.exit.as_ref());
                Draft::warning(Kind::ReplicaFailed, format!("replica on {node} failed"))
                    .because(why)
                    .exit(exit)
            }
            Change::Lost => {
                let message = format!("replica on {node} is lost with its node");
                Draft::warning(Kind::ReplicaLost, message)
                    .because(format!("the node said nothing for more than {lease} s"))
            }
            Change::Returned => {
                let message = format!("replica on {node} came back with its node");
                Draft::normal(Kind::ReplicaBack, message).because("its agent reports it again")
            }
            // It stops now; told when it is gone.
            Change::Drained { late: false } => return None,
            Change::Drained { late: true } => {
                let seconds = self.settings.drain_deadline.as_secs();
                let message = format!("replica on {node} stops with requests left in it");
                Draft::warning(Kind::ReplicaDraining, message)
                    .because(format!("it did not drain within {seconds} s"))
            }
            Change::Gone { .. } if self.failed_before(replica) => return None,
            Change::Gone { why } => {
                Draft::normal(Kind::ReplicaStopped, format!("replica on {node} stopped"))
                    .because(why)
            }
        };
        Some(draft.replica(replica))
    }

    /// Its container has begun to run, of which its agent tells for the first time.
    pub(crate) fn started(&self, replica: &Replica, before: Option<ReplicaPhase>) -> Option<Draft> {
        let runs = replica.seen.as_ref().map(|seen| seen.phase) == Some(ReplicaPhase::Running);
        let ran = matches!(
            before,
            Some(ReplicaPhase::Running | ReplicaPhase::Unknown | ReplicaPhase::Stopping)
        );
        // After a restart nobody knows whether this is news.
        let news = replica.placed_at.is_some() && !replica.was_ready;
        (runs && !ran && news && replica.stage == Stage::Starting).then(|| {
            let (after, fails) = self.after_failures(replica);
            let message = format!("replica's container on {} runs{after}", replica.node);
            Draft::normal(EventKind::ReplicaStarted, message)
                .because("its image and its model are on the node")
                .counting(fails)
                .replica(replica)
        })
    }

    pub(crate) fn placed(&self, replica: &Replica) -> Draft {
        let (after, fails) = self.after_failures(replica);
        let message = format!("replica placed on {}{after}", replica.node);
        let set = self.sets.get(&replica.set);
        let there = set.map_or(0, |set| self.counted(set).count());
        let wanted = set.map_or(0, |set| set.desired());
        Draft::normal(EventKind::ReplicaPlaced, message)
            .because(format!("{wanted} wanted, {there} there or coming"))
            .counting(fails)
            .replica(replica)
    }

    /// What a set does between failures is told as events that count.
    fn after_failures(&self, replica: &Replica) -> (&'static str, bool) {
        let set = self.sets.get(&replica.set);
        let fails = set.is_some_and(|set| set.backoff.failures > 0);
        (if fails { " after a failed one" } else { "" }, fails)
    }

    fn failed_before(&self, replica: &Replica) -> bool {
        let entry = self.endpoints.get(&replica.endpoint);
        let mut ended = entry.into_iter().flat_map(|entry| &entry.ended);
        ended.any(|ended| ended.id == replica.id && ended.failed)
    }
}
