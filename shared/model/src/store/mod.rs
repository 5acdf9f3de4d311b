//! Chunks and manifests in an object store: `chunks/ab/HEX` and `manifests/HEX.json`.
//!
//! What always holds: an object's contents have the digest that its name says, since they were
//! checked before they were stored; a manifest is stored only when all its chunks are; on a local
//! disk, what was acknowledged survives `kill -9` and power loss (file, folder and new folders above
//! are synced before the answer). Objects are written whole under another name and then renamed.
//!
//! Chunks are not checked when they are read: the node that asked does that, since it knows the
//! chunk's place. Garbage is collected by mark and sweep (see [`ChunkStore::collect`]).

mod collect;
mod error;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use shared::digest::{ChunkPlace, Digest, chunk_digest};
use shared::manifest::{MAX_MANIFEST_BYTES, Manifest, ManifestId};
use shared::units::Bytes as ByteCount;

use crate::blocking::blocking;
use crate::chunk;

pub use collect::Collected;
pub use error::{
    BackendError, CollectError, GetError, OpenError, PutChunkError, PutManifestError, ReadFileError,
};

/// No chunk is longer (see `shared::manifest::chunk_size_bytes`).
pub const MAX_CHUNK_BYTES: u64 = chunk::MAX_CHUNK_BYTES;
/// Files above this are fetched chunk by chunk, not read whole.
pub const MAX_READ_FILE_BYTES: u64 = 16 * ByteCount::MIB;
/// How long what nothing refers to is kept: longer than the longest pause within a push.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(3600);
/// Looks at the object store at once: enough to hide its latency, few enough not to flood it.
const LOOKUPS: usize = 32;

/// Cheap to clone; clones share their promises.
#[derive(Clone)]
pub struct ChunkStore {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    /// The folder of a local store, for what `object_store` leaves to us.
    folder: Option<PathBuf>,
    grace: Duration,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Readers rely on chunks staying where they are; a sweep takes it for each batch of deletes.
    sweep: tokio::sync::RwLock<()>,
    /// Chunks of which somebody was lately told that they are here, and when.
    promised: Mutex<HashMap<Digest, Instant>>,
    /// When each manifest was lately stored: its push is over, and so are the promises before it.
    stored: Mutex<HashMap<ManifestId, Instant>>,
}

impl ChunkStore {
    /// Over any object store; its own durability is what it is.
    pub fn new(objects: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        Self {
            objects,
            prefix: Path::from(prefix),
            folder: None,
            grace: DEFAULT_GRACE,
            shared: Arc::default(),
        }
    }

    /// In a folder of this machine, made if need be. Every write is synced before it is acknowledged.
    pub fn local(folder: &FilePath) -> Result<Self, OpenError> {
        let open = |source| OpenError::Folder {
            path: folder.to_owned(),
            source,
        };
        std::fs::create_dir_all(folder).map_err(open)?;
        let folder = folder.canonicalize().map_err(open)?;
        let objects = LocalFileSystem::new_with_prefix(&folder)
            .map_err(|source| OpenError::Backend {
                path: folder.clone(),
                source,
            })?
            .with_fsync(true);
        Ok(Self {
            folder: Some(folder),
            ..Self::new(Arc::new(objects), "")
        })
    }

    /// How old an object must be before [`ChunkStore::collect`] may delete it.
    pub fn with_grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    pub async fn has_chunk(&self, digest: Digest) -> Result<bool, BackendError> {
        Ok(self.missing_chunks(&[digest]).await?.is_empty())
    }

    /// Those of `digests` that are not here, each once, in their order. The others are kept for the
    /// grace time even if nothing refers to them, so that a push need not send them.
    pub async fn missing_chunks(&self, digests: &[Digest]) -> Result<Vec<Digest>, BackendError> {
        let mut seen = BTreeSet::new();
        let distinct: Vec<Digest> = digests
            .iter()
            .copied()
            .filter(|d| seen.insert(*d))
            .collect();
        let _no_sweep = self.shared.sweep.read().await;
        let found: Vec<(Digest, bool)> = stream::iter(distinct)
            .map(|digest| async move {
                let size = self.size_of(digest).await?;
                Ok::<_, BackendError>((digest, size.is_some()))
            })
            .buffered(LOOKUPS)
            .try_collect()
            .await?;
        let (present, missing): (Vec<_>, Vec<_>) = found.into_iter().partition(|(_, here)| *here);
        self.promise(present.into_iter().map(|(digest, _)| digest));
        Ok(missing.into_iter().map(|(digest, _)| digest).collect())
    }

    /// Stores a chunk after checking it. Storing again what is here is allowed and heals it.
    pub async fn put_chunk(
        &self,
        digest: Digest,
        place: ChunkPlace,
        bytes: Bytes,
    ) -> Result<(), PutChunkError> {
        if bytes.len() as u64 > MAX_CHUNK_BYTES {
            return Err(PutChunkError::TooLong { len: bytes.len() });
        }
        let len = bytes.len();
        let hashed = bytes.clone();
        let actual = blocking(move || chunk::checked_digest(place, &hashed)).await;
        let actual = actual.ok_or(PutChunkError::Place { place, len })?;
        if actual != digest {
            return Err(PutChunkError::WrongContent { digest, actual });
        }
        let _no_sweep = self.shared.sweep.read().await;
        self.put(&self.chunk_path(digest), bytes).await?;
        self.promise([digest]);
        Ok(())
    }

    /// A chunk's bytes. Not checked: see the module's doc.
    pub async fn get_chunk(&self, digest: Digest) -> Result<Bytes, GetError> {
        self.get(&self.chunk_path(digest), MAX_CHUNK_BYTES).await
    }

    /// Stores a manifest in its canonical form. All its chunks must be here.
    pub async fn put_manifest(&self, bytes: Bytes) -> Result<ManifestId, PutManifestError> {
        let manifest = Manifest::decode(&bytes).map_err(PutManifestError::Invalid)?;
        let id = ManifestId(Digest::of(&bytes));
        let chunks = manifest.chunks();
        let _no_sweep = self.shared.sweep.read().await;
        let missing: Vec<Digest> = stream::iter(chunks.values())
            .map(|chunk| async move {
                let size = self.size_of(chunk.digest).await?;
                Ok::<_, BackendError>((size != Some(chunk.len_bytes)).then_some(chunk.digest))
            })
            .buffered(LOOKUPS)
            .try_filter_map(async |missing| Ok(missing))
            .try_collect()
            .await?;
        if let Some(first) = missing.first() {
            return Err(PutManifestError::MissingChunks {
                count: missing.len(),
                first: *first,
            });
        }
        self.promise(chunks.keys().copied());
        self.sync_folders(chunks.keys().copied()).await?;
        self.put(&self.manifest_path(id), bytes).await?;
        let mut stored = self.shared.stored.lock().expect("nothing panics under it");
        stored.insert(id, Instant::now());
        drop(stored);
        Ok(id)
    }

    /// A manifest's canonical bytes, checked against its id.
    pub async fn get_manifest(&self, id: ManifestId) -> Result<Bytes, GetError> {
        let path = self.manifest_path(id);
        let bytes = self.get(&path, MAX_MANIFEST_BYTES as u64).await?;
        if Digest::of(&bytes) != id.0 {
            return Err(GetError::WrongContent {
                what: path.to_string(),
            });
        }
        Ok(bytes)
    }

    /// One small file of a model, checked.
    pub async fn read_file(
        &self,
        manifest: &Manifest,
        path: &str,
    ) -> Result<Vec<u8>, ReadFileError> {
        let file = manifest.files.iter().find(|file| file.path == path);
        let file = file.ok_or_else(|| ReadFileError::NoSuchFile {
            path: path.to_owned(),
        })?;
        if file.size_bytes > MAX_READ_FILE_BYTES {
            return Err(ReadFileError::TooLarge {
                path: path.to_owned(),
                size: file.size_bytes,
            });
        }
        let mut contents = Vec::with_capacity(file.size_bytes as usize);
        for chunk in file.chunk_refs() {
            let bytes = self.get_chunk(chunk.digest).await?;
            let right = bytes.len() as u64 == chunk.len_bytes
                && chunk_digest(chunk.place, &bytes) == chunk.digest;
            if !right {
                return Err(ReadFileError::Corrupt {
                    path: path.to_owned(),
                    digest: chunk.digest,
                });
            }
            contents.extend_from_slice(&bytes);
        }
        Ok(contents)
    }

    fn chunk_path(&self, digest: Digest) -> Path {
        let hex = digest.to_hex();
        self.prefix.clone().join("chunks").join(&hex[..2]).join(hex)
    }

    fn manifest_path(&self, id: ManifestId) -> Path {
        self.prefix
            .clone()
            .join("manifests")
            .join(format!("{id}.json"))
    }

    fn promise(&self, digests: impl IntoIterator<Item = Digest>) {
        let now = Instant::now();
        let mut promised = self
            .shared
            .promised
            .lock()
            .expect("nothing panics under it");
        promised.extend(digests.into_iter().map(|digest| (digest, now)));
    }

    async fn put(&self, path: &Path, bytes: Bytes) -> Result<(), BackendError> {
        let stored = self.objects.put(path, bytes.into()).await;
        stored
            .map(drop)
            .map_err(|e| BackendError::new("write", path, e))
    }

    async fn get(&self, path: &Path, limit_bytes: u64) -> Result<Bytes, GetError> {
        let failed = |error| match error {
            object_store::Error::NotFound { .. } => GetError::NotFound {
                what: path.to_string(),
            },
            error => BackendError::new("read", path, error).into(),
        };
        let object = self.objects.get(path).await.map_err(failed)?;
        if object.meta.size > limit_bytes {
            return Err(GetError::TooLong {
                what: path.to_string(),
                len: object.meta.size,
            });
        }
        object.bytes().await.map_err(failed)
    }

    /// A chunk's size, `None` if it is not here.
    async fn size_of(&self, digest: Digest) -> Result<Option<u64>, BackendError> {
        let path = self.chunk_path(digest);
        match self.objects.head(&path).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(BackendError::new("look up", &path, error)),
        }
    }

    /// A chunk that is here may owe that to a writer that was killed between rename and sync; before
    /// a manifest relies on it, its folder is synced.
    async fn sync_folders(
        &self,
        digests: impl Iterator<Item = Digest>,
    ) -> Result<(), BackendError> {
        let Some(folder) = self.folder.clone() else {
            return Ok(());
        };
        let firsts: BTreeSet<String> = digests.map(|d| d.to_hex()[..2].to_owned()).collect();
        blocking(move || {
            let chunks = folder.join("chunks");
            let folders = firsts.iter().map(|first| chunks.join(first));
            let all = folders.chain([chunks.clone(), folder.clone()]);
            for path in all.filter(|path| path.is_dir()) {
                sync_folder(&path).map_err(|source| BackendError::Sync { path, source })?;
            }
            Ok(())
        })
        .await
    }
}

fn sync_folder(path: &FilePath) -> io::Result<()> {
    std::fs::File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests;
