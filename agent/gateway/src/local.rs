//! The replicas of this node: found by the files that the agent puts beside their folders.
//!
//! `RUN_DIR/REPLICA.json` belongs to the agent, and says how to reach and to probe the replica. What
//! the replica itself writes is never read here. A replica that is gone loses its probes and its idle
//! connections; requests under way end by themselves.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderMap, Uri};
use parking_lot::Mutex;
use shared::api::local::LocalReplica;
use shared::ids::ReplicaId;
use shared::report::ReplicaHealth;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use crate::attempt::{Answered, Attempt, GiveBack, request};
use crate::clock::Clock;
use crate::limit::Limiter;
use crate::payload::Payload;
use crate::probe::ProbeState;
use crate::upstream::exchange::{Exchanged, exchange};
use crate::upstream::pool::{Connection, Pool, PoolLimits};
use crate::upstream::{socket, tcp};
use daemon::telemetry::Chain;

/// Connecting to a Unix socket takes 50 us, and servers close idle connections after 5 s: short idling
/// is cheaper than a stale connection.
const POOL: PoolLimits = PoolLimits {
    max_idle: 64,
    idle_timeout: Duration::from_secs(2),
};

/// A replica of this node.
pub(crate) struct Local {
    pub(crate) spec: LocalReplica,
    pub(crate) limiter: Arc<Limiter>,
    path: Uri,
    run_dir: PathBuf,
    pool: Arc<Pool>,
    probed: Mutex<ProbeState>,
}

pub(crate) type Snapshot = HashMap<ReplicaId, Arc<Local>>;

/// All replicas of this node. Written by the scan, read by every request.
pub(crate) struct Locals {
    clock: Clock,
    run_dir: PathBuf,
    drivers: TaskTracker,
    all: ArcSwap<Snapshot>,
    /// A replica's health changed: worth a report at once.
    pub(crate) health_changed: Notify,
}

/// What a new set of files changed.
#[derive(Default)]
pub(crate) struct Changes {
    pub(crate) appeared: Vec<Arc<Local>>,
    pub(crate) gone: Vec<ReplicaId>,
}

impl Locals {
    pub(crate) fn new(clock: Clock, run_dir: &Path, drivers: TaskTracker) -> Self {
        Self {
            clock,
            run_dir: run_dir.to_owned(),
            drivers,
            all: ArcSwap::default(),
            health_changed: Notify::new(),
        }
    }

    pub(crate) fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    pub(crate) fn snapshot(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.all.load()
    }

    pub(crate) fn get(&self, id: &ReplicaId) -> Option<Arc<Local>> {
        self.all.load().get(id).cloned()
    }

    /// Takes over what the files say now.
    pub(crate) fn update(&self, found: BTreeMap<ReplicaId, LocalReplica>) -> Changes {
        let before = self.all.load_full();
        let mut changes = Changes::default();
        let mut after = Snapshot::with_capacity(found.len());
        for (id, spec) in found {
            let known = before.get(&id);
            if let Some(known) = known.filter(|known| known.spec == spec) {
                after.insert(id, Arc::clone(known));
                continue;
            }
            // A path that is no path was refused with the file.
            let Ok(path) = spec.invocations_path.parse() else {
                continue;
            };
            if let Some(known) = known {
                known.pool.clear();
                changes.gone.push(id.clone());
            }
            let local = Arc::new(Local {
                path,
                run_dir: self.run_dir.clone(),
                // Requests of the former file still count.
                limiter: known.map_or_else(
                    || Limiter::new(self.clock),
                    |known| Arc::clone(&known.limiter),
                ),
                pool: Pool::new(POOL, self.drivers.clone()),
                // It is the same process: what it last answered still holds.
                probed: Mutex::new(known.map_or_else(ProbeState::new, |known| known.probed())),
                spec,
            });
            changes.appeared.push(Arc::clone(&local));
            after.insert(id, local);
        }
        for (id, local) in before.iter() {
            if !after.contains_key(id) {
                local.pool.clear();
                changes.gone.push(id.clone());
            }
        }
        if !changes.appeared.is_empty() || !changes.gone.is_empty() {
            self.all.store(Arc::new(after));
            self.health_changed.notify_one();
        }
        changes
    }

    pub(crate) fn reap(&self) {
        for local in self.all.load().values() {
            local.pool.reap();
        }
    }

    /// A stretch that nobody is told of: the next one is of a second again.
    pub(crate) fn forget_loads(&self) {
        for local in self.all.load().values() {
            local.limiter.take_load();
        }
    }

    /// `with_load`: with what the replicas did since the last such report.
    pub(crate) fn report(&self, with_load: bool) -> Vec<ReplicaHealth> {
        let mut report: Vec<_> = self
            .all
            .load()
            .values()
            .map(|local| {
                let probed = local.probed.lock();
                ReplicaHealth {
                    id: local.spec.replica.clone(),
                    health: probed.health(),
                    detail: probed.detail().to_owned(),
                    in_flight: local.limiter.in_flight(),
                    load: with_load.then(|| local.limiter.take_load()),
                }
            })
            .collect();
        report.sort_by(|a, b| a.id.cmp(&b.id));
        report
    }
}

impl Local {
    pub(crate) fn probed(&self) -> ProbeState {
        self.probed.lock().clone()
    }

    pub(crate) fn set_probed(&self, state: ProbeState) {
        *self.probed.lock() = state;
    }

    /// A new connection, outside the pool.
    pub(crate) async fn connect(&self) -> Result<Connection, String> {
        let replica = &self.spec.replica;
        let connected = match self.spec.address {
            None => {
                let stream = socket::connect(&self.run_dir, replica, self.spec.uid).await;
                let stream = stream.map_err(|e| Chain(&e).to_string())?;
                self.pool.handshake(stream).await
            }
            Some(address) => {
                let stream = tcp::connect(replica, address).await;
                let stream = stream.map_err(|e| Chain(&e).to_string())?;
                self.pool.handshake(stream).await
            }
        };
        connected.map_err(|e| Chain(&e).to_string())
    }

    /// Sends the request. The caller holds an admission.
    pub(crate) async fn attempt(&self, headers: &HeaderMap, payload: &Payload) -> Attempt {
        loop {
            // What can be sent once only is not risked on a connection that may have gone stale.
            let idle = match payload.is_long() {
                true => None,
                false => self.pool.take().await,
            };
            let (connection, fresh) = match idle {
                Some(connection) => (connection, false),
                None => match self.connect().await {
                    Ok(connection) => (connection, true),
                    Err(reason) => return Attempt::NotBegun { reason },
                },
            };
            let request = request(self.path.clone(), headers.clone(), payload.body(None));
            let reason = match exchange(connection, request).await {
                Exchanged::Answered { response, .. } if response.status().is_informational() => {
                    let reason = format!("it answered {}, unasked", response.status());
                    return Attempt::Lost { reason };
                }
                Exchanged::Answered {
                    response,
                    connection,
                } => {
                    return Attempt::Answered(Box::new(Answered {
                        response,
                        give_back: GiveBack {
                            pool: Arc::clone(&self.pool),
                            connection,
                        },
                        load: None,
                    }));
                }
                Exchanged::NeverWritten => "the connection closed".to_owned(),
                // The replica did not read the request whole, so it did not begin to work on it. TCP
                // does not tell that for certain.
                Exchanged::Died { unread, reason } => {
                    if !unread || self.spec.address.is_some() {
                        return Attempt::Lost { reason };
                    }
                    reason
                }
            };
            // An idle connection that had gone stale says nothing about the replica. Whoever still has
            // the body may send it again, also when part of it is gone from here.
            if fresh || !payload.can_be_sent() {
                return Attempt::NotBegun { reason };
            }
        }
    }
}
