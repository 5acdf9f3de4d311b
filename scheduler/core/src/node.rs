//! What the core knows of one node: what its agent and its gateway last said, and when.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shared::ids::{ImageRef, ReplicaId, Revision, Role, ServedEntityId};
use shared::manifest::ManifestId;
use shared::report::{NodeCapacity, NodeSample};
use shared::runtime::RuntimeTemplate;
use shared::units::MonoTime;

use crate::events::nodes::Holds;
use crate::traffic::Traffic;

#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Whether its agent's session is up.
    pub agent_up: bool,
    /// Its record says that it has an agent.
    pub expected: bool,
    /// When its agent last said something, or since when it was waited for.
    pub heard: MonoTime,
    /// Whether the agent has reported since the scheduler's start.
    pub reported: bool,
    /// Silent past its lease: its replicas are replaced elsewhere.
    pub lost: bool,
    pub revoked: bool,
    /// What is wrong with its identity, and since when it was last seen.
    pub problem: Option<(MonoTime, String)>,
    /// Of the last report.
    pub capacity: NodeCapacity,
    pub sample: NodeSample,
    pub images: BTreeSet<ImageRef>,
    /// Images that it cannot bring in, and why.
    pub image_troubles: BTreeMap<ImageRef, String>,
    pub models: BTreeSet<ManifestId>,
    /// Replicas placed on it, whatever their stage: what takes its room.
    pub replicas: BTreeSet<ReplicaId>,
    pub gateway: Gateway,
    /// What the agent said of images and models in this session; `None` before its first report.
    pub holds: Option<Holds>,
    /// Whose session ended; the next one is told.
    pub broken: BTreeSet<Role>,
}

#[derive(Clone, Debug)]
pub(crate) struct Gateway {
    pub up: bool,
    pub heard: MonoTime,
    /// Reports since the scheduler's start.
    pub reports: u64,
    /// The routes of this epoch that it works by.
    pub acked: Option<Revision>,
    pub peer_address: String,
    pub client_address: String,
    /// Of its last whole second; an entity that is absent had none.
    pub traffic: BTreeMap<ServedEntityId, Traffic>,
    /// When that was reported, or since when it was waited for.
    pub whole: MonoTime,
    /// Whether there was one.
    pub measured: bool,
}

/// Whether something can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contact {
    /// Nothing said since the scheduler's start, and the lease still runs.
    Awaited,
    Fresh,
    /// Silent for longer than the lease.
    Silent,
}

impl Node {
    pub(crate) fn new(now: MonoTime) -> Self {
        Self {
            agent_up: false,
            expected: false,
            heard: now,
            reported: false,
            lost: false,
            revoked: false,
            problem: None,
            capacity: NodeCapacity::default(),
            sample: NodeSample::default(),
            images: BTreeSet::new(),
            image_troubles: BTreeMap::new(),
            models: BTreeSet::new(),
            replicas: BTreeSet::new(),
            gateway: Gateway {
                up: false,
                heard: now,
                reports: 0,
                acked: None,
                peer_address: String::new(),
                client_address: String::new(),
                traffic: BTreeMap::new(),
                whole: now,
                measured: false,
            },
            holds: None,
            broken: BTreeSet::new(),
        }
    }

    /// Whether replicas could ever run on it: a machine with a gateway alone takes none, and says so
    /// nowhere.
    pub(crate) fn takes_part(&self) -> bool {
        self.agent_up || self.reported || !self.replicas.is_empty() || self.expected
    }

    /// Whether its gateway must be thought to serve: it is connected, or was so lately that it may go
    /// on by the routes that it has.
    pub(crate) fn gateway_may_serve(&self, lease: Duration, now: MonoTime) -> bool {
        let gateway = &self.gateway;
        let known = gateway.reports > 0
            || !gateway.peer_address.is_empty()
            || !gateway.client_address.is_empty();
        let lately = known && self.gateway_contact(lease, now) != Contact::Silent;
        !self.revoked && (gateway.up || lately)
    }

    /// Whether a replica of a runtime could ever run here, as far as the hardware goes.
    pub(crate) fn may_serve(&self, template: &RuntimeTemplate) -> bool {
        self.gpus_of(0) >= template.resources.gpus
    }

    /// GPUs with at least this much memory.
    pub(crate) fn gpus_of(&self, memory_bytes: u64) -> u32 {
        let fitting = self.capacity.gpus.iter();
        let fitting = fitting.filter(|gpu| gpu.memory_bytes >= memory_bytes);
        u32::try_from(fitting.count()).unwrap_or(u32::MAX)
    }

    pub(crate) fn agent_contact(&self, lease: Duration, now: MonoTime) -> Contact {
        contact(self.reported, self.heard, lease, now)
    }

    pub(crate) fn gateway_contact(&self, lease: Duration, now: MonoTime) -> Contact {
        contact(self.gateway.reports > 0, self.gateway.heard, lease, now)
    }
}

fn contact(reported: bool, heard: MonoTime, lease: Duration, now: MonoTime) -> Contact {
    if now.saturating_since(heard) > lease {
        Contact::Silent
    } else if reported {
        Contact::Fresh
    } else {
        Contact::Awaited
    }
}
