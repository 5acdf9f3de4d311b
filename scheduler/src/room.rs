//! Room on the disk of `data_dir`, watched each second, so that a full disk is an answer and not an end.
//!
//! ```text
//! free      what happens
//! --------  -----------------------------------------------------------------
//! 56 MiB +  a reserve of 16 MiB is made, `data_dir/reserve`
//! 24 MiB +  all is well
//! below     what would fill it further is refused (507), `/readyz` says so; deleting goes on
//!  8 MiB -  the reserve is given up, so that the scheduler can write what it must: where replicas
//!           are, what became of nodes. Others may have filled the disk
//! nothing   a commit waits for room, and nothing is told that is not on disk
//! ```
//! All of it ends by itself once there is room.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use daemon::room::{self, NoRoom};
use shared::units::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

const KEY: &str = "data_dir";
const RESERVE_FILE: &str = "reserve";
const RESERVE: Bytes = Bytes::mib(16);
/// Below it people's changes are refused.
const CHANGES: Bytes = Bytes::mib(24);
/// Below it the reserve is given up.
const LAST: Bytes = Bytes::mib(8);
const EVERY: Duration = Duration::from_secs(1);

/// Whether there is room for what people want.
#[derive(Clone, Debug)]
pub struct Room {
    folder: PathBuf,
    short: watch::Receiver<Option<NoRoom>>,
}

impl Room {
    /// Of a folder that nobody watches there is always enough.
    pub fn unwatched() -> Self {
        let (_, short) = watch::channel(None);
        Self {
            folder: PathBuf::new(),
            short,
        }
    }

    /// Whether a change that brings so many bytes can be taken.
    pub fn for_change(&self, bytes: u64) -> Result<(), NoRoom> {
        if let Some(short) = &*self.short.borrow() {
            return Err(short.clone());
        }
        if bytes == 0 || self.folder.as_os_str().is_empty() {
            return Ok(());
        }
        let needed = Bytes(CHANGES.get().saturating_add(bytes));
        room::check(&self.folder, needed, KEY)
    }
}

/// Watches a disk; see [`Keeper::run`].
pub struct Keeper {
    folder: PathBuf,
    short: watch::Sender<Option<NoRoom>>,
}

/// Before the store is opened: gives the reserve up where that is needed, and refuses to start without
/// room for a single commit.
pub fn open(folder: &Path) -> Result<(Room, Keeper), NoRoom> {
    let (short, watched) = watch::channel(None);
    let keeper = Keeper {
        folder: folder.to_owned(),
        short,
    };
    keeper.look();
    room::check(folder, LAST, KEY)?;
    let room = Room {
        folder: folder.to_owned(),
        short: watched,
    };
    Ok((room, keeper))
}

impl Keeper {
    /// Until cancelled. `ready` is told what there is no room for.
    pub async fn run(
        self,
        ready: watch::Sender<Result<(), String>>,
        cancel: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut keeper = self;
        loop {
            let said = keeper.short.borrow().as_ref().map(ToString::to_string);
            ready.send_if_modified(|current| {
                let now = said.map_or(Ok(()), Err);
                let changed = *current != now;
                *current = now;
                changed
            });
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(EVERY) => {}
            }
            keeper = tokio::task::spawn_blocking(move || {
                keeper.look();
                keeper
            })
            .await?;
        }
    }

    fn look(&self) {
        let reserve = self.folder.join(RESERVE_FILE);
        let is_short = |needed| room::check(&self.folder, needed, KEY).err();
        if is_short(LAST).is_some() && reserve.exists() {
            match std::fs::remove_file(&reserve) {
                Ok(()) => warn!(
                    path = %reserve.display(),
                    "the disk is full: the reserve was given up for what must be written"
                ),
                Err(error) => warn!(%error, path = %reserve.display(), "remove the reserve"),
            }
        }
        let short = is_short(CHANGES);
        if short.is_none()
            && !reserve.exists()
            && is_short(Bytes(CHANGES.get() + 2 * RESERVE.get())).is_none()
        {
            // Another time: nothing hangs on it as long as there is room.
            let _ = make_reserve(&reserve);
        }
        self.short.send_if_modified(|current| {
            match (&*current, &short) {
                (None, Some(short)) => {
                    warn!(problem = %short, "changes are refused until there is room");
                }
                (Some(_), None) => info!("there is room again, changes are taken"),
                (None, None) | (Some(_), Some(_)) => {}
            }
            let changed = *current != short;
            *current = short;
            changed
        });
    }
}

fn make_reserve(path: &Path) -> io::Result<()> {
    let file: File = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    let len = i64::try_from(RESERVE.get()).map_err(io::Error::other)?;
    let allocated = nix::fcntl::posix_fallocate(&file, 0, len);
    if let Err(error) = allocated {
        let _ = std::fs::remove_file(path);
        return Err(error.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_room_there_is_a_reserve_and_changes_are_taken_up_to_what_fits() {
        let folder = tempfile::tempdir().expect("folder");
        let (room, _keeper) = open(folder.path()).expect("room");
        assert_eq!(room.for_change(1 << 10), Ok(()));
        let reserve = folder.path().join(RESERVE_FILE);
        assert_eq!(
            std::fs::metadata(reserve).expect("made").len(),
            RESERVE.get()
        );
        let refused = room.for_change(u64::MAX).expect_err("no disk has it");
        assert!(refused.to_string().contains("`data_dir`"), "{refused}");
    }

    #[tokio::test(start_paused = true)]
    async fn readiness_follows_the_room() {
        let folder = tempfile::tempdir().expect("folder");
        let (room, keeper) = open(folder.path()).expect("room");
        let (ready, mut readiness) = watch::channel(Err("starting".to_owned()));
        let cancel = CancellationToken::new();
        let watching = tokio::spawn(keeper.run(ready, cancel.clone()));
        readiness.wait_for(Result::is_ok).await.expect("ready");
        assert_eq!(room.for_change(0), Ok(()));
        cancel.cancel();
        watching.await.expect("ran").expect("ended well");
    }
}
