//! The way to one served entity: its replicas, the queue before them, its traffic counters.
//!
//! A request gets a [`Lease`] on a replica at once, or waits in the queue. A slot that frees is handed
//! to the first in the queue by whoever frees it, so a newcomer never overtakes. The lease gives the
//! slot back when dropped.
//!
//! Two things free slots without anybody here noticing: other gateways' requests end, and a rest after
//! "full" or "unreachable" ends. Hence [`crate::lanes::Lanes::pump`] looks again every few milliseconds
//! while anybody waits.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shared::ids::{NodeName, ReplicaId, ServedEntityId};
use shared::report::EntityTraffic;
use shared::routes::EntityRoute;
use shared::units::MonoTime;
use tokio::sync::{mpsc, oneshot};

use crate::clock::Clock;
use crate::local::Locals;
use crate::queue::{Fifo, Place};
use crate::replicas::{Pick, Replicas};
use crate::traffic::{Outcome, Traffic};

/// A demand is told to the scheduler at most this often for one entity; reports follow anyway.
const DEMAND_INTERVAL: Duration = Duration::from_millis(200);

/// What lanes share.
pub(crate) struct LaneContext {
    pub(crate) clock: Clock,
    pub(crate) locals: Arc<Locals>,
    /// Entities for which a request waits without a ready replica. `try_send`: the next report says
    /// the same.
    pub(crate) demand: mpsc::Sender<(ServedEntityId, u32)>,
    pub(crate) waiting: Waiting,
    /// How long a request is held for an entity without a replica.
    pub(crate) hold: Duration,
}

/// The lanes in which anybody waits, and a wake-up for the pump when one is added.
#[derive(Default)]
pub(crate) struct Waiting {
    lanes: Mutex<Vec<Arc<Lane>>>,
    pub(crate) some: tokio::sync::Notify,
}

impl Waiting {
    fn add(&self, lane: Arc<Lane>) {
        self.lanes.lock().push(lane);
        self.some.notify_one();
    }

    /// Those that were added since.
    pub(crate) fn take(&self) -> Vec<Arc<Lane>> {
        std::mem::take(&mut self.lanes.lock())
    }
}

pub(crate) struct Lane {
    id: ServedEntityId,
    context: Arc<LaneContext>,
    state: Mutex<State>,
}

struct State {
    replicas: Replicas,
    queue: Fifo<oneshot::Sender<Lease>>,
    queue_capacity: usize,
    traffic: Traffic,
    /// Leases out, including those on replicas that have left the routes.
    active: u32,
    demanded: Option<MonoTime>,
    standing: Standing,
    /// It is among those that the pump looks at.
    listed: bool,
}

/// What the routes say of the entity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Open,
    /// No share of the traffic is its own, and its replicas only drain. Who asks for it by name may
    /// wait for others.
    Superseded,
    /// It left the routes.
    Closed,
}

/// Why a request got no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoLease {
    QueueFull,
    /// Its deadline passed in the queue.
    Deadline,
    /// No replica came, or none could be reached, while it was held.
    NoReplica,
    /// The entity was left behind: the request must be routed anew.
    Gone,
}

/// Where a request stands in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Newcomer,
    /// It had a lease, and its replica was full or could not be reached.
    Again,
    /// It waited for another entity, and was let in there.
    Moved,
}

/// What a request asks a lane for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) turn: Turn,
    /// It came by the traffic's split, so another entity may serve it as well.
    pub(crate) by_share: bool,
    /// After this, only a replica that can be reached is worth waiting for.
    pub(crate) held_until: MonoTime,
    pub(crate) deadline: MonoTime,
}

impl Lane {
    pub(crate) fn new(id: ServedEntityId, context: Arc<LaneContext>) -> Arc<Self> {
        let traffic = Traffic::new(context.clock.now());
        Arc::new(Self {
            id,
            context,
            state: Mutex::new(State {
                replicas: Replicas::new(),
                queue: Fifo::new(),
                queue_capacity: 0,
                traffic,
                active: 0,
                demanded: None,
                standing: Standing::Open,
                listed: false,
            }),
        })
    }

    pub(crate) fn id(&self) -> &ServedEntityId {
        &self.id
    }

    /// Takes over new routes, and hands out what they free. Says whether they leave the entity without
    /// a share of the traffic and without a replica that takes requests (see [`Lane::supersede`]).
    pub(crate) fn update(self: &Arc<Self>, route: &EntityRoute, queue_capacity: u32) -> bool {
        let superseded = route.percent == 0 && route.replicas.iter().all(|r| r.draining);
        {
            let mut state = self.state.lock();
            state
                .replicas
                .update(route.target_concurrency, &route.replicas);
            state.queue_capacity = queue_capacity as usize;
            if !superseded {
                state.standing = Standing::Open;
            }
        }
        self.pump();
        superseded
    }

    /// The entity has left the routes: those who wait are sent back to be routed anew.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.replicas.update(1, &[]);
        self.send_back(&mut state, Standing::Closed);
    }

    /// Other entities have taken the traffic over, while this one drains: those who wait need not wait
    /// for its end.
    pub(crate) fn supersede(&self) {
        let mut state = self.state.lock();
        if state.standing == Standing::Open {
            self.send_back(&mut state, Standing::Superseded);
        }
    }

    fn send_back(&self, state: &mut State, standing: Standing) {
        state.standing = standing;
        // Dropped senders tell the waiters.
        drop(state.queue.drain());
        self.note_queue(state);
    }

    pub(crate) fn arrived(&self) {
        self.state.lock().traffic.arrived();
    }

    pub(crate) fn ended(&self, outcome: Outcome, service: Option<Duration>) {
        self.state.lock().traffic.ended(outcome, service);
    }

    pub(crate) fn take_traffic(&self) -> EntityTraffic {
        let now = self.context.clock.now();
        self.state.lock().traffic.take(&self.id, now)
    }

    /// (active, queued) now.
    pub(crate) fn load(&self) -> (u32, usize) {
        let state = self.state.lock();
        (state.active, state.queue.len())
    }

    /// Until when a request that comes now is held for an entity without a replica.
    pub(crate) fn hold_from_now(&self) -> MonoTime {
        self.context.clock.now() + self.context.hold
    }

    /// A lease, at once or after waiting.
    pub(crate) async fn lease(self: &Arc<Self>, ask: Ask) -> Result<Lease, NoLease> {
        let mut waiter = match self.begin(ask)? {
            Begun::Leased(lease) => return Ok(lease),
            Begun::Waits(waiter) => waiter,
        };
        let clock = self.context.clock;
        let hold = tokio::time::sleep_until(clock.instant(ask.held_until));
        let deadline = tokio::time::sleep_until(clock.instant(ask.deadline));
        tokio::pin!(hold, deadline);
        let mut held = true;
        loop {
            tokio::select! {
                biased;
                granted = &mut waiter.granted => {
                    return granted.map_err(|_| self.why_sent_back(&ask));
                }
                () = &mut deadline => {
                    let reachable = self.state.lock().replicas.any_reachable();
                    return Err(if reachable { NoLease::Deadline } else { NoLease::NoReplica });
                }
                () = &mut hold, if held => {
                    held = false;
                    if !self.state.lock().replicas.any_reachable() {
                        return Err(NoLease::NoReplica);
                    }
                }
            }
        }
    }

    fn begin(self: &Arc<Self>, ask: Ask) -> Result<Begun, NoLease> {
        let now = self.context.clock.now();
        let mut state = self.state.lock();
        match state.standing {
            Standing::Closed => return Err(NoLease::Gone),
            Standing::Superseded if ask.by_share => return Err(NoLease::Gone),
            Standing::Superseded | Standing::Open => {}
        }
        if state.queue.is_empty() || ask.turn == Turn::Again {
            match self.pick(&mut state, now) {
                Pick::Replica { id, node } => {
                    return Ok(Begun::Leased(self.grant(&mut state, id, node, now)));
                }
                Pick::Full | Pick::None => {}
            }
        }
        let (grant, granted) = oneshot::channel();
        let capacity = match ask.turn {
            Turn::Newcomer => state.queue_capacity,
            // A queue let it in before.
            Turn::Moved | Turn::Again => usize::MAX,
        };
        let place = match ask.turn {
            Turn::Newcomer | Turn::Moved => state
                .queue
                .push_back(grant, ask.deadline, capacity)
                .map_err(|_| NoLease::QueueFull)?,
            Turn::Again => state.queue.push_front(grant, ask.deadline),
        };
        self.note_queue(&mut state);
        if !std::mem::replace(&mut state.listed, true) {
            self.context.waiting.add(Arc::clone(self));
        }
        self.tell_demand(&mut state, now);
        Ok(Begun::Waits(Waiter {
            lane: Arc::clone(self),
            place,
            granted,
        }))
    }

    /// Hands free slots to those who wait.
    pub(crate) fn pump(self: &Arc<Self>) {
        let now = self.context.clock.now();
        // Leases whose waiter left; dropped without the lock, since their drop takes it.
        let mut unclaimed = Vec::new();
        let mut state = self.state.lock();
        while !state.queue.is_empty() {
            let Pick::Replica { id, node } = self.pick(&mut state, now) else {
                break;
            };
            let waiter = state.queue.pop(now);
            let lease = self.grant(&mut state, id, node, now);
            match waiter {
                Some(waiter) => unclaimed.extend(waiter.send(lease).err()),
                None => unclaimed.push(lease),
            }
        }
        self.note_queue(&mut state);
        drop(state);
        drop(unclaimed);
    }

    /// Hands out what has freed, and says whether anybody still waits: if not, the lane lists itself
    /// when somebody does.
    pub(crate) fn look(self: &Arc<Self>) -> bool {
        self.pump();
        let mut state = self.state.lock();
        state.listed = !state.queue.is_empty();
        state.listed
    }

    fn pick(&self, state: &mut State, now: MonoTime) -> Pick {
        let locals = self.context.locals.snapshot();
        let local_load = |id: &ReplicaId| locals.get(id).map(|local| local.limiter.in_flight());
        state.replicas.pick(now, &mut rand::rng(), &local_load)
    }

    fn grant(
        self: &Arc<Self>,
        state: &mut State,
        replica: ReplicaId,
        node: NodeName,
        now: MonoTime,
    ) -> Lease {
        state.active += 1;
        let active = state.active;
        state.traffic.set_active(active, now);
        Lease {
            lane: Arc::clone(self),
            replica,
            node,
            since: now,
        }
    }

    fn note_queue(&self, state: &mut State) {
        let queued = u32::try_from(state.queue.len()).unwrap_or(u32::MAX);
        state.traffic.set_queued(queued, self.context.clock.now());
    }

    fn tell_demand(&self, state: &mut State, now: MonoTime) {
        let told = state.demanded;
        let recent = told.is_some_and(|at| now.saturating_since(at) < DEMAND_INTERVAL);
        if recent || state.replicas.any_ready() {
            return;
        }
        state.demanded = Some(now);
        let queued = u32::try_from(state.queue.len()).unwrap_or(u32::MAX);
        // Full: the scheduler has been told a lot already, and the next report has the number.
        let _ = self.context.demand.try_send((self.id.clone(), queued));
    }

    /// A waiter's sender was dropped: the entity was left behind, or the deadline was seen by the pump
    /// first.
    fn why_sent_back(&self, ask: &Ask) -> NoLease {
        if self.context.clock.now() < ask.deadline {
            NoLease::Gone
        } else {
            NoLease::Deadline
        }
    }

    fn give_up(&self, place: Place) {
        let mut state = self.state.lock();
        if state.queue.remove(place).is_some() {
            self.note_queue(&mut state);
        }
    }
}

enum Begun {
    Leased(Lease),
    Waits(Waiter),
}

/// A place in the queue; leaves it when dropped. A lease that was granted in the same moment is
/// dropped with `granted`, after the place.
struct Waiter {
    lane: Arc<Lane>,
    place: Place,
    granted: oneshot::Receiver<Lease>,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.lane.give_up(self.place);
    }
}

/// One request's hold on a replica, as its entry gateway counts.
pub(crate) struct Lease {
    lane: Arc<Lane>,
    replica: ReplicaId,
    node: NodeName,
    since: MonoTime,
}

impl Lease {
    pub(crate) fn replica(&self) -> &ReplicaId {
        &self.replica
    }

    pub(crate) fn node(&self) -> &NodeName {
        &self.node
    }

    pub(crate) fn held_for(&self) -> Duration {
        self.lane.context.clock.now().saturating_since(self.since)
    }

    pub(crate) fn answered(&self, load: Option<u32>) {
        let now = self.lane.context.clock.now();
        self.lane
            .state
            .lock()
            .replicas
            .answered(&self.replica, load, now);
    }

    pub(crate) fn full(self, load: u32) {
        let now = self.lane.context.clock.now();
        let mut state = self.lane.state.lock();
        state
            .replicas
            .full(&self.replica, load, now, &mut rand::rng());
    }

    pub(crate) fn unreachable(self) {
        let now = self.lane.context.clock.now();
        self.lane
            .state
            .lock()
            .replicas
            .unreachable(&self.replica, now);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        {
            let mut state = self.lane.state.lock();
            state.replicas.released(&self.replica);
            state.active = state.active.saturating_sub(1);
            let active = state.active;
            let now = self.lane.context.clock.now();
            state.traffic.set_active(active, now);
        }
        self.lane.pump();
    }
}
