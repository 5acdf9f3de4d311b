//! Whatever happens in whatever order: the invariants of `sim::invariants` hold at each step, and
//! once things calm down the fleet is what its endpoints ask for.

mod sim;

use std::time::Duration;

use proptest::prelude::*;
use sim::fixtures::{bounded, config, create, split};
use sim::{Behaviour, Sim};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
const ENDPOINTS: [&str; 2] = ["a", "b"];

#[derive(Clone, Debug)]
enum Happening {
    Seconds(u64),
    Load { endpoint: usize, load: u32 },
    Push { behaviour: usize },
    Create { endpoint: usize, min: u32, max: u32 },
    Update { endpoint: usize, split: bool },
    Delete { endpoint: usize },
    Crash { node: usize },
    Boot { node: usize },
    Part { node: usize },
    Heal { node: usize },
    StopGateway { node: usize },
    StartGateway { node: usize },
    Sicken { node: usize },
    Revoke,
    Demand { endpoint: usize },
    RestartScheduler,
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    let node = 0..NODES.len();
    let endpoint = 0..ENDPOINTS.len();
    prop_oneof![
        8 => (1..30_u64).prop_map(Seconds),
        3 => (endpoint.clone(), 0..40_u32).prop_map(|(endpoint, load)| Load { endpoint, load }),
        2 => (0..5_usize).prop_map(|behaviour| Push { behaviour }),
        3 => (endpoint.clone(), 1..3_u32, 3..6_u32)
            .prop_map(|(endpoint, min, max)| Create { endpoint, min, max }),
        4 => (endpoint.clone(), any::<bool>())
            .prop_map(|(endpoint, split)| Update { endpoint, split }),
        1 => endpoint.clone().prop_map(|endpoint| Delete { endpoint }),
        1 => node.clone().prop_map(|node| Crash { node }),
        1 => node.clone().prop_map(|node| Boot { node }),
        1 => node.clone().prop_map(|node| Part { node }),
        2 => node.clone().prop_map(|node| Heal { node }),
        1 => node.clone().prop_map(|node| StopGateway { node }),
        1 => node.clone().prop_map(|node| StartGateway { node }),
        1 => node.prop_map(|node| Sicken { node }),
        1 => Just(Revoke),
        1 => endpoint.prop_map(|endpoint| Demand { endpoint }),
        2 => Just(RestartScheduler),
    ]
}

fn apply(sim: &mut Sim, happening: &Happening) {
    match *happening {
        Happening::Seconds(seconds) => sim.steps(seconds),
        Happening::Load { endpoint, load } => {
            for entity in ["x", "y"] {
                sim.set_load(ENDPOINTS[endpoint], entity, f64::from(load));
            }
        }
        Happening::Push { behaviour } => {
            let behaviours = [
                Behaviour::starts_in(0),
                Behaviour::starts_in(2),
                Behaviour::starts_in(15),
                Behaviour {
                    exit: Some((1, false)),
                    ..Behaviour::starts_in(1)
                },
                Behaviour {
                    never_healthy: true,
                    ..Behaviour::starts_in(0)
                },
            ];
            sim.push_model("m", behaviours[behaviour]);
        }
        Happening::Create { endpoint, min, max } => {
            let input = named("x", newest(sim), min, max);
            let _ = sim.create(create(ENDPOINTS[endpoint], config(vec![input])));
        }
        Happening::Update {
            endpoint,
            split: two,
        } => {
            let newest = newest(sim);
            let x = named("x", newest, 1, 3);
            let y = named("y", newest.saturating_sub(1).max(1), 1, 2);
            let input = if two {
                split(vec![x, y], &[("x", "70"), ("y", "30")])
            } else {
                config(vec![x])
            };
            let _ = sim.update(ENDPOINTS[endpoint], input);
        }
        Happening::Delete { endpoint } => {
            let _ = sim.delete(ENDPOINTS[endpoint]);
        }
        Happening::Crash { node } => sim.node(NODES[node]).crash(),
        Happening::Boot { node } => sim.node(NODES[node]).running = true,
        Happening::Part { node } => sim.node(NODES[node]).reachable = false,
        Happening::Heal { node } => sim.node(NODES[node]).reachable = true,
        Happening::StopGateway { node } => sim.node(NODES[node]).gateway_running = false,
        Happening::StartGateway { node } => sim.node(NODES[node]).gateway_running = true,
        Happening::Sicken { node } => {
            let node = sim.node(NODES[node]);
            let ids: Vec<_> = node.containers.keys().take(1).cloned().collect();
            node.sick.extend(ids);
        }
        Happening::Revoke => {
            let name = shared::ids::NodeName::parse(NODES[2]).expect("valid");
            let ops = sim.core.registry.revoke(&name).expect("joined");
            sim.write(ops);
            sim.registry_changed();
        }
        Happening::Demand { endpoint } => {
            let id = shared::ids::ServedEntityId {
                endpoint: shared::ids::EndpointName::parse(ENDPOINTS[endpoint]).expect("valid"),
                entity: shared::ids::EntityName::parse("x").expect("valid"),
            };
            sim.send(scheduler_core::Event::Demand { id, queued: 3 });
        }
        Happening::RestartScheduler => sim.restart_scheduler(),
    }
}

fn newest(sim: &Sim) -> u32 {
    let versions = sim.core.registry.models().map(|it| it.version);
    versions.max().unwrap_or(1)
}

fn named(name: &str, version: u32, min: u32, max: u32) -> shared::api::serving::ServedEntityInput {
    shared::api::serving::ServedEntityInput {
        name: Some(name.into()),
        ..bounded("m", version, min, max)
    }
}

/// Everything works again (but for a revoked node), and time passes.
fn calm(sim: &mut Sim) {
    for node in sim.nodes.values_mut() {
        node.running = true;
        node.reachable = true;
        node.gateway_running = true;
        node.sick.clear();
    }
    for behaviour in sim.behaviours.values_mut() {
        *behaviour = Behaviour::starts_in(1);
    }
    sim.load.clear();
    sim.steps(500);
}

fn check_settled(sim: &Sim) {
    let mut wanted = 0;
    for summary in sim.core.list_endpoints() {
        let name = summary.name.as_str();
        let made = sim.get(name);
        assert_ne!(made.state.config_update, "IN_PROGRESS", "{name}");
        let Some(active) = made.config else {
            continue;
        };
        assert_eq!(made.state.ready, "READY", "{name}");
        let minimum: u32 = active
            .served_entities
            .iter()
            .map(|entity| entity.stokehold.min_replicas.expect("given"))
            .sum();
        assert_eq!(
            sim.serving(name),
            minimum as usize,
            "{name}: without load, the minimum: {:#?}",
            sim.core.describe(name)
        );
        wanted += minimum as usize;
    }
    assert_eq!(sim.stored_replicas().len(), wanted);
    // Nobody can tell a revoked node's agent to stop anything.
    let running: usize = sim
        .nodes
        .values()
        .filter(|node| !node.agent_refused)
        .map(|node| node.containers.len())
        .sum();
    assert_eq!(running, wanted, "nothing runs that nobody asked for");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_fleet_keeps_its_invariants_and_settles(
        happenings in proptest::collection::vec(happening(), 1..40)
    ) {
        let mut settings = sim::fixtures::settings();
        settings.deploy_deadline = Duration::from_secs(90);
        let mut sim = Sim::with(settings);
        sim.may_cut = true;
        for node in NODES {
            sim.add_node(node);
        }
        sim.push_model("m", Behaviour::starts_in(1));
        sim.steps(2);
        for happening in &happenings {
            apply(&mut sim, happening);
        }
        calm(&mut sim);
        check_settled(&sim);
    }
}
