//! The chunk store as the scheduler uses it: what agents fetch over QUIC, and the collection of what
//! nothing refers to any more.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use daemon::quic;
use daemon::telemetry::Chain;
use model::store::{ChunkStore, Collected, GetError};
use quinn::SendStream;
use shared::manifest::{Manifest, ManifestId};
use shared::wire::{RequestBody, StreamReply};
use tokio::sync::{RwLock, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::control::{Handle, Stopping};

/// Chunks held in memory for agents at once, of at most 32 MiB each and mostly 4.
const READS: usize = 32;
/// An agent that takes longer for one chunk is gone or stuck, and must not hold a place.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// Deletions collect at once what they free; this gets what interrupted pushes leave behind.
const COLLECT_INTERVAL: Duration = Duration::from_secs(1800);

/// Cheap to clone.
#[derive(Clone)]
pub struct Chunks {
    pub store: ChunkStore,
    reads: Arc<Semaphore>,
    /// Held shared while a manifest becomes a record, and alone while garbage is collected: what
    /// was found in the store must still be there when the record that needs it is written.
    registering: Arc<RwLock<()>>,
}

#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    #[error(transparent)]
    Stopping(#[from] Stopping),
    #[error("collect what nothing refers to")]
    Store(#[from] model::store::CollectError),
}

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("manifest {id} is not in the store: send it with `POST /api/stokehold/v1/manifests`")]
    NotFound { id: ManifestId },
    #[error("read manifest {id}")]
    Get {
        id: ManifestId,
        #[source]
        source: GetError,
    },
    #[error("manifest {id} in the store is broken")]
    Invalid {
        id: ManifestId,
        #[source]
        source: shared::manifest::ManifestError,
    },
}

impl Chunks {
    pub fn new(store: ChunkStore) -> Self {
        Self {
            store,
            reads: Arc::new(Semaphore::new(READS)),
            registering: Arc::default(),
        }
    }

    /// Keeps everything in the store until the guard is dropped.
    pub async fn keep(&self) -> tokio::sync::OwnedRwLockReadGuard<()> {
        Arc::clone(&self.registering).read_owned().await
    }

    pub async fn manifest(&self, id: ManifestId) -> Result<Manifest, ManifestError> {
        let bytes = match self.store.get_manifest(id).await {
            Ok(bytes) => bytes,
            Err(GetError::NotFound { .. }) => return Err(ManifestError::NotFound { id }),
            Err(source) => return Err(ManifestError::Get { id, source }),
        };
        Manifest::decode(&bytes).map_err(|source| ManifestError::Invalid { id, source })
    }

    /// Deletes what neither a record nor a replica needs; of `deleted`, whose record has just gone,
    /// also what is young.
    pub async fn collect(
        &self,
        control: &Handle,
        deleted: Option<ManifestId>,
    ) -> Result<Collected, CollectError> {
        let _alone = self.registering.write().await;
        let live = control.read(|core| core.live_manifests()).await?;
        let live: Vec<ManifestId> = live.into_iter().collect();
        let collected = match deleted {
            Some(deleted) => self.store.collect_deleted(&live, deleted).await?,
            None => self.store.collect(&live).await?,
        };
        if collected.deleted_bytes > 0 {
            info!(
                bytes = collected.deleted_bytes,
                chunks = collected.deleted_chunks,
                manifests = collected.deleted_manifests,
                "unused chunks deleted"
            );
        }
        Ok(collected)
    }

    /// A task: collects now and then.
    pub async fn collect_regularly(
        self,
        control: Handle,
        cancel: CancellationToken,
    ) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(COLLECT_INTERVAL) => {}
            }
            match self.collect(&control, None).await {
                Ok(_) | Err(CollectError::Stopping(_)) => {}
                Err(error) => warn!(error = %Chain(&error), "unused chunks were not deleted"),
            }
        }
    }

    /// Answers one request of an agent.
    pub async fn answer(&self, request: RequestBody, mut send: SendStream) {
        let reading = async {
            // Never closed.
            let _place = self.reads.acquire().await.ok()?;
            let (reply, body) = self.read(request).await;
            quic::write_frame(&mut send, &reply).await.ok()?;
            if let Some(bytes) = body {
                send.write_all(&bytes).await.ok()?;
            }
            send.finish().ok()
        };
        // An agent that went away, or is stuck, asks again.
        let _ = tokio::time::timeout(SEND_TIMEOUT, reading).await;
    }

    async fn read(&self, request: RequestBody) -> (StreamReply, Option<Bytes>) {
        let found = match request {
            RequestBody::FetchChunk(fetch) => match fetch.digest() {
                Ok(digest) => self.store.get_chunk(digest).await,
                Err(error) => return (refusal(&error, false), None),
            },
            RequestBody::FetchManifest(fetch) => match fetch.id() {
                Ok(id) => self.store.get_manifest(id).await,
                Err(error) => return (refusal(&error, false), None),
            },
            RequestBody::ReadLog(_) => {
                let error = StreamReply {
                    error: "the scheduler holds no logs: ask the replica's gateway".into(),
                    ..StreamReply::default()
                };
                return (error, None);
            }
        };
        match found {
            Ok(bytes) => {
                let reply = StreamReply {
                    size_bytes: Some(bytes.len() as u64),
                    ..StreamReply::default()
                };
                (reply, Some(bytes))
            }
            Err(error) => {
                let not_found = matches!(error, GetError::NotFound { .. });
                if !not_found {
                    warn!(error = %Chain(&error), "chunk store gave nothing");
                }
                (refusal(&error, not_found), None)
            }
        }
    }
}

fn refusal(error: &(dyn std::error::Error + 'static), not_found: bool) -> StreamReply {
    StreamReply {
        error: Chain(error).to_string(),
        not_found,
        size_bytes: None,
    }
}
