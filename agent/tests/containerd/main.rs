//! The control loop against a real containerd of the test's own: import, start, adopt, protections,
//! stop, and nothing left behind. Needs root, containerd and runc.

mod layout;
mod private;

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
use agent::replica::BootId;
use agent::sampler::replicas::sample;
use agent::steps::Steps;
use private::PrivateContainerd;
use shared::digest::Digest;
use shared::ids::{ClusterId, EndpointName, EntityName, Epoch, NodeName, ReplicaId, Revision};
use shared::manifest::ManifestId;
use shared::plan::{ContainerSpec, Plan, PlannedImage, PlannedModel, PlannedReplica};
use shared::report::{ReplicaPhase, ReplicaStatus};
use shared::runtime::{HealthProbe, Resources, Transport};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

const UIDS: UidRange = UidRange {
    start: 1_990_000_000,
    count: 100,
};
const INSTANCE: &str = "test";
/// A group that exists on every machine and is not root's.
const GATEWAY_GID: u32 = 65_534;

/// Models that lie in folders already.
#[derive(Default)]
struct Prepared(BTreeMap<ManifestId, PathBuf>);

impl Models for Prepared {
    fn view(&self, id: &ManifestId) -> Option<PathBuf> {
        self.0.get(id).cloned()
    }

    async fn fetch(&self, id: ManifestId, _: Progress) -> Result<PathBuf, String> {
        self.view(&id).ok_or_else(|| format!("no model {id}"))
    }

    fn set_pins(&self, _: BTreeSet<ManifestId>) {}
}

struct Node {
    containerd: PrivateContainerd,
    image: PlannedImage,
    model: ManifestId,
    models: Arc<Prepared>,
    logshim: PathBuf,
}

/// The parts of an agent that matter here; dropping it is kill -9.
struct Agent {
    plans: mpsc::Sender<Plan>,
    view: watch::Receiver<Arc<NodeView>>,
    ready: watch::Receiver<Result<(), String>>,
    steps: Arc<Steps>,
    tasks: tokio::task::JoinSet<anyhow::Result<()>>,
}

impl Node {
    fn new() -> Self {
        let containerd = PrivateContainerd::start().expect("containerd");
        let layout = containerd.path("layout");
        let image = layout::build(&containerd.path("build"), &layout).expect("image");
        let model_dir = containerd.path("model");
        fs::create_dir(&model_dir).expect("folder");
        fs::write(model_dir.join("weights"), "w1").expect("model");
        let model = ManifestId(Digest::of(b"model"));
        let models = BTreeMap::from([(model, model_dir), (image.layout, layout)]);
        Self {
            containerd,
            image,
            model,
            models: Arc::new(Prepared(models)),
            logshim: logshim(),
        }
    }

    async fn agent(&self) -> Agent {
        let at = |name: &str| self.containerd.path(name);
        let gid = nix::unistd::Gid::from_raw(GATEWAY_GID);
        let client = Containerd::connect(&self.containerd.socket(), "stokehold", "overlayfs")
            .await
            .expect("connect");
        let run_dir = at("run").join(INSTANCE);
        let steps = Arc::new(Steps {
            containerd: client.clone(),
            folders: Folders::open(&run_dir, gid).expect("run_dir"),
            logs: LogFolders::open(&at("logs"), gid, &self.logshim).expect("log_dir"),
            cgroups: Cgroups::detect(
                Path::new(agent::cgroup::ROOT),
                &self.containerd.cgroup_parent,
            ),
            instance: INSTANCE.into(),
            open_files: agent::steps::open_files(),
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
        let (view, view_rx) = watch::channel(Arc::new(NodeView::empty(&ledger)));
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

    fn replica(&self, n: u64, argument: &str) -> PlannedReplica {
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

    fn plan(&self, revision: u64, replicas: Vec<PlannedReplica>) -> Plan {
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

    fn lines(&self, n: u64) -> BTreeMap<String, String> {
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

    fn task_pid(&self, n: u64) -> Option<String> {
        let id = ReplicaId::from_bits(n);
        let table = self.containerd.ctr(&["tasks", "ls"]);
        let line = table.lines().find(|line| line.starts_with(id.as_str()))?;
        line.split_whitespace().nth(1).map(str::to_owned)
    }
}

impl Agent {
    async fn send(&self, plan: Plan) {
        self.plans.send(plan).await.expect("the loop runs");
    }

    /// Waits until a report says so.
    async fn until(&mut self, what: &str, says: impl Fn(&[ReplicaStatus]) -> bool) {
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

    async fn phase(&mut self, n: u64, phase: ReplicaPhase) -> ReplicaStatus {
        let id = ReplicaId::from_bits(n);
        let is = |s: &ReplicaStatus| s.id == id && s.phase == phase;
        self.until(phase.as_str(), |replicas| replicas.iter().any(is))
            .await;
        let view = self.view.borrow();
        let status = view.replicas.iter().find(|status| is(status));
        status.expect("just seen").clone()
    }

    async fn gone(&mut self, n: u64) {
        let id = ReplicaId::from_bits(n);
        let here = |s: &ReplicaStatus| s.id == id && s.phase != ReplicaPhase::Stopped;
        self.until("gone", |replicas| !replicas.iter().any(here))
            .await;
    }

    async fn kill_9(mut self) {
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// The log shim as it is now: cargo builds only this package's own programs for its tests.
fn logshim() -> PathBuf {
    layout::run(Command::new(env!("CARGO")).args(["build", "--quiet", "-p", "stokehold-logshim"]))
        .expect("build the log shim");
    let test = std::env::current_exe().expect("this test");
    let profile = test.parent().and_then(Path::parent).expect("target/debug");
    profile.join("stokehold-logshim")
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "not within 30 s: {what}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn can_run() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: containers need root");
    }
    root
}

/// One test, since a containerd of its own, an image and a compiler are dear.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_matches_its_plan_and_leaves_nothing_behind() {
    if !can_run() {
        return;
    }
    let mut node = Node::new();
    let mut agent = node.agent().await;

    // It starts: image imported, container made, gateway told.
    agent
        .send(node.plan(1, vec![node.replica(1, "serve")]))
        .await;
    agent.phase(1, ReplicaPhase::Running).await;
    eventually("the guest is ready", || node.lines(1).contains_key("ready")).await;
    inside_it_is_bare(&node);
    announced(&node);
    sampled(&agent);

    // The agent dies; the replica does not, and is adopted.
    let pid = node.task_pid(1).expect("a task");
    agent.kill_9().await;
    let mut agent = node.agent().await;
    agent.phase(1, ReplicaPhase::Running).await;
    assert_eq!(*agent.ready.borrow(), Ok(()));
    assert_eq!(node.task_pid(1), Some(pid.clone()));

    // Without its ledger it keeps what runs, until a plan comes.
    agent.kill_9().await;
    fs::write(node.containerd.path("state-agent/ledger.json"), "{broken").expect("write");
    let mut agent = node.agent().await;
    agent.phase(1, ReplicaPhase::Running).await;
    assert_eq!(node.task_pid(1), Some(pid.clone()));

    // containerd dies and comes back; the replica does not notice.
    node.containerd.kill();
    node.containerd.run().expect("containerd again");
    let replicas = vec![
        node.replica(1, "serve"),
        node.replica(2, "stubborn"),
        node.replica(3, "exit"),
        node.replica(4, "eat"),
        node.replica(5, "/missing"),
    ];
    let mut missing = replicas;
    missing[4].container.command = vec!["/missing".into()];
    agent.send(node.plan(2, missing.clone())).await;
    agent.phase(2, ReplicaPhase::Running).await;
    assert_eq!(node.task_pid(1), Some(pid));

    // What ends by itself is reported with its end, and not started again.
    let exited = agent.phase(3, ReplicaPhase::Failed).await;
    assert_eq!(
        exited.exit.map(|e| (e.code, e.out_of_memory)),
        Some((42, false))
    );
    let eaten = agent.phase(4, ReplicaPhase::Failed).await;
    assert_eq!(
        eaten.exit.map(|e| (e.code, e.out_of_memory)),
        Some((137, true))
    );
    let never = agent.phase(5, ReplicaPhase::Failed).await;
    assert!(never.reason.contains("could not be started"), "{never:?}");
    eventually("their containers go", || {
        let left = node.containerd.ctr(&["containers", "ls", "-q"]);
        left.split_whitespace().count() == 2
    })
    .await;

    // An end while the agent is away is known afterwards.
    agent.kill_9().await;
    let victim = ReplicaId::from_bits(2);
    node.containerd
        .ctr(&["tasks", "kill", "-s", "SIGKILL", victim.as_str()]);
    let mut agent = node.agent().await;
    let killed = agent.phase(2, ReplicaPhase::Failed).await;
    assert_eq!(killed.exit.map(|e| e.code), Some(137));

    // A stop: asked first, then forced; then nothing is left.
    missing.retain(|r| r.id == ReplicaId::from_bits(1));
    missing.push(node.replica(6, "stubborn"));
    agent.send(node.plan(3, missing)).await;
    agent.phase(6, ReplicaPhase::Running).await;
    let begun = Instant::now();
    agent.send(node.plan(4, vec![])).await;
    agent.gone(1).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "it was not asked");
    agent.gone(6).await;
    assert!(begun.elapsed() >= Duration::from_secs(2), "it had no grace");
    for n in 2..=5 {
        agent.gone(n).await;
    }
    nothing_is_left(&node).await;
}

fn inside_it_is_bare(node: &Node) {
    let lines = node.lines(1);
    let uid = UIDS.start.to_string();
    let folder = format!("710 {uid}");
    let id = ReplicaId::from_bits(1);
    for (name, want) in [
        ("CapEff", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("CapPrm", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("Uid", &uid),
        ("Gid", &uid),
        ("pid", "1"),
        ("hostname", id.as_str()),
        ("home", "/tmp"),
        ("socket", "/run/stokehold/http.sock"),
        ("endpoint", "iris"),
        ("model", "w1"),
        ("write root", "errno 30"),
        ("write model", "errno 30"),
        ("write tmp", "ok"),
        ("fill tmp", "errno 28"),
        ("write proc", "errno 30"),
        ("unshare", "-1"),
        ("mount", "-1"),
        ("interfaces", "lo"),
        ("loopback", "ok"),
        ("folder", &folder),
        ("listen", "ok"),
        ("socket mode", "777"),
        ("threads", "4"),
    ] {
        let got = lines.get(name).map(String::as_str);
        assert_eq!(got, Some(want), "{name}: {lines:#?}");
    }
}

fn announced(node: &Node) {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let run = node.containerd.path("run").join(INSTANCE);
    let id = ReplicaId::from_bits(1);
    let file = run.join(format!("{id}.json"));
    let local: shared::api::local::LocalReplica =
        serde_json::from_slice(&fs::read(&file).expect("announced")).expect("valid");
    assert_eq!((local.replica, local.uid), (id.clone(), UIDS.start));
    let metadata = fs::metadata(&file).expect("metadata");
    assert_eq!(metadata.mode() & 0o777, 0o640);
    assert_eq!((metadata.uid(), metadata.gid()), (0, GATEWAY_GID));
    let folder = fs::metadata(run.join(id.as_str())).expect("folder");
    assert_eq!((folder.uid(), folder.gid()), (UIDS.start, GATEWAY_GID));
    let socket = fs::symlink_metadata(run.join(id.as_str()).join("http.sock")).expect("socket");
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.uid(), UIDS.start);
}

fn sampled(agent: &Agent) {
    let id = ReplicaId::from_bits(1);
    let reading = agent.steps.cgroups.read(INSTANCE, &id);
    let sample = sample(Some(&reading), &reading, Duration::from_secs(1));
    assert_eq!(sample.memory_limit_bytes, Some(64 << 20));
    assert_eq!(sample.cpu_cores, Some(0.0));
    assert_eq!(sample.pids, Some(1));
    assert!(
        sample.memory_bytes.is_some_and(|bytes| bytes > 0),
        "{sample:?}"
    );
    assert_eq!(
        agent.steps.cgroups.ran_out_of_memory(INSTANCE, &id),
        Some(false)
    );
}

async fn nothing_is_left(node: &Node) {
    let containerd = &node.containerd;
    assert_eq!(containerd.ctr(&["tasks", "ls", "-q"]), "");
    assert_eq!(containerd.ctr(&["containers", "ls", "-q"]), "");
    let snapshots = containerd.ctr(&["snapshots", "ls"]);
    assert_eq!(
        snapshots.lines().count(),
        2,
        "header and layer:\n{snapshots}"
    );
    eventually("shims end", || containerd.shims().is_empty()).await;
    assert_eq!(containerd.mounts_below("run"), Vec::<String>::new());
    assert_eq!(containerd.mounts_below("state"), Vec::<String>::new());
    assert_eq!(containerd.replica_cgroups(), Vec::<PathBuf>::new());
    let run = fs::read_dir(containerd.path("run").join(INSTANCE)).expect("run_dir");
    assert_eq!(run.count(), 0);
}
