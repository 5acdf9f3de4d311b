//! The packaged examples of configurations say every key, with its real default.
//!
//! In them `# key = value` and `# [table]` are defaults, and `#key = value`, without the space, shows how
//! a key is set whose default is not a value.

use std::path::PathBuf;
use std::process::Command;

use serde::de::DeserializeOwned;

use super::root;

fn example(daemon: &str) -> String {
    let path = root().join(format!("packaging/config/{daemon}.toml"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// `key = value` or `[table]`.
fn is_setting(text: &str) -> bool {
    let plain = |name: &str| {
        !name.is_empty()
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    text.split_once(" = ").is_some_and(|(key, _)| plain(key))
        || text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .is_some_and(plain)
}

/// The example with each line whose comment begins with `mark` and holds a setting taken out of it.
fn uncommented(text: &str, marks: &[&str]) -> String {
    let line = |line: &str| {
        let bare = marks.iter().filter_map(|mark| line.strip_prefix(mark));
        let setting = bare.into_iter().find(|rest| is_setting(rest));
        setting.unwrap_or(line).to_owned() + "\n"
    };
    text.lines().map(line).collect()
}

/// The public fields of the structs that a file is read into: what it may say.
fn keys(source: &str) -> Vec<String> {
    let path = root().join(source);
    let text = std::fs::read_to_string(&path).expect("source");
    let mut found = Vec::new();
    // From a derived `Deserialize` to the end of that struct.
    let mut read = false;
    for line in text.lines() {
        if line.starts_with("#[derive(") {
            read = line.contains("Deserialize");
        } else if line == "}" {
            read = false;
        } else if let Some((name, _)) = line
            .strip_prefix("    pub ")
            .and_then(|rest| rest.split_once(": "))
            .filter(|_| read)
        {
            found.push(name.to_owned());
        }
    }
    assert!(!found.is_empty(), "{source} has no keys");
    found
}

fn check<T: DeserializeOwned + Default + PartialEq + std::fmt::Debug>(daemon: &str, source: &str) {
    let text = example(daemon);
    assert!(
        text.lines().all(|l| l.is_empty() || l.starts_with('#')),
        "{daemon}.toml sets something by itself"
    );
    let defaults: T = toml::from_str(&uncommented(&text, &["# "]))
        .unwrap_or_else(|e| panic!("{daemon}.toml, uncommented: {e}"));
    assert_eq!(defaults, T::default(), "{daemon}.toml");
    let all = uncommented(&text, &["# ", "#"]);
    toml::from_str::<T>(&all).unwrap_or_else(|e| panic!("{daemon}.toml, with examples: {e}"));
    for key in keys(source) {
        let said = all
            .lines()
            .any(|l| l.starts_with(&format!("{key} = ")) || l == format!("[{key}]"));
        assert!(said, "{daemon}.toml does not say {key}");
    }
}

#[test]
fn the_example_of_the_scheduler_is_its_default() {
    check::<scheduler::config::Config>("scheduler", "scheduler/src/config.rs");
}

#[test]
fn the_example_of_the_agent_is_its_default() {
    check::<agent::config::Config>("agent", "agent/src/config.rs");
}

#[test]
fn the_example_of_the_gateway_is_its_default() {
    check::<gateway::config::Config>("gateway", "agent/gateway/src/config.rs");
}

#[test]
fn every_daemon_accepts_its_example_as_it_is_and_uncommented() {
    let folder = tempfile::tempdir().expect("folder");
    for (daemon, program) in [
        ("scheduler", env!("CARGO_BIN_EXE_shim-scheduler")),
        ("agent", env!("CARGO_BIN_EXE_shim-agent")),
        ("gateway", env!("CARGO_BIN_EXE_shim-gateway")),
    ] {
        let text = example(daemon);
        for (name, text) in [
            ("as it is", text.clone()),
            ("uncommented", uncommented(&text, &["# "])),
        ] {
            let path: PathBuf = folder.path().join(format!("{daemon}.toml"));
            // What only an installed package has: the gateway's group.
            let text = text.replace(
                "gateway_group = \"stokehold-gateway\"",
                "gateway_group = \"65534\"",
            );
            let text = match daemon {
                "agent" if name == "as it is" => format!("gateway_group = \"65534\"\n{text}"),
                _ => text,
            };
            std::fs::write(&path, text).expect("configuration");
            let output = Command::new(program)
                .args(["--config", &path.display().to_string(), "--check-config"])
                .output()
                .expect("the daemon runs");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{daemon}.toml {name}: {said}");
        }
    }
}
