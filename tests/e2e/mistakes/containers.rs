//! Containers that end, hang, grow or shout.

use std::path::Path;

use serde_json::json;

use super::{There, deploy_steady, nothing_is_left, run, steady_answers};
use crate::harness::{Cluster, eventually};

/// What one replica's log may take (see docs/operations.md), and a little for what is under way.
const LOG_BOUND_BYTES: u64 = 66 << 20;

fn size_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size_bytes(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// The probe runtime, with 8 seconds for a start in place of 60.
fn add_impatient_runtime(cluster: &Cluster) {
    let runtimes = cluster.base().join("share/stokehold/runtimes");
    let probe = std::fs::read_to_string(runtimes.join("probe.toml")).expect("template");
    let impatient = probe
        .replace("name = \"probe\"", "name = \"impatient\"")
        .replace("start_deadline_seconds = 60", "start_deadline_seconds = 8");
    std::fs::write(runtimes.join("impatient.toml"), impatient).expect("template");
    cluster.kill_and_wait("scheduler");
    eventually("the scheduler answers again", || {
        run(cluster, &["list"]).code.filter(|code| *code == 0)
    });
}

#[test]
fn a_container_that_ends_hangs_grows_or_shouts_is_told_with_how_to_mend_it() {
    let mut cluster = Cluster::start();
    for expected in [
        "exited with code 7",
        "killed for memory",
        "out of memory",
        "not healthy within 8 s",
        "config update failed",
        // While the scheduler is started again.
        "session",
        "can be placed",
    ] {
        cluster.announce(expected);
    }
    add_impatient_runtime(&cluster);
    deploy_steady(&cluster);

    // It shouts while everything else here happens.
    let flood = cluster.push_probe("flood", "1", &json!({"log_bytes_at_start": 1u64 << 30}));
    let shout = ["deploy", "flood", "--model", &flood, "--runtime", "probe"];
    cluster.cli(&[&shout[..], &["--no-wait", "--max-replicas", "1"]].concat());
    let logs = cluster.data().join("logs/replicas");
    let shouted = eventually("a replica shouts", || {
        let id = cluster.replicas("flood").into_iter().next()?;
        let folder = logs.join(id);
        (size_bytes(&folder) > 16 << 20).then_some(folder)
    });
    steady_answers(&cluster);
    assert!(size_bytes(&shouted) < LOG_BOUND_BYTES);
    let last = cluster.cli(&["logs", "flood", "--tail", "5"]);
    assert!(last.contains("the probe is starting"), "{last}");
    cluster.cli(&["delete", "flood", "--yes"]);

    // It ends at once.
    let settings = json!({"exit_at_start": 7, "log_bytes_at_start": 200});
    let exits = cluster.push_probe("exits", "1", &settings);
    let grows = cluster.push_probe("grows", "1", &json!({"memory_mib": 300}));
    let hangs = cluster.push_probe("hangs", "1", &json!({"never_healthy": true}));
    let before = eventually("only the steady one is left", || {
        let there = There::in_cluster(&cluster);
        let left = [&there.containers, &there.snapshots, &there.folders];
        left.iter().all(|ids| ids.len() == 1).then_some(there)
    });
    let deploy = ["deploy", "exits", "--model", &exits, "--runtime", "probe"];
    let verdict = [
        "error: endpoint exits failed: exits-1: 3 starts failed, the last on n1: exited with code 7, \
         see `stokehold logs exits`",
        "last lines of replica",
        "(more: stokehold logs exits --replica ",
        "  | the probe is starting",
        "hint: stokehold logs exits --replica ",
    ];
    run(&cluster, &deploy).says(1, &verdict);
    let described = cluster.cli(&["describe", "exits"]);
    for text in ["exited with code 7", verdict[1], verdict[2], verdict[3]] {
        assert!(described.contains(text), "{text:?} is not in\n{described}");
    }
    let told = run(&cluster, &[&deploy[..], &["--output", "json"]].concat());
    let error = told.error();
    assert_eq!(error["code"], "DEPLOYMENT_FAILED");
    assert!(error["log"]["lines"][0].is_string(), "{error}");
    cluster.cli(&["delete", "exits", "--yes"]);
    nothing_is_left(&cluster, &before);

    // It takes more memory than it may.
    let deploy = ["deploy", "grows", "--model", &grows, "--runtime", "probe"];
    let reason = "killed for memory (exit code 137): it reached its limit of 128 MiB, give it more with \
                  --memory (stokehold.memory_bytes)";
    run(&cluster, &deploy).says(1, &[reason, "hint: "]);
    assert!(
        cluster
            .cli(&["describe", "grows"])
            .contains("killed for memory")
    );
    // Mended as the message says.
    cluster.cli(&[&deploy[..], &["--memory", "512MiB"]].concat());
    cluster.cli(&["delete", "grows", "--yes"]);
    nothing_is_left(&cluster, &before);

    // It never answers its probes.
    let deploy = [
        "deploy",
        "hangs",
        "--model",
        &hangs,
        "--runtime",
        "impatient",
    ];
    run(&cluster, &deploy).says(
        1,
        &[
            "not healthy within 8 s of its start (health.start_deadline_seconds of runtime impatient)",
            "no probe has succeeded yet",
            "503",
            "hint: ",
        ],
    );
    cluster.cli(&["delete", "hangs", "--yes"]);
    nothing_is_left(&cluster, &before);
    cluster.finish();
}
