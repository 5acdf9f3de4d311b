//! A large fleet: a second of all its autoscalers must stay cheap.

mod sim;

use std::time::{Duration, Instant};

use scheduler_core::{Core, Ctx, Event};
use serde_json::Value;
use shared::ids::{EndpointId, Epoch, NodeName, ReplicaId, ServedEntityId};
use shared::report::{EntityTraffic, GatewayReport};
use sim::fixtures::{config, create, learning};
use sim::{Behaviour, Sim};

/// An optimised build takes about 20 ms for them, one without optimisation ten times as long.
const ENDPOINTS: u64 = 1_000;
const TICKS: u32 = 5;
/// Far above both, so that a busy machine does no harm: what grows faster than the number of entities
/// is found all the same.
const LIMIT: Duration = Duration::from_secs(5);

#[test]
fn a_second_of_a_thousand_served_entities_is_a_small_part_of_one() {
    let mut sim = Sim::new();
    sim.add_node("n1");
    sim.push_model("m", Behaviour::starts_in(1));
    sim.steps(2);
    sim.create(create("e", config(vec![learning("m", 1)])))
        .expect("valid");
    sim.until("serves", 30, |sim| sim.update_state("e") == "NOT_UPDATING");

    // As many endpoints as that one, each with its replica.
    let mut entries = sim.entries.clone();
    let only = |prefix: &str| -> Value {
        let mut found = sim
            .entries
            .iter()
            .filter(|(key, _)| key.starts_with(prefix));
        let (_, value) = found.next().expect("one");
        serde_json::from_slice(value).expect("JSON")
    };
    let (endpoint, replica) = (only("endpoint/"), only("replica/"));
    for n in 0..ENDPOINTS {
        let (name, id) = (format!("e{n}"), EndpointId::from_bits(n.into()));
        let mut copy = endpoint.clone();
        copy["endpoint"]["name"] = name.clone().into();
        copy["endpoint"]["id"] = id.to_string().into();
        entries.insert(format!("endpoint/{name}"), copy.to_string().into());
        let mut copy = replica.clone();
        copy["endpoint"] = name.into();
        copy["endpoint_id"] = id.to_string().into();
        let key = format!("replica/{}", ReplicaId::from_bits(n));
        entries.insert(key, copy.to_string().into());
    }
    let start = sim.now;
    let core = Core::restore(&entries, sim.settings.clone(), Epoch(9), start);
    let mut core = core.expect("readable");
    let mut rng = rand::rng();
    let mut handle = |core: &mut Core, event: Event, second: u32| {
        let now = start + Duration::from_secs(second.into());
        let mut ctx = Ctx {
            now,
            unix_ms: 1_700_000_000_000 + now.as_millis(),
            rng: &mut rng,
        };
        core.take_in(event, &mut ctx);
    };
    let node = NodeName::parse("n1").expect("valid");
    let traffic = |n| EntityTraffic {
        id: ServedEntityId {
            endpoint: format!("e{n}").parse().expect("valid"),
            entity: "m-1".parse().expect("valid"),
        },
        over: Duration::from_secs(1),
        arrivals: 10,
        completions: 10,
        rejected: 0,
        failed: 0,
        active: 1.0,
        queued: 0.0,
        p50_ms: Some(100.0),
        p95_ms: Some(120.0),
        p99_ms: None,
    };
    let report = GatewayReport {
        routes: None,
        replicas: vec![],
        traffic: (0..ENDPOINTS).map(traffic).collect(),
    };
    let mut spent = Duration::ZERO;
    for second in 1..=TICKS {
        let (node, report) = (node.clone(), report.clone());
        handle(&mut core, Event::GatewayReport { node, report }, second);
        let begun = Instant::now();
        handle(&mut core, Event::Tick, second);
        spent += begun.elapsed();
    }
    let explained = core.explain("e77", None, 0).expect("exists");
    let now = explained.entities[0].now.clone().expect("measured");
    assert_eq!((now.active, now.replicas_ready), (1.0, 1));
    assert!(spent < LIMIT, "{spent:?} for {TICKS} seconds");
}
