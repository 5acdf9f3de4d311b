//! One session: hello, then reports in, plans and routes out, and the peer's requests on streams of
//! their own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use daemon::quic::{self, FrameError};
use daemon::telemetry::Chain;
use quinn::{Connection, RecvStream, SendStream};
use scheduler_core::registry::Shown;
use scheduler_core::{Effects, Event};
use shared::ids::{Role, ServedEntityId};
use shared::report::{AgentReport, GatewayReport};
use shared::wire::{
    ClientBody, ClientFrame, Hello, Holds, PROTOCOL_MAX, PROTOCOL_MIN, Peer, RequestBody,
    ServerBody, ServerFrame, StreamReply, StreamRequest, Trust, Welcome, WireError, close,
};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{debug, info};

use crate::control::{Admitted, Newcomer, Stopping};
use crate::listener::{Certified, Refusal, Shared};
use crate::sessions::{Numbered, Outgoing};

/// For the hello, and for the first frame of a request.
const FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that takes no frame for so long is stuck, although QUIC still answers for it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests of one connection that are worked on at once.
const REQUESTS: usize = 16;
const REPORT_INTERVAL_MS: u32 = 1000;
/// There are two at most; what more is claimed is not remembered.
const MAX_AUTHORITIES: usize = 4;

/// Runs a session to its end. `Ok` says why it ended; a refusal is for the peer to be told.
pub(crate) async fn run(
    connection: &Connection,
    certified: Certified,
    shared: &Arc<Shared>,
) -> Result<String, Refusal> {
    let Certified { peer, mut shown } = certified;
    let peer = &peer;
    let greeting = tokio::time::timeout(FIRST_FRAME_TIMEOUT, greet(connection));
    let (mut send, receive, hello) = match greeting.await {
        Ok(Ok(greeting)) => greeting,
        Ok(Err(Unfit::Gone(reason))) => return Ok(reason),
        Ok(Err(Unfit::Refused(refusal))) => return Err(refusal),
        Err(_) => return Err(Refusal::new(close::PROTOCOL, "no hello came in time")),
    };
    let protocol = negotiate(&hello)?;
    if hello.highest_epoch() > shared.control.epoch() {
        let seen = hello.highest_epoch();
        return match shared.control.epoch_seen(seen).await {
            Ok(true) => Err(Refusal::new(
                close::GOING_AWAY,
                "the scheduler restarts above the epoch that this node has seen",
            )),
            Ok(false) => Err(Refusal::new(
                close::PROTOCOL,
                format!("no scheduler gave out epoch {seen}"),
            )),
            Err(Stopping) => Err(stopping()),
        };
    }
    shown.trusts = hello
        .authorities
        .into_iter()
        .take(MAX_AUTHORITIES)
        .collect();
    let key_hash = shown.key_hash.clone();
    let newcomer = Newcomer {
        peer: peer.clone(),
        shown,
        boot: hello.boot,
        connection: connection.clone(),
        peer_address: hello.peer_address,
        client_address: hello.client_address,
    };
    let Admitted { id, outgoing } = match shared.control.arrived(newcomer).await {
        Ok(Ok(admitted)) => admitted,
        Ok(Err(refused)) => return Err(Refusal::new(refused.code(), refused.to_string())),
        Err(Stopping) => return Err(stopping()),
    };
    info!(%peer, address = %connection.remote_address(), version = hello.version, "session began");
    let welcome = Welcome {
        protocol,
        cluster: shared.authorities.cluster().to_string(),
        epoch: shared.control.epoch().0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        report_interval_ms: REPORT_INTERVAL_MS,
    };
    let welcome = ServerFrame {
        body: Some(ServerBody::Welcome(welcome)),
    };
    // Each of these ends only with the session, so none is resumed after it was dropped.
    let ended = tokio::select! {
        ended = write(&mut send, &welcome, outgoing, shared.authorities.trust()) => ended,
        ended = read(receive, peer, &key_hash, shared) => ended,
        ended = answer_requests(connection, peer, shared) => ended,
    };
    // A control task that has ended needs to be told nothing.
    let _ = shared.control.left(peer.clone(), id).await;
    ended
}

enum Unfit {
    /// The peer went away by itself.
    Gone(String),
    Refused(Refusal),
}

async fn greet(connection: &Connection) -> Result<(SendStream, RecvStream, Hello), Unfit> {
    let streams = connection.accept_bi().await;
    let (send, mut receive) = streams.map_err(|e| Unfit::Gone(quic::reason_of(&e)))?;
    let refused = |reason: &str| Unfit::Refused(Refusal::new(close::PROTOCOL, reason));
    match quic::read_frame::<ClientFrame>(&mut receive).await {
        Ok(Some(ClientFrame {
            body: Some(ClientBody::Hello(hello)),
        })) => Ok((send, receive, hello)),
        Ok(Some(_)) => Err(refused("the first frame of a session must be a hello")),
        Ok(None) => Err(refused("the session's stream ended before a hello")),
        Err(error) => Err(match frame_failure(error) {
            Ok(reason) => Unfit::Gone(reason),
            Err(refusal) => Unfit::Refused(refusal),
        }),
    }
}

/// The highest version that both sides speak.
fn negotiate(hello: &Hello) -> Result<u32, Refusal> {
    let highest = hello.protocol_max.min(PROTOCOL_MAX);
    if highest >= hello.protocol_min.max(PROTOCOL_MIN) {
        return Ok(highest);
    }
    Err(Refusal::new(
        close::VERSION,
        format!(
            "this scheduler speaks protocol {PROTOCOL_MIN} to {PROTOCOL_MAX}, {} speaks {} to {}: \
             upgrade the older one",
            hello.version, hello.protocol_min, hello.protocol_max
        ),
    ))
}

fn stopping() -> Refusal {
    Refusal::new(close::GOING_AWAY, Stopping.to_string())
}

async fn write(
    send: &mut SendStream,
    welcome: &ServerFrame,
    mut outgoing: watch::Receiver<Outgoing>,
    mut trust: watch::Receiver<Trust>,
) -> Result<String, Refusal> {
    let (mut plan, mut routes) = (0, 0);
    let mut frames = vec![Bytes::from(shared::wire::encode_frame(welcome))];
    frames.push(trust_frame(&mut trust));
    loop {
        for frame in frames {
            match tokio::time::timeout(WRITE_TIMEOUT, send.write_all(&frame)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return frame_failure(error.into()),
                Err(_) => return Err(Refusal::new(close::GOING_AWAY, "frames were not taken")),
            }
        }
        frames = {
            let newest = outgoing.borrow_and_update();
            let unsent = |numbered: &Option<Numbered>, sent: &mut u64| {
                let next = numbered.as_ref().filter(|next| next.number > *sent)?;
                *sent = next.number;
                Some(next.frame.clone())
            };
            let plan = unsent(&newest.plan, &mut plan);
            plan.into_iter()
                .chain(unsent(&newest.routes, &mut routes))
                .collect()
        };
        if !frames.is_empty() {
            continue;
        }
        tokio::select! {
            changed = outgoing.changed() => if changed.is_err() {
                // The table dropped it for a newer session, and has closed this one's connection.
                return Ok("another session of the same node took over".to_owned());
            },
            Ok(()) = trust.changed() => frames.push(trust_frame(&mut trust)),
        }
    }
}

fn trust_frame(trust: &mut watch::Receiver<Trust>) -> Bytes {
    let body = Some(ServerBody::Trust(trust.borrow_and_update().clone()));
    shared::wire::encode_frame(&ServerFrame { body }).into()
}

async fn read(
    mut receive: RecvStream,
    peer: &Peer,
    key_hash: &str,
    shared: &Arc<Shared>,
) -> Result<String, Refusal> {
    loop {
        let frame = match quic::read_frame::<ClientFrame>(&mut receive).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok("the peer ended the session's stream".to_owned()),
            Err(error) => return frame_failure(error),
        };
        // A frame of a later version has no body that is known here.
        let Some(body) = frame.body else { continue };
        if let ClientBody::Holds(holds) = body {
            take_in(holds, peer, key_hash, shared).await?;
            continue;
        }
        let event = event_of(peer, body)?;
        if shared.control.event(event).await.is_err() {
            return Err(stopping());
        }
    }
}

/// What the node holds now; its session may have begun with another certificate.
async fn take_in(
    holds: Holds,
    peer: &Peer,
    key_hash: &str,
    shared: &Arc<Shared>,
) -> Result<(), Refusal> {
    let (peer, shown) = (
        peer.clone(),
        Shown {
            key_hash: key_hash.to_owned(),
            issuer: holds.issuer.chars().take(64).collect(),
            // What was given out is recorded; what a node claims would let it renew for ever.
            not_after_unix: 0,
            trusts: holds
                .authorities
                .into_iter()
                .take(MAX_AUTHORITIES)
                .collect(),
        },
    );
    let learnt = shared.control.decide(move |core, _| {
        let effects = Effects {
            writes: core.registry.learn(&peer.node, peer.role, shown),
            ..Effects::default()
        };
        ((), effects)
    });
    learnt.await.map_err(|Stopping| stopping())
}

fn event_of(peer: &Peer, body: ClientBody) -> Result<Event, Refusal> {
    let node = peer.node.clone();
    let wrong = |error: WireError| Refusal::new(close::PROTOCOL, error.to_string());
    match (peer.role, body) {
        (Role::Agent, ClientBody::AgentReport(report)) => Ok(Event::AgentReport {
            node,
            report: AgentReport::try_from(report).map_err(wrong)?,
        }),
        (Role::Gateway, ClientBody::GatewayReport(report)) => Ok(Event::GatewayReport {
            node,
            report: GatewayReport::try_from(report).map_err(wrong)?,
        }),
        (Role::Gateway, ClientBody::Demand(demand)) => Ok(Event::Demand {
            id: ServedEntityId {
                endpoint: demand.endpoint().map_err(wrong)?,
                entity: demand.entity().map_err(wrong)?,
            },
            queued: demand.queued,
        }),
        (_, ClientBody::Hello(_)) => Err(Refusal::new(close::PROTOCOL, "a second hello")),
        // Taken in before this.
        (_, ClientBody::Holds(_)) => Err(Refusal::new(close::PROTOCOL, "holds is no event")),
        (
            role,
            ClientBody::AgentReport(_) | ClientBody::GatewayReport(_) | ClientBody::Demand(_),
        ) => Err(Refusal::new(
            close::WRONG_ROLE,
            format!("this frame is not for the role {role} to send"),
        )),
    }
}

async fn answer_requests(
    connection: &Connection,
    peer: &Peer,
    shared: &Arc<Shared>,
) -> Result<String, Refusal> {
    let places = Arc::new(Semaphore::new(REQUESTS));
    let mut answers = JoinSet::new();
    loop {
        while answers.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return Err(stopping());
        };
        let (send, receive) = match connection.accept_bi().await {
            Ok(streams) => streams,
            Err(error) => return Ok(quic::reason_of(&error)),
        };
        let (shared, role) = (Arc::clone(shared), peer.role);
        answers.spawn(async move {
            let _place = place;
            answer_request(send, receive, role, &shared).await;
        });
    }
}

async fn answer_request(
    mut send: SendStream,
    mut receive: RecvStream,
    role: Role,
    shared: &Shared,
) {
    let first = quic::read_frame::<StreamRequest>(&mut receive);
    let request = match tokio::time::timeout(FIRST_FRAME_TIMEOUT, first).await {
        Ok(Ok(Some(StreamRequest { body: Some(body) }))) => body,
        Ok(Ok(_)) => return refuse(&mut send, "this request is not known here").await,
        Ok(Err(error)) => {
            debug!(error = %Chain(&error), "request stream ended");
            return;
        }
        Err(_) => {
            debug!("request stream sent nothing");
            return;
        }
    };
    match (role, request) {
        (Role::Agent, request @ (RequestBody::FetchChunk(_) | RequestBody::FetchManifest(_))) => {
            shared.chunks.answer(request, send).await;
        }
        (_, _) => refuse(&mut send, "this request is not for your role to make").await,
    }
}

async fn refuse(send: &mut SendStream, reason: &str) {
    let reply = StreamReply {
        error: reason.to_owned(),
        ..StreamReply::default()
    };
    // Whoever asked and left needs no answer.
    if quic::write_frame(send, &reply).await.is_ok() {
        let _ = send.finish();
    }
}

/// A stream that failed is a peer that went away, or one that breaks the protocol.
fn frame_failure(error: FrameError) -> Result<String, Refusal> {
    match error {
        FrameError::Write(quinn::WriteError::ConnectionLost(error))
        | FrameError::Read(quinn::ReadExactError::ReadError(quinn::ReadError::ConnectionLost(
            error,
        ))) => Ok(quic::reason_of(&error)),
        FrameError::Write(_) | FrameError::Read(_) => Ok(Chain(&error).to_string()),
        FrameError::TooLarge { .. } | FrameError::Decode(_) => {
            Err(Refusal::new(close::PROTOCOL, Chain(&error).to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::ids::NodeName;
    use shared::wire::Demand;

    fn hello(min: u32, max: u32) -> Hello {
        Hello {
            protocol_min: min,
            protocol_max: max,
            ..Hello::default()
        }
    }

    #[test]
    fn the_highest_common_protocol_is_chosen() {
        assert_eq!(negotiate(&hello(1, 7)), Ok(PROTOCOL_MAX));
        let refused = negotiate(&hello(PROTOCOL_MAX + 1, PROTOCOL_MAX + 2));
        assert_eq!(refused.expect_err("too new").code, close::VERSION);
        assert_eq!(
            negotiate(&hello(0, 0)).expect_err("too old").code,
            close::VERSION
        );
    }

    #[test]
    fn a_frame_of_another_role_ends_the_session() {
        let agent = Peer {
            role: Role::Agent,
            node: NodeName::parse("n1").expect("valid"),
        };
        let demand = Demand {
            endpoint: "e".into(),
            entity: "m-1".into(),
            queued: 1,
        };
        let refused = event_of(&agent, ClientBody::Demand(demand.clone()));
        assert_eq!(refused.expect_err("wrong role").code, close::WRONG_ROLE);
        let gateway = Peer {
            role: Role::Gateway,
            ..agent
        };
        assert!(event_of(&gateway, ClientBody::Demand(demand)).is_ok());
        let nameless = ClientBody::Demand(Demand::default());
        let refused = event_of(&gateway, nameless).expect_err("no endpoint");
        assert_eq!(refused.code, close::PROTOCOL);
    }
}
