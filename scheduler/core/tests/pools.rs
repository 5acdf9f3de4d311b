//! The warm pools in the core: replicas that are placed become claims, and each minute a decision.

mod sim;

use shared::api::autoscaler::PoolInfo;
use sim::fixtures::{bounded, config, create};
use sim::{Behaviour, Sim};

fn pool(sim: &Sim) -> PoolInfo {
    let mut pools = sim.core.pools().pools;
    assert_eq!(pools.len(), 1, "{pools:?}");
    pools.remove(0)
}

#[test]
fn placed_replicas_are_claims_and_a_decision_is_made_each_minute() {
    let mut sim = Sim::new();
    sim.add_node("n1");
    sim.add_node("n2");
    sim.push_model("iris", Behaviour::starts_in(3));
    sim.steps(2);
    sim.create(create("iris", config(vec![bounded("iris", 1, 2, 2)])))
        .expect("valid");
    sim.steps(180);
    let pool = pool(&sim);
    assert_eq!(pool.class, "cpu");
    assert_eq!((pool.nodes, pool.ready), (2, 2));
    assert_eq!(pool.claims, 2);
    let decided: u32 = pool.decisions.iter().map(|it| it.count).sum();
    assert_eq!(decided, 3, "{:?}", pool.decisions);
    let last = pool.decisions.last().expect("decided");
    assert!(!last.because.is_empty() && !last.would_change.is_empty());
}

#[test]
fn a_replica_that_no_node_has_room_for_claims_once_and_finds_the_pool_empty() {
    let mut sim = Sim::new();
    sim.add_node("n1");
    sim.push_model("iris", Behaviour::starts_in(3));
    sim.steps(2);
    let mut large = bounded("iris", 1, 3, 3);
    if let Some(ours) = &mut large.stokehold {
        ours.memory_bytes = Some(6 << 30);
    }
    sim.create(create("iris", config(vec![large])))
        .expect("valid");
    sim.steps(60);
    let pool = pool(&sim);
    assert_eq!((pool.claims, pool.found_empty), (3, 1), "two fit");
    // A second machine takes one of those that wait: that is the same claim.
    sim.add_node("n2");
    sim.steps(30);
    assert_eq!((self::pool(&sim).claims, self::pool(&sim).nodes), (3, 2));
}
