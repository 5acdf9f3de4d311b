//! A node of the tests: a containerd of its own, an image, a model, and agents that come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::cgroup::Cgroups;
use agent::containerd::{Containerd, events};
use agent::control_loop::{ControlLoop, NodeView, Parts};
use agent::folder::Folders;
use agent::ledger::{Ledger, LedgerPath, Opened, UidRange};
use agent::logs::LogFolders;
use agent::metrics::Metrics;
use agent::models::{Models, Progress};
use agent::network::{Networks, Options};
use agent::replica::BootId;
use agent::steps::Steps;
use shared::digest::Digest;
use shared::ids::{ClusterId, EndpointName, EntityName, Epoch, NodeName, ReplicaId, Revision};
use shared::manifest::ManifestId;
use shared::plan::{ContainerSpec, Plan, PlannedImage, PlannedModel, PlannedReplica};
use shared::report::{ReplicaPhase, ReplicaStatus};
use shared::runtime::{HealthProbe, Resources, Transport};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::layout;
use crate::private::PrivateContainerd;
use crate::registries;

pub(crate) const UIDS: UidRange = UidRange {
    start: 1_990_000_000,
    count: 100,
};
pub(crate) const INSTANCE: &str = "test";
/// A group that exists on every machine and is not root's.
pub(crate) const GATEWAY_GID: u32 = 65_534;

/// Models that lie in folders already.
#[derive(Default)]
pub(crate) struct Prepared(BTreeMap<ManifestId, PathBuf>);

impl Models for Prepared {
    fn view(&self, id: &ManifestId) -> Option<PathBuf> {
        self.0.get(id).cloned()
    }

    async fn fetch(&self, id: ManifestId, _: Progress) -> Result<PathBuf, String> {
        self.view(&id).ok_or_else(|| format!("no model {id}"))
    }

    fn set_pins(&self, _: BTreeSet<ManifestId>) {}
}

pub(crate) struct Node {
    pub(crate) containerd: PrivateContainerd,
    pub(crate) image: PlannedImage,
    model: ManifestId,
    models: Arc<Prepared>,
    logshim: PathBuf,
}

/// The parts of an agent that matter here; dropping it is kill -9.
pub(crate) struct Agent {
    plans: mpsc::Sender<Plan>,
    view: watch::Receiver<Arc<NodeView>>,
    pub(crate) ready: watch::Receiver<Result<(), String>>,
    pub(crate) steps: Arc<Steps>,
    tasks: tokio::task::JoinSet<anyhow::Result<()>>,
}

impl Node {
    pub(crate) fn new() -> Self {
        let containerd = PrivateContainerd::start().expect("containerd");
        let layout = containerd.path("layout");
        let image = layout::build(&containerd.path("build"), &layout).expect("image");
        let model_dir = containerd.path("model");
        fs::create_dir(&model_dir).expect("folder");
        fs::write(model_dir.join("weights"), "w1").expect("model");
        let model = ManifestId(Digest::of(b"model"));
        let models = BTreeMap::from([
            (model, model_dir),
            (image.origin.layout().expect("a layout"), layout),
        ]);
        Self {
            containerd,
            image,
            model,
            models: Arc::new(Prepared(models)),
            logshim: logshim(),
        }
    }

    pub(crate) async fn agent(&self) -> Agent {
        let at = |name: &str| self.containerd.path(name);
        let gid = nix::unistd::Gid::from_raw(GATEWAY_GID);
        let client = Containerd::connect(&self.containerd.socket(), "stokehold", "overlayfs")
            .await
            .expect("connect");
        let run_dir = at("run").join(INSTANCE);
        let folders = Folders::open(&run_dir, gid).expect("run_dir");
        let networks = Networks::open(Options {
            cni_bin_dirs: vec!["/usr/lib/cni".into()],
            bridge: "stokehold-none".into(),
            subnet: "10.231.0.0/20".parse().expect("valid"),
            conflist: None,
            resolvers: None,
            gateway_gid: GATEWAY_GID,
            instance: INSTANCE.into(),
            state_dir: at("state-agent").join("network"),
            netns_dir: run_dir.join("netns"),
        });
        let steps = Arc::new(Steps {
            containerd: client.clone(),
            folders,
            networks: Arc::new(networks.expect("networks")),
            logs: LogFolders::open(&at("logs"), gid, &self.logshim).expect("log_dir"),
            cgroups: Cgroups::detect(
                Path::new(agent::cgroup::ROOT),
                &self.containerd.cgroup_parent,
            ),
            instance: INSTANCE.into(),
            open_files: agent::steps::open_files(),
            puller: registries::puller(&self.containerd),
        });
        fs::create_dir_all(at("state-agent")).expect("folder");
        let ledger_path = LedgerPath::in_folder(&at("state-agent"));
        let ledger = match ledger_path.open().expect("ledger") {
            Opened::Held(ledger) => ledger,
            Opened::None | Opened::Broken { .. } => Ledger::default(),
        };
        let cancel = CancellationToken::new();
        let (plans, plans_rx) = mpsc::channel(4);
        let (events, events_rx) = mpsc::channel(64);
        let (view, view_rx) = watch::channel(Arc::new(NodeView::unseen(&ledger)));
        let (ready, ready_rx) = watch::channel(Err("starting".into()));
        let control_loop = ControlLoop::new(Parts {
            node: NodeName::parse("n1").expect("valid"),
            boot: BootId("this".into()),
            uids: UIDS,
            ledger,
            ledger_path,
            steps: Arc::clone(&steps),
            models: Arc::clone(&self.models),
            metrics: Metrics::register(&mut prometheus_client::registry::Registry::default()),
            plans: plans_rx,
            events: events_rx,
            view,
            running: watch::channel(Vec::new()).0,
            ready,
        });
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(control_loop.run(cancel.clone()));
        tasks.spawn(events::follow(client, events, cancel));
        Agent {
            plans,
            view: view_rx,
            ready: ready_rx,
            steps,
            tasks,
        }
    }

    pub(crate) fn replica(&self, n: u64, argument: &str) -> PlannedReplica {
        PlannedReplica {
            id: ReplicaId::from_bits(n),
            endpoint: EndpointName::parse("iris").expect("valid"),
            entity: EntityName::parse("iris-1").expect("valid"),
            config_version: 1,
            image: self.image.reference.clone(),
            model: self.model,
            container: ContainerSpec {
                command: vec!["/guest".into(), argument.into()],
                environment: BTreeMap::new(),
                resources: Resources {
                    memory_bytes: 64 << 20,
                    cpu_millis: 500,
                    pids: 32,
                    gpus: 0,
                },
                shm_bytes: 1 << 20,
                tmp_bytes: 16 << 20,
                model_mount: "/model".into(),
                transport: Transport::Unix,
                port: None,
                egress: Default::default(),
                invocations_path: "/invocations".into(),
                health: HealthProbe {
                    path: "/ping".into(),
                    interval_ms: 250,
                    period_ms: 2000,
                    timeout_ms: 2000,
                    failures: 3,
                    start_deadline_seconds: 60,
                },
                stop_signal: "SIGTERM".into(),
                stop_grace_seconds: 2,
            },
        }
    }

    pub(crate) fn plan(&self, revision: u64, replicas: Vec<PlannedReplica>) -> Plan {
        Plan {
            cluster: ClusterId::from_bits(1),
            epoch: Epoch(1),
            revision: Revision(revision),
            node: NodeName::parse("n1").expect("valid"),
            images: vec![self.image.clone()],
            models: vec![PlannedModel {
                manifest: self.model,
                label: "iris/1".into(),
                size_bytes: 2,
            }],
            replicas,
        }
    }

    pub(crate) fn lines(&self, n: u64) -> BTreeMap<String, String> {
        let id = ReplicaId::from_bits(n);
        let path = self.containerd.path("logs").join(id.as_str());
        let text = fs::read_to_string(path.join("current.jsonl")).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter_map(|line| {
                let (name, value) = line["m"].as_str()?.split_once('=')?;
                Some((name.to_owned(), value.to_owned()))
            })
            .collect()
    }

    pub(crate) fn task_pid(&self, n: u64) -> Option<String> {
        let id = ReplicaId::from_bits(n);
        let table = self.containerd.ctr(&["tasks", "ls"]);
        let line = table.lines().find(|line| line.starts_with(id.as_str()))?;
        line.split_whitespace().nth(1).map(str::to_owned)
    }
}

impl Agent {
    pub(crate) async fn send(&self, plan: Plan) {
        self.plans.send(plan).await.expect("the loop runs");
    }

    /// Waits until a report says so.
    pub(crate) async fn until(&mut self, what: &str, says: impl Fn(&[ReplicaStatus]) -> bool) {
        let changed = async {
            loop {
                if says(&self.view.borrow_and_update().replicas) {
                    return;
                }
                self.view.changed().await.expect("the loop runs");
            }
        };
        if tokio::time::timeout(Duration::from_secs(60), changed)
            .await
            .is_err()
        {
            let view = Arc::clone(&self.view.borrow());
            panic!("not within 60 s: {what}: {view:#?}");
        }
    }

    pub(crate) async fn phase(&mut self, n: u64, phase: ReplicaPhase) -> ReplicaStatus {
        let id = ReplicaId::from_bits(n);
        let is = |s: &ReplicaStatus| s.id == id && s.phase == phase;
        self.until(phase.as_str(), |replicas| replicas.iter().any(is))
            .await;
        let view = self.view.borrow();
        let status = view.replicas.iter().find(|status| is(status));
        status.expect("just seen").clone()
    }

    pub(crate) async fn gone(&mut self, n: u64) {
        let id = ReplicaId::from_bits(n);
        let here = |s: &ReplicaStatus| s.id == id && s.phase != ReplicaPhase::Stopped;
        self.until("gone", |replicas| !replicas.iter().any(here))
            .await;
    }

    pub(crate) async fn kill_9(mut self) {
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// The log shim as it is now: cargo builds only this package's own programs for its tests.
pub(crate) fn logshim() -> PathBuf {
    layout::run(Command::new(env!("CARGO")).args(["build", "--quiet", "-p", "stokehold-logshim"]))
        .expect("build the log shim");
    let test = std::env::current_exe().expect("this test");
    let profile = test.parent().and_then(Path::parent).expect("target/debug");
    profile.join("stokehold-logshim")
}

pub(crate) async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "not within 30 s: {what}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) fn can_run() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: containers need root");
    }
    root
}
