//! Counts what became of each request. Pure: times are handed in.
//!
//! What always holds: every request that was due is counted exactly once, as ended or as not sent;
//! latency is measured from the intended send time, so that a request which had to wait for a stalled
//! endpoint counts with its wait (with `from send` beside it, to tell the two apart). Requests of the
//! warm-up are shown live and counted nowhere.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::outcome::{Done, Outcome};
use super::schedule::Plan;

/// A ramp is told in so many parts.
const PHASES: u32 = 5;
/// An hour, in microseconds; longer ones count as this.
const LONGEST_US: u64 = 3_600_000_000;
/// Three digits: 0.1 %.
const DIGITS: u8 = 3;

/// Latencies in microseconds.
#[derive(Clone, Debug)]
pub(super) struct Latencies(Histogram<u64>);

impl Latencies {
    fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LONGEST_US, DIGITS);
        Self(histogram.expect("the bounds are constants that fit each other"))
    }

    fn record(&mut self, latency: Duration) {
        self.0.saturating_record(micros(latency));
    }

    pub(super) fn len(&self) -> u64 {
        self.0.len()
    }

    /// `None`: nothing was recorded.
    pub(super) fn quantile(&self, quantile: f64) -> Option<Duration> {
        (self.len() > 0).then(|| Duration::from_micros(self.0.value_at_quantile(quantile)))
    }

    pub(super) fn max(&self) -> Option<Duration> {
        self.quantile(1.0)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Due by the schedule.
    pub(super) intended: u64,
    /// Due while `--max-in-flight` requests were unanswered.
    pub(super) not_sent: u64,
    pub(super) succeeded: u64,
    pub(super) failed: u64,
}

impl Counts {
    fn pending(&self) -> u64 {
        self.intended - self.not_sent - self.succeeded - self.failed
    }

    /// Whatever is pending has failed.
    fn give_up(&mut self) -> u64 {
        let left = self.pending();
        self.failed += left;
        left
    }
}

/// A part of a ramp, by intended send time.
#[derive(Clone, Debug)]
pub(super) struct Phase {
    pub(super) counts: Counts,
    pub(super) latencies: Latencies,
}

/// A second of the load.
#[derive(Clone, Debug, Default)]
pub(super) struct Second {
    /// By intended send time.
    pub(super) counts: Counts,
    /// Successes that came within this second, whenever they were sent.
    pub(super) answered: u64,
    /// Of those sent in this second, in microseconds, until all of them have ended.
    open: Vec<u32>,
    pub(super) closed: Option<SecondLatency>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SecondLatency {
    pub(super) p50: Duration,
    pub(super) p99: Duration,
}

/// Since the last look, for the live line.
#[derive(Clone, Debug)]
pub(super) struct Recent {
    pub(super) sent: u64,
    pub(super) succeeded: u64,
    pub(super) latencies: Latencies,
}

#[derive(Debug)]
pub(super) struct Tally {
    plan: Plan,
    pub(super) counts: Counts,
    pub(super) outcomes: BTreeMap<Outcome, (u64, Option<String>)>,
    /// Of successes, from the intended and from the actual send.
    pub(super) from_intended: Latencies,
    pub(super) from_send: Latencies,
    /// Of all requests that ended, from the intended send.
    pub(super) with_failures: Latencies,
    pub(super) phases: Vec<Phase>,
    pub(super) seconds: Vec<Second>,
    pub(super) last_end: Duration,
    pub(super) recent: Recent,
}

impl Tally {
    pub(super) fn new(plan: Plan) -> Self {
        let phases = if plan.rates.is_ramp() { PHASES } else { 1 };
        let phase = Phase {
            counts: Counts::default(),
            latencies: Latencies::new(),
        };
        Self {
            plan,
            counts: Counts::default(),
            outcomes: BTreeMap::new(),
            from_intended: Latencies::new(),
            from_send: Latencies::new(),
            with_failures: Latencies::new(),
            phases: vec![phase; phases as usize],
            seconds: Vec::new(),
            last_end: Duration::ZERO,
            recent: Recent {
                sent: 0,
                succeeded: 0,
                latencies: Latencies::new(),
            },
        }
    }

    /// A request is due. `sent`: there was room for it, and [`Tally::done`] will follow.
    pub(super) fn due(&mut self, intended: Duration, sent: bool) {
        self.recent.sent += u64::from(sent);
        self.count(intended, |counts| {
            counts.intended += 1;
            counts.not_sent += u64::from(!sent);
        });
    }

    pub(super) fn done(&mut self, done: &Done) {
        let good = done.outcome.is_success();
        let latency = done.ended.saturating_sub(done.intended);
        if good {
            self.recent.succeeded += 1;
            self.recent.latencies.record(latency);
        }
        let Some(within) = done.intended.checked_sub(self.plan.warm_up) else {
            return;
        };
        self.count(done.intended, |counts| {
            counts.succeeded += u64::from(good);
            counts.failed += u64::from(!good);
        });
        self.last_end = self.last_end.max(done.ended);
        let (times, said) = self.outcomes.entry(done.outcome).or_default();
        *times += 1;
        if said.is_none() {
            said.clone_from(&done.said);
        }
        self.with_failures.record(latency);
        if good {
            self.from_intended.record(latency);
            self.from_send.record(done.ended.saturating_sub(done.sent));
            let phase = self.phase_of(within);
            self.phases[phase].latencies.record(latency);
            let short = u32::try_from(micros(latency)).unwrap_or(u32::MAX);
            self.second(within).open.push(short);
            self.second(done.ended.saturating_sub(self.plan.warm_up))
                .answered += 1;
        }
        let second = self.second(within);
        // A second that is over and has nothing outstanding needs its latencies no more.
        if second.counts.pending() == 0
            && done.ended.saturating_sub(done.intended) >= Duration::from_secs(1)
        {
            second.close();
        }
    }

    /// Takes what happened since the last look, and closes the seconds that are complete.
    pub(super) fn look(&mut self, now: Duration) -> Recent {
        let now = now.saturating_sub(self.plan.warm_up).as_secs() as usize;
        // Whatever is older has ended by its time-out, or will be closed at the end.
        let over = self.seconds.len().min(now);
        for second in &mut self.seconds[over.saturating_sub(120)..over] {
            if second.counts.pending() == 0 {
                second.close();
            }
        }
        let fresh = Recent {
            sent: 0,
            succeeded: 0,
            latencies: Latencies::new(),
        };
        std::mem::replace(&mut self.recent, fresh)
    }

    /// No more will come: what is still in flight was given up.
    pub(super) fn finish(&mut self) {
        let left = self.counts.give_up();
        if left > 0 {
            self.outcomes.insert(Outcome::Abandoned, (left, None));
        }
        for phase in &mut self.phases {
            phase.counts.give_up();
        }
        for second in &mut self.seconds {
            second.counts.give_up();
            second.close();
        }
    }

    /// The rates at which a phase begins and ends, and the time within the load.
    pub(super) fn phase_bounds(&self, phase: usize) -> [(Duration, f64); 2] {
        let length = self.plan.over / u32::try_from(self.phases.len()).unwrap_or(1);
        let start = length * u32::try_from(phase).unwrap_or(0);
        [start, start + length].map(|at| (at, self.plan.rate_at(self.plan.warm_up + at)))
    }

    fn phase_of(&self, within: Duration) -> usize {
        let share = within.as_secs_f64() / self.plan.over.as_secs_f64();
        let phases = self.phases.len();
        ((share * phases as f64) as usize).min(phases - 1)
    }

    fn second(&mut self, within: Duration) -> &mut Second {
        let index = within.as_secs() as usize;
        if self.seconds.len() <= index {
            self.seconds.resize_with(index + 1, Second::default);
        }
        &mut self.seconds[index]
    }

    fn count(&mut self, intended: Duration, change: impl Fn(&mut Counts)) {
        let Some(within) = intended.checked_sub(self.plan.warm_up) else {
            return;
        };
        change(&mut self.counts);
        let phase = self.phase_of(within);
        change(&mut self.phases[phase].counts);
        change(&mut self.second(within).counts);
    }
}

impl Second {
    fn close(&mut self) {
        let mut all = std::mem::take(&mut self.open);
        if all.is_empty() {
            return;
        }
        all.sort_unstable();
        let at = |quantile: f64| {
            let rank = (quantile * all.len() as f64).ceil() as usize;
            Duration::from_micros(u64::from(all[rank.clamp(1, all.len()) - 1]))
        };
        self.closed = Some(SecondLatency {
            p50: at(0.5),
            p99: at(0.99),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::schedule::Arrivals;
    use super::super::schedule::tests::plan;
    use super::*;
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    /// A server of one place and 1 ms a request, which stands still for `stall` from `at` on.
    struct Stalling {
        at: Duration,
        stall: Duration,
        free: Duration,
    }

    const WORK: Duration = Duration::from_millis(1);

    impl Stalling {
        fn answer(&mut self, sent: Duration) -> Duration {
            let mut start = sent.max(self.free);
            let end_of_stall = self.at + self.stall;
            if start + WORK > self.at && start < end_of_stall {
                start = end_of_stall;
            }
            self.free = start + WORK;
            self.free
        }
    }

    fn done(intended: Duration, sent: Duration, ended: Duration) -> Done {
        Done {
            intended,
            sent,
            ended,
            outcome: Outcome::Status(200),
            said: None,
        }
    }

    fn run(plan: Plan, mut server: Stalling) -> Tally {
        let mut tally = Tally::new(plan);
        for intended in plan.sends(StdRng::seed_from_u64(1)) {
            tally.due(intended, true);
            let ended = server.answer(intended);
            tally.done(&done(intended, intended, ended));
        }
        tally.finish();
        tally
    }

    proptest! {
        #[test]
        fn a_stalled_server_shows_in_the_percentiles_of_an_open_load(
            rps in 20..400_u32,
            stall_ms in 500..3_000_u64,
            at_ms in 0..6_000_u64,
        ) {
            let plan = plan(&rps.to_string(), 10, Arrivals::Uniform);
            let stall = Duration::from_millis(stall_ms);
            let server = Stalling { at: Duration::from_millis(at_ms), stall, free: Duration::ZERO };
            let tally = run(plan, server);
            prop_assert_eq!(tally.counts.succeeded, u64::from(rps) * 10);
            // The slowest hundredth of the requests was due within the first tenth of a second of
            // the stall; a client that waited for each answer would have had one slow request.
            let p99 = tally.from_intended.quantile(0.99).expect("recorded");
            let least = stall.saturating_sub(Duration::from_millis(100 + 2 * 1000 / u64::from(rps)));
            prop_assert!(p99 >= least.mul_f64(0.99), "{p99:?} {stall:?}");
            let max = tally.from_intended.max().expect("recorded");
            prop_assert!(max <= (stall + Duration::from_secs(2)), "{max:?}");
        }

        #[test]
        fn every_request_that_was_due_is_counted_once(
            room in 1..20_usize,
            stall_ms in 0..4_000_u64,
        ) {
            let plan = plan("50..150", 5, Arrivals::Poisson);
            let mut server = Stalling {
                at: Duration::from_secs(1),
                stall: Duration::from_millis(stall_ms),
                free: Duration::ZERO,
            };
            let mut tally = Tally::new(plan);
            let mut under_way: Vec<Done> = Vec::new();
            for intended in plan.sends(StdRng::seed_from_u64(2)) {
                for ended in under_way.extract_if(.., |one| one.ended <= intended) {
                    tally.done(&ended);
                }
                let fits = under_way.len() < room;
                tally.due(intended, fits);
                if fits {
                    under_way.push(done(intended, intended, server.answer(intended)));
                }
            }
            for one in &under_way {
                tally.done(one);
            }
            tally.finish();
            let counts = tally.counts;
            prop_assert_eq!(counts.intended, counts.not_sent + counts.succeeded + counts.failed);
            let sum = |part: fn(&Counts) -> u64| {
                let phases: u64 = tally.phases.iter().map(|phase| part(&phase.counts)).sum();
                let seconds: u64 = tally.seconds.iter().map(|second| part(&second.counts)).sum();
                (phases, seconds)
            };
            prop_assert_eq!(sum(|c| c.intended), (counts.intended, counts.intended));
            prop_assert_eq!(sum(|c| c.not_sent), (counts.not_sent, counts.not_sent));
            prop_assert_eq!(tally.from_intended.len(), counts.succeeded);
            let answered: u64 = tally.seconds.iter().map(|second| second.answered).sum();
            prop_assert_eq!(answered, counts.succeeded);
        }
    }

    #[test]
    fn a_client_that_is_late_counts_from_the_intended_time() {
        let mut tally = Tally::new(plan("1", 10, Arrivals::Uniform));
        let [intended, sent, ended] = [1_000, 1_400, 1_500].map(Duration::from_millis);
        tally.due(intended, true);
        tally.done(&done(intended, sent, ended));
        let rounded = |latencies: &Latencies| latencies.max().expect("one").as_millis();
        assert_eq!(rounded(&tally.from_intended), 500);
        assert_eq!(rounded(&tally.from_send), 100);
    }

    #[test]
    fn the_warm_up_is_shown_live_and_counted_nowhere() {
        let warm = Plan {
            warm_up: Duration::from_secs(2),
            ..plan("10", 10, Arrivals::Uniform)
        };
        let mut tally = Tally::new(warm);
        let second = Duration::from_secs(1);
        tally.due(second, true);
        tally.done(&done(second, second, second + WORK));
        assert_eq!(tally.counts, Counts::default());
        assert_eq!(tally.from_intended.len(), 0);
        assert!(tally.outcomes.is_empty() && tally.seconds.is_empty());
        let recent = tally.look(second * 2);
        assert_eq!((recent.sent, recent.succeeded), (1, 1));
        assert_eq!(tally.look(second * 3).sent, 0);
    }

    #[test]
    fn failures_do_not_flatter_the_latency_of_what_succeeded() {
        let mut tally = Tally::new(plan("10", 10, Arrivals::Uniform));
        let slow = Duration::from_millis(200);
        tally.due(Duration::ZERO, true);
        tally.done(&done(Duration::ZERO, Duration::ZERO, slow));
        for _ in 0..9 {
            tally.due(Duration::ZERO, true);
            tally.done(&Done {
                outcome: Outcome::Status(503),
                said: Some("no replica".into()),
                ..done(Duration::ZERO, Duration::ZERO, WORK)
            });
        }
        assert_eq!(
            tally.from_intended.quantile(0.5).expect("one").as_millis(),
            200
        );
        assert_eq!(
            tally.with_failures.quantile(0.5).expect("ten").as_millis(),
            1
        );
        assert_eq!(
            tally.outcomes[&Outcome::Status(503)],
            (9, Some("no replica".to_owned()))
        );
        assert_eq!((tally.counts.succeeded, tally.counts.failed), (1, 9));
    }

    #[test]
    fn what_is_in_flight_at_the_end_has_failed_as_abandoned() {
        let mut tally = Tally::new(plan("10", 10, Arrivals::Uniform));
        for n in 0..3 {
            tally.due(Duration::from_secs(n), true);
        }
        tally.done(&done(Duration::ZERO, Duration::ZERO, WORK));
        tally.finish();
        assert_eq!((tally.counts.succeeded, tally.counts.failed), (1, 2));
        assert_eq!(tally.outcomes[&Outcome::Abandoned], (2, None));
        assert_eq!(tally.seconds[1].counts.failed, 1);
    }

    #[test]
    fn a_ramp_has_phases_with_their_own_rates() {
        let tally = Tally::new(plan("0..100", 10, Arrivals::Uniform));
        assert_eq!(tally.phases.len(), 5);
        let [(start, from), (end, to)] = tally.phase_bounds(1);
        assert_eq!((start.as_secs(), end.as_secs()), (2, 4));
        assert_eq!((from, to), (20.0, 40.0));
    }
}
