//! What is told of acts that are only recorded (see `registry`), and of the scheduler itself.

use shared::api::events::EventKind;
use shared::digest::OciDigest;
use shared::ids::{Epoch, ImageRef, ModelName, NodeName, Role};

use super::Draft;
use crate::core::Core;

/// A process of the scheduler has begun.
pub fn scheduler_started(version: &str, epoch: Epoch, core: &Core) -> Draft {
    let (endpoints, replicas) = (core.endpoints.len(), core.replicas.len());
    let message = format!("scheduler {version} started");
    Draft::normal(EventKind::SchedulerStarted, message).because(format!(
        "epoch {epoch}; its store holds {endpoints} endpoints and {replicas} replicas"
    ))
}

pub fn joined(node: &NodeName, role: Role) -> Draft {
    Draft::normal(
        EventKind::NodeJoined,
        format!("node {node} joined as {role}"),
    )
    .because("it redeemed a join token")
    .node(node)
}

pub fn revoked(node: &NodeName, by: &str) -> Draft {
    Draft::warning(EventKind::NodeRevoked, format!("node {node} is revoked"))
        .because(format!("asked for by token {by}"))
        .node(node)
}

pub fn removed(node: &NodeName, by: &str) -> Draft {
    let message = format!("node {node} is forgotten; its name is free again");
    Draft::normal(EventKind::NodeRemoved, message)
        .because(format!("asked for by token {by}"))
        .node(node)
}

/// `until`: the end of the new certificate's life, for people.
pub fn renewed(node: &NodeName, role: Role, until: &str) -> Draft {
    let message = format!("certificate of the {role} of node {node} renewed");
    Draft::normal(EventKind::CertificateRenewed, message)
        .because(format!("valid until {until}"))
        .node(node)
}

pub fn authority_made(by: &str) -> Draft {
    let message = "a new certificate authority stands beside the old one".to_owned();
    Draft::normal(EventKind::AuthorityRotated, message).because(format!("asked for by token {by}"))
}

pub fn authority_signs() -> Draft {
    let message = "the new certificate authority signs from now on".to_owned();
    Draft::normal(EventKind::AuthorityRotated, message).because("every node trusts it".to_owned())
}

/// `cut_off`: how many daemons still had a certificate of it.
pub fn authority_dropped(by: &str, cut_off: usize) -> Draft {
    let message = "the old certificate authority is trusted no longer".to_owned();
    let cause = format!("asked for by token {by}");
    if cut_off == 0 {
        return Draft::normal(EventKind::AuthorityDropped, message).because(cause);
    }
    Draft::warning(EventKind::AuthorityDropped, message).because(format!(
        "{cause}, by force: {cut_off} daemons must join again"
    ))
}

pub fn pushed(model: &ModelName, version: u32, by: &str) -> Draft {
    Draft::normal(
        EventKind::ModelPushed,
        format!("model {model}/{version} is registered"),
    )
    .because(format!("pushed by token {by}"))
    .model(model, version)
}

pub fn aliased(model: &ModelName, version: u32, alias: &str, by: &str) -> Draft {
    let message = format!("model {model}@{alias} stands for version {version}");
    Draft::normal(EventKind::ModelAliased, message)
        .because(format!("set by token {by}"))
        .model(model, version)
}

pub fn model_deleted(model: &ModelName, version: u32, by: &str) -> Draft {
    Draft::normal(
        EventKind::ModelDeleted,
        format!("model {model}/{version} is deleted"),
    )
    .because(format!("asked for by token {by}"))
    .model(model, version)
}

pub fn image_imported(image: &ImageRef, by: &str) -> Draft {
    Draft::normal(
        EventKind::ImageImported,
        format!("image {image} is registered"),
    )
    .because(format!("imported by token {by}"))
    .image(image)
}

pub fn image_found(image: &ImageRef, digest: &OciDigest) -> Draft {
    Draft::normal(
        EventKind::ImageImported,
        format!("image {image} is registered"),
    )
    .because(format!("its registry says that it is {digest}"))
    .image(image)
}

pub fn image_not_found(image: &ImageRef, why: &str) -> Draft {
    let message = format!("image {image} is not to be had; its registry is asked again");
    Draft::warning(EventKind::ImagePullFailed, message)
        .because(why.to_owned())
        .image(image)
}

pub fn image_deleted(image: &ImageRef, by: &str) -> Draft {
    Draft::normal(EventKind::ImageDeleted, format!("image {image} is deleted"))
        .because(format!("asked for by token {by}"))
        .image(image)
}
