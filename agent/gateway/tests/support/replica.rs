//! Replicas of tests: hyper servers, or raw ones that misbehave, on a Unix socket in their folder.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use shared::api::local::{LOCAL_REPLICA_VERSION, LocalReplica};
use shared::ids::{EndpointName, EntityName};
use shared::runtime::{HealthProbe, REPLICA_SOCKET, Transport};
use tokio::net::UnixListener;
use tokio::task::AbortHandle;

use super::replica_id;

pub type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Requests that a replica works on.
#[derive(Default)]
pub struct Load {
    pub active: AtomicU32,
    pub peak: AtomicU32,
    pub served: AtomicU32,
}

impl Load {
    pub fn enter(self: &Arc<Self>) -> Busy {
        let active = self.active.fetch_add(1, Ordering::SeqCst) + 1;
        self.peak.fetch_max(active, Ordering::SeqCst);
        self.served.fetch_add(1, Ordering::SeqCst);
        Busy(Arc::clone(self))
    }

    pub fn active(&self) -> u32 {
        self.active.load(Ordering::SeqCst)
    }

    pub fn served(&self) -> u32 {
        self.served.load(Ordering::SeqCst)
    }
}

pub struct Busy(Arc<Load>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::SeqCst);
    }
}

pub fn text(status: u16, text: &str) -> Answer {
    let body = Full::new(Bytes::copy_from_slice(text.as_bytes())).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status.try_into().expect("a status");
    response
}

/// The folder and the agent's file of a replica.
pub fn lay_out(run_dir: &Path, n: u64, entity: &str) -> PathBuf {
    let folder = run_dir.join(replica_id(n).as_str());
    std::fs::create_dir_all(&folder).expect("folder");
    let file = LocalReplica {
        version: LOCAL_REPLICA_VERSION,
        replica: replica_id(n),
        endpoint: EndpointName::parse("iris").expect("valid"),
        entity: EntityName::parse(entity).expect("valid"),
        uid: nix::unistd::geteuid().as_raw(),
        transport: Transport::Unix,
        address: None,
        invocations_path: "/invocations".into(),
        health: HealthProbe {
            path: "/ping".into(),
            interval_ms: 50,
            period_ms: 100,
            timeout_ms: 1000,
            failures: 3,
            start_deadline_seconds: 60,
        },
    };
    let json = serde_json::to_vec(&file).expect("JSON");
    let path = run_dir.join(LocalReplica::file_name(&replica_id(n)));
    daemon::files::write_atomic(&path, &json, 0o640).expect("written");
    folder
}

pub fn listen(run_dir: &Path, n: u64, entity: &str) -> UnixListener {
    let socket = lay_out(run_dir, n, entity).join(REPLICA_SOCKET);
    let _ = std::fs::remove_file(&socket);
    UnixListener::bind(socket).expect("listen")
}

/// A hyper server. `/ping` answers by itself; aborting the handle is its death.
pub struct Replica {
    pub load: Arc<Load>,
    task: AbortHandle,
}

impl Replica {
    pub fn start<F>(run_dir: &Path, n: u64, entity: &str, serve: F) -> Self
    where
        F: Fn(Request<Incoming>, Arc<Load>) -> BoxFuture<'static, Answer> + Send + Sync + 'static,
    {
        let listener = listen(run_dir, n, entity);
        let load = Arc::new(Load::default());
        let (serve, shared) = (Arc::new(serve), Arc::clone(&load));
        let task = tokio::spawn(async move {
            // Dropped with the task: all connections close at once, as when a process dies.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (serve, load) = (Arc::clone(&serve), Arc::clone(&shared));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (serve, load) = (Arc::clone(&serve), Arc::clone(&load));
                    async move {
                        let answer = match request.uri().path() {
                            "/ping" => text(200, "pong"),
                            _ => serve(request, load).await,
                        };
                        Ok::<_, Infallible>(answer)
                    }
                });
                connections.spawn(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            load,
            task: task.abort_handle(),
        }
    }

    /// Answers with what was sent.
    pub fn echo(run_dir: &Path, n: u64, entity: &str) -> Self {
        Self::start(run_dir, n, entity, |request, load| {
            Box::pin(async move {
                let _busy = load.enter();
                match request.into_body().collect().await {
                    Ok(body) => Response::new(Full::new(body.to_bytes()).boxed_unsync()),
                    Err(error) => text(400, &error.to_string()),
                }
            })
        })
    }

    /// Works until the client leaves.
    pub fn endless(run_dir: &Path, n: u64, entity: &str) -> Self {
        Self::start(run_dir, n, entity, |_, load| {
            Box::pin(async move {
                let _busy = load.enter();
                std::future::pending().await
            })
        })
    }

    pub fn die(&self) {
        self.task.abort();
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.task.abort();
    }
}
