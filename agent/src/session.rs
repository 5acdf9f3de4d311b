//! The session with the scheduler: plans down, a report up each second.

use std::sync::Arc;
use std::time::Duration;

use daemon::link::{LinkEvent, LinkHandle};
use daemon::telemetry::Chain;
use shared::plan::Plan;
use shared::report::AgentReport;
use shared::wire::{AgentReportMessage, ClientBody, Hello, PROTOCOL_MAX, PROTOCOL_MIN, ServerBody};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::control_loop::NodeView;
use crate::metrics::Metrics;
use crate::sampler::Samples;

/// Where the scheduler names no interval.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// A scheduler's slip of the pen must neither flood it nor let its lease pass.
const REPORT_LIMITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

pub struct Session {
    pub link: LinkHandle,
    pub events: mpsc::Receiver<LinkEvent>,
    /// Full when the control loop is behind, a hanging containerd for instance. Reports go on then,
    /// and of the plans that come meanwhile the last one counts.
    pub plans: mpsc::Sender<Plan>,
    pub view: watch::Receiver<Arc<NodeView>>,
    pub samples: watch::Receiver<Arc<Samples>>,
    pub metrics: Metrics,
}

/// What this daemon says of itself at each connect.
pub fn hello(view: &watch::Receiver<Arc<NodeView>>) -> Hello {
    Hello {
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        highest_epoch: view.borrow().highest_epoch.0,
        peer_address: String::new(),
        client_address: String::new(),
        ..Hello::default()
    }
}

impl Session {
    pub async fn run(mut self, cancel: CancellationToken) -> anyhow::Result<()> {
        let mut ticker = ticker(REPORT_EVERY);
        let mut waiting: Option<Plan> = None;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                _ = ticker.tick() => self.report(),
                room = self.plans.reserve(), if waiting.is_some() => {
                    let plan = waiting.take();
                    // A closed channel means that the daemon stops.
                    if let (Ok(room), Some(plan)) = (room, plan) {
                        room.send(plan);
                    }
                }
                event = self.events.recv() => match event {
                    None => return Ok(()),
                    Some(LinkEvent::Up(welcome)) => {
                        ticker = self::ticker(interval(welcome.report_interval_ms));
                    }
                    Some(LinkEvent::Down { reason }) => debug!(reason, "session is down"),
                    Some(LinkEvent::Frame(frame)) => {
                        if let Some(plan) = self.plan_in(frame) {
                            waiting = Some(plan);
                        }
                    }
                    // Dropping the stream tells the asker that there is no answer here.
                    Some(LinkEvent::Request { .. }) => debug!("an agent answers no requests"),
                },
            }
        }
    }

    fn plan_in(&self, frame: ServerBody) -> Option<Plan> {
        match frame {
            ServerBody::Plan(message) => match Plan::try_from(message) {
                Ok(plan) => return Some(plan),
                Err(error) => {
                    self.metrics.plan_refused();
                    warn!(error = %Chain(&error), "plan refused: it is not valid");
                }
            },
            ServerBody::Welcome(_) => debug!("a second welcome was ignored"),
            ServerBody::Routes(_) => debug!("routes were ignored: they are for gateways"),
            ServerBody::Trust(_) => debug!("authorities are the link's to take over"),
        }
        None
    }

    /// Reports are worthless when late: one that finds no room is dropped.
    fn report(&self) {
        if self.link.connection.borrow().is_none() {
            return;
        }
        if !worth_reporting(&self.view.borrow()) {
            return;
        }
        let report = compose(&self.view.borrow(), &self.samples.borrow());
        let body = ClientBody::AgentReport(AgentReportMessage::from(&report));
        if self.link.outgoing.try_send(body).is_err() {
            self.metrics.report_dropped();
        }
    }
}

fn ticker(every: Duration) -> tokio::time::Interval {
    let mut ticker = tokio::time::interval(every);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticker
}

fn interval(millis: u32) -> Duration {
    match millis {
        0 => REPORT_EVERY,
        millis => Duration::from_millis(millis.into()).clamp(REPORT_LIMITS.0, REPORT_LIMITS.1),
    }
}

/// An agent that lost its ledger knows of nothing before its first look, and must not say that there
/// is nothing.
fn worth_reporting(view: &NodeView) -> bool {
    view.looked || !view.replicas.is_empty()
}

/// One report from what the control loop and the sampler last said.
pub fn compose(view: &NodeView, samples: &Samples) -> AgentReport {
    let age = view.at.elapsed();
    let replicas = view.replicas.iter().map(|status| {
        let mut status = status.clone();
        status.since += age;
        status.sample = samples.replicas.get(&status.id).cloned();
        status
    });
    AgentReport {
        plan: view.plan,
        capacity: samples.capacity.clone(),
        replicas: replicas.collect(),
        images: view.images.clone(),
        models: view.models.clone(),
        sample: samples.node.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::plan_with;
    use prometheus_client::registry::Registry;
    use shared::ids::Revision;
    use shared::wire::PlanMessage;

    #[tokio::test(start_paused = true)]
    async fn while_nobody_takes_plans_the_session_goes_on_and_keeps_the_last_one() {
        let (outgoing, _out) = mpsc::channel(1);
        let (_none, connection) = watch::channel(None);
        let (link_events, events) = mpsc::channel(8);
        let (plans, mut taken) = mpsc::channel(1);
        let ledger = crate::ledger::Ledger::default();
        let session = Session {
            link: LinkHandle {
                outgoing,
                connection,
                problem: watch::channel(None).1,
            },
            events,
            plans,
            view: watch::channel(Arc::new(NodeView::unseen(&ledger))).1,
            samples: watch::channel(Arc::new(Samples::default())).1,
            metrics: Metrics::register(&mut Registry::default()),
        };
        let cancel = CancellationToken::new();
        let session = tokio::spawn(session.run(cancel.clone()));
        for revision in 1..=20 {
            let plan = PlanMessage::from(&plan_with(1, revision, vec![]));
            let frame = LinkEvent::Frame(ServerBody::Plan(plan));
            let sent = tokio::time::timeout(Duration::from_secs(60), link_events.send(frame));
            let sent = sent.await.expect("the session waits for the plans' taker");
            sent.expect("the session runs");
        }
        let mut last = Revision(0);
        while last < Revision(20) {
            let plan = taken.recv().await.expect("the session runs");
            assert!(plan.revision > last, "an older plan came later");
            last = plan.revision;
        }
        cancel.cancel();
        session.await.expect("ran").expect("ended well");
    }

    #[test]
    fn before_the_first_look_what_the_ledger_remembers_is_unknown_and_nothing_is_ever_said_to_be_gone()
     {
        let mut ledger = crate::ledger::Ledger::default();
        assert!(!worth_reporting(&NodeView::unseen(&ledger)));
        let planned = crate::fixtures::planned_replica(7);
        let record = crate::ledger::ReplicaRecord::new(&planned, 100_000);
        ledger.adopt(planned.id.clone(), record);
        let view = NodeView::unseen(&ledger);
        assert!(worth_reporting(&view));
        let report = compose(&view, &Samples::default());
        let said: Vec<_> = report.replicas.iter().map(|r| (&r.id, r.phase)).collect();
        assert_eq!(said, [(&planned.id, shared::report::ReplicaPhase::Unknown)]);
    }

    #[test]
    fn the_interval_is_the_schedulers_within_reason() {
        assert_eq!(interval(0), Duration::from_secs(1));
        assert_eq!(interval(2000), Duration::from_secs(2));
        assert_eq!(interval(1), Duration::from_millis(200));
        assert_eq!(interval(u32::MAX), Duration::from_secs(5));
    }
}
