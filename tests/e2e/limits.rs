//! The limit is the replica's; the queue is bounded; what cannot be served is refused in words.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Cluster, Load, eventually};

#[test]
fn a_replica_never_sees_more_than_target_concurrency_and_a_client_that_leaves_frees_its_slot() {
    let cluster = Cluster::start();
    let one = [
        "--min-replicas",
        "1",
        "--max-replicas",
        "1",
        "--target-concurrency",
        "2",
    ];
    cluster.deploy_probe("narrow", &json!({"service_ms": 20}), &one);
    let url = cluster.invocations("narrow");
    let load = Load::start(&cluster, &url, json!({"inputs": [[1]]}), 12, Duration::ZERO);
    load.wait_for(200);
    let (sent, failures) = load.finish(&cluster);
    assert!(failures.is_empty(), "of {sent}: {failures:?}");
    let seen = cluster.query("narrow", &json!({"inputs": [[1]]})).json();
    assert_eq!(seen["probe"]["max_in_flight"], 2);

    // Two requests that would hang for ever take both slots; their clients give up.
    let (client, token) = (cluster.client(), cluster.token());
    let hang = json!({"inputs": [[1]], "params": {"hang": true}});
    cluster.runtime.block_on(async {
        let hung = (0..2).map(|_| {
            let request = client.post(&url).bearer_auth(&token).json(&hang);
            tokio::time::timeout(Duration::from_millis(500), request.send())
        });
        for ended in futures_join(hung).await {
            assert!(ended.is_err(), "the request was answered");
        }
    });
    let next = cluster.query("narrow", &json!({"inputs": [[5]]}));
    assert_eq!(next.status, 200, "{}", String::from_utf8_lossy(&next.body));
    cluster.finish();
}

async fn futures_join<F>(futures: impl Iterator<Item = F>) -> Vec<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    let tasks: Vec<_> = futures.map(tokio::spawn).collect();
    let mut outputs = Vec::new();
    for task in tasks {
        outputs.push(task.await.expect("joined"));
    }
    outputs
}

#[test]
fn an_endpoint_at_zero_wakes_for_the_first_request_and_more_load_brings_more_replicas() {
    let cluster = Cluster::start();
    let zero = [
        "--scale-to-zero",
        "--max-replicas",
        "2",
        "--target-concurrency",
        "1",
    ];
    cluster.deploy_probe("sleeper", &json!({"service_ms": 50}), &zero);
    let first = cluster.query("sleeper", &json!({"inputs": [[1, 2, 3]]}));
    assert_eq!(
        first.status,
        200,
        "{}",
        String::from_utf8_lossy(&first.body)
    );
    assert_eq!(first.json()["predictions"], json!([6.0]));
    let url = cluster.invocations("sleeper");
    let load = Load::start(&cluster, &url, json!({"inputs": [[1]]}), 6, Duration::ZERO);
    eventually("a second replica serves", || {
        let described = cluster.describe("sleeper");
        let all = described["replicas"].as_array()?.clone();
        (all.iter().filter(|r| r["state"] == "ready").count() == 2).then_some(())
    });
    let (sent, failures) = load.finish(&cluster);
    assert!(failures.is_empty(), "of {sent}: {failures:?}");
    cluster.finish();
}

#[test]
fn refusals_say_what_where_and_how_to_mend_it() {
    let cluster = Cluster::start();
    cluster.import_probe_image();
    let model = cluster.push_probe("plain", "1", &json!({}));
    let message = |answer: &crate::harness::Answer| {
        answer.json()["message"]
            .as_str()
            .expect("message")
            .to_owned()
    };

    let unknown = cluster.query("nobody", &json!({}));
    assert_eq!(
        (unknown.status, unknown.json()["error_code"].as_str()),
        (404, Some("RESOURCE_DOES_NOT_EXIST"))
    );
    assert!(message(&unknown).contains("nobody"));

    let create = format!("{}/api/2.0/serving-endpoints", cluster.gateway());
    let entity = |extra: Value| {
        let mut entity = json!({"entity_name": "plain", "entity_version": 1,
            "workload_size": "Small", "scale_to_zero_enabled": false,
            "stokehold": {"runtime": "probe"}});
        for (key, value) in extra.as_object().expect("object") {
            entity[key] = value.clone();
        }
        json!({"name": "plain", "config": {"served_entities": [entity]}})
    };
    for (extra, named) in [
        (json!({"workload_size": "Gigantic"}), "workload_size"),
        (json!({"workload_sise": "Small"}), "workload_sise"),
        (json!({"entity_version": 9}), "no version 9"),
        (json!({"external_model": {"name": "x"}}), "external_model"),
        (json!({"stokehold": {"runtime": "nonesuch"}}), "nonesuch"),
    ] {
        let refused = cluster.post(&create, &entity(extra));
        assert!(matches!(refused.status, 400 | 404), "{refused:?}");
        assert!(
            message(&refused).contains(named),
            "{named}: {}",
            message(&refused)
        );
    }
    let refused = cluster.try_cli(&[
        "deploy",
        "bad name",
        "--model",
        &model,
        "--runtime",
        "probe",
    ]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("bad name"));

    // No token, a wrong one, one that may only query.
    let bare = cluster.client().get(&create);
    let answer = cluster
        .runtime
        .block_on(async { bare.send().await })
        .expect("answer");
    assert_eq!(answer.status(), 401);
    assert!(answer.headers().contains_key("www-authenticate"));
    let made = cluster.cli_json(&["token", "create", "reader", "--role", "query"]);
    let reader = made["token"].as_str().expect("token").to_owned();
    let request = cluster
        .client()
        .post(&create)
        .bearer_auth(&reader)
        .json(&entity(json!({})));
    assert_eq!(
        cluster
            .runtime
            .block_on(async { request.send().await })
            .expect("answer")
            .status(),
        403
    );
    cluster.cli(&["token", "revoke", made["id"].as_str().expect("id")]);
    eventually("the revoked token is refused", || {
        let request = cluster.client().get(&create).bearer_auth(&reader);
        (cluster
            .runtime
            .block_on(async { request.send().await })
            .expect("answer")
            .status()
            == 401)
            .then_some(())
    });
    cluster.finish();
}

#[test]
fn a_body_is_streamed_to_the_replica_and_back_and_one_over_the_limit_is_refused() {
    let cluster = Cluster::start();
    cluster.deploy_probe("long", &json!({}), &["--target-concurrency", "1"]);
    let answer = cluster.base().join("answer");
    let body = cluster.base().join("body.json");
    let curl = |sent: &Value, more: &[&str]| {
        std::fs::write(&body, sent.to_string()).expect("body");
        let header = cluster.base().join("header");
        std::fs::write(
            &header,
            format!("Authorization: Bearer {}", cluster.token()),
        )
        .expect("header");
        let context = cluster.context();
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "60", "--cacert"])
            .arg(context["ca_file"].as_str().expect("ca_file"))
            .arg("--header")
            .arg(format!("@{}", header.display()))
            .args([
                "--header",
                "Content-Type: application/json",
                "--data-binary",
            ])
            .arg(format!("@{}", body.display()))
            .arg("--output")
            .arg(&answer)
            .args(["--write-out", "%{http_code}"])
            .args(more)
            .arg(cluster.invocations("long"))
            .output()
            .expect("curl runs");
        assert!(output.status.success(), "curl: {output:?}");
        (
            String::from_utf8(output.stdout).expect("a status"),
            std::fs::read(&answer).expect("answer"),
        )
    };
    // Asked first whether it may be sent, without a length, and by HTTP/2 frames.
    let long = json!({"inputs": [[1]], "padding": "x".repeat(8 << 20), "params": {"echo": true}});
    for sent_so in [
        ["--http1.1", "Expect: 100-continue"],
        ["--http1.1", "Transfer-Encoding: chunked"],
        ["--http2", "X-Nothing: special"],
    ] {
        let (protocol, header) = (sent_so[0], sent_so[1]);
        let (status, echoed) = curl(&long, &[protocol, "--header", header]);
        assert_eq!(status, "200", "{sent_so:?}");
        let echoed: Value = serde_json::from_slice(&echoed).expect("JSON");
        assert!(echoed["padding"] == long["padding"], "{sent_so:?}");
    }
    for protocol in ["--http1.1", "--http2"] {
        let larger = json!({"inputs": [[1]], "padding": "x".repeat(17 << 20)});
        let (status, refused) = curl(&larger, &[protocol]);
        assert_eq!(status, "413", "{protocol}");
        let refused: Value = serde_json::from_slice(&refused).expect("JSON");
        assert_eq!(refused["error_code"], "INVALID_PARAMETER_VALUE");
    }
    // The slot of a refused request is free again.
    let next = cluster.query("long", &json!({"inputs": [[1, 2]]}));
    assert_eq!(next.json()["predictions"], json!([3.0]));
    cluster.finish();
}

#[test]
fn curl_shows_every_refusal_in_full() {
    let cluster = Cluster::start();
    let context = cluster.context();
    let header = cluster.base().join("header");
    let token = format!("Authorization: Bearer {}", cluster.token());
    let text = |name: &str| context[name].as_str().expect("text").to_owned();
    let (gateway, server) = (text("gateway"), text("server"));
    let good = format!("{gateway}/serving-endpoints/nobody/invocations");
    let rest = format!("{gateway}/api/2.0/serving-endpoints");
    let at_server = format!("{server}/api/2.0/serving-endpoints");
    // A refusal needs no body; curl 7 over HTTP/2 loses it when the body is not read.
    for (line, url, status, code) in [
        (token.as_str(), &good, 404, "RESOURCE_DOES_NOT_EXIST"),
        ("X-No: token", &good, 401, "UNAUTHENTICATED"),
        ("X-No: token", &rest, 401, "UNAUTHENTICATED"),
        ("X-No: token", &at_server, 401, "UNAUTHENTICATED"),
    ] {
        std::fs::write(&header, line).expect("header");
        for protocol in ["--http1.1", "--http2"] {
            // Whether the answer or the body is first is a race.
            for _ in 0..10 {
                let output = Command::new("curl")
                    .args([protocol, "--silent", "--show-error", "--max-time", "30"])
                    .args([
                        "--cacert",
                        &text("ca_file"),
                        "--data",
                        "{\"inputs\": [[1]]}",
                    ])
                    .arg("--header")
                    .arg(format!("@{}", header.display()))
                    .args(["--write-out", "\n%{http_code}", url])
                    .output()
                    .expect("curl runs");
                assert!(output.status.success(), "{protocol} {url}: {output:?}");
                let said = String::from_utf8(output.stdout).expect("UTF-8");
                let (body, shown) = said.rsplit_once('\n').expect("a status");
                assert_eq!(shown, status.to_string(), "{protocol} {url}: {body}");
                let body: Value = serde_json::from_str(body).expect("JSON");
                assert_eq!(body["error_code"], code, "{protocol} {url}");
            }
        }
    }
    cluster.finish();
}

#[test]
fn a_container_that_takes_more_memory_than_it_may_is_killed_and_reported_as_such() {
    let mut cluster = Cluster::start();
    cluster.announce("out of memory");
    cluster.announce("killed for memory");
    cluster.deploy_probe("hungry", &json!({}), &["--memory", "64MiB"]);
    let before = cluster.replicas("hungry");
    let killed = cluster.query(
        "hungry",
        &json!({"inputs": [[1]], "params": {"alloc_mib": 256}}),
    );
    assert_eq!(
        killed.status,
        502,
        "{}",
        String::from_utf8_lossy(&killed.body)
    );
    let reason = eventually("the end of the replica is known", || {
        let described = cluster.describe("hungry");
        let all = described["replicas"].as_array()?.clone();
        let dead = all
            .iter()
            .find(|r| r["id"] == before[0].as_str() && r["ended"] == true)?;
        dead["reason"].as_str().map(str::to_owned)
    });
    assert!(reason.contains("killed for memory"), "{reason}");
    // Nobody else was harmed, and another replica takes its place.
    let next = cluster.query("hungry", &json!({"inputs": [[1, 1]]}));
    assert_eq!(next.status, 200, "{}", String::from_utf8_lossy(&next.body));
    assert_ne!(cluster.replicas("hungry"), before);
    cluster.finish();
}
