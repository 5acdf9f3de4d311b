use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::cluster::Cluster;

#[tokio::test]
async fn a_call_without_a_known_token_is_unauthenticated_and_says_how() {
    let cluster = Cluster::start().await;
    let path = "/api/2.0/serving-endpoints";
    for token in ["", "shk_0000000000000001_x", "nonsense"] {
        let (status, body) = cluster.call(token, Method::GET, path, None).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{token:?}");
        assert_eq!(body["error_code"], "UNAUTHENTICATED");
    }
    let refused = cluster.client.get(cluster.url(path)).send().await;
    let refused = refused.expect("answers");
    assert_eq!(refused.headers()["www-authenticate"], "Bearer");
    for open in ["/healthz", "/.well-known/databricks-config"] {
        let (status, _) = cluster.call("", Method::GET, open, None).await;
        assert_eq!(status, StatusCode::OK, "{open}");
    }
}

#[tokio::test]
async fn a_refusal_does_not_overtake_the_body_that_it_did_not_need() {
    let cluster = Cluster::start().await;
    let url = cluster.url("/api/2.0/serving-endpoints");
    for _ in 0..20 {
        let request = cluster.client.post(&url).body(vec![b' '; 3 << 20]);
        let refused = request
            .send()
            .await
            .expect("an answer, not a broken stream");
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test]
async fn tags_are_told_to_a_patch_that_changes_none() {
    let cluster = Cluster::start().await;
    let made = json!({"name": "e", "tags": [{"key": "team", "value": "a"}, {"key": "bare"}]});
    let endpoints = "/api/2.0/serving-endpoints";
    let admin = cluster.admin.clone();
    let (status, body) = cluster
        .call(&admin, Method::POST, endpoints, Some(made))
        .await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let tags = json!({"tags": [{"key": "team", "value": "a"}, {"key": "bare", "value": ""}]});
    let path = format!("{endpoints}/e/tags");
    for unchanging in [None, Some(json!({})), Some(json!({"add_tags": []}))] {
        let (status, body) = cluster.call(&admin, Method::PATCH, &path, unchanging).await;
        assert_eq!((status, body), (StatusCode::OK, tags.clone()));
    }
    let change = json!({"add_tags": [{"key": "new"}]});
    let (status, body) = cluster
        .call(&admin, Method::PATCH, &path, Some(change))
        .await;
    assert_eq!(status, StatusCode::NOT_IMPLEMENTED);
    assert_eq!(body["error_code"], "NOT_IMPLEMENTED");
    let unknown = format!("{endpoints}/nope/tags");
    let (status, _) = cluster.call(&admin, Method::PATCH, &unknown, None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn each_route_needs_its_role() {
    let cluster = Cluster::start().await;
    let query = cluster.token("viewer", "query").await;
    let manage = cluster.token("ci", "manage").await;
    let ours = |rest: &str| format!("/api/stokehold/v1/{rest}");
    let allowed_to_query = [
        (Method::GET, "/api/2.0/serving-endpoints".to_owned()),
        (Method::GET, "/api/2.0/serving-endpoints/".to_owned()),
        (Method::GET, "/api/2.0/preview/scim/v2/Me".to_owned()),
        (Method::GET, ours("version")),
        (Method::GET, ours("whoami")),
        (Method::GET, ours("models")),
        (Method::GET, ours("images")),
        (Method::GET, ours("nodes")),
    ];
    for (method, path) in allowed_to_query {
        let (status, body) = cluster.call(&query, method, &path, None).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
    }
    let for_managers = [
        (Method::POST, "/api/2.0/serving-endpoints".to_owned()),
        (Method::DELETE, "/api/2.0/serving-endpoints/e".to_owned()),
        (
            Method::PUT,
            "/api/2.0/serving-endpoints/e/config".to_owned(),
        ),
        (
            Method::GET,
            "/api/2.0/serving-endpoints/e/served-models/m/logs".to_owned(),
        ),
        (Method::GET, ours("endpoints/e/logs")),
        (Method::POST, ours("chunks/missing")),
        (Method::PUT, ours(&format!("chunks/{}", "0".repeat(64)))),
        (Method::POST, ours("manifests")),
        (Method::POST, ours("models/iris/versions")),
        (Method::PUT, ours("models/iris/aliases/prod")),
        (Method::DELETE, ours("models/iris?version=1")),
        (Method::POST, ours("images")),
        (Method::DELETE, ours("images?reference=x")),
    ];
    let for_admins = [
        (Method::GET, ours("tokens")),
        (Method::POST, ours("tokens")),
        (Method::DELETE, ours("tokens/0000000000000001")),
        (Method::GET, ours("node-tokens")),
        (Method::POST, ours("node-tokens")),
        (Method::DELETE, ours("node-tokens/0000000000000001")),
        (Method::POST, ours("nodes/n1/revoke")),
    ];
    for (method, path) in for_managers.iter().chain(&for_admins) {
        let (status, body) = cluster.call(&query, method.clone(), path, None).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path}: {body}");
        assert_eq!(body["error_code"], "PERMISSION_DENIED");
    }
    for (method, path) in for_admins {
        let (status, _) = cluster.call(&manage, method.clone(), &path, None).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path}");
    }
}

#[tokio::test]
async fn a_token_works_until_it_is_deleted_and_names_its_caller() {
    let cluster = Cluster::start().await;
    let token = cluster.token("ci", "manage").await;
    let whoami = "/api/stokehold/v1/whoami";
    let (_, me) = cluster.call(&token, Method::GET, whoami, None).await;
    assert_eq!((&me["name"], &me["role"]), (&json!("ci"), &json!("manage")));
    let listed = cluster
        .done(Method::GET, "/api/stokehold/v1/tokens", None)
        .await;
    assert_eq!(listed["tokens"].as_array().expect("a list").len(), 2);
    let text = listed.to_string();
    assert!(!text.contains(&token) && !text.contains("hash"), "{text}");
    let path = format!(
        "/api/stokehold/v1/tokens/{}",
        me["id"].as_str().expect("an id")
    );
    assert_eq!(cluster.done(Method::DELETE, &path, None).await, json!({}));
    let (status, _) = cluster.call(&token, Method::GET, whoami, None).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said_in_json() {
    let cluster = Cluster::start().await;
    let admin = &cluster.admin;
    let cases = [
        (Method::GET, "/nowhere", None, 404, "ENDPOINT_NOT_FOUND"),
        (
            Method::GET,
            "/api/2.0/serving-endpoints/none",
            None,
            404,
            "RESOURCE_DOES_NOT_EXIST",
        ),
        (
            Method::PUT,
            "/api/2.0/serving-endpoints/e/rate-limits",
            Some(json!({"rate_limits": []})),
            501,
            "NOT_IMPLEMENTED",
        ),
        (
            Method::GET,
            "/api/2.0/serving-endpoints/e/metrics",
            None,
            501,
            "NOT_IMPLEMENTED",
        ),
        (
            Method::POST,
            "/api/stokehold/v1/version",
            None,
            405,
            "ENDPOINT_NOT_FOUND",
        ),
        (
            Method::DELETE,
            "/api/stokehold/v1/models/iris",
            None,
            400,
            "INVALID_PARAMETER_VALUE",
        ),
        (
            Method::GET,
            "/api/stokehold/v1/models/a%20b",
            None,
            400,
            "INVALID_PARAMETER_VALUE",
        ),
        (
            Method::POST,
            "/api/stokehold/v1/tokens",
            Some(json!({"name": "x", "role": "king"})),
            400,
            "INVALID_PARAMETER_VALUE",
        ),
        (
            Method::POST,
            "/api/stokehold/v1/tokens",
            Some(json!({"name": "x", "role": "query", "colour": 1})),
            400,
            "INVALID_PARAMETER_VALUE",
        ),
        (
            Method::POST,
            "/api/stokehold/v1/node-tokens",
            Some(json!({"roles": ["scheduler"]})),
            400,
            "INVALID_PARAMETER_VALUE",
        ),
        (
            Method::POST,
            "/api/2.0/serving-endpoints",
            Some(json!([[[[[[[[[[[[]]]]]]]]]]]])),
            400,
            "INVALID_PARAMETER_VALUE",
        ),
    ];
    for (method, path, body, status, code) in cases {
        let (answered, error) = cluster.call(admin, method, path, body).await;
        assert_eq!(answered.as_u16(), status, "{path}: {error}");
        assert_eq!(error["error_code"], code, "{path}");
        let message = error["message"].as_str().expect("a text");
        assert!(!message.is_empty(), "{path}");
    }
    let url = cluster.url("/api/stokehold/v1/tokens");
    let sent = cluster
        .client
        .post(url)
        .bearer_auth(admin)
        .body("x".repeat(2 << 20));
    let answer = sent.send().await.expect("answers");
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
}
