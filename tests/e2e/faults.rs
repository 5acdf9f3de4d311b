//! Daemons die; requests do not.

use std::time::Duration;

use serde_json::json;

use crate::harness::{Cluster, Load, eventually};

const PAUSE: Duration = Duration::from_millis(10);

#[test]
fn killing_the_agent_loses_no_request_and_the_replica_goes_on_as_it_was() {
    let cluster = Cluster::start();
    cluster.deploy_probe("steady", &json!({"service_ms": 5}), &[]);
    let probe = cluster.query("steady", &json!({"inputs": [[1]]})).json()["probe"].clone();
    let replicas = cluster.replicas("steady");
    let url = cluster.invocations("steady");
    let load = Load::start(&cluster, &url, json!({"inputs": [[1]]}), 4, PAUSE);
    load.wait_for(20);
    for _ in 0..2 {
        cluster.kill_and_wait("agent");
        load.wait_for(50);
        eventually("the scheduler hears of the replica again", || {
            let described = cluster.describe("steady");
            (described["replicas"][0]["state"] == "ready").then_some(())
        });
    }
    let (sent, failures) = load.finish(&cluster);
    assert!(failures.is_empty(), "of {sent}: {failures:?}");
    assert_eq!(cluster.replicas("steady"), replicas);
    let after = cluster.query("steady", &json!({"inputs": [[1]]})).json()["probe"].clone();
    assert_eq!(
        (&after["pid"], &after["replica"]),
        (&probe["pid"], &probe["replica"])
    );
    cluster.finish();
}

#[test]
fn killing_the_scheduler_loses_no_request_and_moves_nothing() {
    let mut cluster = Cluster::start();
    cluster.announce("no session with the scheduler");
    cluster.deploy_probe(
        "steady",
        &json!({"service_ms": 5}),
        &["--min-replicas", "2", "--max-replicas", "2"],
    );
    let mut replicas = cluster.replicas("steady");
    let url = cluster.invocations("steady");
    let load = Load::start(&cluster, &url, json!({"inputs": [[1]]}), 4, PAUSE);
    load.wait_for(20);
    for _ in 0..2 {
        cluster.kill_and_wait("scheduler");
        load.wait_for(100);
        eventually("the scheduler answers again", || {
            cluster.try_cli(&["list"]).status.success().then_some(())
        });
        load.wait_for(100);
    }
    let (sent, failures) = load.finish(&cluster);
    assert!(failures.is_empty(), "of {sent}: {failures:?}");
    let mut after = eventually("both replicas are known as ready again", || {
        let described = cluster.describe("steady");
        let all = described["replicas"].as_array()?;
        let ready = all.iter().filter(|r| r["state"] == "ready").count();
        (ready == 2).then(|| cluster.replicas("steady"))
    });
    replicas.sort();
    after.sort();
    assert_eq!(after, replicas);
    cluster.finish();
}

#[test]
fn a_killed_gateway_is_back_soon_and_serves_from_disk_without_the_scheduler() {
    let mut cluster = Cluster::start();
    cluster.announce("no session with the scheduler");
    cluster.deploy_probe("steady", &json!({}), &[]);
    // The scheduler is stopped, not killed: its supervisor would bring it back at once.
    let scheduler = nix::unistd::Pid::from_raw(cluster.daemon("scheduler").expect("runs"));
    let (url, client, token) = (
        cluster.invocations("steady"),
        cluster.client(),
        cluster.token(),
    );
    nix::sys::signal::kill(scheduler, nix::sys::signal::SIGSTOP).expect("stopped");
    cluster.kill_and_wait("gateway");
    eventually("the gateway serves from its routes on disk", || {
        let request = client
            .post(&url)
            .bearer_auth(&token)
            .json(&json!({"inputs": [[2]]}));
        let answer = cluster
            .runtime
            .block_on(async { request.send().await })
            .ok()?;
        (answer.status() == 200).then_some(())
    });
    nix::sys::signal::kill(scheduler, nix::sys::signal::SIGCONT).expect("continued");
    eventually("the scheduler answers again", || {
        cluster.try_cli(&["list"]).status.success().then_some(())
    });
    cluster.finish();
}

#[test]
fn a_replica_that_dies_loses_only_its_own_request_and_is_replaced() {
    let mut cluster = Cluster::start();
    cluster.announce("replica ended by itself");
    cluster.announce("replica failed: exited with code 3");
    cluster.deploy_probe("mortal", &json!({}), &[]);
    let before = cluster.replicas("mortal");
    let died = cluster.query("mortal", &json!({"inputs": [[1]], "params": {"exit": 3}}));
    assert_eq!(died.status, 502, "{}", String::from_utf8_lossy(&died.body));
    let text = died.json()["message"].as_str().expect("message").to_owned();
    assert!(text.contains(&before[0]), "it names the replica: {text}");
    // The next one waits in the queue until the replacement is there.
    let next = cluster.query("mortal", &json!({"inputs": [[1, 1]]}));
    assert_eq!(next.status, 200, "{}", String::from_utf8_lossy(&next.body));
    assert_ne!(cluster.replicas("mortal"), before);
    let described = cluster.describe("mortal");
    let ended = described["replicas"]
        .as_array()
        .expect("list")
        .iter()
        .find(|r| r["ended"] == true);
    let reason = ended.expect("the dead one is remembered")["reason"]
        .as_str()
        .unwrap_or_default();
    assert!(reason.contains('3'), "it says the exit code: {reason}");
    cluster.finish();
}
