//! What goes into the core and what comes out of it.

use std::sync::Arc;

use shared::ids::{EndpointName, NodeName, ReplicaId, ServedEntityId};
use shared::plan::Plan;
use shared::report::{AgentReport, GatewayReport};
use shared::routes::Routes;
use shared::units::MonoTime;
use shared::wire::Peer;

use crate::store_op::Op;

/// What a decision may not find out for itself: the time, and chance.
pub struct Ctx<'a, R> {
    /// Since the scheduler's start: what leases, deadlines and windows are measured by.
    pub now: MonoTime,
    /// The time of day, for records that people read.
    pub unix_ms: u64,
    pub rng: &'a mut R,
}

/// Something that happened outside. Nodes and roles are those of the session's certificate.
// One event exists at a time and reports are most of them: a box each would only cost.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug)]
pub enum Event {
    AgentUp {
        node: NodeName,
    },
    AgentDown {
        node: NodeName,
    },
    AgentReport {
        node: NodeName,
        report: AgentReport,
    },
    GatewayUp {
        node: NodeName,
        /// `host:port` for other gateways; empty when it takes none.
        peer_address: String,
        client_address: String,
    },
    GatewayDown {
        node: NodeName,
    },
    GatewayReport {
        node: NodeName,
        report: GatewayReport,
    },
    /// A request waits for a served entity that has no ready replica.
    Demand {
        id: ServedEntityId,
        queued: u32,
    },
    /// A second has passed.
    Tick,
}

/// What is to be done. `writes` are committed before anything else is sent or answered.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    pub writes: Vec<Op>,
    /// Plans that changed, or that a node asks for anew.
    pub plans: Vec<Plan>,
    /// For every gateway, when they changed.
    pub routes: Option<Arc<Routes>>,
    /// Sessions to close: whose, the QUIC code (`shared::wire::close`), why.
    pub close: Vec<(Peer, u32, String)>,
    pub notes: Vec<Note>,
}

impl Effects {
    /// `later` happened after `self`: its plans and routes replace those of before.
    pub fn merge(&mut self, later: Effects) {
        self.writes.extend(later.writes);
        self.plans
            .retain(|plan| later.plans.iter().all(|newer| newer.node != plan.node));
        self.plans.extend(later.plans);
        if later.routes.is_some() {
            self.routes = later.routes;
        }
        self.close.extend(later.close);
        self.notes.extend(later.notes);
    }
}

/// A change of state, to be logged once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub level: Level,
    pub endpoint: Option<EndpointName>,
    pub replica: Option<ReplicaId>,
    pub node: Option<NodeName>,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Info,
    /// Odd; the fleet carries on.
    Warn,
}

impl Note {
    pub fn info(text: impl Into<String>) -> Self {
        Self::new(Level::Info, text)
    }

    pub fn warn(text: impl Into<String>) -> Self {
        Self::new(Level::Warn, text)
    }

    fn new(level: Level, text: impl Into<String>) -> Self {
        Self {
            level,
            endpoint: None,
            replica: None,
            node: None,
            text: text.into(),
        }
    }

    pub fn endpoint(mut self, endpoint: &EndpointName) -> Self {
        self.endpoint = Some(endpoint.clone());
        self
    }

    pub fn replica(mut self, replica: &ReplicaId) -> Self {
        self.replica = Some(replica.clone());
        self
    }

    pub fn node(mut self, node: &NodeName) -> Self {
        self.node = Some(node.clone());
        self
    }
}
