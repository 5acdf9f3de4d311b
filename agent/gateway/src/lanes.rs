//! All lanes, by served entity.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use shared::ids::ServedEntityId;
use shared::report::EntityTraffic;
use shared::routes::Routes;
use tokio_util::sync::CancellationToken;

use crate::lane::{Lane, LaneContext};

/// Between two looks at the queues, while anybody waits. The shortest rest is about as long.
const PUMP_INTERVAL: Duration = Duration::from_millis(10);

/// What an update of the routes did.
pub(crate) struct Updated {
    /// By endpoint, then entity, as in the routes.
    pub(crate) lanes: Vec<Vec<Arc<Lane>>>,
    pub(crate) gone: Vec<Arc<Lane>>,
    /// Known until they are empty, but no share of the traffic is theirs any more.
    pub(crate) superseded: Vec<Arc<Lane>>,
}

pub(crate) struct Lanes {
    context: Arc<LaneContext>,
    all: RwLock<HashMap<ServedEntityId, Arc<Lane>>>,
}

impl Lanes {
    pub(crate) fn new(context: Arc<LaneContext>) -> Self {
        Self {
            context,
            all: RwLock::new(HashMap::new()),
        }
    }

    /// Gives new routes to the lanes, of which there is one for each entity of `routes`, in their
    /// order. The caller sends away who waits for those that are left behind, once no new request can
    /// find them.
    pub(crate) fn update(&self, routes: &Routes) -> Updated {
        let mut all = self.all.write();
        let mut kept = HashSet::new();
        let mut lanes = Vec::with_capacity(routes.endpoints.len());
        let mut superseded = Vec::new();
        for endpoint in &routes.endpoints {
            let entities = endpoint.entities.iter().map(|entity| {
                let id = ServedEntityId {
                    endpoint: endpoint.name.clone(),
                    entity: entity.name.clone(),
                };
                kept.insert(id.clone());
                let lane = all
                    .entry(id.clone())
                    .or_insert_with(|| Lane::new(id, Arc::clone(&self.context)));
                let capacity = endpoint.limits.queue_capacity;
                if lane.update(entity, capacity) {
                    superseded.push(Arc::clone(lane));
                }
                Arc::clone(lane)
            });
            lanes.push(entities.collect());
        }
        let gone = all.extract_if(|id, _| !kept.contains(id));
        let gone = gone.map(|(_, lane)| lane).collect();
        Updated {
            lanes,
            gone,
            superseded,
        }
    }

    pub(crate) fn take_traffic(&self) -> Vec<EntityTraffic> {
        self.list().iter().map(|lane| lane.take_traffic()).collect()
    }

    pub(crate) fn list(&self) -> Vec<Arc<Lane>> {
        self.all.read().values().cloned().collect()
    }

    /// Looks at the queues in which anybody waits, until cancelled.
    pub(crate) async fn pump(self: Arc<Self>, cancel: CancellationToken) -> anyhow::Result<()> {
        let waiting = &self.context.waiting;
        let mut looked_at: Vec<Arc<Lane>> = Vec::new();
        loop {
            looked_at.extend(waiting.take());
            if looked_at.is_empty() {
                tokio::select! {
                    () = cancel.cancelled() => return Ok(()),
                    () = waiting.some.notified() => {}
                }
            }
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(PUMP_INTERVAL) => {}
            }
            looked_at.retain(Lane::look);
        }
    }
}
