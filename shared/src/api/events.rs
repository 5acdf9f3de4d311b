//! What happened in a cluster, as `stokehold events` shows it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{EndpointName, EntityName, ImageRef, NodeName, ReplicaId};

/// `GET /api/stokehold/v1/events`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EventList {
    /// By time, oldest first.
    pub events: Vec<EventInfo>,
    /// What to give as `since` to get what comes after these.
    pub last_seq: u64,
    /// Events after the asked `since` that are no longer kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<Missed>,
}

/// One line of `GET /api/stokehold/v1/events?follow=true`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum EventLine {
    Missed { missed: Missed },
    Event(Box<EventInfo>),
}

/// Some events of this stretch are gone: whoever follows was too slow, or away for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Missed {
    pub after_seq: u64,
    pub up_to_seq: u64,
}

/// Something that happened. What happens again with the same words is one event that counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EventInfo {
    /// Grows with everything that happens, for the life of the cluster. An event that happened again
    /// has a new one.
    pub seq: u64,
    /// When it happened last, Unix milliseconds by the scheduler's clock.
    pub unix_ms: u64,
    /// When it happened first.
    pub first_unix_ms: u64,
    /// How often.
    pub count: u32,
    pub severity: Severity,
    pub kind: EventKind,
    /// What it happened to.
    #[serde(flatten)]
    pub subject: Subject,
    /// What happened, in one sentence.
    pub message: String,
    /// Why: the number or the report that brought it about. Empty where the message says it all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cause: String,
    /// How a replica ended, where its node knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitInfo>,
    /// The numbers of a change of size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<ScaleInfo>,
}

/// What an event is about; the last of an event that counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Subject {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<EndpointName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entity: Option<EntityName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<ReplicaId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// `iris/2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageRef>,
}

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Normal,
    /// Somebody may have to look.
    Warning,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExitInfo {
    /// As a shell gives it: 128 + signal for a death by signal.
    pub code: i32,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    pub out_of_memory: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScaleInfo {
    pub from: u32,
    pub to: u32,
    /// The rule of the autoscaler's horizontal axis that fixed it (`max-replicas`).
    pub bound_by: String,
    /// Active plus queued requests that it was made for; nothing where none were measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demand: Option<f64>,
    /// Requests that each replica takes at once.
    pub target_concurrency: u32,
}

/// What kinds of events there are.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum EventKind {
    SchedulerStarted,
    EndpointCreated,
    EndpointDeleted,
    RolloutStarted,
    RolloutDone,
    RolloutFailed,
    /// The number of replicas that is wanted changed.
    Scaled,
    /// No node can take a replica.
    NoRoom,
    ReplicaPlaced,
    /// Its container runs; it does not answer its probes yet.
    ReplicaStarted,
    ReplicaReady,
    /// It was ready and is not any more.
    ReplicaUnhealthy,
    /// It ended by itself, could not be made, or did not do its work.
    ReplicaFailed,
    /// It gets no new requests, and is stopped after its last one.
    ReplicaDraining,
    ReplicaStopped,
    /// Its node is lost.
    ReplicaLost,
    /// Its lost node is back with it.
    ReplicaBack,
    NodeJoined,
    /// The agent or the gateway of a node reaches the scheduler again, or for the first time.
    NodeConnected,
    NodeDisconnected,
    /// Silent for longer than the lease.
    NodeLost,
    NodeBack,
    NodeRevoked,
    /// A revoked node is forgotten: its name is free again.
    NodeRemoved,
    /// A daemon's certificate was renewed.
    CertificateRenewed,
    /// A new certificate authority stands beside the old one, or signs from now on.
    AuthorityRotated,
    /// The old certificate authority is trusted no longer.
    AuthorityDropped,
    ModelPushed,
    ModelDeleted,
    /// An alias stands for another version.
    ModelAliased,
    ModelFetched,
    ModelFetchFailed,
    ImageImported,
    ImageDeleted,
    ImagePulled,
    ImagePullFailed,
    /// A kind that this program does not know: a newer one wrote it.
    #[serde(other)]
    Other,
}

impl EventKind {
    pub const ALL: [EventKind; 37] = [
        EventKind::SchedulerStarted,
        EventKind::EndpointCreated,
        EventKind::EndpointDeleted,
        EventKind::RolloutStarted,
        EventKind::RolloutDone,
        EventKind::RolloutFailed,
        EventKind::Scaled,
        EventKind::NoRoom,
        EventKind::ReplicaPlaced,
        EventKind::ReplicaStarted,
        EventKind::ReplicaReady,
        EventKind::ReplicaUnhealthy,
        EventKind::ReplicaFailed,
        EventKind::ReplicaDraining,
        EventKind::ReplicaStopped,
        EventKind::ReplicaLost,
        EventKind::ReplicaBack,
        EventKind::NodeJoined,
        EventKind::NodeConnected,
        EventKind::NodeDisconnected,
        EventKind::NodeLost,
        EventKind::NodeBack,
        EventKind::NodeRevoked,
        EventKind::NodeRemoved,
        EventKind::CertificateRenewed,
        EventKind::AuthorityRotated,
        EventKind::AuthorityDropped,
        EventKind::ModelPushed,
        EventKind::ModelDeleted,
        EventKind::ModelAliased,
        EventKind::ModelFetched,
        EventKind::ModelFetchFailed,
        EventKind::ImageImported,
        EventKind::ImageDeleted,
        EventKind::ImagePulled,
        EventKind::ImagePullFailed,
        EventKind::Other,
    ];
}

/// As it stands in JSON.
impl std::fmt::Display for EventKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Unit variants' names are their texts.
        f.pad(&format!("{self:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_its_name_and_an_unknown_one_is_kept_as_other() {
        for kind in EventKind::ALL {
            let text = serde_json::to_string(&kind).expect("a text");
            assert_eq!(text, format!("\"{kind}\""));
        }
        let newer: EventKind = serde_json::from_str("\"ReplicaTeleported\"").expect("any text");
        assert_eq!(newer, EventKind::Other);
    }

    #[test]
    fn a_line_is_an_event_or_says_what_is_missing() {
        let text = r#"{"seq":7,"unix_ms":2,"first_unix_ms":1,"count":2,"severity":"warning",
            "kind":"ReplicaFailed","endpoint":"iris","replica":"0000000000000001",
            "message":"replica failed","cause":"exited with code 1",
            "exit":{"code":1,"out_of_memory":false}}"#;
        let line: EventLine = serde_json::from_str(text).expect("an event");
        let EventLine::Event(event) = &line else {
            panic!("{line:?}");
        };
        assert_eq!(
            event.subject.endpoint.as_ref().expect("one").as_str(),
            "iris"
        );
        let again = serde_json::to_value(&line).expect("JSON");
        let given: serde_json::Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(again, given);
        let text = r#"{"missed":{"after_seq":3,"up_to_seq":9}}"#;
        let line: EventLine = serde_json::from_str(text).expect("a remark");
        assert!(matches!(line, EventLine::Missed { missed } if missed.up_to_seq == 9));
    }
}
