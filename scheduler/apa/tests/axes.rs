//! Facts about both axes together, each second as the scheduler calls them.

use std::time::Duration;

use apa::{Autoscaler, Group, HardwareClass, Orders, Policy, Resources, Sample};
use proptest::prelude::*;
use shared::units::MonoTime;

/// A served entity whose replicas take `SERVICE_S` a request up to a knee, and in proportion beyond.
struct Served {
    policy: Policy,
    autoscaler: Autoscaler,
    second: u64,
    knee: f64,
    service_s: f64,
    ready: u32,
    orders: Orders,
    history: Vec<(u64, u32)>,
}

const SERVICE_S: f64 = 0.1;

fn policy() -> Policy {
    Policy {
        max_replicas: 100,
        startup: Some(Duration::from_secs(5)),
        ..Policy::default()
    }
}

fn pinned(target: u32) -> Policy {
    Policy {
        pinned_target: Some(target),
        ..policy()
    }
}

impl Served {
    fn new(policy: Policy, knee: f64) -> Self {
        let mut autoscaler = Autoscaler::new(&policy, policy.min_replicas, MonoTime::ZERO);
        let orders = autoscaler.second(&policy, None, MonoTime::from_secs(1));
        Self {
            ready: policy.min_replicas,
            policy,
            autoscaler,
            second: 1,
            knee,
            service_s: SERVICE_S,
            orders,
            history: Vec::new(),
        }
    }

    /// What would be measured of this many requests a second, spread evenly, with what does not fit
    /// waiting outside; replicas are there as soon as they are wanted.
    fn sample(&self, rate: f64) -> Sample {
        let replicas = f64::from(self.ready.max(1));
        let target = f64::from(self.orders.target_concurrency());
        let time = |c: f64| self.service_s * (c / self.knee).max(1.0);
        // The concurrency at which a replica ends as many as come, if its target lets it.
        let mut concurrency = rate / replicas * self.service_s;
        if concurrency > self.knee {
            concurrency = f64::INFINITY;
        }
        let concurrency = concurrency.min(target);
        let completions = (replicas * concurrency / time(concurrency)).min(rate);
        let active = replicas * concurrency;
        let ms = time(concurrency) * 1000.0;
        Sample {
            active,
            queued: 0.0,
            arrivals: rate,
            completions,
            rejected: (rate - completions).max(0.0),
            replicas_ready: self.ready,
            replicas_starting: 0,
            groups: vec![Group {
                class: HardwareClass("cpu".into()),
                exploring: false,
                replicas: self.ready,
                active,
                completions,
                p50_ms: Some(ms),
                p95_ms: Some(ms * 1.5),
                resources: Resources::default(),
            }],
        }
    }

    fn step(&mut self, sample: Option<Sample>) -> &Orders {
        self.second += 1;
        let now = MonoTime::from_secs(self.second);
        self.orders = self.autoscaler.second(&self.policy, sample, now);
        self.ready = self.orders.desired_replicas;
        self.history.push((self.second, self.ready));
        &self.orders
    }

    fn load(&mut self, rate: f64, seconds: u64) -> &Orders {
        for _ in 0..seconds {
            let sample = self.sample(rate);
            self.step(Some(sample));
        }
        &self.orders
    }

    fn rule(&mut self, rate: f64) -> String {
        for _ in 0..10 {
            let sample = self.sample(rate);
            if let Some(decision) = self.step(Some(sample)).horizontal.clone() {
                return decision.explanation.rule.into_owned();
            }
        }
        panic!("no decision in 10 s");
    }
}

#[test]
fn steady_load_gets_what_it_needs_with_headroom_for_chance() {
    let mut served = Served::new(pinned(4), 4.0);
    // 200 requests a second of 0.1 s are 20 at once.
    let replicas = served.load(200.0, 60).desired_replicas;
    assert!((6..=7).contains(&replicas), "{replicas}");
    assert_eq!(served.rule(200.0), "demand");
}

#[test]
fn a_jump_that_cannot_be_chance_is_met_in_its_first_seconds() {
    let mut served = Served::new(pinned(4), 4.0);
    served.load(20.0, 61);
    let second = served.load(400.0, 2).desired_replicas;
    assert!(
        second >= 10,
        "{second} replicas two seconds after a step to 40 at once"
    );
}

#[test]
fn what_a_peak_bought_is_kept_for_the_hold_and_given_back_after_it() {
    let mut served = Served::new(pinned(4), 4.0);
    let peak = served.load(400.0, 120).desired_replicas;
    // Twenty start-ups of 5 s. The highest tenth of the needs is not held, so the hold ends earlier by
    // that much.
    let kept = served.load(40.0, 70).desired_replicas;
    assert!(kept + 1 >= peak, "{kept} of {peak} after 70 s");
    assert_eq!(served.rule(40.0), "hold");
    let after = served.load(40.0, 60).desired_replicas;
    assert!(after <= 3, "{after} after the hold");
}

#[test]
fn the_hold_is_twenty_start_ups_within_one_and_five_minutes() {
    let hold = |startup: Option<u64>| {
        let policy = Policy {
            startup: startup.map(Duration::from_secs),
            ..policy()
        };
        apa::horizontal::hold(&policy).as_secs()
    };
    let holds = [None, Some(1), Some(10), Some(60)].map(hold);
    assert_eq!(holds, [60, 60, 200, 300]);
}

#[test]
fn a_backlog_buys_more_than_the_load_and_a_standing_queue_is_load() {
    let backlog = |queued: f64, seconds: u64| {
        let mut served = Served::new(pinned(4), 4.0);
        served.load(80.0, 60);
        for _ in 0..seconds {
            let mut sample = served.sample(80.0);
            sample.queued = queued;
            served.step(Some(sample));
        }
        served.orders.desired_replicas
    };
    let calm = backlog(0.0, 10);
    // 3000 requests of 0.1 s within 15 s are 20 more at once.
    assert!(backlog(3000.0, 10) >= calm + 4);
    // 40 callers who wait for their answers: they ask again as soon as they are answered.
    assert!(backlog(40.0, 40) >= calm + 8);
}

#[test]
fn bounds_hold_and_say_so() {
    let mut served = Served::new(
        Policy {
            max_replicas: 3,
            min_replicas: 2,
            ..pinned(4)
        },
        4.0,
    );
    assert_eq!(served.load(1.0, 10).desired_replicas, 2);
    assert_eq!(served.rule(1.0), "floor");
    assert_eq!(served.load(500.0, 10).desired_replicas, 3);
    assert_eq!(served.rule(500.0), "max-replicas");
}

#[test]
fn provisioned_concurrency_is_a_floor_in_requests() {
    let mut served = Served::new(
        Policy {
            provisioned_concurrency: 10,
            ..pinned(4)
        },
        4.0,
    );
    assert_eq!(served.load(1.0, 10).desired_replicas, 3);
}

#[test]
fn an_idle_entity_goes_to_zero_after_its_idle_time_and_wakes_at_once() {
    let policy = Policy {
        min_replicas: 0,
        scale_to_zero: true,
        idle: Duration::from_secs(120),
        ..pinned(4)
    };
    let mut served = Served::new(policy, 4.0);
    served.load(20.0, 30);
    served.load(0.0, 110);
    assert_eq!(served.orders.desired_replicas, 1);
    assert_eq!(served.load(0.0, 30).desired_replicas, 0);
    assert_eq!(served.rule(0.0), "idle");
    let now = MonoTime::from_secs(served.second);
    let orders = served.autoscaler.wake(&served.policy, 9, now);
    assert_eq!(orders.desired_replicas, 3);
    let decision = orders.horizontal.expect("a decision");
    assert_eq!(decision.explanation.rule, "wake");
}

#[test]
fn on_a_guess_no_more_than_its_budget_is_bought() {
    let mut served = Served::new(policy(), 1000.0);
    assert_eq!(
        served.load(2000.0, 3).desired_replicas,
        apa::horizontal::GUESS_REPLICAS
    );
    assert!(served.orders.targets[0].guess);
}

#[test]
fn where_nothing_is_measured_everything_stays() {
    let mut served = Served::new(policy(), 6.0);
    served.load(300.0, 120);
    for _ in 0..3 {
        served.step(None);
    }
    let before = served.orders.clone();
    for _ in 0..900 {
        served.step(None);
    }
    assert_eq!(served.orders.desired_replicas, before.desired_replicas);
    assert_eq!(served.orders.targets, before.targets);
}

#[test]
fn a_second_that_comes_late_or_twice_changes_nothing() {
    let mut served = Served::new(policy(), 6.0);
    served.load(300.0, 40);
    let before = served.autoscaler.clone();
    let huge = served.sample(1e6);
    for late in [served.second, served.second - 7] {
        let now = MonoTime::from_secs(late);
        let orders = served
            .autoscaler
            .second(&served.policy, Some(huge.clone()), now);
        assert_eq!(orders.desired_replicas, served.orders.desired_replicas);
    }
    assert_eq!(served.autoscaler, before);
}

#[test]
fn the_knee_of_an_unknown_model_is_found_from_below_and_from_far_above() {
    for knee in [2.0, 6.0, 40.0, 200.0] {
        for guess in [None, Some(knee as u32 * 10)] {
            let policy = Policy {
                initial_target: guess,
                ..policy()
            };
            let mut served = Served::new(policy, knee);
            // Four replicas' worth at their knees.
            let target = served
                .load(4.0 * knee / SERVICE_S, 300)
                .target_concurrency();
            let off = (f64::from(target) - knee).abs();
            assert!(
                off <= (0.2 * knee).max(1.0),
                "knee {knee}, guess {guess:?}: {target}"
            );
            assert!(!served.orders.targets[0].guess);
            let later = served
                .load(4.0 * knee / SERVICE_S, 3600)
                .target_concurrency();
            let moved = f64::from(later.abs_diff(target));
            assert!(
                moved <= (0.1 * f64::from(target)).max(1.0),
                "{target} then {later}"
            );
        }
    }
}

#[test]
fn a_knee_that_moves_is_followed_both_ways() {
    let mut served = Served::new(policy(), 40.0);
    served.load(1600.0, 300);
    served.knee = 20.0;
    let lower = served.load(800.0, 300).target_concurrency();
    assert!((16..=24).contains(&lower), "{lower}");
}

#[test]
fn longer_requests_alone_are_no_lower_knee() {
    let mut served = Served::new(policy(), 20.0);
    served.load(800.0, 300);
    served.service_s = 2.0 * SERVICE_S;
    let target = served.load(400.0, 400).target_concurrency();
    assert!((15..=25).contains(&target), "{target}");
}

#[test]
fn an_idle_service_teaches_nothing() {
    let mut served = Served::new(
        Policy {
            initial_target: Some(640),
            ..policy()
        },
        40.0,
    );
    let before = served.orders.target_concurrency();
    let after = served.load(2.0, 1800).target_concurrency();
    assert_eq!(after, before);
}

#[test]
fn a_pinned_target_is_left_alone_and_a_removed_pin_is_learned_from() {
    let mut served = Served::new(pinned(3), 40.0);
    assert_eq!(served.load(1000.0, 300).target_concurrency(), 3);
    assert!(!served.orders.targets[0].guess);
    served.policy.pinned_target = None;
    let target = served.load(1600.0, 300).target_concurrency();
    assert!((32..=48).contains(&target), "{target}");
}

#[test]
fn a_latency_objective_binds_below_the_knee_of_throughput() {
    let policy = Policy {
        // p95 is 1.5 times the time; at low load 150 ms.
        latency_objective: Some(Duration::from_millis(160)),
        ..policy()
    };
    let mut served = Served::new(policy, 10.0);
    let target = served.load(400.0, 300).target_concurrency();
    assert!((8..=11).contains(&target), "{target}");
}

#[test]
fn what_was_learned_survives_being_written_down_and_read_back() {
    let mut served = Served::new(policy(), 6.0);
    served.load(240.0, 300);
    let text = serde_json::to_string(&served.autoscaler).expect("JSON");
    let read: Autoscaler = serde_json::from_str(&text).expect("the same");
    assert_eq!(read, served.autoscaler);
    let resumed = read.resume(&served.policy, 4, MonoTime::from_secs(1));
    let class = HardwareClass("cpu".into());
    assert_eq!(resumed.target(&class), served.autoscaler.target(&class));
    assert_eq!(resumed.desired(), 4);
}

#[test]
fn replicas_of_different_hardware_learn_their_own_targets() {
    let mut served = Served::new(policy(), 6.0);
    for _ in 0..400 {
        // The second class is three times as wide, and gets as much as it takes.
        let wide = Served {
            autoscaler: served.autoscaler.clone(),
            policy: served.policy.clone(),
            orders: Orders {
                targets: served.orders.targets.iter().rev().cloned().collect(),
                ..served.orders.clone()
            },
            history: Vec::new(),
            knee: 18.0,
            ..served
        };
        let mut sample = served.sample(120.0);
        let mut other = wide.sample(360.0);
        other.groups[0].class = HardwareClass("wide".into());
        sample.arrivals += other.arrivals;
        sample.completions += other.completions;
        sample.active += other.active;
        sample.groups.append(&mut other.groups);
        served.step(Some(sample));
        served.ready = 2;
    }
    let target = |class: &str| served.autoscaler.target(&HardwareClass(class.into()));
    let (narrow, wide) = (target("cpu").expect("seen"), target("wide").expect("seen"));
    assert!(wide > narrow, "{narrow} and {wide}");
}

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => 0.0..1000.0,
        1 => Just(0.0),
        1 => Just(f64::NAN),
        1 => Just(f64::INFINITY),
        1 => Just(-1.0),
        1 => 0.0..1e300,
    ]
}

fn any_sample() -> impl Strategy<Value = Option<Sample>> {
    let numbers = prop::array::uniform5(any_number());
    let group = (
        0u32..50,
        any_number(),
        any_number(),
        prop::option::of(any_number()),
    );
    let groups = prop::collection::vec(group, 0..3);
    prop::option::of((numbers, groups, 0u32..100, 0u32..100).prop_map(
        |([active, queued, arrivals, completions, rejected], groups, ready, starting)| {
            Sample {
                active,
                queued,
                arrivals,
                completions,
                rejected,
                replicas_ready: ready,
                replicas_starting: starting,
                groups: groups
                    .into_iter()
                    .enumerate()
                    .map(|(class, (replicas, active, completions, ms))| Group {
                        class: HardwareClass(format!("class-{class}")),
                        exploring: false,
                        replicas,
                        active,
                        completions,
                        p50_ms: ms,
                        p95_ms: ms,
                        resources: Resources {
                            cpu: ms,
                            ..Resources::default()
                        },
                    })
                    .collect(),
            }
        },
    ))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_measured_nothing_panics_and_every_bound_holds(
        samples in prop::collection::vec((any_sample(), 0u64..4), 1..200),
        min in 0u32..4, extra in 1u32..60, max_target in 1u32..500,
        provisioned in 0u32..40, zero: bool,
    ) {
        let policy = Policy {
            min_replicas: min, max_replicas: min + extra, scale_to_zero: zero && min == 0,
            provisioned_concurrency: provisioned, max_target, ..policy()
        };
        let mut autoscaler = Autoscaler::new(&policy, min, MonoTime::ZERO);
        let mut now = 0;
        for (sample, pause) in samples {
            now += pause;
            let before = autoscaler.desired();
            let orders = autoscaler.second(&policy, sample, MonoTime::from_secs(now));
            let desired = orders.desired_replicas;
            prop_assert!(desired <= policy.max_replicas);
            if orders.horizontal.is_some() {
                let floor = apa::horizontal::floor(&policy, 1.0);
                prop_assert!(desired >= floor.min(min.max(u32::from(!policy.scale_to_zero))));
                prop_assert!(desired <= before * 10 + 10 || desired <= floor);
            }
            for target in &orders.targets {
                prop_assert!((1..=max_target).contains(&target.target_concurrency));
                prop_assert!(target.explore.is_none_or(|explore| explore <= max_target));
            }
            for (_, decision) in &orders.vertical {
                prop_assert!(decision.after <= decision.before.saturating_mul(2).max(decision.before + 1));
            }
        }
    }

    #[test]
    fn more_load_never_asks_for_fewer_replicas(
        loads in prop::collection::vec(0.0f64..2000.0, 10..80), more in 1.0f64..3.0,
    ) {
        // The same course of load, and one that lies above it by a constant factor.
        let run = |factor: f64| {
            let mut served = Served::new(Policy { max_replicas: 10_000, ..pinned(4) }, 4.0);
            for load in &loads {
                served.load(load * factor, 5);
            }
            served.orders.desired_replicas
        };
        prop_assert!(run(more) + 1 >= run(1.0));
    }
}
