//! What is told of endpoints: their configs, their sizes, and what stands in a replica's way.

use apa::Orders;
use shared::api::events::{EventKind, ScaleInfo};
use shared::ids::{EndpointName, EntityName};
use shared::spec::{EndpointConfig, RolloutFailure, ServedEntity};

use super::Draft;

/// Entities that a sentence names before it counts the rest.
const NAMED: usize = 3;

pub(crate) fn created(name: &EndpointName, by: &str) -> Draft {
    Draft::normal(
        EventKind::EndpointCreated,
        format!("endpoint {name} created"),
    )
    .because(format!("asked for by token {by}"))
    .endpoint(name)
}

pub(crate) fn deleted(name: &EndpointName, replicas: usize) -> Draft {
    let drain = match replicas {
        0 => "it had no replicas".to_owned(),
        1 => "its replica drains".to_owned(),
        n => format!("its {n} replicas drain"),
    };
    Draft::normal(
        EventKind::EndpointDeleted,
        format!("endpoint {name} deleted"),
    )
    .because(drain)
    .endpoint(name)
}

pub(crate) fn rollout_started(name: &EndpointName, config: &EndpointConfig) -> Draft {
    let entity = |entity: &ServedEntity| {
        let (model, version) = (&entity.model, entity.model_version);
        format!("{} is {model}/{version}", entity.name)
    };
    let mut entities: Vec<String> = config.entities.iter().take(NAMED).map(entity).collect();
    if config.entities.len() > NAMED {
        entities.push(format!("and {} more", config.entities.len() - NAMED));
    }
    let message = format!("config version {} is rolled out", config.version);
    Draft::normal(EventKind::RolloutStarted, message)
        .because(entities.join(", "))
        .endpoint(name)
}

pub(crate) fn rollout_done(name: &EndpointName, version: u32, replicas: u32, took_s: u64) -> Draft {
    let message = format!("config version {version} serves");
    let ready = match replicas {
        1 => "its replica is ready".to_owned(),
        n => format!("all {n} replicas that it needs are ready"),
    };
    Draft::normal(EventKind::RolloutDone, message)
        .because(format!("{ready} after {took_s} s"))
        .endpoint(name)
}

pub(crate) fn rollout_failed(name: &EndpointName, version: u32, failure: &RolloutFailure) -> Draft {
    let entity = &failure.entity;
    let message = format!("config version {version} failed at {entity}; what served goes on");
    Draft::warning(EventKind::RolloutFailed, message)
        .because(&failure.message)
        .endpoint(name)
        .entity(entity)
        .counting(false)
}

pub(crate) fn no_room(endpoint: &EndpointName, entity: &EntityName, reason: &str) -> Draft {
    Draft::warning(
        EventKind::NoRoom,
        format!("no replica of {entity} can be placed"),
    )
    .because(reason)
    .endpoint(endpoint)
    .entity(entity)
}

/// A change of how many replicas are wanted, with the numbers that it was made from.
pub(crate) fn scaled(
    entity: &ServedEntity,
    from: u32,
    orders: &Orders,
    demand: Option<f64>,
) -> Draft {
    let (to, target) = (orders.desired_replicas, orders.target_concurrency());
    let explanation = orders.horizontal.as_ref().map(|it| &it.explanation);
    let why = match (explanation, demand) {
        (Some(explanation), _) => explanation.because.clone(),
        (None, Some(demand)) => format!("{demand:.1} requests at once, {target} a replica"),
        (None, None) => "nothing was measured".to_owned(),
    };
    let message = format!("{} goes from {from} to {to} replicas", entity.name);
    Draft::normal(EventKind::Scaled, message)
        .because(why)
        .entity(&entity.name)
        .scale(ScaleInfo {
            from,
            to,
            bound_by: explanation.map_or_else(String::new, |it| it.rule.to_string()),
            demand,
            target_concurrency: target,
        })
}
