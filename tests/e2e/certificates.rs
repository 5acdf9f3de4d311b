//! Certificates of half a minute: renewed many times, and their authority rotated, while requests go
//! on.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Cluster, Load, SecondNode, eventually};

const LIFETIME_S: u64 = 30;

fn ca_status(cluster: &Cluster) -> Value {
    cluster.cli_json(&["ca", "status"])
}

/// Until the phase is this one, and nothing is waited for.
fn settled(cluster: &Cluster, phase: &str) -> Value {
    eventually(&format!("phase {phase} has settled"), || {
        let status = ca_status(cluster);
        let done = status["phase"] == phase && status["waiting_for"] == json!([]);
        done.then_some(status)
    })
}

/// The earliest expiry of the nodes' certificates.
fn expires(status: &Value) -> i64 {
    let nodes = status["nodes"].as_array().expect("nodes");
    let ends = nodes
        .iter()
        .map(|it| it["expires_unix"].as_i64().expect("a moment"));
    ends.min().expect("nodes")
}

fn signer(status: &Value) -> String {
    let text = status["authorities"][0]["sha256"].as_str();
    text.expect("an authority").to_owned()
}

/// From here on the scheduler gives out certificates that live for half a minute.
fn shorten(cluster: &Cluster) {
    let (path, mut config) = cluster.config_of("scheduler");
    let seconds = toml::Value::Integer(LIFETIME_S.try_into().expect("small"));
    let mut table = toml::Table::new();
    table.insert("lifetime_seconds".into(), seconds);
    config.insert("certificates".into(), toml::Value::Table(table));
    std::fs::write(path, config.to_string()).expect("configuration");
    cluster.kill_and_wait("scheduler");
}

#[test]
fn requests_go_on_across_renewals_a_rotation_of_the_authority_and_a_killed_scheduler() {
    let mut cluster = Cluster::start();
    cluster.announce("no session with the scheduler");
    // Warm images may be on their way when the scheduler is killed.
    cluster.announce("chunk fetch will be retried");
    let node = SecondNode::join(&mut cluster, "n2");
    cluster.deploy_probe(
        "steady",
        &json!({"service_ms": 5}),
        &["--max-replicas", "1", "--target-concurrency", "4"],
    );
    // One enters where the replica is, the other elsewhere: it crosses between gateways. Both trust
    // the authority of before alone.
    let path = "serving-endpoints/steady/invocations";
    let urls = [
        cluster.invocations("steady"),
        format!("https://127.0.0.1:{}/{path}", node.client_port),
    ];
    for url in &urls {
        eventually("the gateway has the routes", || {
            (cluster.post(url, &json!({"inputs": [[1]]})).status == 200).then_some(())
        });
    }
    let body = json!({"inputs": [[1, 2]]});
    let pause = Duration::from_millis(20);
    let start = |url: &String| Load::start(&cluster, url, body.clone(), 2, pause);
    let loads: Vec<_> = urls.iter().map(start).collect();
    shorten(&cluster);
    let before = eventually("the scheduler is back", || {
        let output = cluster.try_cli(&["ca", "status", "--output", "json"]);
        serde_json::from_slice::<Value>(&output.stdout).ok()
    });

    // Killed as soon as the rotation has begun: it goes on by itself.
    cluster.cli(&["ca", "rotate"]);
    cluster.kill_and_wait("scheduler");
    eventually("the scheduler is back", || {
        cluster
            .try_cli(&["ca", "status"])
            .status
            .success()
            .then_some(())
    });
    let replaced = settled(&cluster, "replacing");
    assert_ne!(signer(&replaced), signer(&before));
    let first = expires(&replaced);

    // The clients of before know the old authority alone, and every connection is a new one here.
    for url in &urls {
        assert_eq!(cluster.post(url, &body).status, 200);
    }
    // New certificates live for half a minute and are renewed after twenty seconds.
    eventually("two renewals of each", || {
        let passed = expires(&ca_status(&cluster)) - first;
        (passed > i64::try_from(LIFETIME_S).expect("small")).then_some(())
    });
    for load in &loads {
        load.wait_for(20);
    }
    for load in loads {
        let (sent, failures) = load.finish(&cluster);
        assert!(failures.is_empty(), "of {sent}: {failures:?}");
    }

    // From here on with what the CLI has fetched meanwhile, which outlives the old authority.
    let loads: Vec<_> = urls.iter().map(start).collect();
    for load in &loads {
        load.wait_for(20);
    }
    settled(&cluster, "replacing");
    cluster.cli(&["ca", "finish"]);
    let finished = settled(&cluster, "steady");
    assert_eq!(signer(&finished), signer(&replaced));
    assert_eq!(finished["authorities"].as_array().map(Vec::len), Some(1));
    let last = expires(&finished);
    eventually("a renewal under the new authority alone", || {
        (expires(&ca_status(&cluster)) > last).then_some(())
    });
    for url in &urls {
        assert_eq!(cluster.post(url, &body).status, 200);
    }
    for load in loads {
        load.wait_for(20);
        let (sent, failures) = load.finish(&cluster);
        assert!(failures.is_empty(), "of {sent}: {failures:?}");
    }
    let told: Value =
        serde_json::from_str(&cluster.cli(&["events", "--output", "json"])).expect("JSON");
    let told = told["events"].as_array().expect("a list");
    for kind in ["CertificateRenewed", "AuthorityRotated", "AuthorityDropped"] {
        assert!(told.iter().any(|event| event["kind"] == kind), "no {kind}");
    }
    node.stop(&mut cluster);
    cluster.finish();
}
