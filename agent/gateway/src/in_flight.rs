//! What a request occupies while it is under way. All of it comes back when this is dropped, however
//! the request ended.

use std::sync::Arc;

use crate::attempt::GiveBack;
use crate::lane::{Lane, Lease};
use crate::limit::Admission;
use crate::metrics::Metrics;
use crate::traffic::Outcome;

/// Held by the body of an answer until it ends.
pub(crate) trait InFlight: Send + Sync {
    /// The answer's last byte has been passed on.
    fn completed(self: Box<Self>);
    /// The replica's answer broke off.
    fn broke(self: Box<Self>);
}

/// A slot at a replica of this node. Its end wakes those who wait for one here.
pub(crate) struct Slot {
    admission: Option<Admission>,
    lane: Option<Arc<Lane>>,
}

impl Slot {
    pub(crate) fn new(admission: Admission, lane: Option<Arc<Lane>>) -> Self {
        Self {
            admission: Some(admission),
            lane,
        }
    }

    /// The replica's answer came to its end.
    fn ended(mut self, outcome: Outcome) {
        if let Some(admission) = self.admission.take()
            && outcome == Outcome::Completed
        {
            admission.completed();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        drop(self.admission.take());
        if let Some(lane) = &self.lane {
            lane.pump();
        }
    }
}

/// A request of another gateway, at a replica of this node.
pub(crate) struct Guest {
    pub(crate) give_back: GiveBack,
    pub(crate) slot: Slot,
    /// By the status, as a visit's.
    pub(crate) outcome: Outcome,
}

impl InFlight for Guest {
    fn completed(self: Box<Self>) {
        let Self {
            give_back,
            slot,
            outcome,
        } = *self;
        give_back.reuse();
        slot.ended(outcome);
    }

    fn broke(self: Box<Self>) {}
}

/// A client's request, from its arrival to its end: exactly one outcome is counted for it. Dropped
/// without one, the client has left.
pub(crate) struct Ticket {
    lane: Arc<Lane>,
    metrics: Arc<Metrics>,
    arrived: tokio::time::Instant,
    counted: bool,
}

impl Ticket {
    pub(crate) fn new(
        lane: Arc<Lane>,
        metrics: Arc<Metrics>,
        arrived: tokio::time::Instant,
    ) -> Self {
        lane.arrived();
        Self {
            lane,
            metrics,
            arrived,
            counted: false,
        }
    }

    pub(crate) fn lane(&self) -> &Arc<Lane> {
        &self.lane
    }

    /// The request goes to another served entity: the first left the routes.
    pub(crate) fn moved_to(&mut self, lane: Arc<Lane>) {
        lane.arrived();
        self.lane = lane;
    }

    pub(crate) fn end(mut self, outcome: Outcome, service: Option<std::time::Duration>) {
        self.count(outcome, service);
    }

    fn count(&mut self, outcome: Outcome, service: Option<std::time::Duration>) {
        self.counted = true;
        self.lane.ended(outcome, service);
        let endpoint = &self.lane.id().endpoint;
        self.metrics
            .ended(endpoint, outcome, self.arrived.elapsed());
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.counted {
            self.count(Outcome::Cancelled, None);
        }
    }
}

/// A client's request while its answer streams. Fields are dropped in this order: the replica's slot
/// is free before the lease hands it on.
pub(crate) struct Visit {
    pub(crate) give_back: GiveBack,
    /// `None` where the replica is on another node, whose gateway holds the slot.
    pub(crate) slot: Option<Slot>,
    pub(crate) lease: Lease,
    pub(crate) ticket: Ticket,
    /// By the status: an answer of 500 or more counts as failed.
    pub(crate) outcome: Outcome,
}

impl InFlight for Visit {
    fn completed(self: Box<Self>) {
        let Self {
            give_back,
            slot,
            lease,
            ticket,
            outcome,
        } = *self;
        give_back.reuse();
        if let Some(slot) = slot {
            slot.ended(outcome);
        }
        ticket.end(outcome, Some(lease.held_for()));
    }

    fn broke(self: Box<Self>) {
        let held = self.lease.held_for();
        self.ticket.end(Outcome::Failed, Some(held));
    }
}
