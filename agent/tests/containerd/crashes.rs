//! What kill -9 leaves in the middle of a step, and what two steps at the same time do.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;

use agent::containerd::containers::NewContainer;
use agent::containerd::images::{ImageSource, chain_ids};
use agent::ledger::ReplicaRecord;
use agent::spec::{self, SpecContext};
use agent::steps::Steps;
use futures_util::future::join_all;
use shared::ids::{ClusterId, ImageRef, ReplicaId};
use shared::plan::PlannedReplica;
use shared::report::ReplicaPhase;

use crate::harness::{Agent, INSTANCE, Node, UIDS, eventually};
use crate::layout;

/// How far a start came before the agent died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum CutAfter {
    Folder,
    Record,
    Snapshot,
    Task,
    Start,
}

const CUTS: [CutAfter; 5] = [
    CutAfter::Folder,
    CutAfter::Record,
    CutAfter::Snapshot,
    CutAfter::Task,
    CutAfter::Start,
];

/// The same calls as a start makes, up to there.
async fn start_until(
    node: &Node,
    steps: &Steps,
    replica: &PlannedReplica,
    uid: u32,
    cut: CutAfter,
) {
    let folder = steps.folders.make(&replica.id, uid).expect("folder");
    steps.logs.make(&replica.id, uid).expect("log folder");
    if cut == CutAfter::Folder {
        return;
    }
    let context = SpecContext {
        model_dir: node.containerd.path("model"),
        folder,
        uid,
        cgroups: steps.cgroups.layout(),
        cgroup_parent: steps.cgroups.parent().to_owned(),
        instance: INSTANCE.into(),
        netns: None,
        resolv_conf: None,
        open_files: steps.open_files,
    };
    let spec = spec::render(replica, &node.image, &context).expect("valid");
    let record = NewContainer {
        replica: &replica.id,
        record: &ReplicaRecord::new(replica, uid),
        cluster: &ClusterId::from_bits(1),
        instance: INSTANCE,
        spec: &spec,
    };
    let containerd = &steps.containerd;
    containerd.create_container(record).await.expect("record");
    if cut == CutAfter::Record {
        return;
    }
    let parent = chain_ids(&node.image).pop().expect("a layer");
    let prepared = containerd.prepare_snapshot(replica.id.as_str(), &parent, None);
    let rootfs = prepared.await.expect("snapshot");
    if cut == CutAfter::Snapshot {
        return;
    }
    let log = steps.logs.uri(&replica.id, uid);
    let created = containerd.create_task(&replica.id, rootfs, &log);
    created.await.expect("task");
    if cut == CutAfter::Start {
        containerd.start_task(&replica.id).await.expect("started");
    }
}

/// Wanted replicas come up, the one that runs already as it is; unwanted ones leave nothing. The
/// ledger is lost as well, so that nothing is done before there is a plan.
pub(crate) async fn a_start_that_was_cut_off_anywhere_comes_true(
    node: &Node,
    agent: Agent,
) -> Agent {
    let steps = Arc::clone(&agent.steps);
    agent.kill_9().await;
    fs::remove_file(node.containerd.path("state-agent/ledger.json")).expect("there");
    let mut wanted = Vec::new();
    for (i, cut) in (0u32..).zip(CUTS) {
        for (n, uid) in [(20 + i, 40 + i), (30 + i, 50 + i)] {
            let replica = node.replica(n.into(), "serve");
            start_until(node, &steps, &replica, UIDS.start + uid, cut).await;
            if n < 30 {
                wanted.push(replica);
            }
        }
    }
    let started = node.task_pid(24).expect("a task");
    let mut agent = node.agent().await;
    agent.phase(34, ReplicaPhase::Running).await;
    agent.send(node.plan(11, wanted)).await;
    for n in 20..25 {
        agent.phase(n, ReplicaPhase::Running).await;
        agent.gone(n + 10).await;
    }
    assert_eq!(node.task_pid(24), Some(started));
    agent.send(node.plan(12, vec![])).await;
    for n in 20..25 {
        agent.gone(n).await;
    }
    agent
}

/// A process that does not want to end, in a replica's control group.
struct Squatter(Child);

impl Squatter {
    fn in_group(group: &Path) -> Self {
        let child = Command::new("sleep").arg("600").spawn().expect("sleep");
        fs::create_dir_all(group).expect("group");
        fs::write(group.join("cgroup.procs"), child.id().to_string()).expect("moved");
        Self(child)
    }
}

impl Drop for Squatter {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) async fn a_removal_goes_on_until_the_control_group_is_gone(
    node: &Node,
    agent: Agent,
) -> Agent {
    let steps = Arc::clone(&agent.steps);
    agent.kill_9().await;
    let replica = node.replica(40, "serve");
    let uid = UIDS.start + 60;
    start_until(node, &steps, &replica, uid, CutAfter::Record).await;
    let root = Path::new(agent::cgroup::ROOT);
    let hierarchy = match root.join("cgroup.controllers").exists() {
        true => root.to_owned(),
        false => root.join("pids"),
    };
    let path = spec::cgroups_path(steps.cgroups.parent(), INSTANCE, &replica.id);
    let group = hierarchy.join(path.strip_prefix("/").expect("absolute"));
    let squatter = Squatter::in_group(&group);
    let mut agent = node.agent().await;
    agent
        .until("the removal failed", |replicas| {
            replicas.iter().any(|status| {
                status.id == replica.id
                    && status.phase == ReplicaPhase::Stopping
                    && status.reason.contains("control group")
            })
        })
        .await;
    drop(squatter);
    agent.gone(40).await;
    assert!(!group.exists());
    agent
}

pub(crate) async fn images_that_share_a_layer_are_brought_in_at_the_same_time(
    node: &Node,
    agent: &Agent,
) {
    let containerd = &agent.steps.containerd;
    containerd
        .delete_image(&node.image.reference)
        .await
        .expect("dropped");
    let chain = chain_ids(&node.image).pop().expect("a layer");
    eventually("the layer is collected", || {
        !node.containerd.ctr(&["snapshots", "ls"]).contains(&chain)
    })
    .await;
    let layout = node.containerd.path("layout");
    let imports = (0..6).map(|n| {
        let layout = layout.clone();
        // Two names of each image, and the same layer in all of them.
        let layer = node.image.layers[0].clone();
        let name = format!("stokehold.local/guest:same-{}", n / 2);
        let mut image = layout::image(&layout, &name, layer).expect("image");
        image.reference = ImageRef::parse(&format!("{name}-{n}")).expect("valid");
        async move {
            containerd
                .bring_image(&image, ImageSource::Layout(&layout), INSTANCE)
                .await
        }
    });
    for imported in join_all(imports).await {
        imported.expect("brought in");
    }
    let snapshots = node.containerd.ctr(&["snapshots", "ls"]);
    assert_eq!(
        snapshots.lines().count(),
        2,
        "header and layer:\n{snapshots}"
    );
    let id = ReplicaId::from_bits(99);
    let view = containerd.prepare_snapshot(id.as_str(), &chain, None).await;
    assert!(view.is_ok_and(|mounts| !mounts.is_empty()));
    containerd
        .remove_snapshot(id.as_str())
        .await
        .expect("removed");
}
