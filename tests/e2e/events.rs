//! What happened is told: in order, with its cause, and over the scheduler's death.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{Cluster, eventually};

#[test]
fn a_killed_replica_and_a_killed_scheduler_are_told_in_order_and_kept() {
    let mut cluster = Cluster::start();
    cluster.announce("replica ended by itself");
    cluster.announce("replica failed: killed by signal 9");
    cluster.announce("no session with the scheduler");
    let followed = Followed::start(&cluster);
    cluster.deploy_probe("mortal", &json!({}), &[]);
    followed.wait_for("RolloutDone");
    let first = cluster.replicas("mortal").remove(0);
    kill(process_of(&first), Signal::SIGKILL).expect("killed");
    let told = eventually("its successor is ready", || {
        let told = events(&cluster, &["mortal"]);
        let ready = told.iter().filter(|it| it["kind"] == "ReplicaReady");
        (ready.count() == 2).then_some(told)
    });
    let expected = [
        "EndpointCreated",
        "RolloutStarted",
        "ReplicaPlaced",
        "ReplicaReady",
        "RolloutDone",
        "ReplicaFailed",
        "ReplicaPlaced",
        "ReplicaReady",
    ];
    // How much of an image and a model a report catches on its way depends on the machine.
    let on_the_way = ["ImagePulled", "ModelFetched", "ReplicaStarted"];
    let kinds: Vec<&str> = told
        .iter()
        .map(|it| it["kind"].as_str().expect("a text"))
        .filter(|kind| !on_the_way.contains(kind))
        .collect();
    assert_eq!(kinds, expected, "{told:#?}");
    let failed = told
        .iter()
        .find(|it| it["kind"] == "ReplicaFailed")
        .expect("told");
    assert_eq!(failed["replica"], json!(first));
    assert_eq!(failed["severity"], "warning");
    assert_eq!(
        failed["exit"],
        json!({"code": 137, "signal": 9, "out_of_memory": false})
    );
    assert!(
        failed["cause"]
            .as_str()
            .expect("a text")
            .contains("signal 9"),
        "{failed}"
    );
    followed.wait_for("ReplicaFailed");

    // The same for people.
    let shown = cluster.cli(&["events", "mortal", "--warnings"]);
    let rows: Vec<&str> = shown.lines().collect();
    assert_eq!(rows.len(), 2, "{shown}");
    assert!(
        rows[1].contains("ReplicaFailed") && rows[1].contains("signal 9"),
        "{shown}"
    );
    let described = cluster.cli(&["describe", "mortal"]);
    let (_, end) = described
        .split_once("\nevents\n")
        .expect("ends with its events");
    assert!(end.contains("ReplicaFailed"), "{end}");
    let node = cluster.cli(&["node", "describe", "n1"]);
    assert!(
        node.contains("ReplicaFailed") && node.contains("mortal-1"),
        "{node}"
    );

    cluster.kill_and_wait("scheduler");
    eventually("the scheduler answers again", || {
        cluster.try_cli(&["list"]).status.success().then_some(())
    });
    let after = eventually("its start is told", || {
        let all = events(&cluster, &[]);
        let starts = all.iter().filter(|it| it["kind"] == "SchedulerStarted");
        (starts.count() == 2).then_some(all)
    });
    let of_mortal: Vec<&Value> = after
        .iter()
        .filter(|it| it["endpoint"] == "mortal")
        .collect();
    assert_eq!(
        of_mortal,
        told.iter().collect::<Vec<_>>(),
        "kept as they were"
    );

    // Who follows has waited for the scheduler and goes on, without a gap and without a repetition.
    cluster.cli(&["delete", "mortal"]);
    followed.wait_for("EndpointDeleted");
    let lines = followed.stop();
    let seqs: Vec<u64> = lines
        .iter()
        .map(|it| it["seq"].as_u64().expect("a number"))
        .collect();
    assert!(seqs.is_sorted_by(|a, b| a < b), "{seqs:?}");
    let starts = lines.iter().filter(|it| it["kind"] == "SchedulerStarted");
    assert_eq!(starts.count(), 2, "before and after");
    let of_deleted = eventually("the replica's end is told", || {
        let told = events(&cluster, &["mortal", "--limit", "3"]);
        (told.last()?["kind"] == "ReplicaStopped").then_some(told)
    });
    assert_eq!(of_deleted[0]["kind"], "EndpointDeleted");
    cluster.finish();
}

fn events(cluster: &Cluster, arguments: &[&str]) -> Vec<Value> {
    let mut all = vec!["events"];
    all.extend(arguments);
    // An endpoint of which nothing was told yet is not known.
    let list = cluster.cli_json(&all);
    list["events"].as_array().expect("a list").clone()
}

/// The process that a replica's container runs.
fn process_of(replica: &str) -> Pid {
    let mark = format!("STOKEHOLD_REPLICA={replica}");
    let processes = std::fs::read_dir("/proc").expect("/proc");
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let found = pids.into_iter().find(|pid: &i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ"));
        environment.is_ok_and(|it| it.split(|b| *b == 0).any(|it| it == mark.as_bytes()))
    });
    Pid::from_raw(found.expect("the replica's process"))
}

/// `stokehold events --follow`, as a person leaves it running.
struct Followed {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
    reader: std::thread::JoinHandle<()>,
}

impl Followed {
    fn start(cluster: &Cluster) -> Self {
        let mut command: Command = cluster.command("stokehold");
        let mut child = command
            .args(["events", "--follow", "--output", "json"])
            .env("HOME", cluster.base().join("home"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("runs");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        let reader = std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).expect("one event a line");
                kept.lock().expect("no panic").push(event);
            }
        });
        Self {
            child,
            lines,
            reader,
        }
    }

    fn wait_for(&self, kind: &str) {
        eventually(&format!("{kind} comes down the stream"), || {
            let lines = self.lines.lock().expect("no panic");
            lines.iter().any(|it| it["kind"] == kind).then_some(())
        });
    }

    fn stop(mut self) -> Vec<Value> {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
        self.reader.join().expect("every line was an event");
        let lines = self.lines.lock().expect("no panic");
        lines.clone()
    }
}
