//! Who may join, and who no longer may.

use std::io::Write as _;
use std::process::Stdio;

use crate::harness::{Cluster, SecondNode, eventually};

fn join(cluster: &Cluster, token: &str) -> (bool, String) {
    let pki = cluster.base().join("stranger");
    let config = cluster.base().join("stranger.toml");
    let text = format!("node = \"stranger\"\npki_dir = \"{}\"\n", pki.display());
    std::fs::write(&config, text).expect("configuration");
    let mut joining = cluster
        .command("stokehold-agent")
        .args([
            "--config",
            &config.display().to_string(),
            "join",
            "--token-file",
            "-",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    joining
        .stdin
        .take()
        .expect("stdin")
        .write_all(token.as_bytes())
        .expect("token");
    let output = joining.wait_with_output().expect("ends");
    (
        output.status.success(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn wrong_used_and_expired_tokens_and_foreign_authorities_are_refused_in_words() {
    let mut cluster = Cluster::start();
    cluster.announce("join refused");
    let made = |arguments: &[&str]| {
        let mut all = vec!["node", "token"];
        all.extend(arguments);
        cluster.cli_json(&all)["token"]
            .as_str()
            .expect("token")
            .to_owned()
    };
    let (ok, said) = join(&cluster, "not a token");
    assert!(!ok && said.contains("stokehold node token"), "{said}");

    let good = made(&[]);
    let (ok, said) = join(&cluster, &good);
    assert!(ok, "{said}");
    let (ok, said) = join(&cluster, &good);
    assert!(!ok && said.contains("used"), "{said}");

    let (ok, said) = join(&cluster, &made(&["--role", "gateway"]));
    assert!(!ok && said.contains("role agent"), "{said}");

    let short = made(&["--lifetime", "1s"]);
    std::thread::sleep(std::time::Duration::from_millis(2_100));
    let (ok, said) = join(&cluster, &short);
    assert!(!ok && said.contains("expired"), "{said}");

    // Another cluster's authority answers where the token points.
    let mut foreign = shared::token::JoinToken::decode(&made(&[])).expect("token");
    foreign.ca_sha256 = "0".repeat(64);
    let (ok, said) = join(&cluster, &foreign.encode());
    assert!(!ok && said.contains("certificate authority"), "{said}");

    let mut wrong = shared::token::JoinToken::decode(&made(&[])).expect("token");
    wrong.secret = "0".repeat(wrong.secret.len());
    let (ok, said) = join(&cluster, &wrong.encode());
    assert!(!ok && said.contains("secret"), "{said}");
    cluster.finish();
}

#[test]
fn a_revoked_node_is_sent_away_and_told_why() {
    let mut cluster = Cluster::start();
    cluster.announce("revoked");
    let node = SecondNode::join(&mut cluster, "n2");
    let state = |cluster: &Cluster| {
        let nodes = cluster.cli_json(&["node", "list"]);
        let nodes = nodes["nodes"].as_array().cloned().unwrap_or_default();
        let n2 = nodes.iter().find(|n| n["name"] == "n2").cloned();
        n2.map(|n| n["state"].as_str().unwrap_or("").to_owned())
    };
    eventually("n2 is ready", || {
        (state(&cluster).as_deref() == Some("ready")).then_some(())
    });
    cluster.cli(&["node", "revoke", "n2"]);
    assert_eq!(state(&cluster).as_deref(), Some("revoked"));
    let log = cluster.base().join("n2/logs/agent.log");
    eventually("the node's log says why", || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.contains("revoked").then_some(())
    });
    node.stop(&mut cluster);
    cluster.finish();
}
