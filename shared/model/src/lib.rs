//! Models as files: how a folder becomes a manifest, where chunks are stored, how a node caches them.
//!
//! | module | what it does | who runs it |
//! | --- | --- | --- |
//! | [`scan`] | lists the files of a folder | CLI |
//! | [`describe`] | reads what the files say about themselves | CLI |
//! | [`hash`] | hashes them, chunk by chunk, on all cores | CLI |
//! | [`oci`] | takes image archives and image manifests apart | CLI, scheduler |
//! | [`store`] | keeps chunks and manifests in an object store | scheduler |
//! | [`cache`] | keeps whole files on a node's disk | agent |
//! | [`fetch`] | fills the cache from a source of chunks | agent |
//!
//! What always holds: bytes are verified before they are stored, written or used; a half-written
//! file is never seen under its final name; nothing here runs what it reads. The formats are
//! described in `docs/model-format.md`.

mod blocking;
pub mod cache;
mod chunk;
pub mod describe;
pub mod fetch;
pub mod hash;
pub mod oci;
pub mod scan;
pub mod store;

use std::path::Path;

use shared::manifest::{Manifest, ManifestError};

use crate::describe::DescribeError;
use crate::hash::HashError;
use crate::scan::{ScanError, ScanOptions};

/// Why a folder did not become a manifest.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error(transparent)]
    Describe(#[from] DescribeError),
    #[error(transparent)]
    Hash(#[from] HashError),
    #[error("folder {dir:?} cannot be described by a manifest")]
    Manifest {
        dir: std::path::PathBuf,
        #[source]
        source: ManifestError,
    },
}

/// Lists, describes and hashes a folder. `progress` is called on the calling thread with the number
/// of bytes hashed so far, of all that [`scan::scan`] found.
pub fn manifest_of(dir: &Path, progress: &dyn Fn(u64)) -> Result<Manifest, PushError> {
    let files = scan::scan(dir, ScanOptions::default())?;
    let description = describe::describe(dir, &files)?;
    let entries = hash::hash_tree(dir, &files, progress)?;
    Manifest::new(entries, description).map_err(|source| PushError::Manifest {
        dir: dir.to_owned(),
        source,
    })
}
