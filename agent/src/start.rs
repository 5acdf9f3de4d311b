//! Puts the agent together: reads what it needs, then runs its tasks until one fails or it is told to
//! stop. Replicas go on either way.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use daemon::credentials::Credentials;
use daemon::identity::Identity;
use daemon::link::{LinkOptions, link};
use daemon::renew::Renewal;
use daemon::tasks::{Tasks, shutdown_signal};
use daemon::telemetry::Chain;
use model::cache::Cache;
use prometheus_client::registry::Registry;
use shared::ids::Role;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::cgroup::{self, Cgroups};
use crate::config::Config;
use crate::containerd::{Containerd, events};
use crate::control_loop::{ControlLoop, NodeView, Parts};
use crate::folder::Folders;
use crate::ledger::{Ledger, LedgerPath, Opened, UidRange};
use crate::leftovers;
use crate::logs::LogFolders;
use crate::metrics::Metrics;
use crate::models::CachedModels;
use crate::network::{self, Networks};
use crate::pull::Puller;
use crate::replica::BootId;
use crate::sampler::gpu::GpuProbe;
use crate::sampler::{self, Sampler, Samples};
use crate::session::{Session, hello};
use crate::steps::Steps;

const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// Plans that the control loop has not taken yet; each one replaces the one before.
const PLANS: usize = 4;
/// Reasons to look; one is as good as a thousand.
const EVENTS: usize = 256;
const CLEAN_LOGS_EVERY: Duration = Duration::from_secs(600);
const CONNECT_AGAIN: Duration = Duration::from_secs(1);

pub async fn run(config: Config) -> anyhow::Result<()> {
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "stokehold-agent makes containers, which needs root: `systemctl start stokehold-agent`, or sudo"
    );
    let cancel = CancellationToken::new();
    let mut tasks = Tasks::new(cancel.clone());
    tasks.spawn("signals", shutdown_signal(cancel.clone()));
    let assembled = tokio::select! {
        () = cancel.cancelled() => return Ok(()),
        assembled = assemble(&config, &mut tasks, &cancel) => assembled,
    };
    if let Err(error) = assembled {
        cancel.cancel();
        // The cause of the failure is what matters; tasks that stop late are named in debug logs.
        if let Err(late) = tasks.join(SHUTDOWN_GRACE).await {
            debug!(error = %Chain(&late), "tasks ended badly");
        }
        return Err(error);
    }
    let ended = tasks.join(SHUTDOWN_GRACE).await;
    daemon::notify::stopping();
    Ok(ended?)
}

async fn assemble(
    config: &Config,
    tasks: &mut Tasks,
    cancel: &CancellationToken,
) -> anyhow::Result<()> {
    let node = config.node()?;
    let instance = config.instance()?;
    // A group that is missing is said before anything is made.
    config.gateway_gid()?;
    let credentials = credentials(config)?;
    let configured = config.scheduler.clone().unwrap_or_default();
    let rest = daemon::join::rest_addresses(&config.pki_dir, &configured)
        .context("read the scheduler's addresses")?;
    let addresses = match &config.scheduler {
        Some(addresses) => addresses.clone(),
        None => daemon::join::scheduler_addresses(&config.pki_dir)
            .context("read the scheduler's addresses")?,
    };
    // What cannot be listened on is found before anything is begun.
    let admin = daemon::admin::bind(config.admin_listen).await?;
    daemon::files::private_dir(&config.state_dir, 0o700)
        .with_context(|| format!("make folder {}", config.state_dir.display()))?;
    let ledger_path = LedgerPath::in_folder(&config.state_dir);
    let ledger = open_ledger(&ledger_path)?;
    let (cache_dir, capacity) = (config.cache_dir.clone(), config.cache_capacity);
    // Taking stock of many models takes a while.
    let cache = tokio::task::spawn_blocking(move || Cache::open(&cache_dir, capacity)).await??;

    let (view, view_rx) = watch::channel(Arc::new(NodeView::unseen(&ledger)));
    let mut registry = Registry::default();
    let renewal = Renewal::new(credentials.clone(), rest, &mut registry);
    let greeting = view_rx.clone();
    let options = LinkOptions {
        addresses,
        credentials,
        hello: Arc::new(move || hello(&greeting)),
    };
    let (handle, link_events, keep_link) = link(options, cancel.clone());
    let models = Arc::new(CachedModels::new(cache.clone(), handle.connection.clone()));

    let metrics = Metrics::register(&mut registry);
    models.register(&mut registry);
    let (ready, readiness) = daemon::admin::readiness("adopting replicas");
    let remarks = vec![renewal.problem(), handle.problem.clone()];
    tasks.spawn(
        "admin",
        daemon::admin::serve_with(admin, registry, readiness, remarks, cancel.clone()),
    );
    renewal.if_expired().await;
    tasks.spawn("certificate", renewal.run(cancel.clone()));

    let containerd = connect(config, &ready).await;
    let steps = steps(config, containerd.clone()).await?;
    let networks = Arc::clone(&steps.networks);
    tasks.spawn("networks", networks.keep(cancel.clone()));

    let (running, running_rx) = watch::channel(Vec::new());
    let (samples, samples_rx) = watch::channel(Arc::new(Samples::default()));
    let (plans, plans_rx) = mpsc::channel(PLANS);
    let (events, events_rx) = mpsc::channel(EVENTS);

    tasks.spawn(
        "leftovers",
        leftovers::run(
            containerd.clone(),
            instance.clone(),
            view_rx.clone(),
            cancel.clone(),
        ),
    );
    tasks.spawn(
        "containerd-events",
        events::follow(containerd, events, cancel.clone()),
    );
    tasks.spawn(
        "clean-logs",
        clean_logs(steps.logs.clone(), view_rx.clone(), cancel.clone()),
    );
    let sampler = Sampler {
        cgroups: steps.cgroups.clone(),
        instance,
        memory_reserved: config.memory_reserved,
        cache_capacity: config.cache_capacity,
        cache,
        gpus: GpuProbe::start(config.nvml_library.clone()).context("start NVML's thread")?,
        running: running_rx,
        samples,
        cpu_millis: sampler::cpu_millis(),
    };
    tasks.spawn("sampler", sampler.run(cancel.clone()));
    let control_loop = ControlLoop::new(Parts {
        node,
        boot: boot_id()?,
        uids: UidRange {
            start: config.replica_uid_start,
            count: config.replica_uid_count,
        },
        ledger,
        ledger_path,
        steps,
        models,
        metrics: metrics.clone(),
        plans: plans_rx,
        events: events_rx,
        view,
        running,
        ready,
    });
    tasks.spawn("control-loop", control_loop.run(cancel.clone()));
    let session = Session {
        link: handle,
        events: link_events,
        plans,
        view: view_rx,
        samples: samples_rx,
        metrics,
    };
    tasks.spawn("session", session.run(cancel.clone()));
    tasks.spawn("link", keep_link);
    Ok(())
}

/// What steps work with, as the configuration says where it is.
pub(crate) async fn steps(config: &Config, containerd: Containerd) -> anyhow::Result<Arc<Steps>> {
    let (instance, gateway_gid) = (config.instance()?, config.gateway_gid()?);
    Ok(Arc::new(Steps {
        folders: Folders::open(&config.run_dir, gateway_gid)?,
        networks: networks(config, &instance, gateway_gid.as_raw()).await?,
        logs: LogFolders::open(&config.log_dir, gateway_gid, &config.logshim)?,
        cgroups: Cgroups::detect(Path::new(cgroup::ROOT), &config.cgroup_parent),
        containerd,
        instance,
        open_files: crate::steps::open_files(),
        puller: puller(config)?,
    }))
}

async fn networks(
    config: &Config,
    instance: &str,
    gateway_gid: u32,
) -> anyhow::Result<Arc<Networks>> {
    let network = config.network.clone();
    let options = network::Options {
        subnet: network.subnet()?,
        cni_bin_dirs: network.cni_bin_dirs,
        bridge: network.bridge,
        conflist: network.conflist,
        resolvers: network.resolvers,
        gateway_gid,
        instance: instance.to_owned(),
        state_dir: config.state_dir.join("network"),
        netns_dir: config.run_dir.join("netns"),
    };
    let opened = tokio::task::spawn_blocking(move || Networks::open(options)).await?;
    Ok(Arc::new(
        opened.context("take over the networks of replicas")?,
    ))
}

fn credentials(config: &Config) -> anyhow::Result<Credentials> {
    let identity = Identity::load(&config.pki_dir)?;
    let node = config.node()?;
    let subject = &identity.subject;
    anyhow::ensure!(
        subject.role == Role::Agent && subject.node == node,
        "the identity in {} is that of {} {}, not of agent {node}: set `node`, or join again",
        config.pki_dir.display(),
        subject.role,
        subject.node,
    );
    Ok(Credentials::new(identity, Some(config.pki_dir.clone()))?)
}

fn puller(config: &Config) -> anyhow::Result<Puller> {
    let (uid, gid) = config.registry.pull_ids()?;
    Ok(Puller {
        // Also after an upgrade has replaced the file that this process was started from.
        program: "/proc/self/exe".into(),
        hosts_dir: config.registry.hosts_dir.clone(),
        auth_file: config.registry.auth_file.clone(),
        uid,
        gid,
    })
}

fn open_ledger(path: &LedgerPath) -> anyhow::Result<Ledger> {
    match path.open()? {
        Opened::Held(ledger) => Ok(ledger),
        Opened::None => {
            info!("no ledger yet: this is the node's first start");
            Ok(Ledger::default())
        }
        Opened::Broken { why, aside } => {
            error!(
                error = %Chain(&why),
                kept_as = %aside.display(),
                "the ledger is broken: rebuilding it from containerd, replicas go on as they are"
            );
            Ok(Ledger::default())
        }
    }
}

/// containerd may come after us.
async fn connect(config: &Config, ready: &watch::Sender<Result<(), String>>) -> Containerd {
    let mut said = false;
    loop {
        let connected = Containerd::connect(
            &config.containerd,
            &config.containerd_namespace,
            &config.snapshotter,
        );
        match connected.await {
            Ok(containerd) => {
                match containerd.version().await {
                    Ok(version) => info!(version, "connected to containerd"),
                    Err(error) => warn!(error = %Chain(&error), "containerd tells no version"),
                }
                drop(ready.send_replace(Err("adopting replicas".to_owned())));
                return containerd;
            }
            Err(error) if !said => {
                said = true;
                let mending = without_containerd(&config.containerd);
                warn!(error = %Chain(&error), mending, "waiting for containerd");
                daemon::notify::status(&format!("waiting for containerd: {mending}"));
                drop(ready.send_replace(Err(format!("waiting for containerd: {mending}"))));
            }
            Err(_) => {}
        }
        daemon::notify::watchdog();
        tokio::time::sleep(CONNECT_AGAIN).await;
    }
}

fn without_containerd(socket: &Path) -> String {
    let shown = socket.display();
    match socket.try_exists() {
        Ok(false) => format!(
            "there is no socket {shown}: install and start it (`apt-get install containerd`, \
             `systemctl start containerd`), or correct `containerd`"
        ),
        Ok(true) | Err(_) => format!(
            "nobody answers at {shown}: see `systemctl status containerd`, or correct `containerd`"
        ),
    }
}

fn boot_id() -> anyhow::Result<BootId> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(PATH).with_context(|| format!("read {PATH}"))?;
    Ok(BootId(text.trim().to_owned()))
}

async fn clean_logs(
    logs: LogFolders,
    mut view: watch::Receiver<Arc<NodeView>>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    // Before the first look nothing is known to live, and nothing may pass for gone.
    tokio::select! {
        () = cancel.cancelled() => return Ok(()),
        Ok(()) = view.changed() => {}
    }
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(CLEAN_LOGS_EVERY) => {}
        }
        let live: BTreeSet<_> = view
            .borrow()
            .replicas
            .iter()
            .map(|r| r.id.clone())
            .collect();
        let logs = logs.clone();
        let cleaned = tokio::task::spawn_blocking(move || logs.clean(&live, SystemTime::now()));
        match cleaned.await {
            Ok(Ok(0)) => {}
            Ok(Ok(removed)) => info!(removed, "removed old logs of replicas that are gone"),
            Ok(Err(error)) => warn!(error = %Chain(&error), "old logs were not removed"),
            Err(ended) => warn!(error = %ended, "old logs were not removed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::ids::ReplicaId;

    #[tokio::test(start_paused = true)]
    async fn before_the_first_look_no_log_passes_for_that_of_a_replica_that_is_gone() {
        let folder = tempfile::tempdir().expect("folder");
        let gid = nix::unistd::getegid();
        let logs = LogFolders::open(folder.path(), gid, Path::new("/shim")).expect("open");
        let old = folder.path().join(ReplicaId::from_bits(1).as_str());
        std::fs::create_dir(&old).expect("made");
        let times = std::fs::FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
        let opened = std::fs::File::open(&old).expect("there");
        opened.set_times(times).expect("set");

        let empty = || Arc::new(NodeView::unseen(&Ledger::default()));
        let (view, seen) = watch::channel(empty());
        let cancel = CancellationToken::new();
        let cleaning = tokio::spawn(clean_logs(logs, seen, cancel.clone()));
        tokio::time::sleep(3 * CLEAN_LOGS_EVERY).await;
        assert!(old.exists());
        view.send_replace(empty());
        tokio::time::sleep(3 * CLEAN_LOGS_EVERY).await;
        assert!(!old.exists());
        cancel.cancel();
        cleaning.await.expect("ran").expect("ended well");
    }
}
