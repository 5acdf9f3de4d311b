//! The default store: sled 0.34, one tree, one writer.
//!
//! sled is used within narrow limits, since its known faults lie outside them: a single tree, small
//! records and no blobs, a small cache, one process, one writing thread.
//!
//! * **Durable.** `flush` of sled 0.34 on Linux ends in `sync_file_range`, which neither waits for
//!   the disk's own cache nor for the file's metadata: it outlives a kill, not a power loss. So each
//!   commit flushes, then syncs sled's one data file through a descriptor of our own.
//! * **Whole.** A batch and the new revision are one `apply_batch`, which sled recovers as a whole.
//! * **No blobs.** sled puts log items above a quarter of a segment into files of their own and does
//!   not sync those. A leaf holds up to 17 records of 16 KiB; segments of 2 MiB keep it inline.
//! * **No silent loss.** sled takes a torn or garbled end for an unfinished write and drops it. So
//!   the revision of each commit is also noted in a file beside the exports (not synced: after a
//!   power loss it may be too low, which harms nothing). A store below that note, or below an
//!   export, has lost acknowledged records and is refused.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use scheduler_core::store_op::{MAX_OPS, Op};
use shared::ids::{Epoch, Revision};
use shared::units::Bytes;
use tracing::{info, warn};

use super::export::{self, ExportError};
use super::{CommitError, LoadError, REPAIR, Snapshot, Store, check_batch, next_epoch};

const TREE: &str = "records";
/// The file in the exports' folder that notes the last commit's revision.
const NOTE: &str = "revision";
/// Keys of our own start with a character that no record's key may.
const SCHEMA_KEY: &str = "!schema";
const REVISION_KEY: &str = "!revision";
const EPOCH_KEY: &str = "!epoch";
const SCHEMA: u64 = 1;

/// What must be free for a commit: a batch is at most 2 MiB, and sled writes whole segments.
const WRITE_ROOM: Bytes = Bytes::mib(8);
const EXPORT_AGAIN: Duration = Duration::from_secs(60);

const CACHE_BYTES: u64 = 64 << 20;
const SEGMENT_BYTES: usize = 2 << 20;
/// Commits flush by themselves; this only lets sled tidy up.
const FLUSH_EVERY_MS: u64 = 500;
/// An export is written with the first commit that finds the newest this old, in commits or in time.
const COMMITS_PER_EXPORT: u64 = 1000;
const EXPORT_INTERVAL: Duration = Duration::from_secs(600);

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("store in {} is in use by another process: one scheduler at a time", folder.display())]
    Locked { folder: PathBuf },
    #[error(transparent)]
    Damaged(#[from] LoadError),
    #[error(
        "store in {} is at revision {revision}, behind the revision {acknowledged} that {} tells of: \
         it has lost acknowledged records. {REPAIR}",
        folder.display(), witness.display()
    )]
    Behind {
        folder: PathBuf,
        revision: Revision,
        acknowledged: Revision,
        witness: PathBuf,
    },
    #[error(
        "store in {} has schema {found}, this stokehold-scheduler ({}) knows {SCHEMA}: install the \
         version that wrote it, or a later one. To go on with this one, move that folder away and run \
         `stokehold-scheduler restore-store` with a file of the folder `exports` beside it that was \
         made before the upgrade",
        folder.display(), env!("CARGO_PKG_VERSION")
    )]
    Schema { folder: PathBuf, found: u64 },
    #[error("open the store in {}", folder.display())]
    Io {
        folder: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Export(#[from] ExportError),
}

#[derive(Debug, thiserror::Error)]
pub enum RestoreStoreError {
    #[error("store in {} is not empty: move that folder away first", folder.display())]
    NotEmpty { folder: PathBuf },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("write the restored records")]
    Write(#[from] CommitError),
}

pub struct SledStore {
    folder: PathBuf,
    exports: PathBuf,
    tree: sled::Tree,
    /// Keeps the lock on the folder.
    _db: sled::Db,
    /// sled's data file, to sync it by ourselves.
    data: File,
    /// The revision of the last commit, as text.
    note: File,
    revision: Revision,
    epoch: Epoch,
    /// What the newest export of this process holds, and when it was written.
    exported: Option<(Revision, Instant)>,
    /// When an export failed, until one is written.
    export_failed: Option<Instant>,
}

impl SledStore {
    /// Opens the store in `folder`, or makes an empty one. Exports go to, and are compared with,
    /// `exports`.
    pub fn open(folder: &Path, exports: &Path) -> Result<Self, OpenError> {
        let store = Self::open_alone(folder, exports)?;
        let noted = store
            .noted_revision()
            .map(|noted| (noted, store.note_path()));
        for (acknowledged, witness) in export::newest(exports)?.into_iter().chain(noted) {
            if acknowledged > store.revision {
                return Err(OpenError::Behind {
                    folder: folder.to_owned(),
                    revision: store.revision,
                    acknowledged,
                    witness,
                });
            }
        }
        Ok(store)
    }

    /// Makes a store from an export; the folder must not hold one.
    pub fn restore(
        folder: &Path,
        exports: &Path,
        snapshot: &Snapshot,
    ) -> Result<(), RestoreStoreError> {
        let not_empty = || RestoreStoreError::NotEmpty {
            folder: folder.to_owned(),
        };
        if folder.exists() {
            return Err(not_empty());
        }
        let mut store = Self::open_alone(folder, exports)?;
        let entries: Vec<_> = snapshot.entries.iter().collect();
        for chunk in entries.chunks(MAX_OPS) {
            let mut batch = sled::Batch::default();
            for (key, value) in chunk {
                batch.insert(key.as_bytes(), value.as_slice());
            }
            store.apply(batch)?;
        }
        // Last, so that a restore that was cut off leaves a store that counts as behind.
        store.write_numbers(sled::Batch::default(), snapshot.revision, snapshot.epoch)?;
        Ok(())
    }

    fn open_alone(folder: &Path, exports: &Path) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io {
            folder: folder.to_owned(),
            source,
        };
        daemon::files::private_dir(folder, 0o700).map_err(io)?;
        let config = sled::Config::new()
            .path(folder)
            .cache_capacity(CACHE_BYTES)
            .segment_size(SEGMENT_BYTES)
            .flush_every_ms(Some(FLUSH_EVERY_MS));
        let open = || {
            let db = config.open()?;
            let tree = db.open_tree(TREE)?;
            Ok((db, tree))
        };
        let (db, tree) = guarded(open).map_err(|fault| fault.opening(folder))?;
        let data = File::open(folder.join("db")).map_err(io)?;
        daemon::files::private_dir(exports, 0o700).map_err(io)?;
        let note = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(exports.join(NOTE))
            .map_err(io)?;
        let mut store = Self {
            folder: folder.to_owned(),
            exports: exports.to_owned(),
            tree,
            _db: db,
            data,
            note,
            revision: Revision(0),
            epoch: Epoch(0),
            exported: None,
            export_failed: None,
        };
        match store.number(SCHEMA_KEY)? {
            Some(SCHEMA) => {}
            Some(found) => {
                return Err(OpenError::Schema {
                    folder: folder.to_owned(),
                    found,
                });
            }
            None => store.found(folder).map_err(io)?,
        }
        store.revision = Revision(store.number(REVISION_KEY)?.unwrap_or(0));
        store.epoch = Epoch(store.number(EPOCH_KEY)?.unwrap_or(0));
        Ok(store)
    }

    /// Writes what an empty store holds, and makes its files' names durable.
    fn found(&self, folder: &Path) -> io::Result<()> {
        let set = || self.tree.insert(SCHEMA_KEY, &SCHEMA.to_be_bytes());
        set().map_err(io::Error::other)?;
        self.tree.flush().map_err(io::Error::other)?;
        self.data.sync_all()?;
        File::open(folder)?.sync_all()?;
        match folder.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    }

    fn number(&self, key: &str) -> Result<Option<u64>, LoadError> {
        let value = guarded(|| self.tree.get(key)).map_err(|fault| fault.reading(&self.folder))?;
        value
            .map(|bytes| {
                let bytes = bytes.as_ref().try_into().map_err(|_| LoadError {
                    folder: self.folder.clone(),
                    problem: format!("{key} is not a number"),
                })?;
                Ok(u64::from_be_bytes(bytes))
            })
            .transpose()
    }

    /// Applies a batch and returns once it is on disk.
    fn apply(&mut self, batch: sled::Batch) -> Result<(), CommitError> {
        // sled takes no write after one that failed: a full disk is not to reach it.
        daemon::room::check(&self.folder, WRITE_ROOM, "data_dir")?;
        let written = self
            .tree
            .apply_batch(batch)
            .and_then(|()| self.tree.flush())
            .map_err(into_io)
            .and_then(|_| self.data.sync_data());
        written.map_err(|source| CommitError::Io {
            folder: self.folder.clone(),
            source,
        })
    }

    fn write_numbers(
        &mut self,
        mut batch: sled::Batch,
        revision: Revision,
        epoch: Epoch,
    ) -> Result<(), CommitError> {
        batch.insert(REVISION_KEY, &revision.0.to_be_bytes());
        batch.insert(EPOCH_KEY, &epoch.0.to_be_bytes());
        self.apply(batch)?;
        self.revision = revision;
        self.epoch = epoch;
        let noted = self
            .note
            .write_all_at(format!("{:020}\n", revision.0).as_bytes(), 0);
        noted.map_err(|source| CommitError::Io {
            folder: self.exports.clone(),
            source,
        })
    }

    fn note_path(&self) -> PathBuf {
        self.exports.join(NOTE)
    }

    /// `None` for a note that was never written, or not whole.
    fn noted_revision(&self) -> Option<Revision> {
        let mut text = [0; 20];
        self.note.read_exact_at(&mut text, 0).ok()?;
        std::str::from_utf8(&text).ok()?.parse().ok().map(Revision)
    }

    /// A copy for the day on which the store is damaged. Its failure is no reason to stop: the
    /// store itself is whole.
    fn export(&mut self) {
        let written = match self.load() {
            Ok(snapshot) => export::write(&self.exports, &snapshot)
                .map_err(|e| daemon::telemetry::Chain(&e).to_string()),
            Err(error) => Err(error.to_string()),
        };
        match written {
            Ok(path) => {
                info!(export = %path.display(), revision = %self.revision, "store exported");
                self.exported = Some((self.revision, Instant::now()));
                self.export_failed = None;
            }
            Err(error) => {
                if self.export_failed.is_none() {
                    warn!(error, "store was not exported, trying again later");
                }
                self.export_failed = Some(Instant::now());
            }
        }
    }
}

/// An orderly stop leaves an export of all that was acknowledged.
impl Drop for SledStore {
    fn drop(&mut self) {
        if self
            .exported
            .is_some_and(|(exported, _)| exported != self.revision)
        {
            self.export();
        }
    }
}

impl Store for SledStore {
    fn load(&mut self) -> Result<Snapshot, LoadError> {
        let read = || self.tree.iter().collect::<Result<Vec<_>, _>>();
        let pairs = guarded(read).map_err(|fault| fault.reading(&self.folder))?;
        let mut snapshot = Snapshot {
            revision: self.revision,
            epoch: self.epoch,
            ..Snapshot::default()
        };
        for (key, value) in pairs {
            if key.first() == Some(&b'!') {
                continue;
            }
            let key = String::from_utf8(key.to_vec()).map_err(|e| LoadError {
                folder: self.folder.clone(),
                problem: format!("a key is not text: {e}"),
            })?;
            snapshot.entries.insert(key, value.to_vec());
        }
        Ok(snapshot)
    }

    fn commit(&mut self, batch: &[Op], expected_epoch: Epoch) -> Result<Revision, CommitError> {
        check_batch(batch)?;
        if self.epoch != expected_epoch {
            return Err(CommitError::EpochMoved {
                expected: expected_epoch,
                actual: self.epoch,
            });
        }
        let mut whole = sled::Batch::default();
        for op in batch {
            match op {
                Op::Put { key, value } => whole.insert(key.as_bytes(), value.as_slice()),
                Op::Delete { key } => whole.remove(key.as_bytes()),
            }
        }
        let revision = Revision(self.revision.0 + 1);
        self.write_numbers(whole, revision, self.epoch)?;
        let due = self.exported.is_none_or(|(exported, at)| {
            revision.0 - exported.0 >= COMMITS_PER_EXPORT || at.elapsed() >= EXPORT_INTERVAL
        });
        let rests = self
            .export_failed
            .is_some_and(|at| at.elapsed() < EXPORT_AGAIN);
        if due && !rests {
            self.export();
        }
        Ok(revision)
    }

    fn begin_epoch(&mut self, at_least: Epoch) -> Result<Epoch, CommitError> {
        let epoch = next_epoch(self.epoch, at_least)?;
        let revision = Revision(self.revision.0 + 1);
        self.write_numbers(sled::Batch::default(), revision, epoch)?;
        self.export();
        Ok(epoch)
    }
}

/// What may come of a call into sled that reads.
enum Fault {
    Locked,
    Io(io::Error),
    Damaged(String),
}

impl Fault {
    fn opening(self, folder: &Path) -> OpenError {
        let folder = folder.to_owned();
        match self {
            Fault::Locked => OpenError::Locked { folder },
            Fault::Io(source) => OpenError::Io { folder, source },
            Fault::Damaged(problem) => OpenError::Damaged(LoadError { folder, problem }),
        }
    }

    fn reading(self, folder: &Path) -> LoadError {
        LoadError {
            folder: folder.to_owned(),
            problem: match self {
                Fault::Locked => "its lock was taken away".to_owned(),
                Fault::Io(source) => source.to_string(),
                Fault::Damaged(problem) => problem,
            },
        }
    }
}

/// Runs a call into sled that reads what may be garbled: sled answers some damage by a panic.
fn guarded<T>(call: impl FnOnce() -> sled::Result<T>) -> Result<T, Fault> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(sled::Error::Io(e))) if e.to_string().contains("acquire lock") => Err(Fault::Locked),
        Ok(Err(sled::Error::Io(e))) => Err(Fault::Io(e)),
        Ok(Err(error)) => Err(Fault::Damaged(error.to_string())),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            let text = text.unwrap_or("sled gave up without saying why");
            Err(Fault::Damaged(text.to_owned()))
        }
    }
}

fn into_io(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}
