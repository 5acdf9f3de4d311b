//! `/metrics`, `/healthz` and `/readyz`: plain HTTP, loopback by default, reads nothing but a path.
//!
//! `/healthz` says that the process runs; `/readyz` that it can do its work, or why it cannot yet.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::listen::ListenError;

/// Scrapers are few.
const MAX_CONNECTIONS: usize = 32;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether the daemon can do its work; an error says why it cannot.
pub type Readiness = watch::Receiver<Result<(), String>>;

/// Starts not ready.
pub fn readiness(why_not_yet: &str) -> (watch::Sender<Result<(), String>>, Readiness) {
    watch::channel(Err(why_not_yet.to_owned()))
}

/// Something that is wrong although the daemon may do its work, and how to mend it.
pub type Remark = watch::Receiver<Option<String>>;

/// The listener, before anything else is begun. `None` for `None`.
pub async fn bind(listen: Option<SocketAddr>) -> Result<Option<TcpListener>, ListenError> {
    let Some(listen) = listen else {
        return Ok(None);
    };
    if !listen.ip().is_loopback() {
        warn!(%listen, "metrics are served without a credential beyond this machine");
    }
    crate::listen::tcp(listen, "admin_listen").await.map(Some)
}

/// Serves until cancelled. `None` listens nowhere.
pub async fn serve(
    listener: Option<TcpListener>,
    registry: Registry,
    ready: Readiness,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    serve_with(listener, registry, ready, Vec::new(), cancel).await
}

/// The same, with remarks that `/readyz` shows below its answer.
pub async fn serve_with(
    listener: Option<TcpListener>,
    registry: Registry,
    ready: Readiness,
    remarks: Vec<Remark>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let Some(listener) = listener else {
        cancel.cancelled().await;
        return Ok(());
    };
    info!(listen = %listener.local_addr()?, "serving metrics and health");
    let (registry, remarks) = (Arc::new(registry), Arc::new(remarks));
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let (stream, _) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            continue;
        };
        let (registry, ready) = (Arc::clone(&registry), ready.clone());
        let remarks = Arc::clone(&remarks);
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let response = answer(&request, &registry, &ready, &remarks);
            async move { Ok::<_, Infallible>(response) }
        });
        connections.spawn(async move {
            let _permit = permit;
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                debug!(%error, "admin connection ended");
            }
        });
    }
}

fn answer(
    request: &Request<Incoming>,
    registry: &Registry,
    ready: &Readiness,
    remarks: &[Remark],
) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => {
            let (status, mut body) = match &*ready.borrow() {
                Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
                Err(why) => {
                    let body = format!("not ready: {why}\n");
                    (StatusCode::SERVICE_UNAVAILABLE, body)
                }
            };
            for remark in remarks {
                if let Some(remark) = &*remark.borrow() {
                    body.push_str(remark);
                    body.push('\n');
                }
            }
            text(status, &body)
        }
        "/metrics" => {
            let mut body = String::new();
            match prometheus_client::encoding::text::encode(&mut body, registry) {
                Ok(()) => {
                    let mut response = text(StatusCode::OK, &body);
                    response.headers_mut().insert(
                        hyper::header::CONTENT_TYPE,
                        hyper::header::HeaderValue::from_static(
                            "application/openmetrics-text; version=1.0.0; charset=utf-8",
                        ),
                    );
                    response
                }
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
            }
        }
        _ => text(StatusCode::NOT_FOUND, "try /metrics, /healthz or /readyz\n"),
    }
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *response.status_mut() = status;
    response
}
