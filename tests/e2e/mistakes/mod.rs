//! Mistakes that people make with models and containers: each is answered where they look, with what
//! is wrong, where, and how to mend it; another endpoint goes on answering; nothing half-made is left.

mod containers;
mod folders;
mod names;
mod room;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::{Value, json};
use shared::ids::ReplicaId;

use crate::harness::{Cluster, eventually};

/// What a command that failed said.
struct Told {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Told {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// It failed with this code, and said all of these.
    fn says(&self, code: i32, wanted: &[&str]) {
        let said = &self.stderr;
        assert_eq!(self.code, Some(code), "{said}\n{}", self.stdout);
        for text in wanted {
            assert!(said.contains(text), "{text:?} is not in\n{said}");
        }
    }

    /// The error that `--output json` gave: the last line of standard error, and the only error there.
    fn error(&self) -> Value {
        let line = self.stderr.lines().last().unwrap_or_default();
        let parsed: Value =
            serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {}", self.stderr));
        parsed["error"].clone()
    }
}

fn run(cluster: &Cluster, arguments: &[&str]) -> Told {
    Told::of(&cluster.try_cli(arguments))
}

/// Flags that name another server, as whom and with which authority nevertheless.
fn server(cluster: &Cluster, url: &str) -> Vec<String> {
    let context = cluster.context();
    let file = |key: &str| context[key].as_str().expect("a path").to_owned();
    let flags = [
        ("--server", url.to_owned()),
        ("--ca-file", file("ca_file")),
        ("--token-file", file("token_file")),
    ];
    let words = flags.into_iter();
    words
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
}

/// An endpoint that has nothing to do with the mistakes.
const STEADY: &str = "steady";

fn deploy_steady(cluster: &Cluster) {
    cluster.deploy_probe(STEADY, &json!({}), &["--max-replicas", "1"]);
}

/// What there is in a cluster.
#[derive(Debug, PartialEq, Eq)]
struct There {
    models: BTreeSet<String>,
    endpoints: BTreeSet<String>,
    containers: BTreeSet<String>,
    snapshots: BTreeSet<String>,
    folders: BTreeSet<String>,
}

impl There {
    fn in_cluster(cluster: &Cluster) -> Self {
        let listed = |line: &[&str], list: &str, key: &[&str]| {
            let all = cluster.cli_json(line);
            let all = all[list].as_array().cloned().unwrap_or_default();
            let name = |it: &Value| key.iter().map(|key| format!("{}", it[*key])).collect();
            all.iter().map(name).collect()
        };
        let (_, agent) = cluster.config_of("agent");
        let run_dir = PathBuf::from(agent["run_dir"].as_str().expect("run_dir"));
        let entries = std::fs::read_dir(run_dir).expect("run_dir").flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        Self {
            models: listed(&["model", "list"], "models", &["name", "version"]),
            endpoints: listed(&["list"], "endpoints", &["name"]),
            containers: of_replicas(ctr(cluster, &["containers", "list", "--quiet"])),
            snapshots: of_replicas(ctr(cluster, &["snapshots", "list"])),
            folders: names
                .filter(|name| ReplicaId::parse(name).is_ok())
                .collect(),
        }
    }
}

fn ctr(cluster: &Cluster, arguments: &[&str]) -> String {
    let (_, agent) = cluster.config_of("agent");
    let output = Command::new("ctr")
        .args(["--address", agent["containerd"].as_str().expect("socket")])
        .args(["--namespace", "stokehold"])
        .args(arguments)
        .output()
        .expect("ctr runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The first words of lines that are replicas' ids.
fn of_replicas(listed: String) -> BTreeSet<String> {
    let words = listed
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    words
        .filter(|word| ReplicaId::parse(word).is_ok())
        .map(str::to_owned)
        .collect()
}

/// After a mistake: the other endpoint answers, and there is what there was.
fn nothing_is_left(cluster: &Cluster, before: &There) {
    steady_answers(cluster);
    let mut now = None;
    eventually("nothing half-made is left", || {
        let there = There::in_cluster(cluster);
        let same = there == *before;
        if !same && now.as_ref() != Some(&there) {
            eprintln!("still there: {there:?}");
            now = Some(there);
        }
        same.then_some(())
    });
}

fn steady_answers(cluster: &Cluster) {
    let answer = cluster.query(STEADY, &json!({"inputs": [[1, 2]]}));
    assert_eq!(
        answer.status,
        200,
        "{}",
        String::from_utf8_lossy(&answer.body)
    );
}
