//! Answers of a server, for the tests of several commands.

use std::collections::BTreeMap;

use shared::api::autoscaler::TargetOrigin;
use shared::api::serving::{
    ConfigOutput, Detailed, EndpointState, EntityState, RouteOutput, ServedEntityOutput,
    StokeholdEntity, Summary, SummaryConfig, SummaryEntity, TrafficOutput,
};
use shared::api::{DecisionInfo, EndpointDescription, ReplicaInfo};
use shared::ids::{EndpointId, ReplicaId};

pub(crate) fn summary(name: &str, ready: &str, update: &str) -> Summary {
    let entity = SummaryEntity {
        name: format!("{name}-1"),
        entity_name: name.into(),
        entity_version: "1".into(),
        model_name: name.into(),
        model_version: "1".into(),
    };
    Summary {
        name: name.parse().expect("name"),
        id: EndpointId::from_bits(1),
        creator: "ann".into(),
        creation_timestamp: 999_000_000,
        last_updated_timestamp: 999_000_000,
        state: state(ready, update),
        tags: vec![],
        description: None,
        config: Some(SummaryConfig {
            served_entities: vec![entity.clone()],
            served_models: vec![entity],
        }),
    }
}

fn state(ready: &str, update: &str) -> EndpointState {
    EndpointState {
        ready: ready.into(),
        config_update: update.into(),
    }
}

pub(crate) fn config(version: u32, deployment: &str, message: &str) -> ConfigOutput {
    let entity = ServedEntityOutput {
        name: "iris-1".into(),
        entity_name: "iris".into(),
        entity_version: "1".into(),
        model_name: "iris".into(),
        model_version: "1".into(),
        workload_size: None,
        min_provisioned_concurrency: None,
        max_provisioned_concurrency: None,
        workload_type: "CPU".into(),
        scale_to_zero_enabled: false,
        environment_vars: BTreeMap::new(),
        creator: "ann".into(),
        creation_timestamp: 999_000_000,
        state: EntityState {
            deployment: deployment.into(),
            deployment_state_message: message.into(),
        },
        stokehold: StokeholdEntity {
            runtime: Some("mlflow".into()),
            target_concurrency: Some(4),
            latency_objective_ms: None,
            min_replicas: Some(1),
            max_replicas: Some(4),
            memory_bytes: None,
            cpu_millis: None,
        },
    };
    ConfigOutput {
        served_entities: vec![entity.clone()],
        served_models: vec![entity],
        traffic_config: TrafficOutput {
            routes: vec![RouteOutput {
                served_model_name: "iris-1".into(),
                served_entity_name: "iris-1".into(),
                traffic_percentage: 100,
            }],
        },
        config_version: version,
        start_time: None,
    }
}

/// Version 1 of `iris`: pending while `update` is not `NOT_UPDATING`.
pub(crate) fn description(update: &str) -> EndpointDescription {
    let done = update == "NOT_UPDATING";
    let config = match update {
        "NOT_UPDATING" => config(1, "DEPLOYMENT_READY", ""),
        "UPDATE_FAILED" => config(1, "DEPLOYMENT_FAILED", "3 replicas ended with exit 1"),
        _ => config(1, "DEPLOYMENT_CREATING", "no node has 1 GiB memory free"),
    };
    EndpointDescription {
        endpoint: Detailed {
            name: "iris".parse().expect("name"),
            id: EndpointId::from_bits(1),
            creator: "ann".into(),
            creation_timestamp: 999_000_000,
            last_updated_timestamp: 999_940_000,
            state: state(if done { "READY" } else { "NOT_READY" }, update),
            config: done.then(|| config.clone()),
            pending_config: (!done).then_some(config),
            tags: vec![],
            permission_level: "CAN_MANAGE".into(),
            route_optimized: false,
            description: None,
            endpoint_type: "CUSTOM_MODEL".into(),
        },
        replicas: vec![],
        decisions: vec![DecisionInfo {
            entity: "iris-1".parse().expect("name"),
            desired_replicas: 2,
            ready_replicas: 1,
            target_concurrency: 4,
            target_origin: TargetOrigin::Pinned,
            demand: Some(6.25),
            bound_by: "demand".into(),
            age_s: 3.2,
        }],
        events: vec![],
        blocked: vec![],
    }
}

pub(crate) fn replica(n: u64, state: &str, reason: &str) -> ReplicaInfo {
    ReplicaInfo {
        id: ReplicaId::from_bits(n << 40),
        endpoint: "iris".parse().expect("name"),
        entity: "iris-1".parse().expect("name"),
        node: "n1".parse().expect("name"),
        state: state.into(),
        reason: reason.into(),
        since_s: 12.5,
        in_flight: 2,
        cpu_cores: (state == "ready").then_some(0.25),
        memory_bytes: (state == "ready").then_some(300 << 20),
        memory_limit_bytes: Some(1 << 30),
        ended: state == "failed",
    }
}
