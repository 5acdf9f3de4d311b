//! The replicas of a simulated entity: wanted, starting, ready, draining, gone.
//!
//! ```text
//! wanted ── no node has room ──> pending ──room──> starting ──start-up──> ready ──> draining ──> gone
//!                                   │                 │
//!                                   └── cancelled <───┘
//! ```
//! On the way down those that have least are given up first: pending, then starting (the one that
//! would be ready last goes first), then ready.

use std::collections::BTreeMap;

use super::pool::{Requests, Serving, step};
use crate::chance::{Chance, Stream};
use crate::fleet::{Fleet, FleetSize};
use crate::plant::Startup;

/// Replicas beyond this are not counted one by one: nobody's fleet has them.
const MOST: u32 = 1_000_000;
/// A draining replica with less than this of a request left has none.
const DRAINED: f64 = 0.05;
/// A draining replica is gone at the latest after this many times what a request takes in it.
const DRAIN_TIMES: f64 = 3.0;

pub(crate) struct Replicas {
    pub(crate) ready: u32,
    /// By the sub-step in which they become ready.
    starting: BTreeMap<u64, u32>,
    starting_count: u32,
    pending: u32,
    draining: Vec<Draining>,
    slots: Slots,
    fleet: Fleet,
    chance: Chance,
    startup: Startup,
    warm_startup_s: f64,
    step_s: f64,
}

/// Replicas that were taken out together, with the requests they had.
struct Draining {
    replicas: u32,
    requests: Requests,
    gone_at: u64,
}

/// Slots that are kept ready for a quick start.
#[derive(Default)]
struct Slots {
    ready: u32,
    /// By the sub-step in which they are ready.
    filling: BTreeMap<u64, u32>,
}

impl Slots {
    fn all(&self) -> u32 {
        self.ready + self.filling.values().sum::<u32>()
    }
}

impl Replicas {
    /// `initial` replicas are ready at the start.
    pub(crate) fn new(
        initial: u32,
        fleet: FleetSize,
        startup: Startup,
        warm_startup_s: f64,
        step_s: f64,
        seed: u64,
    ) -> Self {
        let mut fleet = Fleet::new(fleet);
        let ready = (0..initial.min(MOST)).take_while(|_| fleet.take()).count() as u32;
        Self {
            ready,
            starting: BTreeMap::new(),
            starting_count: 0,
            pending: 0,
            draining: Vec::new(),
            slots: Slots::default(),
            fleet,
            chance: Chance::new(seed, Stream::Startups),
            startup,
            warm_startup_s,
            step_s,
        }
    }

    /// Wanted and not ready yet, those without a node included.
    pub(crate) fn coming(&self) -> u32 {
        self.starting_count + self.pending
    }

    /// Those that hold a node's room: what is paid for.
    pub(crate) fn paid(&self) -> u32 {
        let draining: u32 = self.draining.iter().map(|it| it.replicas).sum();
        self.ready + self.starting_count + draining
    }

    /// Follows an order. Requests of replicas that are drained leave `active` with them.
    pub(crate) fn follow(
        &mut self,
        desired: u32,
        warm: u32,
        now: u64,
        active: &mut Requests,
        serving: &Serving<'_>,
    ) {
        let desired = desired.min(MOST);
        let there = self.ready + self.coming();
        if desired < there {
            self.give_up(there - desired, now, active, serving);
        }
        self.pending += desired.saturating_sub(there);
        while self.pending > 0 && self.fleet.take() {
            self.pending -= 1;
            self.start(now);
        }
        self.refill(warm.min(MOST), now);
    }

    fn start(&mut self, now: u64) {
        let takes_s = if self.slots.ready > 0 {
            self.slots.ready -= 1;
            self.warm_startup_s
        } else {
            self.draw_startup_s()
        };
        let at = now + self.steps(takes_s);
        *self.starting.entry(at).or_default() += 1;
        self.starting_count += 1;
    }

    fn draw_startup_s(&mut self) -> f64 {
        // The logarithm's deviation that gives this spread.
        let sigma = (1.0 + self.startup.spread.powi(2)).ln().sqrt();
        self.startup.mean_s * self.chance.lognormal_factor(sigma)
    }

    fn steps(&self, seconds: f64) -> u64 {
        (seconds / self.step_s).round() as u64
    }

    fn refill(&mut self, wanted: u32, now: u64) {
        for _ in self.slots.all()..wanted {
            let takes_s = self.draw_startup_s();
            let at = now + self.steps(takes_s);
            *self.slots.filling.entry(at).or_default() += 1;
        }
        let mut surplus = self.slots.all().saturating_sub(wanted);
        surplus -= take_last(&mut self.slots.filling, surplus);
        self.slots.ready -= surplus;
    }

    fn give_up(&mut self, many: u32, now: u64, active: &mut Requests, serving: &Serving<'_>) {
        let pending = many.min(self.pending);
        self.pending -= pending;
        let starting = take_last(&mut self.starting, many - pending);
        self.starting_count -= starting;
        self.fleet.leave(starting);
        let drained = many - pending - starting;
        if drained == 0 {
            return;
        }
        let share = f64::from(drained) / f64::from(self.ready);
        let takes_s = active.work_each() * serving.time_s(active.count / f64::from(self.ready));
        self.draining.push(Draining {
            replicas: drained,
            requests: active.split(share),
            gone_at: now + self.steps(DRAIN_TIMES * takes_s),
        });
        self.ready -= drained;
    }

    /// What has started by now is ready.
    pub(crate) fn arrive(&mut self, now: u64) {
        while let Some(first) = self.starting.first_entry().filter(|it| *it.key() <= now) {
            let ready = first.remove();
            self.ready += ready;
            self.starting_count -= ready;
        }
        while let Some(first) = self
            .slots
            .filling
            .first_entry()
            .filter(|it| *it.key() <= now)
        {
            self.slots.ready += first.remove();
        }
    }

    /// A step of those that drain. Returns how many requests ended in them.
    pub(crate) fn drain(&mut self, now: u64, serving: &Serving<'_>) -> f64 {
        let mut ended = 0.0;
        let fleet = &mut self.fleet;
        let step_s = self.step_s;
        self.draining.retain_mut(|it| {
            ended += step(
                &mut it.requests,
                f64::from(it.replicas),
                serving,
                step_s,
                f64::INFINITY,
                &mut 0.0,
            );
            let empty = it.requests.count < DRAINED * f64::from(it.replicas);
            if empty || now >= it.gone_at {
                ended += it.requests.count;
                fleet.leave(it.replicas);
                return false;
            }
            true
        });
        ended
    }

    pub(crate) fn any_drain(&self) -> bool {
        !self.draining.is_empty()
    }

    /// Requests at replicas that drain.
    pub(crate) fn draining(&self) -> f64 {
        self.draining.iter().map(|it| it.requests.count).sum()
    }
}

/// Takes up to `many` out of the latest entries; returns how many it took.
fn take_last(entries: &mut BTreeMap<u64, u32>, many: u32) -> u32 {
    let mut taken = 0;
    while taken < many {
        let Some(mut last) = entries.last_entry() else {
            break;
        };
        let some = (*last.get()).min(many - taken);
        *last.get_mut() -= some;
        taken += some;
        if *last.get() == 0 {
            last.remove();
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::plant::Plant;

    const STARTUP: Startup = Startup {
        mean_s: 10.0,
        spread: 0.0,
    };

    fn follow(replicas: &mut Replicas, desired: u32, warm: u32, now: u64, active: &mut Requests) {
        let plant = Plant::built_in("cpu").expect("there");
        let serving = Serving::new(&plant, *plant.curve(Duration::ZERO));
        replicas.follow(desired, warm, now, active, &serving);
    }

    fn replicas(initial: u32, size: FleetSize) -> Replicas {
        Replicas::new(initial, size, STARTUP, 1.0, 0.1, 1)
    }

    #[test]
    fn a_replica_is_ready_a_start_up_after_it_was_wanted_and_paid_from_the_start() {
        let mut it = replicas(1, FleetSize::default());
        follow(&mut it, 3, 0, 0, &mut Requests::default());
        assert_eq!((it.ready, it.coming(), it.paid()), (1, 2, 3));
        it.arrive(99);
        assert_eq!(it.ready, 1);
        it.arrive(100);
        assert_eq!((it.ready, it.coming()), (3, 0));
    }

    #[test]
    fn on_the_way_down_those_that_start_go_first_and_a_ready_one_takes_its_requests_along() {
        let mut it = replicas(2, FleetSize::default());
        let mut active = Requests::new(8.0, 1.0);
        follow(&mut it, 3, 0, 0, &mut active);
        follow(&mut it, 1, 0, 10, &mut active);
        assert_eq!((it.ready, it.coming(), it.paid()), (1, 0, 2));
        assert_eq!((active.count, it.draining()), (4.0, 4.0));
        let plant = Plant::built_in("cpu").expect("there");
        let serving = Serving::new(&plant, *plant.curve(Duration::ZERO));
        let mut ended = 0.0;
        for now in 11..20 {
            ended += it.drain(now, &serving);
        }
        assert!((ended - 4.0).abs() < 1e-9, "none is lost: {ended}");
        assert_eq!(it.paid(), 1);
    }

    #[test]
    fn who_finds_no_room_waits_for_some_and_is_not_paid() {
        let size = FleetSize {
            nodes: 1,
            replicas_per_node: 2,
        };
        let mut it = replicas(1, size);
        follow(&mut it, 4, 0, 0, &mut Requests::default());
        assert_eq!((it.paid(), it.coming()), (2, 3));
        follow(&mut it, 2, 0, 10, &mut Requests::default());
        assert_eq!((it.paid(), it.coming()), (2, 1), "those that wait go first");
    }

    #[test]
    fn a_warm_slot_starts_quickly_and_is_filled_again_after_a_full_start_up() {
        let mut it = replicas(1, FleetSize::default());
        follow(&mut it, 1, 1, 0, &mut Requests::default());
        it.arrive(100);
        follow(&mut it, 3, 1, 100, &mut Requests::default());
        it.arrive(110);
        assert_eq!((it.ready, it.coming()), (2, 1), "one slot, one quick start");
        it.arrive(200);
        follow(&mut it, 4, 1, 200, &mut Requests::default());
        it.arrive(210);
        assert_eq!((it.ready, it.coming()), (4, 0));
    }
}
