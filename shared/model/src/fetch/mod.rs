//! Fills the cache from a source of chunks.
//!
//! What always holds: a chunk is hashed before a byte of it is written; at most
//! [`FetchOptions::in_flight`] chunks are in memory, those being written included, whatever is fetched
//! at once; a model is fetched by one caller at a time and others wait for it, and so is a file that
//! several models have. Dropping the future stops the fetch; what was written and synced stays, and
//! the next fetch goes on from there.
//!
//! No deadlock: a task that holds a file's turn waits only for memory, and who holds memory waits
//! only for the source and the disk.

mod error;
mod progress;
mod retry;

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use shared::digest::Digest;
use shared::manifest::{ChunkRef, Manifest, ManifestId};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, watch};

use crate::blocking::blocking;
use crate::cache::{Cache, Object, ObjectError, Reservation, VerifiedChunk};
use progress::Progress;
use retry::{Budget, backoff, jitter};

pub use error::{FetchError, SourceError};

/// Where chunks and manifests come from. Nothing that it gives is trusted.
pub trait ChunkSource: Send + Sync + 'static {
    /// The bytes of one chunk; an implementation reads no more than `chunk.len_bytes`.
    fn fetch(&self, chunk: &ChunkRef) -> impl Future<Output = Result<Bytes, SourceError>> + Send;

    /// The canonical bytes of a manifest.
    fn manifest(&self, id: &ManifestId) -> impl Future<Output = Result<Bytes, SourceError>> + Send;
}

#[derive(Clone, Copy, Debug)]
pub struct FetchOptions {
    /// Chunks in memory at once, of all fetches together. Default: 8, at most 256 MiB.
    pub in_flight: usize,
    /// How often a chunk is asked for before the fetch fails. Default: 5.
    pub attempts: u32,
    /// How long one chunk may take. Default: 60 s, which 32 MiB need at 0.5 MiB/s.
    pub attempt_timeout: Duration,
    /// The wait before the second attempt; doubled each time. Default: 200 ms.
    pub backoff_min: Duration,
    /// The longest wait between attempts. Default: 5 s.
    pub backoff_max: Duration,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            in_flight: 8,
            attempts: 5,
            attempt_timeout: Duration::from_secs(60),
            backoff_min: Duration::from_millis(200),
            backoff_max: Duration::from_secs(5),
        }
    }
}

/// Counted since the start; for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FetchStats {
    pub chunks: u64,
    pub bytes: u64,
    pub retries: u64,
    pub corrupt_chunks: u64,
}

/// Fetches models into one cache. Cheap to clone; clones share limits and flights.
pub struct Fetcher<S> {
    inner: Arc<Inner<S>>,
}

impl<S> Clone for Fetcher<S> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

struct Inner<S> {
    cache: Cache,
    source: S,
    options: FetchOptions,
    memory: Arc<Semaphore>,
    flights: Mutex<HashMap<ManifestId, Weak<Flight>>>,
    counts: Counts,
}

/// One model that is being fetched, and who waits for it.
struct Flight {
    turn: tokio::sync::Mutex<()>,
    progress: watch::Sender<(u64, u64)>,
}

#[derive(Default)]
struct Counts {
    chunks: AtomicU64,
    bytes: AtomicU64,
    retries: AtomicU64,
    corrupt_chunks: AtomicU64,
}

/// What the parts of one fetch share.
struct Job<'a> {
    model: ManifestId,
    progress: Progress<'a>,
    budget: Budget,
}

impl<S: ChunkSource> Fetcher<S> {
    pub fn new(cache: Cache, source: S, options: FetchOptions) -> Self {
        Self {
            inner: Arc::new(Inner {
                cache,
                source,
                memory: Arc::new(Semaphore::new(options.in_flight.max(1))),
                options,
                flights: Mutex::default(),
                counts: Counts::default(),
            }),
        }
    }

    pub fn cache(&self) -> &Cache {
        &self.inner.cache
    }

    pub fn stats(&self) -> FetchStats {
        let counts = &self.inner.counts;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        FetchStats {
            chunks: read(&counts.chunks),
            bytes: read(&counts.bytes),
            retries: read(&counts.retries),
            corrupt_chunks: read(&counts.corrupt_chunks),
        }
    }

    /// Makes the model whole in the cache and returns where it lies. `progress` gets bytes that are
    /// there and bytes in all, identical files once. Pin the model in the cache before.
    pub async fn fetch(
        &self,
        id: ManifestId,
        progress: watch::Sender<(u64, u64)>,
    ) -> Result<PathBuf, FetchError> {
        let inner = &self.inner;
        let flight = inner.flight(id);
        let mut others = flight.progress.subscribe();
        let turn = flight.turn.lock();
        tokio::pin!(turn);
        let _turn = loop {
            tokio::select! {
                biased;
                turn = &mut turn => break turn,
                Ok(()) = others.changed() => {
                    progress.send_replace(*others.borrow_and_update());
                }
            }
        };
        if let Some((path, size_bytes)) = inner.cached(id).await {
            progress.send_replace((size_bytes, size_bytes));
            return Ok(path);
        }
        inner.fetch_now(id, &[&progress, &flight.progress]).await
    }
}

impl<S: ChunkSource> Inner<S> {
    fn flight(&self, id: ManifestId) -> Arc<Flight> {
        let mut flights = self.flights.lock().expect("nothing panics under it");
        flights.retain(|_, flight| flight.strong_count() > 0);
        if let Some(flight) = flights.get(&id).and_then(Weak::upgrade) {
            return flight;
        }
        let flight = Arc::new(Flight {
            turn: tokio::sync::Mutex::default(),
            progress: watch::Sender::new((0, 0)),
        });
        flights.insert(id, Arc::downgrade(&flight));
        flight
    }

    async fn cached(&self, id: ManifestId) -> Option<(PathBuf, u64)> {
        let cache = self.cache.clone();
        blocking(move || {
            let path = cache.view(&id)?;
            cache.touch(&id);
            let view = cache.list().into_iter().find(|view| view.id == id)?;
            Some((path, view.size_bytes))
        })
        .await
    }

    async fn fetch_now(
        &self,
        id: ManifestId,
        progress: &[&watch::Sender<(u64, u64)>],
    ) -> Result<PathBuf, FetchError> {
        let manifest = Arc::new(self.manifest(id).await?);
        let (cache, reserved) = (self.cache.clone(), manifest.clone());
        let reservation = blocking(move || cache.reserve(id, &reserved)).await?;
        let reservation: Arc<Reservation> = Arc::new(reservation);
        let objects = reservation.objects();
        let total_bytes = objects.iter().map(|o| o.entry().size_bytes).sum();
        let chunks = objects.iter().map(|o| o.entry().chunks.len()).sum();
        let job = Job {
            model: id,
            progress: Progress::new(progress, total_bytes),
            budget: Budget::for_chunks(chunks),
        };
        stream::iter(objects.to_vec())
            .map(|object| self.fill(&job, object))
            .buffer_unordered(self.options.in_flight.max(1))
            .try_collect::<()>()
            .await?;
        let published = reservation.clone();
        let path = blocking(move || published.publish(&manifest)).await?;
        Ok(path)
    }

    async fn manifest(&self, id: ManifestId) -> Result<Manifest, FetchError> {
        let mut attempt = 1;
        let bytes = loop {
            let answer = self.in_time(self.source.manifest(&id)).await;
            let error = match answer {
                Ok(bytes) if Digest::of(&bytes) == id.0 => break bytes,
                Ok(_) => FetchError::CorruptManifest { model: id },
                Err(source) => FetchError::Manifest { model: id, source },
            };
            if attempt >= self.options.attempts || error.is_final() {
                return Err(error);
            }
            self.pause(attempt).await;
            attempt += 1;
        };
        Manifest::decode(&bytes).map_err(|source| FetchError::BadManifest { model: id, source })
    }

    /// Makes one file complete.
    async fn fill(&self, job: &Job<'_>, object: Arc<Object>) -> Result<(), FetchError> {
        let turn = Arc::new(object.turn().lock_owned().await);
        let failed = |source| FetchError::Cache {
            model: job.model,
            file: object.entry().path.clone(),
            source,
        };
        let opened = object.clone();
        let missing = blocking(move || opened.open()).await.map_err(failed)?;
        let missing_bytes: u64 = missing.iter().map(|chunk| chunk.len_bytes).sum();
        job.progress.add(object.entry().size_bytes - missing_bytes);
        stream::iter(missing)
            .map(|chunk| self.chunk(job, &object, &turn, chunk))
            .buffer_unordered(self.options.in_flight.max(1))
            .try_collect::<()>()
            .await?;
        let finished = object.clone();
        blocking(move || {
            let _turn = turn;
            finished.finish()
        })
        .await
        .map_err(failed)
    }

    /// Fetches one chunk, as often as need be, and writes it.
    async fn chunk(
        &self,
        job: &Job<'_>,
        object: &Arc<Object>,
        turn: &Arc<OwnedMutexGuard<()>>,
        chunk: ChunkRef,
    ) -> Result<(), FetchError> {
        let memory = self.memory.clone().acquire_owned().await;
        let mut memory = memory.expect("the semaphore is never closed");
        let mut attempt = 1;
        loop {
            let outcome = match self.in_time(self.source.fetch(&chunk)).await {
                Ok(bytes) => {
                    let kept = (turn.clone(), memory);
                    let written = write(object.clone(), chunk, bytes, kept).await;
                    memory = written.0;
                    written.1
                }
                Err(source) => Err(Failure::Source(source)),
            };
            let failure = match outcome {
                Ok(()) => {
                    self.counts.chunks.fetch_add(1, Ordering::Relaxed);
                    self.counts
                        .bytes
                        .fetch_add(chunk.len_bytes, Ordering::Relaxed);
                    job.progress.add(chunk.len_bytes);
                    return Ok(());
                }
                Err(failure) => failure,
            };
            if matches!(failure, Failure::Corrupt(_)) {
                self.counts.corrupt_chunks.fetch_add(1, Ordering::Relaxed);
            }
            let error = failure.named(job.model, object.entry().path.clone(), chunk, attempt);
            if attempt >= self.options.attempts || error.is_final() || !job.budget.take() {
                return Err(error);
            }
            tracing::warn!(
                manifest = %job.model, chunk = %chunk.digest, attempt, %error,
                "chunk fetch will be retried"
            );
            self.pause(attempt).await;
            attempt += 1;
        }
    }

    async fn in_time(
        &self,
        answer: impl Future<Output = Result<Bytes, SourceError>>,
    ) -> Result<Bytes, SourceError> {
        let after = self.options.attempt_timeout;
        match tokio::time::timeout(after, answer).await {
            Ok(result) => result,
            Err(_) => Err(SourceError::Stalled { after }),
        }
    }

    async fn pause(&self, attempt: u32) {
        self.counts.retries.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(backoff(&self.options, attempt, jitter())).await;
    }
}

/// Why one attempt failed.
enum Failure {
    Source(SourceError),
    Corrupt(Digest),
    Cache(ObjectError),
}

impl Failure {
    fn named(self, model: ManifestId, file: String, chunk: ChunkRef, attempts: u32) -> FetchError {
        let chunk = chunk.digest;
        match self {
            Failure::Source(source) => FetchError::Source {
                model,
                file,
                chunk,
                attempts,
                source,
            },
            Failure::Corrupt(actual) => FetchError::Corrupt {
                model,
                file,
                chunk,
                actual,
                attempts,
            },
            Failure::Cache(source) => FetchError::Cache {
                model,
                file,
                source,
            },
        }
    }
}

/// Checks and writes a chunk off the async threads. The file's turn and the memory are kept until
/// that is done, even if nobody waits for it any more.
async fn write(
    object: Arc<Object>,
    chunk: ChunkRef,
    bytes: Bytes,
    (turn, memory): (Arc<OwnedMutexGuard<()>>, OwnedSemaphorePermit),
) -> (OwnedSemaphorePermit, Result<(), Failure>) {
    blocking(move || {
        let result = match VerifiedChunk::verify(chunk, bytes) {
            Ok(verified) => object.write(&verified).map_err(Failure::Cache),
            Err(actual) => Err(Failure::Corrupt(actual)),
        };
        drop(turn);
        (memory, result)
    })
    .await
}

#[cfg(test)]
mod tests;
