//! What agents and gateways observe and report, each second.
//!
//! Numbers that the hardware cannot give are `None`, with the reason beside them, never zero.
//! Clocks of two machines are never compared: a node sends ages, the receiver stamps arrivals.

use std::time::Duration;

use crate::ids::{EndpointName, EntityName, Epoch, ImageRef, ReplicaId, Revision, ServedEntityId};
use crate::manifest::ManifestId;

/// A node's whole observed state.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentReport {
    /// The plan that the node works on; `None` before it has taken one.
    pub plan: Option<(Epoch, Revision)>,
    pub capacity: NodeCapacity,
    pub replicas: Vec<ReplicaStatus>,
    pub images: Vec<ImageStatus>,
    pub models: Vec<ModelStatus>,
    pub sample: NodeSample,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeCapacity {
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    /// What the model cache may use.
    pub cache_bytes: u64,
    /// What of it the disk could hold now, with everything evicted that is not needed; `None`: not
    /// known.
    pub cache_room_bytes: Option<u64>,
    pub gpus: Vec<Gpu>,
    /// Why `gpus` is empty, when it is.
    pub gpus_absent: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Gpu {
    pub uuid: String,
    pub name: String,
    pub memory_bytes: u64,
}

/// A replica as its agent sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaStatus {
    pub id: ReplicaId,
    pub endpoint: EndpointName,
    pub entity: EntityName,
    pub phase: ReplicaPhase,
    /// Why it is in this phase, for people; empty when there is nothing to say.
    pub reason: String,
    /// How long it has been in this phase.
    pub since: Duration,
    pub exit: Option<ReplicaExit>,
    pub sample: Option<ReplicaSample>,
}

/// ```text
/// Pending -> PullingImage -> FetchingModel -> Creating -> Running -> Stopping -> Stopped
///     \____________\______________\_____________\___________\____________________^
///                                                            (Failed: it ended by itself, or could
///                                                             not be made) ; Unknown: look first
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReplicaPhase {
    Pending,
    PullingImage,
    FetchingModel,
    Creating,
    Running,
    Stopping,
    /// Gone because the plan no longer had it.
    Stopped,
    /// Gone, or never there, although the plan has it.
    Failed,
    /// A call to containerd timed out: it may or may not have happened.
    Unknown,
}

impl ReplicaPhase {
    pub fn as_str(self) -> &'static str {
        match self {
            ReplicaPhase::Pending => "pending",
            ReplicaPhase::PullingImage => "pulling-image",
            ReplicaPhase::FetchingModel => "fetching-model",
            ReplicaPhase::Creating => "creating",
            ReplicaPhase::Running => "running",
            ReplicaPhase::Stopping => "stopping",
            ReplicaPhase::Stopped => "stopped",
            ReplicaPhase::Failed => "failed",
            ReplicaPhase::Unknown => "unknown",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaExit {
    /// As a shell gives it: 128 + signal for a death by signal.
    pub code: i32,
    pub out_of_memory: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ImageStatus {
    pub reference: ImageRef,
    pub state: HoldState,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ModelStatus {
    pub manifest: ManifestId,
    pub state: HoldState,
}

/// How far a node is with something that the plan wants it to hold.
#[derive(Clone, Debug, PartialEq)]
pub enum HoldState {
    Fetching {
        have_bytes: u64,
        total_bytes: u64,
    },
    Ready,
    /// Tried and failed; it is tried again.
    Failed {
        reason: String,
    },
}

/// One second of a node. Ratios are 0 to 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeSample {
    pub cpu: Option<f64>,
    pub io_wait: Option<f64>,
    pub memory_used_bytes: Option<u64>,
    pub disk_read_bytes: Option<u64>,
    pub disk_written_bytes: Option<u64>,
    /// Share of the last 10 s in which some task waited (PSI `some avg10`).
    pub pressure_cpu: Option<f64>,
    pub pressure_memory: Option<f64>,
    pub pressure_io: Option<f64>,
    pub gpus: Vec<GpuSample>,
    /// Readings that could not be had: (name, reason).
    pub absent: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct GpuSample {
    pub uuid: String,
    pub memory_used_bytes: Option<u64>,
    /// Share of the time in which at least one kernel ran (NVML utilisation; not SM use).
    pub busy: Option<f64>,
    /// GPM figures, from Hopper on.
    pub sm: Option<f64>,
    pub tensor: Option<f64>,
    pub fp16: Option<f64>,
    pub dram_bandwidth: Option<f64>,
    pub power_milliwatts: Option<u32>,
    pub temperature_celsius: Option<u32>,
}

/// One second of a replica.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReplicaSample {
    /// Cores used, 1.0 is one core.
    pub cpu_cores: Option<f64>,
    /// Share of the periods in which the quota was used up.
    pub throttled: Option<f64>,
    pub memory_bytes: Option<u64>,
    pub memory_limit_bytes: Option<u64>,
    pub io_read_bytes: Option<u64>,
    pub io_written_bytes: Option<u64>,
    pub pids: Option<u32>,
    pub pressure_cpu: Option<f64>,
    pub pressure_memory: Option<f64>,
    pub pressure_io: Option<f64>,
    /// Readings that could not be had: (name, reason).
    pub absent: Vec<(String, String)>,
}

/// What a gateway saw since its last report.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GatewayReport {
    /// The routes that it works by; `None` before it has any.
    pub routes: Option<(Epoch, Revision)>,
    /// Replicas whose folders it found on its node.
    pub replicas: Vec<ReplicaHealth>,
    pub traffic: Vec<EntityTraffic>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaHealth {
    pub id: ReplicaId,
    pub health: Health,
    /// What the last probe said, for people; empty when it succeeded.
    pub detail: String,
    pub in_flight: u32,
    /// `None` in a report between two whole seconds, and from a gateway too old to measure it.
    pub load: Option<ReplicaLoad>,
}

/// What a replica's own gateway saw of it since its last report, whichever gateway sent the requests.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaLoad {
    /// Length of the stretch that the numbers are of.
    pub over: Duration,
    /// Mean over the stretch of requests at the replica.
    pub active: f64,
    /// Answered below 500, to the end of the body.
    pub completions: u64,
    /// Time at the replica, the wait inside it included and the gateways' queues left out, of the
    /// requests that `completions` counts; `None` when there were none.
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// Not one probe has succeeded yet.
    Starting,
    Healthy,
    /// Was healthy; the last probes failed.
    Unhealthy,
}

/// One second of one served entity's traffic, as its entry gateway saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct EntityTraffic {
    pub id: ServedEntityId,
    /// Length of the stretch that the numbers are of.
    pub over: Duration,
    pub arrivals: u64,
    pub completions: u64,
    /// Answered 429 or 503 by the gateway itself.
    pub rejected: u64,
    /// Answered 5xx by a replica, or lost.
    pub failed: u64,
    /// Mean over the stretch of requests at replicas.
    pub active: f64,
    /// Mean over the stretch of requests waiting.
    pub queued: f64,
    /// Of requests that ended in the stretch, the queue left out; `None` when none did.
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
    pub p99_ms: Option<f64>,
}
