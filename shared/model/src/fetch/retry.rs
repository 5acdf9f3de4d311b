//! How long to wait before another attempt, and how many one fetch may make. Pure but for [`jitter`].

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::FetchOptions;

/// The wait after attempt number `attempt`: doubled each time, the upper half of it by chance, so
/// that a fleet that lost its source together does not come back together.
pub(super) fn backoff(options: &FetchOptions, attempt: u32, jitter: f64) -> Duration {
    let factor = 1u32 << attempt.saturating_sub(1).min(16);
    let longest = options
        .backoff_min
        .saturating_mul(factor)
        .min(options.backoff_max);
    longest.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
}

/// Between 0 and 1; need not be random to anybody but other nodes.
pub(super) fn jitter() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let bits = std::hash::RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// Retries of one fetch, all chunks together: a source that fails one time in eight is used, one that
/// mostly fails is given up before it was asked thousands of times.
pub(super) struct Budget(AtomicU32);

impl Budget {
    pub(super) fn for_chunks(chunks: usize) -> Self {
        let share = u32::try_from(chunks / 8).unwrap_or(u32::MAX - 16);
        Self(AtomicU32::new(16 + share))
    }

    /// Takes one retry, if there is one left.
    pub(super) fn take(&self) -> bool {
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            });
        taken.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_chance_takes_up_to_half() {
        let options = FetchOptions::default();
        let waits: Vec<u128> = (1..8)
            .map(|n| backoff(&options, n, 1.0).as_millis())
            .collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(backoff(&options, 1, 0.0).as_millis(), 100);
        assert_eq!(backoff(&options, u32::MAX, 1.0).as_millis(), 5000);
    }

    #[test]
    fn chance_lies_between_zero_and_one_and_varies() {
        let draws: Vec<f64> = (0..100).map(|_| jitter()).collect();
        assert!(draws.iter().all(|d| (0.0..1.0).contains(d)));
        assert!(draws.iter().any(|d| *d != draws[0]));
    }

    #[test]
    fn a_budget_is_used_up() {
        let budget = Budget::for_chunks(16);
        assert_eq!((0..100).filter(|_| budget.take()).count(), 18);
    }
}
