//! One file's bytes on a node: `objects/KEY/data`, allocated whole, and `objects/KEY/have`.
//!
//! ```text
//!            open()                    finish()
//!  Closed ──────────► Filling ───────────────────► Complete   (read-only, may be linked into views)
//!    ▲    (resumes)      │ a sync fails
//!    └───────────────────┘
//! ```
//!
//! What always holds:
//! * A bit in `have` is set only after the chunk's bytes are on disk (fdatasync, then `have`).
//! * What `have` does not vouch for is not there: it is fetched again.
//! * A file that was ever complete is never written to again, as views may share its inode; if
//!   `have` no longer vouches for it, a new file takes its place.
//! * After a failed sync nothing that was written since the last good one counts: the kernel reports
//!   such a loss only once.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use shared::digest::{ChunkPlace, Digest};
use shared::manifest::{ChunkRef, FileEntry};

use crate::chunk::checked_digest;

use super::disk::{Loaded, ObjectFiles, ObjectKey};
use super::error::{FileError, ObjectError};
use super::have::Have;

/// A crash costs at most this much to fetch again, or what arrived within [`SYNC_INTERVAL`].
const SYNC_BYTES: u64 = 256 << 20;
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// A chunk whose bytes have its digest. Only such can be written.
#[derive(Clone, Debug)]
pub struct VerifiedChunk {
    chunk: ChunkRef,
    bytes: Bytes,
}

impl VerifiedChunk {
    /// Hashes the bytes: run it where blocking is allowed. The error is the digest that they have,
    /// as a chunk at that place if they have a chunk's length.
    pub fn verify(chunk: ChunkRef, bytes: Bytes) -> Result<Self, Digest> {
        if bytes.len() as u64 != chunk.len_bytes {
            return Err(Digest::of(&bytes));
        }
        match checked_digest(chunk.place, &bytes) {
            Some(actual) if actual == chunk.digest => Ok(Self { chunk, bytes }),
            actual => Err(actual.unwrap_or_else(|| Digest::of(&bytes))),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Object {
    files: ObjectFiles,
    turn: Arc<tokio::sync::Mutex<()>>,
    state: Mutex<State>,
    /// Held through a sync, so that two never race to write `have`.
    syncing: Mutex<()>,
    allocated: AtomicBool,
}

#[derive(Debug)]
enum State {
    Closed,
    Filling(Filling),
    Complete,
}

#[derive(Debug)]
struct Filling {
    file: Arc<File>,
    have: Have,
    /// Written since the last sync began.
    unsynced: Vec<usize>,
    unsynced_bytes: u64,
    last_sync: Instant,
}

impl State {
    fn of(loaded: Loaded) -> Self {
        match loaded {
            Loaded::Complete => State::Complete,
            Loaded::Partial { file, have } => State::Filling(Filling {
                file: Arc::new(file),
                have,
                unsynced: Vec::new(),
                unsynced_bytes: 0,
                last_sync: Instant::now(),
            }),
        }
    }
}

impl Object {
    pub(super) fn new(objects: &Path, entry: FileEntry) -> Self {
        let files = ObjectFiles::new(objects, entry);
        Self {
            turn: Arc::default(),
            state: Mutex::new(State::Closed),
            syncing: Mutex::new(()),
            allocated: AtomicBool::new(files.exist()),
            files,
        }
    }

    /// Who fills the object holds this, writes under way included.
    pub(crate) fn turn(&self) -> Arc<tokio::sync::Mutex<()>> {
        self.turn.clone()
    }

    pub(crate) fn key(&self) -> ObjectKey {
        self.files.key
    }

    pub(crate) fn entry(&self) -> &FileEntry {
        &self.files.entry
    }

    pub(super) fn data_path(&self) -> PathBuf {
        self.files.data_path()
    }

    /// Whether its file has been made, with all the space that it will take.
    pub(super) fn is_allocated(&self) -> bool {
        self.allocated.load(Ordering::Acquire)
    }

    pub(crate) fn is_complete(&self) -> bool {
        matches!(*self.state(), State::Complete)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under it")
    }

    /// Makes the file or takes it up where it was left, and says which chunks are missing.
    pub(crate) fn open(&self) -> Result<Vec<ChunkRef>, ObjectError> {
        let mut state = self.state();
        if matches!(*state, State::Closed) {
            let loaded = self.files.load().map_err(|e| self.failed(e))?;
            *state = State::of(loaded);
            self.allocated.store(true, Ordering::Release);
        }
        Ok(match &*state {
            State::Filling(filling) => {
                let chunks = self.entry().chunk_refs().enumerate();
                let there = |i: &usize| filling.have.has(*i) || filling.unsynced.contains(i);
                chunks.filter(|(i, _)| !there(i)).map(|(_, c)| c).collect()
            }
            State::Closed | State::Complete => Vec::new(),
        })
    }

    /// Writes a chunk, and syncs now and then.
    pub(crate) fn write(&self, verified: &VerifiedChunk) -> Result<(), ObjectError> {
        let index = self.index_of(&verified.chunk)?;
        let file = match &*self.state() {
            State::Filling(filling) => filling.file.clone(),
            State::Complete => return Ok(()),
            State::Closed => return Err(self.closed()),
        };
        file.write_all_at(&verified.bytes, verified.chunk.offset_bytes)
            .map_err(FileError::of("write", &self.data_path()))
            .map_err(|e| self.failed(e))?;
        let due = match &mut *self.state() {
            State::Filling(filling) if Arc::ptr_eq(&filling.file, &file) => {
                filling.unsynced.push(index);
                filling.unsynced_bytes += verified.chunk.len_bytes;
                filling.unsynced_bytes >= SYNC_BYTES || filling.last_sync.elapsed() >= SYNC_INTERVAL
            }
            // Another writer's sync failed meanwhile, and with it what this one wrote.
            State::Filling(_) | State::Closed => return Err(self.closed()),
            State::Complete => false,
        };
        // Small files are synced once, by `finish`.
        if due && self.entry().chunks.len() > 1 {
            self.sync_now_and_then()?;
        }
        Ok(())
    }

    /// Makes a file that has all its chunks durable and read-only.
    pub(crate) fn finish(&self) -> Result<(), ObjectError> {
        let _syncing = self.syncing.lock().expect("nothing panics under it");
        let (file, have) = match &*self.state() {
            State::Complete => return Ok(()),
            State::Closed => return Err(self.closed()),
            State::Filling(filling) => {
                let mut have = filling.have.clone();
                filling.unsynced.iter().for_each(|&i| have.set(i));
                (filling.file.clone(), have)
            }
        };
        if !have.is_complete() {
            return Err(ObjectError::Incomplete {
                path: self.data_path(),
            });
        }
        let finished = self.files.make_durable(&file, &have);
        match finished {
            Ok(()) => {
                *self.state() = State::Complete;
                Ok(())
            }
            Err(error) => {
                *self.state() = State::Closed;
                Err(self.failed(error))
            }
        }
    }

    /// Syncs unless somebody is at it: what was written meanwhile waits for the next time.
    pub(super) fn sync_now_and_then(&self) -> Result<(), ObjectError> {
        let Ok(_syncing) = self.syncing.try_lock() else {
            return Ok(());
        };
        let (file, indices, mut have) = match &mut *self.state() {
            State::Filling(filling) => {
                filling.unsynced_bytes = 0;
                filling.last_sync = Instant::now();
                let indices = filling.unsynced.clone();
                (filling.file.clone(), indices, filling.have.clone())
            }
            State::Complete | State::Closed => return Ok(()),
        };
        indices.iter().for_each(|&i| have.set(i));
        let synced = file
            .sync_data()
            .map_err(FileError::of("sync", &self.data_path()))
            .and_then(|()| self.files.write_have(&have));
        let mut state = self.state();
        match (synced, &mut *state) {
            (Ok(()), State::Filling(filling)) => {
                filling.unsynced.retain(|i| !have.has(*i));
                filling.have = have;
                Ok(())
            }
            (Ok(()), State::Complete | State::Closed) => Ok(()),
            (Err(error), _) => {
                *state = State::Closed;
                Err(self.failed(error))
            }
        }
    }

    fn index_of(&self, chunk: &ChunkRef) -> Result<usize, ObjectError> {
        let index = (chunk.offset_bytes / self.entry().chunk_size_bytes) as usize;
        let single = self.entry().chunks.len() == 1;
        let place = if single {
            ChunkPlace::Whole
        } else {
            ChunkPlace::At {
                offset_bytes: chunk.offset_bytes,
            }
        };
        let ours = self.entry().chunks.get(index) == Some(&chunk.digest)
            && chunk.offset_bytes == index as u64 * self.entry().chunk_size_bytes
            && chunk.place == place;
        ours.then_some(index).ok_or_else(|| ObjectError::Foreign {
            path: self.data_path(),
            digest: chunk.digest,
        })
    }

    fn closed(&self) -> ObjectError {
        ObjectError::Closed {
            path: self.data_path(),
        }
    }

    fn failed(&self, error: FileError) -> ObjectError {
        if error.is_no_space() {
            return ObjectError::NoSpace {
                path: error.path,
                needed: shared::units::Bytes(self.entry().size_bytes),
                source: error.source,
            };
        }
        ObjectError::File(error)
    }
}
