//! A store in memory, for tests and simulations of crashes.

use std::io;
use std::path::PathBuf;

use scheduler_core::store_op::Op;
use shared::ids::{Epoch, Revision};

use super::{CommitError, LoadError, Snapshot, Store, check_batch, next_epoch};

#[derive(Debug, Default)]
pub struct MemoryStore {
    durable: Snapshot,
    fail_next_commit: bool,
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
            fail_next_commit: false,
        }
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
