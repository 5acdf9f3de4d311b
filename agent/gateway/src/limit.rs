//! How many requests a replica works on at once. Its own gateway holds the limit, whoever asks.
//!
//! What always holds: no more than the limit given at admission are let in, and a slot comes back
//! exactly once, when its [`Admission`] is dropped, however the request ended. Nobody waits here: the
//! queue is the entry gateway's.
//!
//! Every request passes here, whichever gateway sent it, so this is also where a replica's own load is
//! measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use shared::report::ReplicaLoad;
use shared::units::MonoTime;

use crate::clock::Clock;
use crate::work::Work;

#[derive(Debug)]
pub(crate) struct Limiter {
    clock: Clock,
    in_flight: AtomicU32,
    /// This replica's alone, and held for some additions.
    work: Mutex<Work>,
}

impl Limiter {
    pub(crate) fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            clock,
            in_flight: AtomicU32::new(0),
            work: Mutex::new(Work::new(clock.now())),
        })
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Acquire)
    }

    /// A slot, or the load that left none. The limit is an argument since it moves: after it shrank,
    /// nobody is let in until enough have left.
    pub(crate) fn admit(self: &Arc<Self>, limit: u32) -> Result<Admission, u32> {
        self.in_flight
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                (n < limit).then(|| n + 1)
            })?;
        let since = self.clock.now();
        self.work.lock().entered(since);
        Ok(Admission {
            limiter: Arc::clone(self),
            since,
        })
    }

    /// What the replica did since this was last asked.
    pub(crate) fn take_load(&self) -> ReplicaLoad {
        let now = self.clock.now();
        self.work.lock().take(now)
    }
}

/// One slot of a replica.
#[derive(Debug)]
pub(crate) struct Admission {
    limiter: Arc<Limiter>,
    since: MonoTime,
}

impl Admission {
    /// The replica answered below 500, to the end. Dropped without it, the request counts in the load
    /// while it was there, and not as a completion.
    pub(crate) fn completed(self) {
        let service = self.limiter.clock.now().saturating_since(self.since);
        self.limiter.work.lock().completed(service);
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let now = self.limiter.clock.now();
        self.limiter.work.lock().left(now);
        self.limiter.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_slot_after_the_last_is_refused_with_the_load() {
        let limiter = Limiter::new(Clock::start());
        let first = limiter.admit(2).expect("slot");
        let _second = limiter.admit(2).expect("slot");
        assert_eq!(limiter.admit(2).expect_err("full"), 2);
        drop(first);
        assert!(limiter.admit(2).is_ok());
    }

    #[test]
    fn a_limit_that_shrank_lets_nobody_in_until_enough_have_left() {
        let limiter = Limiter::new(Clock::start());
        let mut held: Vec<_> = (0..4).map(|_| limiter.admit(4).expect("slot")).collect();
        held.pop();
        assert!(limiter.admit(2).is_err());
        held.truncate(1);
        assert!(limiter.admit(2).is_ok());
    }

    #[test]
    fn threads_together_never_exceed_the_limit() {
        let limiter = Limiter::new(Clock::start());
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

    #[tokio::test(start_paused = true)]
    async fn only_what_was_answered_well_counts_as_done_and_all_of_it_as_load() {
        let limiter = Limiter::new(Clock::start());
        let answered = limiter.admit(2).expect("slot");
        let lost = limiter.admit(2).expect("slot");
        tokio::time::advance(Duration::from_millis(400)).await;
        answered.completed();
        drop(lost);
        tokio::time::advance(Duration::from_millis(400)).await;
        let load = limiter.take_load();
        assert!((load.active - 1.0).abs() < 0.01, "{}", load.active);
        assert_eq!((load.completions, limiter.in_flight()), (1, 0));
    }
}
