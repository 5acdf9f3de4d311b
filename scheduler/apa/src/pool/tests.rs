use super::*;
use proptest::prelude::*;

const LEAD: Duration = Duration::from_secs(120);

fn minute(minute: u64) -> MonoTime {
    MonoTime::from_secs(minute * 60)
}

fn seen(claims: u32) -> Observation {
    Observation {
        claims: Some(claims),
        lead: Some(LEAD),
        known: 0,
    }
}

/// A pool and its clock.
struct Pool {
    policy: Policy,
    state: State,
    minute: u64,
}

impl Pool {
    fn new(policy: Policy) -> Self {
        Self {
            policy,
            state: State::new(&policy),
            minute: 0,
        }
    }

    fn observe(&mut self, observation: &Observation) -> Decision {
        self.minute += 1;
        let state = self.state.clone();
        let (decision, state) = decide(&self.policy, state, observation, minute(self.minute));
        self.state = state;
        decision
    }

    fn claims(&mut self, claims: &[u32]) -> u32 {
        for claims in claims {
            self.observe(&seen(*claims));
        }
        self.state.size()
    }
}

#[test]
fn a_pool_that_nobody_claims_from_stays_at_its_minimum() {
    let mut pool = Pool::new(Policy {
        min: 2,
        ..Policy::default()
    });
    assert_eq!(pool.claims(&[0; 200]), 2);
    assert_eq!(pool.observe(&seen(0)).explanation.rule, "minimum");
}

#[test]
fn claims_raise_the_pool_at_once_and_it_shrinks_by_one_or_a_twentieth_a_minute() {
    let mut pool = Pool::new(Policy::default());
    pool.claims(&[0; 10]);
    let up = pool.observe(&seen(100));
    assert_eq!((up.before, up.after), (0, 100));
    assert_eq!(up.explanation.rule, "lead-time-demand");
    pool.claims(&[0; 500]);
    assert_eq!(pool.state.size(), 0);
    // The six hours that knew of the burst are over; nothing but the pace is left.
    pool.state.size = 100;
    let down = pool.observe(&seen(0));
    assert_eq!((down.before, down.after), (100, 95));
    assert_eq!(down.explanation.rule, "slow-down");
}

#[test]
fn a_minute_that_nothing_is_known_of_changes_nothing() {
    let mut pool = Pool::new(Policy::default());
    pool.claims(&[3, 0, 4, 2]);
    let before = pool.state.clone();
    let unknown = Observation {
        claims: None,
        ..seen(0)
    };
    let decision = pool.observe(&unknown);
    assert_eq!(
        (decision.after, &*decision.explanation.rule),
        (before.size(), "no-data")
    );
    assert_eq!(pool.state, before);
    // Nor does the same minute a second time.
    pool.minute -= 1;
    pool.claims(&[1]);
    let once = pool.state.clone();
    pool.minute -= 1;
    pool.claims(&[50]);
    assert_eq!(pool.state, once);
}

#[test]
fn known_claims_come_on_top_and_are_said() {
    let mut pool = Pool::new(Policy::default());
    pool.claims(&[2; 30]);
    let without = pool.state.size();
    let decision = pool.observe(&Observation {
        known: 7,
        ..seen(2)
    });
    assert_eq!(decision.after, without + 7);
    assert_eq!(decision.explanation.rule, "known-claims");
    assert!(
        decision.explanation.because.contains("7 more"),
        "{}",
        decision.explanation.because
    );
}

#[test]
fn the_maximum_binds_and_says_so() {
    let mut pool = Pool::new(Policy {
        max: 5,
        ..Policy::default()
    });
    pool.claims(&[0; 5]);
    let decision = pool.observe(&seen(40));
    assert_eq!(
        (decision.after, &*decision.explanation.rule),
        (5, "maximum")
    );
}

#[test]
fn a_longer_lead_time_holds_more() {
    let size = |lead| {
        let mut pool = Pool::new(Policy::default());
        for _ in 0..200 {
            pool.observe(&Observation {
                lead: Some(Duration::from_secs(lead)),
                ..seen(1)
            });
        }
        pool.state.size()
    };
    assert_eq!([10, 60, 61, 600].map(size), [1, 1, 2, 10]);
}

#[test]
fn what_came_at_this_time_on_earlier_days_is_held_ready_today() {
    let day = |busy: bool| {
        (0..1440_u32).map(move |m| {
            if busy && (600..620).contains(&m) {
                3
            } else {
                0
            }
        })
    };
    let mut pool = Pool::new(Policy::default());
    for _ in 0..4 {
        pool.claims(&day(true).collect::<Vec<_>>());
    }
    pool.claims(&day(true).take(400).collect::<Vec<_>>());
    let quiet = pool.state.size();
    pool.claims(&[0; 199]);
    assert_eq!(quiet, 0);
    assert_eq!(
        pool.state.size(),
        6,
        "two minutes of three claims, before the first came"
    );
}

#[test]
fn a_dearer_miss_holds_more() {
    let claims: Vec<u32> = (0..600)
        .map(|m| u32::from(m % 7 == 0) * (1 + m % 5))
        .collect();
    let size = |miss_cost| {
        Pool::new(Policy {
            miss_cost,
            ..Policy::default()
        })
        .claims(&claims)
    };
    assert!(size(1.0) < size(50.0), "{} {}", size(1.0), size(50.0));
}

#[test]
fn a_lead_time_is_the_ninetieth_percentile_of_the_last_fifty() {
    let mut leads = LeadTimes::default();
    assert_eq!(leads.get(), None);
    leads.record(Duration::from_secs(999));
    for second in 1..=50 {
        leads.record(Duration::from_secs(second));
    }
    assert_eq!(leads.get(), Some(Duration::from_secs(45)));
}

#[test]
fn a_state_that_was_written_down_goes_on_with_its_days_on_another_clock() {
    let mut pool = Pool::new(Policy::default());
    let day: Vec<u32> = (0..1440)
        .map(|m| u32::from((600..620).contains(&m)) * 3)
        .collect();
    pool.claims(&day);
    pool.claims(&day);
    let text = serde_json::to_string(&pool.state).expect("JSON");
    assert!(text.len() < 4_000, "{}", text.len());
    let state: State = serde_json::from_str(&text).expect("read");
    assert_eq!(state, pool.state);
    // Eight hours later, on a clock that has just begun.
    let away = Duration::from_secs(480 * 60);
    let mut again = Pool {
        policy: pool.policy,
        state: state.resume(Some(away), minute(1)),
        minute: 1,
    };
    assert_eq!(again.claims(&[0; 60]), 0);
    assert!(again.claims(&[0; 57]) >= 3, "the time of day is known");
    let tau = pool.state.tau;
    let forgetful = pool.state.resume(None, minute(1));
    assert_eq!(forgetful.tau, tau);
    assert_eq!(forgetful.history, History::default());
}

prop_compose! {
    fn observations()(
        minutes in proptest::collection::vec(
            (proptest::option::weighted(0.9, 0_u32..30), 0_u32..4, 1_u64..400),
            1..150,
        ),
    ) -> Vec<Observation> {
        let observation = |(claims, known, lead)| Observation {
            claims,
            known,
            lead: Some(Duration::from_secs(lead)),
        };
        minutes.into_iter().map(observation).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_pool_stays_in_its_bounds_and_falls_no_faster_than_allowed(
        observations in observations(), min in 0_u32..5, room in 0_u32..40,
    ) {
        let policy = Policy { min, max: min + room, ..Policy::default() };
        let mut pool = Pool::new(policy);
        for observation in observations {
            let decision = pool.observe(&observation);
            prop_assert!((policy.min..=policy.max).contains(&decision.after));
            let most = (decision.before / 20).max(1);
            prop_assert!(decision.before.saturating_sub(decision.after) <= most);
            prop_assert_eq!(decision.after, pool.state.size());
        }
    }

    #[test]
    fn more_claims_in_a_minute_never_ask_for_less(
        observations in observations(), claims in 0_u32..40, more in 0_u32..40, known in 0_u32..5,
    ) {
        let mut pool = Pool::new(Policy::default());
        for observation in observations {
            pool.observe(&observation);
        }
        let now = minute(pool.minute + 1);
        let after = |claims, known| {
            let observation = Observation { known, ..seen(claims) };
            decide(&pool.policy, pool.state.clone(), &observation, now).0.after
        };
        prop_assert!(after(claims + more, known) >= after(claims, known));
        prop_assert!(after(claims, known + 1) >= after(claims, known));
    }

    #[test]
    fn the_share_to_suffice_in_stays_within_its_clip(
        observations in observations(), miss_cost in prop_oneof![Just(0.0), Just(1e300), 0.1..1e5],
    ) {
        let mut pool = Pool::new(Policy { miss_cost, ..Policy::default() });
        for observation in observations {
            pool.observe(&observation);
            if let Some(tau) = pool.state.tau {
                prop_assert!((TAU_MIN..=TAU_MAX).contains(&tau), "{tau}");
            }
        }
    }

    #[test]
    fn no_claim_count_and_no_clock_panics(
        steps in proptest::collection::vec((any::<u32>(), any::<u64>(), any::<u32>()), 1..20),
        away in proptest::option::of(0_u64..u64::MAX / 2),
    ) {
        let policy = Policy::default();
        let mut state = State::new(&policy);
        for (claims, millis, known) in steps {
            let observation = Observation {
                claims: Some(claims),
                lead: Some(Duration::from_millis(millis)),
                known,
            };
            let now = MonoTime::from_millis(millis);
            let (decision, next) = decide(&policy, state, &observation, now);
            prop_assert!(decision.after <= policy.max);
            state = next.resume(away.map(Duration::from_secs), MonoTime::ZERO);
        }
    }
}
