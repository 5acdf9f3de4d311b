//! Requests that wait for a slot, first come first served. Pure.
//!
//! What always holds: at most `capacity` newcomers wait; one that comes back (its replica was full or
//! could not be reached) goes to the front and is never turned away, since it was let in before.

use std::collections::BTreeMap;

use shared::units::MonoTime;

/// Names an entry, to take it out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place(i64);

#[derive(Debug)]
pub(crate) struct Fifo<T> {
    entries: BTreeMap<Place, Entry<T>>,
    next_back: i64,
    next_front: i64,
}

#[derive(Debug)]
struct Entry<T> {
    deadline: MonoTime,
    waiter: T,
}

impl<T> Fifo<T> {
    pub(crate) fn new() -> Self {
        Self {
            entries: BTreeMap::new(),
            next_back: 0,
            next_front: -1,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The newcomer, back, when the queue is full.
    pub(crate) fn push_back(
        &mut self,
        waiter: T,
        deadline: MonoTime,
        capacity: usize,
    ) -> Result<Place, T> {
        if self.entries.len() >= capacity {
            return Err(waiter);
        }
        let place = Place(self.next_back);
        self.next_back += 1;
        self.entries.insert(place, Entry { deadline, waiter });
        Ok(place)
    }

    pub(crate) fn push_front(&mut self, waiter: T, deadline: MonoTime) -> Place {
        let place = Place(self.next_front);
        self.next_front -= 1;
        self.entries.insert(place, Entry { deadline, waiter });
        place
    }

    /// The first whose deadline has not passed. Late ones before it leave the queue: nobody may be
    /// given a slot that it has no time to use.
    pub(crate) fn pop(&mut self, now: MonoTime) -> Option<T> {
        while let Some((_, entry)) = self.entries.pop_first() {
            if entry.deadline > now {
                return Some(entry.waiter);
            }
        }
        None
    }

    /// Takes out one that gave up; `None` when it has left already.
    pub(crate) fn remove(&mut self, place: Place) -> Option<T> {
        self.entries.remove(&place).map(|entry| entry.waiter)
    }

    pub(crate) fn drain(&mut self) -> Vec<T> {
        std::mem::take(&mut self.entries)
            .into_values()
            .map(|entry| entry.waiter)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LATER: MonoTime = MonoTime::from_secs(10);

    fn queue(waiters: &[u32]) -> Fifo<u32> {
        let mut queue = Fifo::new();
        for &waiter in waiters {
            queue.push_back(waiter, LATER, 100).expect("room");
        }
        queue
    }

    #[test]
    fn the_first_to_come_is_the_first_to_go_and_one_that_comes_back_goes_before_all() {
        let mut queue = queue(&[1, 2]);
        queue.push_front(0, LATER);
        let order: Vec<_> = std::iter::from_fn(|| queue.pop(MonoTime::ZERO)).collect();
        assert_eq!(order, [0, 1, 2]);
    }

    #[test]
    fn a_full_queue_turns_newcomers_away_but_not_one_that_comes_back() {
        let mut queue = queue(&[1, 2]);
        assert_eq!(queue.push_back(3, LATER, 2), Err(3));
        queue.push_front(0, LATER);
        assert_eq!(queue.len(), 3);
    }

    #[test]
    fn a_late_waiter_is_passed_over() {
        let mut queue = Fifo::new();
        queue
            .push_back(1, MonoTime::from_secs(1), 10)
            .expect("room");
        queue.push_back(2, LATER, 10).expect("room");
        assert_eq!(queue.pop(MonoTime::from_secs(1)), Some(2));
        assert!(queue.is_empty());
    }

    #[test]
    fn a_waiter_that_gave_up_is_gone_and_is_not_found_twice() {
        let mut queue = queue(&[]);
        let place = queue.push_back(1, LATER, 10).expect("room");
        assert_eq!(queue.remove(place), Some(1));
        assert_eq!(queue.remove(place), None);
        assert_eq!(queue.pop(MonoTime::ZERO), None);
    }

    proptest! {
        #[test]
        fn the_queue_never_outgrows_its_capacity_by_newcomers(
            steps in proptest::collection::vec(0u8..3, 0..200), capacity in 0usize..8,
        ) {
            let mut queue = Fifo::new();
            let mut next = 0;
            let mut last = None;
            for step in steps {
                match step {
                    0 | 1 => { if queue.push_back(next, LATER, capacity).is_ok() { next += 1; } }
                    _ => if let Some(popped) = queue.pop(MonoTime::ZERO) {
                        prop_assert!(last.is_none_or(|l| l < popped));
                        last = Some(popped);
                    },
                }
                prop_assert!(queue.len() <= capacity);
            }
        }
    }
}
