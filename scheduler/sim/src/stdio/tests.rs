use serde_json::json;

use super::*;

const POLICY: &str = r#"{"policy":{"min_replicas":1,"max_replicas":20,"startup_s":5,
    "pinned_target_concurrency":4,"colour":"red"}}"#;

fn ready(policy: &str) -> Session {
    let mut session = Session::new();
    let answer = session.line(policy.as_bytes()).expect("accepted");
    assert_eq!(answer, r#"{"ready":true}"#);
    session
}

fn second(t: f64, active: f64) -> Value {
    json!({
        "t": t, "active": active, "queued": 0.0, "arrivals": active * 10.0,
        "completions": active * 10.0, "rejected": 0, "p50_ms": 100.0, "p95_ms": 120.0,
        "replicas_ready": 1, "replicas_starting": 0, "resources": {"cpu": 0.5, "gpu_sm": null}
    })
}

fn answered(session: &mut Session, line: &Value) -> Value {
    let answer = session.line(line.to_string().as_bytes()).expect("answered");
    serde_json::from_str(&answer).expect("JSON")
}

fn refused(session: &mut Session, line: &str) -> String {
    session
        .line(line.as_bytes())
        .expect_err("refused")
        .to_string()
}

#[test]
fn each_second_is_answered_with_orders_and_their_reasons() {
    let mut session = ready(POLICY);
    let answer = answered(&mut session, &second(0.0, 2.0));
    assert_eq!(answer["target_concurrency"], 4);
    assert_eq!(answer["warm"], 0);
    assert!(answer["desired_replicas"].is_u64());
    assert!(answer["why"]["horizontal"].is_string() && answer["why"]["vertical"].is_string());
    assert_eq!(answer.as_object().map(Map::len), Some(4));
}

#[test]
fn a_plant_that_is_run_in_process_gets_the_replicas_that_its_load_needs() {
    let mut session = ready(POLICY);
    // Every request takes 100 ms: 300 a second are 30 at once, 4 on each replica.
    let (mut ready, mut starting) = (1_u32, Vec::<(u32, u32)>::new());
    let mut desired = 1;
    for t in 0..120_u32 {
        let arrived: u32 = starting.iter().filter(|it| it.0 <= t).map(|it| it.1).sum();
        starting.retain(|it| it.0 > t);
        ready += arrived;
        let active = 30.0_f64.min(f64::from(ready) * 4.0);
        let mut line = second(f64::from(t), active);
        line["queued"] = json!(30.0 - active);
        line["arrivals"] = json!(300);
        line["replicas_ready"] = json!(ready);
        line["replicas_starting"] = json!(starting.iter().map(|it| it.1).sum::<u32>());
        let answer = answered(&mut session, &line);
        desired =
            u32::try_from(answer["desired_replicas"].as_u64().expect("a count")).expect("u32");
        let there = ready + starting.iter().map(|it| it.1).sum::<u32>();
        if desired > there {
            starting.push((t + 5, desired - there));
        } else {
            ready = ready.min(desired);
        }
    }
    assert!((8..=16).contains(&desired), "{desired}");
}

#[test]
fn starts_that_come_again_and_again_are_kept_warm_for() {
    let mut session = ready(r#"{"policy":{"startup_s":60,"pinned_target_concurrency":4}}"#);
    let mut most = 0;
    for t in 0..7200 {
        let load = if t % 900 < 300 { 40.0 } else { 2.0 };
        let answer = answered(&mut session, &second(f64::from(t), load));
        most = answer["warm"].as_u64().expect("a count").max(most);
    }
    assert!(most > 0);
}

#[test]
fn a_second_that_came_already_changes_nothing() {
    let mut session = ready(POLICY);
    for t in 0..10 {
        answered(&mut session, &second(f64::from(t), 2.0));
    }
    let standing = answered(&mut session, &second(10.0, 2.0));
    assert_eq!(answered(&mut session, &second(10.0, 1000.0)), standing);
    assert_eq!(answered(&mut session, &second(3.0, 1000.0)), standing);
    assert_eq!(answered(&mut session, &second(11.0, 2.0)), standing);
}

#[test]
fn seconds_that_are_left_out_or_null_are_gaps_and_not_zeros() {
    let mut session = ready(POLICY);
    let mut before = Value::Null;
    for t in 0..30 {
        before = answered(&mut session, &second(f64::from(t), 30.0));
    }
    let mut unknown = second(30.0, 0.0);
    for gauge in ["active", "queued", "p50_ms", "p95_ms", "resources"] {
        unknown[gauge] = Value::Null;
    }
    let kept = answered(&mut session, &unknown);
    assert_eq!(kept["desired_replicas"], before["desired_replicas"]);
    let after = answered(&mut session, &second(900.0, 30.0));
    assert_eq!(after["desired_replicas"], before["desired_replicas"]);
}

#[test]
fn the_gap_before_a_second_is_told_second_by_second_up_to_an_hour() {
    let at = MonoTime::from_secs;
    let told = |newest, now| missed(Some(at(newest)), now).collect::<Vec<_>>();
    assert_eq!(told(5, at(6)), []);
    assert_eq!(told(5, MonoTime::from_millis(6_200)), []);
    assert_eq!(told(5, at(8)), [at(6), at(7)]);
    assert_eq!(missed(None, at(1000)).count(), 0);
    let long = told(5, at(1_000_000));
    assert_eq!(long.len(), usize::try_from(LONGEST_GAP_S).expect("small"));
    assert_eq!(long.last(), Some(&at(999_999)));
}

#[test]
fn a_line_that_is_no_json_ends_the_run_with_its_number() {
    let mut session = ready(POLICY);
    answered(&mut session, &second(0.0, 2.0));
    let error = refused(&mut session, "{\"t\":1,");
    assert!(error.starts_with("line 3: not a line of JSON: "), "{error}");
    assert_eq!(
        refused(&mut session, "[1]"),
        "line 4: expected an object, found an array"
    );
    assert!(refused(&mut session, "").starts_with("line 5: not a line of JSON"));
    assert!(Session::new().line(b"{\"policy\":\xff}").is_err());
}

#[test]
fn what_is_missing_or_of_the_wrong_kind_is_named() {
    for field in [
        "t",
        "active",
        "queued",
        "arrivals",
        "completions",
        "replicas_ready",
    ] {
        let mut session = ready(POLICY);
        let mut line = second(0.0, 2.0);
        line.as_object_mut().expect("an object").remove(field);
        let expected = format!("line 2: field {field:?} is missing");
        assert_eq!(refused(&mut session, &line.to_string()), expected);
    }
    let mut line = second(0.0, 2.0);
    line["queued"] = json!("four");
    assert_eq!(
        refused(&mut ready(POLICY), &line.to_string()),
        "line 2: field \"queued\" is a string: expected a number or null"
    );
    line = second(-1.0, 2.0);
    assert_eq!(
        refused(&mut ready(POLICY), &line.to_string()),
        "line 2: field \"t\" is -1.0: expected seconds since the start, not negative"
    );
}

#[test]
fn the_documented_lines_are_understood_as_they_stand() {
    let text = include_str!("../../../../docs/simulator.md");
    let (_, section) = text.split_once("(--stdio)").expect("the section");
    let lines: Vec<&str> = section
        .lines()
        .filter(|line| line.starts_with('{'))
        .collect();
    let [policy, asked, answer] = lines[..] else {
        panic!("a policy, a second and an answer: {lines:?}");
    };
    let mut session = ready(policy);
    let given = session.line(asked.as_bytes()).expect("understood");
    let fields = |line: &str| -> Vec<String> {
        let value: Value = serde_json::from_str(line).expect("JSON");
        value
            .as_object()
            .expect("an object")
            .keys()
            .cloned()
            .collect()
    };
    assert_eq!(fields(&given), fields(answer));
}

#[test]
fn what_may_be_left_out_may_be_left_out() {
    let mut session = ready(r#"{"policy":{}}"#);
    let line = json!({"t": 0, "active": 1, "queued": 0, "arrivals": 1, "completions": 1,
        "replicas_ready": 1});
    assert!(answered(&mut session, &line)["desired_replicas"].is_u64());
}

#[test]
fn a_policy_that_cannot_be_is_refused() {
    let refusals = [
        (r"{}", "field \"policy\" is missing"),
        (
            r#"{"policy":3}"#,
            "field \"policy\" is a number: expected an object",
        ),
        (
            r#"{"policy":{"max_replicas":0}}"#,
            "field \"max_replicas\" is 0: expected a whole number of at least 1",
        ),
        (
            r#"{"policy":{"min_replicas":300}}"#,
            "field \"min_replicas\" is 300: expected no more than max_replicas",
        ),
        (
            r#"{"policy":{"startup_s":-1}}"#,
            "field \"startup_s\" is -1: expected a length of time that is not negative",
        ),
        (
            r#"{"policy":{"scale_to_zero":1}}"#,
            "field \"scale_to_zero\" is 1: expected true or false",
        ),
    ];
    for (line, expected) in refusals {
        assert_eq!(
            refused(&mut Session::new(), line),
            format!("line 1: {expected}")
        );
    }
}

#[test]
fn huge_and_impossible_numbers_are_no_panic() {
    let mut session = ready(POLICY);
    for (t, value) in [1e300, -5.0, 0.0, 1e18, 2.0].into_iter().enumerate() {
        let mut line = second(t as f64, value);
        for field in ["replicas_ready", "replicas_starting", "p95_ms", "arrivals"] {
            line[field] = json!(value);
        }
        let desired = answered(&mut session, &line)["desired_replicas"].as_u64();
        assert!(
            desired.is_some_and(|it| (1..=20).contains(&it)),
            "{desired:?}"
        );
    }
}
