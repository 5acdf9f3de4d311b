use std::time::{Duration, Instant};

use apa::Sample;
use proptest::prelude::*;
use shared::units::MonoTime;

use super::*;
use crate::policy::Orders;
use crate::synth::Shape;
use crate::trace::{Kind, Segment};

/// Orders the same all the time, and keeps what it was shown.
struct Fixed {
    replicas: u32,
    target: Option<u32>,
    seen: Vec<Option<Sample>>,
}

impl Policy for Fixed {
    fn name(&self) -> &str {
        "fixed"
    }

    fn second(&mut self, sample: Option<&Sample>, _now: MonoTime) -> Orders {
        self.seen.push(sample.cloned());
        orders(self.replicas, self.target)
    }
}

/// Orders by the second, over and over.
struct Scripted(Vec<(u32, Option<u32>)>);

impl Policy for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    fn second(&mut self, _sample: Option<&Sample>, now: MonoTime) -> Orders {
        let second = now.since_origin().as_secs() as usize;
        let (replicas, target) = self.0[second % self.0.len()];
        orders(replicas, target)
    }
}

fn orders(desired_replicas: u32, target_concurrency: Option<u32>) -> Orders {
    Orders {
        desired_replicas,
        target_concurrency,
        warm: 0,
        horizontal: None,
        vertical: None,
    }
}

fn fixed(replicas: u32, target: Option<u32>) -> Fixed {
    Fixed {
        replicas,
        target,
        seen: Vec::new(),
    }
}

fn flat(value: f64, length_s: u32, kind: Kind) -> Trace {
    let mut trace = Trace::empty("flat", kind);
    trace.push_seconds(value, None, length_s);
    trace
}

fn scenario(trace: Trace, options: Options) -> Scenario {
    Scenario {
        trace,
        plant: Plant::built_in("cpu").expect("there"),
        options,
    }
}

fn even() -> Options {
    Options {
        arrivals: Arrivals::Even,
        ..Options::default()
    }
}

/// Without noise of its own.
fn quiet(mut scenario: Scenario) -> Scenario {
    scenario.plant.noise = crate::plant::Noise::default();
    scenario.plant.startup.spread = 0.0;
    scenario
}

#[test]
fn a_sample_shows_what_production_would_have_seen_of_the_second() {
    let scenario = quiet(scenario(flat(80.0, 60, Kind::Rate), even()));
    let mut policy = fixed(2, Some(6));
    run(&scenario, &mut policy);
    let sample = policy.seen[60].clone().expect("measured");
    // 80 a second, 50 ms each: 4 at once, on 2 replicas.
    assert!((sample.active - 4.0).abs() < 1e-6, "{sample:?}");
    assert_eq!((sample.arrivals, sample.completions), (80.0, 80.0));
    assert_eq!((sample.queued, sample.rejected), (0.0, 0.0));
    assert_eq!((sample.replicas_ready, sample.replicas_starting), (2, 0));
    let [group] = &sample.groups[..] else {
        panic!("{sample:?}");
    };
    assert_eq!((group.replicas, group.completions), (2, 80.0));
    assert!((group.p50_ms.expect("some ended") - 50.0).abs() < 0.01);
    // 2 of 6 at once: a third of the way from 2 % to 98 %.
    assert!((group.resources.cpu.expect("a gauge") - 0.34).abs() < 1e-3);
    assert_eq!(group.resources.gpu_sm, None);
}

#[test]
fn before_the_first_second_nothing_was_measured_and_of_a_silent_one_no_latency_is_known() {
    let scenario = quiet(scenario(flat(0.0, 5, Kind::Rate), even()));
    let mut policy = fixed(1, Some(6));
    run(&scenario, &mut policy);
    assert_eq!((policy.seen.len(), &policy.seen[0]), (6, &None));
    let silent = policy.seen[5].clone().expect("a sample of zeros");
    assert_eq!((silent.active, silent.groups[0].p50_ms), (0.0, None));
}

#[test]
fn what_replicas_cannot_take_waits_its_turn_and_what_the_queue_cannot_is_rejected() {
    // One replica ends 120 a second; 150 come: 30 more wait each second, until 1000 do.
    let scenario = quiet(scenario(flat(150.0, 100, Kind::Rate), even()));
    let mut policy = fixed(1, Some(6));
    let outcome = run(&scenario, &mut policy);
    let after = |second: usize| policy.seen[second].clone().expect("measured");
    assert!((after(20).queued - 585.0).abs() < 10.0, "{:?}", after(20));
    assert!((after(90).queued - 1000.0).abs() < 5.0);
    assert!((after(90).rejected - 30.0).abs() <= 1.0);
    // A full queue is 1000 / 120 s long.
    let wait = outcome.measures.wait_p99_s;
    assert!((wait / (1000.0 / 120.0) - 1.0).abs() < 0.05, "{wait}");
    let expected = (100.0 * 30.0 - 1000.0) as u64;
    assert!(outcome.measures.rejected.abs_diff(expected) < 20);
}

#[test]
fn without_a_target_the_replicas_take_all_and_slow_down() {
    let scenario = quiet(scenario(flat(150.0, 20, Kind::Rate), even()));
    let mut policy = fixed(1, None);
    let outcome = run(&scenario, &mut policy);
    let last = policy.seen[20].clone().expect("measured");
    assert_eq!(outcome.measures.wait_p99_s, 0.0);
    assert!((last.active - 591.0).abs() < 10.0, "{last:?}");
    let p50 = last.groups[0].p50_ms.expect("some ended");
    assert!(p50 > 2000.0, "{p50}");
}

#[test]
fn a_full_replica_with_a_hard_limit_refuses_or_lets_wait() {
    let with = |beyond: &str| {
        let text = format!(
            "kind = \"cpu\"\nservice_time = \"50ms\"\nknee = 6\nhard_limit = 4\n\
             beyond_hard_limit = \"{beyond}\"\n"
        );
        Scenario {
            plant: Plant::parse("p", text.as_bytes()).expect("valid"),
            ..scenario(flat(100.0, 20, Kind::Rate), even())
        }
    };
    // 80 a second are ended.
    let refusing = run(&with("refuse"), &mut fixed(1, None));
    assert!(refusing.measures.rejected.abs_diff(400) < 5, "{refusing:?}");
    let waiting = run(&with("wait"), &mut fixed(1, None));
    assert_eq!(waiting.measures.rejected, 0);
    assert!(
        (waiting.balance.remaining - 404.0).abs() < 5.0,
        "{waiting:?}"
    );
}

#[test]
fn excess_is_the_share_of_offered_work_above_the_ready_capacity() {
    // 12 at once are offered (240 a second); one replica takes 6 at its best.
    let scenario = quiet(scenario(flat(240.0, 100, Kind::Rate), even()));
    let measures = run(&scenario, &mut fixed(1, Some(6))).measures;
    assert!((measures.excess_share - 0.5).abs() < 0.01, "{measures:?}");
    let ample = run(&scenario, &mut fixed(2, Some(6))).measures;
    // The second one is ready after 10 s.
    assert!((ample.excess_share - 0.05).abs() < 0.005, "{ample:?}");
    assert_eq!((ample.replica_seconds, ample.max_replicas), (200.0, 2));
}

#[test]
fn the_lead_in_is_simulated_and_not_measured() {
    let options = Options {
        lead_in_s: 40,
        ..even()
    };
    let scenario = quiet(scenario(flat(240.0, 100, Kind::Rate), options));
    let measures = run(&scenario, &mut fixed(2, Some(6))).measures;
    assert_eq!(
        (measures.replica_seconds, measures.mean_replicas),
        (120.0, 2.0)
    );
    assert_eq!((measures.excess_share, measures.changes), (0.0, 0));
}

#[test]
fn offered_concurrency_is_kept_at_work() {
    let scenario = quiet(scenario(flat(9.0, 60, Kind::Concurrency), even()));
    let mut policy = fixed(2, Some(6));
    run(&scenario, &mut policy);
    let active = policy.seen[60].clone().expect("measured").active;
    assert!((active - 9.0).abs() < 1e-6, "{active}");
}

#[test]
fn counted_requests_come_as_many_as_were_counted() {
    let mut trace = Trace::empty("log", Kind::Counts);
    let counts = [3.0, 0.0, 17.0, 200.0];
    for count in counts {
        trace.push_second(count, None);
    }
    let mut policy = fixed(3, Some(6));
    run(&scenario(trace, Options::default()), &mut policy);
    let arrivals: Vec<f64> = policy.seen[1..]
        .iter()
        .map(|sample| sample.as_ref().expect("measured").arrivals)
        .collect();
    assert_eq!(arrivals, counts);
}

#[test]
fn longer_requests_take_more_of_a_replica() {
    let trace = Trace {
        segments: vec![Segment {
            from_s: 0,
            value: 2.0,
            service_s: Some(1.5),
        }],
        length_s: 120,
        ..flat(2.0, 120, Kind::Rate)
    };
    let scenario = quiet(scenario(trace, even()));
    let mut policy = fixed(1, Some(6));
    run(&scenario, &mut policy);
    let sample = policy.seen[120].clone().expect("measured");
    assert!((sample.active - 3.0).abs() < 1e-3, "{sample:?}");
    let p50 = sample.groups[0].p50_ms.expect("some ended");
    assert!((p50 - 1500.0).abs() < 1.0, "{p50}");
}

#[test]
fn requests_that_are_much_longer_than_those_before_end_no_sooner_than_they_can() {
    let mut trace = Trace::empty("t", Kind::Counts);
    trace.push_seconds(100.0, Some(0.05), 5);
    trace.push_seconds(6.0, Some(30.0), 20);
    let scenario = quiet(scenario(trace, even()));
    let mut policy = fixed(1, Some(6));
    run(&scenario, &mut policy);
    let ended = |from: usize| -> f64 {
        let seen = policy.seen[from..].iter().flatten();
        seen.map(|sample| sample.completions).sum()
    };
    // Six slots, 30 s each: some 4 of them in 20 s, and what was left of the short ones.
    assert!(ended(6) < 12.0, "{}", ended(6));
}

#[test]
fn the_knee_moves_at_its_time() {
    let text =
        "kind = \"cpu\"\nservice_time = \"50ms\"\nknee = 6\n[[changes]]\nat = \"60s\"\nknee = 3\n";
    let scenario = Scenario {
        plant: Plant::parse("p", text.as_bytes()).expect("valid"),
        ..scenario(flat(80.0, 120, Kind::Rate), even())
    };
    let mut policy = fixed(1, Some(6));
    run(&scenario, &mut policy);
    let completions = |second: usize| policy.seen[second].as_ref().expect("one").completions;
    assert_eq!((completions(60), completions(120)), (80.0, 60.0));
}

#[test]
fn a_policy_changes_no_arrival() {
    let (_, bursts) = Shape::standard()[4];
    let scenario = scenario(bursts.trace("b", Kind::Rate, 1), Options::default());
    let arrivals = |policy: &mut Fixed| -> Vec<f64> {
        run(&scenario, policy);
        let seen = policy.seen[1..].iter();
        seen.map(|sample| sample.as_ref().expect("one").arrivals)
            .collect()
    };
    assert_eq!(
        arrivals(&mut fixed(1, Some(1))),
        arrivals(&mut fixed(50, None))
    );
}

#[test]
fn samples_are_lost_and_spoilt_in_the_share_asked_for_and_shifted_ones_lose_no_count() {
    let with = |disturbance| {
        let options = Options {
            disturbance,
            ..even()
        };
        let scenario = quiet(scenario(flat(80.0, 2000, Kind::Rate), options));
        let mut policy = fixed(2, Some(6));
        run(&scenario, &mut policy);
        policy.seen.split_off(1)
    };
    let usual = Disturbance::default();
    let lost = with(Disturbance {
        dropped: 0.2,
        ..usual
    });
    let share = lost.iter().filter(|it| it.is_none()).count() as f64 / 2000.0;
    assert!((share - 0.2).abs() < 0.03, "{share}");
    let spoilt = with(Disturbance {
        outliers: 0.05,
        ..usual
    });
    let active = |it: &Option<Sample>| it.as_ref().expect("one").active;
    let share = spoilt.iter().filter(|it| active(it) > 30.0).count() as f64 / 2000.0;
    assert!((share - 0.05).abs() < 0.02, "{share}");
    let shifted = with(Disturbance {
        shift_s: 0.2,
        ..usual
    });
    let arrivals: Vec<f64> = shifted
        .iter()
        .map(|it| it.as_ref().expect("one").arrivals)
        .collect();
    assert!(arrivals.iter().any(|count| *count != 80.0));
    assert!(arrivals.iter().sum::<f64>() >= 2000.0 * 80.0 - 16.0);
    assert!(
        shifted[10..]
            .iter()
            .all(|it| (active(it) - 4.0).abs() < 1e-6)
    );
}

#[test]
fn a_day_of_simulation_takes_less_than_some_seconds_even_unoptimised() {
    let (_, day) = Shape::standard()[3];
    let scenario = scenario(day.trace("day", Kind::Rate, 1), Options::default());
    let before = Instant::now();
    let outcome = run(&scenario, &mut fixed(10, Some(6)));
    let took = before.elapsed();
    assert!(outcome.balance.completed > 1e6);
    // Usually well under one; a busy machine may be ten times slower.
    assert!(took < Duration::from_secs(20), "{took:?}");
}

fn any_trace() -> impl Strategy<Value = Trace> {
    let second = (0.0..300.0f64, prop::option::of(0.001..30.0f64));
    let kind = prop::sample::select(vec![Kind::Rate, Kind::Counts, Kind::Concurrency]);
    (kind, proptest::collection::vec((second, 1u32..20), 1..12)).prop_map(|(kind, parts)| {
        let mut trace = Trace::empty("any", kind);
        for ((value, service_s), seconds) in parts {
            let value = if kind == Kind::Counts {
                value.floor()
            } else {
                value
            };
            trace.push_seconds(value, service_s, seconds);
        }
        trace
    })
}

fn any_plant() -> impl Strategy<Value = Plant> {
    let kinds = vec![
        "kind = \"cpu\"\nknee = 3\n",
        "kind = \"gpu\"\nknee = 20\nslope = 0.05\n",
        "kind = \"io\"\nknee = 50\nhard_limit = 60\nbeyond_hard_limit = \"refuse\"\n",
        "kind = \"usl\"\ncontention = 0.05\ncoherency = 0.01\n",
        "kind = \"flat-then-linear\"\nknee = 8\nslope = 2\nhard_limit = 16\n",
    ];
    let service = prop::sample::select(vec!["1ms", "70ms", "3s", "2min"]);
    (prop::sample::select(kinds), service, 0u32..200).prop_map(|(kind, service, queue)| {
        let text = format!(
            "service_time = \"{service}\"\nqueue = {queue}\n{kind}\
             [startup]\nmean = \"4s\"\nspread = 0.5\n\
             [noise]\nservice = 0.3\ngauges = 0.05\n\
             [resources]\ncpu = {{ idle = 0.1, full = 0.9, follows = \"throughput\" }}\n"
        );
        Plant::parse("any", text.as_bytes()).expect("valid")
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_request_that_came_has_ended_or_was_rejected_or_is_still_there(
        trace in any_trace(),
        plant in any_plant(),
        script in proptest::collection::vec((0u32..12, prop::option::of(1u32..30)), 1..8),
        seed in any::<u64>(),
    ) {
        let options = Options { seed, series_points: 50, ..Options::default() };
        let scenario = Scenario { trace, plant, options };
        let outcome = run(&scenario, &mut Scripted(script.clone()));
        let Balance { arrived, completed, rejected, remaining } = outcome.balance;
        let sum = completed + rejected + remaining;
        prop_assert!((arrived - sum).abs() <= 1e-6 * arrived.max(1.0), "{arrived} {sum}");
        for value in [completed, rejected, remaining] {
            prop_assert!(value >= -1e-9 && value.is_finite());
        }
        let measures = &outcome.measures;
        prop_assert!((0.0..=1.0 + 1e-9).contains(&measures.excess_share));
        prop_assert!(measures.wait_p50_s <= measures.wait_p99_s);
        let again = run(&scenario, &mut Scripted(script));
        prop_assert_eq!(outcome.balance, again.balance);
        prop_assert_eq!(outcome.series, again.series);
    }

    #[test]
    fn no_sample_has_a_negative_or_absurd_number(
        trace in any_trace(),
        plant in any_plant(),
        replicas in 0u32..10,
        target in prop::option::of(1u32..30),
    ) {
        let scenario = Scenario { trace, plant, options: Options::default() };
        let mut policy = fixed(replicas, target);
        run(&scenario, &mut policy);
        for sample in policy.seen.iter().flatten() {
            prop_assert_eq!(Some(sample.clone()), sample.clone().checked());
        }
    }
}

/// Erlang's C formula: the chance to wait, with `slots` and `load` requests at work on the mean.
fn chance_to_wait(slots: u32, load: f64) -> f64 {
    let mut blocked = 1.0;
    for i in 1..=slots {
        blocked = load * blocked / (f64::from(i) + load * blocked);
    }
    let busy = load / f64::from(slots);
    blocked / (1.0 - busy * (1.0 - blocked))
}

/// The 99th percentile of waits at four replicas of six slots: as simulated, and after Erlang.
fn waits_of_busy(service_s: f64, busy: f64, noise: f64) -> (f64, f64) {
    let slots = 24;
    let load = busy * f64::from(slots);
    let text = format!(
        "kind = \"cpu\"\nservice_time = \"{service_s}s\"\nknee = 6\nqueue = 1e6\n[noise]\n\
         service = {noise}\n"
    );
    let options = Options {
        initial_replicas: 4,
        lead_in_s: 100,
        ..Options::default()
    };
    let scenario = Scenario {
        plant: Plant::parse("p", text.as_bytes()).expect("valid"),
        ..scenario(flat(load / service_s, 100_000, Kind::Rate), options)
    };
    let measures = run(&scenario, &mut fixed(4, Some(6))).measures;
    let freed = (f64::from(slots) - load) / service_s;
    let p99 = (chance_to_wait(slots, load) / 0.01).ln() / freed;
    (measures.wait_p99_s, p99.max(0.0))
}

#[test]
fn who_waits_and_for_how_long_is_what_queueing_theory_says() {
    // Times that differ as much as exponential ones do.
    let exponential = std::f64::consts::LN_2.sqrt();
    for service_s in [2.0, 0.3] {
        for busy in [0.7, 0.85, 0.95] {
            let (found, expected) = waits_of_busy(service_s, busy, exponential);
            // A wait is known to a sub-step, and a long queue is a rare thing to average over.
            let close = (found - expected).abs() < 0.11 + 0.15 * expected;
            assert!(close, "{service_s} {busy}: {found} {expected}");
        }
        // Of requests that all take the same, about half as long (Allen and Cunneen).
        let (found, exponential) = waits_of_busy(service_s, 0.95, 0.0);
        let share = found / exponential;
        assert!(
            (0.35..0.65).contains(&share),
            "{service_s}: {found} {exponential}"
        );
    }
}

#[test]
fn what_a_second_shows_of_requests_and_of_their_time_fits_each_other() {
    let scenario = scenario(flat(20.0, 1000, Kind::Rate), Options::default());
    let mut policy = fixed(1, Some(6));
    run(&scenario, &mut policy);
    let seconds: Vec<&Sample> = policy.seen.iter().flatten().skip(10).collect();
    for ten in seconds.chunks_exact(10) {
        let active: f64 = ten.iter().map(|it| it.active).sum();
        let ended: f64 = ten.iter().map(|it| it.completions).sum();
        // Little's law: 200 requests with a fifth of spread know their mean to some percent.
        let time_s = active / ended;
        assert!((0.042..0.058).contains(&time_s), "{time_s}");
    }
}
