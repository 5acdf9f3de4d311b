//! One pass's second half: decide, remember, act.

use std::collections::BTreeSet;

use daemon::telemetry::Chain;
use shared::ids::{ImageRef, ReplicaId};
use shared::plan::PlannedReplica;
use tracing::{error, info, warn};

use super::ControlLoop;
use crate::executor::Work;
use crate::ledger::ReplicaRecord;
use crate::models::Models;
use crate::reconcile::{self, Action, Pass, Subject};
use crate::replica::{Exit, Life, Step, Trouble, exit_reason};
use crate::steps::StartOrder;

/// Decisions that change the ledger alone are followed up within the same pass.
const ROUNDS: usize = 3;

impl<M: Models> ControlLoop<M> {
    pub(super) async fn decide(&mut self, looked: bool) -> Pass {
        for _ in 1..ROUNDS {
            let pass = self.plan();
            if !self.save().await {
                return pass;
            }
            // A look that failed is no ground to call anything ended or gone.
            if !looked || !self.remember(&pass) {
                self.act(&pass, looked).await;
                return pass;
            }
        }
        let pass = self.plan();
        if self.save().await {
            self.act(&pass, looked).await;
        }
        pass
    }

    fn plan(&self) -> Pass {
        let (models, executor) = (&self.parts.models, &self.executor);
        let busy: BTreeSet<Subject> = executor.busy().cloned().collect();
        let observed = self.world.observed(
            &self.parts.ledger,
            &self.parts.boot,
            busy,
            |id| models.view(id).is_some(),
            |subject| executor.progress(subject),
        );
        reconcile::plan(self.parts.ledger.plan(), &observed, self.now())
    }

    /// Decisions that concern the ledger alone. Whether there were any.
    fn remember(&mut self, pass: &Pass) -> bool {
        let now = self.now();
        let mut any = false;
        for action in &pass.actions {
            let Action::Replica { id, step } = action else {
                continue;
            };
            match step {
                Step::RecordEnd { reason, exit } => {
                    self.record_end(id, reason, exit.as_ref().map(Exit::from));
                    any = true;
                }
                Step::Forget => {
                    let last = self.world.statuses(pass, &self.parts.ledger, now);
                    let last = last.into_iter().find(|status| status.id == *id);
                    self.unsaved |= self.parts.ledger.forget(id);
                    self.world.forget(id, last, now);
                    info!(replica = %id, "replica is gone");
                    any = true;
                }
                Step::Start | Step::Announce | Step::Signal | Step::Kill | Step::Remove => {}
            }
        }
        any
    }

    fn record_end(&mut self, id: &ReplicaId, reason: &str, exit: Option<Exit>) {
        let instance = &self.parts.steps.instance;
        let killed = self.parts.steps.cgroups.ran_out_of_memory(instance, id);
        let out_of_memory = killed == Some(true) || self.world.was_out_of_memory(id);
        let exit = exit.map(|exit| Exit {
            out_of_memory: exit.out_of_memory || out_of_memory,
            ..exit
        });
        let reason = match exit {
            Some(exit) => exit_reason(&exit.into()),
            None => reason.to_owned(),
        };
        warn!(replica = %id, reason, "replica ended by itself");
        // A start that failed has no record where even its user id could not be had.
        if let Some(planned) = self.planned(id) {
            let record = ReplicaRecord::new(&planned, 0);
            self.parts.ledger.adopt(id.clone(), record);
        }
        let life = Life::Ended { reason, exit };
        self.unsaved |= self.parts.ledger.set_life(id, life);
        self.world.end_recorded(id);
    }

    fn planned(&self, id: &ReplicaId) -> Option<PlannedReplica> {
        let plan = self.parts.ledger.plan()?;
        plan.replicas.iter().find(|r| r.id == *id).cloned()
    }

    async fn act(&mut self, pass: &Pass, looked: bool) {
        self.pin(pass);
        for action in &pass.actions {
            // After a look that failed only what does not touch containerd goes on.
            if !looked && !matches!(action, Action::HoldModel { .. }) {
                continue;
            }
            if let Some(work) = self.work_for(action) {
                // A user id must be on disk before a process runs under it.
                if self.save().await {
                    self.executor.offer(work);
                }
            }
        }
    }

    /// Until a plan is held, nothing is said about pins, and the cache evicts nothing.
    /// The layouts of images that are to be brought in are pinned before they are fetched.
    fn pin(&self, pass: &Pass) {
        if let Some(plan) = self.parts.ledger.plan() {
            let mut pins = self.world.models_in_use(&self.parts.ledger);
            pins.extend(self.executor.layouts());
            let brought_in = |reference: &ImageRef| {
                pass.actions.iter().any(
                    |action| matches!(action, Action::HoldImage { reference: r } if r == reference),
                )
            };
            let images = plan.images.iter();
            pins.extend(
                images
                    .filter(|image| brought_in(&image.reference))
                    .filter_map(|image| image.origin.layout()),
            );
            self.parts.models.set_pins(pins);
        }
    }

    /// An action with all that its execution needs; `None` where that is not there (any more).
    fn work_for(&mut self, action: &Action) -> Option<Work> {
        match action {
            Action::Replica { id, step } => match step {
                Step::Start => self
                    .start_order(id)
                    .map(|order| Work::Start(Box::new(order))),
                Step::Announce => Some(Work::Announce {
                    replica: Box::new(self.planned(id)?),
                    uid: self.parts.ledger.replicas().get(id)?.uid,
                }),
                Step::Signal => Some(Work::Signal {
                    id: id.clone(),
                    signal: self.parts.ledger.replicas().get(id)?.stop_signal.clone(),
                }),
                Step::Kill => Some(Work::Kill(id.clone())),
                Step::Remove => Some(Work::Remove(id.clone())),
                Step::RecordEnd { .. } | Step::Forget => None,
            },
            Action::HoldImage { reference } => {
                let plan = self.parts.ledger.plan()?;
                let image = plan.images.iter().find(|i| i.reference == *reference)?;
                Some(Work::HoldImage(Box::new(image.clone())))
            }
            Action::HoldModel { manifest } => Some(Work::HoldModel(*manifest)),
            Action::DropImage { reference } => Some(Work::DropImage(reference.clone())),
        }
    }

    fn start_order(&mut self, id: &ReplicaId) -> Option<StartOrder> {
        let replica = self.planned(id)?;
        let plan = self.parts.ledger.plan()?;
        let image = plan.images.iter().find(|i| i.reference == replica.image)?;
        let (image, cluster) = (image.clone(), plan.cluster.clone());
        let model_dir = self.parts.models.view(&replica.model)?;
        let known = self.parts.ledger.replicas().contains_key(id);
        match self.parts.ledger.admit(&replica, self.parts.uids) {
            Ok(uid) => {
                self.unsaved |= !known;
                Some(StartOrder {
                    replica,
                    image,
                    cluster,
                    model_dir,
                    uid,
                })
            }
            Err(error) => {
                let now = self.now();
                let subject = Subject::Replica(id.clone());
                self.world.trouble(subject, |before| {
                    Trouble::after(before, error.to_string(), now)
                });
                None
            }
        }
    }

    /// Whether the ledger on disk is the one in memory: nothing is done that it does not say.
    async fn save(&mut self) -> bool {
        if !self.unsaved {
            return true;
        }
        let (path, ledger) = (self.parts.ledger_path.clone(), self.parts.ledger.clone());
        let saved = tokio::task::spawn_blocking(move || path.save(&ledger)).await;
        let reason = match saved {
            Ok(Ok(())) => {
                self.unsaved = false;
                if self.ledger_trouble.take().is_some() {
                    info!("the ledger can be written again");
                    self.set_ready();
                }
                return true;
            }
            Ok(Err(error)) => Chain(&error).to_string(),
            Err(ended) => ended.to_string(),
        };
        if self.ledger_trouble.as_ref() != Some(&reason) {
            error!(
                error = reason,
                "the ledger cannot be written, nothing is changed until it can"
            );
            self.ledger_trouble = Some(reason);
            self.set_ready();
        }
        false
    }
}
