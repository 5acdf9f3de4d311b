//! A store in memory, for tests and simulations of crashes.

use std::io;
use std::path::PathBuf;

use daemon::room::NoRoom;
use scheduler_core::store_op::Op;
use shared::ids::{Epoch, Revision};
use shared::units::Bytes;

use super::{CommitError, LoadError, Snapshot, Store, check_batch, next_epoch};

#[derive(Debug, Default)]
pub struct MemoryStore {
    durable: Snapshot,
    fail_next_commit: bool,
    /// So many commits find no room.
    commits_without_room: u32,
}

impl MemoryStore {
    pub fn new() -> Self {
        Self::default()
    }

    /// The process dies: what a later one finds.
    #[must_use]
    pub fn crash(self) -> Self {
        Self {
            durable: self.durable,
            ..Self::default()
        }
    }

    /// So many commits find no room and write nothing.
    pub fn lack_room_for(&mut self, commits: u32) {
        self.commits_without_room = commits;
    }

    /// The next commit fails as if the disk were full.
    pub fn fail_next_commit(&mut self) {
        self.fail_next_commit = true;
    }
}

impl Store for MemoryStore {
    fn load(&mut self) -> Result<Snapshot, LoadError> {
        Ok(self.durable.clone())
    }

    fn commit(&mut self, batch: &[Op], expected_epoch: Epoch) -> Result<Revision, CommitError> {
        check_batch(batch)?;
        if self.durable.epoch != expected_epoch {
            return Err(CommitError::EpochMoved {
                expected: expected_epoch,
                actual: self.durable.epoch,
            });
        }
        if self.commits_without_room > 0 {
            self.commits_without_room -= 1;
            return Err(CommitError::NoRoom(NoRoom {
                path: PathBuf::from("memory"),
                needed: Bytes(2),
                free: Bytes(1),
                key: "data_dir",
            }));
        }
        if std::mem::take(&mut self.fail_next_commit) {
            return Err(CommitError::Io {
                folder: PathBuf::from("memory"),
                source: io::Error::from(io::ErrorKind::StorageFull),
            });
        }
        for op in batch {
            match op {
                Op::Put { key, value } => {
                    self.durable.entries.insert(key.clone(), value.clone());
                }
                Op::Delete { key } => {
                    self.durable.entries.remove(key);
                }
            }
        }
        self.durable.revision.0 += 1;
        Ok(self.durable.revision)
    }

    fn begin_epoch(&mut self, at_least: Epoch) -> Result<Epoch, CommitError> {
        self.durable.epoch = next_epoch(self.durable.epoch, at_least)?;
        self.durable.revision.0 += 1;
        Ok(self.durable.epoch)
    }
}
