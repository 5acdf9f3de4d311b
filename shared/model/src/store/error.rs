//! What may go wrong, per operation.

use std::fmt;
use std::io;
use std::path::PathBuf;

use object_store::path::Path;
use shared::digest::{ChunkPlace, Digest};
use shared::manifest::{ManifestError, ManifestId};

use super::{MAX_CHUNK_BYTES, MAX_READ_FILE_BYTES};

/// The object store itself failed.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error("{verb} object {path} in the chunk store")]
    Object {
        verb: &'static str,
        path: String,
        #[source]
        source: object_store::Error,
    },
    #[error("list {path} in the chunk store")]
    List {
        path: String,
        #[source]
        source: object_store::Error,
    },
    #[error("sync folder {path:?}")]
    Sync {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl BackendError {
    pub(super) fn new(verb: &'static str, path: &Path, source: object_store::Error) -> Self {
        Self::Object {
            verb,
            path: path.to_string(),
            source,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("open chunk store folder {path:?}")]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("open chunk store in {path:?}")]
    Backend {
        path: PathBuf,
        #[source]
        source: object_store::Error,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum PutChunkError {
    #[error("chunk of {len} bytes is over the limit of {MAX_CHUNK_BYTES}")]
    TooLong { len: usize },
    #[error("no chunk has {len} bytes {}", Shown(place))]
    Place { place: ChunkPlace, len: usize },
    #[error("chunk {digest} has other contents: its bytes at this place have digest {actual}")]
    WrongContent { digest: Digest, actual: Digest },
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// A place, for people.
struct Shown<'a>(&'a ChunkPlace);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ChunkPlace::Whole => f.write_str("as a whole file"),
            ChunkPlace::At { offset_bytes } => write!(f, "at offset {offset_bytes}"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PutManifestError {
    #[error("manifest was refused")]
    Invalid(#[source] ManifestError),
    #[error("{count} chunks of the manifest are missing, the first is {first}: send them first")]
    MissingChunks { count: usize, first: Digest },
    #[error(transparent)]
    Backend(#[from] BackendError),
}

#[derive(Debug, thiserror::Error)]
pub enum GetError {
    #[error("{what} is not in the chunk store")]
    NotFound { what: String },
    #[error("{what} in the chunk store has other contents than its name says")]
    WrongContent { what: String },
    #[error("{what} in the chunk store is too long: {len} bytes")]
    TooLong { what: String, len: u64 },
    #[error(transparent)]
    Backend(#[from] BackendError),
}

#[derive(Debug, thiserror::Error)]
pub enum ReadFileError {
    #[error("the model has no file {path:?}")]
    NoSuchFile { path: String },
    #[error("file {path:?} of {size} bytes is over the limit of {MAX_READ_FILE_BYTES}")]
    TooLarge { path: String, size: u64 },
    #[error(
        "chunk {digest} of file {path:?} has wrong content in the chunk store: push the model again"
    )]
    Corrupt { path: String, digest: Digest },
    #[error(transparent)]
    Get(#[from] GetError),
}

#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    #[error("manifest {id} is in use but cannot be read, so nothing was deleted")]
    Get {
        id: ManifestId,
        #[source]
        source: GetError,
    },
    #[error("manifest {id} is in use but broken, so nothing was deleted")]
    Manifest {
        id: ManifestId,
        #[source]
        source: ManifestError,
    },
    #[error(transparent)]
    Backend(#[from] BackendError),
}
