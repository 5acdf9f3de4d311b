//! A request's way from its body to its answer's head.
//!
//! ```text
//! lease on a replica (or wait) -> try it -> answer
//!      ^                            |
//!      |____ full, not begun _______|    lost -> 502
//! ```
//!
//! What always holds: a request is tried again only when no replica can have begun to work on it, and
//! when its body can be sent from its beginning. Whatever it occupies comes back when this future, or
//! the answer's body, is dropped: a client that leaves frees its slot at once.

use std::sync::Arc;

use http::Response;
use http::header::{HeaderMap, HeaderValue};
use shared::units::MonoTime;
use tokio::sync::OwnedSemaphorePermit;

use crate::answer::{AnswerBody, Refusal};
use crate::attempt::{Answered, Attempt};
use crate::forward::{DRAIN_BYTES, DRAIN_TIME, Target, find};
use crate::gateway::State;
use crate::headers;
use crate::in_flight::{Slot, Ticket, Visit};
use crate::lane::{Ask, Lease, NoLease, Turn};
use crate::metrics::UpstreamError;
use crate::payload::{BodyError, Payload};
use crate::traffic::Outcome;

/// A request on its way.
pub(crate) struct Journey<'a> {
    pub(crate) state: &'a Arc<State>,
    pub(crate) target: &'a Target,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Payload,
    pub(crate) deadline: MonoTime,
    pub(crate) ticket: Ticket,
    /// Why the last try did not begin.
    pub(crate) last_failure: Option<String>,
    /// Its part of the memory for bodies, for as long as it may be sent again.
    pub(crate) _memory: OwnedSemaphorePermit,
}

/// How a journey ends without an answer from a replica.
struct End {
    refusal: Refusal,
    outcome: Outcome,
}

impl Journey<'_> {
    pub(crate) async fn run(mut self) -> Response<AnswerBody> {
        let mut turn = Turn::Newcomer;
        let mut held_until = self.ticket.lane().hold_from_now();
        loop {
            let lane = self.ticket.lane();
            let ask = Ask {
                turn,
                by_share: self.target.entity.is_none(),
                held_until,
                deadline: self.deadline,
            };
            let lease = match lane.lease(ask).await {
                Ok(lease) => lease,
                Err(NoLease::Gone) => match self.reroute() {
                    Ok(()) => {
                        turn = Turn::Moved;
                        held_until = self.ticket.lane().hold_from_now();
                        continue;
                    }
                    Err(end) => return self.end(end).await,
                },
                Err(why) => {
                    let end = self.no_lease(why);
                    return self.end(end).await;
                }
            };
            match self.visit(lease).await {
                Visited::Answered(answered, slot, lease) => {
                    return self.answer(*answered, slot, lease);
                }
                Visited::Full => {
                    turn = Turn::Again;
                    held_until = self.ticket.lane().hold_from_now();
                }
                Visited::NotBegun { reason } => {
                    turn = Turn::Again;
                    self.last_failure = Some(reason);
                }
                Visited::End(end) => return self.end(end).await,
            }
        }
    }

    /// One try at one replica.
    async fn visit(&self, lease: Lease) -> Visited {
        let at = self.state.clock.instant(self.deadline);
        let Ok((attempt, slot)) = tokio::time::timeout_at(at, self.attempt(&lease)).await else {
            return Visited::End(End {
                refusal: Refusal::deadline(format!(
                    "replica {} of {} did not begin to answer in time",
                    lease.replica(),
                    self.ticket.lane().id()
                )),
                outcome: Outcome::TimedOut,
            });
        };
        // The client's own fault, whatever it did to the connection to the replica.
        if let (Some(error), false) = (
            self.payload.failure(),
            matches!(attempt, Attempt::Answered(_)),
        ) {
            return Visited::End(End {
                refusal: Refusal::body(error),
                outcome: Outcome::Refused,
            });
        }
        let metrics = &self.state.metrics;
        let (replica, node) = (lease.replica().clone(), lease.node().clone());
        let reason = match attempt {
            Attempt::Answered(answered) => return Visited::Answered(answered, slot, lease),
            Attempt::Full { load } => {
                metrics.upstream_error(UpstreamError::full);
                drop(slot);
                lease.full(load);
                if self.payload.can_be_sent() {
                    return Visited::Full;
                }
                "it was full".to_owned()
            }
            Attempt::NotBegun { reason } => {
                metrics.upstream_error(UpstreamError::not_begun);
                tracing::debug!(%replica, %node, reason, "request goes to another replica");
                drop(slot);
                lease.unreachable();
                if self.payload.can_be_sent() {
                    return Visited::NotBegun { reason };
                }
                reason
            }
            Attempt::Lost { reason } => {
                metrics.upstream_error(UpstreamError::lost);
                reason
            }
        };
        tracing::info!(%replica, %node, reason, "request was lost with its replica");
        Visited::End(End {
            refusal: Refusal::lost(format!(
                "replica {replica} on node {node} broke off while it worked on this request ({reason})"
            )),
            outcome: Outcome::Failed,
        })
    }

    async fn attempt(&self, lease: &Lease) -> (Attempt, Option<Slot>) {
        let state = self.state;
        let not_begun = |reason: String| (Attempt::NotBegun { reason }, None);
        if *lease.node() == state.node {
            let Some(local) = state.locals.get(lease.replica()) else {
                return not_begun("its folder is not on this node".to_owned());
            };
            // Routes may have changed since the request came.
            let limit = state.limit_of(self.ticket.lane().id(), lease.replica());
            return match local.limiter.admit(limit) {
                Err(load) => (Attempt::Full { load }, None),
                Ok(admission) => {
                    // The lease, which ends right after it, wakes those who wait.
                    let slot = Slot::new(admission, None);
                    (
                        local.attempt(&self.headers, &self.payload).await,
                        Some(slot),
                    )
                }
            };
        }
        let Some(table) = state.table() else {
            return not_begun("there are no routes".to_owned());
        };
        let Some(address) = table.gateway_of(lease.node()) else {
            return not_begun(format!("node {} has no gateway", lease.node()));
        };
        let attempt = state
            .peers
            .attempt(
                lease.node(),
                address,
                lease.replica(),
                &self.headers,
                &self.payload,
            )
            .await;
        (attempt, None)
    }

    fn answer(self, answered: Answered, slot: Option<Slot>, lease: Lease) -> Response<AnswerBody> {
        let Answered {
            response,
            give_back,
            load,
        } = answered;
        lease.answered(load);
        let (mut head, body) = response.into_parts();
        headers::from_replica(&mut head.headers);
        let id = self.ticket.lane().id();
        if let Ok(name) = HeaderValue::from_str(id.entity.as_str()) {
            head.headers.insert(headers::SERVED_MODEL_NAME, name);
        }
        let outcome = Outcome::of_answer(head.status);
        let visit = Visit {
            give_back,
            slot,
            lease,
            ticket: self.ticket,
            outcome,
        };
        Response::from_parts(head, AnswerBody::stream(body, Box::new(visit)))
    }

    /// The entity was left behind while the request waited for it: the new routes know where it goes.
    fn reroute(&mut self) -> Result<(), End> {
        let (endpoint, index) = find(self.state, self.target).map_err(|refusal| End {
            refusal,
            outcome: Outcome::Rejected,
        })?;
        self.ticket
            .moved_to(Arc::clone(&endpoint.entities[index].lane));
        Ok(())
    }

    fn no_lease(&self, why: NoLease) -> End {
        let id = self.ticket.lane().id();
        let (refusal, outcome) = match why {
            NoLease::QueueFull => (
                Refusal::busy(format!(
                    "all replicas of {id} are busy, and its queue is full"
                )),
                Outcome::Rejected,
            ),
            NoLease::Deadline => (
                Refusal::deadline(format!("no replica of {id} became free in time")),
                Outcome::TimedOut,
            ),
            NoLease::NoReplica | NoLease::Gone => (
                Refusal::unavailable(match &self.last_failure {
                    Some(reason) => format!("no replica of {id} can be reached ({reason})"),
                    None => format!("{id} has no ready replica"),
                }),
                Outcome::Rejected,
            ),
        };
        End { refusal, outcome }
    }

    async fn end(self, end: End) -> Response<AnswerBody> {
        self.ticket.end(end.outcome, None);
        // Nobody wants the rest of a long body (see `forward::refuse`).
        if matches!(
            self.payload.failure(),
            None | Some(BodyError::TooLarge { .. })
        ) {
            let rest = self.payload.drain_rest(DRAIN_BYTES);
            let _ = tokio::time::timeout(DRAIN_TIME, rest).await;
        }
        end.refusal.respond()
    }
}

enum Visited {
    Answered(Box<Answered>, Option<Slot>, Lease),
    /// There is no slot: there will be one.
    Full,
    /// The replica cannot be reached: the next one may.
    NotBegun {
        reason: String,
    },
    End(End),
}
