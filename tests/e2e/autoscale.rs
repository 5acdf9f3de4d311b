//! Both axes on a real system: a model that nobody tuned, whose knee lies at six requests at once.

use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use crate::harness::{Cluster, Load};

const ENDPOINT: &str = "knee";
/// Up to this many requests at once a replica takes each in `SERVICE_MS`; beyond, each takes longer in
/// proportion.
const KNEE: u64 = 6;
const SERVICE_MS: u64 = 50;
const BODY: &str = r#"{"inputs": [[1, 2]]}"#;

/// From the first request to a target that is right.
const LEARNS_WITHIN: Duration = Duration::from_secs(300);
/// For how long it then has to stay so.
const STAYS: Duration = Duration::from_secs(60);
/// The longest hold before a scale-down, and some.
const SHRINKS_WITHIN: Duration = Duration::from_secs(360);

#[test]
fn an_untuned_model_finds_its_knee_and_meets_a_step_in_load_and_explain_tells_both() {
    let cluster = Cluster::start();
    let untuned = ["--max-replicas", "6", "--cpu", "0.25"];
    let settings = json!({"service_ms": SERVICE_MS, "knee": KNEE});
    cluster.deploy_probe(ENDPOINT, &settings, &untuned);

    let learned = finds_the_knee_and_stays(&cluster);
    let vertical = records(&cluster, "vertical");
    let reached = vertical.iter().find(|record| record["after"] == learned);
    let reached = reached.unwrap_or_else(|| panic!("no decision for {learned}: {vertical:?}"));
    assert_told(reached);

    shrinks_to_one_replica(&cluster);
    let idle = load(&cluster, "10", "30s");
    assert_eq!(idle["requests"]["failed"], 0, "{}", idle["outcomes"]);
    let startup = number(&entity(&cluster)["startup_s"]);

    let began = unix_ms();
    let step = load(&cluster, "400", &format!("{:.0}s", startup + 10.0));
    let settled = load(&cluster, "400", "60s");
    for load in [&step, &settled] {
        let requests = &load["requests"];
        assert_eq!(requests["failed"], 0, "{}", load["outcomes"]);
        // What is not sent was due while as many were under way as the load's own bound allows.
        assert_eq!(requests["succeeded"], requests["intended"], "{requests}");
    }
    // 400 requests/s of 50 ms are 20 at once, which is 4 replicas at 6.
    let ready = number(&settled["replicas"]["ready_most"]);
    assert!((4.0..=6.0).contains(&ready), "{}", settled["replicas"]);

    let horizontal = records(&cluster, "horizontal");
    let of_the_step = |record: &&Value| {
        let grew = number(&record["after"]) > number(&record["before"]);
        grew && number(&record["unix_ms"]) >= began
    };
    let up = horizontal.iter().find(of_the_step);
    let up = up.unwrap_or_else(|| panic!("nothing grew: {horizontal:?}"));
    assert_told(up);
    let told = cluster.cli(&["explain", ENDPOINT, "-n", "200"]);
    for record in [reached, up] {
        let rule = record["rule"].as_str().expect("a rule");
        assert!(told.contains(rule), "{rule} is not in\n{told}");
    }
    cluster.finish();
}

/// Under steady load the target comes to the knee within one, in time, and stays. Returns it.
fn finds_the_knee_and_stays(cluster: &Cluster) -> u64 {
    let url = cluster.invocations(ENDPOINT);
    // Three replicas at their knee, whatever the pace of this machine: each client waits for its
    // answer.
    let clients = 3 * KNEE as u32;
    let body = serde_json::from_str(BODY).expect("JSON");
    let load = Load::start(cluster, &url, body, clients, Duration::ZERO);
    let began = Instant::now();
    let mut right_since: Option<Instant> = None;
    let mut seen: Vec<(u64, u64)> = Vec::new();
    let learned = loop {
        let target = target_concurrency(cluster);
        if seen.last().map(|last| last.1) != Some(target) {
            seen.push((began.elapsed().as_secs(), target));
        }
        if target.abs_diff(KNEE) <= 1 {
            let since = *right_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= STAYS {
                break target;
            }
        } else {
            right_since = None;
            let took = began.elapsed();
            assert!(
                took < LEARNS_WITHIN,
                "target_concurrency at (s, target): {seen:?}"
            );
        }
        std::thread::sleep(Duration::from_secs(1));
    };
    let (sent, failures) = load.finish(cluster);
    assert!(failures.is_empty(), "of {sent}: {failures:?}");
    learned
}

/// What the steady load bought is given back once the hold has passed.
fn shrinks_to_one_replica(cluster: &Cluster) {
    let deadline = Instant::now() + SHRINKS_WITHIN;
    while cluster.replicas(ENDPOINT).len() > 1 {
        assert!(
            Instant::now() < deadline,
            "not within {SHRINKS_WITHIN:?}: one replica is left; {:?}",
            records(cluster, "horizontal").last()
        );
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// `stokehold load`'s report of `rps` requests/s for a while.
fn load(cluster: &Cluster, rps: &str, over: &str) -> Value {
    let output = cluster.try_cli(&[
        "load",
        ENDPOINT,
        "--rps",
        rps,
        "--over",
        over,
        "--data",
        BODY,
        "--max-in-flight",
        "4000",
        "--output",
        "json",
    ]);
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn target_concurrency(cluster: &Cluster) -> u64 {
    let described = cluster.describe(ENDPOINT);
    let target = &described["decisions"][0]["target_concurrency"];
    target.as_u64().unwrap_or_else(|| panic!("{described}"))
}

/// The one served entity of `stokehold explain`.
fn entity(cluster: &Cluster) -> Value {
    cluster.cli_json(&["explain", ENDPOINT])["entities"][0].clone()
}

/// One axis' decisions, oldest first.
fn records(cluster: &Cluster, axis: &str) -> Vec<Value> {
    let entity = entity(cluster);
    let records = entity[axis].as_array();
    records.unwrap_or_else(|| panic!("{entity}")).clone()
}

/// A decision says which rule fired, why, from which numbers, and what would change it.
fn assert_told(record: &Value) {
    for part in ["rule", "because", "would_change"] {
        let text = record[part].as_str().unwrap_or_default();
        assert!(!text.is_empty(), "{part} of {record}");
    }
    let inputs = record["inputs"].as_array().expect("inputs");
    assert!(
        inputs.iter().any(|input| input["value"].is_number()),
        "{record}"
    );
}

/// Now, as decisions are dated.
fn unix_ms() -> f64 {
    let now = SystemTime::UNIX_EPOCH.elapsed();
    now.expect("a clock after 1970").as_secs_f64() * 1e3
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}
