//! What is told of what happens to a fleet: each thing by its cause, once, and in its order.

mod sim;

use scheduler_core::events::{Filter, MAX_OF_ENDPOINT};
use shared::api::events::{EventInfo, EventKind, Severity};
use shared::ids::{EndpointName, NodeName};
use sim::fixtures::{bounded, config, create, entity};
use sim::{Behaviour, Sim};

fn events(sim: &mut Sim) -> Vec<EventInfo> {
    // What waits for the store is shown a second later.
    let filter = Filter::default();
    sim.core.events().newest(&filter, usize::MAX).events
}

fn since(sim: &mut Sim, seq: u64) -> Vec<EventInfo> {
    events(sim).into_iter().filter(|it| it.seq > seq).collect()
}

fn last_seq(sim: &mut Sim) -> u64 {
    sim.step();
    events(sim).last().map_or(0, |event| event.seq)
}

fn kinds(events: &[EventInfo]) -> Vec<String> {
    events.iter().map(|event| event.kind.to_string()).collect()
}

/// `KIND message: cause`, without what chance decides.
fn told(events: &[EventInfo]) -> Vec<String> {
    let told = events.iter();
    told.map(|it| format!("{} {}: {}", it.kind, it.message, it.cause))
        .collect()
}

fn of(events: &[EventInfo], kind: EventKind) -> Vec<EventInfo> {
    let of_kind = events.iter().filter(|event| event.kind == kind);
    of_kind.cloned().collect()
}

/// One replica of `iris` on one of two nodes.
fn deployed() -> Sim {
    let mut sim = Sim::new();
    sim.add_node("n1");
    sim.add_node("n2");
    sim.push_model("iris", Behaviour::starts_in(5));
    sim.steps(2);
    sim.create(create("iris", config(vec![bounded("iris", 1, 1, 4)])))
        .expect("valid");
    sim.until("deployed", 30, |sim| {
        sim.update_state("iris") == "NOT_UPDATING"
    });
    sim.step();
    sim
}

fn home(sim: &Sim) -> NodeName {
    let route = sim.route("iris").expect("there");
    route.entities[0].replicas[0].node.clone()
}

#[test]
fn a_deployment_is_told_step_by_step_with_numbers() {
    let mut sim = deployed();
    let events = events(&mut sim);
    let of_iris: Vec<EventInfo> = events
        .iter()
        .filter(|event| event.subject.endpoint.is_some())
        .cloned()
        .collect();
    insta::assert_snapshot!(told(&of_iris).join("\n"));
    assert!(events.iter().all(|event| event.count == 1));
    assert!(events.is_sorted_by_key(|event| (event.unix_ms, event.seq)));
    let pulled = of(&events, EventKind::ImagePulled);
    assert_eq!(pulled.len(), 2, "on each node: {:?}", told(&pulled));
}

#[test]
fn nothing_is_told_while_nothing_happens() {
    let mut sim = deployed();
    sim.set_load("iris", "iris-1", 3.0);
    let seq = last_seq(&mut sim);
    sim.steps(300);
    assert_eq!(kinds(&since(&mut sim, seq)), [""; 0]);
}

#[test]
fn a_restart_tells_nothing_and_goes_on_counting() {
    let mut sim = deployed();
    // One that cannot be placed: told before, and not again.
    let mut large = bounded("iris", 1, 1, 1);
    large.stokehold.get_or_insert_default().memory_bytes = Some(900 << 30);
    sim.create(create("large", config(vec![large])))
        .expect("valid");
    sim.steps(3);
    let before = events(&mut sim);
    assert_eq!(of(&before, EventKind::NoRoom).len(), 1);
    sim.restart_scheduler();
    assert_eq!(events(&mut sim), before, "kept as they were");
    sim.steps(30);
    let seq = before.last().expect("some").seq;
    assert_eq!(told(&since(&mut sim, seq)), [""; 0]);
    sim.push_model("iris", Behaviour::starts_in(1));
    sim.update("iris", config(vec![entity("iris", 2)]))
        .expect("valid");
    sim.step();
    let next = since(&mut sim, seq);
    assert_eq!(next[0].seq, seq + 1);
    assert_eq!(next[0].kind, EventKind::RolloutStarted);
    assert_eq!(next[0].cause, "iris-2 is iris/2");
}

#[test]
fn a_crash_is_told_with_its_exit_and_a_loop_of_crashes_is_counted() {
    let mut sim = deployed();
    let seq = last_seq(&mut sim);
    sim.must_serve.clear();
    let broken = Behaviour {
        startup_s: 0,
        exit: Some((137, true)),
        never_healthy: false,
    };
    for behaviour in sim.behaviours.values_mut() {
        *behaviour = broken;
    }
    sim.steps(3);
    let first = since(&mut sim, seq);
    let failed = of(&first, EventKind::ReplicaFailed);
    let exit = failed[0].exit.expect("its agent told");
    assert_eq!(
        (exit.code, exit.signal, exit.out_of_memory),
        (137, Some(9), true)
    );
    assert!(
        failed[0].cause.contains("killed for memory"),
        "{}",
        failed[0].cause
    );
    assert_eq!(failed[0].severity, Severity::Warning);
    assert_eq!(kinds(&first)[..2], ["ReplicaFailed", "ReplicaPlaced"]);

    sim.steps(600);
    let all = since(&mut sim, seq);
    assert!(all.len() <= 8, "on two nodes: {:#?}", told(&all));
    let failures: u32 = of(&all, EventKind::ReplicaFailed)
        .iter()
        .map(|it| it.count)
        .sum();
    let noted = sim
        .notes
        .iter()
        .filter(|it| it.text.starts_with("replica failed"));
    assert_eq!(failures as usize, noted.count(), "each failure once");
    assert!(failures >= 10, "{failures}");
}

#[test]
fn load_is_told_with_the_numbers_that_decided() {
    let mut sim = deployed();
    let seq = last_seq(&mut sim);
    sim.set_load("iris", "iris-1", 5.0);
    sim.until("two replicas", 25, |sim| sim.serving("iris") >= 2);
    sim.step();
    let up = of(&since(&mut sim, seq), EventKind::Scaled);
    let last = up.last().expect("told");
    let scale = last.scale.as_ref().expect("numbers");
    assert!(scale.to >= 2 && scale.target_concurrency == 4, "{scale:?}");
    assert!(scale.demand.is_some_and(|demand| demand > 4.0), "{scale:?}");
    assert!(!last.cause.is_empty() && !scale.bound_by.is_empty());

    let seq = last_seq(&mut sim);
    sim.set_load("iris", "iris-1", 100.0);
    sim.steps(20);
    let capped = of(&since(&mut sim, seq), EventKind::Scaled);
    let last = capped.last().expect("told");
    assert_eq!(last.scale.as_ref().expect("numbers").to, 4, "the maximum");

    let seq = last_seq(&mut sim);
    sim.set_load("iris", "iris-1", 1.0);
    sim.until("one again", 600, |sim| sim.containers("iris") == 1);
    sim.steps(2);
    let down = since(&mut sim, seq);
    let drained = of(&down, EventKind::ReplicaDraining);
    assert_eq!(drained.len(), 3, "{:#?}", told(&down));
    assert!(
        drained
            .iter()
            .all(|it| it.cause == "fewer replicas are wanted")
    );
    assert_eq!(of(&down, EventKind::ReplicaStopped).len(), 3);
}

#[test]
fn zero_and_back_is_told_with_the_request_that_woke_it() {
    let mut settings = sim::fixtures::settings();
    settings.scale_to_zero_idle = std::time::Duration::from_secs(120);
    let mut sim = Sim::with(settings);
    sim.add_node("n1");
    sim.push_model("iris", Behaviour::starts_in(2));
    sim.steps(2);
    let mut input = entity("iris", 1);
    input.scale_to_zero_enabled = Some(true);
    sim.create(create("iris", config(vec![input])))
        .expect("valid");
    sim.until("at zero", 220, |sim| {
        sim.update_state("iris") == "NOT_UPDATING" && sim.containers("iris") == 0
    });
    sim.set_load("iris", "iris-1", 1.0);
    let id = sim.load.keys().next().expect("one").clone();
    sim.send(scheduler_core::Event::Demand { id, queued: 1 });
    sim.steps(2);
    let scaled = of(&events(&mut sim), EventKind::Scaled);
    let bounds: Vec<_> = scaled
        .iter()
        .map(|it| it.scale.as_ref().expect("numbers"))
        .map(|it| (it.from, it.to))
        .collect();
    assert_eq!(bounds, [(1, 0), (0, 1)]);
}

#[test]
fn a_node_that_goes_and_comes_back_is_told_with_what_it_carried() {
    let mut sim = deployed();
    sim.set_load("iris", "iris-1", 2.0);
    let name = home(&sim);
    let seq = last_seq(&mut sim);
    sim.must_serve.clear();
    sim.node(name.as_str()).reachable = false;
    sim.steps(30);
    sim.node(name.as_str()).reachable = true;
    sim.steps(20);
    let all = since(&mut sim, seq);
    let of_node: Vec<String> = all
        .iter()
        .filter(|event| event.subject.node.as_ref() == Some(&name))
        .map(|event| event.kind.to_string())
        .collect();
    assert_eq!(
        of_node[..4],
        [
            "NodeDisconnected",
            "NodeDisconnected",
            "NodeLost",
            "ReplicaLost"
        ],
        "agent and gateway"
    );
    for kind in [
        EventKind::NodeConnected,
        EventKind::NodeBack,
        EventKind::ReplicaBack,
    ] {
        assert!(of_node.contains(&kind.to_string()), "{kind}: {of_node:?}");
    }
    assert_eq!(of(&all, EventKind::NodeLost).len(), 1);
    let lost = &of(&all, EventKind::NodeLost)[0];
    assert_eq!(
        lost.cause,
        "it said nothing for more than its lease of 15 s"
    );
}

#[test]
fn probes_that_fail_and_a_roll_out_that_does_are_told_as_warnings() {
    let mut sim = deployed();
    let name = home(&sim);
    let seq = last_seq(&mut sim);
    sim.must_serve.clear();
    let sick = sim.route("iris").expect("there").entities[0].replicas[0].clone();
    sim.node(name.as_str()).sick.push(sick.id.clone());
    sim.until("replaced", 75, |sim| sim.serving("iris") == 0);
    sim.until("replaced", 75, |sim| sim.serving("iris") == 1);
    sim.step();
    let all = since(&mut sim, seq);
    let unhealthy = of(&all, EventKind::ReplicaUnhealthy);
    assert_eq!(unhealthy.len(), 1);
    assert_eq!(unhealthy[0].cause, "its probes fail");
    let failed = of(&all, EventKind::ReplicaFailed);
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].cause, "not ready for 60 s: its probes fail");
    let stopped = of(&all, EventKind::ReplicaStopped);
    assert_eq!(stopped.len(), 0, "its failure has told its end");

    let seq = last_seq(&mut sim);
    let broken = Behaviour {
        startup_s: 1,
        exit: Some((1, false)),
        never_healthy: false,
    };
    sim.push_model("iris", broken);
    sim.update("iris", config(vec![entity("iris", 2)]))
        .expect("valid");
    sim.until("failed", 60, |sim| {
        sim.update_state("iris") == "UPDATE_FAILED"
    });
    sim.step();
    let failed = of(&since(&mut sim, seq), EventKind::RolloutFailed);
    assert_eq!(failed.len(), 1);
    assert_eq!(
        failed[0].message,
        "config version 2 failed at iris-2; what served goes on"
    );
    assert!(
        failed[0].cause.starts_with("3 starts failed"),
        "{}",
        failed[0].cause
    );
}

#[test]
fn what_cannot_be_placed_is_told_once_with_what_is_missing_where() {
    let mut sim = Sim::new();
    sim.add_node("n1");
    sim.node("n1").capacity.memory_bytes = 300 << 20;
    sim.push_model("iris", Behaviour::starts_in(1));
    sim.steps(2);
    sim.create(create("iris", config(vec![entity("iris", 1)])))
        .expect("valid");
    sim.steps(120);
    let told = of(&events(&mut sim), EventKind::NoRoom);
    assert_eq!(told.len(), 1);
    assert_eq!(
        (told[0].count, told[0].cause.as_str()),
        (
            1,
            "no node has 1 GiB memory free: n1 has 300 MiB of 300 MiB; ask for less with --memory \
             (stokehold.memory_bytes), or add a larger node"
        )
    );
    sim.node("n1").capacity.memory_bytes = 200 << 20;
    sim.steps(5);
    let told = of(&events(&mut sim), EventKind::NoRoom);
    assert_eq!(
        (told.len(), told[0].count),
        (1, 2),
        "another reason, a minute later"
    );
    assert!(
        told[0].cause.contains("200 MiB of 200 MiB"),
        "{}",
        told[0].cause
    );
}

#[test]
fn fetches_that_fail_are_counted_and_told_to_the_endpoint_that_waits() {
    use shared::report::{HoldState, ModelStatus};
    let mut sim = deployed();
    let name = home(&sim);
    let seq = last_seq(&mut sim);
    let report = |sim: &mut Sim, state: HoldState| {
        let now = sim.now;
        let node = sim.node(name.as_str());
        let mut report = node.agent_report(now);
        let manifest = report.models[0].manifest;
        report.models = vec![ModelStatus { manifest, state }];
        let node = name.clone();
        sim.send(scheduler_core::Event::AgentReport { node, report });
    };
    let fetching = HoldState::Fetching {
        have_bytes: 1,
        total_bytes: 2,
    };
    for reason in ["disk full", "disk full", "connection lost"] {
        let reason = reason.to_owned();
        report(&mut sim, HoldState::Failed { reason });
        report(&mut sim, fetching.clone());
        report(&mut sim, fetching.clone());
    }
    report(&mut sim, HoldState::Ready);
    report(&mut sim, HoldState::Ready);
    sim.step();
    let all = since(&mut sim, seq);
    assert_eq!(kinds(&all), ["ModelFetchFailed", "ModelFetched"]);
    let failed = &all[0];
    assert_eq!(
        (failed.count, failed.cause.as_str()),
        (3, "connection lost")
    );
    assert_eq!(failed.subject.model.as_deref(), Some("iris/1"));
    let endpoint = EndpointName::parse("iris").expect("valid");
    assert_eq!(failed.subject.endpoint, Some(endpoint));
}

#[test]
fn a_deleted_endpoints_events_stay_until_newer_ones_need_their_place() {
    let mut sim = deployed();
    sim.must_serve.clear();
    sim.delete("iris").expect("exists");
    sim.steps(20);
    let all = events(&mut sim);
    assert_eq!(
        of(&all, EventKind::EndpointDeleted)[0].cause,
        "its replica drains"
    );
    let stopped = of(&all, EventKind::ReplicaStopped);
    assert_eq!(stopped[0].cause, "no config asks for it any more");
    // A new one of that name shows its own ones only.
    sim.create(create("iris", config(vec![bounded("iris", 1, 1, 4)])))
        .expect("the name is free");
    sim.until("deployed", 30, |sim| {
        sim.update_state("iris") == "NOT_UPDATING"
    });
    sim.step();
    let described = sim.core.describe("iris").expect("exists").events;
    assert_eq!(described[0].kind, EventKind::EndpointCreated);
    for max in 5..5 + u32::try_from(MAX_OF_ENDPOINT).expect("small") {
        let changed = config(vec![bounded("iris", 1, 1, max)]);
        sim.update("iris", changed).expect("valid");
        sim.until("done", 5, |sim| sim.update_state("iris") == "NOT_UPDATING");
    }
    // So many at once are written over some seconds.
    sim.steps(10);
    let kept = events(&mut sim);
    assert!(kept.len() <= MAX_OF_ENDPOINT + 20, "{}", kept.len());
    assert_eq!(of(&kept, EventKind::EndpointDeleted), []);
    let stored = sim.entries.keys().filter(|key| key.starts_with("event/"));
    assert_eq!(stored.count(), kept.len(), "the store holds what is kept");
}
