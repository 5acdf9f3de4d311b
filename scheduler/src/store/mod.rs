//! What the scheduler knows for good: named records, written in batches that happen whole or not at
//! all, fenced by the epoch.
//!
//! What always holds: a batch that was acknowledged is there after a crash of the process and after
//! a power loss; a batch that was not acknowledged is there whole or not at all; a process whose
//! epoch has been overtaken writes nothing.
//!
//! Not here: what the records mean (`scheduler_core`) and blobs (`model::store`).

mod export;
mod memory;
mod sled_store;
mod thread;

use std::io;
use std::path::PathBuf;

use scheduler_core::store_op::{Entries, MAX_OPS, MAX_VALUE_BYTES, Op};
use shared::ids::{Epoch, Revision};

pub use export::{ExportError, read as read_export};
pub use memory::MemoryStore;
pub use sled_store::{OpenError, RestoreStoreError, SledStore};
pub use thread::{StoreGone, StoreHandle, spawn};

const MAX_KEY_BYTES: usize = 256;

/// Everything in a store at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Grows by one with each commit and each epoch, for the life of the store.
    pub revision: Revision,
    pub epoch: Epoch,
    pub entries: Entries,
}

/// A store of one cluster's records. Calls block; see [`spawn`].
pub trait Store: Send {
    fn load(&mut self) -> Result<Snapshot, LoadError>;

    /// Applies a batch. Returns once it is on disk.
    fn commit(&mut self, batch: &[Op], expected_epoch: Epoch) -> Result<Revision, CommitError>;

    /// Starts the next epoch, which is at least this one: a store restored from an old copy must
    /// start above what it gave out since.
    fn begin_epoch(&mut self, at_least: Epoch) -> Result<Epoch, CommitError>;
}

#[derive(Debug, thiserror::Error)]
#[error("store in {} is damaged: {problem}. {}", folder.display(), REPAIR)]
pub struct LoadError {
    pub folder: PathBuf,
    pub problem: String,
}

/// What to do about a damaged store.
const REPAIR: &str = "Move that folder away and run `stokehold-scheduler restore-store` with the \
                      newest file of the folder `exports` beside it";

#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    #[error("epoch {expected} was overtaken by {actual}: another scheduler leads")]
    EpochMoved { expected: Epoch, actual: Epoch },
    #[error("record {key:?} {problem}")]
    Record { key: String, problem: String },
    #[error("batch of {len} operations is over the limit of {MAX_OPS}")]
    TooManyOps { len: usize },
    #[error("epochs are used up")]
    NoEpochLeft,
    /// Nothing was written; the same commit may be tried again.
    #[error(transparent)]
    NoRoom(#[from] daemon::room::NoRoom),
    #[error("write to the store in {}", folder.display())]
    Io {
        folder: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Refuses what not every store could carry. The core keeps to these limits; this is the proof.
fn check_batch(batch: &[Op]) -> Result<(), CommitError> {
    if batch.len() > MAX_OPS {
        return Err(CommitError::TooManyOps { len: batch.len() });
    }
    for op in batch {
        let key = op.key();
        let problem = if key.is_empty() || key.len() > MAX_KEY_BYTES {
            format!(
                "has a key of {} bytes, expected 1 to {MAX_KEY_BYTES}",
                key.len()
            )
        } else if !key.as_bytes()[0].is_ascii_alphanumeric()
            || !key.bytes().all(|b| b.is_ascii_graphic())
        {
            "has a key that is not printable ASCII starting with a letter or digit".to_owned()
        } else {
            match op {
                Op::Put { value, .. } if value.len() > MAX_VALUE_BYTES => format!(
                    "has {} bytes, over the limit of {MAX_VALUE_BYTES}",
                    value.len()
                ),
                Op::Put { .. } | Op::Delete { .. } => continue,
            }
        };
        let key = key.chars().take(80).collect();
        return Err(CommitError::Record { key, problem });
    }
    Ok(())
}

/// The epoch after `current` that is at least `at_least`.
fn next_epoch(current: Epoch, at_least: Epoch) -> Result<Epoch, CommitError> {
    let next = current.0.checked_add(1).ok_or(CommitError::NoEpochLeft)?;
    Ok(Epoch(next.max(at_least.0)))
}
