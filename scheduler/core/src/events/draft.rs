//! What is to be told of something that happened: an event before it has a number and a time.

use shared::api::events::{EventInfo, EventKind, ExitInfo, ScaleInfo, Severity, Subject};
use shared::ids::{EndpointName, EntityName, ImageRef, ModelName, NodeName};
use shared::report::ReplicaExit;

use crate::replica::Replica;

#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    pub(super) kind: EventKind,
    pub(super) severity: Severity,
    pub(super) subject: Subject,
    pub(super) message: String,
    pub(super) cause: String,
    pub(super) exit: Option<ExitInfo>,
    pub(super) scale: Option<ScaleInfo>,
    /// The same words of the same subject soon after are the same event again, whichever replica it
    /// was: what may go on for hours must not push everything else out.
    pub(super) counts: bool,
}

impl Draft {
    pub fn normal(kind: EventKind, message: impl Into<String>) -> Self {
        Self::new(kind, Severity::Normal, message.into())
    }

    /// Warnings count.
    pub fn warning(kind: EventKind, message: impl Into<String>) -> Self {
        Self::new(kind, Severity::Warning, message.into()).counting(true)
    }

    fn new(kind: EventKind, severity: Severity, message: String) -> Self {
        Self {
            kind,
            severity,
            subject: Subject::default(),
            message,
            cause: String::new(),
            exit: None,
            scale: None,
            counts: false,
        }
    }

    /// Why: the number or the report that brought it about.
    pub fn because(mut self, cause: impl Into<String>) -> Self {
        self.cause = cause.into();
        self
    }

    pub fn endpoint(mut self, endpoint: &EndpointName) -> Self {
        self.subject.endpoint = Some(endpoint.clone());
        self
    }

    pub fn entity(mut self, entity: &EntityName) -> Self {
        self.subject.entity = Some(entity.clone());
        self
    }

    pub fn node(mut self, node: &NodeName) -> Self {
        self.subject.node = Some(node.clone());
        self
    }

    pub fn model(mut self, name: &ModelName, version: u32) -> Self {
        self.subject.model = Some(format!("{name}/{version}"));
        self
    }

    pub fn image(mut self, image: &ImageRef) -> Self {
        self.subject.image = Some(image.clone());
        self
    }

    pub(crate) fn replica(mut self, replica: &Replica) -> Self {
        self.subject.replica = Some(replica.id.clone());
        self.endpoint(&replica.endpoint)
            .entity(&replica.set.entity)
            .node(&replica.node)
    }

    pub(crate) fn exit(mut self, exit: Option<&ReplicaExit>) -> Self {
        self.exit = exit.map(|exit| ExitInfo {
            code: exit.code,
            // As shells do it; no signal has a greater number.
            signal: (129..=192).contains(&exit.code).then(|| exit.code - 128),
            out_of_memory: exit.out_of_memory,
        });
        self
    }

    pub(crate) fn scale(mut self, scale: ScaleInfo) -> Self {
        self.scale = Some(scale);
        self
    }

    pub(crate) fn counting(mut self, counts: bool) -> Self {
        self.counts = counts;
        self
    }

    /// Whether an event is the same again, but for the replica and for why.
    pub(super) fn repeats(&self, event: &EventInfo) -> bool {
        let of_any_replica = |subject: &Subject| Subject {
            replica: None,
            ..subject.clone()
        };
        self.kind == event.kind
            && self.severity == event.severity
            && self.message == event.message
            && of_any_replica(&self.subject) == of_any_replica(&event.subject)
    }
}
