//! The listener for other gateways: admits their requests to the replicas of this node.
//!
//! Whether there is a slot is said before a byte of the body is read. What a replica answers passes as
//! it is; what this gateway has to say itself carries `stokehold-full` or `stokehold-refusal`, headers
//! that no replica's answer can carry through.

use std::sync::Arc;

use daemon::identity::Subject;
use http::header::HeaderValue;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use shared::ids::{ReplicaId, Role, ServedEntityId};

use crate::answer::{AnswerBody, Refusal};
use crate::attempt::Attempt;
use crate::gateway::State;
use crate::headers;
use crate::in_flight::{Guest, Slot};
use crate::payload::{BodyLimits, Payload};
use crate::peers::PATH;
use crate::traffic::Outcome;

pub(crate) async fn serve(
    state: Arc<State>,
    subject: Option<Subject>,
    request: Request<Incoming>,
) -> Response<AnswerBody> {
    if let Err(refusal) = may_ask(&state, subject.as_ref()) {
        return not_begun(&refusal);
    }
    let path = request.uri().path();
    let replica = path
        .strip_prefix(PATH.0)
        .and_then(|rest| rest.strip_suffix(PATH.1))
        .and_then(|id| ReplicaId::parse(id).ok());
    let Some(replica) = replica else {
        return not_begun(&Refusal::no_route(path));
    };
    if request.method() != Method::POST {
        return not_begun(&Refusal::wrong_method(&Method::POST));
    }
    state.metrics.peer_requests.inc();
    invoke(&state, &replica, request).await
}

fn may_ask(state: &State, subject: Option<&Subject>) -> Result<(), Refusal> {
    let Some(subject) = subject else {
        return Err(Refusal::denied("a certificate is needed".to_owned()));
    };
    if subject.role != Role::Gateway || subject.cluster != state.cluster {
        return Err(Refusal::denied(
            "this is for gateways of the same cluster".to_owned(),
        ));
    }
    if state
        .table()
        .is_some_and(|table| table.is_revoked(&subject.node))
    {
        return Err(Refusal::denied(format!(
            "node {} was revoked",
            subject.node
        )));
    }
    Ok(())
}

async fn invoke(
    state: &Arc<State>,
    replica: &ReplicaId,
    request: Request<Incoming>,
) -> Response<AnswerBody> {
    let Some(local) = state.locals.get(replica) else {
        return not_begun(&Refusal::not_found(format!(
            "replica {replica} on node {}",
            state.node
        )));
    };
    let id = ServedEntityId {
        endpoint: local.spec.endpoint.clone(),
        entity: local.spec.entity.clone(),
    };
    let (limit, lane) = state.limit_and_lane(&id, replica);
    let admission = match local.limiter.admit(limit) {
        Ok(admission) => admission,
        Err(load) => return full(replica, load),
    };
    let slot = Slot::new(admission, lane);
    let (mut head, body) = request.into_parts();
    headers::for_replica(&mut head.headers);
    // The entry gateway has checked the length; here a body only must not stall.
    let limits = BodyLimits {
        max_bytes: u64::MAX,
        idle: state.body_idle,
    };
    let payload = Payload::passing(body, limits);
    let load = local.limiter.in_flight();
    let mut response = match local.attempt(&head.headers, &payload).await {
        Attempt::Answered(answered) => {
            let (mut head, body) = answered.response.into_parts();
            headers::from_replica(&mut head.headers);
            let give_back = answered.give_back;
            let outcome = Outcome::of_answer(head.status);
            let guest = Guest {
                give_back,
                slot,
                outcome,
            };
            Response::from_parts(head, AnswerBody::stream(body, Box::new(guest)))
        }
        Attempt::Full { load } => return full(replica, load),
        Attempt::NotBegun { reason } => return not_begun(&Refusal::lost(reason)),
        Attempt::Lost { reason } => {
            let mut response = Refusal::lost(reason).respond();
            let headers = response.headers_mut();
            headers.insert(headers::REFUSAL, headers::REFUSAL_LOST);
            response
        }
    };
    response
        .headers_mut()
        .insert(headers::LOAD, HeaderValue::from(load));
    response
}

fn full(replica: &ReplicaId, load: u32) -> Response<AnswerBody> {
    let mut response = Refusal::unavailable(format!("replica {replica} is full")).respond();
    let headers = response.headers_mut();
    headers.insert(headers::FULL, HeaderValue::from_static("1"));
    headers.insert(headers::LOAD, HeaderValue::from(load));
    response
}

fn not_begun(refusal: &Refusal) -> Response<AnswerBody> {
    let mut response = refusal.respond();
    response
        .headers_mut()
        .insert(headers::REFUSAL, headers::REFUSAL_NOT_BEGUN);
    response
}
