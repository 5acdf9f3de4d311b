//! An agent's report as protobuf.

use std::time::Duration;

use prost::Message;

use super::samples::{NodeSample, ReplicaSample};
use super::{Numbers, WireError, digest, numbers, required, text};
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
    #[prost(uint64, optional, tag = "50")]
    pub cache_room_bytes: Option<u64>,
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

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
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
                cache_room_bytes: capacity.cache_room_bytes,
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
                cache_room_bytes: capacity.cache_room_bytes,
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
}
