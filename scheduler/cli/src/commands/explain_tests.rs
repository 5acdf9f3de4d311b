//! Explanations as they are shown.

use std::time::{Duration, UNIX_EPOCH};

use super::*;
use shared::api::autoscaler::SeriesPoint;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_000_000)
}

fn decision(age_s: u64, before: u32, after: u32, rule: &str, because: &str) -> DecisionRecord {
    let unix_ms = (1_000_000 - age_s) * 1000;
    DecisionRecord {
        unix_ms,
        first_unix_ms: unix_ms,
        count: 1,
        class: None,
        before,
        after,
        rule: rule.into(),
        because: because.into(),
        inputs: vec![
            DecisionInput {
                name: "mean of 20 s".into(),
                value: Some(31.25),
                unit: "requests".into(),
            },
            DecisionInput {
                name: "cpu".into(),
                value: Some(0.71),
                unit: "ratio".into(),
            },
            DecisionInput {
                name: "start-up".into(),
                value: None,
                unit: "s".into(),
            },
        ],
        would_change: "a need above 32 requests at once, or below 24 for longer than the hold of \
                       100 s"
            .into(),
    }
}

fn entity() -> ExplainedEntity {
    ExplainedEntity {
        entity: "iris-1".parse().expect("name"),
        now: Some(SeriesPoint {
            active: 29.0,
            queued: 2.25,
            arrivals: 290.0,
            p95_ms: Some(120.4),
            ..SeriesPoint::default()
        }),
        desired_replicas: 4,
        ready_replicas: 3,
        starting_replicas: 1,
        min_replicas: 1,
        max_replicas: 6,
        provisioned_concurrency: 8,
        latency_objective_ms: Some(250),
        startup_s: Some(4.8),
        targets: vec![TargetInfo {
            class: "cpu".into(),
            target_concurrency: 8,
            explore: Some(16),
            origin: TargetOrigin::Learned,
            bound_by: Some("knee".into()),
        }],
        horizontal: vec![
            DecisionRecord {
                count: 12,
                first_unix_ms: 999_900_000,
                ..decision(40, 3, 3, "hold", "27 requests at once were needed lately")
            },
            decision(
                12,
                3,
                4,
                "demand",
                "31.2 requests at once and their spread need 32.8, which is more than three \
                 replicas of 8 take",
            ),
        ],
        vertical: vec![DecisionRecord {
            class: Some("cpu".into()),
            ..decision(70, 16, 8, "knee", "beyond 8 a request only waits longer")
        }],
    }
}

fn plain(entities: Vec<ExplainedEntity>, decisions: usize) -> String {
    let explained = Explained {
        endpoint: "iris".parse().expect("name"),
        entities,
    };
    let shown = shown(&explained, decisions, now());
    anstream::adapter::strip_str(&shown).to_string()
}

#[test]
fn an_explanation_tells_how_things_stand_and_how_they_came_to_be_so() {
    insta::assert_snapshot!(plain(vec![entity()], 10));
}

#[test]
fn a_line_fits_eighty_columns_and_the_last_decisions_are_shown() {
    let mut long = entity();
    long.horizontal[1].because = "more and more words ".repeat(30);
    long.horizontal[0].rule = "older".into();
    let text = plain(vec![long], 1);
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
    assert!(!text.contains("older"), "{text}");
    assert!(text.contains("3 -> 4"), "{text}");
}

#[test]
fn what_is_pinned_or_not_measured_says_so() {
    let mut pinned = entity();
    pinned.targets[0].origin = TargetOrigin::Pinned;
    pinned.now = None;
    pinned.vertical.clear();
    let text = plain(vec![pinned], 0);
    assert!(text.contains("8 requests a replica, pinned"), "{text}");
    assert!(!text.contains("tries"), "{text}");
    assert!(text.contains("nothing was measured yet"), "{text}");
    assert!(text.contains("none yet"), "{text}");
}
