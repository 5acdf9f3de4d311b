//! The session that an agent or a gateway keeps to the scheduler: it comes back by itself.
//!
//! ```text
//! resolve -> connect -> Hello -> Welcome -> Up: frames both ways, request streams
//!    ^_____________ wait (full jitter, doubling to 15 s) <____ Down(reason) <___|
//! ```
//!
//! Frames queued while the session is down are dropped when it comes up: every one of them is a
//! report, and a report is worthless when late.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use rand::RngExt as _;
use shared::ids::{ClusterId, NodeName, Role};
use shared::wire::{
    ClientBody, ClientFrame, Hello, Holds, RequestBody, ServerBody, ServerFrame, StreamRequest,
    Welcome, close,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::credentials::Credentials;
use crate::identity::{moment, server_name, unix_now};
use crate::quic::{self, FrameError, read_frame, write_frame};
use crate::telemetry::Chain;
use crate::tls;

/// Reports are worthless when late: senders `try_send` and count what did not fit.
const OUTGOING: usize = 8;
/// Plans, routes and requests; a consumer that is this far behind holds the stream back.
const EVENTS: usize = 64;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_LAST: Duration = Duration::from_secs(15);
/// Request streams that wait for their first frame.
const MAX_PENDING_REQUESTS: usize = 32;

pub struct LinkOptions {
    /// `host:port`, tried in turn.
    pub addresses: Vec<String>,
    pub credentials: Credentials,
    /// Asked at every connect.
    pub hello: Arc<dyn Fn() -> Hello + Send + Sync>,
}

#[derive(Debug)]
pub enum LinkEvent {
    Up(Welcome),
    Down {
        reason: String,
    },
    Frame(ServerBody),
    /// The scheduler asks for something; the answer goes to `send`.
    Request {
        request: RequestBody,
        send: SendStream,
    },
}

#[derive(Clone)]
pub struct LinkHandle {
    pub outgoing: mpsc::Sender<ClientBody>,
    /// For requests of our own; `None` while the session is down.
    pub connection: watch::Receiver<Option<Connection>>,
    /// Why there is no session, and how to mend it; `None` while there is one.
    pub problem: watch::Receiver<Option<String>>,
}

/// Makes a link. The future keeps it until cancelled; it ends with an error never: whatever is
/// wrong with the scheduler, a node goes on with what it has.
pub fn link(
    options: LinkOptions,
    cancel: CancellationToken,
) -> (
    LinkHandle,
    mpsc::Receiver<LinkEvent>,
    impl Future<Output = anyhow::Result<()>> + Send + 'static,
) {
    let (outgoing, outgoing_rx) = mpsc::channel(OUTGOING);
    let (events, events_rx) = mpsc::channel(EVENTS);
    let (connection, connection_rx) = watch::channel(None);
    let (problem, problem_rx) = watch::channel(None);
    let runner = Runner {
        options,
        problem,
        outgoing: outgoing_rx,
        events,
        connection,
    };
    let handle = LinkHandle {
        outgoing,
        connection: connection_rx,
        problem: problem_rx,
    };
    (handle, events_rx, runner.run(cancel))
}

struct Runner {
    options: LinkOptions,
    outgoing: mpsc::Receiver<ClientBody>,
    events: mpsc::Sender<LinkEvent>,
    connection: watch::Sender<Option<Connection>>,
    problem: watch::Sender<Option<String>>,
}

#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("no scheduler address: set `scheduler` in the configuration, or join again")]
    NoAddress,
    #[error(
        "the scheduler's address {address} does not resolve: correct it (`scheduler` in the \
         configuration), or the name service of this machine"
    )]
    Resolve {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("{address} has no address")]
    NoHost { address: String },
    #[error(transparent)]
    Endpoint(#[from] quic::EndpointError),
    #[error("connect to {address}")]
    Start {
        address: String,
        #[source]
        source: quinn::ConnectError,
    },
    #[error("scheduler at {address}: {reason}")]
    Closed { address: String, reason: String },
    #[error(
        "no answer from {address} (UDP) within {CONNECT_TIMEOUT:?}: is stokehold-scheduler running \
         there, is the address the right one (`scheduler` in the configuration), and does a firewall \
         let it through?"
    )]
    Timeout { address: String },
    #[error("scheduler at {address}: {problem}")]
    Certificate { address: String, problem: String },
    #[error("this node's certificate expired at {at}: it is renewed first")]
    Expired { at: String },
    #[error(
        "scheduler at {address} is of cluster {theirs}, this node belongs to {ours}: correct the \
         address (`scheduler` in the configuration), or join this node to that cluster"
    )]
    OtherCluster {
        address: String,
        ours: ClusterId,
        theirs: String,
    },
}

struct Session {
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
    welcome: Welcome,
    /// Drives the connection; dropped with it.
    _endpoint: quinn::Endpoint,
}

impl Runner {
    async fn run(mut self, cancel: CancellationToken) -> anyhow::Result<()> {
        let mut backoff = BACKOFF_FIRST;
        let mut next_address = 0;
        let mut last_reason = String::new();
        loop {
            let connected = tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                connected = self.connect(next_address) => connected,
            };
            let reason = match connected {
                Ok(session) => {
                    info!(
                        cluster = session.welcome.cluster,
                        epoch = session.welcome.epoch,
                        version = session.welcome.version,
                        "session with the scheduler is up"
                    );
                    backoff = BACKOFF_FIRST;
                    last_reason.clear();
                    self.problem.send_replace(None);
                    match self.keep(session, &cancel).await {
                        Some(reason) => reason,
                        None => return Ok(()),
                    }
                }
                Err(error) => {
                    next_address += 1;
                    Chain(&error).to_string()
                }
            };
            // Said once, not at every try.
            if reason != last_reason {
                warn!(reason, "no session with the scheduler, going on without it");
                last_reason.clone_from(&reason);
            }
            self.connection.send_replace(None);
            let problem = format!("no session with the scheduler: {reason}");
            self.problem.send_replace(Some(problem));
            if self.events.send(LinkEvent::Down { reason }).await.is_err() {
                return Ok(());
            }
            let wait = backoff.mul_f64(rand::rng().random_range(0.5..1.0));
            backoff = (backoff * 2).min(BACKOFF_LAST);
            let mut renewed = self.options.credentials.changes();
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                // May be what was lacking.
                Ok(()) = renewed.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn connect(&self, turn: usize) -> Result<Session, ConnectError> {
        let addresses = &self.options.addresses;
        let address = addresses
            .get(turn % addresses.len().max(1))
            .ok_or(ConnectError::NoAddress)?;
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, self.connect_to(address));
        connecting.await.unwrap_or_else(|_| {
            Err(ConnectError::Timeout {
                address: address.clone(),
            })
        })
    }

    async fn connect_to(&self, address: &str) -> Result<Session, ConnectError> {
        let credentials = &self.options.credentials;
        if credentials.is_expired() {
            let at = moment(credentials.validity().not_after);
            return Err(ConnectError::Expired { at });
        }
        let remote = resolve(address).await?;
        let identity = credentials.identity();
        let (endpoint, refusal) = quic::client_endpoint_noting(credentials, remote)?;
        let name = server_name(Role::Scheduler, &identity.subject.node);
        let closed = |error: &quinn::ConnectionError| {
            let address = address.to_owned();
            match refusal.take().and_then(|error| tls::explain(&error)) {
                Some(problem) => ConnectError::Certificate { address, problem },
                None => ConnectError::Closed {
                    address,
                    reason: refused_by_peer(error, credentials)
                        .unwrap_or_else(|| quic::reason_of(error)),
                },
            }
        };
        let connection = endpoint
            .connect(remote, &name)
            .map_err(|source| ConnectError::Start {
                address: address.to_owned(),
                source,
            })?
            .await
            .map_err(|e| closed(&e))?;
        // In TLS 1.3 a client is done before the server has looked at its certificate: only the
        // server's first message says that it was accepted.
        let greeting = async {
            let (mut send, mut receive) = connection.open_bi().await.ok()?;
            let mut hello = (self.options.hello)();
            hello.authorities = credentials.authorities();
            hello.boot = boot_id();
            let hello = ClientBody::Hello(hello);
            write_frame(&mut send, &ClientFrame { body: Some(hello) })
                .await
                .ok()?;
            match read_frame::<ServerFrame>(&mut receive).await {
                Ok(Some(ServerFrame {
                    body: Some(ServerBody::Welcome(welcome)),
                })) => Some((send, receive, welcome)),
                _ => None,
            }
        };
        let Some((send, receive, welcome)) = greeting.await else {
            return Err(match connection.close_reason() {
                Some(error) => closed(&error),
                None => ConnectError::Closed {
                    address: address.to_owned(),
                    reason: "it did not answer the greeting".to_owned(),
                },
            });
        };
        let ours = &identity.subject.cluster;
        if welcome.cluster != ours.as_str() {
            quic::close(&connection, close::OTHER_CLUSTER, "another cluster");
            return Err(ConnectError::OtherCluster {
                address: address.to_owned(),
                ours: ours.clone(),
                theirs: welcome.cluster,
            });
        }
        Ok(Session {
            connection,
            send,
            receive,
            welcome,
            _endpoint: endpoint,
        })
    }

    /// Keeps a session until it ends (the reason) or the daemon does (`None`).
    async fn keep(&mut self, session: Session, cancel: &CancellationToken) -> Option<String> {
        let Session {
            connection,
            mut send,
            receive,
            welcome,
            _endpoint,
        } = session;
        while self.outgoing.try_recv().is_ok() {}
        self.connection.send_replace(Some(connection.clone()));
        if self.events.send(LinkEvent::Up(welcome)).await.is_err() {
            return None;
        }
        let mut readers = JoinSet::new();
        let credentials = self.options.credentials.clone();
        let mut changes = credentials.changes();
        readers.spawn(read_frames(
            receive,
            credentials.clone(),
            self.events.clone(),
        ));
        readers.spawn(accept_requests(connection.clone(), self.events.clone()));
        let end = loop {
            let body = tokio::select! {
                () = cancel.cancelled() => {
                    quic::close(&connection, close::GOING_AWAY, "stopping");
                    // Gives the close frame a moment to leave.
                    let _ = tokio::time::timeout(
                        Duration::from_millis(200), _endpoint.wait_idle()).await;
                    break None;
                }
                error = connection.closed() => break Some(quic::reason_of(&error)),
                Some(ended) = readers.join_next() => {
                    break Some(ended.unwrap_or_else(|e| e.to_string()));
                }
                Ok(()) = changes.changed() => Some(ClientBody::Holds(Holds {
                    authorities: credentials.authorities(),
                    issuer: credentials.issuer().unwrap_or_default(),
                    not_after: credentials.validity().not_after,
                })),
                body = self.outgoing.recv() => body,
            };
            let Some(body) = body else { break None };
            if let Err(error) = write_frame(&mut send, &ClientFrame { body: Some(body) }).await {
                break Some(match connection.close_reason() {
                    Some(reason) => quic::reason_of(&reason),
                    None => Chain(&error).to_string(),
                });
            }
        };
        quic::close(&connection, close::GOING_AWAY, "session ended");
        end
    }
}

async fn resolve(address: &str) -> Result<SocketAddr, ConnectError> {
    tokio::net::lookup_host(address)
        .await
        .map_err(|source| ConnectError::Resolve {
            address: address.to_owned(),
            source,
        })?
        .next()
        .ok_or_else(|| ConnectError::NoHost {
            address: address.to_owned(),
        })
}

/// Tells what the scheduler's refusal of this node's certificate means here.
fn refused_by_peer(error: &quinn::ConnectionError, credentials: &Credentials) -> Option<String> {
    let quinn::ConnectionError::ConnectionClosed(close) = error else {
        return None;
    };
    let is_alert = |alert: u8| close.error_code == quinn::TransportErrorCode::crypto(alert);
    let validity = credentials.validity();
    // TLS's `certificate_expired`, which stands for "not valid yet" as well.
    is_alert(45).then(|| {
        format!(
            "by the scheduler's clock this node's certificate is not valid now; it is from {} to {}, \
             and by this machine's clock it is {}: one of the two clocks is wrong; compare \
             `timedatectl` on both machines and turn time synchronisation on (`timedatectl set-ntp \
             true`)",
            moment(validity.not_before),
            moment(validity.not_after),
            moment(unix_now())
        )
    })
}

/// Empty where the kernel tells none.
fn boot_id() -> String {
    let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    read.map(|text| text.trim().to_owned()).unwrap_or_default()
}

async fn read_frames(
    mut receive: RecvStream,
    credentials: Credentials,
    events: mpsc::Sender<LinkEvent>,
) -> String {
    loop {
        match read_frame::<ServerFrame>(&mut receive).await {
            // A body that this version does not know.
            Ok(Some(ServerFrame { body: None })) => debug!("unknown frame ignored"),
            Ok(Some(ServerFrame {
                body: Some(ServerBody::Trust(trust)),
            })) => match credentials.trust(&trust.authorities_pem, &trust.signer) {
                Ok(()) => debug!(
                    signer = trust.signer,
                    "authorities are as the scheduler says"
                ),
                Err(error) => {
                    warn!(error = %Chain(&error), "the scheduler's authorities were not taken over");
                }
            },
            Ok(Some(ServerFrame { body: Some(body) })) => {
                if events.send(LinkEvent::Frame(body)).await.is_err() {
                    return "the daemon stopped listening".to_owned();
                }
            }
            Ok(None) => return "the scheduler ended the session".to_owned(),
            Err(FrameError::Read(quinn::ReadExactError::ReadError(
                quinn::ReadError::ConnectionLost(error),
            ))) => return quic::reason_of(&error),
            Err(error) => return Chain(&error).to_string(),
        }
    }
}

async fn accept_requests(connection: Connection, events: mpsc::Sender<LinkEvent>) -> String {
    let mut pending = JoinSet::new();
    loop {
        let (send, mut receive) = match connection.accept_bi().await {
            Ok(streams) => streams,
            Err(error) => return quic::reason_of(&error),
        };
        while pending.try_join_next().is_some() {}
        if pending.len() >= MAX_PENDING_REQUESTS {
            // Dropping the streams resets them; the asker sees a refusal.
            continue;
        }
        let events = events.clone();
        pending.spawn(async move {
            let read = read_frame::<StreamRequest>(&mut receive);
            match tokio::time::timeout(CONNECT_TIMEOUT, read).await {
                Ok(Ok(Some(StreamRequest {
                    body: Some(request),
                }))) => {
                    // A closed channel means that the daemon stops.
                    let _ = events.send(LinkEvent::Request { request, send }).await;
                }
                Ok(Ok(_)) => debug!("unknown request ignored"),
                Ok(Err(error)) => debug!(error = %Chain(&error), "request stream ended"),
                Err(_) => debug!("request stream sent nothing"),
            }
        });
    }
}

/// The node's name where the configuration has none: the host's, as far as it is a valid one.
pub fn default_node_name() -> Option<NodeName> {
    let host = nix::unistd::gethostname().ok()?.into_string().ok()?;
    NodeName::parse(&host.to_ascii_lowercase()).ok()
}
