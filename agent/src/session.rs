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
    /// Full when the control loop is behind: then the session waits, and with it the scheduler.
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
    }
}

impl Session {
    pub async fn run(mut self, cancel: CancellationToken) -> anyhow::Result<()> {
        let mut ticker = ticker(REPORT_EVERY);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                _ = ticker.tick() => self.report(),
                event = self.events.recv() => match event {
                    None => return Ok(()),
                    Some(LinkEvent::Up(welcome)) => {
                        ticker = self::ticker(interval(welcome.report_interval_ms));
                    }
                    Some(LinkEvent::Down { reason }) => debug!(reason, "session is down"),
                    Some(LinkEvent::Frame(frame)) => self.frame(frame).await,
                    // Dropping the stream tells the asker that there is no answer here.
                    Some(LinkEvent::Request { .. }) => debug!("an agent answers no requests"),
                },
            }
        }
    }

    async fn frame(&self, frame: ServerBody) {
        match frame {
            ServerBody::Plan(message) => match Plan::try_from(message) {
                // A closed channel means that the daemon stops.
                Ok(plan) => drop(self.plans.send(plan).await),
                Err(error) => {
                    self.metrics.plan_refused();
                    warn!(error = %Chain(&error), "plan refused: it is not valid");
                }
            },
            ServerBody::Welcome(_) => debug!("a second welcome was ignored"),
            ServerBody::Routes(_) => debug!("routes were ignored: they are for gateways"),
        }
    }

    /// Reports are worthless when late: one that finds no room is dropped.
    fn report(&self) {
        if self.link.connection.borrow().is_none() {
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

    #[test]
    fn the_interval_is_the_schedulers_within_reason() {
        assert_eq!(interval(0), Duration::from_secs(1));
        assert_eq!(interval(2000), Duration::from_secs(2));
        assert_eq!(interval(1), Duration::from_millis(200));
        assert_eq!(interval(u32::MAX), Duration::from_secs(5));
    }
}
