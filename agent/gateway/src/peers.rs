//! Requests to replicas of other nodes, through the gateways of those nodes.
//!
//! Each request asks for `100 Continue`. The other gateway sends it when it has a slot and a connection
//! to the replica and begins to read the body, so its absence tells that the replica never saw the
//! request: a request whose connection died before is sent again. A long body waits for it as well
//! (see [`crate::payload`]).

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use daemon::credentials::Credentials;
use daemon::http::limit_silence;
use daemon::identity::server_name;
use daemon::telemetry::Chain;
use http::header::{EXPECT, HeaderValue};
use http::{HeaderMap, Response, StatusCode, Uri};
use hyper::body::Incoming;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use shared::api::ErrorBody;
use shared::ids::{NodeName, ReplicaId, Role};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;

use crate::attempt::{Answered, Attempt, GiveBack, read_short, request};
use crate::headers;
use crate::payload::{Gate, Payload};
use crate::upstream::exchange::{Exchanged, exchange};
use crate::upstream::pool::{Connection, Pool, PoolLimits};

pub(crate) const PEER_ALPN: &[u8] = b"stokehold-peer/1";
/// Before the replica's id, and after it.
pub(crate) const PATH: (&str, &str) = ("/peer/v1/replicas/", "/invoke");

/// Listeners close a connection on which no request has begun for 10 s.
const POOL: PoolLimits = PoolLimits {
    max_idle: 256,
    idle_timeout: Duration::from_secs(8),
};
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// After this a node that died without a word is known to be gone: what its replicas cannot have begun
/// goes elsewhere, long before its deadline.
const SILENCE: Duration = Duration::from_secs(30);
/// Of a refusal's few bytes.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) struct Peers {
    tls: Arc<ClientConfig>,
    drivers: TaskTracker,
    pools: Mutex<HashMap<NodeName, Arc<Pool>>>,
}

#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("connect to the gateway of node {node} at {address}")]
    Connect {
        node: NodeName,
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("gateway of node {node} at {address} did not answer within {CONNECT_TIMEOUT:?}")]
    Timeout { node: NodeName, address: String },
    #[error("speak HTTP with the gateway of node {node}")]
    Handshake {
        node: NodeName,
        #[source]
        source: hyper::Error,
    },
}

impl Peers {
    pub(crate) fn new(
        credentials: &Credentials,
        drivers: TaskTracker,
    ) -> Result<Self, daemon::tls::TlsError> {
        Ok(Self {
            tls: daemon::tls::mutual_client(credentials, &[PEER_ALPN])?,
            drivers,
            pools: Mutex::new(HashMap::new()),
        })
    }

    /// Forgets nodes that are no longer there.
    pub(crate) fn retain(&self, keep: impl Fn(&NodeName) -> bool) {
        self.pools.lock().retain(|node, _| keep(node));
    }

    pub(crate) fn reap(&self) {
        for pool in self.pools.lock().values() {
            pool.reap();
        }
    }

    pub(crate) async fn attempt(
        &self,
        node: &NodeName,
        address: &str,
        replica: &ReplicaId,
        headers: &HeaderMap,
        payload: &Payload,
    ) -> Attempt {
        let pool = self.pool(node);
        let path: Uri = format!("{}{replica}{}", PATH.0, PATH.1)
            .parse()
            .expect("a replica's id is hexadecimal, so this is a path");
        loop {
            let (connection, fresh) = match pool.take().await {
                Some(connection) => (connection, false),
                None => match self.connect(&pool, node, address).await {
                    Ok(connection) => (connection, true),
                    Err(error) => {
                        return Attempt::NotBegun {
                            reason: Chain(&error).to_string(),
                        };
                    }
                },
            };
            let gate = Arc::new(Gate::default());
            let held = payload.is_streamed().then(|| Arc::clone(&gate));
            let mut request = request(path.clone(), headers.clone(), payload.body(held));
            request
                .headers_mut()
                .insert(EXPECT, HeaderValue::from_static("100-continue"));
            let accepted = Arc::clone(&gate);
            hyper::ext::on_informational(&mut request, move |response| {
                if response.status() == StatusCode::CONTINUE {
                    accepted.open();
                }
            });
            let reason = match exchange(connection, request).await {
                Exchanged::Answered {
                    response,
                    connection,
                } => {
                    let give_back = GiveBack {
                        pool: Arc::clone(&pool),
                        connection,
                    };
                    return read_answer(response, give_back, payload).await;
                }
                Exchanged::NeverWritten => "the connection closed".to_owned(),
                // Of an empty body nothing is asked for, so nothing is told either.
                Exchanged::Died { reason, .. } if gate.is_open() || payload.is_empty() => {
                    return Attempt::Lost { reason };
                }
                Exchanged::Died { reason, .. } => reason,
            };
            let reason = format!("gateway of node {node}: {reason}");
            if !payload.can_be_sent() {
                return Attempt::Lost { reason };
            }
            if fresh {
                return Attempt::NotBegun { reason };
            }
        }
    }

    fn pool(&self, node: &NodeName) -> Arc<Pool> {
        let mut pools = self.pools.lock();
        let pool = pools
            .entry(node.clone())
            .or_insert_with(|| Pool::new(POOL, self.drivers.clone()));
        Arc::clone(pool)
    }

    async fn connect(
        &self,
        pool: &Pool,
        node: &NodeName,
        address: &str,
    ) -> Result<Connection, ConnectError> {
        let open = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            limit_silence(&stream, SILENCE)?;
            let name = ServerName::try_from(server_name(Role::Gateway, node))
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
            TlsConnector::from(Arc::clone(&self.tls))
                .connect(name, stream)
                .await
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, open)
            .await
            .map_err(|_| ConnectError::Timeout {
                node: node.clone(),
                address: address.to_owned(),
            })?
            .map_err(|source| ConnectError::Connect {
                node: node.clone(),
                address: address.to_owned(),
                source,
            })?;
        pool.handshake(stream)
            .await
            .map_err(|source| ConnectError::Handshake {
                node: node.clone(),
                source,
            })
    }
}

async fn read_answer(
    response: Response<Incoming>,
    give_back: GiveBack,
    payload: &Payload,
) -> Attempt {
    let load = headers::load(response.headers());
    let full = response.headers().contains_key(headers::FULL);
    let refusal = response.headers().get(headers::REFUSAL).cloned();
    if !full && refusal.is_none() {
        return Attempt::Answered(Box::new(Answered {
            response,
            give_back,
            load,
        }));
    }
    let body = tokio::time::timeout(REFUSAL_TIMEOUT, read_short(response.into_body())).await;
    let text = body.ok().flatten();
    // A body that was held back is still owed to this connection, which therefore closes.
    if text.is_some() && !payload.is_streamed() {
        give_back.reuse();
    }
    if full {
        return Attempt::Full {
            load: load.unwrap_or(0),
        };
    }
    let reason = text
        .and_then(|text| serde_json::from_slice::<ErrorBody>(&text).ok())
        .map_or_else(|| "no reason was given".to_owned(), |body| body.message);
    let not_begun = refusal.is_some_and(|refusal| refusal == headers::REFUSAL_NOT_BEGUN);
    if not_begun && payload.can_be_sent() {
        Attempt::NotBegun { reason }
    } else {
        Attempt::Lost { reason }
    }
}
