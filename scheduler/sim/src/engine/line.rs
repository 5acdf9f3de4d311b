//! The gateways' queue: first come, first served, bounded.

use std::collections::VecDeque;

use super::pool::Requests;

/// Requests that came in the same sub-step.
#[derive(Clone, Copy, Debug)]
struct Cohort {
    came: u64,
    requests: Requests,
}

/// Less than this of a request is none: a rest of rounding.
const NOTHING: f64 = 1e-9;

#[derive(Clone, Debug, Default)]
pub(crate) struct Line {
    cohorts: VecDeque<Cohort>,
    count: f64,
}

impl Line {
    pub(crate) fn count(&self) -> f64 {
        self.count
    }

    /// Work of the request that is next; that of an ordinary one where none waits.
    pub(crate) fn next_work(&self) -> f64 {
        self.cohorts
            .front()
            .map_or(1.0, |cohort| cohort.requests.work_each())
    }

    /// Appends what the bound lets in; returns how many were turned away.
    pub(crate) fn join(&mut self, mut requests: Requests, now: u64, bound: f64) -> f64 {
        let room = (bound - self.count).max(0.0);
        let turned_away = (requests.count - room).max(0.0);
        if turned_away > 0.0 {
            requests.split(turned_away / requests.count);
        }
        if requests.count > 0.0 {
            self.count += requests.count;
            self.cohorts.push_back(Cohort {
                came: now,
                requests,
            });
        }
        turned_away
    }

    /// Takes up to `most` requests from the front; tells of each part how many they are and how many
    /// sub-steps they have waited.
    pub(crate) fn leave(
        &mut self,
        most: f64,
        now: u64,
        mut waited: impl FnMut(f64, u64),
    ) -> Requests {
        let mut taken = Requests::default();
        while let Some(front) = self.cohorts.front_mut() {
            let left = most - taken.count;
            if left <= NOTHING {
                break;
            }
            let whole = front.requests.count <= left + NOTHING;
            let part = if whole {
                front.requests
            } else {
                front.requests.split(left / front.requests.count)
            };
            waited(part.count, now - front.came);
            taken.add(part);
            if whole {
                self.cohorts.pop_front();
            }
        }
        self.count = if self.cohorts.is_empty() {
            0.0
        } else {
            (self.count - taken.count).max(0.0)
        };
        taken
    }

    /// Those that still wait: how many, and for how many sub-steps.
    pub(crate) fn waiting(&self, now: u64) -> impl Iterator<Item = (f64, u64)> + '_ {
        self.cohorts
            .iter()
            .map(move |cohort| (cohort.requests.count, now - cohort.came))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_first_leaves_first_and_a_cohort_may_leave_in_parts() {
        let mut line = Line::default();
        line.join(Requests::new(2.0, 1.0), 0, 100.0);
        line.join(Requests::new(4.0, 3.0), 5, 100.0);
        let mut waits = Vec::new();
        let taken = line.leave(3.0, 10, |count, steps| waits.push((count, steps)));
        assert_eq!(waits, [(2.0, 10), (1.0, 5)]);
        assert_eq!((taken.count, taken.work), (3.0, 5.0));
        assert_eq!((line.count(), line.next_work()), (3.0, 3.0));
        line.leave(9.0, 11, |_, _| ());
        assert_eq!(line.count(), 0.0);
    }

    #[test]
    fn what_exceeds_the_bound_is_turned_away() {
        let mut line = Line::default();
        assert_eq!(line.join(Requests::new(8.0, 1.0), 0, 10.0), 0.0);
        assert_eq!(line.join(Requests::new(8.0, 1.0), 1, 10.0), 6.0);
        assert_eq!(line.count(), 10.0);
        assert_eq!(line.join(Requests::new(1.0, 1.0), 2, 10.0), 1.0);
    }
}
