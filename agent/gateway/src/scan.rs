//! Finds the replicas of this node and probes them.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use daemon::telemetry::Chain;
use http::header::{HOST, HeaderValue};
use http::{Method, Request, StatusCode};
use shared::api::local::{LOCAL_REPLICA_VERSION, LocalReplica};
use shared::ids::ReplicaId;
use shared::runtime::Transport;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::local::{Local, Locals};
use crate::payload::ForwardBody;
use crate::upstream::exchange::{Exchanged, exchange};

const SCAN_INTERVAL: Duration = Duration::from_millis(500);
/// The files have a few hundred bytes.
const MAX_FILE_BYTES: u64 = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("read {name}")]
    Read {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("{name} {problem}")]
    Refused { name: String, problem: String },
}

/// Scans until cancelled; keeps one probe for each replica.
pub(crate) async fn run(locals: Arc<Locals>, cancel: CancellationToken) -> anyhow::Result<()> {
    let mut probes = JoinSet::new();
    let mut handles: HashMap<ReplicaId, AbortHandle> = HashMap::new();
    let mut complaints = BTreeMap::new();
    let mut ticker = tokio::time::interval(SCAN_INTERVAL);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            _ = ticker.tick() => {}
        }
        while probes.try_join_next().is_some() {}
        let run_dir = locals.run_dir().to_owned();
        let scanned = tokio::task::spawn_blocking(move || scan(&run_dir)).await?;
        let Found {
            mut replicas,
            unread,
            failures,
        } = match scanned {
            Ok(found) => found,
            Err(failure) => {
                // Nothing is known anew, so what was known stays.
                let name = locals.run_dir().display().to_string();
                complaints = complain(&complaints, vec![(name, failure)]);
                continue;
            }
        };
        complaints = complain(&complaints, failures);
        for id in unread {
            if let Some(known) = locals.get(&id) {
                replicas.insert(id, known.spec.clone());
            }
        }
        let changes = locals.update(replicas);
        for id in changes.gone {
            if let Some(handle) = handles.remove(&id) {
                handle.abort();
            }
            info!(replica = %id, "replica is no longer on this node");
        }
        for local in changes.appeared {
            let id = local.spec.replica.clone();
            info!(replica = %id, endpoint = %local.spec.endpoint, entity = %local.spec.entity, "found a replica");
            handles.insert(id, probes.spawn(probe(local, Arc::clone(&locals))));
        }
        locals.reap();
    }
}

/// Says what is wrong with a file once, and again only when something else is.
fn complain(
    before: &BTreeMap<String, String>,
    failures: Vec<(String, FileError)>,
) -> BTreeMap<String, String> {
    let mut after = BTreeMap::new();
    for (name, failure) in failures {
        let text = Chain(&failure).to_string();
        if before.get(&name) != Some(&text) {
            warn!(error = text, "replica file is not usable");
        }
        after.insert(name, text);
    }
    after
}

/// What a run folder holds.
#[derive(Default)]
pub(crate) struct Found {
    replicas: BTreeMap<ReplicaId, LocalReplica>,
    /// Whose files are there and could not be read now (out of file descriptors, say), which tells
    /// nothing about the replicas.
    unread: Vec<ReplicaId>,
    /// By file.
    failures: Vec<(String, FileError)>,
}

/// Reads all replica files of a run folder.
pub(crate) fn scan(run_dir: &Path) -> Result<Found, FileError> {
    let mut found = Found::default();
    let failed = |source| FileError::Read {
        name: run_dir.display().to_string(),
        source,
    };
    let entries = match std::fs::read_dir(run_dir) {
        Ok(entries) => entries,
        // No agent has run here yet.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(source) => return Err(failed(source)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let Some(id) = name
            .strip_suffix(".json")
            .and_then(|stem| ReplicaId::parse(stem).ok())
        else {
            continue;
        };
        match read(&entry.path(), &name, &id) {
            Ok(Some(replica)) => {
                found.replicas.insert(id, replica);
            }
            // Removed since the folder was listed.
            Ok(None) => {}
            Err(failure) => {
                if matches!(failure, FileError::Read { .. }) {
                    found.unread.push(id);
                }
                found.failures.push((name, failure));
            }
        }
    }
    Ok(found)
}

fn read(path: &Path, name: &str, id: &ReplicaId) -> Result<Option<LocalReplica>, FileError> {
    let failed = |source| FileError::Read {
        name: name.to_owned(),
        source,
    };
    let refused = |problem: String| FileError::Refused {
        name: name.to_owned(),
        problem,
    };
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC)
        .open(path);
    let file = match file {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    let metadata = file.metadata().map_err(failed)?;
    // The agent is root; where everything runs as one user (tests), it is that one.
    let own = nix::unistd::geteuid().as_raw();
    if !metadata.is_file() || (metadata.uid() != 0 && metadata.uid() != own) {
        return Err(refused("is not a file of the agent's".to_owned()));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(refused(
            "may be written by others than the agent".to_owned(),
        ));
    }
    let mut text = String::new();
    file.take(MAX_FILE_BYTES)
        .read_to_string(&mut text)
        .map_err(failed)?;
    let replica: LocalReplica =
        serde_json::from_str(&text).map_err(|e| refused(format!("is not readable: {e}")))?;
    if replica.version != LOCAL_REPLICA_VERSION {
        return Err(refused(format!(
            "has version {}, this gateway reads {LOCAL_REPLICA_VERSION}: upgrade agent and gateway together",
            replica.version
        )));
    }
    if replica.replica != *id {
        return Err(refused(format!("is about replica {}", replica.replica)));
    }
    if (replica.transport == Transport::Tcp) != replica.address.is_some() {
        return Err(refused(
            "must have an address with transport tcp, and with no other".to_owned(),
        ));
    }
    for (key, path) in [
        ("invocations_path", &replica.invocations_path),
        ("health.path", &replica.health.path),
    ] {
        if !path.starts_with('/') || path.parse::<http::Uri>().is_err() {
            return Err(refused(format!("has {key} {path:?}, which is no path")));
        }
    }
    Ok(Some(replica))
}

/// Probes one replica until aborted.
async fn probe(local: Arc<Local>, locals: Arc<Locals>) {
    loop {
        let timeout = Duration::from_millis(u64::from(local.spec.health.timeout_ms));
        let result = tokio::time::timeout(timeout, probe_once(&local))
            .await
            .unwrap_or_else(|_| Err(format!("no answer to the probe within {timeout:?}")));
        let before = local.probed();
        let after = before.clone().after(result, &local.spec.health);
        let wait = after.wait(&local.spec.health);
        if after.health() == before.health() {
            debug!(replica = %local.spec.replica, detail = after.detail(), "probed");
            local.set_probed(after);
        } else {
            info!(
                replica = %local.spec.replica, from = ?before.health(), to = ?after.health(),
                cause = after.detail(), "replica changed health"
            );
            local.set_probed(after);
            locals.health_changed.notify_one();
        }
        tokio::time::sleep(wait).await;
    }
}

/// One probe, on a connection of its own: it must not fail because a pooled one went stale.
async fn probe_once(local: &Local) -> Result<(), String> {
    let path = &local.spec.health.path;
    let connection = local.connect().await?;
    let mut request = Request::new(ForwardBody::empty());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = path
        .parse()
        .map_err(|e: http::uri::InvalidUri| e.to_string())?;
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_static("replica"));
    headers.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    match exchange(connection, request).await {
        Exchanged::Answered { response, .. } if response.status() == StatusCode::OK => Ok(()),
        Exchanged::Answered { response, .. } => {
            Err(format!("GET {path} answered {}", response.status()))
        }
        Exchanged::NeverWritten => Err("the connection closed".to_owned()),
        Exchanged::Died { reason, .. } => Err(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const FILE: &str = r#"{"version":1,"replica":"0000000000000001","endpoint":"iris","entity":"iris-1",
        "uid":5,"transport":"unix","invocations_path":"/invocations","health":{"path":"/ping"}}"#;

    struct Fixture {
        run_dir: tempfile::TempDir,
    }

    impl Fixture {
        fn with(text: &str) -> Self {
            let run_dir = tempfile::tempdir().expect("folder");
            let fixture = Self { run_dir };
            std::fs::write(fixture.path(), text).expect("write");
            fixture.set_mode(0o640);
            fixture
        }

        fn path(&self) -> std::path::PathBuf {
            self.run_dir.path().join("0000000000000001.json")
        }

        fn set_mode(&self, mode: u32) {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(self.path(), permissions).expect("mode");
        }

        fn scan(&self) -> Result<Vec<LocalReplica>, String> {
            let found = scan(self.run_dir.path()).expect("a folder");
            match found.failures.first() {
                Some((_, failure)) => Err(Chain(failure).to_string()),
                None => Ok(found.replicas.into_values().collect()),
            }
        }
    }

    #[test]
    fn the_agents_file_is_read_and_other_files_are_none_of_ours() {
        let fixture = Fixture::with(FILE);
        std::fs::write(fixture.run_dir.path().join("notes.json"), "x").expect("write");
        std::fs::create_dir(fixture.run_dir.path().join("0000000000000001")).expect("folder");
        let found = fixture.scan().expect("readable");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].uid, 5);
    }

    #[test]
    fn a_file_that_others_may_write_or_that_is_wrong_is_refused_with_its_name() {
        let fixture = Fixture::with(FILE);
        fixture.set_mode(0o666);
        assert!(
            fixture
                .scan()
                .expect_err("refused")
                .contains("0000000000000001.json may be written")
        );
        for (from, to, said) in [
            ("\"version\":1", "\"version\":2", "version 2"),
            ("\"unix\"", "\"tcp\"", "address"),
            (
                "\"uid\":5",
                "\"uid\":5,\"address\":\"10.231.0.2:8080\"",
                "address",
            ),
            (
                "\"uid\":5",
                "\"uid\":5,\"address\":\"nowhere\"",
                "not readable",
            ),
            ("0000000000000001", "0000000000000002", "about replica"),
            ("/ping", "ping", "no path"),
            ("{", "", "not readable"),
        ] {
            let error = Fixture::with(&FILE.replacen(from, to, 1))
                .scan()
                .expect_err("refused");
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_link_in_a_files_place_is_refused() {
        let fixture = Fixture::with(FILE);
        let target = fixture.run_dir.path().join("target");
        std::fs::rename(fixture.path(), &target).expect("rename");
        std::os::unix::fs::symlink(&target, fixture.path()).expect("link");
        assert!(fixture.scan().is_err());
    }

    #[test]
    fn a_missing_run_folder_holds_no_replicas() {
        let found = scan(Path::new("/nonexistent/run")).expect("nothing is fine");
        assert!(found.replicas.is_empty() && found.failures.is_empty());
    }

    #[test]
    fn a_folder_that_cannot_be_listed_and_a_file_that_cannot_be_read_say_nothing_of_replicas() {
        let fixture = Fixture::with(FILE);
        assert!(scan(&fixture.path()).is_err());
        std::fs::remove_file(fixture.path()).expect("removed");
        std::os::unix::fs::symlink("/etc/hostname", fixture.path()).expect("link");
        let found = scan(fixture.run_dir.path()).expect("a folder");
        assert_eq!(found.unread, [ReplicaId::from_bits(1)]);
    }
}
