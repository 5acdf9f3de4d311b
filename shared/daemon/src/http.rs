//! HTTPS listeners with limits on everything that a stranger could make us hold.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body::Body;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::identity::{Subject, subject_of};

/// Between two tries to accept, after one failed.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Limits of one listener. The defaults follow Envoy's guide for edges.
#[derive(Clone, Copy, Debug)]
pub struct HttpLimits {
    /// More wait in the kernel's queue.
    pub max_connections: usize,
    pub handshake_timeout: Duration,
    /// For a request's header to arrive, from the connection's (or, on HTTP/1.1, the last request's)
    /// end of preparations: it bounds idle HTTP/1.1 connections too.
    pub header_timeout: Duration,
    /// A request line with all headers.
    pub max_header_bytes: usize,
    /// HTTP/2 requests of one connection at once.
    pub max_streams: u32,
    /// A client that is gone without a word, or takes nothing of what it is sent, is given up after
    /// this: it must not hold what its request occupies.
    pub silence: Duration,
    /// Requests under way when the daemon stops get this long.
    pub drain: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            max_connections: 16_384,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            max_header_bytes: 64 << 10,
            max_streams: 100,
            silence: Duration::from_secs(60),
            drain: Duration::from_secs(20),
        }
    }
}

/// Who a connection is from.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    pub peer: SocketAddr,
    /// `None` where the listener asks for no certificate.
    pub subject: Option<Subject>,
}

/// Serves HTTP/1.1 and HTTP/2 (by ALPN) until cancelled, then lets requests under way end.
///
/// `make` is called once a connection; a connection whose certificate carries no identity, on a
/// listener that asks for one, ends in the handshake.
pub async fn serve_tls<F, S, B>(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    limits: HttpLimits,
    make: F,
    cancel: CancellationToken,
) -> anyhow::Result<()>
where
    F: Fn(&ConnectionInfo) -> S + Send + Sync + 'static,
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let acceptor = TlsAcceptor::from(with_http10(tls));
    let permits = Arc::new(Semaphore::new(limits.max_connections));
    let graceful = GracefulShutdown::new();
    let builders = Arc::new(Builders::new(&limits));
    let make = Arc::new(make);
    let mut connections = JoinSet::new();
    let mut failing = false;
    loop {
        while connections.try_join_next().is_some() {}
        let permit = tokio::select! {
            () = cancel.cancelled() => break,
            permit = Arc::clone(&permits).acquire_owned() => permit?,
        };
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            // The client left before it was its turn.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                // Out of file descriptors, mostly: give others a moment to end.
                if !failing {
                    warn!(%error, "connections cannot be accepted, trying on");
                }
                failing = true;
                tokio::time::sleep(ACCEPT_REST).await;
                continue;
            }
        };
        failing = false;
        let (acceptor, builders, make) =
            (acceptor.clone(), Arc::clone(&builders), Arc::clone(&make));
        let watcher = graceful.watcher();
        connections.spawn(async move {
            let _permit = permit;
            let handshake = handshake(&acceptor, stream, limits.silence);
            let stream = match tokio::time::timeout(limits.handshake_timeout, handshake).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    debug!(%peer, %error, "TLS handshake failed");
                    return;
                }
                Err(_) => {
                    debug!(%peer, "TLS handshake took too long");
                    return;
                }
            };
            let subject = stream
                .get_ref()
                .1
                .peer_certificates()
                .and_then(<[_]>::first);
            let subject = match subject.map(subject_of).transpose() {
                Ok(subject) => subject,
                Err(error) => {
                    debug!(%peer, %error, "client certificate refused");
                    return;
                }
            };
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let begun = Arc::new(AtomicBool::new(false));
            let service = Noting {
                service: make(&ConnectionInfo { peer, subject }),
                begun: Arc::clone(&begun),
            };
            let connection = builders
                .of(is_http2)
                .serve_connection(TokioIo::new(stream), service)
                .into_owned();
            let connection = watcher.watch(connection);
            tokio::pin!(connection);
            // HTTP/2 has no header time-out of its own before its first request.
            let first = tokio::time::timeout(limits.header_timeout, &mut connection);
            let ended = match first.await {
                Ok(ended) => ended,
                Err(_) if is_http2 && !begun.load(Ordering::Relaxed) => {
                    debug!(%peer, "no request came");
                    return;
                }
                Err(_) => connection.await,
            };
            if let Err(error) = ended {
                debug!(%peer, %error, "connection ended");
            }
        });
    }
    drop(listener);
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(limits.drain) => {
            warn!(drain = ?limits.drain, "requests under way were cut off");
        }
    }
    Ok(())
}

/// A client that offers HTTP/1.0 alone is one that HTTP/1.1 serves; rustls would end its handshake.
fn with_http10(mut tls: Arc<rustls::ServerConfig>) -> Arc<rustls::ServerConfig> {
    if tls.alpn_protocols.iter().any(|p| p == b"http/1.1") {
        Arc::make_mut(&mut tls)
            .alpn_protocols
            .push(b"http/1.0".to_vec());
    }
    tls
}

/// Ends a connection whose other end is gone without a word, or takes nothing of what it is sent, after
/// about `silence`.
pub fn limit_silence(stream: &TcpStream, silence: Duration) -> io::Result<()> {
    let seconds = |part: Duration| u32::try_from(part.as_secs()).unwrap_or(u32::MAX).max(1);
    let milliseconds = u32::try_from(silence.as_millis()).unwrap_or(u32::MAX);
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &seconds(silence / 2))?;
    setsockopt(stream, sockopt::TcpKeepInterval, &seconds(silence / 6))?;
    setsockopt(stream, sockopt::TcpUserTimeout, &milliseconds)?;
    Ok(())
}

async fn handshake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    silence: Duration,
) -> io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
    stream.set_nodelay(true)?;
    limit_silence(&stream, silence)?;
    acceptor.accept(stream).await
}

/// Notes that a request has begun.
struct Noting<S> {
    service: S,
    begun: Arc<AtomicBool>,
}

impl<S: Service<R>, R> Service<R> for Noting<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, request: R) -> S::Future {
        self.begun.store(true, Ordering::Relaxed);
        self.service.call(request)
    }
}

/// One for each protocol: what a connection speaks is settled in its handshake. To look at its first
/// bytes instead would have no time limit.
struct Builders {
    http1: auto::Builder<TokioExecutor>,
    http2: auto::Builder<TokioExecutor>,
}

impl Builders {
    fn new(limits: &HttpLimits) -> Self {
        Self {
            http1: builder(limits).http1_only(),
            http2: builder(limits).http2_only(),
        }
    }

    fn of(&self, is_http2: bool) -> &auto::Builder<TokioExecutor> {
        if is_http2 { &self.http2 } else { &self.http1 }
    }
}

fn builder(limits: &HttpLimits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Without a timer hyper's header time-out does nothing.
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(limits.max_header_bytes);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(16 << 10)
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(256)
        .initial_stream_window_size(64 << 10)
        .initial_connection_window_size(1 << 20)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{Empty, Full};
    use hyper::service::service_fn;
    use rustls::pki_types::ServerName;
    use shared::ids::{ClusterId, NodeName, Role};
    use tokio::io::AsyncReadExt as _;
    use tokio_rustls::{TlsConnector, client::TlsStream};

    use super::*;
    use crate::ca::CertificateAuthority;
    use crate::identity::{Identity, new_request};
    use crate::tls;

    fn identity() -> Identity {
        tls::install_crypto_provider();
        let cluster = ClusterId::from_bits(1);
        let request = new_request();
        let subject = Subject {
            cluster: cluster.clone(),
            role: Role::Gateway,
            node: NodeName::parse("n1").expect("valid"),
        };
        let ca = CertificateAuthority::create(&cluster);
        let names = ["localhost".to_owned()];
        let certificate = ca
            .sign(
                &request.csr_pem,
                &subject,
                &names,
                Duration::from_secs(3600),
            )
            .expect("signed");
        let folder = tempfile::tempdir().expect("folder");
        Identity::save(
            folder.path(),
            &certificate,
            &request.key_pem,
            ca.certificate_pem(),
        )
        .expect("saved");
        Identity::load(folder.path()).expect("loaded")
    }

    struct Server {
        port: u16,
        identity: Identity,
        _cancel: tokio_util::sync::DropGuard,
    }

    impl Server {
        async fn start(limits: HttpLimits) -> Self {
            let identity = identity();
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
            let port = listener.local_addr().expect("address").port();
            let cancel = CancellationToken::new();
            let make = |_: &ConnectionInfo| {
                service_fn(async |_: Request<Incoming>| {
                    Ok::<_, Infallible>(Response::new(Full::new(&b"hello"[..])))
                })
            };
            let config = tls::https_server(&identity).expect("TLS");
            tokio::spawn(serve_tls(listener, config, limits, make, cancel.clone()));
            Self {
                port,
                identity,
                _cancel: cancel.drop_guard(),
            }
        }

        async fn connect(&self, alpn: &[u8]) -> TlsStream<TcpStream> {
            let mut config = tls::https_client(&self.identity.authorities).expect("TLS");
            config.alpn_protocols = vec![alpn.to_vec()];
            let stream = TcpStream::connect(("127.0.0.1", self.port))
                .await
                .expect("connected");
            TlsConnector::from(Arc::new(config))
                .connect(ServerName::try_from("localhost").expect("name"), stream)
                .await
                .expect("handshake")
        }
    }

    #[tokio::test]
    async fn a_connection_on_which_no_request_comes_is_closed_whatever_it_speaks() {
        let server = Server::start(HttpLimits {
            header_timeout: Duration::from_millis(50),
            ..HttpLimits::default()
        })
        .await;
        for alpn in [&b"http/1.1"[..], b"h2"] {
            let mut stream = server.connect(alpn).await;
            let mut read = Vec::new();
            let closed = stream.read_to_end(&mut read);
            // A settings frame or nothing; the end of the connection is what counts.
            let _ = tokio::time::timeout(Duration::from_secs(5), closed)
                .await
                .expect("closed in time");
        }
    }

    #[tokio::test]
    async fn an_http2_connection_that_has_made_a_request_may_idle() {
        let server = Server::start(HttpLimits {
            header_timeout: Duration::from_millis(50),
            ..HttpLimits::default()
        })
        .await;
        let stream = TokioIo::new(server.connect(b"h2").await);
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
                .await
                .expect("HTTP/2");
        tokio::spawn(connection);
        for _ in 0..2 {
            let request = Request::get("https://localhost/")
                .body(Empty::<&[u8]>::new())
                .expect("request");
            let response = sender.send_request(request).await.expect("answer");
            assert_eq!(response.status(), 200);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    #[tokio::test]
    async fn a_connection_is_watched_for_silence() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address");
        let stream = TcpStream::connect(address).await.expect("connected");
        limit_silence(&stream, Duration::from_secs(30)).expect("set");
        let timeout = nix::sys::socket::getsockopt(&stream, sockopt::TcpUserTimeout);
        assert_eq!(timeout.expect("read"), 30_000);
    }
}
