//! The loop itself: sub-step by sub-step, second by second.

use std::time::{Duration, Instant};

use shared::units::MonoTime;

use super::gauges::{Gauges, Reading};
use super::line::Line;
use super::pool::{self, Luck, Requests, Room, Serving};
use super::replicas::Replicas;
use super::traffic::Traffic;
use super::{Arrivals, Balance, Outcome, Scenario};
use crate::chance::{Chance, Stream};
use crate::measure::{Measures, Point, Series, Waits};
use crate::plant::Beyond;
use crate::policy::{Orders, Policy};

/// One run under way.
pub(super) struct Run<'a> {
    scenario: &'a Scenario,
    step_s: f64,
    serving: Serving<'a>,
    /// Seconds, ascending, at which the curve is another.
    curve_changes: Vec<u64>,
    traffic: Traffic,
    replicas: Replicas,
    active: Requests,
    departures: Chance,
    luck: Luck,
    /// Standard deviation over the mean of a request's service time, at most 1: as exponential ones.
    service_spread: f64,
    line: Line,
    gauges: Gauges,
    /// Mean time in the replica of requests that end now: it lags behind what they would take now by
    /// as long as they take.
    ending_s: f64,
    balance: Balance,
    tally: Tally,
}

/// Sums for the measures.
#[derive(Default)]
struct Tally {
    waits: Waits,
    replica_seconds: f64,
    max_replicas: u32,
    offered: f64,
    excess: f64,
    rejected: f64,
    changes: u32,
    seconds: u32,
}

/// What a second came to.
#[derive(Default)]
struct Second {
    offered: f64,
    ready: f64,
    queued: f64,
    rejected: f64,
    longest_wait_s: f64,
}

impl<'a> Run<'a> {
    pub(super) fn new(scenario: &'a Scenario) -> Self {
        let Scenario {
            trace,
            plant,
            options,
        } = scenario;
        let substeps = scenario.substeps();
        let step_s = 1.0 / f64::from(substeps);
        let serving = Serving::new(plant, *plant.curve(Duration::ZERO));
        Self {
            scenario,
            step_s,
            curve_changes: plant.changes().map(|at| at.as_secs().max(1)).collect(),
            traffic: Traffic::new(trace, plant, options.arrivals, substeps, options.seed),
            replicas: Replicas::new(
                options.initial_replicas,
                options.fleet,
                plant.startup,
                options.warm_startup.as_secs_f64(),
                step_s,
                options.seed,
            ),
            active: Requests::default(),
            departures: Chance::new(options.seed, Stream::Departures),
            luck: 0.0,
            service_spread: (plant.noise.service.powi(2).exp() - 1.0).sqrt().min(1.0),
            line: Line::default(),
            gauges: Gauges::new(options.disturbance, options.seed),
            ending_s: serving.time_s(1.0),
            serving,
            balance: Balance::default(),
            tally: Tally::default(),
        }
    }

    pub(super) fn through(mut self, policy: &mut dyn Policy) -> Outcome {
        let trace = &self.scenario.trace;
        let options = &self.scenario.options;
        let substeps = u64::from(self.scenario.substeps());
        let mut series = Series::new(trace.length_s, options.series_points);
        let mut deciding = Duration::ZERO;
        let mut orders = policy.second(None, MonoTime::ZERO);
        self.follow(&orders, 0);
        for (t, segment) in (0u32..).zip(trace.by_second()) {
            self.turn_curve(u64::from(t));
            self.traffic.second(segment);
            let measured = t >= options.lead_in_s;
            let paid = self.replicas.paid();
            let second = self.second(u64::from(t) * substeps, &orders, measured);
            if measured {
                self.tally.add(&second, paid, self.serving.best);
            }
            if options.series_points > 0 {
                series.add(Point {
                    t_s: t,
                    demand: second.offered,
                    capacity: second.ready * self.serving.best,
                    replicas: f64::from(paid),
                    ready: second.ready,
                    desired: f64::from(orders.desired_replicas),
                    target_concurrency: orders.target_concurrency,
                    queued: second.queued,
                    rejected: second.rejected,
                    wait_s: second.longest_wait_s,
                });
            }
            let sample = self.gauges.sample();
            let now = MonoTime::from_secs(u64::from(t) + 1);
            let before = Instant::now();
            let next = policy.second(sample.as_ref(), now);
            deciding += before.elapsed();
            if measured && next.desired_replicas != orders.desired_replicas {
                self.tally.changes += 1;
            }
            orders = next;
            self.follow(&orders, (u64::from(t) + 1) * substeps);
        }
        series.finish(trace.length_s);
        self.finish(policy.name(), &orders, series, deciding)
    }

    fn turn_curve(&mut self, t: u64) {
        if self.curve_changes.first().is_some_and(|at| *at <= t) {
            self.curve_changes.retain(|at| *at > t);
            let plant = &self.scenario.plant;
            self.serving = Serving::new(plant, *plant.curve(Duration::from_secs(t)));
        }
    }

    fn follow(&mut self, orders: &Orders, now: u64) {
        self.replicas.follow(
            orders.desired_replicas,
            orders.warm,
            now,
            &mut self.active,
            &self.serving,
        );
    }

    fn second(&mut self, first: u64, orders: &Orders, measured: bool) -> Second {
        let substeps = self.scenario.substeps();
        let sample_after = self.gauges.sample_after(substeps, self.step_s);
        let share = self.step_s;
        let mut second = Second::default();
        for i in 0..substeps {
            let now = first + u64::from(i);
            let reading = self.substep(now, orders.target_concurrency, measured, &mut second);
            second.ready += f64::from(self.replicas.ready) * share;
            second.queued += reading.queued * share;
            second.rejected += reading.rejected;
            self.gauges.read(reading);
            if i == sample_after {
                self.gauges
                    .take(self.replicas.ready, self.replicas.coming(), &self.serving);
            }
        }
        second
    }

    fn substep(
        &mut self,
        now: u64,
        target: Option<u32>,
        measured: bool,
        second: &mut Second,
    ) -> Reading {
        self.replicas.arrive(now);
        let came = self.traffic.substep();
        second.offered += self.traffic.offered(came, &self.serving, self.step_s) * self.step_s;
        if came.count == 0.0 && self.idle() {
            return Reading::default();
        }
        self.luck += self.draw_luck();
        let ready = f64::from(self.replicas.ready);
        let limit = target.map(|target| f64::from(target.max(1)));
        let (turned_away, full) = self.admit(came, now, limit, measured, second);
        let (refused, full) = self.refuse(full);
        let rejected = turned_away + refused;
        let (active, luck) = (&mut self.active, &mut self.luck);
        let ended = match full {
            Some(room) => pool::fill(active, &room, luck),
            None => {
                let most = limit.map_or(f64::INFINITY, |limit| limit * ready);
                pool::step(active, ready, &self.serving, self.step_s, most, luck)
            }
        };
        let each = if ready > 0.0 {
            self.active.count / ready
        } else {
            0.0
        };
        let takes_s = self.serving.time_s(each) * self.active.work_each();
        self.ending_s += (takes_s - self.ending_s) * self.step_s / (self.step_s + self.ending_s);
        let ended_draining = self.replicas.drain(now, &self.serving);
        self.balance.arrived += came.count;
        self.balance.completed += ended + ended_draining;
        self.balance.rejected += rejected;
        Reading {
            active: self.active.count,
            draining: self.replicas.draining(),
            queued: self.line.count(),
            arrivals: came.count,
            ended,
            ended_draining,
            rejected,
            time_s: self.ending_s,
        }
    }

    /// Requests that all take the same time end as regularly as they came; the more their times differ,
    /// the more chance has to say.
    fn draw_luck(&mut self) -> Luck {
        match self.scenario.options.arrivals {
            Arrivals::Drawn if self.service_spread > 0.0 => {
                self.service_spread * self.departures.normal()
            }
            Arrivals::Drawn | Arrivals::Even => 0.0,
        }
    }

    /// Nothing is at work, waits or drains: a step changes nothing.
    fn idle(&self) -> bool {
        self.active.count == 0.0 && self.line.count() == 0.0 && !self.replicas.any_drain()
    }

    /// Lets requests in, those that wait first; returns how many were turned away, and the room where
    /// all of it was taken.
    fn admit(
        &mut self,
        came: Requests,
        now: u64,
        limit: Option<f64>,
        measured: bool,
        second: &mut Second,
    ) -> (f64, Option<Room>) {
        let next = if self.line.count() > 0.0 {
            self.line.next_work()
        } else {
            came.work_each()
        };
        let room = self.room(limit, next);
        let free = match (limit, &room) {
            _ if self.replicas.ready == 0 => 0.0,
            (_, None) => f64::INFINITY,
            (_, Some(room)) => room.requests,
        };
        let (step_s, waits) = (self.step_s, &mut self.tally.waits);
        let mut waited = |count: f64, steps: u64| {
            let wait_s = steps as f64 * step_s;
            second.longest_wait_s = second.longest_wait_s.max(wait_s);
            if measured {
                waits.add(count, wait_s);
            }
        };
        if self.line.count() == 0.0 && came.count <= free {
            if came.count > 0.0 {
                waited(came.count, 0);
                self.active.add(came);
            }
            return (0.0, None);
        }
        // Room that this sub-step's requests find is theirs before the bound counts.
        let bound = self.scenario.plant.queue + free.max(0.0);
        let turned_away = self.line.join(came, now, bound);
        let all_that_fits = self.line.count() > free && free >= 0.0;
        let admitted = self.line.leave(free, now, waited);
        self.active.add(admitted);
        (turned_away, room.filter(|_| all_that_fits))
    }

    /// What ready replicas with a limit have room for in this sub-step.
    fn room(&self, limit: Option<f64>, next_each: f64) -> Option<Room> {
        let ready = f64::from(self.replicas.ready);
        let limit = limit.filter(|_| ready > 0.0)?;
        let step = (self.step_s, self.luck);
        let active = &self.active;
        Some(pool::room(
            active,
            ready,
            limit,
            &self.serving,
            next_each,
            step,
        ))
    }

    /// What replicas with a hard limit answer that they are full to; returns how many, and their room
    /// where all of it is taken.
    fn refuse(&mut self, full: Option<Room>) -> (f64, Option<Room>) {
        let hard_limit = self.scenario.plant.hard_limit;
        let limit = hard_limit.filter(|limit| limit.beyond == Beyond::Refuse);
        match self.room(limit.map(|limit| limit.requests), self.active.work_each()) {
            Some(room) if room.requests < 0.0 => {
                let refused = (-room.requests).min(self.active.count);
                let refused = self.active.split(refused / self.active.count);
                (refused.count, Some(room))
            }
            _ => (0.0, full),
        }
    }

    fn finish(
        mut self,
        policy: &str,
        orders: &Orders,
        series: Series,
        deciding: Duration,
    ) -> Outcome {
        let trace = &self.scenario.trace;
        let end = u64::from(trace.length_s) * u64::from(self.scenario.substeps());
        for (count, steps) in self.line.waiting(end) {
            self.tally.waits.add(count, steps as f64 * self.step_s);
        }
        self.balance.remaining = self.line.count() + self.active.count + self.replicas.draining();
        let tally = self.tally;
        let decisions = f64::from(trace.length_s);
        Outcome {
            measures: Measures {
                policy: policy.to_owned(),
                replica_seconds: tally.replica_seconds,
                mean_replicas: tally.replica_seconds / f64::from(tally.seconds.max(1)),
                max_replicas: tally.max_replicas,
                excess_share: if tally.offered > 0.0 {
                    tally.excess / tally.offered
                } else {
                    0.0
                },
                wait_p50_s: tally.waits.quantile(0.50),
                wait_p99_s: tally.waits.quantile(0.99),
                rejected: tally.rejected.round() as u64,
                changes: tally.changes,
                final_target_concurrency: orders.target_concurrency,
                decisions_per_s: decisions / deciding.as_secs_f64().max(1e-9),
            },
            series,
            balance: self.balance,
        }
    }
}

impl Tally {
    fn add(&mut self, second: &Second, paid: u32, best: f64) {
        self.seconds += 1;
        self.replica_seconds += f64::from(paid);
        self.max_replicas = self.max_replicas.max(paid);
        self.offered += second.offered;
        self.excess += (second.offered - second.ready * best).max(0.0);
        self.rejected += second.rejected;
    }
}
