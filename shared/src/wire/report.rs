//! Reports as protobuf.

use std::time::Duration;

use prost::Message;

use super::{Numbers, WireError, digest, numbers, required, text};
use crate::ids::ServedEntityId;
use crate::manifest::ManifestId;
use crate::report as checked;

#[derive(Clone, PartialEq, Message)]
pub struct AgentReport {
    #[prost(message, optional, tag = "1")]
    pub plan: Option<Numbers>,
    #[prost(message, optional, tag = "2")]
    pub capacity: Option<Capacity>,
    #[prost(message, repeated, tag = "3")]
    pub replicas: Vec<ReplicaStatus>,
    #[prost(message, repeated, tag = "4")]
    pub images: Vec<ImageStatus>,
    #[prost(message, repeated, tag = "5")]
    pub models: Vec<ModelStatus>,
    #[prost(message, optional, tag = "6")]
    pub sample: Option<NodeSample>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Capacity {
    #[prost(uint32, tag = "1")]
    pub cpu_millis: u32,
    #[prost(uint64, tag = "2")]
    pub memory_bytes: u64,
    #[prost(uint64, tag = "3")]
    pub cache_bytes: u64,
    #[prost(message, repeated, tag = "4")]
    pub gpus: Vec<Gpu>,
    #[prost(string, optional, tag = "5")]
    pub gpus_absent: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Gpu {
    #[prost(string, tag = "1")]
    pub uuid: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(uint64, tag = "3")]
    pub memory_bytes: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct ReplicaStatus {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub endpoint: String,
    #[prost(string, tag = "3")]
    pub entity: String,
    #[prost(enumeration = "Phase", tag = "4")]
    pub phase: i32,
    #[prost(string, tag = "5")]
    pub reason: String,
    #[prost(uint64, tag = "6")]
    pub since_ms: u64,
    #[prost(message, optional, tag = "7")]
    pub exit: Option<Exit>,
    #[prost(message, optional, tag = "8")]
    pub sample: Option<ReplicaSample>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Phase {
    /// Also what a phase that this version does not know becomes.
    Unknown = 0,
    Pending = 1,
    PullingImage = 2,
    FetchingModel = 3,
    Creating = 4,
    Running = 5,
    Stopping = 6,
    Stopped = 7,
    Failed = 8,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Exit {
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(bool, tag = "2")]
    pub out_of_memory: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct ImageStatus {
    #[prost(string, tag = "1")]
    pub reference: String,
    #[prost(message, optional, tag = "2")]
    pub state: Option<Hold>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ModelStatus {
    #[prost(bytes = "vec", tag = "1")]
    pub manifest: Vec<u8>,
    #[prost(message, optional, tag = "2")]
    pub state: Option<Hold>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Hold {
    #[prost(oneof = "HoldBody", tags = "1, 2, 3")]
    pub body: Option<HoldBody>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum HoldBody {
    #[prost(message, tag = "1")]
    Fetching(Fetching),
    #[prost(bool, tag = "2")]
    Ready(bool),
    #[prost(string, tag = "3")]
    Failed(String),
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Fetching {
    #[prost(uint64, tag = "1")]
    pub have_bytes: u64,
    #[prost(uint64, tag = "2")]
    pub total_bytes: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct NodeSample {
    #[prost(double, optional, tag = "1")]
    pub cpu: Option<f64>,
    #[prost(double, optional, tag = "2")]
    pub io_wait: Option<f64>,
    #[prost(uint64, optional, tag = "3")]
    pub memory_used_bytes: Option<u64>,
    #[prost(uint64, optional, tag = "4")]
    pub disk_read_bytes: Option<u64>,
    #[prost(uint64, optional, tag = "5")]
    pub disk_written_bytes: Option<u64>,
    #[prost(double, optional, tag = "6")]
    pub pressure_cpu: Option<f64>,
    #[prost(double, optional, tag = "7")]
    pub pressure_memory: Option<f64>,
    #[prost(double, optional, tag = "8")]
    pub pressure_io: Option<f64>,
    #[prost(message, repeated, tag = "9")]
    pub gpus: Vec<GpuSample>,
    #[prost(message, repeated, tag = "10")]
    pub absent: Vec<Absent>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Absent {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub reason: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct GpuSample {
    #[prost(string, tag = "1")]
    pub uuid: String,
    #[prost(uint64, optional, tag = "2")]
    pub memory_used_bytes: Option<u64>,
    #[prost(double, optional, tag = "3")]
    pub busy: Option<f64>,
    #[prost(double, optional, tag = "4")]
    pub sm: Option<f64>,
    #[prost(double, optional, tag = "5")]
    pub tensor: Option<f64>,
    #[prost(double, optional, tag = "6")]
    pub fp16: Option<f64>,
    #[prost(double, optional, tag = "7")]
    pub dram_bandwidth: Option<f64>,
    #[prost(uint32, optional, tag = "8")]
    pub power_milliwatts: Option<u32>,
    #[prost(uint32, optional, tag = "9")]
    pub temperature_celsius: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ReplicaSample {
    #[prost(double, optional, tag = "1")]
    pub cpu_cores: Option<f64>,
    #[prost(double, optional, tag = "2")]
    pub throttled: Option<f64>,
    #[prost(uint64, optional, tag = "3")]
    pub memory_bytes: Option<u64>,
    #[prost(uint64, optional, tag = "4")]
    pub memory_limit_bytes: Option<u64>,
    #[prost(uint64, optional, tag = "5")]
    pub io_read_bytes: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    pub io_written_bytes: Option<u64>,
    #[prost(uint32, optional, tag = "7")]
    pub pids: Option<u32>,
    #[prost(double, optional, tag = "8")]
    pub pressure_cpu: Option<f64>,
    #[prost(double, optional, tag = "9")]
    pub pressure_memory: Option<f64>,
    #[prost(double, optional, tag = "10")]
    pub pressure_io: Option<f64>,
    #[prost(message, repeated, tag = "11")]
    pub absent: Vec<Absent>,
}

#[derive(Clone, PartialEq, Message)]
pub struct GatewayReport {
    #[prost(message, optional, tag = "1")]
    pub routes: Option<Numbers>,
    #[prost(message, repeated, tag = "2")]
    pub replicas: Vec<ReplicaHealth>,
    #[prost(message, repeated, tag = "3")]
    pub traffic: Vec<Traffic>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ReplicaHealth {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(enumeration = "HealthState", tag = "2")]
    pub health: i32,
    #[prost(string, tag = "3")]
    pub detail: String,
    #[prost(uint32, tag = "4")]
    pub in_flight: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum HealthState {
    Starting = 0,
    Healthy = 1,
    Unhealthy = 2,
}

#[derive(Clone, PartialEq, Message)]
pub struct Traffic {
    #[prost(string, tag = "1")]
    pub endpoint: String,
    #[prost(string, tag = "2")]
    pub entity: String,
    #[prost(uint32, tag = "3")]
    pub over_ms: u32,
    #[prost(uint64, tag = "4")]
    pub arrivals: u64,
    #[prost(uint64, tag = "5")]
    pub completions: u64,
    #[prost(uint64, tag = "6")]
    pub rejected: u64,
    #[prost(uint64, tag = "7")]
    pub failed: u64,
    #[prost(double, tag = "8")]
    pub active: f64,
    #[prost(double, tag = "9")]
    pub queued: f64,
    #[prost(double, optional, tag = "10")]
    pub p50_ms: Option<f64>,
    #[prost(double, optional, tag = "11")]
    pub p95_ms: Option<f64>,
    #[prost(double, optional, tag = "12")]
    pub p99_ms: Option<f64>,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn absent_out(absent: &[(String, String)]) -> Vec<Absent> {
    let one = |(name, reason): &(String, String)| Absent {
        name: name.clone(),
        reason: reason.clone(),
    };
    absent.iter().map(one).collect()
}

fn absent_in(absent: Vec<Absent>) -> Vec<(String, String)> {
    absent.into_iter().map(|a| (a.name, a.reason)).collect()
}

impl From<&checked::AgentReport> for AgentReport {
    fn from(report: &checked::AgentReport) -> Self {
        let capacity = &report.capacity;
        Self {
            plan: report
                .plan
                .map(|(epoch, revision)| numbers(epoch, revision)),
            capacity: Some(Capacity {
                cpu_millis: capacity.cpu_millis,
                memory_bytes: capacity.memory_bytes,
                cache_bytes: capacity.cache_bytes,
                gpus: capacity
                    .gpus
                    .iter()
                    .map(|gpu| Gpu {
                        uuid: gpu.uuid.clone(),
                        name: gpu.name.clone(),
                        memory_bytes: gpu.memory_bytes,
                    })
                    .collect(),
                gpus_absent: capacity.gpus_absent.clone(),
            }),
            replicas: report.replicas.iter().map(ReplicaStatus::from).collect(),
            images: report
                .images
                .iter()
                .map(|image| ImageStatus {
                    reference: image.reference.to_string(),
                    state: Some(Hold::from(&image.state)),
                })
                .collect(),
            models: report
                .models
                .iter()
                .map(|model| ModelStatus {
                    manifest: model.manifest.0.as_bytes().to_vec(),
                    state: Some(Hold::from(&model.state)),
                })
                .collect(),
            sample: Some(NodeSample::from(&report.sample)),
        }
    }
}

impl TryFrom<AgentReport> for checked::AgentReport {
    type Error = WireError;
    fn try_from(report: AgentReport) -> Result<Self, WireError> {
        let capacity = required("AgentReport", "capacity", report.capacity)?;
        let images = report.images.into_iter().map(|image| {
            Ok(checked::ImageStatus {
                reference: text("ImageStatus", "reference", &image.reference)?,
                state: required("ImageStatus", "state", image.state)?.try_into()?,
            })
        });
        let models = report.models.into_iter().map(|model| {
            Ok(checked::ModelStatus {
                manifest: ManifestId(digest("ModelStatus", "manifest", &model.manifest)?),
                state: required("ModelStatus", "state", model.state)?.try_into()?,
            })
        });
        Ok(Self {
            plan: report.plan.map(Into::into),
            capacity: checked::NodeCapacity {
                cpu_millis: capacity.cpu_millis,
                memory_bytes: capacity.memory_bytes,
                cache_bytes: capacity.cache_bytes,
                gpus: capacity
                    .gpus
                    .into_iter()
                    .map(|gpu| checked::Gpu {
                        uuid: gpu.uuid,
                        name: gpu.name,
                        memory_bytes: gpu.memory_bytes,
                    })
                    .collect(),
                gpus_absent: capacity.gpus_absent,
            },
            replicas: report
                .replicas
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, WireError>>()?,
            images: images.collect::<Result<_, WireError>>()?,
            models: models.collect::<Result<_, WireError>>()?,
            sample: report.sample.map(Into::into).unwrap_or_default(),
        })
    }
}

impl From<&checked::ReplicaStatus> for ReplicaStatus {
    fn from(status: &checked::ReplicaStatus) -> Self {
        Self {
            id: status.id.to_string(),
            endpoint: status.endpoint.to_string(),
            entity: status.entity.to_string(),
            phase: Phase::from(status.phase).into(),
            reason: status.reason.clone(),
            since_ms: millis(status.since),
            exit: status.exit.as_ref().map(|exit| Exit {
                code: exit.code,
                out_of_memory: exit.out_of_memory,
            }),
            sample: status.sample.as_ref().map(ReplicaSample::from),
        }
    }
}

impl TryFrom<ReplicaStatus> for checked::ReplicaStatus {
    type Error = WireError;
    fn try_from(status: ReplicaStatus) -> Result<Self, WireError> {
        Ok(Self {
            id: text("ReplicaStatus", "id", &status.id)?,
            endpoint: text("ReplicaStatus", "endpoint", &status.endpoint)?,
            entity: text("ReplicaStatus", "entity", &status.entity)?,
            phase: status.phase().into(),
            since: Duration::from_millis(status.since_ms),
            exit: status.exit.map(|e| checked::ReplicaExit {
                code: e.code,
                out_of_memory: e.out_of_memory,
            }),
            sample: status.sample.map(Into::into),
            reason: status.reason,
        })
    }
}

impl From<checked::ReplicaPhase> for Phase {
    fn from(phase: checked::ReplicaPhase) -> Self {
        match phase {
            checked::ReplicaPhase::Pending => Phase::Pending,
            checked::ReplicaPhase::PullingImage => Phase::PullingImage,
            checked::ReplicaPhase::FetchingModel => Phase::FetchingModel,
            checked::ReplicaPhase::Creating => Phase::Creating,
            checked::ReplicaPhase::Running => Phase::Running,
            checked::ReplicaPhase::Stopping => Phase::Stopping,
            checked::ReplicaPhase::Stopped => Phase::Stopped,
            checked::ReplicaPhase::Failed => Phase::Failed,
            checked::ReplicaPhase::Unknown => Phase::Unknown,
        }
    }
}

impl From<Phase> for checked::ReplicaPhase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Pending => checked::ReplicaPhase::Pending,
            Phase::PullingImage => checked::ReplicaPhase::PullingImage,
            Phase::FetchingModel => checked::ReplicaPhase::FetchingModel,
            Phase::Creating => checked::ReplicaPhase::Creating,
            Phase::Running => checked::ReplicaPhase::Running,
            Phase::Stopping => checked::ReplicaPhase::Stopping,
            Phase::Stopped => checked::ReplicaPhase::Stopped,
            Phase::Failed => checked::ReplicaPhase::Failed,
            Phase::Unknown => checked::ReplicaPhase::Unknown,
        }
    }
}

impl From<&checked::HoldState> for Hold {
    fn from(state: &checked::HoldState) -> Self {
        let body = match state {
            checked::HoldState::Fetching {
                have_bytes,
                total_bytes,
            } => HoldBody::Fetching(Fetching {
                have_bytes: *have_bytes,
                total_bytes: *total_bytes,
            }),
            checked::HoldState::Ready => HoldBody::Ready(true),
            checked::HoldState::Failed { reason } => HoldBody::Failed(reason.clone()),
        };
        Self { body: Some(body) }
    }
}

impl TryFrom<Hold> for checked::HoldState {
    type Error = WireError;
    fn try_from(hold: Hold) -> Result<Self, WireError> {
        Ok(match required("Hold", "body", hold.body)? {
            HoldBody::Fetching(f) => checked::HoldState::Fetching {
                have_bytes: f.have_bytes,
                total_bytes: f.total_bytes,
            },
            HoldBody::Ready(_) => checked::HoldState::Ready,
            HoldBody::Failed(reason) => checked::HoldState::Failed { reason },
        })
    }
}

impl From<&checked::NodeSample> for NodeSample {
    fn from(sample: &checked::NodeSample) -> Self {
        Self {
            cpu: sample.cpu,
            io_wait: sample.io_wait,
            memory_used_bytes: sample.memory_used_bytes,
            disk_read_bytes: sample.disk_read_bytes,
            disk_written_bytes: sample.disk_written_bytes,
            pressure_cpu: sample.pressure_cpu,
            pressure_memory: sample.pressure_memory,
            pressure_io: sample.pressure_io,
            gpus: sample.gpus.iter().map(GpuSample::from).collect(),
            absent: absent_out(&sample.absent),
        }
    }
}

impl From<NodeSample> for checked::NodeSample {
    fn from(sample: NodeSample) -> Self {
        Self {
            cpu: sample.cpu,
            io_wait: sample.io_wait,
            memory_used_bytes: sample.memory_used_bytes,
            disk_read_bytes: sample.disk_read_bytes,
            disk_written_bytes: sample.disk_written_bytes,
            pressure_cpu: sample.pressure_cpu,
            pressure_memory: sample.pressure_memory,
            pressure_io: sample.pressure_io,
            gpus: sample.gpus.into_iter().map(Into::into).collect(),
            absent: absent_in(sample.absent),
        }
    }
}

impl From<&checked::GpuSample> for GpuSample {
    fn from(gpu: &checked::GpuSample) -> Self {
        Self {
            uuid: gpu.uuid.clone(),
            memory_used_bytes: gpu.memory_used_bytes,
            busy: gpu.busy,
            sm: gpu.sm,
            tensor: gpu.tensor,
            fp16: gpu.fp16,
            dram_bandwidth: gpu.dram_bandwidth,
            power_milliwatts: gpu.power_milliwatts,
            temperature_celsius: gpu.temperature_celsius,
        }
    }
}

impl From<GpuSample> for checked::GpuSample {
    fn from(gpu: GpuSample) -> Self {
        Self {
            uuid: gpu.uuid,
            memory_used_bytes: gpu.memory_used_bytes,
            busy: gpu.busy,
            sm: gpu.sm,
            tensor: gpu.tensor,
            fp16: gpu.fp16,
            dram_bandwidth: gpu.dram_bandwidth,
            power_milliwatts: gpu.power_milliwatts,
            temperature_celsius: gpu.temperature_celsius,
        }
    }
}

impl From<&checked::ReplicaSample> for ReplicaSample {
    fn from(sample: &checked::ReplicaSample) -> Self {
        Self {
            cpu_cores: sample.cpu_cores,
            throttled: sample.throttled,
            memory_bytes: sample.memory_bytes,
            memory_limit_bytes: sample.memory_limit_bytes,
            io_read_bytes: sample.io_read_bytes,
            io_written_bytes: sample.io_written_bytes,
            pids: sample.pids,
            pressure_cpu: sample.pressure_cpu,
            pressure_memory: sample.pressure_memory,
            pressure_io: sample.pressure_io,
            absent: absent_out(&sample.absent),
        }
    }
}

impl From<ReplicaSample> for checked::ReplicaSample {
    fn from(sample: ReplicaSample) -> Self {
        Self {
            cpu_cores: sample.cpu_cores,
            throttled: sample.throttled,
            memory_bytes: sample.memory_bytes,
            memory_limit_bytes: sample.memory_limit_bytes,
            io_read_bytes: sample.io_read_bytes,
            io_written_bytes: sample.io_written_bytes,
            pids: sample.pids,
            pressure_cpu: sample.pressure_cpu,
            pressure_memory: sample.pressure_memory,
            pressure_io: sample.pressure_io,
            absent: absent_in(sample.absent),
        }
    }
}

impl From<&checked::GatewayReport> for GatewayReport {
    fn from(report: &checked::GatewayReport) -> Self {
        Self {
            routes: report
                .routes
                .map(|(epoch, revision)| numbers(epoch, revision)),
            replicas: report
                .replicas
                .iter()
                .map(|replica| ReplicaHealth {
                    id: replica.id.to_string(),
                    health: match replica.health {
                        checked::Health::Starting => HealthState::Starting,
                        checked::Health::Healthy => HealthState::Healthy,
                        checked::Health::Unhealthy => HealthState::Unhealthy,
                    }
                    .into(),
                    detail: replica.detail.clone(),
                    in_flight: replica.in_flight,
                })
                .collect(),
            traffic: report.traffic.iter().map(Traffic::from).collect(),
        }
    }
}

impl TryFrom<GatewayReport> for checked::GatewayReport {
    type Error = WireError;
    fn try_from(report: GatewayReport) -> Result<Self, WireError> {
        let replicas = report.replicas.into_iter().map(|replica| {
            Ok(checked::ReplicaHealth {
                id: text("ReplicaHealth", "id", &replica.id)?,
                health: match replica.health() {
                    HealthState::Starting => checked::Health::Starting,
                    HealthState::Healthy => checked::Health::Healthy,
                    HealthState::Unhealthy => checked::Health::Unhealthy,
                },
                detail: replica.detail,
                in_flight: replica.in_flight,
            })
        });
        Ok(Self {
            routes: report.routes.map(Into::into),
            replicas: replicas.collect::<Result<_, WireError>>()?,
            traffic: report
                .traffic
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, WireError>>()?,
        })
    }
}

impl From<&checked::EntityTraffic> for Traffic {
    fn from(traffic: &checked::EntityTraffic) -> Self {
        Self {
            endpoint: traffic.id.endpoint.to_string(),
            entity: traffic.id.entity.to_string(),
            over_ms: u32::try_from(traffic.over.as_millis()).unwrap_or(u32::MAX),
            arrivals: traffic.arrivals,
            completions: traffic.completions,
            rejected: traffic.rejected,
            failed: traffic.failed,
            active: traffic.active,
            queued: traffic.queued,
            p50_ms: traffic.p50_ms,
            p95_ms: traffic.p95_ms,
            p99_ms: traffic.p99_ms,
        }
    }
}

impl TryFrom<Traffic> for checked::EntityTraffic {
    type Error = WireError;
    fn try_from(traffic: Traffic) -> Result<Self, WireError> {
        let load = |field, value: f64| {
            if value.is_finite() && value >= 0.0 {
                Ok(value)
            } else {
                Err(WireError::new(
                    "Traffic",
                    field,
                    "expected a finite number of 0 or more",
                ))
            }
        };
        Ok(Self {
            id: ServedEntityId {
                endpoint: text("Traffic", "endpoint", &traffic.endpoint)?,
                entity: text("Traffic", "entity", &traffic.entity)?,
            },
            over: Duration::from_millis(traffic.over_ms.into()),
            arrivals: traffic.arrivals,
            completions: traffic.completions,
            rejected: traffic.rejected,
            failed: traffic.failed,
            active: load("active", traffic.active)?,
            queued: load("queued", traffic.queued)?,
            p50_ms: traffic.p50_ms,
            p95_ms: traffic.p95_ms,
            p99_ms: traffic.p99_ms,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{EndpointName, EntityName, Epoch, ReplicaId, Revision};

    #[test]
    fn an_agents_report_survives_the_wire_and_keeps_absent_readings_absent() {
        let report = checked::AgentReport {
            plan: Some((Epoch(1), Revision(2))),
            capacity: checked::NodeCapacity {
                cpu_millis: 2000,
                memory_bytes: 1 << 30,
                gpus_absent: Some("no libnvidia-ml.so.1".into()),
                ..Default::default()
            },
            replicas: vec![checked::ReplicaStatus {
                id: ReplicaId::from_bits(1),
                endpoint: EndpointName::parse("iris").expect("valid"),
                entity: EntityName::parse("iris-1").expect("valid"),
                phase: checked::ReplicaPhase::Failed,
                reason: "exit 1".into(),
                since: Duration::from_millis(1500),
                exit: Some(checked::ReplicaExit {
                    code: 137,
                    out_of_memory: true,
                }),
                sample: Some(checked::ReplicaSample {
                    pids: Some(3),
                    ..Default::default()
                }),
            }],
            images: vec![],
            models: vec![checked::ModelStatus {
                manifest: ManifestId(crate::digest::Digest::of(b"m")),
                state: checked::HoldState::Fetching {
                    have_bytes: 1,
                    total_bytes: 2,
                },
            }],
            sample: checked::NodeSample {
                cpu: Some(0.5),
                ..Default::default()
            },
        };
        let bytes = AgentReport::from(&report).encode_to_vec();
        let back = AgentReport::decode(bytes.as_slice()).expect("decodes");
        assert_eq!(checked::AgentReport::try_from(back), Ok(report));
    }

    #[test]
    fn a_load_that_is_not_a_number_is_refused() {
        let traffic = Traffic {
            endpoint: "iris".into(),
            entity: "iris-1".into(),
            active: f64::NAN,
            ..Default::default()
        };
        assert!(checked::EntityTraffic::try_from(traffic).is_err());
    }
}
