//! The life of one replica, as the scheduler sees it: its stages, and what each means for plans,
//! routes and counts. What moves it from stage to stage is in `lifecycle`.
//!
//! ```text
//!   (restart) Expected ──┐              ┌─────────┐
//!                        ▼              ▼         │
//!   (placed)  Starting ──────────────> Ready ──> Unready
//!                │                      │          │  └─ too long: failed
//!                │ never in routes      ▼          ▼
//!                └──────> Stopping <── Draining <──┘         Lost: its node is silent; when the
//!                            │                               node is back, Starting again, or gone
//!                            ▼
//!                           gone
//! ```
//!
//! Ready = its agent says running and its node's gateway says healthy. Draining = out of every pick,
//! still in the plan. Stopping = out of the plan, still counted until its agent no longer has it.
//! Whether a replica is wanted is not decided here.

use std::sync::Arc;
use std::time::Duration;

use shared::ids::{EndpointName, NodeName, ReplicaId, Revision};
use shared::report::{Health, ReplicaExit, ReplicaLoad, ReplicaPhase, ReplicaSample};
use shared::runtime::RuntimeTemplate;
use shared::spec::ServedEntity;
use shared::units::MonoTime;

use crate::node::Contact;
use crate::records::{ReplicaRecord, VERSION};
use crate::set::SetId;

/// An unready replica that does not recover in this time is replaced.
pub(crate) const UNREADY_LIMIT: Duration = Duration::from_secs(60);
/// A gateway that has just come back knows no replica's health for a probe or two; what was ready
/// is believed to be so for this long.
pub(crate) const HEALTH_GRACE: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub(crate) struct Replica {
    pub id: ReplicaId,
    pub set: SetId,
    pub endpoint: EndpointName,
    pub node: NodeName,
    pub entity: Arc<ServedEntity>,
    pub template: Arc<RuntimeTemplate>,
    pub model_size_bytes: u64,
    /// `None` after a restart: the start-up time of this one will not be known.
    pub placed_at: Option<MonoTime>,
    pub was_ready: bool,
    /// It has been in routes, so requests may be on their way to it.
    pub routed: bool,
    pub stage: Stage,
    /// What its agent last said of it; `None` when it said nothing.
    pub seen: Option<Seen>,
    pub probed: Probed,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stage {
    Expected,
    Starting,
    Ready { since: MonoTime },
    Unready { since: MonoTime, why: String },
    Draining(Drain),
    Stopping { since: MonoTime, why: String },
    Lost { since: MonoTime },
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Drain {
    pub since: MonoTime,
    pub why: String,
    /// The routes in which it is draining; `None` until they are published.
    pub revision: Option<Revision>,
    /// How many reports its gateway had sent when every gateway had taken those routes: only a later
    /// one can say that no request is left.
    pub acked_at_report: Option<u64>,
}

/// What an agent says of a replica.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub phase: ReplicaPhase,
    pub reason: String,
    pub entered: MonoTime,
    pub exit: Option<ReplicaExit>,
    pub sample: Option<ReplicaSample>,
}

/// What the gateway of its node says of a replica.
#[derive(Clone, Debug)]
pub(crate) struct Probed {
    /// `None` when the gateway does not name it.
    pub health: Option<Health>,
    pub detail: String,
    pub in_flight: u32,
    /// Of the last whole second; `None` where nobody measured it.
    pub load: Option<ReplicaLoad>,
    pub loaded: MonoTime,
    /// When `health` last changed.
    pub since: MonoTime,
}

/// What is known of a replica's node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub agent: Contact,
    /// When the agent last reported.
    pub agent_heard: MonoTime,
    pub gateway: Contact,
    pub gateway_reports: u64,
    pub revoked: bool,
    pub drain_deadline: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    /// `startup`: from placed to ready, for the first time.
    Ready {
        startup: Option<Duration>,
    },
    Unready {
        why: String,
    },
    /// It ended by itself, or did not do its work. `gone`: its agent no longer has it.
    Failed {
        why: String,
        gone: bool,
    },
    Lost,
    /// Its lost node is back and still has it.
    Returned,
    Drained {
        late: bool,
    },
    /// It ended as it was meant to.
    Gone {
        why: String,
    },
    /// The scheduler's restart is over for this one: its node has said how it is.
    Found,
}

impl Replica {
    /// Takes a replica out of service. It stops only after its last request, where one may be on
    /// its way to it.
    pub(crate) fn drain(&mut self, why: &str, now: MonoTime) {
        let why = why.to_owned();
        self.stage = if self.routed {
            Stage::Draining(Drain {
                since: now,
                why,
                revision: None,
                acked_at_report: None,
            })
        } else {
            Stage::Stopping { since: now, why }
        };
    }

    /// Whether it counts as one of its set's: there, or coming.
    pub(crate) fn counts(&self) -> bool {
        match self.stage {
            Stage::Expected | Stage::Starting | Stage::Ready { .. } | Stage::Unready { .. } => true,
            Stage::Draining(_) | Stage::Stopping { .. } | Stage::Lost { .. } => false,
        }
    }

    /// Whether requests may be sent to it. After a restart, what was ready is believed to be so
    /// until its node says otherwise: new routes must not empty the gateways' old ones.
    pub(crate) fn serves(&self) -> bool {
        match self.stage {
            Stage::Expected => self.was_ready,
            Stage::Ready { .. } => true,
            Stage::Starting
            | Stage::Unready { .. }
            | Stage::Draining(_)
            | Stage::Stopping { .. }
            | Stage::Lost { .. } => false,
        }
    }

    pub(crate) fn draining(&self) -> bool {
        matches!(self.stage, Stage::Draining(_))
    }

    /// Whether its node's plan names it. A lost one stays: its node may be serving with it.
    pub(crate) fn planned(&self) -> bool {
        !matches!(self.stage, Stage::Stopping { .. })
    }

    pub(crate) fn record(&self) -> ReplicaRecord {
        ReplicaRecord {
            v: VERSION,
            endpoint: self.endpoint.clone(),
            endpoint_id: self.set.endpoint.clone(),
            generation: self.set.generation,
            node: self.node.clone(),
            entity: self.entity.clone(),
            template: self.template.clone(),
            model_size_bytes: self.model_size_bytes,
            was_ready: self.was_ready,
            draining: self.draining(),
        }
    }

    /// As a restart finds it.
    pub(crate) fn restore(id: ReplicaId, record: ReplicaRecord, now: MonoTime) -> Self {
        let mut replica = Self {
            id,
            set: SetId {
                endpoint: record.endpoint_id,
                entity: record.entity.name.clone(),
                generation: record.generation,
            },
            endpoint: record.endpoint,
            node: record.node,
            entity: record.entity,
            template: record.template,
            model_size_bytes: record.model_size_bytes,
            placed_at: None,
            was_ready: record.was_ready,
            routed: record.was_ready,
            stage: Stage::Expected,
            seen: None,
            probed: Probed::nothing(now),
        };
        if record.draining {
            replica.drain("it was draining before the scheduler's restart", now);
        }
        replica
    }
}

impl Probed {
    pub(crate) fn nothing(now: MonoTime) -> Self {
        Self {
            health: None,
            detail: String::new(),
            in_flight: 0,
            load: None,
            loaded: now,
            since: now,
        }
    }
}
