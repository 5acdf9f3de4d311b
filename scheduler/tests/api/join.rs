use std::time::Duration;

use daemon::ca::CertificateAuthority;
use daemon::identity::{Identity, Subject, new_request};
use daemon::join::{JoinError, join};
use daemon::scheduler_call::CallError;
use reqwest::{Method, StatusCode};
use serde_json::json;
use shared::ids::{ClusterId, NodeName, Role};
use shared::token::JoinToken;

use crate::cluster::{Cluster, client_of};

async fn refusal(cluster: &Cluster, token: &JoinToken, role: Role, node: &str) -> JoinError {
    let name = NodeName::parse(node).expect("valid");
    let pki = cluster.folder.path().join("refused");
    let refused = join(token, role, &name, &[], &pki).await;
    assert!(
        Identity::load(&pki).is_err(),
        "nothing is left of a refusal"
    );
    refused.expect_err("is refused")
}

fn code(error: JoinError) -> String {
    match error {
        JoinError::Call(CallError::Refused { code, .. }) => code,
        other => panic!("refused otherwise: {other}"),
    }
}

#[tokio::test]
async fn a_node_joins_once_for_each_role() {
    let cluster = Cluster::start().await;
    let token = cluster.join_token(json!({})).await;
    let agent = cluster.joined(&token, Role::Agent, "n1").await;
    assert_eq!(agent.subject.role, Role::Agent);
    assert_eq!(agent.subject.node.as_str(), "n1");
    let again = refusal(&cluster, &token, Role::Agent, "n1").await;
    assert_eq!(code(again), "PERMISSION_DENIED");
    let other = refusal(&cluster, &token, Role::Gateway, "n2").await;
    assert_eq!(code(other), "PERMISSION_DENIED");
    cluster.joined(&token, Role::Gateway, "n1").await;
    let path = "/api/stokehold/v1/node-tokens";
    let listed = cluster.done(Method::GET, path, None).await;
    assert_eq!(listed["tokens"][0]["redeemed"], json!(["agent", "gateway"]));
    assert_eq!(listed["tokens"][0]["node"], "n1");
}

#[tokio::test]
async fn a_wrong_token_admits_nobody() {
    let cluster = Cluster::start().await;
    let token = cluster.join_token(json!({"roles": ["agent"]})).await;
    let role = refusal(&cluster, &token, Role::Gateway, "n1").await;
    assert_eq!(code(role), "PERMISSION_DENIED");
    let mut wrong = token.clone();
    wrong.secret = "00".repeat(32);
    let secret = refusal(&cluster, &wrong, Role::Agent, "n1").await;
    assert_eq!(code(secret), "UNAUTHENTICATED");
    let mut pinned = token.clone();
    pinned.ca_sha256 = "0".repeat(64);
    let other = refusal(&cluster, &pinned, Role::Agent, "n1").await;
    assert!(
        matches!(other, JoinError::Call(CallError::OtherAuthority { .. })),
        "{other}"
    );
    let path = format!("/api/stokehold/v1/node-tokens/{}", token.id);
    cluster.done(Method::DELETE, &path, None).await;
    let deleted = refusal(&cluster, &token, Role::Agent, "n1").await;
    assert_eq!(code(deleted), "UNAUTHENTICATED");
}

#[tokio::test]
async fn an_expired_token_says_so() {
    let cluster = Cluster::start().await;
    let token = cluster.join_token(json!({"lifetime_seconds": 1})).await;
    // The scheduler's own clock decides, and it cannot be set from here.
    let refused = loop {
        // A role that the token never admits tells whether it has expired and does not use it up.
        let refused = refusal(&cluster, &token, Role::Scheduler, "n1").await;
        match refused {
            JoinError::Call(CallError::Refused { message, .. }) if message.contains("expired") => {
                break message;
            }
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    assert!(refused.contains("stokehold node token"), "{refused}");
}

#[tokio::test]
async fn a_request_that_cannot_be_signed_does_not_use_the_token_up() {
    let cluster = Cluster::start().await;
    let token = cluster.join_token(json!({})).await;
    let mut body = json!({
        "token_id": token.id,
        "secret": token.secret,
        "role": "gateway",
        "node": "n1",
        "csr_pem": daemon::identity::new_request().csr_pem,
        "names": ["evil.agent.stokehold.internal"],
    });
    let path = "/api/stokehold/v1/join";
    let (status, error) = cluster
        .call("", Method::POST, path, Some(body.clone()))
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{error}");
    assert!(
        error["message"]
            .as_str()
            .expect("a text")
            .starts_with("names:"),
        "{error}"
    );
    body["names"] = json!(["gateway.example"]);
    body["csr_pem"] = json!("nonsense");
    let (status, error) = cluster.call("", Method::POST, path, Some(body)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{error}");
    cluster.joined(&token, Role::Gateway, "n1").await;
}

#[tokio::test]
async fn an_operators_certificate_serves_people_and_does_not_keep_nodes_out() {
    let folder = tempfile::tempdir().expect("folder");
    let (certificate, key) = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    let operator = CertificateAuthority::create(&ClusterId::from_bits(7));
    let request = new_request();
    let subject = Subject {
        cluster: ClusterId::from_bits(7),
        role: Role::Scheduler,
        node: NodeName::parse("front").expect("valid"),
    };
    let day = Duration::from_secs(86_400);
    let signed = operator.sign(&request.csr_pem, &subject, &["localhost".to_owned()], day);
    std::fs::write(&certificate, signed.expect("signs")).expect("writes");
    std::fs::write(&key, request.key_pem).expect("writes");
    let cluster = Cluster::start_with(|config| {
        config.tls.certificate = Some(certificate);
        config.tls.key = Some(key);
    })
    .await;
    let client = client_of(std::slice::from_ref(operator.certificate()));
    let url = format!("https://localhost:{}/healthz", cluster.http.port());
    let answer = client
        .get(url)
        .send()
        .await
        .expect("the operator's certificate");
    assert_eq!(answer.status(), StatusCode::OK);
    let client = client
        .post(format!(
            "https://localhost:{}/api/stokehold/v1/node-tokens",
            cluster.http.port()
        ))
        .bearer_auth(&cluster.admin)
        .json(&json!({}));
    let created: serde_json::Value = client
        .send()
        .await
        .expect("answers")
        .json()
        .await
        .expect("JSON");
    let token = JoinToken::decode(created["token"].as_str().expect("a text")).expect("decodes");
    cluster.joined(&token, Role::Agent, "n1").await;
}
