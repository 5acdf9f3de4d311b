//! Holds the arrows between the crates, the purity of the pure ones, and the packaged configurations.

mod config_examples;
mod config_reference;
mod quoted_errors;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the root")
        .to_owned()
}

/// Our crates: name to the names of ours that it depends on (tests' needs left out).
fn arrows() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let arrow = |package: &Value| {
        let depends = package["dependencies"]
            .as_array()
            .expect("dependencies")
            .iter();
        let ours = depends
            .filter(|d| d["kind"].is_null() && d["path"].is_string())
            .map(|d| d["name"].as_str().expect("name").to_owned());
        (
            package["name"].as_str().expect("name").to_owned(),
            ours.collect(),
        )
    };
    packages.iter().map(arrow).collect()
}

#[test]
fn every_crate_uses_only_what_it_may() {
    let may: &[(&str, &[&str])] = &[
        ("stokehold-shared", &[]),
        ("stokehold-apa", &["stokehold-shared"]),
        ("stokehold-core", &["stokehold-shared", "stokehold-apa"]),
        (
            "stokehold-sim",
            &["stokehold-shared", "stokehold-apa", "stokehold-core"],
        ),
        ("stokehold-daemon", &["stokehold-shared"]),
        ("stokehold-model", &["stokehold-shared"]),
        ("stokehold-registry", &["stokehold-shared"]),
        ("stokehold-logshim", &[]),
        ("stokehold-probe", &[]),
        (
            "stokehold-gateway",
            &["stokehold-shared", "stokehold-daemon"],
        ),
        (
            "stokehold-agent",
            &[
                "stokehold-shared",
                "stokehold-daemon",
                "stokehold-model",
                "stokehold-registry",
            ],
        ),
        (
            "stokehold-cli",
            &[
                "stokehold-shared",
                "stokehold-daemon",
                "stokehold-model",
                "stokehold-core",
                "stokehold-apa",
                "stokehold-sim",
            ],
        ),
        (
            "stokehold-scheduler",
            &[
                "stokehold-shared",
                "stokehold-daemon",
                "stokehold-model",
                "stokehold-registry",
                "stokehold-core",
                "stokehold-apa",
            ],
        ),
    ];
    let arrows = arrows();
    for (name, uses) in &arrows {
        if name == "stokehold-tests" {
            continue;
        }
        let (_, allowed) = may
            .iter()
            .find(|(known, _)| known == name)
            .unwrap_or_else(|| panic!("{name} is new: say here what it may use"));
        for used in uses {
            assert!(
                allowed.contains(&used.as_str()),
                "{name} must not use {used}"
            );
        }
    }
    assert_eq!(
        arrows.len(),
        may.len() + 1,
        "a crate that is listed here does not exist"
    );
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder)
        .expect("folder")
        .map(|e| e.expect("entry").path())
    {
        if entry.is_dir() {
            sources(&entry, found);
        } else if entry.extension().is_some_and(|e| e == "rs") {
            found.push(entry);
        }
    }
}

#[test]
fn the_pure_crates_have_no_clock_no_io_no_locks_and_no_chance_of_their_own() {
    let impure = [
        "std::fs",
        "std::net",
        "std::thread",
        "std::process",
        "std::env",
        "Instant::now",
        "SystemTime",
        "Mutex",
        "RwLock",
        "tokio",
        "async fn",
        "rand::rng(",
        "thread_rng",
        "from_os_rng",
        "println!",
        "static mut",
    ];
    for pure in ["shared/src", "scheduler/apa/src", "scheduler/core/src"] {
        let mut files = Vec::new();
        sources(&root().join(pure), &mut files);
        assert!(!files.is_empty(), "{pure} has no sources");
        for file in files {
            let text = std::fs::read_to_string(&file).expect("source");
            // What tests do is their own business.
            let code = text.split("#[cfg(test)]").next().unwrap_or(&text);
            for (number, line) in code.lines().enumerate() {
                let statement = line.split("//").next().unwrap_or(line);
                for word in impure {
                    assert!(
                        !statement.contains(word),
                        "{}:{}: {word} in a pure crate",
                        file.display(),
                        number + 1
                    );
                }
            }
        }
    }
}

#[test]
fn the_top_level_is_the_one_that_people_know() {
    let expected = [
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "Makefile",
        "README.md",
        "agent",
        "docs",
        "packaging",
        "scheduler",
        "shared",
        "systemd",
        "tests",
    ];
    let output = Command::new("git")
        .args(["ls-files"])
        .current_dir(root())
        .output();
    let Some(output) = output
        .ok()
        .filter(|o| o.status.success() && !o.stdout.is_empty())
    else {
        // A source archive has no git.
        return;
    };
    for path in String::from_utf8_lossy(&output.stdout).lines() {
        let top = path.split('/').next().unwrap_or(path);
        assert!(
            top.starts_with('.') || expected.contains(&top),
            "{top} does not belong in the top level"
        );
    }
}
