use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::models::{push_files, push_model};
use crate::node::{Membership, Node, ready_replicas};

const PATIENCE: Duration = Duration::from_secs(20);

const TEMPLATE: &str = r#"
    name = "mlflow"
    image = "example:1"
    command = ["/serve"]
    [health]
    path = "/ping"
    [resources]
    memory_bytes = 67108864
    cpu_millis = 100
"#;

pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn endpoint_state(cluster: &Cluster) -> Value {
    cluster
        .done(Method::GET, "/api/2.0/serving-endpoints/iris", None)
        .await
}

/// A cluster with a runtime, its image and a model.
pub(crate) async fn prepared() -> Cluster {
    let cluster = Cluster::start_with(|config| {
        let template = config.runtimes_dirs[0].join("mlflow.toml");
        std::fs::write(template, TEMPLATE).expect("writes");
    })
    .await;
    import_image(&cluster).await;
    let id = push_model(&cluster, b"weights").await;
    let path = "/api/stokehold/v1/models/iris/versions";
    cluster
        .done(Method::POST, path, Some(json!({"manifest": id})))
        .await;
    cluster
}

/// An OCI layout of one layer, pushed and registered.
async fn import_image(cluster: &Cluster) {
    use sha2::{Digest as _, Sha256};
    let sha = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
    let layer = b"a layer".to_vec();
    let config = json!({
        "os": "linux",
        "architecture": "amd64",
        "config": {"Env": ["PATH=/usr/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha(&layer))]},
    });
    let config = config.to_string().into_bytes();
    let blob = |media_type: &str, bytes: &[u8]| {
        json!({
            "mediaType": media_type,
            "digest": format!("sha256:{}", sha(bytes)),
            "size": bytes.len(),
        })
    };
    let manifest = json!({
        "schemaVersion": 2,
        "config": blob("application/vnd.oci.image.config.v1+json", &config),
        "layers": [blob("application/vnd.oci.image.layer.v1.tar", &layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    let index = json!({
        "schemaVersion": 2,
        "manifests": [blob("application/vnd.oci.image.manifest.v1+json", &manifest)],
    });
    let mut files = vec![
        ("index.json".to_owned(), index.to_string().into_bytes()),
        (
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ),
    ];
    for bytes in [layer, config, manifest] {
        files.push((format!("blobs/sha256/{}", sha(&bytes)), bytes));
    }
    let description = shared::manifest::Description {
        kind: shared::manifest::Kind::Image,
        ..Default::default()
    };
    let id = push_files(cluster, files, description).await;
    let body = json!({"reference": "example:1", "manifest": id});
    let path = "/api/stokehold/v1/images";
    let image = cluster.done(Method::POST, path, Some(body)).await;
    assert_eq!(image["layers"], 1, "{image}");
}

pub(crate) async fn deployed(cluster: &Cluster) -> (Membership, Node) {
    let body = json!({
        "name": "iris",
        "config": {"served_entities": [{"entity_name": "iris", "entity_version": 1}]},
    });
    let path = "/api/2.0/serving-endpoints/";
    let created = cluster.done(Method::POST, path, Some(body)).await;
    assert_eq!(created["state"]["config_update"], "IN_PROGRESS");
    assert_eq!(created["permission_level"], "CAN_MANAGE");
    let membership = Membership::of(cluster, "n1").await;
    let node = Node::start(cluster, &membership, None).await;
    eventually("the endpoint becomes ready", async || {
        let state = endpoint_state(cluster).await;
        (state["state"]["ready"] == "READY").then_some(())
    })
    .await;
    eventually("the gateway gets routes to the replica", async || {
        let seen = node.seen.lock().expect("no panic");
        (ready_replicas(seen.routes.as_ref()).0 == 1).then_some(())
    })
    .await;
    (membership, node)
}

#[tokio::test]
async fn an_endpoint_is_deployed_to_a_node_and_a_restart_moves_nothing() {
    let cluster = prepared().await;
    let (membership, node) = deployed(&cluster).await;
    let before = node.crash().await.expect("a plan");
    let replica = before.replicas[0].id.clone();
    let cluster = cluster.restart().await;
    let state = endpoint_state(&cluster).await;
    assert_eq!(
        state["config"]["served_entities"][0]["name"], "iris-1",
        "{state}"
    );
    let node = Node::start(&cluster, &membership, Some(before.clone())).await;
    let after = eventually("a plan of the new epoch", async || {
        let seen = node.seen.lock().expect("no panic");
        seen.plan.clone().filter(|plan| plan.epoch > before.epoch)
    })
    .await;
    assert_eq!(after.replicas.len(), 1);
    assert_eq!(after.replicas[0].id, replica);
    eventually("routes that name it", async || {
        let seen = node.seen.lock().expect("no panic");
        (ready_replicas(seen.routes.as_ref()).0 == 1).then_some(())
    })
    .await;

    let in_use = ["models/iris?version=1", "images?reference=example:1"];
    for path in in_use {
        let path = format!("/api/stokehold/v1/{path}");
        let (status, body) = cluster
            .call(&cluster.admin, Method::DELETE, &path, None)
            .await;
        assert_eq!(status, StatusCode::CONFLICT, "{body}");
    }
    let path = "/api/2.0/serving-endpoints/iris";
    assert_eq!(cluster.done(Method::DELETE, path, None).await, json!({}));
    eventually("the replica leaves the plan", async || {
        let seen = node.seen.lock().expect("no panic");
        seen.plan
            .as_ref()
            .filter(|plan| plan.replicas.is_empty())
            .map(drop)
    })
    .await;
}

#[tokio::test]
async fn a_deployment_is_told_step_by_step_and_stays_readable_after_its_end() {
    let cluster = prepared().await;
    let (_membership, node) = deployed(&cluster).await;
    let events = async |query: &str| {
        let path = format!("/api/stokehold/v1/events?endpoint=iris{query}");
        let list = cluster.done(Method::GET, &path, None).await;
        list["events"].as_array().expect("a list").clone()
    };
    let kinds = |events: &[Value]| -> Vec<String> {
        let kinds = events.iter().map(|event| event["kind"].as_str());
        kinds.map(|kind| kind.expect("a text").to_owned()).collect()
    };
    let told = eventually("all of it is told", async || {
        let told = events("").await;
        kinds(&told)
            .contains(&"RolloutDone".to_owned())
            .then_some(told)
    })
    .await;
    let expected = [
        "EndpointCreated",
        "RolloutStarted",
        // No node has joined yet.
        "NoRoom",
        "ReplicaPlaced",
    ];
    assert_eq!(kinds(&told)[..4], expected, "{told:#?}");
    let times: Vec<u64> = told
        .iter()
        .map(|it| it["unix_ms"].as_u64().expect("a number"))
        .collect();
    assert!(times.is_sorted(), "{times:?}");
    let ready = told.iter().find(|event| event["kind"] == "ReplicaReady");
    let ready = ready.expect("told");
    assert_eq!(
        (&ready["node"], &ready["entity"]),
        (&json!("n1"), &json!("iris-1"))
    );
    let cause = ready["cause"].as_str().expect("a text");
    assert!(cause.contains("answers its probes"), "{cause}");
    let path = "/api/stokehold/v1/endpoints/iris";
    let described = cluster.done(Method::GET, path, None).await;
    let shown = described["events"].as_array().expect("a list");
    assert_eq!(shown.last(), told.last(), "describe ends with them");

    let path = "/api/2.0/serving-endpoints/iris";
    cluster.done(Method::DELETE, path, None).await;
    let end = eventually("its end is told", async || {
        let told = events("&limit=3").await;
        kinds(&told)
            .contains(&"ReplicaStopped".to_owned())
            .then_some(told)
    })
    .await;
    assert_eq!(
        kinds(&end),
        ["EndpointDeleted", "ReplicaDraining", "ReplicaStopped"]
    );
    assert_eq!(end[1]["cause"], "no config asks for it any more");
    node.crash().await;
}

#[tokio::test]
async fn logs_come_from_the_gateway_of_the_replicas_node() {
    let cluster = prepared().await;
    let (_membership, node) = deployed(&cluster).await;
    let path = "/api/2.0/serving-endpoints/iris/served-models/iris-1/logs";
    let logs = cluster.done(Method::GET, path, None).await;
    let logs = logs["logs"].as_str().expect("a text");
    let (first, second) = logs.split_once('\n').expect("two lines");
    assert!(
        first.ends_with("first") && second.trim_end().ends_with("second"),
        "{logs}"
    );

    let url = cluster.url("/api/stokehold/v1/endpoints/iris/logs?follow=true");
    let request = cluster.client.get(url).bearer_auth(&cluster.admin);
    let mut answer = request.send().await.expect("answers");
    assert_eq!(answer.headers()["content-type"], "application/x-ndjson");
    let chunk = answer.chunk().await.expect("a line").expect("not the end");
    let text = String::from_utf8(chunk.to_vec()).expect("text");
    let first: Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
    assert_eq!(first["s"], "stdout", "{first}");
    assert!(first["replica"].is_string());
    drop(answer);
    eventually(
        "the gateway is told that nobody reads any more",
        async || (node.seen.lock().expect("no panic").stopped_logs == 1).then_some(()),
    )
    .await;

    node.crash().await;
    eventually("a log that is out of reach says so", async || {
        let path = "/api/2.0/serving-endpoints/iris/served-models/iris-1/logs";
        let logs = cluster.done(Method::GET, path, None).await;
        let text = logs["logs"].as_str().expect("a text");
        text.contains("is not connected").then_some(())
    })
    .await;
}
