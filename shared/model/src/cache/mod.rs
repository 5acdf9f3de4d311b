//! The model cache of a node: whole, verified files on disk, and views of them as models.
//!
//! ```text
//! objects/ROOT/{data,have}    one file's bytes (ROOT.x if it is executable), and which chunks are there
//! views/MANIFEST/PATH         a model: hard links to objects' data, read-only
//! tmp/                        views under construction or under deletion; emptied at start
//! lock                        held by the one process that uses the cache
//! ```
//!
//! What always holds: a view is whole from the moment that it has its name, and after a crash at any
//! point no other view has one (its files and folders are synced before the rename that names it).
//! Space is reserved before a download begins. Nothing pinned is evicted, and until the caller has
//! said what is pinned ([`Cache::set_pins`]), nothing is evicted at all.
//!
//! Everything here blocks; [`crate::fetch`] is the async engine over it. The folder belongs to the
//! agent alone (mode 0700), so nobody else can plant links in it; what is not ours is left alone.

mod disk;
mod error;
mod have;
mod object;
mod open;
mod reserve;
mod table;
mod view;

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, FileTimes};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::SystemTime;

use nix::fcntl::Flock;
use shared::manifest::ManifestId;
use shared::units::Bytes;

pub use error::{EvictError, FileError, ObjectError, OpenError, PublishError, ReserveError};
pub use object::VerifiedChunk;

pub(crate) use disk::ObjectKey;
pub(crate) use object::Object;
pub(crate) use reserve::Reservation;
use table::{Eviction, Table};

/// Cheap to clone.
#[derive(Clone)]
pub struct Cache {
    inner: Arc<Inner>,
}

struct Inner {
    folder: PathBuf,
    capacity: Bytes,
    records: Mutex<Records>,
    /// Numbers names in `tmp/`.
    next_name: AtomicU64,
    _lock: Flock<File>,
}

struct Records {
    table: Table,
    /// Objects that somebody fills, so that two fetches of a file share one.
    handles: HashMap<ObjectKey, Weak<Object>>,
}

/// A model that is whole on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedView {
    pub id: ManifestId,
    pub path: PathBuf,
    pub size_bytes: u64,
    pub last_used: SystemTime,
    pub pinned: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub capacity: Bytes,
    /// What objects take, half-filled ones with all their space.
    pub used: Bytes,
    pub views: usize,
}

impl Cache {
    /// Opens or makes the cache in `folder`. `capacity` is what its files may take.
    pub fn open(folder: &Path, capacity: Bytes) -> Result<Self, OpenError> {
        let opened = open::open(folder)?;
        Ok(Self {
            inner: Arc::new(Inner {
                folder: opened.folder,
                capacity,
                records: Mutex::new(Records {
                    table: opened.table,
                    handles: HashMap::new(),
                }),
                next_name: AtomicU64::new(0),
                _lock: opened.lock,
            }),
        })
    }

    /// What must not be evicted: the whole set, each time. Models that are being fetched belong in it
    /// as well as those in use.
    pub fn set_pins(&self, pins: BTreeSet<ManifestId>) {
        self.records().table.pins = Some(pins);
    }

    /// Where a whole model lies, if it is here.
    pub fn view(&self, id: &ManifestId) -> Option<PathBuf> {
        let path = self.inner.view_path(id);
        let mut records = self.records();
        records.table.views.get(id)?;
        if fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) {
            return Some(path);
        }
        tracing::warn!(path = %path.display(), "cached model was removed by somebody else");
        records.table.views.remove(id);
        None
    }

    /// Remembers that a model was used just now; eviction starts with those that were not for long.
    pub fn touch(&self, id: &ManifestId) {
        let now = SystemTime::now();
        if let Some(view) = self.records().table.views.get_mut(id) {
            view.last_used = now;
        }
        // A restart then takes it for a little older than it is: no reason to fail a fetch.
        let folder = File::open(self.inner.view_path(id));
        let _ = folder.and_then(|f| f.set_times(FileTimes::new().set_modified(now)));
    }

    /// Every whole model, in the order of ids.
    pub fn list(&self) -> Vec<CachedView> {
        let records = self.records();
        let views = records.table.views.iter();
        views
            .map(|(id, view)| CachedView {
                id: *id,
                path: self.inner.view_path(id),
                size_bytes: view.size_bytes,
                last_used: view.last_used,
                pinned: records.table.is_pinned(id),
            })
            .collect()
    }

    pub fn usage(&self) -> Usage {
        let records = self.records();
        Usage {
            capacity: self.inner.capacity,
            used: Bytes(records.table.used_bytes()),
            views: records.table.views.len(),
        }
    }

    /// Deletes a model, and the files that no other model has. One that is not here is no error.
    pub fn evict(&self, id: &ManifestId) -> Result<(), EvictError> {
        let mut records = self.records();
        if !records.table.views.contains_key(id) {
            return Ok(());
        }
        if records.table.is_pinned(id) {
            return Err(EvictError::Pinned { model: *id });
        }
        let objects = records.table.only_of(id, &records.busy());
        let mut nameless = Vec::new();
        nameless.extend(self.inner.unname(&mut records, Eviction::View(*id))?);
        for key in objects {
            nameless.extend(self.inner.unname(&mut records, Eviction::Object(key))?);
        }
        drop(records);
        Ok(remove_all(&nameless)?)
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        let locked = self.inner.records.lock();
        locked.expect("nothing panics under it")
    }
}

impl Records {
    /// Objects that somebody holds.
    fn busy(&self) -> BTreeSet<ObjectKey> {
        let held = self.handles.iter().filter(|(_, h)| h.strong_count() > 0);
        held.map(|(key, _)| *key).collect()
    }
}

impl Inner {
    fn view_path(&self, id: &ManifestId) -> PathBuf {
        self.folder.join(open::VIEWS).join(id.to_string())
    }

    /// A name in `tmp/` that nothing has.
    fn temporary(&self, what: &str) -> PathBuf {
        let number = self.next_name.fetch_add(1, Ordering::Relaxed);
        self.folder.join(open::TMP).join(format!("{what}-{number}"))
    }

    /// Takes the name away, in one step; the nameless rest is in `tmp/`, where it goes at the next
    /// start if not before. Deleting it may take long and needs no lock.
    fn unname(
        &self,
        records: &mut Records,
        eviction: Eviction,
    ) -> Result<Option<PathBuf>, FileError> {
        let path = match eviction {
            Eviction::View(id) => self.view_path(&id),
            Eviction::Object(key) => self.folder.join(open::OBJECTS).join(key.folder_name()),
        };
        let nameless = self.temporary("evicted");
        let was_there = match fs::rename(&path, &nameless) {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => return Err(FileError::of("rename", &path)(e)),
        };
        match eviction {
            Eviction::View(id) => {
                tracing::info!(manifest = %id, "model evicted from the cache");
                records.table.views.remove(&id);
            }
            Eviction::Object(key) => drop(records.table.objects.remove(&key)),
        }
        Ok(was_there.then_some(nameless))
    }
}

fn remove_all(paths: &[PathBuf]) -> Result<(), FileError> {
    paths
        .iter()
        .try_for_each(|path| fs::remove_dir_all(path).map_err(FileError::of("remove", path)))
}

#[cfg(test)]
mod tests;
