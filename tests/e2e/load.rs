//! `stokehold load` against a real gateway.

use std::process::{Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{Cluster, eventually};

const BODY: &str = r#"{"inputs": [[1, 2]]}"#;

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        let said = String::from_utf8_lossy(&output.stderr);
        panic!(
            "{error}: {} {said}",
            String::from_utf8_lossy(&output.stdout)
        )
    })
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("signalled");
}

#[test]
fn a_ramp_adds_replicas_loses_nothing_and_they_go_when_it_is_over() {
    let cluster = Cluster::start_with(&[
        "scheduler.autoscaler.hold_min_seconds=5",
        "scheduler.autoscaler.hold_max_seconds=5",
    ]);
    let bounds = [
        "--target-concurrency",
        "1",
        "--min-replicas",
        "1",
        "--max-replicas",
        "3",
        "--cpu",
        "0.2",
    ];
    cluster.deploy_probe("ramp", &json!({"service_ms": 40}), &bounds);
    let picture = cluster.base().join("load.svg").display().to_string();
    let output = cluster.try_cli(&[
        "load",
        "ramp",
        "--rps",
        "5..60",
        "--over",
        "25s",
        "--data",
        BODY,
        "--plot",
        &picture,
        "--fail-over",
        "0%",
        "--output",
        "json",
    ]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let report = report(&output);
    let requests = &report["requests"];
    // 812 are the mean of this ramp; a seed's chance is within a tenth.
    let intended = number(&requests["intended"]);
    assert!((730.0..900.0).contains(&intended), "{requests}");
    assert_eq!(requests["succeeded"], requests["intended"], "{requests}");
    assert_eq!(report["outcomes"][0]["outcome"], "HTTP 200");
    assert!(number(&report["latency"]["from_intended"]["p50_ms"]) >= 40.0);
    assert!(
        number(&report["latency"]["from_intended"]["p99_ms"])
            >= number(&report["latency"]["from_send"]["p99_ms"])
    );
    // 60 requests of 40 ms each second are 2.4 at once.
    let replicas = &report["replicas"];
    assert_eq!(replicas["ready_least"], 1, "{replicas}");
    assert!(number(&replicas["ready_most"]) >= 2.0, "{replicas}");
    assert!(number(&replicas["demand_most"]) > 1.0, "{replicas}");
    assert_eq!(report["phases"].as_array().expect("phases").len(), 5);
    // For programs, standard error is for warnings and errors alone: no live line.
    assert_eq!(said, "");
    let drawn = std::fs::read_to_string(&picture).expect("the picture");
    assert!(
        drawn.starts_with("<svg") && drawn.contains("ramp"),
        "{drawn}"
    );

    eventually("the replicas that the load added are gone", || {
        (cluster.replicas("ramp").len() == 1).then_some(())
    });
    cluster.finish();
}

#[test]
fn a_gateway_that_stands_still_shows_in_the_percentiles() {
    let cluster = Cluster::start();
    cluster.deploy_probe("still", &json!({}), &["--target-concurrency", "50"]);
    let mut command = cluster.cli_command(&[
        "load",
        "still",
        "--rps",
        "40",
        "--over",
        "10s",
        "--arrivals",
        "uniform",
        "--data",
        BODY,
        "--output",
        "json",
    ]);
    let load = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("stokehold runs");
    std::thread::sleep(Duration::from_secs(4));
    let gateway = cluster.daemon("gateway").expect("the gateway runs");
    signal(gateway, Signal::SIGSTOP);
    std::thread::sleep(Duration::from_secs(2));
    signal(gateway, Signal::SIGCONT);
    let report = report(&load.wait_with_output().expect("an end"));
    let requests = &report["requests"];
    assert_eq!(requests["intended"], 400, "{requests}");
    assert_eq!(requests["succeeded"], 400, "{requests}");
    let latency = &report["latency"];
    // Eighty of them were due while it stood still; each waited until it went on.
    assert!(
        number(&latency["from_intended"]["p99_ms"]) > 1500.0,
        "{latency}"
    );
    assert!(
        number(&latency["from_intended"]["p50_ms"]) < 1500.0,
        "{latency}"
    );
    cluster.finish();
}

#[test]
fn a_load_ends_with_its_result_when_interrupted_and_says_what_failed() {
    let cluster = Cluster::start();
    cluster.deploy_probe(
        "short",
        &json!({"service_ms": 400}),
        &["--target-concurrency", "4"],
    );

    let mut command = cluster.cli_command(&[
        "load", "short", "--rps", "5", "--over", "10m", "--data", BODY, "--output", "json",
    ]);
    let load = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("stokehold runs");
    std::thread::sleep(Duration::from_secs(4));
    signal(i32::try_from(load.id()).expect("a pid"), Signal::SIGINT);
    let output = load.wait_with_output().expect("an end");
    let interrupted = report(&output);
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(interrupted["interrupted"], true);
    assert!(
        number(&interrupted["requests"]["succeeded"]) > 0.0,
        "{interrupted}"
    );
    assert!(number(&interrupted["took_s"]) < 60.0);

    // What is due beyond the bound is not sent, and is told as that.
    let crowded = cluster.try_cli(&[
        "load",
        "short",
        "--rps",
        "50",
        "--over",
        "3s",
        "--max-in-flight",
        "2",
        "--data",
        BODY,
        "--fail-over",
        "10%",
    ]);
    let table = String::from_utf8_lossy(&crowded.stdout).into_owned();
    assert_eq!(crowded.status.code(), Some(1));
    assert!(
        table.contains("not sent") && table.contains("HTTP 200"),
        "{table}"
    );

    let refused = cluster.try_cli(&[
        "load", "short", "--rps", "5", "--over", "2s", "--data", "[1]",
    ]);
    let table = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert_eq!(refused.status.code(), Some(1), "nothing succeeded: {table}");
    assert!(table.contains("HTTP 400"), "{table}");

    let unknown = cluster.try_cli(&["load", "none", "--rps", "5", "--over", "2s", "--data", BODY]);
    assert_eq!(unknown.status.code(), Some(4));
    // A probe has no signature from which a row could be made.
    let bodiless = cluster.try_cli(&["load", "short", "--rps", "5", "--over", "2s"]);
    assert_eq!(bodiless.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&bodiless.stderr).contains("give --data"));
    cluster.finish();
}
