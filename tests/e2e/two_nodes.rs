//! Two nodes: a request may enter anywhere.

use std::time::Duration;

use serde_json::json;

use crate::harness::{Cluster, Load, SecondNode, eventually};

fn wait_for_node(cluster: &Cluster, name: &str, state: &str) {
    eventually(&format!("node {name} is {state}"), || {
        let nodes = cluster.cli_json(&["node", "list"]);
        let nodes = nodes["nodes"].as_array()?.clone();
        nodes
            .iter()
            .any(|n| n["name"] == name && n["state"] == state)
            .then_some(())
    });
}

#[test]
fn a_request_that_enters_where_no_replica_is_reaches_one_on_the_other_node() {
    let mut cluster = Cluster::start();
    let node = SecondNode::join(&mut cluster, "n2");
    wait_for_node(&cluster, "n2", "ready");
    cluster.deploy_probe(
        "lonely",
        &json!({"service_ms": 5}),
        &["--max-replicas", "1", "--target-concurrency", "2"],
    );
    let home = cluster.describe("lonely")["replicas"][0]["node"].clone();
    let ports = [
        cluster.gateway(),
        format!("https://127.0.0.1:{}", node.client_port),
    ];
    for gateway in &ports {
        let url = format!("{gateway}/serving-endpoints/lonely/invocations");
        eventually("the gateway has the routes", || {
            let answer = cluster.post(&url, &json!({"inputs": [[1, 2]]}));
            (answer.status == 200 && answer.json()["predictions"] == json!([3.0])).then_some(())
        });
        // A body that is too long to be kept for a second try is streamed across.
        let long = json!({"inputs": [vec![1; 400_000]]});
        let answer = cluster.post(&url, &long);
        assert_eq!(answer.status, 200, "from {gateway} to {home}");
        assert_eq!(answer.json()["predictions"], json!([400_000.0]));
    }
    // Whoever sends, the replica's limit holds.
    let loads: Vec<_> = ports
        .iter()
        .map(|gateway| {
            let url = format!("{gateway}/serving-endpoints/lonely/invocations");
            Load::start(&cluster, &url, json!({"inputs": [[1]]}), 6, Duration::ZERO)
        })
        .collect();
    for load in &loads {
        load.wait_for(150);
    }
    for load in loads {
        let (sent, failures) = load.finish(&cluster);
        assert!(failures.is_empty(), "of {sent}: {failures:?}");
    }
    let seen = cluster.query("lonely", &json!({"inputs": [[1]]})).json();
    assert_eq!(seen["probe"]["max_in_flight"], 2, "{seen}");
    cluster.cli(&["delete", "lonely"]);
    eventually("no replica is left", || {
        let nodes = cluster.cli_json(&["node", "list"]);
        let none = nodes["nodes"]
            .as_array()?
            .iter()
            .all(|n| n["replicas"] == 0);
        none.then_some(())
    });
    node.stop(&mut cluster);
    cluster.finish();
}

#[test]
fn a_node_that_falls_silent_is_declared_lost_and_its_replicas_are_replaced() {
    let mut cluster = Cluster::start();
    cluster.announce("node lost: silent");
    cluster.announce("replica lost with its node");
    let mut node = SecondNode::join(&mut cluster, "n2");
    wait_for_node(&cluster, "n2", "ready");
    cluster.deploy_probe(
        "spread",
        &json!({}),
        &["--min-replicas", "2", "--max-replicas", "2"],
    );
    let nodes = |cluster: &Cluster| {
        let described = cluster.describe("spread");
        let all = described["replicas"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let ready = all.iter().filter(|r| r["state"] == "ready");
        let mut nodes: Vec<_> = ready
            .map(|r| r["node"].as_str().unwrap_or("").to_owned())
            .collect();
        nodes.sort();
        nodes
    };
    assert_eq!(nodes(&cluster), ["n1", "n2"]);
    node.kill();
    eventually("both replicas are on the node that is left", || {
        (nodes(&cluster) == ["n1", "n1"]).then_some(())
    });
    let answer = cluster.query("spread", &json!({"inputs": [[1]]}));
    assert_eq!(
        answer.status,
        200,
        "{}",
        String::from_utf8_lossy(&answer.body)
    );
    // It comes back with the replica that it still has; the surplus goes.
    node.start();
    wait_for_node(&cluster, "n2", "ready");
    eventually("two replicas serve", || {
        (nodes(&cluster).len() == 2).then_some(())
    });
    assert_eq!(
        cluster.query("spread", &json!({"inputs": [[1]]})).status,
        200
    );
    node.stop(&mut cluster);
    cluster.finish();
}
