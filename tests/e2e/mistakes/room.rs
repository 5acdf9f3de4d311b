//! What no node has room for: in memory, in the model cache, on its disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{STEADY, There, deploy_steady, nothing_is_left, run, steady_answers};
use crate::harness::{Cluster, eventually};

/// Far below the deploy deadline of 20 minutes, far above the 10 s of grace.
const AT_ONCE: Duration = Duration::from_secs(120);

#[test]
fn what_no_node_could_ever_hold_is_told_at_once_and_another_configuration_takes_its_place() {
    let mut cluster = Cluster::start();
    cluster.announce("can be placed");
    deploy_steady(&cluster);
    let before = There::in_cluster(&cluster);
    let deploy = |name: &'static str, more: &[&'static str]| {
        let line = ["deploy", name, "--model", "steady/1", "--runtime", "probe"];
        run(&cluster, &[&line[..], more].concat())
    };
    let begun = Instant::now();
    deploy("big", &["--memory", "900TiB"]).says(
        1,
        &[
            "error: endpoint big cannot be placed: steady-1: no node has 900 TiB memory free: n1 has ",
            "; ask for less with --memory (stokehold.memory_bytes), or add a larger node",
            "hint: nothing was started",
            "stokehold delete big",
        ],
    );
    assert!(begun.elapsed() < AT_ONCE);
    let described = cluster.describe("big");
    assert_eq!(
        described["endpoint"]["state"]["config_update"],
        "IN_PROGRESS"
    );
    assert_eq!(
        (&described["blocked"][0]["for_good"], &described["replicas"]),
        (&json!(true), &json!([]))
    );
    assert!(
        cluster
            .cli(&["describe", "big"])
            .contains("no node has 900 TiB memory free")
    );
    let told = deploy("big", &["--cpu", "4000", "--output", "json"]);
    let error = told.error();
    assert_eq!(error["code"], "NO_ROOM", "{error}");
    assert!(
        error["message"]
            .as_str()
            .expect("text")
            .contains("cpu_millis free of"),
        "{error}"
    );
    // Mended by another configuration, without waiting for the deadline of the first.
    assert_eq!(deploy("big", &["--memory", "64MiB"]).code, Some(0));
    cluster.cli(&["delete", "big", "--yes"]);
    nothing_is_left(&cluster, &before);

    // An image that nobody imported is no different, and goes on by itself once it is there.
    let missing = cluster.base().join("share/stokehold/runtimes/missing.toml");
    let probe = std::fs::read_to_string(missing.with_file_name("probe.toml")).expect("template");
    let other = probe
        .replace("name = \"probe\"", "name = \"missing\"")
        .replace("runtime-probe:1", "runtime-missing:1");
    std::fs::write(&missing, other).expect("template");
    cluster.announce("session");
    cluster.kill_and_wait("scheduler");
    eventually("the scheduler answers again", || {
        run(&cluster, &["list"]).code.filter(|code| *code == 0)
    });
    run(
        &cluster,
        &[
            "deploy",
            "odd",
            "--model",
            "steady/1",
            "--runtime",
            "missing",
        ],
    )
    .says(
        1,
        &["cannot be placed: steady-1: image stokehold.local/runtime-missing:1 is not"],
    );
    cluster.cli(&["delete", "odd", "--yes"]);
    nothing_is_left(&cluster, &before);
    cluster.finish();
}

#[test]
fn what_a_node_could_hold_when_others_leave_waits_and_is_placed_then() {
    let mut cluster = Cluster::start();
    cluster.announce("can be placed");
    deploy_steady(&cluster);
    let nodes = cluster.cli_json(&["node", "list"]);
    let total = nodes["nodes"][0]["memory_bytes"].as_u64().expect("bytes");
    let most = (total / 10 * 6).to_string();
    let deploy = |name: &'static str, more: &[&'static str]| {
        let line = [
            "deploy",
            name,
            "--model",
            "steady/1",
            "--runtime",
            "probe",
            "--memory",
            &most,
        ];
        run(&cluster, &[&line[..], more].concat())
    };
    assert_eq!(deploy("first", &["--max-replicas", "1"]).code, Some(0));
    // Longer than the grace of what is hopeless: this is not.
    deploy("second", &["--timeout", "20s"]).says(
        124,
        &[
            "second is not ready yet",
            "or wait until other replicas leave",
            "stokehold describe second",
        ],
    );
    let blocked = cluster.describe("second")["blocked"][0].clone();
    assert_eq!(blocked["for_good"], json!(false), "{blocked}");
    cluster.cli(&["delete", "first", "--yes"]);
    eventually("the second is placed", || {
        let answer = cluster.query("second", &json!({"inputs": [[3]]}));
        (answer.status == 200).then_some(())
    });
    steady_answers(&cluster);
    cluster.finish();
}

/// A file system of a size of its own.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, size: &str) -> Self {
        std::fs::create_dir_all(at).expect("folder");
        let options = format!("size={size},mode=0700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(at)
            .status();
        assert!(mounted.expect("mount runs").success());
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Restarts the agent with other values of its configuration.
fn reconfigure(cluster: &Cluster, values: &[(&str, String)]) {
    let (path, mut agent) = cluster.config_of("agent");
    for (key, value) in values {
        agent.insert((*key).to_owned(), toml::Value::String(value.clone()));
    }
    std::fs::write(path, agent.to_string()).expect("configuration");
    cluster.kill_and_wait("agent");
}

#[test]
fn a_model_without_room_in_the_cache_or_on_its_disk_is_told_before_it_is_placed() {
    let mut cluster = Cluster::start();
    cluster.announce("can be placed");
    cluster.announce("session");
    cluster.import_probe_image();
    let disk = SmallDisk::mount(&cluster.base().join("small"), "24m");
    reconfigure(&cluster, &[("cache_dir", disk.0.display().to_string())]);
    deploy_steady(&cluster);
    let folder = cluster.probe_model("large", "1", &json!({}));
    let weights: Vec<u8> = (0..32u32 << 20)
        .map(|n| n.wrapping_mul(2_654_435_761) as u8)
        .collect();
    std::fs::write(folder.join("weights.bin"), weights).expect("file");
    let shown = folder.display().to_string();
    cluster.cli(&["model", "push", &shown, "--name", "large"]);
    let before = There::in_cluster(&cluster);
    let deploy = [
        "deploy",
        "large",
        "--model",
        "large/1",
        "--runtime",
        "probe",
    ];
    run(&cluster, &deploy).says(
        1,
        &[
            "error: endpoint large cannot be placed",
            "n1 has room for ",
            " on the disk of its model cache for a model of 32.0 MiB",
            "free some on a node's disk, or move cache_dir in its agent.toml",
        ],
    );
    cluster.cli(&["delete", "large", "--yes"]);
    nothing_is_left(&cluster, &before);

    reconfigure(&cluster, &[("cache_capacity", "20MiB".to_owned())]);
    eventually("the agent reports again", || {
        let nodes = cluster.cli_json(&["node", "list"]);
        (nodes["nodes"][0]["state"] == "ready").then_some(())
    });
    run(&cluster, &deploy).says(
        1,
        &[
            "n1 has a model cache of 20 MiB for a model of 32.0 MiB",
            "raise cache_capacity in a node's agent.toml",
        ],
    );
    // Mended on the node, it goes on by itself.
    let roomy = cluster.base().join("roomy");
    reconfigure(
        &cluster,
        &[
            ("cache_capacity", "1GiB".to_owned()),
            ("cache_dir", roomy.display().to_string()),
        ],
    );
    eventually("the large one serves", || {
        let answer = cluster.query("large", &json!({"inputs": [[3]]}));
        (answer.status == 200).then_some(())
    });
    for endpoint in ["large", STEADY] {
        let answer = cluster.query(endpoint, &json!({"inputs": [[3]]}));
        assert_eq!(answer.status, 200, "{endpoint}");
    }
    for endpoint in ["large", STEADY] {
        cluster.cli(&["delete", endpoint, "--yes"]);
    }
    eventually("nothing uses the small disk", || {
        There::in_cluster(&cluster)
            .containers
            .is_empty()
            .then_some(())
    });
    drop(disk);
    cluster.finish();
}
