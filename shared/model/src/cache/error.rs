//! What may go wrong, per operation.

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use shared::digest::Digest;
use shared::manifest::ManifestId;
use shared::units::Bytes;

/// A system call on a path failed.
#[derive(Debug, thiserror::Error)]
#[error("{verb} {path:?}")]
pub struct FileError {
    pub verb: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`.
    pub(super) fn of(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self {
            verb,
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn is_no_space(&self) -> bool {
        let errno = self.source.raw_os_error();
        errno == Some(Errno::ENOSPC as i32) || errno == Some(Errno::EDQUOT as i32)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("model cache {path:?} is in use by another process")]
    Busy { path: PathBuf },
    #[error("{path:?} {problem}: a model cache must belong to the agent alone")]
    Unsafe {
        path: PathBuf,
        problem: &'static str,
    },
    #[error(
        "model cache {path:?} has format {found}, this program ({}) knows {known}: install the version that wrote it, or a later one. It is left as it is. To go on with this one, move that folder away: models are fetched again",
        env!("CARGO_PKG_VERSION")
    )]
    Newer {
        path: PathBuf,
        found: u32,
        known: u32,
    },
    #[error(transparent)]
    File(#[from] FileError),
}

#[derive(Debug, thiserror::Error)]
pub enum ReserveError {
    #[error(
        "model {model} needs {needed} in model cache {path:?}, whose capacity is {capacity}: raise cache_capacity"
    )]
    OverCapacity {
        model: ManifestId,
        path: PathBuf,
        needed: Bytes,
        capacity: Bytes,
    },
    #[error(
        "model {model} needs {needed} more in model cache {path:?}, and {free} can be had: the rest of its {capacity} is in use; raise cache_capacity, or place fewer models on this node"
    )]
    InUse {
        model: ManifestId,
        path: PathBuf,
        needed: Bytes,
        free: Bytes,
        capacity: Bytes,
    },
    #[error(
        "model {model} needs {needed} more on the disk of {path:?}, which has {available} free and too little to evict: free some"
    )]
    DiskFull {
        model: ManifestId,
        path: PathBuf,
        needed: Bytes,
        available: Bytes,
    },
    #[error(transparent)]
    File(#[from] FileError),
}

#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("no space for {path:?}, which needs {needed}: free some on that disk")]
    NoSpace {
        path: PathBuf,
        needed: Bytes,
        #[source]
        source: io::Error,
    },
    #[error("chunk {digest} does not belong to {path:?}")]
    Foreign { path: PathBuf, digest: Digest },
    #[error("{path:?} lacks chunks")]
    Incomplete { path: PathBuf },
    #[error("{path:?} is not open")]
    Closed { path: PathBuf },
    #[error(transparent)]
    File(FileError),
}

#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("model {model} lacks file {file:?}")]
    Incomplete { model: ManifestId, file: String },
    #[error(transparent)]
    File(#[from] FileError),
}

#[derive(Debug, thiserror::Error)]
pub enum EvictError {
    #[error("model {model} is in use")]
    Pinned { model: ManifestId },
    #[error(transparent)]
    File(#[from] FileError),
}
