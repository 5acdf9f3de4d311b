//! The store on disk under kill -9. A binary of its own: while a child is being forked it holds the
//! locks of all stores that are open in its parent.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use scheduler::store::{OpenError, SledStore, Store};
use scheduler_core::store_op::Op;
use shared::ids::Epoch;

const CHILD_FOLDER: &str = "STOKEHOLD_TEST_STORE";

fn put(key: &str, value: &str) -> Op {
    Op::Put {
        key: key.into(),
        value: value.into(),
    }
}

fn open(folder: &Path) -> Result<SledStore, OpenError> {
    SledStore::open(&folder.join("state"), &folder.join("exports"))
}

/// Not a test by itself: the process that the test below kills.
#[test]
fn child_that_commits_until_it_is_killed() {
    let Some(folder) = std::env::var_os(CHILD_FOLDER) else {
        return;
    };
    let mut store = open(Path::new(&folder)).expect("opens");
    let epoch = store.begin_epoch(Epoch(0)).expect("begins");
    for i in 0u64.. {
        let key = format!("child/{}/{}", epoch.0, i);
        let pair = [put(&key, "1"), put(&format!("{key}/pair"), "1")];
        store.commit(&pair, epoch).expect("commits");
        println!("ack {key}");
    }
}

#[test]
fn everything_acknowledged_survives_kill_9_at_any_moment() {
    const KILLS: u64 = 16;
    let folder = tempfile::tempdir().expect("folder");
    let mut acknowledged = Vec::new();
    for round in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .args([
                "child_that_commits_until_it_is_killed",
                "--exact",
                "--nocapture",
            ])
            .env(CHILD_FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        // From its first commit on it lives for another length of time in each round.
        let mut kill_at = None;
        for line in output.lines() {
            let Ok(line) = line else { break };
            if let Some(key) = line.rsplit_once("ack ").map(|(_, key)| key.to_owned()) {
                acknowledged.push(key);
                kill_at.get_or_insert_with(|| {
                    Instant::now() + Duration::from_micros(300 + round * round * 1_700)
                });
            }
            if kill_at.is_some_and(|at| Instant::now() >= at) {
                child.kill().expect("kills");
            }
        }
        child.wait().expect("ends");
    }
    let found = open(folder.path()).expect("opens").load().expect("loads");
    assert!(
        acknowledged.len() as u64 >= KILLS,
        "{} acks",
        acknowledged.len()
    );
    assert_eq!(found.epoch, Epoch(KILLS));
    for key in &acknowledged {
        assert!(
            found.entries.contains_key(key),
            "{key} was acknowledged and is gone"
        );
    }
    for key in found.entries.keys().filter(|key| !key.ends_with("/pair")) {
        let pair = format!("{key}/pair");
        assert!(
            found.entries.contains_key(&pair),
            "{key} was written without its batch"
        );
    }
}
