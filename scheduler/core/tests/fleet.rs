//! Whole lives of endpoints on a simulated cluster.

mod sim;

use std::collections::BTreeSet;

use shared::ids::{ImageRef, NodeName};
use shared::plan::{ImageOrigin, PlannedImage};
use shared::report::Gpu;
use sim::fixtures::{bounded, config, create, entity};
use sim::{Behaviour, Sim};

/// Two nodes and an endpoint `iris` that serves version 1.
fn deployed() -> Sim {
    let mut sim = Sim::new();
    sim.add_node("n1");
    sim.add_node("n2");
    sim.push_model("iris", Behaviour::starts_in(3));
    sim.steps(2);
    let input = create("iris", config(vec![bounded("iris", 1, 1, 4)]));
    let made = sim.create(input).expect("valid");
    assert_eq!(made.state.config_update, "IN_PROGRESS");
    sim.until("iris serves", 20, |sim| {
        sim.update_state("iris") == "NOT_UPDATING"
    });
    sim.must_serve = vec!["iris".into()];
    sim
}

#[test]
fn a_first_deployment_is_pending_until_its_replica_is_ready_and_every_gateway_knows() {
    let mut sim = Sim::new();
    sim.add_node("n1");
    sim.add_node("n2");
    sim.push_model("iris", Behaviour::starts_in(3));
    sim.steps(2);
    let made = sim
        .create(create("iris", config(vec![entity("iris", 1)])))
        .expect("valid");
    assert_eq!(made.config, None);
    let pending = made.pending_config.expect("pending");
    assert_eq!(pending.config_version, 1);
    assert_eq!(
        pending.served_entities[0].state.deployment,
        "DEPLOYMENT_CREATING"
    );
    assert_eq!(sim.serving("iris"), 0);
    let route = sim.route("iris").expect("requests may wait for it");
    assert_eq!(route.entities[0].percent, 100);

    sim.until("done", 20, |sim| sim.update_state("iris") == "NOT_UPDATING");
    let acked: Vec<_> = sim.nodes.values().map(sim::SimNode::acked).collect();
    let current = Some((sim.routes.epoch, sim.routes.revision));
    assert_eq!(acked, [current, current]);
    assert_eq!(sim.serving("iris"), 1);
    let made = sim.get("iris");
    assert_eq!(made.state.ready, "READY");
    assert_eq!(made.pending_config, None);
    assert_eq!(made.config.expect("active").config_version, 1);
}

#[test]
fn an_update_takes_over_without_a_gap_and_cuts_no_request() {
    let mut sim = deployed();
    sim.set_load("iris", "iris-1", 3.0);
    sim.push_model("iris", Behaviour::starts_in(6));
    sim.steps(5);
    sim.update("iris", config(vec![entity("iris", 2)]))
        .expect("valid");
    sim.until("the new version serves", 40, |sim| {
        let route = sim.route("iris").expect("there");
        route.entities.iter().any(|entity| {
            entity.name.as_str() == "iris-2"
                && entity.percent == 100
                && entity.replicas.iter().any(|it| !it.draining)
        })
    });
    let route = sim.route("iris").expect("there");
    let old = route
        .entities
        .iter()
        .find(|it| it.name.as_str() == "iris-1");
    let old = old.expect("still known while it drains");
    assert!(old.percent == 0 && old.replicas.iter().all(|it| it.draining));
    sim.until("only the new version is left", 20, |sim| {
        sim.containers("iris") == 1 && sim.update_state("iris") == "NOT_UPDATING"
    });
    assert_eq!(sim.get("iris").config.expect("active").config_version, 2);
}

#[test]
fn a_gateway_that_hangs_holds_a_drain_up_to_its_deadline_only() {
    let mut sim = deployed();
    sim.push_model("iris", Behaviour::starts_in(1));
    sim.update("iris", config(vec![entity("iris", 2)]))
        .expect("valid");
    // A gateway that hangs is connected and never takes the new routes.
    sim.must_serve.clear();
    sim.node("n2").gateway_hangs = true;
    sim.until("switched", 30, |sim| {
        let route = sim.route("iris").expect("there");
        let draining = route.entities.iter().flat_map(|it| &it.replicas);
        draining.into_iter().any(|it| it.draining)
    });
    sim.steps(25);
    assert_eq!(sim.containers("iris"), 2);
    assert_eq!(sim.update_state("iris"), "NOT_UPDATING");
    sim.until("drained all the same", 15, |sim| {
        sim.containers("iris") == 1
    });
    assert!(sim.noted("replica stops at its drain deadline"));
}

#[test]
fn a_gateway_that_has_just_lost_the_scheduler_keeps_its_routes_replicas_for_a_lease() {
    let mut sim = deployed();
    let home = sim.route("iris").expect("there").entities[0].replicas[0].clone();
    let cut_off = ["n1", "n2"]
        .into_iter()
        .find(|it| *it != home.node.as_str());
    let cut_off = cut_off.expect("two nodes");
    sim.push_model("iris", Behaviour::starts_in(1));
    // It goes on serving by the routes that it has, which name the old replica alone.
    sim.node(cut_off).reachable = false;
    sim.step();
    sim.update("iris", config(vec![entity("iris", 2)]))
        .expect("valid");
    sim.until("switched", 30, |sim| {
        let route = sim.route("iris").expect("there");
        let replicas = route.entities.iter().flat_map(|it| &it.replicas);
        replicas.into_iter().any(|it| it.draining)
    });
    // The next scheduler does not know what that gateway has taken, either. Each step checks that
    // every gateway's routes name a replica that serves.
    sim.restart_scheduler();
    sim.steps(12);
    assert_eq!(sim.containers("iris"), 2);
    // Past its lease nobody waits for it any more.
    sim.must_serve.clear();
    sim.until("the old one is gone", 10, |sim| sim.containers("iris") == 1);
    assert!(!sim.noted("replica stops at its drain deadline"));
}

#[test]
fn a_roll_out_waits_for_as_many_replicas_after_a_restart_as_before_it() {
    let mut sim = deployed();
    let bounded = shared::api::serving::ServedEntityInput {
        stokehold: Some(shared::api::serving::StokeholdEntity {
            max_replicas: Some(1),
            target_concurrency: Some(sim::fixtures::TARGET),
            ..Default::default()
        }),
        ..entity("iris", 1)
    };
    sim.update("iris", config(vec![bounded])).expect("valid");
    sim.set_load("iris", "iris-1", 12.0);
    sim.steps(25);
    // One replica is all that the old config allows; the new one's must be able to carry the load.
    sim.push_model("iris", Behaviour::starts_in(30));
    sim.update("iris", config(vec![entity("iris", 2)]))
        .expect("valid");
    sim.steps(5);
    assert_eq!(sim.containers("iris"), 4);
    sim.restart_scheduler();
    sim.steps(10);
    assert_eq!(sim.containers("iris"), 4);
}

#[test]
fn events_that_come_together_may_share_one_pass() {
    let mut sim = deployed();
    let before = sim.core.routes().revision;
    let names: Vec<_> = sim.nodes.keys().cloned().collect();
    let mut rng = rand::rng();
    let mut ctx = scheduler_core::Ctx {
        now: sim.now,
        unix_ms: 0,
        rng: &mut rng,
    };
    for node in names {
        let down = scheduler_core::Event::GatewayDown { node };
        let (effects, pass_due) = sim.core.take_in(down, &mut ctx);
        assert!(pass_due && effects.plans.is_empty() && effects.writes.is_empty());
    }
    sim.core.pass(&mut ctx);
    assert_eq!(sim.core.routes().revision, before);
    assert_eq!(sim.core.census().replicas.get("ready"), Some(&1));
}

#[test]
fn an_update_that_fails_leaves_the_old_version_serving_and_says_why() {
    let mut sim = deployed();
    let broken = Behaviour {
        startup_s: 1,
        exit: Some((137, true)),
        never_healthy: false,
    };
    sim.push_model("iris", broken);
    sim.update("iris", config(vec![entity("iris", 2)]))
        .expect("valid");
    sim.until("failed", 60, |sim| {
        sim.update_state("iris") == "UPDATE_FAILED"
    });
    let made = sim.get("iris");
    assert_eq!(made.state.ready, "READY");
    assert_eq!(made.config.expect("old").config_version, 1);
    let pending = made.pending_config.expect("kept");
    let state = &pending.served_entities[0].state;
    assert_eq!(state.deployment, "DEPLOYMENT_FAILED");
    let message = &state.deployment_state_message;
    assert!(
        message.starts_with("3 starts failed, the last on n")
            && message.contains("killed for memory")
            && message.contains("it reached its limit of 1 GiB"),
        "{message}"
    );
    sim.steps(10);
    assert_eq!(
        sim.containers("iris"),
        1,
        "nothing of the failed one is left"
    );

    sim.push_model("iris", Behaviour::starts_in(1));
    let again = sim
        .update("iris", config(vec![entity("iris", 3)]))
        .expect("a failed update is replaced");
    assert_eq!(again.pending_config.expect("new").config_version, 3);
    sim.until("done", 30, |sim| sim.update_state("iris") == "NOT_UPDATING");
}

#[test]
fn a_deployment_that_cannot_be_placed_says_what_is_missing_and_fails_at_its_deadline() {
    let mut settings = sim::fixtures::settings();
    settings.deploy_deadline = std::time::Duration::from_secs(30);
    let mut sim = Sim::with(settings);
    sim.add_node("n1");
    sim.node("n1").capacity.memory_bytes = 300 << 20;
    sim.push_model("iris", Behaviour::starts_in(1));
    sim.steps(2);
    sim.create(create("iris", config(vec![entity("iris", 1)])))
        .expect("valid");
    let message = |sim: &Sim| {
        let pending = sim.get("iris").pending_config.expect("pending");
        pending.served_entities[0].state.clone()
    };
    sim.steps(1);
    let missing = "no node has 1 GiB memory free: n1 has 300 MiB of 300 MiB; ask for less with --memory \
                   (stokehold.memory_bytes), or add a larger node";
    assert_eq!(message(&sim).deployment_state_message, missing);
    sim.steps(31);
    assert_eq!(sim.update_state("iris"), "UPDATE_FAILED");
    let state = message(&sim);
    assert_eq!(state.deployment, "DEPLOYMENT_FAILED");
    assert_eq!(
        state.deployment_state_message,
        format!("not ready within 30 s: {missing}")
    );
    assert_eq!(sim.get("iris").state.ready, "NOT_READY");
}

#[test]
fn what_no_node_could_hold_may_be_replaced_at_once_and_what_waits_for_room_may_not() {
    let mut sim = Sim::new();
    sim.add_node("n1");
    sim.push_model("iris", Behaviour::starts_in(1));
    sim.push_model("other", Behaviour::starts_in(1));
    sim.steps(2);
    let total = sim.node("n1").capacity.memory_bytes;
    let with_memory = |model: &str, bytes: u64| {
        let mut input = sim::fixtures::bounded(model, 1, 1, 1);
        if let Some(ours) = &mut input.stokehold {
            ours.memory_bytes = Some(bytes);
        }
        config(vec![input])
    };
    sim.create(create("iris", with_memory("iris", total + 1)))
        .expect("valid");
    sim.steps(2);
    assert_eq!(sim.update_state("iris"), "IN_PROGRESS");
    sim.update("iris", with_memory("iris", total / 10 * 6))
        .expect("nothing of the first can happen");
    sim.until("done", 30, |sim| sim.update_state("iris") == "NOT_UPDATING");
    sim.create(create("other", with_memory("other", total / 10 * 6)))
        .expect("valid");
    sim.steps(2);
    let refused = sim.update("other", with_memory("other", total / 10));
    assert_eq!(refused.expect_err("it may find room").status, 409);
    sim.delete("iris").expect("there");
    sim.until("done", 60, |sim| {
        sim.update_state("other") == "NOT_UPDATING"
    });
}

#[test]
fn a_missing_image_is_named_and_its_import_goes_on_with_the_deployment() {
    let mut sim = Sim::new();
    let reference = sim::fixtures::image().reference;
    let ops = sim
        .core
        .registry
        .delete_image(&reference, &|_| None)
        .expect("there");
    sim.write(ops);
    sim.registry_changed();
    sim.add_node("n1");
    sim.push_model("iris", Behaviour::starts_in(1));
    sim.steps(2);
    sim.create(create("iris", config(vec![entity("iris", 1)])))
        .expect("valid");
    let pending = sim.get("iris").pending_config.expect("pending");
    assert_eq!(
        pending.served_entities[0].state.deployment_state_message,
        "image stokehold.local/runtime-mlflow:1 is not imported: stokehold image import FILE"
    );
    sim.import_image();
    sim.until("done", 20, |sim| sim.update_state("iris") == "NOT_UPDATING");
}

#[test]
fn an_image_that_its_registry_does_not_give_says_why_until_it_is_there() {
    let reference = ImageRef::parse("registry.example/team/mlflow:1").expect("valid");
    let mut settings = sim::fixtures::settings();
    for template in settings.templates.values_mut() {
        template.image = reference.clone();
    }
    let mut sim = Sim::with(settings);
    sim.add_node("n1");
    sim.push_model("iris", Behaviour::starts_in(1));
    sim.steps(2);
    let missing = BTreeSet::from([reference.clone()]);
    assert_eq!(sim.core.unresolved_images(), missing);
    assert_eq!(sim.core.images_needed(&[entity("iris", 1)]), missing);
    assert_eq!(
        sim.core.images_needed(&[entity("nothing", 1)]),
        BTreeSet::new()
    );

    sim.create(create("iris", config(vec![entity("iris", 1)])))
        .expect("valid");
    let message = |sim: &Sim| {
        let pending = sim.get("iris").pending_config.expect("pending");
        let state = pending.served_entities[0].state.clone();
        state.deployment_state_message
    };
    assert!(message(&sim).contains("is being asked for at its registry"));
    let problem = || Some("no login: write one".to_owned());
    assert!(sim.core.note_image_problem(&reference, problem()));
    assert!(
        !sim.core.note_image_problem(&reference, problem()),
        "it is no news"
    );
    sim.steps(2);
    assert_eq!(message(&sim), "no login: write one");
    let told = sim.core.image_list();
    assert_eq!(told.missing[0].reason, "no login: write one");

    let image = PlannedImage {
        reference: reference.clone(),
        origin: ImageOrigin::Registry,
        ..sim::fixtures::image()
    };
    let ops = sim.core.registry.register_image(image, 1).expect("taken");
    sim.write(ops);
    sim.registry_changed();
    sim.until("done", 20, |sim| sim.update_state("iris") == "NOT_UPDATING");
    assert_eq!(sim.core.unresolved_images(), BTreeSet::new());
    let told = sim.core.image_list();
    let ours = told
        .images
        .iter()
        .find(|image| image.reference == reference);
    let nodes = &ours.expect("listed").nodes;
    assert_eq!((nodes.planned, nodes.ready), (1, 1));
}

#[test]
fn a_runtime_that_needs_gpus_has_its_image_only_on_nodes_with_as_many() {
    let mut settings = sim::fixtures::settings();
    let mut vllm = sim::fixtures::template("vllm");
    vllm.image = ImageRef::parse("registry.example/vllm:1").expect("valid");
    vllm.resources.gpus = 1;
    settings.templates.insert(vllm.name.clone(), vllm.clone());
    let mut sim = Sim::with(settings);
    let image = PlannedImage {
        reference: vllm.image.clone(),
        origin: ImageOrigin::Registry,
        ..sim::fixtures::image()
    };
    let ops = sim.core.registry.register_image(image, 1).expect("taken");
    sim.write(ops);
    sim.registry_changed();
    sim.add_node("n1");
    sim.add_node("n2");
    sim.node("n2").capacity.gpus = vec![Gpu {
        uuid: "GPU-1".into(),
        name: "H100".into(),
        memory_bytes: 80 << 30,
    }];
    sim.steps(3);
    let holds = |sim: &Sim, node: &str| {
        let plan = sim.core.plan_for(&NodeName::parse(node).expect("valid"));
        let images = plan.expect("a plan").images;
        images.iter().any(|image| image.reference == vllm.image)
    };
    assert!(!holds(&sim, "n1"));
    assert!(holds(&sim, "n2"));
}

#[test]
fn load_brings_replicas_at_once_and_its_end_takes_them_only_after_the_hold() {
    let mut sim = deployed();
    sim.set_load("iris", "iris-1", 10.0);
    let took = sim.until("three replicas", 25, |sim| sim.serving("iris") >= 3);
    assert!(took <= 20, "took {took} s");
    let on: Vec<usize> = sim.nodes.values().map(|it| it.containers.len()).collect();
    assert!(on.iter().all(|count| *count >= 1), "spread: {on:?}");
    // Starts took five seconds: the hold is twenty of them, and most of it was busy.
    sim.steps(90);
    sim.set_load("iris", "iris-1", 1.0);
    sim.steps(60);
    assert!(sim.serving("iris") >= 3, "held");
    sim.until("one replica again", 240, |sim| {
        sim.serving("iris") == 1 && sim.containers("iris") == 1
    });
}

#[test]
fn an_idle_entity_goes_to_zero_and_a_waiting_request_brings_it_back_at_once() {
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
    sim.until("serves", 20, |sim| {
        sim.update_state("iris") == "NOT_UPDATING"
    });
    assert_eq!(sim.serving("iris"), 1, "what is new starts once");
    sim.until("at zero", 200, |sim| sim.containers("iris") == 0);
    let state = |sim: &Sim| {
        sim.get("iris").config.expect("active").served_entities[0]
            .state
            .clone()
    };
    assert_eq!(state(&sim).deployment_state_message, "Scaled to zero");
    assert_eq!(sim.get("iris").state.ready, "READY");

    sim.set_load("iris", "iris-1", 1.0);
    let id = sim.load.keys().next().expect("one").clone();
    sim.send(scheduler_core::Event::Demand { id, queued: 1 });
    assert_eq!(state(&sim).deployment_state_message, "Scaling from zero");
    let took = sim.until("serves again", 10, |sim| sim.serving("iris") == 1);
    assert!(took <= 6, "took {took} s");
}

#[test]
fn a_lost_nodes_replicas_are_replaced_and_drain_when_it_comes_back_with_them() {
    let mut sim = deployed();
    sim.set_load("iris", "iris-1", 1.0);
    sim.steps(3);
    let home = sim.route("iris").expect("there").entities[0].replicas[0].clone();
    let other = if home.node.as_str() == "n1" {
        "n2"
    } else {
        "n1"
    };
    // The machine loses the scheduler, and goes on serving.
    sim.node(home.node.as_str()).reachable = false;
    sim.steps(10);
    assert_eq!(sim.serving("iris"), 1, "kept within its lease");
    sim.must_serve.clear(); // Between the lease's end and the replacement nobody serves.
    sim.until("replaced", 20, |sim| {
        let route = sim.route("iris").expect("there");
        let replicas = &route.entities[0].replicas;
        replicas.len() == 1 && replicas[0].node.as_str() == other
    });
    assert!(sim.noted("node lost"));
    sim.node(home.node.as_str()).reachable = true;
    sim.until("one is left, and no request was cut", 20, |sim| {
        sim.serving("iris") == 1 && sim.containers("iris") == 1
    });
}

#[test]
fn a_dead_nodes_replicas_are_replaced_and_nothing_of_them_comes_back() {
    let mut sim = deployed();
    let home = sim.route("iris").expect("there").entities[0].replicas[0].clone();
    sim.must_serve.clear();
    sim.node(home.node.as_str()).crash();
    sim.until("replaced", 40, |sim| {
        let replicas = &sim.route("iris").expect("there").entities[0].replicas;
        replicas.len() == 1 && replicas[0].node != home.node
    });
    let node = sim.node(home.node.as_str());
    node.running = true;
    node.plan = None;
    sim.steps(5);
    assert_eq!(sim.containers("iris"), 1);
    assert_eq!(sim.stored_replicas().len(), 1);
}

#[test]
fn a_restarted_scheduler_moves_nothing() {
    let mut sim = deployed();
    sim.set_load("iris", "iris-1", 10.0);
    sim.until("three replicas", 25, |sim| sim.serving("iris") >= 3);
    // A restart in the middle of a change would be told by the change, not by the restart.
    sim.steps(10);
    sim.push_model("iris", Behaviour::starts_in(20));
    sim.update("iris", config(vec![entity("iris", 2)]))
        .expect("valid");
    sim.steps(6);
    let contents = |sim: &Sim| -> Vec<_> {
        let plans = sim.nodes.keys().filter_map(|name| sim.core.plan_for(name));
        plans
            .map(|plan| (plan.node, plan.images, plan.models, plan.replicas))
            .collect()
    };
    let routed = |sim: &Sim| sim.routes.endpoints.clone();
    let (plans, routes) = (contents(&sim), routed(&sim));
    assert!(plans.iter().map(|plan| plan.3.len()).sum::<usize>() >= 5);

    sim.restart_scheduler();
    assert_eq!(routed(&sim), routes, "routes name what was ready");
    assert_eq!(contents(&sim), [], "no plan before a node has reported");
    sim.step();
    assert_eq!(contents(&sim), plans);
    assert_eq!(routed(&sim), routes);
    sim.steps(30);
    sim.until("the roll-out goes on to its end", 60, |sim| {
        sim.update_state("iris") == "NOT_UPDATING"
    });
}

#[test]
fn a_node_that_stays_away_after_a_restart_is_lost_only_after_its_lease() {
    let mut sim = deployed();
    let home = sim.route("iris").expect("there").entities[0].replicas[0].clone();
    sim.restart_scheduler();
    sim.node(home.node.as_str()).reachable = false;
    sim.steps(14);
    assert_eq!(sim.serving("iris"), 1);
    assert_eq!(sim.containers("iris"), 1, "nothing is started meanwhile");
    sim.must_serve.clear();
    sim.until("replaced", 20, |sim| sim.containers("iris") == 2);
}

#[test]
fn a_failed_replica_is_replaced_with_growing_pauses_and_another_id() {
    let mut sim = deployed();
    let first = sim.route("iris").expect("there").entities[0].replicas[0].clone();
    sim.must_serve.clear();
    // From now on the model crashes at its start.
    let broken = Behaviour {
        startup_s: 0,
        exit: Some((1, false)),
        never_healthy: false,
    };
    for behaviour in sim.behaviours.values_mut() {
        *behaviour = broken;
    }
    sim.steps(60);
    let failures = sim
        .notes
        .iter()
        .filter(|note| note.text.starts_with("replica failed: exited with code 1,"))
        .count();
    assert!(
        (4..=7).contains(&failures),
        "{failures} failures in a minute"
    );
    let made = sim.get("iris");
    assert_eq!(made.state.ready, "NOT_READY");
    assert_eq!(made.state.config_update, "NOT_UPDATING");
    let state = made.config.expect("active").served_entities[0]
        .state
        .clone();
    assert_eq!(state.deployment, "DEPLOYMENT_RECOVERING");
    assert!(
        state
            .deployment_state_message
            .contains("exited with code 1"),
        "{}",
        state.deployment_state_message
    );
    let described = sim.core.describe("iris").expect("exists");
    let ended = described.replicas.iter().find(|it| it.id == first.id);
    let ended = ended.expect("kept for its log");
    assert!(ended.ended && ended.state == "failed");
    let found = sim.core.replica_location("iris", Some("iris-1"));
    assert!(found.expect("known").iter().any(|(id, _)| *id == first.id));

    for behaviour in sim.behaviours.values_mut() {
        *behaviour = Behaviour::starts_in(1);
    }
    sim.until("recovered", 70, |sim| {
        sim.get("iris").state.ready == "READY"
    });
}

#[test]
fn a_replica_whose_probes_fail_leaves_the_routes_and_is_replaced_after_a_minute() {
    let mut sim = deployed();
    let sick = sim.route("iris").expect("there").entities[0].replicas[0].clone();
    sim.must_serve.clear();
    sim.node(sick.node.as_str()).sick.push(sick.id.clone());
    sim.steps(2);
    assert_eq!(sim.serving("iris"), 0);
    assert_eq!(sim.stored_replicas().len(), 1, "kept: it may recover");
    sim.until("replaced", 75, |sim| sim.serving("iris") == 1);
    assert!(sim.noted("not ready for 60 s: its probes fail"));
}

#[test]
fn a_replica_that_never_answers_its_probes_has_failed_at_its_start_deadline() {
    let mut sim = Sim::new();
    sim.add_node("n1");
    let mute = Behaviour {
        never_healthy: true,
        ..Behaviour::starts_in(0)
    };
    sim.push_model("iris", mute);
    sim.steps(2);
    sim.create(create("iris", config(vec![entity("iris", 1)])))
        .expect("valid");
    sim.until("a start failed", 70, |sim| {
        sim.noted("replica failed: not healthy within 60 s of its start")
    });
    sim.until("given up", 200, |sim| {
        sim.update_state("iris") == "UPDATE_FAILED"
    });
}

#[test]
fn a_gateway_that_restarts_takes_no_replica_out_of_the_routes() {
    let mut sim = deployed();
    let home = sim.route("iris").expect("there").entities[0].replicas[0].clone();
    sim.node(home.node.as_str()).gateway_running = false;
    sim.steps(5);
    assert_eq!(sim.serving("iris"), 1);
    sim.node(home.node.as_str()).gateway_running = true;
    sim.steps(5);
    assert_eq!(sim.serving("iris"), 1);
    assert!(!sim.noted("replica is not ready"));
}

#[test]
fn a_deleted_endpoint_leaves_the_routes_at_once_and_its_replicas_drain() {
    let mut sim = deployed();
    sim.set_load("iris", "iris-1", 2.0);
    sim.steps(3);
    sim.must_serve.clear();
    sim.delete("iris").expect("exists");
    assert_eq!(sim.route("iris"), None);
    assert_eq!(sim.containers("iris"), 1, "still draining");
    sim.until("gone", 20, |sim| sim.containers("iris") == 0);
    sim.steps(2);
    assert!(sim.core.get_endpoint("iris").is_err());
    assert_eq!(sim.stored_replicas().len(), 0);
    assert!(!sim.entries.keys().any(|key| key.starts_with("endpoint/")));
}

#[test]
fn a_name_may_be_used_again_while_the_old_endpoints_replicas_drain() {
    let mut sim = deployed();
    sim.must_serve.clear();
    let old = sim.get("iris").id;
    sim.delete("iris").expect("exists");
    let input = create("iris", config(vec![bounded("iris", 1, 1, 4)]));
    let made = sim.create(input).expect("the name is free");
    assert_ne!(made.id, old);
    assert_eq!(made.pending_config.expect("new").config_version, 1);
    sim.until("the new one serves alone", 30, |sim| {
        sim.update_state("iris") == "NOT_UPDATING" && sim.containers("iris") == 1
    });
}

#[test]
fn a_change_of_bounds_and_traffic_starts_nothing() {
    let mut sim = deployed();
    let before = sim.stored_replicas();
    sim.update("iris", config(vec![bounded("iris", 1, 1, 9)]))
        .expect("valid");
    sim.until("done", 5, |sim| sim.update_state("iris") == "NOT_UPDATING");
    assert_eq!(sim.stored_replicas(), before);
    let config = sim.get("iris").config.expect("active");
    assert_eq!(config.config_version, 2);
    assert_eq!(config.served_entities[0].stokehold.max_replicas, Some(9));
}

#[test]
fn a_revoked_node_gets_no_plan_and_its_replicas_move() {
    let mut sim = deployed();
    let home = sim.route("iris").expect("there").entities[0].replicas[0].clone();
    sim.must_serve.clear();
    let ops = sim.core.registry.revoke(&home.node).expect("known");
    sim.write(ops);
    sim.registry_changed();
    assert_eq!(sim.closed.len(), 2, "agent and gateway: {:?}", sim.closed);
    assert_eq!(sim.core.plan_for(&home.node), None);
    sim.until("moved", 20, |sim| {
        let replicas = &sim.route("iris").expect("there").entities[0].replicas;
        replicas.len() == 1 && replicas[0].node != home.node
    });
    let revoked: Vec<NodeName> = sim.routes.revoked_nodes.clone();
    assert_eq!(revoked, [home.node]);
}
