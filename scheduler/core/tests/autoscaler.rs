//! The autoscaler in the core: what gateways and agents report becomes replicas, targets in routes,
//! series and decisions that explain themselves. Nothing here hangs on a number that an axis finds;
//! only on what any of them must keep to.

mod sim;

use std::collections::BTreeSet;

use scheduler_core::{Event, SeriesQuery};
use shared::api::autoscaler::{ExplainedEntity, SeriesPoint, TargetOrigin};
use shared::api::serving::{ServedEntityInput, StokeholdEntity};
use shared::ids::NodeName;
use sim::fixtures::{bounded, config, create, entity, learning};
use sim::{Behaviour, Sim};

const NODES: [&str; 2] = ["n1", "n2"];

/// An endpoint `iris` on two nodes.
fn deployed(input: ServedEntityInput) -> Sim {
    let mut sim = Sim::new();
    for node in NODES {
        sim.add_node(node);
    }
    sim.push_model("iris", Behaviour::starts_in(3));
    sim.steps(2);
    sim.create(create("iris", config(vec![input])))
        .expect("valid");
    sim.until("iris serves", 30, |sim| {
        sim.update_state("iris") == "NOT_UPDATING"
    });
    sim.must_serve = vec!["iris".into()];
    sim
}

/// One that learns, with so many replicas at most.
fn learner(max_replicas: u32) -> Sim {
    deployed(ServedEntityInput {
        stokehold: Some(StokeholdEntity {
            max_replicas: Some(max_replicas),
            ..StokeholdEntity::default()
        }),
        ..learning("iris", 1)
    })
}

fn unix_ms(sim: &Sim) -> u64 {
    1_700_000_000_000 + sim.now.as_millis()
}

fn explained(sim: &Sim) -> ExplainedEntity {
    let explained = sim.core.explain("iris", None, unix_ms(sim));
    let mut entities = explained.expect("exists").entities;
    assert_eq!(entities.len(), 1);
    entities.remove(0)
}

fn series(sim: &Sim, resolution_s: u32, seconds: u64) -> Vec<SeriesPoint> {
    let query = SeriesQuery {
        entity: None,
        resolution_s,
        since_unix_ms: Some(unix_ms(sim) - seconds * 1000),
    };
    let series = sim.core.series("iris", &query, unix_ms(sim));
    series.expect("exists").points
}

/// What most replicas take, as the gateways are told.
fn routed_target(sim: &Sim) -> u32 {
    let route = sim.route("iris").expect("there");
    let entity = route.entities.iter().find(|it| it.percent == 100);
    entity.expect("it has the traffic").target_concurrency
}

fn placed(sim: &Sim) -> BTreeSet<String> {
    let stored = sim.stored_replicas();
    stored.iter().map(ToString::to_string).collect()
}

#[test]
fn demand_brings_replicas_and_every_decision_says_what_it_was_made_from() {
    let mut sim = deployed(bounded("iris", 1, 1, 6));
    sim.steps(30);
    let quiet = explained(&sim);
    assert_eq!((quiet.ready_replicas, quiet.desired_replicas), (1, 1));
    sim.set_load("iris", "iris-1", 12.0);
    sim.until("capacity for it", 60, |sim| sim.serving("iris") >= 3);
    sim.steps(60);
    let busy = explained(&sim);
    assert!((3..=6).contains(&busy.desired_replicas), "{busy:?}");
    assert!(busy.startup_s.is_some_and(|startup| startup > 0.0));
    let now = busy.now.expect("measured");
    assert_eq!((now.active, now.queued), (12.0, 0.0));
    assert!(!busy.horizontal.is_empty());
    for decision in &busy.horizontal {
        assert!(!decision.rule.is_empty(), "{decision:?}");
        assert!(!decision.because.is_empty(), "{decision:?}");
        assert!(!decision.would_change.is_empty(), "{decision:?}");
        assert!(!decision.inputs.is_empty(), "{decision:?}");
        assert!(decision.after <= 6, "{decision:?}");
    }
    assert!(busy.horizontal.is_sorted_by_key(|it| it.first_unix_ms));
    let changed: Vec<_> = busy
        .horizontal
        .iter()
        .filter(|it| it.before != it.after)
        .collect();
    let last = changed.last().expect("it grew");
    assert_eq!(last.after, busy.desired_replicas);
    assert!(changed.windows(2).all(|two| two[0].after == two[1].before));
    // Decisions that change nothing are counted.
    let made: u32 = busy.horizontal.iter().map(|it| it.count).sum();
    assert!(made as usize > busy.horizontal.len(), "{made}");
    let census = sim.core.census().decisions;
    assert!(census["horizontal"].values().sum::<u64>() >= u64::from(made));
}

#[test]
fn a_pinned_target_stays_whatever_the_replicas_do() {
    let mut sim = deployed(entity("iris", 1));
    for node in NODES {
        sim.node(node).knee = 2.0;
    }
    sim.set_load("iris", "iris-1", 14.0);
    for _ in 0..400 {
        sim.step();
        assert_eq!(routed_target(&sim), 4);
    }
    let explained = explained(&sim);
    let origins: Vec<_> = explained.targets.iter().map(|it| it.origin).collect();
    assert_eq!(origins, [TargetOrigin::Pinned]);
    assert_eq!(explained.targets[0].explore, None);
    let config = sim.get("iris").config.expect("active");
    let ours = &config.served_entities[0].stokehold;
    assert_eq!(ours.target_concurrency, Some(4));
}

#[test]
fn a_learned_target_climbs_under_load_and_changes_routes_only_by_decisions() {
    let mut sim = learner(4);
    assert_eq!(explained(&sim).targets[0].origin, TargetOrigin::Guess);
    let config = sim.get("iris").config.expect("active");
    let ours = &config.served_entities[0].stokehold;
    assert_eq!(
        ours.target_concurrency, None,
        "what is learned is not asked for"
    );
    sim.set_load("iris", "iris-1", 60.0);
    let first = routed_target(&sim);
    let mut changes = 0;
    for _ in 0..600 {
        let before = sim.routes.revision;
        sim.step();
        changes += u32::from(sim.routes.revision != before);
    }
    assert!(
        routed_target(&sim) > first.max(4),
        "{}",
        routed_target(&sim)
    );
    assert!(changes < 80, "{changes} changes in 600 s");
    let vertical = explained(&sim).vertical;
    assert!(!vertical.is_empty());
    assert!(vertical.iter().all(|it| it.class.as_deref() == Some("cpu")));
    let described = sim.core.describe("iris").expect("exists").decisions;
    assert_eq!(described[0].target_concurrency, routed_target(&sim));
}

#[test]
fn a_replica_that_takes_another_number_than_its_siblings_is_one_of_several() {
    let mut sim = learner(4);
    sim.set_load("iris", "iris-1", 60.0);
    for second in 0..1200 {
        if second == 600 {
            sim.set_load("iris", "iris-1", 10.0);
        }
        sim.step();
        let route = sim.route("iris").expect("there");
        let replicas = &route.entities[0].replicas;
        let own: Vec<_> = replicas
            .iter()
            .filter(|it| it.target_concurrency.is_some())
            .collect();
        assert!(own.len() <= 1, "{own:?}");
        if let [explorer] = own[..] {
            let siblings = replicas.iter().filter(|it| !it.draining);
            assert!(siblings.count() >= 2, "{replicas:?}");
            assert!(explorer.target_concurrency > Some(route.entities[0].target_concurrency));
        }
    }
}

#[test]
fn what_was_learned_survives_a_restart_and_moves_no_replica() {
    let mut sim = learner(4);
    sim.set_load("iris", "iris-1", 60.0);
    sim.steps(600);
    let (target, replicas) = (routed_target(&sim), placed(&sim));
    let routes = sim.routes.endpoints.clone();
    let startup_s = explained(&sim).startup_s.expect("measured");
    assert!(target > 4);
    let record = sim
        .entries
        .iter()
        .find(|(key, _)| key.starts_with("learned/"));
    let (_, record) = record.expect("written");
    assert!(record.len() < 8 << 10, "{} bytes", record.len());
    // What changed is written within half a minute.
    sim.steps(31);
    sim.restart_scheduler();
    let known = explained(&sim);
    assert_eq!(known.startup_s, Some(startup_s));
    assert!(known.targets[0].target_concurrency >= target, "{known:?}");
    assert_eq!(sim.routes.endpoints.len(), routes.len());
    for _ in 0..20 {
        sim.step();
        assert!(routed_target(&sim) >= target, "{}", routed_target(&sim));
        assert_eq!(placed(&sim), replicas);
    }
}

#[test]
fn what_was_learned_goes_with_its_endpoint_and_is_written_seldom() {
    let mut sim = learner(2);
    sim.set_load("iris", "iris-1", 8.0);
    let learned = |sim: &Sim| -> Vec<(String, Vec<u8>)> {
        let records = sim.entries.iter();
        records
            .filter(|(key, _)| key.starts_with("learned/"))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    };
    let (mut writes, mut before) = (0, learned(&sim));
    assert_eq!(before.len(), 1);
    for _ in 0..300 {
        sim.step();
        let now = learned(&sim);
        writes += u32::from(now != before);
        before = now;
    }
    assert!((1..=11).contains(&writes), "{writes} in 300 s");
    sim.must_serve.clear();
    sim.delete("iris").expect("exists");
    sim.steps(60);
    assert_eq!(learned(&sim), []);
}

#[test]
fn a_record_that_is_not_understood_costs_what_was_learned_and_nothing_else() {
    let mut sim = learner(4);
    sim.set_load("iris", "iris-1", 3.0);
    sim.steps(60);
    let replicas = placed(&sim).len();
    let key = sim.entries.keys().find(|it| it.starts_with("learned/"));
    let key = key.expect("written").clone();
    sim.entries.insert(key, b"{\"v\":9}".to_vec());
    let orphan = "learned/00000000000000000000000000000001/x/1".to_owned();
    sim.entries.insert(orphan.clone(), b"{".to_vec());
    sim.restart_scheduler();
    sim.step();
    assert_eq!(placed(&sim).len(), replicas, "as many are wanted as were");
    sim.steps(5);
    assert!(!sim.entries.contains_key(&orphan), "nobody asks for it");
}

#[test]
fn a_gateway_that_is_silent_counts_as_before_and_then_nothing_is_known() {
    let mut sim = deployed(bounded("iris", 1, 1, 6));
    sim.set_load("iris", "iris-1", 12.0);
    sim.steps(60);
    let desired = explained(&sim).desired_replicas;
    sim.must_serve.clear();
    for node in NODES {
        sim.node(node).gateway_running = false;
    }
    sim.steps(14);
    let held = series(&sim, 1, 14);
    assert_eq!(held.len(), 14);
    assert!(held.iter().all(|it| it.active == 12.0), "{held:?}");
    sim.steps(40);
    assert_eq!(series(&sim, 1, 30), [], "unknown is no zero");
    assert_eq!(explained(&sim).desired_replicas, desired);
}

#[test]
fn a_report_between_two_seconds_does_not_read_as_no_traffic() {
    let mut sim = deployed(bounded("iris", 1, 1, 6));
    sim.set_load("iris", "iris-1", 3.0);
    sim.steps(10);
    for node in NODES {
        let load = sim.load.clone();
        let mut report = sim.node(node).gateway_report(&load, false);
        report.traffic.clear();
        for replica in &mut report.replicas {
            replica.load = None;
        }
        let node = NodeName::parse(node).expect("valid");
        sim.send(Event::GatewayReport { node, report });
    }
    sim.now = sim.now + std::time::Duration::from_secs(1);
    sim.send(Event::Tick);
    let last = explained(&sim).now.expect("measured");
    assert_eq!((last.active, last.completions), (3.0, 30.0));
    assert_eq!(last.p95_ms, Some(120.0), "of the replica itself");
}

#[test]
fn a_restarted_scheduler_takes_no_part_of_its_gateways_for_all_of_them() {
    let mut sim = deployed(bounded("iris", 1, 1, 6));
    sim.set_load("iris", "iris-1", 12.0);
    sim.steps(90);
    let (desired, replicas) = (explained(&sim).desired_replicas, placed(&sim));
    // The gateway that all clients use comes back late, and first tells what changed, not what it
    // carries.
    sim.restart_scheduler();
    for node in NODES {
        let load = sim.load.clone();
        let mut report = sim.node(node).gateway_report(&load, false);
        report.replicas.iter_mut().for_each(|it| it.load = None);
        let node = NodeName::parse(node).expect("valid");
        let (peer_address, client_address) = ("p:1".into(), "c:1".into());
        sim.send(Event::GatewayUp {
            node: node.clone(),
            peer_address,
            client_address,
        });
        sim.send(Event::GatewayReport { node, report });
    }
    sim.now = sim.now + std::time::Duration::from_secs(1);
    sim.send(Event::Tick);
    assert_eq!(explained(&sim).now, None, "not a whole second");
    sim.must_serve.clear();
    sim.node("n1").gateway_running = false;
    sim.steps(10);
    assert_eq!(
        explained(&sim).now,
        None,
        "half of the gateways say nothing"
    );
    assert_eq!(explained(&sim).desired_replicas, desired);
    sim.node("n1").gateway_running = true;
    sim.steps(5);
    assert!(explained(&sim).now.is_some());
    assert_eq!(placed(&sim), replicas);
}

#[test]
fn a_gateway_too_old_to_measure_replicas_leaves_the_sums_to_learn_from() {
    let mut sim = learner(2);
    for node in NODES {
        sim.node(node).gateway_measures = false;
    }
    sim.set_load("iris", "iris-1", 40.0);
    sim.steps(400);
    assert!(routed_target(&sim) > 4, "{}", routed_target(&sim));
    let point = explained(&sim).now.expect("measured");
    assert_eq!(point.p95_ms, Some(120.0));
}

#[test]
fn series_are_kept_in_three_resolutions_and_a_wrong_question_is_refused() {
    let mut sim = deployed(bounded("iris", 1, 1, 6));
    sim.set_load("iris", "iris-1", 3.0);
    sim.steps(700);
    assert_eq!(series(&sim, 1, 10_000).len(), 600);
    let tens = series(&sim, 10, 650);
    assert!((60..=65).contains(&tens.len()), "{}", tens.len());
    assert!(
        tens.iter()
            .all(|it| it.active == 3.0 && it.arrivals == 30.0)
    );
    assert!(
        tens.windows(2)
            .all(|two| two[1].unix_ms == two[0].unix_ms + 10_000)
    );
    let minutes = series(&sim, 60, 10_000);
    assert!((10..=12).contains(&minutes.len()), "{}", minutes.len());
    assert_eq!(
        minutes[5].memory,
        Some(0.252),
        "a quarter, in steps of 1/250"
    );
    assert_eq!(minutes[5].gpu_sm, None);

    let asked = |entity: Option<&str>, resolution_s| {
        let query = SeriesQuery {
            entity: entity.map(Into::into),
            resolution_s,
            since_unix_ms: None,
        };
        sim.core.series("iris", &query, unix_ms(&sim))
    };
    assert_eq!(asked(Some("other"), 1).expect_err("unknown").status, 404);
    let refused = asked(Some("iris-1"), 7).expect_err("not kept");
    assert!(refused.message.starts_with("resolution: "), "{refused}");
    assert_eq!(
        sim.core
            .explain("iris", Some("x"), 0)
            .expect_err("unknown")
            .status,
        404
    );
    assert_eq!(
        sim.core
            .explain("nobody", None, 0)
            .expect_err("unknown")
            .status,
        404
    );
}

#[test]
fn a_size_is_kept_as_concurrency_and_never_asks_for_more_than_its_maximum() {
    let sized = |pinned: Option<u32>| {
        deployed(ServedEntityInput {
            workload_size: Some("Medium".into()),
            stokehold: Some(StokeholdEntity {
                target_concurrency: pinned,
                ..StokeholdEntity::default()
            }),
            ..learning("iris", 1)
        })
    };
    // Eight requests at once: by what each replica takes.
    for (pinned, replicas) in [(Some(2), 4), (Some(4), 2), (Some(8), 1)] {
        let mut sim = sized(pinned);
        sim.steps(400);
        assert_eq!(sim.serving("iris"), replicas, "{pinned:?}");
        assert_eq!(explained(&sim).provisioned_concurrency, 8);
    }
    // While that is a guess, by the vendor's unit.
    assert_eq!(sized(None).serving("iris"), 2);
}

#[test]
fn a_new_version_is_rolled_out_with_what_the_old_one_learned() {
    let mut sim = learner(8);
    sim.set_load("iris", "iris-1", 24.0);
    sim.steps(600);
    let learned = routed_target(&sim);
    assert!(learned > 4, "{learned}");
    sim.push_model("iris", Behaviour::starts_in(30));
    sim.update("iris", config(vec![learning("iris", 2)]))
        .expect("valid");
    sim.steps(10);
    let needed = 24_u32.div_ceil(learned) as usize;
    let made = sim.core.describe("iris").expect("exists").replicas;
    let new = made
        .iter()
        .filter(|it| !it.ended && it.entity.as_str() == "iris-2");
    assert!(
        new.count() <= needed + 1,
        "one request a replica is not assumed"
    );
}
