//! Which replica takes a request, which served entity takes a request. Pure.
//!
//! Replicas: the power of two choices. Two are drawn, the one with the smaller share of its limit in
//! use wins. That needs no shared state to stay within a constant of the best choice, and a stale load
//! hurts it little, since not all gateways run to the same replica at once. Where the winner has no
//! room, all are looked at: a request waits only when every replica is full.

use rand::{Rng, RngExt as _};

/// A replica that may be picked: ready, not draining, not suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Requests at the replica, as far as this gateway knows.
    pub(crate) load: u32,
    /// Requests that it accepts at once.
    pub(crate) limit: u32,
}

impl Candidate {
    fn has_room(&self) -> bool {
        self.load < self.limit
    }

    /// Whether this one's share in use is smaller.
    fn freer_than(&self, other: &Candidate) -> bool {
        u64::from(self.load) * u64::from(other.limit)
            < u64::from(other.load) * u64::from(self.limit)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Index of the candidate.
    Pick(usize),
    /// There are candidates, and each is at its limit.
    Full,
    /// There is no candidate.
    None,
}

pub(crate) fn choose(candidates: &[Candidate], rng: &mut impl Rng) -> Choice {
    let winner = match candidates {
        [] => return Choice::None,
        [_] => 0,
        _ => {
            let first = rng.random_range(0..candidates.len());
            let mut second = rng.random_range(0..candidates.len() - 1);
            if second >= first {
                second += 1;
            }
            if candidates[second].freer_than(&candidates[first]) {
                second
            } else {
                first
            }
        }
    };
    if candidates[winner].has_room() {
        return Choice::Pick(winner);
    }
    // From a random start, so that ties do not all fall on the first.
    let start = rng.random_range(0..candidates.len());
    let mut best: Option<usize> = None;
    for offset in 0..candidates.len() {
        let index = (start + offset) % candidates.len();
        let candidate = candidates[index];
        if candidate.has_room() && best.is_none_or(|b| candidate.freer_than(&candidates[b])) {
            best = Some(index);
        }
    }
    best.map_or(Choice::Full, Choice::Pick)
}

/// Draws an index with the probability of its share; `None` when no share is above zero.
pub(crate) fn draw_share(
    shares: impl Iterator<Item = u32> + Clone,
    rng: &mut impl Rng,
) -> Option<usize> {
    let total: u64 = shares.clone().map(u64::from).sum();
    if total == 0 {
        return None;
    }
    let mut point = rng.random_range(0..total);
    for (index, share) in shares.enumerate() {
        let share = u64::from(share);
        if point < share {
            return Some(index);
        }
        point -= share;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    fn rng(seed: u64) -> SmallRng {
        SmallRng::seed_from_u64(seed)
    }

    fn candidate(load: u32, limit: u32) -> Candidate {
        Candidate { load, limit }
    }

    #[test]
    fn of_two_the_one_with_the_smaller_share_in_use_wins_whatever_its_limit() {
        let replicas = [candidate(3, 4), candidate(4, 16)];
        for seed in 0..50 {
            assert_eq!(choose(&replicas, &mut rng(seed)), Choice::Pick(1));
        }
    }

    #[test]
    fn the_only_one_with_room_is_found_among_many_full_ones() {
        let mut replicas = vec![candidate(4, 4); 40];
        replicas[17] = candidate(3, 4);
        for seed in 0..50 {
            assert_eq!(choose(&replicas, &mut rng(seed)), Choice::Pick(17));
        }
    }

    #[test]
    fn idle_replicas_share_requests_evenly() {
        let replicas = [candidate(0, 4); 4];
        let mut counts = [0; 4];
        let mut rng = rng(7);
        for _ in 0..4000 {
            if let Choice::Pick(index) = choose(&replicas, &mut rng) {
                counts[index] += 1;
            }
        }
        assert!(
            counts.iter().all(|&c| (850..1150).contains(&c)),
            "{counts:?}"
        );
    }

    #[test]
    fn a_split_follows_its_percentages_and_never_draws_a_zero() {
        let shares = [90, 0, 10];
        let mut counts = [0; 3];
        let mut rng = rng(1);
        for _ in 0..10_000 {
            counts[draw_share(shares.iter().copied(), &mut rng).expect("a share")] += 1;
        }
        assert_eq!(counts[1], 0);
        assert!((800..1200).contains(&counts[2]), "{counts:?}");
        assert_eq!(draw_share([0, 0].into_iter(), &mut rng), None);
    }

    proptest! {
        #[test]
        fn a_pick_has_room_and_full_means_that_none_has(
            loads in proptest::collection::vec((0u32..6, 0u32..6), 0..12), seed in any::<u64>(),
        ) {
            let replicas: Vec<_> = loads.iter().map(|&(load, limit)| candidate(load, limit)).collect();
            match choose(&replicas, &mut rng(seed)) {
                Choice::Pick(index) => prop_assert!(replicas[index].load < replicas[index].limit),
                Choice::Full => prop_assert!(replicas.iter().all(|r| r.load >= r.limit)),
                Choice::None => prop_assert!(replicas.is_empty()),
            }
        }
    }
}
