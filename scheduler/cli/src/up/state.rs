//! `up.json`: what runs, for `down` and for people; `up.lock`: held by the supervisor as long as it
//! lives, so that there is one.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::layout::Layout;
use super::processes::Process;
use crate::exit::Stop;

pub(super) const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) version: u32,
    pub(super) phase: Phase,
    /// What goes on, or why it failed.
    pub(super) message: String,
    pub(super) supervisor: Process,
    /// By name; those that live.
    pub(super) processes: BTreeMap<String, Process>,
    pub(super) node: String,
    pub(super) server: String,
    pub(super) gateway: String,
    /// A containerd that is not ours.
    pub(super) external_containerd: Option<PathBuf>,
    pub(super) namespace: String,
    pub(super) run_dir: PathBuf,
    /// The user whose context was made; `None`: the one that ran `up`.
    pub(super) user: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Phase {
    Starting,
    Ready,
    Stopping,
    Stopped,
    Failed,
}

impl Record {
    /// `None` for no record, and for one that cannot be read: `down` must work without.
    pub(super) fn load(layout: &Layout) -> Option<Self> {
        let text = std::fs::read(layout.state_file()).ok()?;
        let record: Self = serde_json::from_slice(&text).ok()?;
        (record.version == VERSION).then_some(record)
    }

    /// Refuses the record of a later version, before anything is changed: this program would not know
    /// all that belongs to it.
    pub(super) fn check_version(layout: &Layout) -> Result<(), Stop> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let path = layout.state_file();
        let head = std::fs::read(&path)
            .ok()
            .and_then(|text| serde_json::from_slice::<Head>(&text).ok());
        match head {
            Some(Head { version }) if version > VERSION => Err(Stop::Usage(format!(
                "{} has version {version}, this stokehold ({}) knows {VERSION}: use the version that \
                 wrote it, or a later one. Nothing was changed",
                path.display(),
                env!("CARGO_PKG_VERSION")
            ))),
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn save(&self, layout: &Layout) -> anyhow::Result<()> {
        let json = serde_json::to_vec_pretty(self).expect("a record is plain");
        let path = layout.state_file();
        daemon::files::write_atomic(&path, &json, 0o644)
            .with_context(|| format!("write {}", path.display()))
    }
}

/// Takes the data folder for this instance: from now on `down` may remove what [`Layout::contents`]
/// names. A folder in which something of that name lies already is somebody else's.
pub(super) fn claim(layout: &Layout) -> anyhow::Result<()> {
    let folder = layout.data.display();
    layout
        .make_data()
        .with_context(|| format!("make folder {folder}"))?;
    if layout.is_ours() {
        return Ok(());
    }
    let foreign = layout
        .contents()
        .find(|path| path.symlink_metadata().is_ok());
    if let Some(foreign) = foreign {
        return Err(Stop::Usage(format!(
            "{} is not from `stokehold up`, and `down` would remove it: give a folder of its own \
             with --data",
            foreign.display()
        ))
        .into());
    }
    lock(layout).map(drop)
}

/// Held while it lives.
pub(super) struct Lock(#[allow(dead_code, reason = "its drop unlocks")] Flock<std::fs::File>);

/// `None`: another process holds it.
pub(super) fn lock(layout: &Layout) -> anyhow::Result<Option<Lock>> {
    let path = layout.lock_file();
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(Lock(lock))),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => {
            Err(io::Error::from(errno)).with_context(|| format!("lock {}", path.display()))
        }
    }
}

/// The record of a supervisor that lives now. The lock decides, the record only describes.
pub(super) fn running(layout: &Layout) -> anyhow::Result<Option<Record>> {
    if !layout.lock_file().exists() || lock(layout)?.is_some() {
        return Ok(None);
    }
    let record = Record::load(layout).with_context(|| {
        format!(
            "another `stokehold up` with {} is just starting",
            layout.data.display()
        )
    })?;
    Ok(Some(record))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(folder: &tempfile::TempDir) -> Layout {
        Layout::of(folder.path()).expect("layout")
    }

    #[test]
    fn one_lock_is_held_at_a_time_and_ends_with_its_holder() {
        let folder = tempfile::tempdir().expect("folder");
        let layout = layout(&folder);
        let held = lock(&layout).expect("lock").expect("free");
        assert!(lock(&layout).expect("lock").is_none());
        drop(held);
        assert!(lock(&layout).expect("lock").is_some());
        assert!(running(&layout).expect("nobody").is_none());
    }

    #[test]
    fn a_folder_with_somebody_elses_things_is_not_claimed() {
        let folder = tempfile::tempdir().expect("folder");
        let layout = layout(&folder);
        std::fs::write(folder.path().join("thesis.tex"), b"x").expect("write");
        let models = folder.path().join("models");
        std::fs::create_dir(&models).expect("folder");
        let refused = claim(&layout).expect_err("not ours").to_string();
        assert!(refused.contains("models"), "{refused}");
        assert!(!layout.is_ours());
        std::fs::remove_dir(&models).expect("removed");
        claim(&layout).expect("nothing is in its way");
        std::fs::create_dir(&models).expect("folder");
        claim(&layout).expect("ours by now");
    }

    #[test]
    fn the_record_of_a_later_version_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let layout = layout(&folder);
        Record::check_version(&layout).expect("none");
        for strange in ["", "{}", "{\"version\":1}"] {
            std::fs::write(layout.state_file(), strange).expect("write");
            Record::check_version(&layout).expect("not a later one");
        }
        std::fs::write(layout.state_file(), "{\"version\":2,\"new\":[]}").expect("write");
        let text = Record::check_version(&layout)
            .expect_err("refused")
            .to_string();
        assert!(
            text.contains("version 2") && text.contains("knows 1"),
            "{text}"
        );
    }

    #[test]
    fn a_record_reads_back_and_a_strange_one_is_none() {
        let folder = tempfile::tempdir().expect("folder");
        let layout = layout(&folder);
        assert_eq!(Record::load(&layout), None);
        let process = Process {
            pid: 7,
            start_ticks: 99,
        };
        let record = Record {
            version: VERSION,
            phase: Phase::Ready,
            message: String::new(),
            supervisor: process,
            processes: BTreeMap::from([("agent".to_owned(), process)]),
            node: "n1".into(),
            server: "https://127.0.0.1:7443".into(),
            gateway: "https://127.0.0.1:8443".into(),
            external_containerd: None,
            namespace: "stokehold".into(),
            run_dir: "/run/stokehold/up-0".into(),
            user: None,
        };
        record.save(&layout).expect("write");
        assert_eq!(Record::load(&layout), Some(record));
        std::fs::write(layout.state_file(), b"{").expect("write");
        assert_eq!(Record::load(&layout), None);
    }
}
