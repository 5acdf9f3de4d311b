//! Requests at work in a number of equal replicas, as a fluid.
//!
//! They are spread evenly, so that each replica has `c = active / replicas` at once and ends
//! `X(c) / work` of them a second, where `work` is how much longer than ordinary ones these requests
//! are. A step is implicit: what is there at its end, and what ended in it, fit each other. It is
//! stable for requests that take a hundredth of a step and for requests that take a thousand.
//!
//! How many end is drawn around that, as much as the times of requests differ: not at all where all
//! take the same, and as for independent ends where they are as different as exponential ones are.

use crate::plant::{Curve, Plant};

/// A plant at one time: its curve, and what is often asked of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Serving<'a> {
    pub(crate) plant: &'a Plant,
    pub(crate) curve: Curve,
    pub(crate) best: f64,
    /// Time at the best point, in seconds.
    pub(crate) best_s: f64,
    /// Time alone.
    alone_s: f64,
    /// Up to here the time is that alone.
    flat_until: f64,
}

impl<'a> Serving<'a> {
    pub(crate) fn new(plant: &'a Plant, curve: Curve) -> Self {
        let limit = plant
            .hard_limit
            .map_or(f64::INFINITY, |limit| limit.requests);
        let best = curve.best_point().min(limit);
        Self {
            plant,
            curve,
            best,
            best_s: curve.time_s(best),
            alone_s: curve.time_s(1.0),
            flat_until: curve.flat_until().min(limit),
        }
    }

    pub(crate) fn time_s(&self, c: f64) -> f64 {
        if c <= self.flat_until {
            self.alone_s
        } else {
            self.plant.time_s(&self.curve, c)
        }
    }

    pub(crate) fn throughput(&self, c: f64) -> f64 {
        c / self.time_s(c)
    }
}

/// Requests and the work they brought: 1 each is ordinary.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Requests {
    pub(crate) count: f64,
    pub(crate) work: f64,
}

impl Requests {
    pub(crate) fn new(count: f64, work_each: f64) -> Self {
        Self {
            count,
            work: count * work_each,
        }
    }

    /// Mean work of one; that of an ordinary one where there is none.
    pub(crate) fn work_each(&self) -> f64 {
        if self.count > 0.0 && self.work > 0.0 {
            self.work / self.count
        } else {
            1.0
        }
    }

    pub(crate) fn add(&mut self, other: Requests) {
        self.count += other.count;
        self.work += other.work;
    }

    /// Takes a share of them out, 0 to 1.
    pub(crate) fn split(&mut self, share: f64) -> Requests {
        let taken = Requests {
            count: self.count * share,
            work: self.work * share,
        };
        self.count -= taken.count;
        self.work -= taken.work;
        taken
    }

    fn keep(&mut self, count: f64) {
        let share = if self.count > 0.0 {
            count / self.count
        } else {
            0.0
        };
        self.count = count;
        self.work *= share;
    }
}

/// Deviation of those left at a step's end, where on the mean so many are left and so many end: that
/// of as many requests that each end or stay on their own. Of many short requests one after the other
/// only the mean over the step shows, which scatters less.
fn deviation(left: f64, ended: f64) -> f64 {
    let total = left + ended;
    if left <= 0.0 || ended <= 0.0 {
        return 0.0;
    }
    (ended * left / total * (2.0 * left / (2.0 * left + ended))).sqrt()
}

/// What a step lets into a pool that is to be full at its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Room {
    /// How many more may come; negative where there are too many already.
    pub(crate) requests: f64,
    /// How many are there at the end if as many come.
    full: f64,
    luck: Luck,
}

/// How many fewer than on the mean end in a step, in standard deviations; 0 is the mean. What of it
/// cannot show in a step, since no fewer than none end, stays for the next.
pub(crate) type Luck = f64;

/// The room for each replica to have `limit` requests at once at the end of the step, where those that
/// come have `next_each` work.
pub(crate) fn room(
    pool: &Requests,
    replicas: f64,
    limit: f64,
    serving: &Serving<'_>,
    next_each: f64,
    (step_s, luck): (f64, Luck),
) -> Room {
    let full = replicas * limit;
    let work = step_s * replicas * serving.throughput(limit);
    let mean = work / mixed(pool, full, work, next_each);
    // A slot that is free again is taken at once: more end than of those that are there now.
    let deviation = deviation(full, mean) * (1.0 + mean / full);
    let ends = mean - luck * deviation;
    Room {
        requests: full + ends.max(0.0) - pool.count,
        full,
        luck: if ends < 0.0 { -ends / deviation } else { 0.0 },
    }
}

/// Mean work of those in the pool once it is full: as many end as that lets.
fn mixed(pool: &Requests, full: f64, work: f64, next_each: f64) -> f64 {
    let there = pool.work_each();
    if pool.count <= 0.0 {
        return next_each;
    }
    if there == next_each {
        return there;
    }
    let coming = (full + work / there.max(next_each) - pool.count).max(0.0);
    (pool.work + coming * next_each) / (pool.count + coming)
}

/// A step of time in which the pool took all that it had room for. Returns how many requests ended.
pub(crate) fn fill(pool: &mut Requests, room: &Room, luck: &mut Luck) -> f64 {
    let total = pool.count;
    pool.keep(room.full.min(total));
    *luck = room.luck;
    total - pool.count
}

/// Less than this of a request is none.
const NOTHING: f64 = 1e-9;

/// A step of time in which all who came were let in; `most` is how many there may be at its end.
/// Returns how many requests ended.
pub(crate) fn step(
    pool: &mut Requests,
    replicas: f64,
    serving: &Serving<'_>,
    step_s: f64,
    most: f64,
    luck: &mut Luck,
) -> f64 {
    let total = pool.count;
    if total <= 0.0 || replicas <= 0.0 {
        *luck = 0.0;
        return 0.0;
    }
    let work_each = pool.work_each();
    let flat = total / (1.0 + step_s / (work_each * serving.alone_s));
    let left = if flat <= serving.flat_until * replicas {
        flat
    } else {
        crowded(total, replicas, work_each, serving, step_s)
    };
    let deviation = deviation(left, total - left);
    let drawn = left + *luck * deviation;
    let left = drawn.clamp(0.0, total.min(most.max(left)));
    *luck = if deviation > 0.0 {
        (drawn - left) / deviation
    } else {
        0.0
    };
    // A rest of a rest is none: idle replicas are idle.
    let left = if left < NOTHING { 0.0 } else { left };
    pool.keep(left);
    total - left
}

/// Solves `left + step X(left / replicas) replicas / work = total` between 0 and `total` (regula
/// falsi, Illinois): the left side is below at 0 and above at `total`, whatever the curve does.
fn crowded(total: f64, replicas: f64, work_each: f64, serving: &Serving<'_>, step_s: f64) -> f64 {
    let scale = step_s * replicas / work_each;
    let surplus = |left: f64| left + scale * serving.throughput(left / replicas) - total;
    let (mut low, mut high) = (0.0, total);
    let (mut below, mut above) = (-total, surplus(total));
    let close = total * 1e-9;
    for _ in 0..40 {
        let middle = ((low * above - high * below) / (above - below)).clamp(low, high);
        let found = surplus(middle);
        if found.abs() <= close {
            return middle;
        }
        if found < 0.0 {
            (low, below) = (middle, found);
            above /= 2.0;
        } else {
            (high, above) = (middle, found);
            below /= 2.0;
        }
    }
    (low + high) / 2.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::chance::{Chance, Expected, Stream};

    fn steady(plant: &Plant, replicas: f64, rate: f64, step_s: f64, steps: u32) -> (f64, f64) {
        let serving = Serving::new(plant, *plant.curve(Duration::ZERO));
        let mut pool = Requests::default();
        let mut ended = 0.0;
        for _ in 0..steps {
            pool.add(Requests::new(rate * step_s, 1.0));
            ended = step(
                &mut pool,
                replicas,
                &serving,
                step_s,
                f64::INFINITY,
                &mut 0.0,
            ) / step_s;
        }
        (pool.count, ended)
    }

    #[test]
    fn as_many_are_at_work_as_come_in_the_time_one_takes_however_short_or_long_the_step() {
        let plant = Plant::built_in("cpu").expect("there");
        // 80 a second, 50 ms each: 4 at once (Little).
        for step_s in [0.001, 0.1, 1.0] {
            let (active, ended) = steady(&plant, 1.0, 80.0, step_s, 5000);
            assert!((active - 4.0).abs() < 1e-6, "{step_s}: {active}");
            assert!((ended - 80.0).abs() < 1e-6, "{step_s}: {ended}");
        }
    }

    #[test]
    fn beyond_its_knee_a_replica_ends_no_more_than_at_it() {
        let plant = Plant::built_in("cpu").expect("there");
        let (active, ended) = steady(&plant, 2.0, 500.0, 0.1, 100);
        assert!((ended - 240.0).abs() < 1e-3, "{ended}");
        assert!(
            (active - 260.0 * 10.0).abs() < 1e-3,
            "what comes above stays: {active}"
        );
    }

    #[test]
    fn a_retrograde_replica_ends_fewer_the_more_it_holds() {
        let text =
            "kind = \"usl\"\nservice_time = \"10ms\"\ncontention = 0.02\ncoherency = 0.002\n";
        let plant = Plant::parse("p", text.as_bytes()).expect("valid");
        let (_, early) = steady(&plant, 1.0, 2000.0, 0.1, 1);
        let (active, late) = steady(&plant, 1.0, 2000.0, 0.1, 40);
        assert!(
            late < early / 2.0 && active > 1000.0,
            "{early} {late} {active}"
        );
    }

    #[test]
    fn those_at_work_scatter_with_the_square_root_of_their_number() {
        for service_time in ["5s", "300ms"] {
            let text = format!("kind = \"cpu\"\nservice_time = \"{service_time}\"\nknee = 100\n");
            let plant = Plant::parse("p", text.as_bytes()).expect("valid");
            let serving = Serving::new(&plant, *plant.curve(Duration::ZERO));
            let rate = 50.0 / serving.alone_s;
            let mut chance = Chance::new(5, Stream::Departures);
            let coming = Expected::new(rate * 0.1);
            let mut pool = Requests::new(50.0, 1.0);
            let mut luck = 0.0;
            let counts: Vec<f64> = (0..200_000)
                .map(|_| {
                    pool.add(Requests::new(chance.poisson(&coming), 1.0));
                    luck += chance.normal();
                    step(&mut pool, 1.0, &serving, 0.1, f64::INFINITY, &mut luck);
                    pool.count
                })
                .collect();
            let mean = counts.iter().sum::<f64>() / counts.len() as f64;
            let squares = counts.iter().map(|it| (it - mean).powi(2)).sum::<f64>();
            let variance = squares / counts.len() as f64;
            assert!((mean / 50.0 - 1.0).abs() < 0.03, "{service_time}: {mean}");
            assert!(
                (variance / 50.0 - 1.0).abs() < 0.2,
                "{service_time}: {variance}"
            );
        }
    }

    #[test]
    fn long_requests_stay_longer() {
        let plant = Plant::built_in("cpu").expect("there");
        let serving = Serving::new(&plant, *plant.curve(Duration::ZERO));
        let mut pool = Requests::default();
        for _ in 0..10_000 {
            pool.add(Requests::new(0.1, 100.0));
            step(&mut pool, 10.0, &serving, 0.1, f64::INFINITY, &mut 0.0);
        }
        // One a second, 5 s each.
        assert!((pool.count - 5.0).abs() < 1e-6, "{pool:?}");
    }

    #[test]
    fn what_room_admits_fills_the_replicas_to_their_limit_and_not_beyond() {
        let plant = Plant::built_in("cpu").expect("there");
        let serving = Serving::new(&plant, *plant.curve(Duration::ZERO));
        for limit in [1.0, 6.0, 20.0] {
            let mut pool = Requests::new(3.0, 1.0);
            let more = room(&pool, 3.0, limit, &serving, 1.0, (0.1, 0.0));
            pool.add(Requests::new(more.requests, 1.0));
            step(&mut pool, 3.0, &serving, 0.1, f64::INFINITY, &mut 0.0);
            assert!((pool.count - 3.0 * limit).abs() < 1e-6, "{limit}: {pool:?}");
        }
    }
}
