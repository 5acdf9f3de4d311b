//! Why a model did not get into the cache.

use std::error::Error;
use std::time::Duration;

use shared::digest::Digest;
use shared::manifest::{ManifestError, ManifestId};

use crate::cache::{ObjectError, PublishError, ReserveError};

/// Why a source gave no bytes.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Asking again will not help.
    #[error("the source does not have it")]
    NotFound,
    #[error("the source did not answer within {after:?}")]
    Stalled { after: Duration },
    #[error("the source failed")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
}

impl SourceError {
    pub fn unavailable(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Unavailable(cause.into())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("fetch manifest of model {model}")]
    Manifest {
        model: ManifestId,
        #[source]
        source: SourceError,
    },
    #[error("the source gave another manifest than that of model {model}")]
    CorruptManifest { model: ManifestId },
    #[error("manifest of model {model} was refused")]
    BadManifest {
        model: ManifestId,
        #[source]
        source: ManifestError,
    },
    #[error("fetch chunk {chunk} of {file:?} of model {model}, tried {attempts} times")]
    Source {
        model: ManifestId,
        file: String,
        chunk: Digest,
        attempts: u32,
        #[source]
        source: SourceError,
    },
    #[error(
        "chunk {chunk} of {file:?} of model {model} has wrong content {actual}, fetched {attempts} times"
    )]
    Corrupt {
        model: ManifestId,
        file: String,
        chunk: Digest,
        actual: Digest,
        attempts: u32,
    },
    #[error("store {file:?} of model {model}")]
    Cache {
        model: ManifestId,
        file: String,
        #[source]
        source: ObjectError,
    },
    #[error(transparent)]
    Reserve(#[from] ReserveError),
    #[error(transparent)]
    Publish(#[from] PublishError),
}

impl FetchError {
    /// Whether another attempt at the same chunk is pointless.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Manifest { source, .. } | Self::Source { source, .. } => {
                matches!(source, SourceError::NotFound)
            }
            Self::Corrupt { .. } | Self::CorruptManifest { .. } => false,
            Self::BadManifest { .. } | Self::Cache { .. } | Self::Reserve(_) | Self::Publish(_) => {
                true
            }
        }
    }
}
