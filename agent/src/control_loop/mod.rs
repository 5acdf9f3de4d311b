//! The loop that makes the node match its plan: look, decide, remember, act.
//!
//! It owns the ledger and the world; everybody else gets snapshots. Nothing is acted upon before
//! containerd was listed and the ledger was read, before what was decided on is on disk, or after a
//! look that failed.

mod decide;
mod view;

use std::sync::Arc;
use std::time::Duration;

use daemon::telemetry::Chain;
use shared::ids::{NodeName, ReplicaId};
use shared::plan::{Acceptance, Plan};
use shared::units::MonoTime;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub use view::NodeView;

use crate::containerd::events::NodeEvent;
use crate::executor::{Done, Executor, Outcome, WorkKind};
use crate::ledger::{Ledger, LedgerPath, UidRange};
use crate::look::{Look, look};
use crate::metrics::Metrics;
use crate::models::Models;
use crate::reconcile::Subject;
use crate::replica::BootId;
use crate::steps::Steps;
use crate::world::World;

const EVERY: Duration = Duration::from_secs(1);
/// Events are not replayed, so that a look must come without one, too.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What the loop is made of.
pub struct Parts<M> {
    pub node: NodeName,
    pub boot: BootId,
    pub uids: UidRange,
    pub ledger: Ledger,
    pub ledger_path: LedgerPath,
    pub steps: Arc<Steps>,
    pub models: Arc<M>,
    pub metrics: Metrics,
    pub plans: mpsc::Receiver<Plan>,
    pub events: mpsc::Receiver<NodeEvent>,
    pub view: watch::Sender<Arc<NodeView>>,
    pub running: watch::Sender<Vec<ReplicaId>>,
    pub ready: watch::Sender<Result<(), String>>,
}

pub struct ControlLoop<M> {
    parts: Parts<M>,
    world: World,
    executor: Executor<M>,
    origin: Instant,
    looked_at: Option<Instant>,
    dirty: bool,
    /// The ledger in memory is ahead of the one on disk.
    unsaved: bool,
    adopted: bool,
    /// Why the node cannot be looked at, while it cannot.
    look_trouble: Option<String>,
    /// Why the ledger cannot be written, while it cannot.
    ledger_trouble: Option<String>,
}

enum Wake {
    Timer,
    Plan(Plan),
    Event(NodeEvent),
    Done(Done),
}

impl<M: Models> ControlLoop<M> {
    pub fn new(parts: Parts<M>) -> Self {
        let executor = Executor::new(Arc::clone(&parts.steps), Arc::clone(&parts.models));
        Self {
            parts,
            world: World::default(),
            executor,
            origin: Instant::now(),
            looked_at: None,
            dirty: true,
            // A ledger that was rebuilt, or never there, is written once.
            unsaved: true,
            adopted: false,
            look_trouble: None,
            ledger_trouble: None,
        }
    }

    pub async fn run(mut self, cancel: CancellationToken) -> anyhow::Result<()> {
        let mut ticker = tokio::time::interval(EVERY);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let wake = tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                _ = ticker.tick() => Wake::Timer,
                Some(plan) = self.parts.plans.recv() => Wake::Plan(plan),
                Some(event) = self.parts.events.recv() => Wake::Event(event),
                done = self.executor.next_done() => Wake::Done(done),
            };
            self.take_in(wake);
            // What came meanwhile is worth one pass, not one each.
            while let Ok(event) = self.parts.events.try_recv() {
                self.take_in(Wake::Event(event));
            }
            let pass = self.pass();
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = pass => {}
            }
        }
    }

    fn now(&self) -> MonoTime {
        MonoTime::from(self.origin.elapsed())
    }

    fn take_in(&mut self, wake: Wake) {
        match wake {
            Wake::Timer => {}
            Wake::Event(NodeEvent::Changed) => self.dirty = true,
            Wake::Event(NodeEvent::OutOfMemory(id)) => {
                if self.world.out_of_memory(&id, &self.parts.ledger) {
                    warn!(replica = %id, "the kernel killed a process of a replica: out of memory");
                    self.dirty = true;
                }
            }
            Wake::Plan(plan) => self.offer(plan),
            Wake::Done(done) => self.ended(&done),
        }
    }

    fn offer(&mut self, plan: Plan) {
        let (epoch, revision) = (plan.epoch, plan.revision);
        let replicas = plan.replicas.len();
        match self.parts.ledger.offer(&self.parts.node, plan) {
            Ok(Acceptance::New) => {
                info!(%epoch, %revision, replicas, "plan taken");
                self.unsaved = true;
                self.dirty = true;
            }
            Ok(Acceptance::Same) => debug!(%epoch, %revision, "plan is the one already held"),
            Err(refusal) => {
                self.parts.metrics.plan_refused();
                warn!(error = %refusal, "plan refused");
            }
        }
    }

    fn ended(&mut self, done: &Done) {
        self.parts.metrics.done(done);
        let action = done.kind.as_str();
        let subject = describe(&done.subject);
        let took_ms = done.took.as_millis() as u64;
        match &done.outcome {
            Outcome::Done => match done.kind {
                WorkKind::Announce => debug!(action, subject, took_ms, "action done"),
                WorkKind::Start
                | WorkKind::Signal
                | WorkKind::Kill
                | WorkKind::Remove
                | WorkKind::HoldImage
                | WorkKind::HoldModel
                | WorkKind::DropImage => info!(action, subject, took_ms, "action done"),
            },
            Outcome::Failed { reason } => {
                warn!(
                    action,
                    subject,
                    took_ms,
                    error = reason,
                    "action failed, trying again later"
                );
            }
            Outcome::Unknown { reason } => {
                warn!(
                    action,
                    subject,
                    took_ms,
                    error = reason,
                    "action gave no answer, looking first"
                );
            }
        }
        let now = self.now();
        self.world.done(done, now);
        self.dirty = true;
    }

    /// Failures land in the published status.
    async fn pass(&mut self) {
        let began = Instant::now();
        daemon::notify::watchdog();
        let looked = self.look_if_due().await;
        if !self.adopted {
            if looked {
                self.adopt();
            } else {
                // The first look decides what there is to keep; nothing is done before it.
                return;
            }
        }
        let pass = self.decide(looked).await;
        self.publish(&pass);
        self.parts.metrics.pass(began.elapsed());
    }

    /// Whether what is known of containerd is good enough to act upon.
    async fn look_if_due(&mut self) -> bool {
        let due = self.looked_at.is_none_or(|at| at.elapsed() >= LOOK_EVERY);
        if !self.dirty && !due {
            return true;
        }
        let planned = self.parts.ledger.plan().map(|plan| plan.images.clone());
        match look(&self.parts.steps, &planned.unwrap_or_default()).await {
            Ok(look) => {
                self.looked(look);
                true
            }
            Err(error) => {
                self.parts.metrics.look_failed();
                let reason = Chain(&error).to_string();
                // Said once, not at every pass.
                if self.look_trouble.as_ref() != Some(&reason) {
                    warn!(
                        error = reason,
                        "cannot look at this node, nothing is changed until it works"
                    );
                    self.look_trouble = Some(reason);
                    self.set_ready();
                }
                // Asked again at the next pass.
                self.dirty = true;
                false
            }
        }
    }

    fn looked(&mut self, look: Look) {
        self.dirty = false;
        self.looked_at = Some(Instant::now());
        for container in look.unreadable.difference(self.world.unreadable()) {
            warn!(
                container,
                "container carries our instance's label, but not a replica's: left alone"
            );
        }
        let now = self.now();
        let (ledger, boot) = (&mut self.parts.ledger, &self.parts.boot);
        self.unsaved |= self.world.looked(look, ledger, boot, now);
        if self.look_trouble.take().is_some() {
            info!("this node can be looked at again");
            self.set_ready();
        }
        self.parts.running.send_replace(self.world.running());
    }

    fn set_ready(&self) {
        let trouble = self.look_trouble.as_ref().or(self.ledger_trouble.as_ref());
        let ready = match trouble {
            Some(reason) => Err(reason.clone()),
            None if self.adopted => Ok(()),
            None => Err("adopting replicas".to_owned()),
        };
        self.parts.ready.send_if_modified(|current| {
            let changed = *current != ready;
            *current = ready;
            changed
        });
    }

    fn adopt(&mut self) {
        self.adopted = true;
        let replicas = self.world.running().len();
        let plan = self.parts.ledger.plan();
        match plan {
            Some(plan) => info!(
                replicas, epoch = %plan.epoch, revision = %plan.revision,
                "adopted the replicas that run, going on with the last plan"
            ),
            None => info!(
                replicas,
                "adopted the replicas that run, waiting for a plan"
            ),
        }
        self.set_ready();
        daemon::notify::ready();
    }
}

fn describe(subject: &Subject) -> String {
    match subject {
        Subject::Replica(id) => id.to_string(),
        Subject::Image(reference) => reference.to_string(),
        Subject::Model(manifest) => manifest.0.short(),
    }
}
