//! HTTPS listeners with limits on everything that a stranger could make us hold.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body::Body;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::identity::{Subject, subject_of};

/// Limits of one listener. The defaults follow Envoy's guide for edges.
#[derive(Clone, Copy, Debug)]
pub struct HttpLimits {
    /// More wait in the kernel's queue.
    pub max_connections: usize,
    pub handshake_timeout: Duration,
    /// From a connection's (or request's) first byte to the end of its header.
    pub header_timeout: Duration,
    /// A request line with all headers.
    pub max_header_bytes: usize,
    pub max_headers: usize,
    /// HTTP/2 requests of one connection at once.
    pub max_streams: u32,
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
            max_headers: 100,
            max_streams: 100,
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
    let acceptor = TlsAcceptor::from(tls);
    let permits = Arc::new(Semaphore::new(limits.max_connections));
    let graceful = GracefulShutdown::new();
    let builder = Arc::new(builder(&limits));
    let make = Arc::new(make);
    let mut connections = JoinSet::new();
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
            Err(error) => {
                // Out of file descriptors, mostly: give others a moment to end.
                warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, builder, make) = (acceptor.clone(), Arc::clone(&builder), Arc::clone(&make));
        let watcher = graceful.watcher();
        connections.spawn(async move {
            let _permit = permit;
            let handshake = handshake(&acceptor, stream);
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
            let service = make(&ConnectionInfo { peer, subject });
            let connection = builder
                .serve_connection_with_upgrades(TokioIo::new(stream), service)
                .into_owned();
            if let Err(error) = watcher.watch(connection).await {
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

async fn handshake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
) -> std::io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
    stream.set_nodelay(true)?;
    acceptor.accept(stream).await
}

fn builder(limits: &HttpLimits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Without a timer hyper's header time-out does nothing.
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(limits.max_header_bytes)
        .max_headers(limits.max_headers);
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
