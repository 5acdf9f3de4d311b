//! Small inputs with everything filled in.

use std::collections::BTreeMap;

use scheduler_core::Settings;
use scheduler_core::registry::{ModelContents, NewJoinToken, Redemption, Registry, Secret};
use scheduler_core::store_op::Op;
use shared::api::serving::{
    ConfigInput, CreateEndpoint, RouteInput, ServedEntityInput, StokeholdEntity, TrafficInput,
};
use shared::digest::{Digest, OciDigest};
use shared::ids::{ClusterId, ImageRef, NodeName, Role, RuntimeName, TokenId};
use shared::manifest::{Description, ManifestId};
use shared::plan::{ImageOrigin, OciBlob, PlannedImage};
use shared::runtime::{HealthProbe, Protocol, Resources, RuntimeTemplate, Transport};

pub(crate) const IMAGE: &str = "stokehold.local/runtime-mlflow:1";

pub(crate) fn settings() -> Settings {
    let template = template("mlflow");
    Settings::new(
        ClusterId::from_bits(1),
        BTreeMap::from([(template.name.clone(), template)]),
    )
}

pub(crate) fn template(name: &str) -> RuntimeTemplate {
    RuntimeTemplate {
        name: RuntimeName::parse(name).expect("valid"),
        image: ImageRef::parse(IMAGE).expect("valid"),
        command: vec!["serve".into()],
        protocol: Protocol::Http,
        transport: Transport::Unix,
        port: None,
        egress: Default::default(),
        model_mount: "/model".into(),
        invocations_path: "/invocations".into(),
        stop_signal: "SIGTERM".into(),
        stop_grace_seconds: 20,
        shm_bytes: 1 << 20,
        tmp_bytes: 1 << 20,
        environment: BTreeMap::from([("HOME".into(), "/tmp".into())]),
        health: HealthProbe {
            path: "/ping".into(),
            interval_ms: 250,
            period_ms: 2000,
            timeout_ms: 2000,
            failures: 3,
            start_deadline_seconds: 60,
        },
        resources: Resources {
            memory_bytes: 1 << 30,
            cpu_millis: 1000,
            pids: 64,
            gpus: 0,
        },
    }
}

pub(crate) fn image() -> PlannedImage {
    let blob = |tag: &str| OciBlob {
        media_type: "application/octet-stream".into(),
        digest: OciDigest::parse(&format!("sha256:{}", Digest::of(tag.as_bytes()))).expect("valid"),
        size_bytes: 10,
    };
    PlannedImage {
        reference: ImageRef::parse(IMAGE).expect("valid"),
        origin: ImageOrigin::Layout(ManifestId(Digest::of(b"layout"))),
        manifest: blob("manifest"),
        config: blob("config"),
        layers: vec![],
        environment: vec![],
    }
}

pub(crate) fn mlflow_description() -> Description {
    Description {
        flavors: BTreeMap::from([("python_function".into(), "3.0".into())]),
        ..Description::default()
    }
}

pub(crate) fn contents(tag: &str, description: Description) -> ModelContents {
    ModelContents {
        manifest: ManifestId(Digest::of(tag.as_bytes())),
        size_bytes: 1 << 20,
        description,
    }
}

/// What replicas of [`entity`] take at once: pinned, so that no scenario hangs on what is learned.
pub(crate) const TARGET: u32 = 4;

pub(crate) fn entity(model: &str, version: u32) -> ServedEntityInput {
    ServedEntityInput {
        stokehold: Some(StokeholdEntity {
            target_concurrency: Some(TARGET),
            ..StokeholdEntity::default()
        }),
        ..learning(model, version)
    }
}

/// One whose target is learned.
pub(crate) fn learning(model: &str, version: u32) -> ServedEntityInput {
    ServedEntityInput {
        entity_name: Some(model.into()),
        entity_version: Some(version.to_string()),
        ..ServedEntityInput::default()
    }
}

/// One replica at least, this many at most.
pub(crate) fn bounded(model: &str, version: u32, min: u32, max: u32) -> ServedEntityInput {
    ServedEntityInput {
        stokehold: Some(StokeholdEntity {
            target_concurrency: Some(TARGET),
            min_replicas: Some(min),
            max_replicas: Some(max),
            ..StokeholdEntity::default()
        }),
        ..entity(model, version)
    }
}

pub(crate) fn config(entities: Vec<ServedEntityInput>) -> ConfigInput {
    ConfigInput {
        served_entities: Some(entities),
        ..ConfigInput::default()
    }
}

pub(crate) fn split(entities: Vec<ServedEntityInput>, shares: &[(&str, &str)]) -> ConfigInput {
    let routes = shares.iter().map(|(name, percent)| RouteInput {
        served_model_name: None,
        served_entity_name: Some((*name).into()),
        traffic_percentage: Some((*percent).into()),
    });
    ConfigInput {
        traffic_config: Some(TrafficInput {
            routes: routes.collect(),
        }),
        ..config(entities)
    }
}

pub(crate) fn create(name: &str, config: ConfigInput) -> CreateEndpoint {
    CreateEndpoint {
        name: name.into(),
        config: Some(config),
        ..CreateEndpoint::default()
    }
}

/// Lets a node join with a token of its own.
pub(crate) fn join(registry: &mut Registry, node: &NodeName) -> Vec<Op> {
    let number = registry.join_tokens().count() as u64;
    let secret = Secret {
        id: TokenId::from_bits(number),
        bytes: [7; 32],
    };
    let new = NewJoinToken {
        replace: None,
        roles: vec![],
        lifetime_s: None,
        addresses: vec!["s:7443".into()],
        ca_sha256: "a".repeat(64),
    };
    let (token, mut ops) = registry.create_join_token(new, &secret, 1).expect("valid");
    for role in [Role::Agent, Role::Gateway] {
        let attempt = Redemption {
            until_unix: 0,
            id: &token.id,
            secret: &token.secret,
            role,
            node,
            key_hash: "key",
        };
        ops.extend(registry.redeem(&attempt, 1).expect("fresh"));
    }
    ops
}
