//! A client's request up to its way to a replica: which endpoint and entity, and its body.

use std::sync::Arc;
use std::time::Duration;

use http::header::EXPECT;
use http::{HeaderMap, Request, Response, Version};
use hyper::body::{Body as _, Incoming};
use shared::ids::{EndpointName, EntityName};
use shared::units::MonoTime;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::answer::{AnswerBody, Refusal};
use crate::balancer::draw_share;
use crate::gateway::State;
use crate::headers;
use crate::in_flight::Ticket;
use crate::journey::Journey;
use crate::metrics::Turned;
use crate::payload::{BodyError, BodyLimits, Payload, drain, intake};
use crate::table::Endpoint;

/// Of a body that is refused, this much is read before the answer, for so long.
pub(crate) const DRAIN_BYTES: u64 = 64 << 20;
pub(crate) const DRAIN_TIME: Duration = Duration::from_secs(10);

/// What a request asks for.
pub(crate) struct Target {
    pub(crate) endpoint: EndpointName,
    /// `None`: by the endpoint's traffic split.
    pub(crate) entity: Option<EntityName>,
}

/// Serves an invocation that is authenticated.
pub(crate) async fn serve(
    state: &Arc<State>,
    target: &Target,
    mut request: Request<Incoming>,
) -> Response<AnswerBody> {
    let arrived = Instant::now();
    let (endpoint, index) = match find(state, target) {
        Ok(found) => found,
        Err(refusal) => {
            state.metrics.turned_away(Turned::unknown_endpoint);
            return refuse(state, &refusal, request).await;
        }
    };
    if !headers::takes_json(request.headers_mut()) {
        state.metrics.turned_away(Turned::not_json);
        return refuse(state, &Refusal::not_json(), request).await;
    }
    let lane = Arc::clone(&endpoint.entities[index].lane);
    let timeout = Duration::from_millis(u64::from(endpoint.limits.request_timeout_ms));
    let deadline = state.clock.now() + timeout;
    let (mut head, body) = request.into_parts();
    let limits = BodyLimits {
        max_bytes: endpoint.limits.max_body_bytes,
        idle: state.body_idle,
    };
    let waits = waits_to_send(head.version, &head.headers);
    let read = read_body(state, body, limits, waits, deadline);
    let (payload, memory) = match read.await {
        Ok(read) => read,
        Err(refusal) => {
            state.metrics.turned_away(Turned::bad_body);
            return refusal.respond();
        }
    };
    headers::for_replica(&mut head.headers);
    let journey = Journey {
        state,
        target,
        headers: head.headers,
        payload,
        deadline,
        ticket: Ticket::new(lane, Arc::clone(&state.metrics), arrived),
        last_failure: None,
        _memory: memory,
    };
    journey.run().await
}

/// Refuses a request whose body nobody wants. It is read first: a client that is still sending when its
/// answer comes and the connection or stream closes sees a reset, and sends everything again.
pub(crate) async fn refuse(
    state: &State,
    refusal: &Refusal,
    request: Request<Incoming>,
) -> Response<AnswerBody> {
    let waits = waits_to_send(request.version(), request.headers());
    if !waits && !request.body().is_end_stream() {
        let rest = drain(request.into_body(), DRAIN_BYTES, state.body_idle);
        // The answer is the same whether the client stopped sending in time or not.
        let _ = tokio::time::timeout(DRAIN_TIME, rest).await;
    }
    refusal.respond()
}

/// A client that waits for leave to send a body is simply not given it. (On HTTP/2 none waits for it.)
fn waits_to_send(version: Version, headers: &HeaderMap) -> bool {
    version < Version::HTTP_2 && headers.contains_key(EXPECT)
}

/// The endpoint, and which of its entities takes the request.
pub(crate) fn find(state: &State, target: &Target) -> Result<(Arc<Endpoint>, usize), Refusal> {
    let table = state
        .table()
        .ok_or_else(|| Refusal::unavailable("this gateway has no routes yet".to_owned()))?;
    let endpoint = table
        .endpoint(&target.endpoint)
        .ok_or_else(|| Refusal::not_found(format!("endpoint {}", target.endpoint)))?;
    let index = match &target.entity {
        Some(name) => endpoint
            .entities
            .iter()
            .position(|e| e.name == *name)
            .ok_or_else(|| {
                Refusal::not_found(format!(
                    "served entity {name} of endpoint {}",
                    target.endpoint
                ))
            })?,
        None => {
            let shares = endpoint.entities.iter().map(|e| e.percent);
            draw_share(shares, &mut rand::rng()).ok_or_else(|| {
                Refusal::unavailable(format!("endpoint {} serves nothing yet", target.endpoint))
            })?
        }
    };
    Ok((Arc::clone(endpoint), index))
}

async fn read_body(
    state: &State,
    body: Incoming,
    limits: BodyLimits,
    waits_to_send: bool,
    deadline: MonoTime,
) -> Result<(Payload, OwnedSemaphorePermit), Refusal> {
    let reading = async {
        let Some(memory) = state.memory.reserve(&body.size_hint()) else {
            return Err(Refusal::busy(
                "this gateway holds as many bodies as it may".to_owned(),
            ));
        };
        match intake(body, limits).await {
            Ok(payload) => {
                let memory = memory.keep(payload.held_bytes());
                Ok((payload, memory))
            }
            Err((error @ BodyError::TooLarge { .. }, rest)) => {
                if !waits_to_send || rest.is_end_stream() {
                    drain(rest, DRAIN_BYTES, limits.idle).await;
                }
                Err(Refusal::body(error))
            }
            Err((error, _)) => Err(Refusal::body(error)),
        }
    };
    tokio::time::timeout_at(state.clock.instant(deadline), reading)
        .await
        .unwrap_or_else(|_| {
            Err(Refusal::deadline(
                "the request's body did not arrive in time".to_owned(),
            ))
        })
}
