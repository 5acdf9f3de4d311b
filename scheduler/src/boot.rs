//! Puts the parts together: files, store, core, then the tasks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use daemon::credentials::Credentials;
use daemon::http::HttpLimits;
use daemon::tasks::{Tasks, TasksError};
use hyper_util::service::TowerToHyperService;
use model::store::ChunkStore;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry as MetricsRegistry;
use scheduler_core::events::recorded as told;
use scheduler_core::registry::Registry;
use scheduler_core::{Core, Settings};
use shared::ids::{ClusterId, Epoch, Role, RuntimeName};
use shared::runtime::RuntimeTemplate;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::certificates::Certificates;
use crate::chunks::Chunks;
use crate::config::{Config, join_host_port, split_host_port};
use crate::control::{self, Clock};
use crate::images::Images;
use crate::listener;
use crate::metrics::Metrics;
use crate::rest;
use crate::state::{self, Paths};
use crate::store::{self, Store};
use crate::templates;

/// Longer than requests under way may take to end.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(25);
/// For the store to write what is left.
const CLOSE_GRACE: Duration = Duration::from_secs(5);
/// Chunks being received at once, of at most 32 MiB each.
const UPLOADS: usize = 16;
/// Clients that follow the events at once; each holds a few of them.
const FOLLOWERS: usize = 256;

/// A scheduler that listens.
pub struct Running {
    pub cluster: ClusterId,
    pub epoch: Epoch,
    /// The addresses that were bound, where the configuration said port 0.
    pub http: SocketAddr,
    pub quic: SocketAddr,
    tasks: Tasks,
    store_thread: JoinHandle<()>,
}

impl Running {
    /// SIGTERM and SIGINT cancel it.
    pub fn stop_on_signal(&mut self, cancel: CancellationToken) {
        self.tasks
            .spawn("signals", daemon::tasks::shutdown_signal(cancel));
    }

    /// Waits for the end: of a cancelled scheduler, that all its tasks stopped in time. The store
    /// is closed then, and another process may open it.
    pub async fn wait(self) -> Result<(), TasksError> {
        let ended = self.tasks.join(SHUTDOWN_GRACE).await;
        // A thread that panicked has ended the control task, which has told.
        let closed = tokio::task::spawn_blocking(|| drop(self.store_thread.join()));
        if tokio::time::timeout(CLOSE_GRACE, closed).await.is_err() {
            warn!("the store did not close in time");
        }
        ended
    }
}

/// Starts a scheduler. It listens when this returns; `cancel` stops it.
pub async fn start(config: Config, cancel: CancellationToken) -> anyhow::Result<Running> {
    config.check()?;
    let paths = Paths::of(&config.data_dir);
    let templates = templates::load(&config.runtimes_dirs)?;
    // What cannot be listened on is found before anything is begun.
    let listener = daemon::listen::tcp(config.listen_http, "listen_http").await?;
    let quic_socket = daemon::listen::udp(config.listen_quic, "listen_quic")?;
    let admin = daemon::admin::bind(config.admin_listen).await?;
    let authority = state::authority(&config, &paths)?;
    let (identity, names) = state::identity(&config, &authority)?;
    let credentials = Credentials::new(identity, Some(config.pki_dir.clone()))?;
    let cluster = authority.cluster().clone();
    let clock = Clock::start();

    let (room, room_keeper) = crate::room::open(&config.data_dir)?;
    let mut store = state::open_store(&paths)?;
    let settings = settings(&config, cluster.clone(), templates);
    let held = store.load()?;
    let next = Epoch(held.epoch.0.saturating_add(1));
    // Of records that this program does not understand nothing may be changed, not even the epoch.
    Core::restore(&held.entries, settings.clone(), next, clock.now())
        .context("read what the store holds")?;
    let epoch = store.begin_epoch(next)?;
    let snapshot = store.load()?;
    let restored = Core::restore(&snapshot.entries, settings, epoch, clock.now());
    let mut core = restored.context("read what the store holds")?;
    let ops = state::first_admin_token(&mut core.registry, &paths, clock.unix_ms())?;
    if !ops.is_empty() {
        store.commit(&ops, epoch)?;
    }
    info!(%cluster, %epoch, revision = %snapshot.revision, records = snapshot.entries.len(), "store opened");
    let version = env!("CARGO_PKG_VERSION");
    let started = told::scheduler_started(version, epoch, &core);
    core.tell(started, clock.unix_ms());
    let (store, store_thread) = store::spawn(store).context("start the store's thread")?;
    let chunks = Chunks::new(ChunkStore::local(&paths.objects)?);

    let endpoint = daemon::quic::server_endpoint_on(quic_socket, &credentials)
        .context("listen for nodes (listen_quic)")?;
    let (http, quic) = (listener.local_addr()?, endpoint.local_addr()?);

    let mut metrics = MetricsRegistry::default();
    let (control, handle) =
        control::new(core, store, epoch, clock, Metrics::register(&mut metrics));
    let (ready, readiness) = daemon::admin::readiness("starting");
    let mut tasks = Tasks::new(cancel.clone());
    tasks.spawn("control", control.run(cancel.clone()));
    let shared = listener::Shared::new(authority.clone(), handle.clone(), chunks.clone());
    tasks.spawn(
        "listener",
        listener::run(endpoint, Arc::new(shared), cancel.clone()),
    );
    let garbage = chunks.clone();
    tasks.spawn(
        "collector",
        garbage.collect_regularly(handle.clone(), cancel.clone()),
    );
    let expiry = Gauge::default();
    daemon::renew::register_expiry(&mut metrics, Role::Scheduler.as_str(), &expiry);
    expiry.set(credentials.validity().not_after);
    let certificates = Certificates {
        authorities: authority.clone(),
        credentials: credentials.clone(),
        control: handle.clone(),
        names,
        lifetime: config.certificate_lifetime(),
        expiry,
    };
    tasks.spawn("certificates", certificates.run(cancel.clone()));
    let images = Images::new(handle.clone(), config.registry.clone());
    tasks.spawn("images", images.clone().resolve_regularly(cancel.clone()));
    let (http_addresses, quic_addresses) = advertised(&config, http.port(), quic.port());
    let api = rest::Api::new(rest::Parts {
        control: handle,
        chunks,
        images,
        ca: authority,
        lifetime: config.certificate_lifetime(),
        http_addresses,
        quic_addresses,
        clock,
        uploads: Semaphore::new(UPLOADS),
        followers: Arc::new(Semaphore::new(FOLLOWERS)),
        room,
        cancel: cancel.clone(),
    });
    tasks.spawn(
        "rest",
        serve(
            listener,
            &config,
            &credentials,
            rest::router(api),
            cancel.clone(),
        )?,
    );
    tasks.spawn(
        "admin",
        daemon::admin::serve(admin, metrics, readiness, cancel.clone()),
    );
    // The tasks hold the listeners already; nobody is turned away from here on.
    tasks.spawn("room", room_keeper.run(ready, cancel));
    info!(%http, %quic, "listening");
    Ok(Running {
        cluster,
        epoch,
        http,
        quic,
        tasks,
        store_thread,
    })
}

/// The HTTPS server's task.
fn serve(
    listener: TcpListener,
    config: &Config,
    credentials: &Credentials,
    router: Router,
    cancel: CancellationToken,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + 'static> {
    let tls = crate::https::config(&config.tls, credentials)?;
    let service = move |_: &daemon::http::ConnectionInfo| TowerToHyperService::new(router.clone());
    let limits = HttpLimits::default();
    Ok(daemon::http::serve_tls(
        listener, tls, limits, service, cancel,
    ))
}

fn settings(
    config: &Config,
    cluster: ClusterId,
    templates: BTreeMap<RuntimeName, RuntimeTemplate>,
) -> Settings {
    let seconds = Duration::from_secs;
    Settings {
        lease: config.lease(),
        drain_deadline: seconds(config.lifecycle.drain_deadline_seconds),
        deploy_deadline: seconds(config.lifecycle.deploy_deadline_seconds),
        hold_min: seconds(config.autoscaler.hold_min_seconds),
        hold_max: seconds(config.autoscaler.hold_max_seconds),
        scale_to_zero_idle: seconds(config.autoscaler.scale_to_zero_idle_seconds),
        ..Settings::new(cluster, templates)
    }
}

/// Where nodes reach the REST API and the QUIC listener. A name with a port stands for both, as
/// long as both listen on one port here: whoever forwards one forwards the other.
fn advertised(config: &Config, http_port: u16, quic_port: u16) -> (Vec<String>, Vec<String>) {
    let mut names = config.advertise.clone();
    if names.is_empty() {
        names.push(state::host_name());
    }
    let same_port =
        config.listen_http.port() == config.listen_quic.port() && http_port == quic_port;
    // The configuration was checked.
    let parsed = names.iter().flat_map(|name| split_host_port(name));
    parsed
        .map(|(host, port)| {
            let http = join_host_port(&host, port.unwrap_or(http_port));
            let quic = join_host_port(&host, port.filter(|_| same_port).unwrap_or(quic_port));
            (http, quic)
        })
        .unzip()
}

/// Replaces the admin token of a scheduler that is not running.
pub fn reset_admin_token(config: &Config) -> anyhow::Result<PathBuf> {
    config.check()?;
    let paths = Paths::of(&config.data_dir);
    anyhow::ensure!(
        paths.store.exists(),
        "{} holds no store: start the scheduler once, it makes the first token",
        config.data_dir.display()
    );
    let mut store = state::open_store(&paths)?;
    let snapshot = store.load()?;
    let mut registry = Registry::restore(&snapshot.entries)?;
    let now = Clock::start().unix_ms();
    let ops = state::new_admin_token(&mut registry, &paths, now)?;
    store.commit(&ops, snapshot.epoch)?;
    Ok(paths.admin_token)
}

/// Makes the store anew from an export; the damaged one must have been moved away.
pub fn restore_store(config: &Config, export: &Path) -> anyhow::Result<()> {
    config.check()?;
    let paths = Paths::of(&config.data_dir);
    let snapshot = store::read_export(export)?;
    store::SledStore::restore(&paths.store, &paths.exports, &snapshot)?;
    Ok(())
}

/// What `--check-config` looks at: everything that is read before the store.
pub fn check(config: &Config) -> anyhow::Result<()> {
    config.check()?;
    templates::load(&config.runtimes_dirs)?;
    if let (Some(certificate), Some(key)) = (&config.tls.certificate, &config.tls.key) {
        daemon::tls::https_server_from_pem(certificate, key)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advertised_port_stands_for_both_listeners_only_where_they_share_theirs() {
        let mut config = Config {
            advertise: vec!["a".into(), "b:9000".into()],
            ..Config::default()
        };
        let both = advertised(&config, 7443, 7443);
        let expected: Vec<String> = vec!["a:7443".into(), "b:9000".into()];
        assert_eq!(both, (expected.clone(), expected.clone()));
        config.listen_quic.set_port(7444);
        let (http, quic) = advertised(&config, 7443, 7444);
        assert_eq!(http, expected);
        assert_eq!(quic, ["a:7444", "b:7444"]);
    }
}
