use proptest::prelude::*;

use super::*;

fn policy() -> HorizontalPolicy {
    HorizontalPolicy {
        min_replicas: 1,
        max_replicas: 100,
        scale_to_zero: false,
        target_concurrency: 4,
        provisioned_concurrency: 0,
        hold_min: Duration::from_secs(60),
        hold_max: Duration::from_secs(300),
        idle: Duration::from_secs(600),
    }
}

fn at(seconds: u64) -> MonoTime {
    MonoTime::from_secs(seconds)
}

fn demand(long: f64, short: f64) -> Observation {
    Observation {
        demand_long: Concurrency::new(long),
        demand_short: Concurrency::new(short),
        startup: None,
    }
}

/// Decides every 5 s over a load held steady; returns the last decision.
fn run(
    policy: &HorizontalPolicy,
    state: &mut State,
    load: f64,
    from: u64,
    until: u64,
    startup: Option<Duration>,
) -> Decision {
    let mut last = None;
    for second in (from..=until).step_by(5) {
        let observation = Observation {
            startup,
            ..demand(load, load)
        };
        let (decision, next) = horizontal(policy, state.clone(), observation, at(second));
        *state = next;
        last = Some(decision);
    }
    last.expect("at least one")
}

#[test]
fn demand_is_divided_by_the_target_and_the_short_mean_sees_a_step_at_once() {
    let cases = [(8.0, 0.0, 2), (8.1, 0.0, 3), (8.0, 40.0, 10), (0.3, 0.1, 1)];
    for (long, short, expected) in cases {
        let (decision, _) = horizontal(&policy(), State::new(1, at(0)), demand(long, short), at(5));
        assert_eq!(decision.desired_replicas, expected, "{long} {short}");
        assert_eq!(decision.bound_by, Bound::Demand);
    }
}

#[test]
fn a_burst_raises_replicas_at_once_but_its_end_lowers_them_only_after_the_hold() {
    let mut state = State::new(1, at(0));
    let up = run(&policy(), &mut state, 40.0, 5, 5, None);
    assert_eq!((up.desired_replicas, up.bound_by), (10, Bound::Demand));
    let held = run(&policy(), &mut state, 4.0, 10, 65, None);
    assert_eq!((held.desired_replicas, held.bound_by), (10, Bound::Hold));
    let down = run(&policy(), &mut state, 4.0, 70, 70, None);
    assert_eq!((down.desired_replicas, down.bound_by), (1, Bound::Demand));
}

#[test]
fn the_hold_is_twenty_start_ups_within_its_bounds() {
    let hold = |seconds| policy().hold(Some(Duration::from_secs(seconds))).as_secs();
    assert_eq!([hold(1), hold(6), hold(60)], [60, 120, 300]);
    assert_eq!(policy().hold(None).as_secs(), 60);
}

#[test]
fn bounds_always_bind_and_say_so() {
    let state = State::new(1, at(0));
    let (most, _) = horizontal(&policy(), state.clone(), demand(4000.0, 0.0), at(5));
    assert_eq!(
        (most.desired_replicas, most.bound_by),
        (100, Bound::MaxReplicas)
    );
    let floor = HorizontalPolicy {
        provisioned_concurrency: 30,
        ..policy()
    };
    let (least, _) = horizontal(&floor, State::new(0, at(0)), demand(4.0, 4.0), at(5));
    assert_eq!((least.desired_replicas, least.bound_by), (8, Bound::Floor));
}

#[test]
fn without_data_nothing_changes_and_the_hold_does_not_run_out() {
    let mut state = State::new(6, at(0));
    for second in (5..=600).step_by(5) {
        let nothing = Observation::default();
        let (decision, next) = horizontal(&policy(), state, nothing, at(second));
        assert_eq!(
            (decision.desired_replicas, decision.bound_by),
            (6, Bound::NoData)
        );
        state = next;
    }
    let back = run(&policy(), &mut state, 1.0, 605, 605, None);
    assert_eq!((back.desired_replicas, back.bound_by), (6, Bound::Hold));
}

#[test]
fn an_idle_entity_goes_to_zero_only_where_it_may_and_a_request_brings_it_back() {
    let mut state = State::new(1, at(0));
    let busy = run(&policy(), &mut state.clone(), 0.0, 5, 5000, None);
    assert_eq!((busy.desired_replicas, busy.bound_by), (1, Bound::Floor));

    let zero = HorizontalPolicy {
        min_replicas: 0,
        scale_to_zero: true,
        ..policy()
    };
    let waits = run(&zero, &mut state, 0.0, 5, 595, None);
    assert_eq!(
        (waits.desired_replicas, waits.bound_by),
        (1, Bound::NotIdleYet)
    );
    let idle = run(&zero, &mut state, 0.0, 600, 700, None);
    assert_eq!((idle.desired_replicas, idle.bound_by), (0, Bound::Idle));

    let (woken, state) = wake(&zero, state, 9, at(703));
    assert_eq!((woken.desired_replicas, woken.bound_by), (3, Bound::Wake));
    // The gateways' means still say zero: the wake holds.
    let (held, _) = horizontal(&zero, state, demand(0.0, 0.0), at(705));
    assert_eq!((held.desired_replicas, held.bound_by), (3, Bound::Hold));
}

#[test]
fn a_state_reads_back_as_it_was_written() {
    let mut state = State::new(2, at(1));
    run(&policy(), &mut state, 40.0, 5, 50, None);
    let text = serde_json::to_string(&state).expect("serialises");
    assert_eq!(serde_json::from_str::<State>(&text).expect("reads"), state);
}

fn any_policy() -> impl Strategy<Value = HorizontalPolicy> {
    (0..5_u32, 1..50_u32, any::<bool>(), 1..20_u32, 0..100_u32).prop_map(
        |(min, more, zero, target, provisioned)| HorizontalPolicy {
            min_replicas: min,
            max_replicas: min + more,
            scale_to_zero: zero,
            target_concurrency: target,
            provisioned_concurrency: provisioned,
            ..policy()
        },
    )
}

/// A load, a gap, or a start-up time that was measured, each 5 s.
fn any_observations() -> impl Strategy<Value = Vec<Observation>> {
    let load = proptest::option::weighted(0.8, 0.0..400.0_f64);
    let one = (load.clone(), load, proptest::option::of(0..90_u64));
    let one = one.prop_map(|(long, short, startup)| Observation {
        demand_long: long.and_then(Concurrency::new),
        demand_short: short.and_then(Concurrency::new),
        startup: startup.map(Duration::from_secs),
    });
    proptest::collection::vec(one, 1..120)
}

proptest! {
    #[test]
    fn decisions_stay_within_their_bounds_and_keep_the_hold(
        policy in any_policy(), observations in any_observations(), start in 0..60_u32,
    ) {
        let mut state = State::new(start, at(0));
        let mut needs: Vec<(u64, u32)> = Vec::new();
        for (i, observation) in observations.into_iter().enumerate() {
            let second = 5 * (i as u64 + 1);
            let previous = state.desired();
            let (decision, next) = horizontal(&policy, state, observation, at(second));
            state = next;
            let desired = decision.desired_replicas;
            prop_assert!(policy.floor() <= desired && desired <= policy.max_replicas);
            let Some(need) = decision.inputs.need else {
                let kept = previous.clamp(policy.floor(), policy.max_replicas);
                prop_assert_eq!(desired, kept);
                continue;
            };
            needs.push((second, need));
            // Nothing that the hold still needs is given up.
            let hold = policy.hold(observation.startup).as_secs();
            let held = needs.iter().filter(|(at, _)| second - at <= hold);
            let largest = held.map(|(_, need)| *need).max().unwrap_or(0);
            let kept = largest.min(previous.max(need)).min(policy.max_replicas);
            prop_assert!(desired >= kept);
        }
    }

    #[test]
    fn more_demand_never_asks_for_fewer_replicas(
        policy in any_policy(), history in any_observations(),
        low in 0.0..300.0_f64, more in 0.0..300.0_f64,
    ) {
        let mut state = State::new(1, at(0));
        let mut second = 0;
        for observation in history {
            second += 5;
            state = horizontal(&policy, state, observation, at(second)).1;
        }
        let desired = |load: f64| {
            let observation = demand(load, load);
            horizontal(&policy, state.clone(), observation, at(second + 5)).0.desired_replicas
        };
        prop_assert!(desired(low + more) >= desired(low));
    }
}
