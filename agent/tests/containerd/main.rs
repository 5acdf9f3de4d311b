//! The control loop against a real containerd of the test's own: import, start, adopt, protections,
//! stop, and nothing left behind. Needs root, containerd and runc.

mod crashes;
mod harness;
mod layout;
mod private;
mod registries;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent::sampler::replicas::sample;
use shared::ids::ReplicaId;
use shared::report::ReplicaPhase;

use harness::{Agent, GATEWAY_GID, INSTANCE, Node, UIDS, can_run, eventually};

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

    let agent = crashes::a_start_that_was_cut_off_anywhere_comes_true(&node, agent).await;
    nothing_is_left(&node).await;
    let agent = crashes::a_removal_goes_on_until_the_control_group_is_gone(&node, agent).await;
    nothing_is_left(&node).await;
    crashes::images_that_share_a_layer_are_brought_in_at_the_same_time(&node, &agent).await;
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
    // But for the folder of network namespaces, which stays, and is empty.
    let run = containerd.path("run").join(INSTANCE);
    let mut left = names_in(&run);
    left.retain(|name| name != "netns");
    assert_eq!(left, Vec::<String>::new());
    assert_eq!(names_in(&run.join("netns")), Vec::<String>::new());
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("folder");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("entry").file_name();
    entries
        .map(|entry| name(entry).to_string_lossy().into_owned())
        .collect()
}
