//! Mark and sweep.
//!
//! Marked are the chunks of every manifest that is live or younger than the grace time (a push has
//! stored it and is about to register it). Swept is whatever is not marked, older than the grace
//! time, and not promised to a push meanwhile. Before each batch of deletes promises are looked at
//! under the lock that pushes hold while they rely on a chunk, so a chunk is either promised, and
//! stays, or deleted before the push looks, and is sent again. One process collects in a store.
//!
//! What somebody deleted by name ([`ChunkStore::collect_deleted`]) goes at once, however young: the
//! push that brought it is over. A push that is under way beside it and was told of a chunk before
//! that one was over is refused its manifest, and sends the chunk when it is tried again.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime};

use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt};
use shared::digest::Digest;
use shared::manifest::{Manifest, ManifestId};

use crate::blocking::blocking;

use super::{BackendError, ChunkStore, CollectError};

/// Deletes per hold of the lock: a push waits no longer than that many take.
const BATCH: usize = 64;

/// What one collection deleted and kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub deleted_manifests: usize,
    pub deleted_chunks: usize,
    pub deleted_bytes: u64,
    pub kept_chunks: usize,
    /// Halves of writes that a crash left behind (local stores only).
    pub deleted_leftovers: usize,
}

/// An object that nothing refers to.
struct Garbage {
    path: Path,
    size_bytes: u64,
    /// `None` for manifests, which nobody is promised.
    chunk: Option<Digest>,
}

/// What was deleted by name, and when its push was over (`None`: before this process).
#[derive(Default)]
struct Disowned {
    manifest: Option<ManifestId>,
    chunks: HashSet<Digest>,
    pushed: Option<Instant>,
}

impl ChunkStore {
    /// Deletes manifests that are not among `live`, and chunks that no kept manifest names. If a live
    /// manifest cannot be read, nothing is deleted.
    pub async fn collect(&self, live: &[ManifestId]) -> Result<Collected, CollectError> {
        self.collect_all(live, Disowned::default()).await
    }

    /// The same, and nothing of `deleted` is kept for being young. It stays if it is among `live`.
    pub async fn collect_deleted(
        &self,
        live: &[ManifestId],
        deleted: ManifestId,
    ) -> Result<Collected, CollectError> {
        // One that is gone or broken has nothing to add to an ordinary collection.
        let disowned = match self.get_manifest(deleted).await {
            Ok(bytes) => Manifest::decode(&bytes).ok(),
            Err(_) => None,
        };
        let chunks = disowned.iter().flat_map(|manifest| &manifest.files);
        let disowned = Disowned {
            manifest: Some(deleted),
            chunks: chunks
                .flat_map(|file| file.chunks.iter().copied())
                .collect(),
            pushed: self.stored_at(deleted),
        };
        self.collect_all(live, disowned).await
    }

    async fn collect_all(
        &self,
        live: &[ManifestId],
        disowned: Disowned,
    ) -> Result<Collected, CollectError> {
        self.forget_old_promises();
        let mut collected = Collected::default();
        let mut kept: HashSet<ManifestId> = live.iter().copied().collect();
        let mut garbage = Vec::new();
        for meta in self.list("manifests").await? {
            let Some(id) = manifest_id(&meta.location) else {
                continue;
            };
            if kept.contains(&id) {
                continue;
            }
            if self.is_young(&meta) && disowned.manifest != Some(id) {
                kept.insert(id);
            } else {
                garbage.push(Garbage {
                    path: meta.location,
                    size_bytes: meta.size,
                    chunk: None,
                });
            }
        }
        let marked = self.mark(&kept).await?;
        // Manifests go first: a crash in between leaves chunks too many, never a manifest without.
        collected.deleted_manifests = self.sweep(garbage, &disowned, &mut collected).await?;
        let mut garbage = Vec::new();
        for meta in self.list("chunks").await? {
            let Some(chunk) = chunk_digest(&meta.location) else {
                continue;
            };
            let young = self.is_young(&meta) && !disowned.chunks.contains(&chunk);
            if marked.contains(&chunk) || young {
                collected.kept_chunks += 1;
                continue;
            }
            garbage.push(Garbage {
                path: meta.location,
                size_bytes: meta.size,
                chunk: Some(chunk),
            });
        }
        let candidates = garbage.len();
        collected.deleted_chunks = self.sweep(garbage, &disowned, &mut collected).await?;
        collected.kept_chunks += candidates - collected.deleted_chunks;
        collected.deleted_leftovers = self.sweep_leftovers().await;
        Ok(collected)
    }

    async fn mark(&self, kept: &HashSet<ManifestId>) -> Result<HashSet<Digest>, CollectError> {
        let mut marked = HashSet::new();
        for &id in kept {
            let bytes = self
                .get_manifest(id)
                .await
                .map_err(|source| CollectError::Get { id, source })?;
            let manifest =
                Manifest::decode(&bytes).map_err(|source| CollectError::Manifest { id, source })?;
            marked.extend(manifest.files.iter().flat_map(|file| &file.chunks));
        }
        Ok(marked)
    }

    /// Deletes garbage that was not promised meanwhile; returns how much.
    async fn sweep(
        &self,
        garbage: Vec<Garbage>,
        disowned: &Disowned,
        collected: &mut Collected,
    ) -> Result<usize, BackendError> {
        let mut deleted = 0;
        for batch in garbage.chunks(BATCH) {
            let _exclusive = self.shared.sweep.write().await;
            for object in batch {
                let promised = |chunk| self.is_promised(chunk, disowned);
                if object.chunk.is_some_and(promised) {
                    continue;
                }
                match self.objects.delete(&object.path).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(e) => return Err(BackendError::new("delete", &object.path, e)),
                }
                deleted += 1;
                collected.deleted_bytes += object.size_bytes;
            }
        }
        Ok(deleted)
    }

    /// Whether somebody was told within the grace time that the chunk is here. Of a disowned chunk
    /// only what was told after its push was over counts.
    fn is_promised(&self, chunk: Digest, disowned: &Disowned) -> bool {
        let promised = self
            .shared
            .promised
            .lock()
            .expect("nothing panics under it");
        let told = promised.get(&chunk);
        told.is_some_and(|at| {
            let kept = match disowned.pushed {
                Some(pushed) if disowned.chunks.contains(&chunk) => *at > pushed,
                _ => true,
            };
            kept && at.elapsed() < self.grace
        })
    }

    fn stored_at(&self, manifest: ManifestId) -> Option<Instant> {
        let stored = self.shared.stored.lock().expect("nothing panics under it");
        stored.get(&manifest).copied()
    }

    fn forget_old_promises(&self) {
        let mut promised = self
            .shared
            .promised
            .lock()
            .expect("nothing panics under it");
        promised.retain(|_, at| at.elapsed() < self.grace);
        drop(promised);
        let mut stored = self.shared.stored.lock().expect("nothing panics under it");
        stored.retain(|_, at| at.elapsed() < self.grace);
    }

    fn is_young(&self, meta: &ObjectMeta) -> bool {
        let written_ms = u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0);
        let written = SystemTime::UNIX_EPOCH + Duration::from_millis(written_ms);
        // An object from the future (a clock was set back) is as good as new.
        SystemTime::now()
            .duration_since(written)
            .map_or(!self.grace.is_zero(), |age| age < self.grace)
    }

    async fn list(&self, folder: &'static str) -> Result<Vec<ObjectMeta>, BackendError> {
        let path = self.prefix.clone().join(folder);
        let listed = self.objects.list(Some(&path)).filter(|result| {
            // Another collection's delete between listing and looking is no failure.
            let gone = matches!(result, Err(object_store::Error::NotFound { .. }));
            async move { !gone }
        });
        listed
            .try_collect()
            .await
            .map_err(|source| BackendError::List {
                path: path.to_string(),
                source,
            })
    }

    /// `object_store` writes to `NAME#N` and renames; what a crash left of that it never lists.
    async fn sweep_leftovers(&self) -> usize {
        let Some(folder) = self.folder.clone() else {
            return 0;
        };
        let grace = self.grace;
        let _exclusive = self.shared.sweep.write().await;
        blocking(move || {
            let chunks = folder.join("chunks");
            let inner = std::fs::read_dir(&chunks).into_iter().flatten().flatten();
            let folders = inner.map(|entry| entry.path());
            let folders = folders.chain([folder.join("manifests")]);
            folders.map(|folder| remove_leftovers(&folder, grace)).sum()
        })
        .await
    }
}

/// Best effort: what cannot be removed now is tried again at the next collection.
fn remove_leftovers(folder: &std::path::Path, grace: Duration) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let old = |entry: &std::fs::DirEntry| {
        let modified = entry.metadata().and_then(|m| m.modified()).ok();
        let age = modified.and_then(|at| SystemTime::now().duration_since(at).ok());
        age.is_some_and(|age| age >= grace)
    };
    entries
        .filter(|entry| {
            let name = entry.file_name();
            let suffix = name
                .to_str()
                .and_then(|n| n.split_once('#'))
                .map(|(_, s)| s);
            suffix.is_some_and(|s| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()))
        })
        .filter(|entry| old(entry) && std::fs::remove_file(entry.path()).is_ok())
        .count()
}

fn manifest_id(path: &Path) -> Option<ManifestId> {
    path.filename()?.strip_suffix(".json")?.parse().ok()
}

fn chunk_digest(path: &Path) -> Option<Digest> {
    path.filename()?.parse().ok()
}
