//! How many requests a replica works on at once. Its own gateway holds the limit, whoever asks.
//!
//! What always holds: no more than the limit given at admission are let in, and a slot comes back
//! exactly once, when its [`Admission`] is dropped, however the request ended. Nobody waits here: the
//! queue is the entry gateway's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Debug, Default)]
pub(crate) struct Limiter {
    in_flight: AtomicU32,
}

impl Limiter {
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Acquire)
    }

    /// A slot, or the load that left none. The limit is an argument since it moves: after it shrank,
    /// nobody is let in until enough have left.
    pub(crate) fn admit(self: &Arc<Self>, limit: u32) -> Result<Admission, u32> {
        self.in_flight
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                (n < limit).then(|| n + 1)
            })
            .map(|_| Admission {
                limiter: Arc::clone(self),
            })
    }
}

/// One slot of a replica.
#[derive(Debug)]
pub(crate) struct Admission {
    limiter: Arc<Limiter>,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.limiter.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slot_after_the_last_is_refused_with_the_load() {
        let limiter = Arc::new(Limiter::default());
        let first = limiter.admit(2).expect("slot");
        let _second = limiter.admit(2).expect("slot");
        assert_eq!(limiter.admit(2).expect_err("full"), 2);
        drop(first);
        assert!(limiter.admit(2).is_ok());
    }

    #[test]
    fn a_limit_that_shrank_lets_nobody_in_until_enough_have_left() {
        let limiter = Arc::new(Limiter::default());
        let mut held: Vec<_> = (0..4).map(|_| limiter.admit(4).expect("slot")).collect();
        held.pop();
        assert!(limiter.admit(2).is_err());
        held.truncate(1);
        assert!(limiter.admit(2).is_ok());
    }

    #[test]
    fn threads_together_never_exceed_the_limit() {
        let limiter = Arc::new(Limiter::default());
        let peak = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        if let Ok(admission) = limiter.admit(3) {
                            peak.fetch_max(limiter.in_flight(), Ordering::Relaxed);
                            drop(admission);
                        }
                    }
                });
            }
        });
        assert!(peak.load(Ordering::Relaxed) <= 3);
        assert_eq!(limiter.in_flight(), 0);
    }
}
