//! The autoscaler's state and series, as the API tells them. Every answer is checked against the
//! OpenAPI document by the way.

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::rollout::{deployed, eventually, prepared};

const ENDPOINT: &str = "/api/stokehold/v1/endpoints/iris";

#[tokio::test]
async fn an_endpoint_explains_itself_and_gives_its_series() {
    let cluster = prepared().await;
    let (_membership, node) = deployed(&cluster).await;
    let explained = eventually("a second was measured", async || {
        let path = format!("{ENDPOINT}/explain?entity=iris-1");
        let explained = cluster.done(Method::GET, &path, None).await;
        (!explained["entities"][0]["now"].is_null()).then_some(explained)
    })
    .await;
    let entity = &explained["entities"][0];
    assert_eq!(entity["entity"], "iris-1");
    assert_eq!(
        (&entity["ready_replicas"], &entity["desired_replicas"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(entity["targets"][0]["origin"], "guess");
    assert_eq!(entity["now"]["cpu"], json!(null), "no agent measured it");
    let decided = eventually("a decision was due", async || {
        let path = format!("{ENDPOINT}/explain");
        let explained = cluster.done(Method::GET, &path, None).await;
        explained["entities"][0]["horizontal"].get(0).cloned()
    })
    .await;
    for part in ["rule", "because", "would_change"] {
        let text = decided[part].as_str().expect("a text");
        assert!(!text.is_empty(), "{part}: {decided}");
    }

    let path = format!("{ENDPOINT}/series?resolution=1s");
    let series = cluster.done(Method::GET, &path, None).await;
    assert_eq!(
        (&series["entity"], &series["resolution_s"]),
        (&json!("iris-1"), &json!(1))
    );
    let points = series["points"].as_array().expect("a list");
    assert_eq!(points.last().expect("measured")["replicas_ready"], 1);
    let last = points.last().expect("measured")["unix_ms"]
        .as_u64()
        .expect("a time");
    let path = format!("{path}&since={last}");
    let newer = cluster.done(Method::GET, &path, None).await;
    assert!(
        newer["points"].as_array().expect("a list").len() <= 2,
        "{newer}"
    );

    let described = cluster.done(Method::GET, ENDPOINT, None).await;
    assert_eq!(described["decisions"][0]["target_origin"], "guess");
    node.crash().await;
}

#[tokio::test]
async fn a_question_about_what_is_not_there_says_so() {
    let cluster = prepared().await;
    let refused = [
        ("nobody/explain", StatusCode::NOT_FOUND, "nobody"),
        ("nobody/series", StatusCode::NOT_FOUND, "nobody"),
        ("iris/explain?entity=x", StatusCode::NOT_FOUND, "\"x\""),
        ("iris/series", StatusCode::NOT_FOUND, "does not serve yet"),
        (
            "iris/series?resolution=2s",
            StatusCode::BAD_REQUEST,
            "1s, 10s or 1m",
        ),
        ("iris/series?since=noon", StatusCode::BAD_REQUEST, "query: "),
    ];
    let body = json!({"name": "iris"});
    let path = "/api/2.0/serving-endpoints";
    cluster.done(Method::POST, path, Some(body)).await;
    for (rest, status, expected) in refused {
        let path = format!("/api/stokehold/v1/endpoints/{rest}");
        let (answered, body) = cluster.call(&cluster.admin, Method::GET, &path, None).await;
        assert_eq!(answered, status, "{path}: {body}");
        let message = body["message"].as_str().expect("a text");
        assert!(message.contains(expected), "{path}: {message}");
    }
}

#[tokio::test]
async fn a_placed_replica_is_a_claim_on_the_warm_pool_of_its_runtime() {
    let cluster = prepared().await;
    let (_membership, _node) = deployed(&cluster).await;
    let path = "/api/stokehold/v1/pools";
    let pools = cluster.done(Method::GET, path, None).await;
    let pool = &pools["pools"][0];
    assert_eq!(
        (&pool["class"], &pool["claims"], &pool["nodes"]),
        (&json!("cpu"), &json!(1), &json!(1)),
        "{pools}"
    );
    assert_eq!(pool["decisions"], json!([]), "the first minute is not over");
}
