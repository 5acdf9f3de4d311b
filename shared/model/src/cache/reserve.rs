//! Space for a model before its download begins, and the objects that will fill it.
//!
//! What always holds: what reservations count on is within the capacity, and within what the disk has
//! free when they are made; objects of a reservation stay until it is dropped. Giving one back costs
//! nothing: what was written is on disk and is found again.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use shared::manifest::{Manifest, ManifestId};
use shared::units::Bytes;

use super::error::{PublishError, ReserveError};
use super::table::Eviction;
use super::{Cache, Object, ObjectKey, Records, open, remove_all, view};

/// Space for a model, and its objects, which stay while this lives.
pub(crate) struct Reservation {
    cache: Cache,
    id: ManifestId,
    /// Each distinct object once, in the order of the manifest's files.
    objects: Vec<Arc<Object>>,
}

/// What a model asks for.
#[derive(Clone, Copy)]
struct Need {
    model: ManifestId,
    /// Of all its objects.
    total_bytes: u64,
    /// Of those that are neither here nor reserved.
    new_bytes: u64,
    /// What the disk has left beyond all reservations.
    disk_free_bytes: u64,
}

impl Cache {
    /// Makes room for a model, by evicting what must go.
    pub(crate) fn reserve(
        &self,
        id: ManifestId,
        manifest: &Manifest,
    ) -> Result<Reservation, ReserveError> {
        let folder = &self.inner.folder;
        let mut records = self.records();
        let objects = self.handles(&mut records, manifest);
        let size = |object: &Arc<Object>| object.entry().size_bytes;
        let is_new = |o: &&Arc<Object>| !records.table.objects.contains_key(&o.key());
        let needed_bytes: u64 = objects.iter().filter(is_new).map(size).sum();
        let need = Need {
            model: id,
            total_bytes: objects.iter().map(size).sum(),
            new_bytes: needed_bytes,
            disk_free_bytes: open::free_bytes(folder)?.saturating_sub(records.promised_bytes()),
        };
        let evictions = self.plan_room(&records, need)?;
        let mut nameless = Vec::new();
        for eviction in evictions {
            nameless.extend(self.inner.unname(&mut records, eviction)?);
        }
        for object in &objects {
            records.table.objects.insert(object.key(), size(object));
        }
        let promised_bytes = records.promised_bytes();
        // From here on an error gives the reservation back, which takes the lock.
        drop(records);
        let reservation = Reservation {
            cache: self.clone(),
            id,
            objects,
        };
        remove_all(&nameless)?;
        // The disk may hold others' files, and may have freed less than sizes say.
        let available_bytes = open::free_bytes(folder)?;
        if available_bytes < promised_bytes {
            return Err(ReserveError::DiskFull {
                model: id,
                path: folder.clone(),
                needed: Bytes(needed_bytes),
                available: Bytes(available_bytes),
            });
        }
        Ok(reservation)
    }

    /// What of its capacity the disk could hold now, if everything in it that is not needed went.
    /// `None` where that cannot be told without waiting.
    pub fn room(&self) -> Option<Bytes> {
        let records = self.inner.records.try_lock().ok()?;
        let free_bytes = open::free_bytes(&self.inner.folder).ok()?;
        let used_bytes = records.table.used_bytes();
        let unwritten_bytes = records.promised_bytes();
        let on_disk_bytes = used_bytes.saturating_sub(unwritten_bytes);
        let room_bytes = free_bytes.saturating_add(on_disk_bytes);
        Some(Bytes(room_bytes.min(self.inner.capacity.get())))
    }

    fn plan_room(&self, records: &Records, need: Need) -> Result<Vec<Eviction>, ReserveError> {
        let (model, path, capacity) = (need.model, self.inner.folder.clone(), self.inner.capacity);
        if need.total_bytes > capacity.get() {
            let needed = Bytes(need.total_bytes);
            return Err(ReserveError::OverCapacity {
                model,
                path,
                needed,
                capacity,
            });
        }
        let used_bytes = records.table.used_bytes();
        let over_bytes = (used_bytes + need.new_bytes).saturating_sub(capacity.get());
        let short_bytes = need.new_bytes.saturating_sub(need.disk_free_bytes);
        let planned = records
            .table
            .plan_eviction(over_bytes.max(short_bytes), &records.busy());
        planned.map_err(|shortage| {
            let needed = Bytes(need.new_bytes);
            if shortage.evictable_bytes < over_bytes {
                let unused_bytes = capacity.get().saturating_sub(used_bytes);
                ReserveError::InUse {
                    model,
                    path,
                    needed,
                    free: Bytes(unused_bytes + shortage.evictable_bytes),
                    capacity,
                }
            } else {
                ReserveError::DiskFull {
                    model,
                    path,
                    needed,
                    available: Bytes(need.disk_free_bytes),
                }
            }
        })
    }

    /// One handle per distinct object, shared with whoever has one already.
    fn handles(&self, records: &mut Records, manifest: &Manifest) -> Vec<Arc<Object>> {
        records.handles.retain(|_, held| held.strong_count() > 0);
        let folder = self.inner.folder.join(open::OBJECTS);
        let mut seen = BTreeSet::new();
        let files = manifest.files.iter();
        files
            .filter(|file| seen.insert(ObjectKey::of(file)))
            .map(|file| {
                let key = ObjectKey::of(file);
                let held = records.handles.get(&key).and_then(Weak::upgrade);
                held.unwrap_or_else(|| {
                    let object = Arc::new(Object::new(&folder, file.clone()));
                    records.handles.insert(key, Arc::downgrade(&object));
                    object
                })
            })
            .collect()
    }
}

impl Records {
    /// Space that reservations count on and have not taken from the disk yet.
    fn promised_bytes(&self) -> u64 {
        let held = self.handles.values().filter_map(Weak::upgrade);
        held.filter(|o| !o.is_allocated() && self.table.objects.contains_key(&o.key()))
            .map(|object| object.entry().size_bytes)
            .sum()
    }
}

impl Reservation {
    pub(crate) fn objects(&self) -> &[Arc<Object>] {
        &self.objects
    }

    /// Gives the model its name, once all its objects are complete. `manifest` is the reserved one.
    pub(crate) fn publish(&self, manifest: &Manifest) -> Result<PathBuf, PublishError> {
        let inner = &self.cache.inner;
        let staging = inner.temporary("view");
        let path = inner.view_path(&self.id);
        let built = view::build(self.id, manifest, &self.objects, &staging)
            .and_then(|record| view::give_name(&staging, &path).map(|()| record));
        match built {
            Ok(record) => {
                let mut records = self.cache.records();
                records.table.views.insert(self.id, record);
                Ok(path)
            }
            Err(error) => {
                // The first error matters; what stays in `tmp/` goes at the next start.
                let _ = fs::remove_dir_all(&staging);
                Err(error)
            }
        }
    }
}

impl Drop for Reservation {
    /// Objects that were never made, and that nobody else is about to make, take no space.
    fn drop(&mut self) {
        let mut records = self.cache.records();
        for object in self.objects.drain(..) {
            let key = object.key();
            let last = Arc::strong_count(&object) == 1;
            if last && !object.is_allocated() {
                records.table.objects.remove(&key);
            }
            if last {
                records.handles.remove(&key);
            }
        }
    }
}
