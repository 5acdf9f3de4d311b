//! Models on this node: the cache, filled over the session with the scheduler.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use daemon::quic::{self, RequestError};
use daemon::telemetry::Chain;
use model::cache::Cache;
use model::fetch::{ChunkSource, FetchOptions, Fetcher, SourceError};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;
use shared::manifest::{ChunkRef, MAX_MANIFEST_BYTES, ManifestId};
use shared::wire::StreamRequest;
use tokio::sync::watch;

/// Bytes there, bytes in all.
pub type Progress = watch::Sender<(u64, u64)>;

/// Where models (and images' layouts, which travel the same way) come from.
pub trait Models: Send + Sync + 'static {
    /// The folder of a model that is whole.
    fn view(&self, id: &ManifestId) -> Option<PathBuf>;

    /// Brings a model here. An error is a text for people, with its causes.
    fn fetch(
        &self,
        id: ManifestId,
        progress: Progress,
    ) -> impl Future<Output = Result<PathBuf, String>> + Send;

    /// What must stay.
    fn set_pins(&self, pins: BTreeSet<ManifestId>);
}

/// Until the first frame of an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// The node's cache.
pub struct CachedModels {
    fetcher: Fetcher<LinkSource>,
}

impl CachedModels {
    pub fn new(cache: Cache, connection: watch::Receiver<Option<quinn::Connection>>) -> Self {
        let source = LinkSource { connection };
        Self {
            fetcher: Fetcher::new(cache, source, FetchOptions::default()),
        }
    }
}

impl CachedModels {
    /// What was fetched since the start, for `/metrics`.
    pub fn register(self: &Arc<Self>, registry: &mut Registry) {
        registry.register_collector(Box::new(FetchMetrics(Arc::clone(self))));
    }
}

/// Reads the fetcher's own counts whenever somebody asks.
struct FetchMetrics(Arc<CachedModels>);

impl std::fmt::Debug for FetchMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FetchMetrics")
    }
}

impl Collector for FetchMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let stats = self.0.fetcher.stats();
        let counters = [
            (
                "stokehold_agent_chunk_fetches",
                "Chunks fetched, verified and written",
                stats.chunks,
            ),
            (
                "stokehold_agent_chunk_fetched_bytes",
                "Bytes of those chunks",
                stats.bytes,
            ),
            (
                "stokehold_agent_chunk_retries",
                "Chunks and manifests asked for once more",
                stats.retries,
            ),
            (
                "stokehold_agent_chunk_corruptions",
                "Chunks that came with wrong content",
                stats.corrupt_chunks,
            ),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            let kind = counter.metric_type();
            counter.encode(encoder.encode_descriptor(name, help, None, kind)?)?;
        }
        Ok(())
    }
}

impl Models for CachedModels {
    fn view(&self, id: &ManifestId) -> Option<PathBuf> {
        self.fetcher.cache().view(id)
    }

    async fn fetch(&self, id: ManifestId, progress: Progress) -> Result<PathBuf, String> {
        self.fetcher
            .fetch(id, progress)
            .await
            .map_err(|error| Chain(&error).to_string())
    }

    fn set_pins(&self, pins: BTreeSet<ManifestId>) {
        self.fetcher.cache().set_pins(pins);
    }
}

/// Asks the scheduler, over whichever session is up. What comes is verified by the fetcher.
struct LinkSource {
    connection: watch::Receiver<Option<quinn::Connection>>,
}

#[derive(Debug, thiserror::Error)]
#[error("there is no session with the scheduler")]
struct NoSession;

impl LinkSource {
    async fn get(&self, request: StreamRequest, limit: u64) -> Result<Bytes, SourceError> {
        let connection = self
            .connection
            .borrow()
            .clone()
            .ok_or_else(|| SourceError::unavailable(NoSession))?;
        let (_, mut stream) = quic::request(&connection, &request, ANSWER_LIMIT)
            .await
            .map_err(|error| match error {
                RequestError::Refused {
                    not_found: true, ..
                } => SourceError::NotFound,
                RequestError::Timeout(after) => SourceError::Stalled { after },
                other => SourceError::unavailable(other),
            })?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let bytes = stream
            .read_to_end(limit)
            .await
            .map_err(SourceError::unavailable)?;
        Ok(bytes.into())
    }
}

impl ChunkSource for LinkSource {
    async fn fetch(&self, chunk: &ChunkRef) -> Result<Bytes, SourceError> {
        self.get(StreamRequest::fetch_chunk(chunk.digest), chunk.len_bytes)
            .await
    }

    async fn manifest(&self, id: &ManifestId) -> Result<Bytes, SourceError> {
        self.get(
            StreamRequest::fetch_manifest(*id),
            MAX_MANIFEST_BYTES as u64,
        )
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;
    use shared::units::Bytes as ByteCount;

    #[tokio::test]
    async fn what_was_fetched_and_what_went_wrong_is_counted() {
        let folder = tempfile::tempdir().expect("folder");
        let cache = Cache::open(&folder.path().join("cache"), ByteCount::mib(1)).expect("opens");
        let (_none, connection) = watch::channel(None);
        let options = FetchOptions {
            backoff_min: Duration::from_millis(1),
            ..FetchOptions::default()
        };
        let models = Arc::new(CachedModels {
            fetcher: Fetcher::new(cache, LinkSource { connection }, options),
        });
        let mut registry = Registry::default();
        models.register(&mut registry);
        let model = ManifestId(shared::digest::Digest::of(b"model"));
        let fetched = models.fetch(model, watch::Sender::new((0, 0))).await;
        assert!(fetched.expect_err("no session").contains("session"));
        let mut text = String::new();
        encode(&mut text, &registry).expect("encodes");
        for line in [
            "stokehold_agent_chunk_fetches_total 0",
            "stokehold_agent_chunk_fetched_bytes_total 0",
            "stokehold_agent_chunk_retries_total 4",
            "stokehold_agent_chunk_corruptions_total 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
