//! The warm pool of one served entity: each replica that is wanted anew claims a slot.

use std::time::Duration;

use apa::pool::{self, Observation};
use shared::units::MonoTime;

/// Sized once a minute from what was claimed in it.
#[derive(Clone, Debug)]
pub struct WarmPool {
    policy: pool::Policy,
    /// From wanted to ready without a slot; `None`: not measured.
    startup: Option<Duration>,
    /// Taken out while a decision is made.
    state: Option<pool::State>,
    /// Replicas wanted at the last second.
    wanted: Option<u32>,
    claims: u32,
    /// The minute that is being counted, and whether anything was seen in it.
    minute: Option<u64>,
    seen: bool,
}

impl WarmPool {
    pub fn new(policy: pool::Policy, startup: Option<Duration>) -> Self {
        Self {
            state: Some(pool::State::new(&policy)),
            policy,
            startup,
            wanted: None,
            claims: 0,
            minute: None,
            seen: false,
        }
    }

    /// A second passed in which so many replicas were wanted; `observed`: whether anything was
    /// measured in it. Returns the slots that should stand ready.
    pub fn second(&mut self, wanted: u32, observed: bool, now: MonoTime) -> u32 {
        let minute = now.since_origin().as_secs() / pool::PERIOD.as_secs();
        if self.minute.is_some_and(|before| before != minute) {
            self.decide(now);
        }
        self.minute = Some(minute);
        self.seen |= observed;
        if let Some(before) = self.wanted.replace(wanted) {
            self.claims = self.claims.saturating_add(wanted.saturating_sub(before));
        }
        self.state.as_ref().map_or(0, pool::State::size)
    }

    fn decide(&mut self, now: MonoTime) {
        let Some(state) = self.state.take() else {
            return;
        };
        let observation = Observation {
            claims: self.seen.then_some(self.claims),
            lead: self.startup,
            known: 0,
        };
        let (_, state) = pool::decide(&self.policy, state, &observation, now);
        self.state = Some(state);
        (self.claims, self.seen) = (0, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_that_come_again_and_again_find_slots_and_quiet_ones_need_none() {
        let run = |burst: u32| {
            let mut pool = WarmPool::new(pool::Policy::default(), Some(Duration::from_secs(60)));
            let mut most = 0;
            for at_s in 1..7200 {
                let wanted = if at_s % 600 < 120 { 1 + burst } else { 1 };
                most = pool
                    .second(wanted, true, MonoTime::from_secs(at_s))
                    .max(most);
            }
            most
        };
        assert_eq!(run(0), 0);
        assert!((1..=20).contains(&run(10)), "{}", run(10));
    }

    #[test]
    fn a_minute_of_which_nothing_is_known_changes_nothing() {
        let mut pool = WarmPool::new(pool::Policy::default(), None);
        for at_s in 1..3600 {
            pool.second(
                1 + u32::from(at_s % 120 < 60) * 5,
                true,
                MonoTime::from_secs(at_s),
            );
        }
        let before = pool.second(1, true, MonoTime::from_secs(3600));
        for at_s in 3661..4200 {
            assert_eq!(pool.second(1, false, MonoTime::from_secs(at_s)), before);
        }
    }
}
