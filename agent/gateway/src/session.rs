//! The session with the scheduler: routes come in, reports and demands go out, logs are served.
//!
//! All of it may be absent: requests are served from the routes at hand.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use daemon::link::{LinkEvent, LinkHandle};
use daemon::notify;
use shared::ids::ServedEntityId;
use shared::report::GatewayReport;
use shared::routes::Routes;
use shared::wire::{
    ClientBody, Demand, GatewayReportMessage, RequestBody, RoutesMessage, ServerBody, Welcome,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::gateway::State;
use crate::logs::Logs;
use crate::table::Accepted;

const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Between two reports that a change calls for.
const NUDGE_SPACING: Duration = Duration::from_millis(100);

pub(crate) struct Session {
    state: Arc<State>,
    link: LinkHandle,
    logs: Logs,
    up: bool,
    last_report: Instant,
}

impl Session {
    pub(crate) fn new(state: Arc<State>, link: LinkHandle, log_dir: PathBuf) -> Self {
        Self {
            state,
            link,
            logs: Logs::new(log_dir),
            up: false,
            last_report: Instant::now(),
        }
    }

    pub(crate) async fn run(
        mut self,
        mut events: mpsc::Receiver<LinkEvent>,
        mut demands: mpsc::Receiver<(ServedEntityId, u32)>,
        cancel: CancellationToken,
    ) -> anyhow::Result<()> {
        let state = Arc::clone(&self.state);
        let mut routes = state.routes();
        let mut ticker = tokio::time::interval(REPORT_INTERVAL);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // When something changed that the scheduler waits for.
        let mut nudge: Option<Instant> = None;
        loop {
            let nudged = async {
                match nudge {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let changed = tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                event = events.recv() => match event {
                    Some(event) => self.on_event(event),
                    None => return Ok(()),
                },
                Some((id, queued)) = demands.recv() => {
                    self.send_demand(&id, queued);
                    false
                }
                Ok(()) = routes.changed() => true,
                () = state.locals.health_changed.notified() => true,
                () = nudged => {
                    nudge = None;
                    self.report(false);
                    false
                }
                _ = ticker.tick() => {
                    self.tick();
                    false
                }
            };
            if changed && nudge.is_none() {
                nudge = Some((self.last_report + NUDGE_SPACING).max(Instant::now()));
            }
        }
    }

    /// Whether the scheduler should have a report soon.
    fn on_event(&mut self, event: LinkEvent) -> bool {
        match event {
            LinkEvent::Up(Welcome { .. }) => {
                self.up = true;
                true
            }
            LinkEvent::Down { .. } => {
                self.up = false;
                false
            }
            LinkEvent::Frame(ServerBody::Routes(message)) => {
                self.on_routes(message);
                true
            }
            LinkEvent::Frame(
                ServerBody::Plan(_) | ServerBody::Welcome(_) | ServerBody::Trust(_),
            ) => {
                debug!("frame that is not for gateways ignored");
                false
            }
            LinkEvent::Request {
                request: RequestBody::ReadLog(request),
                send,
            } => {
                self.logs.serve(request, send);
                false
            }
            LinkEvent::Request {
                request: RequestBody::FetchChunk(_) | RequestBody::FetchManifest(_),
                ..
            } => {
                // The stream is reset by its drop, which refuses it.
                debug!("request that is not for gateways refused");
                false
            }
        }
    }

    fn on_routes(&self, message: RoutesMessage) {
        let routes = match Routes::try_from(message) {
            Ok(routes) => routes,
            Err(error) => {
                self.state.metrics.routes_refused.inc();
                warn!(%error, "routes are not valid, going on with those in use");
                return;
            }
        };
        let (epoch, revision) = (routes.epoch, routes.revision);
        let endpoints = routes.endpoints.len();
        match self.state.apply(routes) {
            Ok(Accepted::New) => info!(%epoch, %revision, endpoints, "routes took over"),
            Ok(Accepted::Same) => debug!(%epoch, %revision, "routes are in use already"),
            Err(refused) => warn!(error = %refused, "routes refused"),
        }
    }

    fn send_demand(&self, id: &ServedEntityId, queued: u32) {
        let demand = Demand {
            endpoint: id.endpoint.to_string(),
            entity: id.entity.to_string(),
            queued,
        };
        debug!(entity = %id, queued, "request waits without a replica");
        if self
            .link
            .outgoing
            .try_send(ClientBody::Demand(demand))
            .is_err()
        {
            self.state.metrics.reports_dropped.inc();
        }
    }

    fn tick(&mut self) {
        notify::watchdog();
        for lane in self.state.lanes.list() {
            let (active, queued) = lane.load();
            self.state.metrics.set_load(lane.id(), active, queued);
        }
        self.state.peers.reap();
        self.report(true);
    }

    /// With traffic each second; what a change calls for in between goes without, so that all
    /// stretches are of a length.
    fn report(&mut self, with_traffic: bool) {
        self.last_report = Instant::now();
        if !self.up {
            if with_traffic {
                // A stretch without a session is lost: the first one after it is a second again.
                drop(self.state.lanes.take_traffic());
                self.state.locals.forget_loads();
            }
            return;
        }
        let Ok(permit) = self.link.outgoing.try_reserve() else {
            // The numbers stay for the next one.
            self.state.metrics.reports_dropped.inc();
            return;
        };
        let traffic = if with_traffic {
            self.state.lanes.take_traffic()
        } else {
            Vec::new()
        };
        let report = GatewayReport {
            routes: self
                .state
                .table()
                .map(|table| (table.routes.epoch, table.routes.revision)),
            replicas: self.state.locals.report(with_traffic),
            traffic,
        };
        permit.send(ClientBody::GatewayReport(GatewayReportMessage::from(
            &report,
        )));
    }
}
