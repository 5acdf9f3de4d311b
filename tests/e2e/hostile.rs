//! A replica that misbehaves gets at nothing that is not its own.

use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::harness::{Cluster, eventually};

fn folder(cluster: &Cluster, endpoint: &str) -> PathBuf {
    let (_, agent) = cluster.config_of("agent");
    let run_dir = PathBuf::from(agent["run_dir"].as_str().expect("run_dir"));
    run_dir.join(&cluster.replicas(endpoint)[0])
}

/// Runs a shell command as the user of the folder's replica: what the replica itself could do there.
fn as_replica(folder: &std::path::Path, script: &str) {
    use std::os::unix::fs::MetadataExt as _;
    let uid = std::fs::metadata(folder).expect("folder").uid();
    // Only root gets as far as the folder; the replica is in it from the start.
    let enter =
        "cd \"$1\" && exec setpriv --reuid \"$2\" --regid \"$2\" --clear-groups sh -c \"$3\"";
    let status = Command::new("/bin/sh")
        .args([
            "-c",
            enter,
            "sh",
            &folder.display().to_string(),
            &uid.to_string(),
            script,
        ])
        .status()
        .expect("shell");
    assert!(status.success(), "{script}");
}

#[test]
fn a_replica_that_swaps_its_socket_for_a_link_to_anothers_reaches_nobody() {
    let mut cluster = Cluster::start();
    cluster.announce("replica is not ready: its probes fail");
    cluster.deploy_probe("victim", &json!({}), &["--max-replicas", "1"]);
    let evil = cluster.push_probe("evil", "9", &json!({}));
    cluster.cli(&[
        "deploy",
        "evil",
        "--model",
        &evil,
        "--runtime",
        "probe",
        "--max-replicas",
        "1",
    ]);
    let rows = json!({"inputs": [[1, 2]]});
    assert_eq!(
        cluster.query("evil", &rows).json()["probe"]["model_version"],
        "9"
    );

    let (evil, victim) = (folder(&cluster, "evil"), folder(&cluster, "victim"));
    assert_ne!(
        std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&evil).expect("folder")),
        std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&victim).expect("folder")),
        "each replica has a user of its own"
    );
    let target = victim.join("http.sock").display().to_string();
    as_replica(
        &evil,
        &format!("mv http.sock own.sock && ln -s {target} http.sock"),
    );
    // Probes see the link too; until then a kept connection may still lead to the replica itself.
    eventually("the replica is no longer believed in", || {
        let described = cluster.describe("evil");
        let replicas = described["replicas"].as_array()?.clone();
        let swapped = evil.file_name()?.to_str()?;
        let ready = replicas
            .iter()
            .any(|r| r["id"] == swapped && r["state"] == "ready");
        let answer = cluster.query("victim", &rows);
        assert_eq!(answer.json()["probe"]["model_version"], "1");
        (!ready).then_some(())
    });
    // What the gateway answers for `evil` from here on never comes from `victim`.
    as_replica(&evil, "rm http.sock && mv own.sock http.sock");
    let answer = cluster.query("evil", &rows);
    assert_eq!(
        answer.status,
        200,
        "{}",
        String::from_utf8_lossy(&answer.body)
    );
    assert_eq!(answer.json()["probe"]["model_version"], "9");
    let stats = cluster.query("victim", &rows).json();
    assert_eq!(stats["probe"]["model_version"], "1");
    cluster.finish();
}

#[test]
fn a_replica_has_no_rights_no_network_and_no_disk_of_its_own() {
    let cluster = Cluster::start();
    cluster.deploy_probe("bare", &json!({}), &[]);
    let pid = cluster.query("bare", &json!({"inputs": [[1]]})).json()["probe"]["replica"].clone();
    let id = pid.as_str().expect("replica").to_owned();
    let (_, agent) = cluster.config_of("agent");
    let socket = agent["containerd"].as_str().expect("containerd");
    let listed = Command::new("ctr")
        .args(["-a", socket, "-n", "stokehold", "task", "ls"])
        .output()
        .expect("ctr runs");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let line = listed
        .lines()
        .find(|line| line.starts_with(&id))
        .expect("the task");
    let pid = line.split_whitespace().nth(1).expect("pid").to_owned();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let value = |name: &str| {
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .expect("line");
        line.split_whitespace().nth(1).expect("value").to_owned()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(value(set), "0".repeat(16), "{set}");
    }
    assert_eq!(
        (value("NoNewPrivs:").as_str(), value("Seccomp:").as_str()),
        ("1", "2")
    );
    assert!(value("Uid:").parse::<u32>().expect("uid") >= 100_000);

    let devices = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).expect("devices");
    let names: Vec<_> = devices
        .lines()
        .skip(2)
        .filter_map(|l| l.split(':').next())
        .collect();
    assert!(
        names
            .iter()
            .all(|name| name.trim() == "lo" || !devices_up(&pid, name.trim())),
        "{names:?}"
    );

    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mounts")).expect("mounts");
    let options = |point: &str| {
        let line = mounts.lines().find(|l| l.split(' ').nth(1) == Some(point));
        line.unwrap_or_else(|| panic!("{point} is not mounted"))
            .split(' ')
            .nth(3)
            .expect("options")
            .to_owned()
    };
    for (point, expected) in [
        ("/", "ro"),
        ("/model", "ro"),
        ("/run/stokehold", "noexec"),
        ("/tmp", "nosuid"),
    ] {
        let options = options(point);
        assert!(
            options.split(',').any(|o| o == expected),
            "{point}: {options}"
        );
    }
    cluster.finish();
}

/// Tunnels that the kernel makes in every new network namespace are there, but down.
fn devices_up(pid: &str, name: &str) -> bool {
    let output = Command::new("nsenter")
        .args([
            "-t",
            pid,
            "-n",
            "cat",
            &format!("/sys/class/net/{name}/operstate"),
        ])
        .output()
        .expect("nsenter runs");
    String::from_utf8_lossy(&output.stdout).trim() == "up"
}
