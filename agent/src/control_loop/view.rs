//! What the rest of the agent sees of the loop.

use std::sync::Arc;

use shared::ids::{Epoch, Revision};
use shared::report::{ImageStatus, ModelStatus, ReplicaPhase, ReplicaStatus};
use tokio::time::Instant;

use super::ControlLoop;
use crate::ledger::Ledger;
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
    /// When the ages in `replicas` were true.
    pub at: Instant,
}

impl NodeView {
    pub fn empty(ledger: &Ledger) -> Self {
        Self {
            plan: ledger.plan().map(|plan| (plan.epoch, plan.revision)),
            highest_epoch: ledger.highest_epoch(),
            replicas: Vec::new(),
            images: Vec::new(),
            models: Vec::new(),
            at: Instant::now(),
        }
    }
}

impl<M: Models> ControlLoop<M> {
    pub(super) fn publish(&mut self, pass: &Pass) {
        let now = self.now();
        let replicas = self.world.statuses(pass, &self.parts.ledger, now);
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
            ..NodeView::empty(&self.parts.ledger)
        };
        self.parts.view.send_replace(Arc::new(view));
    }
}
