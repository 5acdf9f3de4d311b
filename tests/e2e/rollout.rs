//! A new version takes over without a failed request; one that cannot start never does.

use std::time::Duration;

use serde_json::json;

use crate::harness::{Cluster, Load, eventually};

#[test]
fn an_update_under_load_fails_no_request() {
    let cluster = Cluster::start();
    cluster.deploy_probe(
        "live",
        &json!({"service_ms": 10}),
        &["--target-concurrency", "8"],
    );
    let second = cluster.push_probe(
        "live",
        "2",
        &json!({"service_ms": 10, "start_delay_ms": 500}),
    );
    let url = cluster.invocations("live");
    let load = Load::start(
        &cluster,
        &url,
        json!({"inputs": [[1]]}),
        4,
        Duration::from_millis(5),
    );
    load.wait_for(50);
    let update = [
        "deploy",
        "live",
        "--model",
        &second,
        "--runtime",
        "probe",
        "--target-concurrency",
        "8",
    ];
    cluster.cli(&update);
    let answer = cluster.query("live", &json!({"inputs": [[1]]}));
    assert_eq!(answer.json()["probe"]["model_version"], "2");
    assert_eq!(answer.headers["served-model-name"], "live-2");
    load.wait_for(50);
    eventually("the old replica is gone", || {
        (cluster.replicas("live").len() == 1).then_some(())
    });
    let (sent, failures) = load.finish(&cluster);
    assert!(failures.is_empty(), "of {sent}: {failures:?}");
    cluster.finish();
}

#[test]
fn a_version_that_cannot_start_leaves_the_old_one_serving_and_says_why() {
    let mut cluster = Cluster::start();
    cluster.announce("exited with code 41");
    cluster.announce("config update failed");
    cluster.deploy_probe("safe", &json!({}), &[]);
    let broken = cluster.push_probe("safe", "2", &json!({"exit_at_start": 41}));
    let failed = cluster.try_cli(&["deploy", "safe", "--model", &broken, "--runtime", "probe"]);
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&failed.stdout),
        String::from_utf8_lossy(&failed.stderr)
    );
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(said.contains("41"), "it says the exit code: {said}");
    let url = format!("{}/api/2.0/serving-endpoints/safe", cluster.gateway());
    let state = cluster.get(&url).json();
    assert_eq!(
        state["state"],
        json!({"ready": "READY", "config_update": "UPDATE_FAILED"})
    );
    let entity = &state["pending_config"]["served_entities"][0]["state"];
    assert_eq!(entity["deployment"], "DEPLOYMENT_FAILED");
    let answer = cluster.query("safe", &json!({"inputs": [[4]]}));
    assert_eq!(answer.json()["probe"]["model_version"], "1");
    cluster.finish();
}
