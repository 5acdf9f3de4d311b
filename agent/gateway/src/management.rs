//! `/api/` passes through to the scheduler's REST API, both ways streaming, so that one host name
//! serves people and clients alike. Authentication and everything else are the scheduler's.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use daemon::credentials::Credentials;
use daemon::identity::SCHEDULER_NAME;
use daemon::telemetry::Chain;
use http::header::{HOST, HeaderValue};
use http::{Request, Response, Uri, Version};
use hyper::body::Incoming;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::task::TaskTracker;

use crate::answer::{AnswerBody, Refusal};
use crate::attempt::GiveBack;
use crate::headers;
use crate::in_flight::InFlight;
use crate::payload::{BodyLimits, Payload};
use crate::upstream::exchange::{Exchanged, exchange};
use crate::upstream::pool::{Connection, Pool, PoolLimits};

const POOL: PoolLimits = PoolLimits {
    max_idle: 16,
    idle_timeout: Duration::from_secs(5),
};
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// From the end of the request to the answer's head, and between two pieces of the request: the
/// scheduler answers from memory, uploads of chunks go to its disk.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);
/// Requests that pass at once, each with a connection to the scheduler: strangers may send them too,
/// since it is the scheduler that asks for a token.
const MAX_PASSING: usize = 1_024;
/// The scheduler has limits of its own; this only ends what nobody sends any more.
const BODY_LIMITS: BodyLimits = BodyLimits {
    max_bytes: u64::MAX,
    idle: Duration::from_secs(60),
};

pub(crate) struct Management {
    tls: Arc<ClientConfig>,
    addresses: Vec<String>,
    /// Index of the address that answered last.
    last_good: AtomicUsize,
    pool: Arc<Pool>,
    permits: Arc<Semaphore>,
}

struct Passing {
    give_back: GiveBack,
    _permit: OwnedSemaphorePermit,
}

impl InFlight for Passing {
    fn completed(self: Box<Self>) {
        self.give_back.reuse();
    }

    fn broke(self: Box<Self>) {}
}

impl Management {
    pub(crate) fn new(
        credentials: &Credentials,
        addresses: Vec<String>,
        drivers: TaskTracker,
    ) -> Result<Self, daemon::tls::TlsError> {
        let mut tls = daemon::tls::https_client_of(credentials)?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            tls: Arc::new(tls),
            addresses,
            last_good: AtomicUsize::new(0),
            pool: Pool::new(POOL, drivers),
            permits: Arc::new(Semaphore::new(MAX_PASSING)),
        })
    }

    pub(crate) async fn pass(&self, request: Request<Incoming>) -> Response<AnswerBody> {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            let message = "too many requests pass through this gateway to the scheduler";
            return Refusal::busy(message.to_owned()).respond();
        };
        let (mut head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |p| p.as_str());
        let Ok(path) = path.parse::<Uri>() else {
            return Refusal::no_route(head.uri.path()).respond();
        };
        headers::remove_hop_by_hop(&mut head.headers);
        head.headers.remove(http::header::EXPECT);
        head.headers.remove(http::header::CONTENT_LENGTH);
        head.headers
            .insert(HOST, HeaderValue::from_static(SCHEDULER_NAME));
        let payload = Payload::passing(body, BODY_LIMITS);
        let sent = async {
            loop {
                let (connection, fresh) = match self.pool.take().await {
                    Some(connection) => (connection, false),
                    None => (self.connect().await?, true),
                };
                let mut request = Request::new(payload.body(None));
                *request.method_mut() = head.method.clone();
                *request.uri_mut() = path.clone();
                *request.version_mut() = Version::HTTP_11;
                *request.headers_mut() = head.headers.clone();
                match exchange(connection, request).await {
                    Exchanged::Answered {
                        response,
                        connection,
                    } => return Ok((response, connection)),
                    Exchanged::NeverWritten if !fresh && payload.can_be_sent() => {}
                    Exchanged::NeverWritten => return Err("the connection closed".to_owned()),
                    Exchanged::Died { reason, .. } => return Err(reason),
                }
            }
        };
        let (response, connection) = match while_it_moves(&payload, sent).await {
            Some(Ok(answered)) => answered,
            Some(Err(reason)) => {
                let message = format!(
                    "the scheduler cannot be reached ({reason}); endpoints go on serving meanwhile"
                );
                return Refusal::unavailable(message).respond();
            }
            None => {
                return Refusal::deadline("the scheduler did not answer in time".to_owned())
                    .respond();
            }
        };
        let (mut head, body) = response.into_parts();
        headers::remove_hop_by_hop(&mut head.headers);
        let give_back = GiveBack {
            pool: Arc::clone(&self.pool),
            connection,
        };
        Response::from_parts(
            head,
            AnswerBody::stream(
                body,
                Box::new(Passing {
                    give_back,
                    _permit: permit,
                }),
            ),
        )
    }

    async fn connect(&self) -> Result<Connection, String> {
        let first = self.last_good.load(Ordering::Relaxed);
        let mut problem = "its address is not known to this gateway".to_owned();
        for turn in 0..self.addresses.len() {
            let index = (first + turn) % self.addresses.len();
            let address = &self.addresses[index];
            let opened = tokio::time::timeout(CONNECT_TIMEOUT, self.open(address)).await;
            problem = match opened {
                Ok(Ok(stream)) => {
                    self.last_good.store(index, Ordering::Relaxed);
                    let made = self.pool.handshake(stream).await;
                    return made.map_err(|e| Chain(&e).to_string());
                }
                Ok(Err(error)) => format!("{address}: {error}"),
                Err(_) => format!("{address}: no answer within {CONNECT_TIMEOUT:?}"),
            };
        }
        Err(problem)
    }

    async fn open(&self, address: &str) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(SCHEDULER_NAME).expect("a fixed DNS name is valid");
        TlsConnector::from(Arc::clone(&self.tls))
            .connect(name, stream)
            .await
    }
}

/// Waits for `sent` as long as the request's body moves, and then [`HEAD_TIMEOUT`] more: an upload over
/// a slow line may take its time.
async fn while_it_moves<T>(payload: &Payload, sent: impl Future<Output = T>) -> Option<T> {
    tokio::pin!(sent);
    let mut before = payload.pieces();
    loop {
        if let Ok(done) = tokio::time::timeout(HEAD_TIMEOUT, &mut sent).await {
            return Some(done);
        }
        let now = payload.pieces();
        if now == before {
            return None;
        }
        before = now;
    }
}
