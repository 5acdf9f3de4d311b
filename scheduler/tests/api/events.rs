//! Events over the REST API: listed, followed, kept over a restart.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::models::push_model;

const PATH: &str = "/api/stokehold/v1/events";
const PATIENCE: Duration = Duration::from_secs(30);

async fn listed(cluster: &Cluster, query: &str) -> Value {
    let path = format!("{PATH}?{query}");
    cluster.done(Method::GET, &path, None).await
}

/// The kinds of what is listed, once there are at least so many: events are shown when they are on
/// disk, which takes up to a second.
async fn kinds(cluster: &Cluster, query: &str, at_least: usize) -> Vec<String> {
    let begun = std::time::Instant::now();
    loop {
        let list = listed(cluster, query).await;
        let events = list["events"].as_array().expect("a list");
        if events.len() >= at_least {
            let kinds = events.iter().map(|event| event["kind"].as_str());
            return kinds.map(|kind| kind.expect("a text").to_owned()).collect();
        }
        assert!(begun.elapsed() < PATIENCE, "{at_least} events: {list}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn register(cluster: &Cluster, contents: &[u8]) {
    let id = push_model(cluster, contents).await;
    let path = "/api/stokehold/v1/models/iris/versions";
    let body = json!({"manifest": id});
    cluster.done(Method::POST, path, Some(body)).await;
}

#[tokio::test]
async fn what_was_done_is_told_with_its_cause_and_stays_over_a_restart() {
    let cluster = Cluster::start().await;
    register(&cluster, b"weights").await;
    // The same contents again are the same version: nothing happened.
    register(&cluster, b"weights").await;
    let alias = "/api/stokehold/v1/models/iris/aliases/prod";
    let body = json!({"version": 1});
    cluster.done(Method::PUT, alias, Some(body)).await;
    let token = cluster.join_token(json!({})).await;
    cluster.joined(&token, shared::ids::Role::Agent, "n1").await;
    let revoke = "/api/stokehold/v1/nodes/n1/revoke";
    cluster.done(Method::POST, revoke, None).await;
    cluster.done(Method::POST, revoke, None).await;
    let expected = [
        "SchedulerStarted",
        "ModelPushed",
        "ModelAliased",
        "NodeJoined",
        "NodeRevoked",
    ];
    assert_eq!(kinds(&cluster, "", 5).await, expected);
    let list = listed(&cluster, "warnings=true").await;
    assert_eq!(list["events"].as_array().map(Vec::len), Some(1), "{list}");
    let revoked = &list["events"][0];
    assert_eq!(revoked["severity"], "warning");
    assert_eq!(revoked["node"], "n1");
    assert_eq!(revoked["cause"], "asked for by token admin");
    let of_node = kinds(&cluster, "node=n1", 2).await;
    assert_eq!(of_node, ["NodeJoined", "NodeRevoked"]);
    let described = cluster.done(Method::GET, "/api/stokehold/v1/nodes/n1", None);
    let described = described.await;
    assert_eq!(described["node"]["state"], "revoked", "{described}");
    assert_eq!(described["events"].as_array().map(Vec::len), Some(2));

    let before = listed(&cluster, "").await;
    let cluster = cluster.restart().await;
    let kinds = kinds(&cluster, "", 6).await;
    assert_eq!(kinds[..5], expected);
    assert_eq!(kinds[5..], ["SchedulerStarted"], "a restart is one event");
    let after = listed(&cluster, "").await;
    let (before, after) = (&before["events"], &after["events"]);
    assert_eq!(before[4], after[4], "kept as they were");
    let seq = |event: &Value| event["seq"].as_u64().expect("a number");
    assert_eq!(seq(&after[5]), seq(&after[4]) + 1);
}

#[tokio::test]
async fn a_list_can_be_read_page_by_page() {
    let cluster = Cluster::start().await;
    for contents in [b"one".as_slice(), b"two", b"three"] {
        register(&cluster, contents).await;
    }
    kinds(&cluster, "", 4).await;
    let newest = listed(&cluster, "limit=1").await;
    assert_eq!(newest["events"][0]["model"], "iris/3");
    let mut since = 0;
    let mut models = Vec::new();
    for _ in 0..4 {
        let page = listed(&cluster, &format!("since={since}&limit=1")).await;
        let events = page["events"].as_array().expect("a list");
        assert_eq!(events.len(), 1, "{page}");
        models.push(events[0]["model"].clone());
        since = page["last_seq"].as_u64().expect("a number");
        assert!(page.get("missed").is_none(), "{page}");
    }
    assert_eq!(
        models,
        [
            Value::Null,
            "iris/1".into(),
            "iris/2".into(),
            "iris/3".into()
        ]
    );
    let end = listed(&cluster, &format!("since={since}")).await;
    assert_eq!(end["events"], json!([]));
    // As after a store was restored from an older copy.
    let ahead = listed(&cluster, "since=1000").await;
    assert_eq!(
        ahead["missed"],
        json!({"after_seq": 1000, "up_to_seq": since})
    );
}

#[tokio::test]
async fn who_follows_gets_what_was_and_then_what_comes() {
    let cluster = Cluster::start().await;
    kinds(&cluster, "", 1).await;
    let token = cluster.token("reader", "query").await;
    let url = cluster.url(&format!("{PATH}?follow=true"));
    let answer = cluster.client.get(url).bearer_auth(&token).send().await;
    let mut answer = answer.expect("answers");
    assert_eq!(answer.headers()["content-type"], "application/x-ndjson");
    let mut next = async || {
        let chunk = tokio::time::timeout(PATIENCE, answer.chunk()).await;
        let chunk = chunk
            .expect("in time")
            .expect("a line")
            .expect("not the end");
        serde_json::from_slice::<Value>(&chunk).expect("one event a line")
    };
    assert_eq!(next().await["kind"], "SchedulerStarted");
    register(&cluster, b"weights").await;
    let pushed = next().await;
    assert_eq!(pushed["kind"], "ModelPushed");
    assert_eq!(pushed["cause"], "pushed by token admin");
    register(&cluster, b"other weights").await;
    assert_eq!(next().await["model"], "iris/2");
    cluster.stop().await;
}

#[tokio::test]
async fn a_name_that_nobody_knows_and_a_wrong_parameter_are_refused() {
    let cluster = Cluster::start().await;
    let table = [
        (
            "endpoint=none",
            StatusCode::NOT_FOUND,
            "endpoint none does not exist",
        ),
        (
            "node=none",
            StatusCode::NOT_FOUND,
            "node none does not exist",
        ),
        ("endpoint=a%20b", StatusCode::BAD_REQUEST, "endpoint:"),
        ("since=x", StatusCode::BAD_REQUEST, "since"),
    ];
    for (query, expected, named) in table {
        let path = format!("{PATH}?{query}");
        let (status, body) = cluster.call(&cluster.admin, Method::GET, &path, None).await;
        assert_eq!(status, expected, "{query}: {body}");
        let message = body["message"].as_str().expect("a text");
        assert!(message.contains(named), "{message}");
    }
    let (status, _) = cluster.call("", Method::GET, PATH, None).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}
