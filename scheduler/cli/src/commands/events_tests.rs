//! Events as they are shown.

use std::time::UNIX_EPOCH;

use shared::api::events::EventKind;
use shared::ids::ReplicaId;

use super::*;

fn event(seq: u64, kind: EventKind, subject: Subject, message: &str, cause: &str) -> EventInfo {
    let unix_ms = 999_000_000 + seq * 60_000;
    EventInfo {
        seq,
        unix_ms,
        first_unix_ms: unix_ms,
        count: 1,
        severity: Severity::Normal,
        kind,
        subject,
        message: message.into(),
        cause: cause.into(),
        exit: None,
        scale: None,
    }
}

fn iris() -> Subject {
    Subject {
        endpoint: Some("iris".parse().expect("name")),
        ..Subject::default()
    }
}

fn replica() -> Subject {
    Subject {
        entity: Some("iris-1".parse().expect("name")),
        replica: Some(ReplicaId::from_bits(0x0123_4567_89ab_cdef)),
        node: Some("n1".parse().expect("name")),
        ..iris()
    }
}

fn some() -> Vec<EventInfo> {
    let entity = Subject {
        replica: None,
        node: None,
        ..replica()
    };
    let node = Subject {
        node: Some("n1".parse().expect("name")),
        ..Subject::default()
    };
    let model = Subject {
        model: Some("iris/2".into()),
        ..Subject::default()
    };
    let mut failed = event(
        7,
        EventKind::ReplicaFailed,
        replica(),
        "replica on n1 failed",
        "killed for memory (exit code 137): the limit is 1 GiB, raise memory_bytes or lower the load",
    );
    failed.severity = Severity::Warning;
    failed.count = 5;
    failed.first_unix_ms -= 190_000;
    vec![
        event(
            1,
            EventKind::SchedulerStarted,
            Subject::default(),
            "scheduler 0.1.0 started",
            "",
        ),
        event(
            2,
            EventKind::NodeJoined,
            node,
            "node n1 joined as agent",
            "it redeemed a join token",
        ),
        event(
            3,
            EventKind::ModelPushed,
            model,
            "model iris/2 is registered",
            "pushed by token admin",
        ),
        event(
            4,
            EventKind::EndpointCreated,
            iris(),
            "endpoint iris created",
            "asked for by token admin",
        ),
        event(
            5,
            EventKind::ReplicaPlaced,
            replica(),
            "replica placed on n1",
            "1 wanted, 1 there or coming",
        ),
        event(
            6,
            EventKind::Scaled,
            entity,
            "iris-1 goes from 1 to 3 replicas",
            "9.6 requests at once, 4 a replica",
        ),
        failed,
    ]
}

#[test]
fn without_a_terminal_each_event_is_one_line() {
    let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
    insta::assert_snapshot!(table(&some(), now).render(None, false));
}

#[test]
fn a_table_of_events_fits_a_terminal_of_80_columns() {
    let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
    let text = table(&some(), now).render(Some(80), false);
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
    insta::assert_snapshot!(text);
}

#[test]
fn a_stream_has_one_line_an_event() {
    let lines: Vec<String> = some().iter().map(one_line).collect();
    insta::assert_snapshot!(anstream::adapter::strip_str(&lines.join("\n")));
}

#[test]
fn control_characters_of_a_cause_do_not_reach_the_terminal() {
    let event = event(
        1,
        EventKind::ReplicaFailed,
        replica(),
        "failed",
        "a\u{1b}[2Jb\nc",
    );
    assert_eq!(text(&event), "failed: a[2Jbc");
}
