//! Machines whose clocks are an hour off, either way: they join, serve and are watched like any other.

use serde_json::json;

use crate::harness::{Cluster, SecondNode, eventually};

#[test]
fn nodes_whose_clocks_are_an_hour_off_join_and_serve_and_their_ages_are_right() {
    let mut cluster = Cluster::start();
    let nodes = [
        SecondNode::join_with_clock(&mut cluster, "ahead", "+1h"),
        SecondNode::join_with_clock(&mut cluster, "behind", "-1h"),
    ];
    eventually("the nodes are there", || {
        let list = cluster.cli_json(&["node", "list"]);
        let ready = |node: &&serde_json::Value| node["state"] == "ready";
        let ready = list["nodes"]
            .as_array()
            .expect("a list")
            .iter()
            .filter(ready);
        (ready.count() == 3).then_some(())
    });
    cluster.deploy_probe(
        "clocks",
        &json!({}),
        &["--min-replicas", "3", "--max-replicas", "3"],
    );
    let described = cluster.cli_json(&["describe", "clocks"]);
    let replicas = described["replicas"].as_array().expect("a list");
    for node in &nodes {
        let here = replicas.iter().find(|it| it["node"] == node.name.as_str());
        let here = here.unwrap_or_else(|| panic!("no replica on {}: {described}", node.name));
        assert_eq!(here["state"], "ready", "{here}");
        // Ages are what a machine measured, never the difference of two machines' clocks.
        let since = here["since_s"].as_f64();
        assert!(since.is_some_and(|since| since < 600.0), "{here}");
    }
    let mut urls = vec![cluster.invocations("clocks")];
    urls.extend(nodes.iter().map(|node| {
        let path = "serving-endpoints/clocks/invocations";
        format!("https://127.0.0.1:{}/{path}", node.client_port)
    }));
    for url in &urls {
        eventually("the gateway has the routes", || {
            (cluster.post(url, &json!({"inputs": [[1]]})).status == 200).then_some(())
        });
        for _ in 0..20 {
            assert_eq!(cluster.post(url, &json!({"inputs": [[1]]})).status, 200);
        }
    }
    cluster.cli(&["delete", "clocks", "--yes"]);
    for node in &nodes {
        eventually("the node has given its replica up", || {
            let described = cluster.cli_json(&["node", "describe", &node.name]);
            (described["replicas"] == json!([])).then_some(())
        });
    }
    for node in nodes {
        node.stop(&mut cluster);
    }
    cluster.finish();
}
