//! Takes an instance away, from whatever state it is in. Every step is safe to repeat, and none
//! relies on the one before having worked.
//!
//! Order: supervisor, daemons, containers (politely, through containerd), containerd, then without
//! anybody's help what is left: processes in our control groups, shims, mounts, sockets, control
//! groups, folders.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;

use super::containers::Containers;
use super::handover;
use super::layout::Layout;
use super::state::{self, Record};
use super::{cgroups, mounts, networks, processes};
use crate::exit::Stop;
use crate::output::Output;

/// The supervisor takes everything down itself when it is told to.
const SUPERVISOR: Duration = Duration::from_secs(200);
const GRACE: Duration = Duration::from_secs(40);
const CONTAINERD_GRACE: Duration = Duration::from_secs(10);

const LOG_SHIM: &str = "stokehold-logshim";
const SHIM: &str = "containerd-shim-runc-v2";

/// Where every containerd's shims keep their sockets, and runc what it knows of a container.
const SHIM_SOCKETS: &str = "/run/containerd/s";
const RUNC_ROOT: &str = "/run/containerd/runc";

pub(super) async fn run(layout: &Layout, keep_data: bool, output: &Output) -> anyhow::Result<()> {
    let record = Record::load(layout);
    let ours = layout.is_ours();
    let was_there = layout.run.exists() || layout.state_file().exists();
    stop_supervisor(layout, output)?;
    let _lock = match ours {
        // Nobody starts another while we clear away.
        true => Some(state::lock(layout)?.context("another `stokehold up` has started meanwhile")?),
        false => None,
    };
    tokio::task::block_in_place(|| {
        let daemons = [
            "stokehold-gateway",
            "stokehold-agent",
            "stokehold-scheduler",
        ];
        stop_programs(layout, &daemons, GRACE);
    });
    if let Some(record) = &record {
        let socket = record
            .external_containerd
            .clone()
            .unwrap_or_else(|| layout.containerd_socket());
        end_containers(layout, record, &socket).await;
        if record.external_containerd.is_some() && !keep_data {
            remove_namespace(record, &socket, output).await;
        }
    }
    let problems = tokio::task::block_in_place(|| {
        stop_programs(layout, &["containerd"], CONTAINERD_GRACE);
        scrub(layout)
    });
    if !problems.is_empty() {
        // Data under a mount that is still there would be somebody else's.
        anyhow::bail!(
            "not everything could be taken away:\n  {}\ncall `stokehold down` again",
            problems.join("\n  ")
        );
    }
    if let Some(record) = record.as_ref().filter(|_| !keep_data)
        && let Err(error) = handover::take_back(&record.server, record.user)
    {
        output.warn(format!("the context {} stays: {error:#}", super::CONTEXT));
    }
    if keep_data {
        let told = format!("stokehold is down; {} is kept", layout.data.display());
        return output.done(
            &Gone {
                was_there,
                kept_data: true,
            },
            told,
        );
    }
    if ours {
        remove_data(layout)?;
    }
    let told = if was_there {
        "stokehold is down; nothing of it is left".to_owned()
    } else {
        format!("nothing was up with {}", layout.data.display())
    };
    output.done(
        &Gone {
            was_there,
            kept_data: false,
        },
        told,
    )
}

/// What `down --output json` prints.
#[derive(serde::Serialize)]
struct Gone {
    was_there: bool,
    kept_data: bool,
}

fn stop_supervisor(layout: &Layout, output: &Output) -> anyhow::Result<()> {
    let Some(record) = state::running(layout)? else {
        return Ok(());
    };
    output.note(format!(
        "stopping stokehold (process {})",
        record.supervisor.pid
    ));
    record.supervisor.signal(Signal::SIGTERM);
    let patience = || processes::wait_gone(&[record.supervisor], SUPERVISOR);
    let left = tokio::task::block_in_place(patience);
    if !left.is_empty() {
        // What it did not do, we do.
        record.supervisor.signal(Signal::SIGKILL);
        let left = processes::wait_gone(&left, CONTAINERD_GRACE);
        anyhow::ensure!(
            left.is_empty(),
            "the supervisor (process {}) cannot be ended",
            record.supervisor.pid
        );
    }
    Ok(())
}

/// All daemons of this instance, whoever started them; returns the programs that ran. Replicas and
/// their shims stay.
pub(super) fn stop_daemons(layout: &Layout) -> Vec<String> {
    let all = [
        "stokehold-gateway",
        "stokehold-agent",
        "stokehold-scheduler",
        "containerd",
    ];
    stop_programs(layout, &all, GRACE)
}

/// One after the other, so that a gateway drains while the rest lives.
fn stop_programs(layout: &Layout, programs: &[&str], grace: Duration) -> Vec<String> {
    let mut ran = Vec::new();
    for program in programs {
        let name = program.strip_prefix("stokehold-").unwrap_or(program);
        // The path of its configuration file says whose it is.
        let found = processes::find(program, &layout.config(name));
        if !found.is_empty() {
            processes::stop(&found, grace);
            ran.push(name.to_owned());
        }
    }
    ran
}

/// Through containerd, as far as it answers: the rest is `scrub`'s.
pub(super) async fn end_containers(layout: &Layout, record: &Record, socket: &Path) {
    if cgroups::processes(&layout.cgroup_parent()).is_empty() && !socket.exists() {
        return;
    }
    if let Ok(containers) = Containers::connect(socket, &record.namespace).await {
        // An error leaves containers behind, which `scrub` ends by their control groups.
        let _ = containers.end_all().await;
    }
}

async fn remove_namespace(record: &Record, socket: &Path, output: &Output) {
    let removed = async {
        let containers = Containers::connect(socket, &record.namespace).await?;
        containers.remove_namespace().await
    };
    if let Err(error) = removed.await {
        output.warn(format!(
            "containerd's namespace {} is not empty: {error:#}",
            record.namespace
        ));
    }
}

/// What is left when nobody runs that could be asked. Returns what could not be taken away.
pub(super) fn scrub(layout: &Layout) -> Vec<String> {
    let mut problems = Vec::new();
    let mut note = |done: io::Result<()>| {
        if let Err(error) = done {
            problems.push(error.to_string());
        }
    };
    let bundles = bundles(&layout.containerd_state());
    let parent = layout.cgroup_parent();
    // Twice: a process may be born between the listing and the signal.
    for _ in 0..2 {
        cgroups::signal(&parent, Signal::SIGKILL);
        processes::wait_gone(&cgroups::processes(&parent), Duration::from_secs(5));
    }
    let shims = processes::find(SHIM, &layout.containerd_socket());
    note(ended(&processes::stop(&shims, Duration::from_millis(500))));
    // They write down what the shims' pipes still hold, and end.
    let writers = processes::find_under(LOG_SHIM, &layout.replica_logs());
    processes::wait_gone(&writers, Duration::from_secs(2));
    note(ended(&processes::stop(
        &writers,
        Duration::from_millis(500),
    )));
    for bundle in &bundles {
        note(absent(fs::remove_dir_all(
            Path::new(RUNC_ROOT)
                .join(&bundle.namespace)
                .join(&bundle.id),
        )));
        if let Some(socket) = &bundle.socket {
            note(absent(fs::remove_file(socket)));
        }
    }
    for bundle in &bundles {
        // Goes when it is empty, that is, when no other containerd has such a namespace.
        let _ = fs::remove_dir(Path::new(RUNC_ROOT).join(&bundle.namespace));
    }
    note(mounts::remove_under(&layout.run));
    note(networks::remove(layout));
    if layout.is_ours() {
        note(mounts::remove_under(&layout.data));
    }
    note(cgroups::remove(&parent));
    if problems.is_empty() {
        let removed = absent(fs::remove_dir_all(&layout.run));
        if let Err(error) = removed {
            problems.push(format!("remove {}: {error}", layout.run.display()));
        }
        // Other instances, or an installed agent, may share it.
        if let Some(shared) = layout.run.parent() {
            let _ = fs::remove_dir(shared);
        }
    }
    problems
}

fn ended(left: &[processes::Process]) -> io::Result<()> {
    if left.is_empty() {
        return Ok(());
    }
    let pids: Vec<String> = left.iter().map(|process| process.pid.to_string()).collect();
    Err(io::Error::other(format!(
        "processes {} cannot be ended",
        pids.join(", ")
    )))
}

fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A container as containerd's state folder knows it.
#[derive(Debug, PartialEq, Eq)]
struct Bundle {
    namespace: String,
    id: String,
    socket: Option<PathBuf>,
}

/// `STATE/io.containerd.runtime.v2.task/NAMESPACE/ID`.
fn bundles(state: &Path) -> Vec<Bundle> {
    let tasks = state.join("io.containerd.runtime.v2.task");
    let mut found = Vec::new();
    for (namespace, folder) in children(&tasks) {
        for (id, bundle) in children(&folder) {
            found.push(Bundle {
                namespace: namespace.clone(),
                id,
                socket: shim_socket(&bundle),
            });
        }
    }
    found
}

fn children(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .collect()
}

/// Where the shim listens: containerd 1 keeps the address as text, containerd 2 in JSON. Only a
/// socket in the shims' own folder is taken for one.
fn shim_socket(bundle: &Path) -> Option<PathBuf> {
    #[derive(serde::Deserialize)]
    struct Bootstrap {
        address: String,
    }
    let text = fs::read_to_string(bundle.join("address")).ok();
    let address = text.or_else(|| {
        let json = fs::read(bundle.join("bootstrap.json")).ok()?;
        Some(serde_json::from_slice::<Bootstrap>(&json).ok()?.address)
    })?;
    let path = PathBuf::from(address.trim().strip_prefix("unix://")?);
    (path.parent() == Some(Path::new(SHIM_SOCKETS))).then_some(path)
}

/// Only what `up` made; the folder itself goes if nothing else is in it.
fn remove_data(layout: &Layout) -> anyhow::Result<()> {
    if !mounts::under(&layout.data)?.is_empty() {
        return Err(Stop::Usage(format!(
            "something is mounted in {}: unmount it first",
            layout.data.display()
        ))
        .into());
    }
    for path in layout.contents() {
        let removed = match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(&path),
            Ok(_) => fs::remove_file(&path),
            Err(e) => Err(e),
        };
        absent(removed).with_context(|| format!("remove {}", path.display()))?;
    }
    let _ = fs::remove_dir(&layout.data);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(state: &Path, id: &str) -> PathBuf {
        let bundle = state
            .join("io.containerd.runtime.v2.task/stokehold")
            .join(id);
        fs::create_dir_all(&bundle).expect("bundle");
        bundle
    }

    #[test]
    fn shim_sockets_are_read_in_both_forms_and_never_elsewhere() {
        let state = tempfile::tempdir().expect("folder");
        let one = bundle(state.path(), "one");
        fs::write(one.join("address"), "unix:///run/containerd/s/abc\n").expect("write");
        let two = bundle(state.path(), "two");
        let json = r#"{"version":3,"address":"unix:///run/containerd/s/def","protocol":"ttrpc"}"#;
        fs::write(two.join("bootstrap.json"), json).expect("write");
        let three = bundle(state.path(), "three");
        fs::write(three.join("address"), "unix:///etc/passwd").expect("write");
        let four = bundle(state.path(), "four");
        fs::write(four.join("address"), "unix:///run/containerd/s/../../x").expect("write");
        let mut found: Vec<(String, Option<PathBuf>)> = bundles(state.path())
            .into_iter()
            .map(|bundle| (bundle.id, bundle.socket))
            .collect();
        found.sort();
        assert_eq!(
            found,
            [
                ("four".to_owned(), None),
                ("one".to_owned(), Some("/run/containerd/s/abc".into())),
                ("three".to_owned(), None),
                ("two".to_owned(), Some("/run/containerd/s/def".into())),
            ]
        );
    }

    #[test]
    fn removing_the_data_leaves_what_is_not_ours() {
        let home = tempfile::tempdir().expect("folder");
        let layout = Layout::of(home.path()).expect("layout");
        fs::create_dir_all(home.path().join("models/objects")).expect("folder");
        fs::write(home.path().join("up.json"), "{}").expect("write");
        fs::write(home.path().join("thesis.tex"), "x").expect("write");
        remove_data(&layout).expect("removed");
        let left: Vec<_> = fs::read_dir(home.path())
            .expect("list")
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        assert_eq!(left, ["thesis.tex"]);
        fs::remove_file(home.path().join("thesis.tex")).expect("removed");
        remove_data(&layout).expect("removed");
        assert!(!home.path().exists());
        remove_data(&layout).expect("nothing to do");
    }
}
