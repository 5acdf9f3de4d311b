//! A blob from a registry, however often it breaks off: each attempt goes on where the last one stood.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::Duration;

use shared::digest::OciDigest;
use shared::plan::{OciBlob, PlannedImage};
use tracing::debug;

use super::Containerd;
use super::content::{BlobError, BlobSource, Lease, Origin};
use crate::models::Progress;
use daemon::telemetry::Chain;

/// Attempts in a row that bring nothing.
const MAX_IDLE: u32 = 5;
/// Attempts in all; a registry that sends a few bytes at a time is none.
const MAX_ATTEMPTS: u32 = 500;
/// Attempts that end in other bytes than the digest says: one may be an accident on the way.
const MAX_WRONG: u32 = 2;
const WAIT_MIN: Duration = Duration::from_millis(200);
const WAIT_MAX: Duration = Duration::from_secs(10);

/// How far each blob of an image is.
pub struct Tally {
    reached: Mutex<BTreeMap<OciDigest, u64>>,
    total_bytes: u64,
    progress: Progress,
}

impl Tally {
    pub fn new(image: &PlannedImage, progress: Progress) -> Self {
        let layers = image.layers.iter().map(|layer| &layer.blob);
        let blobs: BTreeMap<&OciDigest, u64> = [&image.manifest, &image.config]
            .into_iter()
            .chain(layers)
            .map(|blob| (&blob.digest, blob.size_bytes))
            .collect();
        let total_bytes = blobs
            .values()
            .fold(0, |sum: u64, size| sum.saturating_add(*size));
        progress.send_replace((0, total_bytes));
        Self {
            reached: Mutex::default(),
            total_bytes,
            progress,
        }
    }

    pub(super) fn reached(&self, digest: &OciDigest, bytes: u64) {
        let mut reached = self.reached.lock().expect("nothing panics under it");
        reached.insert(digest.clone(), bytes);
        let have = reached
            .values()
            .fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
        self.progress.send_replace((have, self.total_bytes));
    }

    fn of(&self, digest: &OciDigest) -> u64 {
        let reached = self.reached.lock().expect("nothing panics under it");
        reached.get(digest).copied().unwrap_or(0)
    }
}

/// What may still be tried. Pure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Budget {
    attempts: u32,
    idle: u32,
    wrong: u32,
}

impl Budget {
    /// How long to wait for the next attempt; `None` when it is enough.
    fn after(&mut self, error: &BlobError, moved: bool) -> Option<Duration> {
        self.attempts += 1;
        self.idle = if moved { 0 } else { self.idle + 1 };
        match error {
            BlobError::WrongContent { .. } => self.wrong += 1,
            BlobError::Fetch(error) if !error.worth_retrying() => return None,
            BlobError::Fetch(_) | BlobError::Stalled { .. } => {}
            BlobError::Call(error) if error.outcome_unknown() => {}
            BlobError::Call(_) | BlobError::Read { .. } | BlobError::Size { .. } => return None,
        }
        let enough =
            self.attempts >= MAX_ATTEMPTS || self.idle >= MAX_IDLE || self.wrong >= MAX_WRONG;
        let wait = WAIT_MIN.saturating_mul(1 << self.idle.min(16));
        (!enough).then_some(wait.min(WAIT_MAX))
    }
}

impl Containerd {
    pub(super) async fn pull_blob(
        &self,
        blob: &OciBlob,
        origin: Origin<'_>,
        labels: &HashMap<String, String>,
        lease: &Lease,
    ) -> Result<(), BlobError> {
        let mut budget = Budget::default();
        let mut best = 0;
        loop {
            let source = BlobSource::Registry(origin);
            let Err(error) = self.write_blob(blob, source, labels, lease).await else {
                return Ok(());
            };
            let reached = origin.tally.of(&blob.digest);
            let Some(wait) = budget.after(&error, reached > best) else {
                return Err(error);
            };
            best = best.max(reached);
            debug!(
                digest = %blob.digest,
                reached,
                attempt = budget.attempts,
                error = %Chain(&error),
                "blob broke off and is gone on with"
            );
            tokio::time::sleep(wait.mul_f64(rand::random_range(0.5..1.5))).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::planned_image;
    use crate::pull::FetchError;
    use tokio::sync::watch;

    fn broken_off() -> BlobError {
        BlobError::Fetch(FetchError::Failed {
            words: "cut".into(),
            later: true,
        })
    }

    #[test]
    fn a_blob_that_moves_is_gone_on_with_and_one_that_does_not_is_given_up() {
        let mut budget = Budget::default();
        for _ in 0..MAX_ATTEMPTS - 1 {
            assert_eq!(budget.after(&broken_off(), true), Some(WAIT_MIN));
        }
        assert_eq!(budget.after(&broken_off(), true), None);
        let mut budget = Budget::default();
        let waits: Vec<_> = std::iter::from_fn(|| budget.after(&broken_off(), false)).collect();
        let millis: Vec<_> = waits.iter().map(Duration::as_millis).collect();
        assert_eq!(millis, [400, 800, 1600, 3200]);
    }

    #[test]
    fn what_trying_again_cannot_change_is_not_tried_again() {
        let refused = BlobError::Fetch(FetchError::Failed {
            words: "no login".into(),
            later: false,
        });
        assert_eq!(Budget::default().after(&refused, true), None);
        let wrong = BlobError::WrongContent {
            digest: planned_image().config.digest,
            said: "unexpected commit digest".into(),
        };
        let mut budget = Budget::default();
        assert!(budget.after(&wrong, true).is_some());
        assert_eq!(budget.after(&wrong, true), None);
    }

    #[test]
    fn progress_is_the_sum_over_blobs_and_falls_when_bytes_were_wrong() {
        let (progress, shown) = watch::channel((0, 0));
        let image = planned_image();
        let tally = Tally::new(&image, progress);
        tally.reached(&image.config.digest, 10);
        tally.reached(&image.layers[0].blob.digest, 4);
        assert_eq!(*shown.borrow(), (14, 30));
        tally.reached(&image.layers[0].blob.digest, 0);
        assert_eq!(*shown.borrow(), (10, 30));
    }
}
