//! Small values for this crate's unit tests.

use std::collections::BTreeMap;

use shared::digest::{Digest, OciDigest};
use shared::ids::{
    ClusterId, EndpointName, EntityName, Epoch, ImageRef, NodeName, ReplicaId, Revision,
};
use shared::manifest::ManifestId;
use shared::plan::{
    ContainerSpec, ImageOrigin, OciBlob, OciLayer, Plan, PlannedImage, PlannedModel, PlannedReplica,
};
use shared::runtime::{HealthProbe, Resources, Transport};

pub(crate) fn image_ref() -> ImageRef {
    ImageRef::parse("stokehold.local/runtime-probe:1").expect("valid")
}

pub(crate) fn model_id() -> ManifestId {
    ManifestId(Digest::of(b"model"))
}

pub(crate) fn planned_image() -> PlannedImage {
    let digest = |text: &str| {
        OciDigest::parse(&format!("sha256:{}", Digest::of(text.as_bytes()))).expect("valid")
    };
    let blob = |name: &str| OciBlob {
        media_type: format!("application/vnd.oci.image.{name}"),
        digest: digest(name),
        size_bytes: 10,
    };
    PlannedImage {
        reference: image_ref(),
        origin: ImageOrigin::Layout(ManifestId(Digest::of(b"layout"))),
        manifest: blob("manifest.v1+json"),
        config: blob("config.v1+json"),
        layers: vec![OciLayer {
            blob: blob("layer.v1.tar+gzip"),
            diff_id: digest("diff"),
        }],
        environment: vec!["PATH=/usr/bin:/bin".into(), "HOME=/root".into()],
    }
}

pub(crate) fn planned_replica(n: u64) -> PlannedReplica {
    PlannedReplica {
        id: ReplicaId::from_bits(n),
        endpoint: EndpointName::parse("iris").expect("valid"),
        entity: EntityName::parse("iris-1").expect("valid"),
        config_version: 1,
        image: image_ref(),
        model: model_id(),
        container: ContainerSpec {
            command: vec!["/stokehold-probe".into(), "--model".into(), "/model".into()],
            environment: BTreeMap::from([("LEVEL".to_owned(), "warn".to_owned())]),
            resources: Resources {
                memory_bytes: 128 << 20,
                cpu_millis: 500,
                pids: 64,
                gpus: 0,
            },
            shm_bytes: 1 << 20,
            tmp_bytes: 16 << 20,
            model_mount: "/model".into(),
            transport: Transport::Unix,
            port: None,
            egress: Default::default(),
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
            stop_grace_seconds: 20,
        },
    }
}

pub(crate) fn plan_with(epoch: u64, revision: u64, replicas: Vec<PlannedReplica>) -> Plan {
    Plan {
        cluster: ClusterId::from_bits(1),
        epoch: Epoch(epoch),
        revision: Revision(revision),
        node: NodeName::parse("n1").expect("valid"),
        images: vec![planned_image()],
        models: vec![PlannedModel {
            manifest: model_id(),
            label: "iris/1".into(),
            size_bytes: 100,
        }],
        replicas,
    }
}
