//! The gateway's shared state: what every request looks at.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use daemon::credentials::Credentials;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use shared::ids::{ClusterId, NodeName, ReplicaId, ServedEntityId};
use shared::routes::Routes;
use shared::spec::DEFAULT_TARGET_CONCURRENCY;
use shared::units::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::lane::{Lane, LaneContext, Waiting};
use crate::lanes::Lanes;
use crate::local::Locals;
use crate::management::Management;
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::table::{Accepted, Refused, Table, accept};

/// Demands that wait to be sent; each says what the next report says too, so more are dropped.
const DEMANDS: usize = 64;

/// What a gateway is made of.
#[derive(Clone, Debug)]
pub struct Options {
    pub credentials: Credentials,
    pub run_dir: PathBuf,
    /// Where `/api/` goes: `host:port` of the scheduler's REST API, tried in turn.
    pub scheduler: Vec<String>,
    /// How long a request is held for a served entity without a replica.
    pub hold: Duration,
    /// Between two pieces of a request's body.
    pub body_idle: Duration,
    /// Memory for bodies that are read before their requests go on.
    pub body_memory: Bytes,
}

pub(crate) struct State {
    pub(crate) node: NodeName,
    pub(crate) cluster: ClusterId,
    pub(crate) clock: Clock,
    pub(crate) body_idle: Duration,
    pub(crate) memory: Memory,
    pub(crate) locals: Arc<Locals>,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) peers: Peers,
    pub(crate) management: Management,
    pub(crate) metrics: Arc<Metrics>,
    table: ArcSwapOption<Table>,
    /// One set of routes takes over at a time.
    applying: Mutex<()>,
    /// The routes in use, for those who act on a change.
    routes: watch::Sender<Option<Arc<Routes>>>,
}

impl State {
    pub(crate) fn new(
        options: &Options,
        registry: &mut Registry,
    ) -> Result<(Self, mpsc::Receiver<(ServedEntityId, u32)>), daemon::tls::TlsError> {
        let clock = Clock::start();
        let subject = options.credentials.identity().subject;
        let drivers = TaskTracker::new();
        let locals = Arc::new(Locals::new(clock, &options.run_dir, drivers.clone()));
        let (demand, demands) = mpsc::channel(DEMANDS);
        let context = LaneContext {
            clock,
            locals: Arc::clone(&locals),
            demand,
            waiting: Waiting::default(),
            hold: options.hold,
        };
        let state = Self {
            node: subject.node,
            cluster: subject.cluster,
            clock,
            body_idle: options.body_idle,
            memory: Memory::new(options.body_memory.get()),
            locals,
            lanes: Arc::new(Lanes::new(Arc::new(context))),
            peers: Peers::new(&options.credentials, drivers.clone())?,
            management: Management::new(&options.credentials, options.scheduler.clone(), drivers)?,
            metrics: Arc::new(Metrics::register(registry)),
            table: ArcSwapOption::empty(),
            applying: Mutex::new(()),
            routes: watch::channel(None).0,
        };
        Ok((state, demands))
    }

    /// The routes in use; `None` before there were any.
    pub(crate) fn table(&self) -> Option<Arc<Table>> {
        self.table.load_full()
    }

    pub(crate) fn routes(&self) -> watch::Receiver<Option<Arc<Routes>>> {
        self.routes.subscribe()
    }

    /// How many requests this replica of the entity accepts at once.
    pub(crate) fn limit_of(&self, id: &ServedEntityId, replica: &ReplicaId) -> u32 {
        self.limit_and_lane(id, replica).0
    }

    /// The same, and the way to the entity, if the routes know it: another gateway may have newer
    /// ones, with an entity that these do not have yet.
    pub(crate) fn limit_and_lane(
        &self,
        id: &ServedEntityId,
        replica: &ReplicaId,
    ) -> (u32, Option<Arc<Lane>>) {
        let table = self.table.load();
        let entity = table
            .as_ref()
            .and_then(|table| table.endpoint(&id.endpoint)?.entity(&id.entity));
        match entity {
            Some(entity) => (entity.limit_of(replica), Some(Arc::clone(&entity.lane))),
            None => (DEFAULT_TARGET_CONCURRENCY, None),
        }
    }

    /// Takes over new routes, if they are newer.
    pub(crate) fn apply(&self, offered: Routes) -> Result<Accepted, Refused> {
        let _one_at_a_time = self.applying.lock();
        let current = self.table();
        let accepted = accept(
            &self.cluster,
            current.as_ref().map(|table| table.routes.as_ref()),
            &offered,
        );
        match accepted {
            Ok(Accepted::New) => {}
            Ok(Accepted::Same) => return Ok(Accepted::Same),
            Err(refused) => {
                self.metrics.routes_refused.inc();
                return Err(refused);
            }
        }
        let routes = Arc::new(offered);
        // Lanes first: a request that finds a new entity must find its replicas too. Lanes that are
        // left behind send away those who wait there last: they are routed anew, by the new table.
        let updated = self.lanes.update(&routes);
        let table = Arc::new(Table::new(Arc::clone(&routes), updated.lanes));
        self.peers.retain(|node| table.gateway_of(node).is_some());
        self.table.store(Some(Arc::clone(&table)));
        for lane in updated.superseded {
            lane.supersede();
        }
        for lane in updated.gone {
            lane.close();
            self.metrics.forget(lane.id());
            if table.endpoint(&lane.id().endpoint).is_none() {
                self.metrics.forget_endpoint(&lane.id().endpoint);
            }
        }
        let revision = i64::try_from(routes.revision.0).unwrap_or(i64::MAX);
        self.metrics.routes_revision.set(revision);
        self.routes.send_replace(Some(routes));
        Ok(Accepted::New)
    }
}
