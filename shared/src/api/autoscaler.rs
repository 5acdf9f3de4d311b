//! The autoscaler's state, decisions and history, as `stokehold explain` and `stokehold replay` read
//! them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{EndpointName, EntityName, RuntimeName};

/// `GET /api/stokehold/v1/endpoints/{name}/explain`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Explained {
    pub endpoint: EndpointName,
    /// The served entities of the config that serves.
    pub entities: Vec<ExplainedEntity>,
}

/// Both axes of one served entity: how things stand, and how they came to be so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainedEntity {
    pub entity: EntityName,
    /// The last second that was measured; nothing before the first one.
    pub now: Option<SeriesPoint>,
    pub desired_replicas: u32,
    pub ready_replicas: u32,
    pub starting_replicas: u32,
    pub min_replicas: u32,
    pub max_replicas: u32,
    /// Capacity, in requests at once, that is kept whatever the demand.
    pub provisioned_concurrency: u32,
    pub latency_objective_ms: Option<u32>,
    /// From placed to ready, as measured.
    pub startup_s: Option<f64>,
    /// By hardware class, that of most replicas first.
    pub targets: Vec<TargetInfo>,
    /// Decisions on the number of replicas, oldest first.
    pub horizontal: Vec<DecisionRecord>,
    /// Decisions on target_concurrency, oldest first.
    pub vertical: Vec<DecisionRecord>,
}

/// How many requests a replica on one class of hardware takes at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TargetInfo {
    /// `cpu`, or the name of the GPUs; empty before a replica was there.
    pub class: String,
    pub target_concurrency: u32,
    /// What one replica takes instead, to find out what lies beyond.
    pub explore: Option<u32>,
    pub origin: TargetOrigin,
    /// The rule that the last decision on it went by.
    pub bound_by: Option<String>,
}

/// Where a target_concurrency comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TargetOrigin {
    /// Its config says it; nothing is learned.
    Pinned,
    /// A first guess: no bound has been seen yet.
    #[default]
    Guess,
    /// Measured.
    Learned,
}

impl TargetOrigin {
    pub fn as_str(self) -> &'static str {
        match self {
            TargetOrigin::Pinned => "pinned",
            TargetOrigin::Guess => "guess",
            TargetOrigin::Learned => "learned",
        }
    }
}

/// A decision of one axis. The same one again is one record that counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DecisionRecord {
    /// When it was made last, Unix milliseconds by the scheduler's clock.
    pub unix_ms: u64,
    /// When it was made first.
    pub first_unix_ms: u64,
    /// How often in a row.
    pub count: u32,
    /// The hardware class that it is of; decisions on replicas are of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    pub before: u32,
    pub after: u32,
    /// The rule that fired, from a small fixed set.
    pub rule: String,
    /// Why, in one sentence with its numbers.
    pub because: String,
    pub inputs: Vec<DecisionInput>,
    /// What would have to be different for another decision.
    pub would_change: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DecisionInput {
    pub name: String,
    /// Nothing where it is not known.
    pub value: Option<f64>,
    pub unit: String,
}

/// `GET /api/stokehold/v1/pools`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Pools {
    pub pools: Vec<PoolInfo>,
}

/// The warm pool of one class of nodes for one runtime: how many nodes should hold its image ready
/// ahead of need, how many do, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PoolInfo {
    /// `cpu`, or the name of the nodes' GPUs.
    pub class: String,
    pub runtime: RuntimeName,
    /// Nodes that should stand ready.
    pub wanted: u32,
    /// Nodes that hold the runtime's image unpacked.
    pub ready: u32,
    /// Nodes of the class that are there and may serve the runtime.
    pub nodes: u32,
    /// From an image's being wanted on a node to its being unpacked there: the 90th percentile of the
    /// last 50.
    pub lead_s: Option<f64>,
    /// Replicas placed or wanted since the scheduler's start.
    pub claims: u64,
    /// Those among them that found no node with room, or one without the image.
    pub found_empty: u64,
    /// Decisions, one a minute, oldest first.
    pub decisions: Vec<DecisionRecord>,
}

/// `GET /api/stokehold/v1/endpoints/{name}/series`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Series {
    pub endpoint: EndpointName,
    pub entity: EntityName,
    /// 1, 10 or 60.
    pub resolution_s: u32,
    /// Oldest first. A stretch in which nothing was measured has no point.
    pub points: Vec<SeriesPoint>,
}

/// One stretch of a served entity, over all its replicas and all gateways: means of its seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SeriesPoint {
    /// The stretch's end, Unix milliseconds by the scheduler's clock.
    pub unix_ms: u64,
    /// Requests at replicas.
    pub active: f64,
    /// Requests that waited for a replica.
    pub queued: f64,
    /// A second, as the next two.
    pub arrivals: f64,
    pub completions: f64,
    /// Turned away by gateways.
    pub rejected: f64,
    /// Time at the replica, the gateways' queues left out; nothing when no request ended.
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
    /// At the stretch's end, as the next three.
    pub replicas_ready: u32,
    pub replicas_starting: u32,
    pub desired_replicas: u32,
    pub target_concurrency: u32,
    /// Means over the ready replicas, 0 to 1; nothing where the hardware cannot say.
    pub cpu: Option<f64>,
    pub gpu_sm: Option<f64>,
    pub gpu_tensor: Option<f64>,
    pub gpu_membw: Option<f64>,
    pub memory: Option<f64>,
    pub io_wait: Option<f64>,
    pub pressure: Option<f64>,
}
