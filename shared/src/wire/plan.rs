//! A plan as protobuf.

use std::collections::BTreeMap;

use prost::Message;

use super::{WireError, digest, required, text};
use crate::digest::{Digest, OciDigest};
use crate::egress::Egress;
use crate::ids::{Epoch, Revision};
use crate::manifest::ManifestId;
use crate::plan as checked;
use crate::runtime::{HealthProbe, Resources, Transport};

#[derive(Clone, PartialEq, Message)]
pub struct Plan {
    #[prost(string, tag = "1")]
    pub cluster: String,
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    #[prost(uint64, tag = "3")]
    pub revision: u64,
    #[prost(string, tag = "4")]
    pub node: String,
    #[prost(message, repeated, tag = "5")]
    pub images: Vec<Image>,
    #[prost(message, repeated, tag = "6")]
    pub models: Vec<Model>,
    #[prost(message, repeated, tag = "7")]
    pub replicas: Vec<Replica>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Image {
    #[prost(string, tag = "1")]
    pub reference: String,
    #[prost(bytes = "vec", tag = "2")]
    pub layout: Vec<u8>,
    #[prost(message, optional, tag = "3")]
    pub manifest: Option<Blob>,
    #[prost(message, optional, tag = "4")]
    pub config: Option<Blob>,
    #[prost(message, repeated, tag = "5")]
    pub layers: Vec<Layer>,
    #[prost(string, repeated, tag = "6")]
    pub environment: Vec<String>,
    /// 0 a layout, 1 the registry that the reference names.
    #[prost(uint32, tag = "10")]
    pub origin: u32,
}

const FROM_LAYOUT: u32 = 0;
const FROM_REGISTRY: u32 = 1;

#[derive(Clone, PartialEq, Message)]
pub struct Blob {
    #[prost(string, tag = "1")]
    pub media_type: String,
    #[prost(string, tag = "2")]
    pub digest: String,
    #[prost(uint64, tag = "3")]
    pub size_bytes: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Layer {
    #[prost(message, optional, tag = "1")]
    pub blob: Option<Blob>,
    #[prost(string, tag = "2")]
    pub diff_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Model {
    #[prost(bytes = "vec", tag = "1")]
    pub manifest: Vec<u8>,
    #[prost(string, tag = "2")]
    pub label: String,
    #[prost(uint64, tag = "3")]
    pub size_bytes: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Replica {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub endpoint: String,
    #[prost(string, tag = "3")]
    pub entity: String,
    #[prost(uint32, tag = "4")]
    pub config_version: u32,
    #[prost(string, tag = "5")]
    pub image: String,
    #[prost(bytes = "vec", tag = "6")]
    pub model: Vec<u8>,
    #[prost(message, optional, tag = "7")]
    pub container: Option<Container>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Container {
    #[prost(string, repeated, tag = "1")]
    pub command: Vec<String>,
    #[prost(btree_map = "string, string", tag = "2")]
    pub environment: BTreeMap<String, String>,
    #[prost(uint64, tag = "3")]
    pub memory_bytes: u64,
    #[prost(uint32, tag = "4")]
    pub cpu_millis: u32,
    #[prost(uint32, tag = "5")]
    pub pids: u32,
    #[prost(uint32, tag = "6")]
    pub gpus: u32,
    #[prost(uint64, tag = "7")]
    pub shm_bytes: u64,
    #[prost(uint64, tag = "8")]
    pub tmp_bytes: u64,
    #[prost(string, tag = "9")]
    pub model_mount: String,
    /// 0 Unix socket, 1 TCP.
    #[prost(uint32, tag = "10")]
    pub transport: u32,
    #[prost(string, tag = "11")]
    pub invocations_path: String,
    #[prost(message, optional, tag = "12")]
    pub health: Option<Probe>,
    #[prost(string, tag = "13")]
    pub stop_signal: String,
    #[prost(uint32, tag = "14")]
    pub stop_grace_seconds: u32,
    /// 0: none.
    #[prost(uint32, tag = "20")]
    pub port: u32,
    #[prost(string, repeated, tag = "21")]
    pub egress: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Probe {
    #[prost(string, tag = "1")]
    pub path: String,
    #[prost(uint32, tag = "2")]
    pub interval_ms: u32,
    #[prost(uint32, tag = "3")]
    pub period_ms: u32,
    #[prost(uint32, tag = "4")]
    pub timeout_ms: u32,
    #[prost(uint32, tag = "5")]
    pub failures: u32,
    #[prost(uint32, tag = "6")]
    pub start_deadline_seconds: u32,
}

impl From<&checked::Plan> for Plan {
    fn from(plan: &checked::Plan) -> Self {
        Self {
            cluster: plan.cluster.to_string(),
            epoch: plan.epoch.0,
            revision: plan.revision.0,
            node: plan.node.to_string(),
            images: plan.images.iter().map(Image::from).collect(),
            models: plan.models.iter().map(Model::from).collect(),
            replicas: plan.replicas.iter().map(Replica::from).collect(),
        }
    }
}

impl TryFrom<Plan> for checked::Plan {
    type Error = WireError;
    fn try_from(plan: Plan) -> Result<Self, WireError> {
        Ok(Self {
            cluster: text("Plan", "cluster", &plan.cluster)?,
            epoch: Epoch(plan.epoch),
            revision: Revision(plan.revision),
            node: text("Plan", "node", &plan.node)?,
            images: plan
                .images
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            models: plan
                .models
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            replicas: plan
                .replicas
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl From<&checked::PlannedImage> for Image {
    fn from(image: &checked::PlannedImage) -> Self {
        Self {
            reference: image.reference.to_string(),
            layout: match image.origin {
                checked::ImageOrigin::Layout(layout) => layout.0.as_bytes().to_vec(),
                checked::ImageOrigin::Registry => no_layout(&image.manifest.digest),
            },
            manifest: Some(Blob::from(&image.manifest)),
            config: Some(Blob::from(&image.config)),
            layers: image
                .layers
                .iter()
                .map(|layer| Layer {
                    blob: Some(Blob::from(&layer.blob)),
                    diff_id: layer.diff_id.to_string(),
                })
                .collect(),
            environment: image.environment.clone(),
            origin: match image.origin {
                checked::ImageOrigin::Layout(_) => FROM_LAYOUT,
                checked::ImageOrigin::Registry => FROM_REGISTRY,
            },
        }
    }
}

/// A layout that is in no store. An agent of before registries takes the plan with it, and reports this
/// one image as not to be had; without one it would refuse the whole plan.
fn no_layout(manifest: &OciDigest) -> Vec<u8> {
    Digest::of(manifest.as_str().as_bytes()).as_bytes().to_vec()
}

impl TryFrom<Image> for checked::PlannedImage {
    type Error = WireError;
    fn try_from(image: Image) -> Result<Self, WireError> {
        let layers = image.layers.into_iter().map(|layer| {
            Ok(checked::OciLayer {
                blob: required("Layer", "blob", layer.blob)?.try_into()?,
                diff_id: oci("Layer", "diff_id", &layer.diff_id)?,
            })
        });
        Ok(Self {
            reference: text("Image", "reference", &image.reference)?,
            origin: match image.origin {
                FROM_LAYOUT => checked::ImageOrigin::Layout(ManifestId(digest(
                    "Image",
                    "layout",
                    &image.layout,
                )?)),
                FROM_REGISTRY => checked::ImageOrigin::Registry,
                other => {
                    let problem = format!("{other} is no origin that this version knows");
                    return Err(WireError::new("Image", "origin", problem));
                }
            },
            manifest: required("Image", "manifest", image.manifest)?.try_into()?,
            config: required("Image", "config", image.config)?.try_into()?,
            layers: layers.collect::<Result<_, WireError>>()?,
            environment: image.environment,
        })
    }
}

fn oci(message: &'static str, field: &'static str, value: &str) -> Result<OciDigest, WireError> {
    OciDigest::parse(value).map_err(|e| WireError::new(message, field, e))
}

impl From<&checked::OciBlob> for Blob {
    fn from(blob: &checked::OciBlob) -> Self {
        Self {
            media_type: blob.media_type.clone(),
            digest: blob.digest.to_string(),
            size_bytes: blob.size_bytes,
        }
    }
}

impl TryFrom<Blob> for checked::OciBlob {
    type Error = WireError;
    fn try_from(blob: Blob) -> Result<Self, WireError> {
        Ok(Self {
            digest: oci("Blob", "digest", &blob.digest)?,
            media_type: blob.media_type,
            size_bytes: blob.size_bytes,
        })
    }
}

impl From<&checked::PlannedModel> for Model {
    fn from(model: &checked::PlannedModel) -> Self {
        Self {
            manifest: model.manifest.0.as_bytes().to_vec(),
            label: model.label.clone(),
            size_bytes: model.size_bytes,
        }
    }
}

impl TryFrom<Model> for checked::PlannedModel {
    type Error = WireError;
    fn try_from(model: Model) -> Result<Self, WireError> {
        Ok(Self {
            manifest: ManifestId(digest("Model", "manifest", &model.manifest)?),
            label: model.label,
            size_bytes: model.size_bytes,
        })
    }
}

impl From<&checked::PlannedReplica> for Replica {
    fn from(replica: &checked::PlannedReplica) -> Self {
        Self {
            id: replica.id.to_string(),
            endpoint: replica.endpoint.to_string(),
            entity: replica.entity.to_string(),
            config_version: replica.config_version,
            image: replica.image.to_string(),
            model: replica.model.0.as_bytes().to_vec(),
            container: Some(Container::from(&replica.container)),
        }
    }
}

impl TryFrom<Replica> for checked::PlannedReplica {
    type Error = WireError;
    fn try_from(replica: Replica) -> Result<Self, WireError> {
        Ok(Self {
            id: text("Replica", "id", &replica.id)?,
            endpoint: text("Replica", "endpoint", &replica.endpoint)?,
            entity: text("Replica", "entity", &replica.entity)?,
            config_version: replica.config_version,
            image: text("Replica", "image", &replica.image)?,
            model: ManifestId(digest("Replica", "model", &replica.model)?),
            container: required("Replica", "container", replica.container)?.try_into()?,
        })
    }
}

impl From<&checked::ContainerSpec> for Container {
    fn from(spec: &checked::ContainerSpec) -> Self {
        let health = &spec.health;
        Self {
            command: spec.command.clone(),
            environment: spec.environment.clone(),
            memory_bytes: spec.resources.memory_bytes,
            cpu_millis: spec.resources.cpu_millis,
            pids: spec.resources.pids,
            gpus: spec.resources.gpus,
            shm_bytes: spec.shm_bytes,
            tmp_bytes: spec.tmp_bytes,
            model_mount: spec.model_mount.clone(),
            transport: match spec.transport {
                Transport::Unix => 0,
                Transport::Tcp => 1,
            },
            invocations_path: spec.invocations_path.clone(),
            health: Some(Probe {
                path: health.path.clone(),
                interval_ms: health.interval_ms,
                period_ms: health.period_ms,
                timeout_ms: health.timeout_ms,
                failures: health.failures,
                start_deadline_seconds: health.start_deadline_seconds,
            }),
            stop_signal: spec.stop_signal.clone(),
            stop_grace_seconds: spec.stop_grace_seconds,
            port: spec.port.unwrap_or_default().into(),
            egress: spec
                .egress
                .rules()
                .iter()
                .map(ToString::to_string)
                .collect(),
        }
    }
}

impl TryFrom<Container> for checked::ContainerSpec {
    type Error = WireError;
    fn try_from(spec: Container) -> Result<Self, WireError> {
        let health = required("Container", "health", spec.health)?;
        let resources = Resources {
            memory_bytes: spec.memory_bytes,
            cpu_millis: spec.cpu_millis,
            pids: spec.pids,
            gpus: spec.gpus,
        };
        if let Some(problem) = resources.problem() {
            return Err(WireError::new("Container", "resources", problem));
        }
        if spec.command.is_empty() {
            return Err(WireError::new("Container", "command", "is empty"));
        }
        let transport = match spec.transport {
            0 => Transport::Unix,
            1 => Transport::Tcp,
            _ => return Err(WireError::new("Container", "transport", "is unknown")),
        };
        let port = match u16::try_from(spec.port) {
            Ok(0) => None,
            Ok(port) => Some(port),
            Err(_) => return Err(WireError::new("Container", "port", "is over 65535")),
        };
        if (transport == Transport::Tcp) != port.is_some() {
            return Err(WireError::new(
                "Container",
                "port",
                "is not for this transport",
            ));
        }
        let egress =
            Egress::parse(&spec.egress).map_err(|e| WireError::new("Container", "egress", e))?;
        Ok(Self {
            command: spec.command,
            environment: spec.environment,
            resources,
            shm_bytes: spec.shm_bytes,
            tmp_bytes: spec.tmp_bytes,
            model_mount: spec.model_mount,
            transport,
            port,
            egress,
            invocations_path: spec.invocations_path,
            health: HealthProbe {
                path: health.path,
                interval_ms: health.interval_ms,
                period_ms: health.period_ms,
                timeout_ms: health.timeout_ms,
                failures: health.failures,
                start_deadline_seconds: health.start_deadline_seconds,
            },
            stop_signal: spec.stop_signal,
            stop_grace_seconds: spec.stop_grace_seconds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ClusterId, EndpointName, EntityName, ImageRef, NodeName, ReplicaId};

    pub(crate) fn plan() -> checked::Plan {
        let oci = OciDigest::parse(&format!("sha256:{}", "a".repeat(64))).expect("valid");
        let blob = checked::OciBlob {
            media_type: "x/y".into(),
            digest: oci.clone(),
            size_bytes: 5,
        };
        let image = ImageRef::parse("stokehold.local/runtime-probe:1").expect("valid");
        let model = ManifestId(Digest::of(b"model"));
        checked::Plan {
            cluster: ClusterId::from_bits(1),
            epoch: Epoch(2),
            revision: Revision(3),
            node: NodeName::parse("n1").expect("valid"),
            images: vec![checked::PlannedImage {
                reference: image.clone(),
                origin: checked::ImageOrigin::Layout(ManifestId(Digest::of(b"image"))),
                manifest: blob.clone(),
                config: blob.clone(),
                layers: vec![checked::OciLayer { blob, diff_id: oci }],
                environment: vec!["A=1".into()],
            }],
            models: vec![checked::PlannedModel {
                manifest: model,
                label: "iris/1".into(),
                size_bytes: 9,
            }],
            replicas: vec![checked::PlannedReplica {
                id: ReplicaId::from_bits(4),
                endpoint: EndpointName::parse("iris").expect("valid"),
                entity: EntityName::parse("iris-1").expect("valid"),
                config_version: 1,
                image,
                model,
                container: checked::ContainerSpec {
                    command: vec!["/run".into()],
                    environment: BTreeMap::from([("B".into(), "2".into())]),
                    resources: Resources {
                        memory_bytes: 1 << 30,
                        cpu_millis: 500,
                        pids: 64,
                        gpus: 0,
                    },
                    shm_bytes: 1,
                    tmp_bytes: 2,
                    model_mount: "/model".into(),
                    transport: Transport::Tcp,
                    port: Some(8080),
                    egress: Egress::parse(&["10.0.0.0/8:443", "dns"]).expect("valid"),
                    invocations_path: "/invocations".into(),
                    health: HealthProbe {
                        path: "/ping".into(),
                        interval_ms: 250,
                        period_ms: 2000,
                        timeout_ms: 2000,
                        failures: 3,
                        start_deadline_seconds: 60,
                    },
                    stop_signal: "SIGTERM".into(),
                    stop_grace_seconds: 5,
                },
            }],
        }
    }

    #[test]
    fn a_plan_survives_the_wire() {
        let bytes = Plan::from(&plan()).encode_to_vec();
        let back = Plan::decode(bytes.as_slice()).expect("decodes");
        assert_eq!(checked::Plan::try_from(back), Ok(plan()));
    }

    #[test]
    fn an_image_of_a_registry_survives_the_wire_and_gives_an_older_agent_a_layout_to_miss() {
        let mut of_registry = plan();
        of_registry.images[0].origin = checked::ImageOrigin::Registry;
        let wire = Plan::from(&of_registry);
        assert_eq!(wire.images[0].layout.len(), 32);
        assert_eq!(checked::Plan::try_from(wire.clone()), Ok(of_registry));
        let mut of_the_future = wire;
        of_the_future.images[0].origin = 7;
        let error = checked::Plan::try_from(of_the_future).expect_err("refused");
        assert_eq!((error.message, error.field), ("Image", "origin"));
    }

    #[test]
    fn a_plan_with_a_bad_replica_id_is_refused_whole_and_says_where() {
        let mut bad = Plan::from(&plan());
        bad.replicas[0].id = "../../etc".into();
        let error = checked::Plan::try_from(bad).expect_err("refused");
        assert_eq!((error.message, error.field), ("Replica", "id"));
    }
}
