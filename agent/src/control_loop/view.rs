//! What the rest of the agent sees of the loop.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use shared::ids::{Epoch, ReplicaId, Revision};
use shared::report::{ImageStatus, ModelStatus, ReplicaPhase, ReplicaStatus};
use tokio::time::Instant;

use super::ControlLoop;
use crate::ledger::{Ledger, ReplicaRecord};
use crate::models::Models;
use crate::reconcile::Pass;

const PHASES: [ReplicaPhase; 9] = [
    ReplicaPhase::Pending,
    ReplicaPhase::PullingImage,
    ReplicaPhase::FetchingModel,
    ReplicaPhase::Creating,
    ReplicaPhase::Running,
    ReplicaPhase::Stopping,
    ReplicaPhase::Stopped,
    ReplicaPhase::Failed,
    ReplicaPhase::Unknown,
];

#[derive(Clone, Debug)]
pub struct NodeView {
    pub plan: Option<(Epoch, Revision)>,
    pub highest_epoch: Epoch,
    pub replicas: Vec<ReplicaStatus>,
    pub images: Vec<ImageStatus>,
    pub models: Vec<ModelStatus>,
    /// The images of the plan, by the hex of their manifests' digests.
    pub planned_images: BTreeSet<String>,
    /// When the ages in `replicas` were true.
    pub at: Instant,
    /// Whether containerd was looked at since the agent's start.
    pub looked: bool,
}

impl NodeView {
    /// Before the first look: what the ledger remembers may be running or not. Saying nothing of it
    /// would say that it is gone, and take replicas that serve out of the routes.
    pub fn unseen(ledger: &Ledger) -> Self {
        let unknown = |(id, record): (&ReplicaId, &ReplicaRecord)| ReplicaStatus {
            id: id.clone(),
            endpoint: record.endpoint.clone(),
            entity: record.entity.clone(),
            phase: ReplicaPhase::Unknown,
            reason: "the agent has just started and has not looked yet".to_owned(),
            since: Duration::ZERO,
            exit: None,
            sample: None,
        };
        Self {
            plan: ledger.plan().map(|plan| (plan.epoch, plan.revision)),
            highest_epoch: ledger.highest_epoch(),
            replicas: ledger.replicas().iter().map(unknown).collect(),
            looked: false,
            images: Vec::new(),
            models: Vec::new(),
            planned_images: (ledger.plan().into_iter())
                .flat_map(|plan| &plan.images)
                .map(|image| image.manifest.digest.hex().to_owned())
                .collect(),
            at: Instant::now(),
        }
    }
}

impl<M: Models> ControlLoop<M> {
    pub(super) fn publish(&mut self, pass: &Pass) {
        let now = self.now();
        let mut replicas = self.world.statuses(pass, &self.parts.ledger, now);
        if let Some(trouble) = &self.ledger_trouble {
            // Whoever asks for the replica learns what it waits for.
            let waits = |status: &&mut ReplicaStatus| match status.phase {
                ReplicaPhase::Pending
                | ReplicaPhase::PullingImage
                | ReplicaPhase::FetchingModel
                | ReplicaPhase::Creating => true,
                ReplicaPhase::Running
                | ReplicaPhase::Stopping
                | ReplicaPhase::Stopped
                | ReplicaPhase::Failed
                | ReplicaPhase::Unknown => false,
            };
            for status in replicas.iter_mut().filter(waits) {
                status.reason = format!("nothing is started on this node: {trouble}");
            }
        }
        let metrics = &self.parts.metrics;
        metrics.phases(PHASES.map(|phase| {
            let count = replicas
                .iter()
                .filter(|status| status.phase == phase)
                .count();
            (phase.as_str(), i64::try_from(count).unwrap_or(i64::MAX))
        }));
        let view = NodeView {
            replicas,
            images: pass.images.clone(),
            models: pass.models.clone(),
            looked: true,
            ..NodeView::unseen(&self.parts.ledger)
        };
        self.parts.view.send_replace(Arc::new(view));
    }
}
