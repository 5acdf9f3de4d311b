//! What a gateway knows about the replicas of one served entity. Pure.
//!
//! Of a replica's load a gateway knows its own share exactly. The load of a local replica is known in
//! whole; that of a remote one comes back with each answer, and what is not ours of it is believed for
//! a second. A replica that said "full" is not asked again for a moment, one that could not be reached
//! for a growing while.

use std::time::Duration;

use rand::{Rng, RngExt as _};
use shared::ids::{NodeName, ReplicaId};
use shared::routes::ReplicaRoute;
use shared::units::MonoTime;

use crate::balancer::{Candidate, Choice, choose};

/// How long another gateway's share of a load is believed.
const LOAD_FRESH: Duration = Duration::from_secs(1);
/// Rest after "full": a slot is as likely to free at any moment, so half of it is chance.
const FULL_REST: Duration = Duration::from_millis(20);
/// Rest after a replica could not be reached, doubled each time.
const UNREACHABLE_REST: Duration = Duration::from_millis(100);
const UNREACHABLE_REST_MAX: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Replica {
    id: ReplicaId,
    node: NodeName,
    draining: bool,
    /// Requests that it accepts at once.
    limit: u32,
    /// Requests of this gateway.
    own: u32,
    /// Requests of other gateways, when that was said.
    others: u32,
    others_at: MonoTime,
    rest: Rest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    No,
    Full { until: MonoTime },
    Unreachable { until: MonoTime, times: u32 },
}

#[derive(Debug)]
pub(crate) struct Replicas {
    all: Vec<Replica>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pick {
    Replica {
        id: ReplicaId,
        node: NodeName,
    },
    /// All are full, or rest: a slot may free at any moment.
    Full,
    /// There is none: only new routes can help.
    None,
}

impl Replicas {
    pub(crate) fn new() -> Self {
        Self { all: Vec::new() }
    }

    /// Takes over new routes. What is known about a replica stays, and so do requests beyond a limit
    /// that shrank: no more come until enough have left. `limit` is of those without one of their own.
    pub(crate) fn update(&mut self, limit: u32, routes: &[ReplicaRoute]) {
        let mut known = std::mem::take(&mut self.all);
        self.all = routes
            .iter()
            .map(|route| {
                let found = known.iter().position(|r| r.id == route.id);
                let mut replica = match found {
                    Some(index) => known.swap_remove(index),
                    None => Replica {
                        id: route.id.clone(),
                        node: route.node.clone(),
                        draining: false,
                        limit,
                        own: 0,
                        others: 0,
                        others_at: MonoTime::ZERO,
                        rest: Rest::No,
                    },
                };
                replica.node = route.node.clone();
                replica.draining = route.draining;
                replica.limit = route.target_concurrency.unwrap_or(limit);
                replica
            })
            .collect();
        // Requests may still run at replicas that left the routes; their slots come back to nobody.
    }

    /// Whether any replica takes requests at all, resting ones included.
    pub(crate) fn any_ready(&self) -> bool {
        self.all.iter().any(|r| !r.draining)
    }

    /// Whether any replica takes requests that could be reached when it was last tried, or is being
    /// tried.
    pub(crate) fn any_reachable(&self) -> bool {
        let reachable = |r: &Replica| r.own > 0 || !matches!(r.rest, Rest::Unreachable { .. });
        self.all.iter().any(|r| !r.draining && reachable(r))
    }

    #[cfg(test)]
    fn own_in_flight(&self) -> u32 {
        self.all.iter().map(|r| r.own).sum()
    }

    /// Picks a replica and counts one request on it. `local_load` knows the whole load of replicas
    /// of this node.
    pub(crate) fn pick(
        &mut self,
        now: MonoTime,
        rng: &mut impl Rng,
        local_load: &dyn Fn(&ReplicaId) -> Option<u32>,
    ) -> Pick {
        let mut candidates = Vec::with_capacity(self.all.len());
        let mut indices = Vec::with_capacity(self.all.len());
        for (index, replica) in self.all.iter().enumerate() {
            if replica.draining || replica.rests(now) {
                continue;
            }
            let load = match local_load(&replica.id) {
                Some(whole) => whole.max(replica.own),
                None => replica.load(now),
            };
            candidates.push(Candidate {
                load,
                limit: replica.limit,
            });
            indices.push(index);
        }
        match choose(&candidates, rng) {
            Choice::Pick(chosen) => {
                let replica = &mut self.all[indices[chosen]];
                replica.own += 1;
                Pick::Replica {
                    id: replica.id.clone(),
                    node: replica.node.clone(),
                }
            }
            Choice::Full => Pick::Full,
            Choice::None if self.any_ready() => Pick::Full,
            Choice::None => Pick::None,
        }
    }

    pub(crate) fn released(&mut self, id: &ReplicaId) {
        if let Some(replica) = self.find(id) {
            replica.own = replica.own.saturating_sub(1);
        }
    }

    /// An answer came, with the replica's whole load if it is remote.
    pub(crate) fn answered(&mut self, id: &ReplicaId, load: Option<u32>, now: MonoTime) {
        if let Some(replica) = self.find(id) {
            replica.rest = Rest::No;
            if let Some(load) = load {
                replica.others = load.saturating_sub(replica.own);
                replica.others_at = now;
            }
        }
    }

    pub(crate) fn full(&mut self, id: &ReplicaId, load: u32, now: MonoTime, rng: &mut impl Rng) {
        if let Some(replica) = self.find(id) {
            // The refused request is among our own, but not in its load.
            replica.others = load.saturating_sub(replica.own.saturating_sub(1));
            replica.others_at = now;
            replica.rest = Rest::Full {
                until: now + FULL_REST.mul_f64(rng.random_range(0.5..1.0)),
            };
        }
    }

    pub(crate) fn unreachable(&mut self, id: &ReplicaId, now: MonoTime) {
        if let Some(replica) = self.find(id) {
            let times = match replica.rest {
                // Requests that were on their way together fail together: that is one failure.
                Rest::Unreachable { until, times } if now < until => times,
                Rest::Unreachable { times, .. } => times + 1,
                Rest::No | Rest::Full { .. } => 0,
            };
            let rest = (UNREACHABLE_REST * 2u32.pow(times.min(8))).min(UNREACHABLE_REST_MAX);
            replica.rest = Rest::Unreachable {
                until: now + rest,
                times,
            };
        }
    }

    fn find(&mut self, id: &ReplicaId) -> Option<&mut Replica> {
        self.all.iter_mut().find(|r| r.id == *id)
    }
}

impl Replica {
    fn rests(&self, now: MonoTime) -> bool {
        match self.rest {
            Rest::No => false,
            Rest::Full { until } | Rest::Unreachable { until, .. } => now < until,
        }
    }

    fn load(&self, now: MonoTime) -> u32 {
        let fresh = now.saturating_since(self.others_at) < LOAD_FRESH;
        // A replica that rested after "full" is asked again, whatever its load was then.
        let others = match self.rest {
            Rest::Full { .. } => 0,
            Rest::No | Rest::Unreachable { .. } if fresh => self.others,
            Rest::No | Rest::Unreachable { .. } => 0,
        };
        self.own + others
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    fn id(n: u64) -> ReplicaId {
        ReplicaId::from_bits(n)
    }

    fn route(n: u64, draining: bool) -> ReplicaRoute {
        ReplicaRoute {
            id: id(n),
            node: NodeName::parse("n1").expect("valid"),
            draining,
            target_concurrency: None,
        }
    }

    fn replicas(limit: u32, count: u64) -> Replicas {
        let mut replicas = Replicas::new();
        let routes: Vec<_> = (1..=count).map(|n| route(n, false)).collect();
        replicas.update(limit, &routes);
        replicas
    }

    fn ms(millis: u64) -> MonoTime {
        MonoTime::from_millis(millis)
    }

    fn pick(replicas: &mut Replicas, at: MonoTime) -> Option<ReplicaId> {
        match replicas.pick(at, &mut SmallRng::seed_from_u64(3), &|_| None) {
            Pick::Replica { id, .. } => Some(id),
            Pick::Full | Pick::None => None,
        }
    }

    #[test]
    fn a_gateway_never_sends_a_replica_more_than_its_limit() {
        let mut replicas = replicas(2, 1);
        assert!(pick(&mut replicas, ms(0)).is_some());
        assert!(pick(&mut replicas, ms(0)).is_some());
        assert_eq!(pick(&mut replicas, ms(0)), None);
        replicas.released(&id(1));
        assert!(pick(&mut replicas, ms(0)).is_some());
    }

    #[test]
    fn a_replica_with_a_limit_of_its_own_takes_that_many_and_others_the_entitys() {
        let mut replicas = Replicas::new();
        let own = ReplicaRoute {
            target_concurrency: Some(3),
            ..route(2, false)
        };
        replicas.update(1, &[route(1, false), own]);
        let mut taken: Vec<_> = std::iter::from_fn(|| pick(&mut replicas, ms(0))).collect();
        taken.sort();
        assert_eq!(taken, [id(1), id(2), id(2), id(2)]);
    }

    #[test]
    fn a_limit_that_shrank_keeps_the_requests_that_are_there_and_takes_no_more_until_they_left() {
        let mut replicas = replicas(3, 1);
        for _ in 0..3 {
            assert!(pick(&mut replicas, ms(0)).is_some());
        }
        replicas.update(1, &[route(1, false)]);
        replicas.released(&id(1));
        replicas.released(&id(1));
        assert_eq!(pick(&mut replicas, ms(0)), None);
        replicas.released(&id(1));
        assert_eq!(pick(&mut replicas, ms(0)), Some(id(1)));
        assert_eq!(replicas.own_in_flight(), 1);
    }

    #[test]
    fn a_draining_replica_is_not_picked_and_counts_as_none() {
        let mut replicas = replicas(2, 1);
        replicas.update(2, &[route(1, true)]);
        let picked = replicas.pick(ms(0), &mut SmallRng::seed_from_u64(1), &|_| None);
        assert_eq!(picked, Pick::None);
    }

    #[test]
    fn the_load_of_others_is_believed_for_a_second() {
        let mut replicas = replicas(4, 1);
        assert!(pick(&mut replicas, ms(0)).is_some());
        replicas.answered(&id(1), Some(4), ms(0));
        assert_eq!(pick(&mut replicas, ms(500)), None);
        assert!(pick(&mut replicas, ms(1000)).is_some());
    }

    #[test]
    fn a_full_replica_rests_a_moment_and_is_asked_again() {
        let mut replicas = replicas(4, 1);
        assert!(pick(&mut replicas, ms(0)).is_some());
        replicas.full(&id(1), 4, ms(0), &mut SmallRng::seed_from_u64(1));
        replicas.released(&id(1));
        assert_eq!(pick(&mut replicas, ms(5)), None);
        assert!(pick(&mut replicas, ms(25)).is_some());
    }

    #[test]
    fn an_unreachable_replica_rests_longer_each_time_until_it_answers() {
        let mut replicas = replicas(4, 1);
        replicas.unreachable(&id(1), ms(0));
        assert_eq!(pick(&mut replicas, ms(99)), None);
        assert!(pick(&mut replicas, ms(100)).is_some());
        replicas.unreachable(&id(1), ms(100));
        assert_eq!(pick(&mut replicas, ms(299)), None);
        assert!(pick(&mut replicas, ms(300)).is_some());
        replicas.answered(&id(1), None, ms(301));
        replicas.unreachable(&id(1), ms(302));
        assert!(pick(&mut replicas, ms(402)).is_some());
    }

    #[test]
    fn new_routes_keep_what_is_known_of_a_replica_that_stays() {
        let mut replicas = replicas(1, 1);
        assert_eq!(pick(&mut replicas, ms(0)), Some(id(1)));
        replicas.update(1, &[route(1, false), route(2, false)]);
        assert_eq!(pick(&mut replicas, ms(0)), Some(id(2)));
        assert_eq!(pick(&mut replicas, ms(0)), None);
        assert_eq!(replicas.own_in_flight(), 2);
    }

    #[test]
    fn a_local_replica_is_full_by_its_whole_load() {
        let mut replicas = replicas(2, 1);
        let picked = replicas.pick(ms(0), &mut SmallRng::seed_from_u64(1), &|_| Some(2));
        assert_eq!(picked, Pick::Full);
    }

    proptest! {
        #[test]
        fn whatever_happens_own_requests_stay_within_the_limit(
            steps in proptest::collection::vec((0u8..5, 1u64..4), 0..300), limit in 1u32..4,
        ) {
            let mut replicas = replicas(limit, 3);
            let mut rng = SmallRng::seed_from_u64(9);
            let mut held: Vec<ReplicaId> = Vec::new();
            for (at, (step, n)) in steps.into_iter().enumerate() {
                let now = ms(at as u64 * 7);
                match step {
                    0 | 1 => if let Pick::Replica { id, .. } = replicas.pick(now, &mut rng, &|_| None) {
                        held.push(id);
                        let on_it = held.iter().filter(|h| *h == held.last().expect("pushed")).count();
                        prop_assert!(on_it <= limit as usize);
                    },
                    2 => if let Some(id) = held.pop() { replicas.released(&id); },
                    3 => replicas.full(&id(n), limit, now, &mut rng),
                    _ => replicas.unreachable(&id(n), now),
                }
                prop_assert_eq!(replicas.own_in_flight() as usize, held.len());
            }
        }
    }
}
