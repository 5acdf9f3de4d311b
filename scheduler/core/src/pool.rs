//! The warm pools: how many nodes of each class should hold a runtime's image ahead of need.
//!
//! Level 1 of a warm slot is a node with the base image unpacked. A replica that is wanted claims one;
//! the claim finds the pool empty where its node has yet to bring the image in, or where no node has
//! room. From claims, and from how long nodes take to bring an image in, `apa::pool` decides each
//! minute.
//!
//! Plans give every node the images of all runtimes that it may serve, so today the decision says how
//! many nodes that should be: whoever adds and removes machines acts on it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use apa::pool::{self, LeadTimes, Observation, PERIOD, Policy, State};
use apa::sample::HardwareClass;
use shared::api::autoscaler::{PoolInfo, Pools};
use shared::ids::{ImageRef, NodeName, RuntimeName};
use shared::units::MonoTime;

use crate::core::{Core, Pass};
use crate::history::{Decisions, Moment, Room};
use crate::node::{Contact, Node};
use crate::replica::Replica;
use crate::set::SetId;

/// Between two looks at which nodes have brought images in.
const LOOK: Duration = Duration::from_secs(1);
/// A pool whose class of nodes has not been there for this long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);

/// Whom a pool is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PoolId {
    pub class: HardwareClass,
    pub runtime: RuntimeName,
}

/// What there is of a pool now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stand {
    /// Nodes of the class that are there and may serve the runtime.
    pub nodes: u32,
    /// Those among them that hold its image.
    pub ready: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct PoolKeeper {
    pools: BTreeMap<PoolId, Kept>,
    /// Of sets with replicas that nobody has room for: claims that were counted for them, so that
    /// neither the next pass nor the placing counts them again.
    unplaced: BTreeMap<SetId, u32>,
    /// Images that nodes are to bring in, and since when.
    fetching: BTreeMap<(NodeName, ImageRef), MonoTime>,
    next_look: MonoTime,
    next_decision: MonoTime,
}

#[derive(Clone, Debug)]
struct Kept {
    state: State,
    leads: LeadTimes,
    /// Since the last decision.
    claims: u32,
    claims_ever: u64,
    found_empty: u64,
    decisions: Decisions,
    /// When a node of the class was last there.
    seen: MonoTime,
}

impl Kept {
    fn new(now: MonoTime) -> Self {
        Self {
            state: State::new(&Policy::default()),
            leads: LeadTimes::default(),
            claims: 0,
            claims_ever: 0,
            found_empty: 0,
            decisions: Decisions::default(),
            seen: now,
        }
    }

    fn claim(&mut self, count: u32, empty: bool) {
        self.claims = self.claims.saturating_add(count);
        self.claims_ever = self.claims_ever.saturating_add(u64::from(count));
        if empty {
            self.found_empty = self.found_empty.saturating_add(u64::from(count));
        }
    }
}

impl PoolKeeper {
    pub(crate) fn new(now: MonoTime) -> Self {
        Self {
            pools: BTreeMap::new(),
            unplaced: BTreeMap::new(),
            fetching: BTreeMap::new(),
            next_look: now,
            next_decision: now + PERIOD,
        }
    }

    fn pool(&mut self, id: PoolId, now: MonoTime) -> &mut Kept {
        self.pools.entry(id).or_insert_with(|| Kept::new(now))
    }

    /// A replica was placed. `empty`: its node does not hold the image.
    pub(crate) fn placed(&mut self, set: &SetId, id: PoolId, empty: bool, now: MonoTime) {
        if let Some(counted) = self.unplaced.get_mut(set)
            && *counted > 0
        {
            // It was claimed when nobody had room for it.
            *counted -= 1;
            return;
        }
        self.pool(id, now).claim(1, empty);
    }

    /// Nobody has room for so many replicas of a set; 0: none is missing any more.
    pub(crate) fn without_room(&mut self, set: &SetId, id: PoolId, missing: u32, now: MonoTime) {
        if missing == 0 {
            self.unplaced.remove(set);
            return;
        }
        let counted = self.unplaced.entry(set.clone()).or_default();
        let new = missing.saturating_sub(*counted);
        *counted = missing;
        if new > 0 {
            self.pool(id, now).claim(new, true);
        }
    }

    /// Which nodes are to hold which images, and whether they do. What a node has brought in since the
    /// last look was measured.
    pub(crate) fn look<'a>(
        &mut self,
        planned: impl Iterator<Item = (&'a NodeName, &'a ImageRef, Vec<PoolId>, bool)>,
        now: MonoTime,
    ) {
        let mut fetching = BTreeMap::new();
        for (node, image, pools, holds) in planned {
            let key = (node.clone(), image.clone());
            let since = self.fetching.remove(&key);
            match (since, holds) {
                (Some(since), true) => {
                    for id in pools {
                        let took = now.saturating_since(since);
                        self.pool(id, now).leads.record(took);
                    }
                }
                (None, true) => {}
                (since, false) => drop(fetching.insert(key, since.unwrap_or(now))),
            }
        }
        self.fetching = fetching;
    }

    /// The minute's decisions. `stands`: the pools that have nodes; `known`: replicas that are wanted,
    /// not placed, and not counted as claims yet.
    pub(crate) fn decide(
        &mut self,
        stands: &BTreeMap<PoolId, Stand>,
        known: &BTreeMap<PoolId, u32>,
        at: Moment,
    ) {
        for id in stands.keys() {
            self.pool(id.clone(), at.now).seen = at.now;
        }
        self.pools
            .retain(|_, kept| at.now.saturating_since(kept.seen) < FORGOTTEN_AFTER);
        let room = Room::among(self.pools.len());
        let policy = Policy::default();
        for (id, kept) in &mut self.pools {
            let observation = Observation {
                claims: Some(std::mem::take(&mut kept.claims)),
                lead: kept.leads.get(),
                known: known.get(id).copied().unwrap_or(0),
            };
            let state = std::mem::replace(&mut kept.state, State::new(&policy));
            let (decision, state) = pool::decide(&policy, state, &observation, at.now);
            kept.state = state;
            kept.decisions.record(None, &decision, room, at);
        }
    }

    pub(crate) fn shown(&self, stands: &BTreeMap<PoolId, Stand>) -> Vec<PoolInfo> {
        let pools = self.pools.iter().map(|(id, kept)| {
            let stand = stands.get(id).copied().unwrap_or_default();
            PoolInfo {
                class: id.class.0.clone(),
                runtime: id.runtime.clone(),
                wanted: kept.state.size(),
                ready: stand.ready,
                nodes: stand.nodes,
                lead_s: kept.leads.get().map(|lead| lead.as_secs_f64()),
                claims: kept.claims_ever,
                found_empty: kept.found_empty,
                decisions: kept.decisions.shown(),
            }
        });
        pools.collect()
    }
}

impl Core {
    /// The warm pools as they stand, and their last decisions.
    pub fn pools(&self) -> Pools {
        Pools {
            pools: self.pools.shown(&self.stands(self.now)),
        }
    }

    /// What the pass does for the pools: looks each second, decides each minute.
    pub(crate) fn keep_pools(&mut self, pass: &Pass<'_>) {
        let now = pass.now;
        if now < self.pools.next_look {
            return;
        }
        self.pools.next_look = now + LOOK;
        let nodes = &self.nodes;
        let templates = &self.settings.templates;
        let planned = self.plans.iter().flat_map(|(name, plan)| {
            let node = nodes.get(name).filter(|node| node.reported && !node.lost);
            let images = plan.images.iter().map(|image| &image.reference);
            images.filter_map(move |image| {
                let node = node?;
                let holds = node.images.contains(image);
                let runtimes = templates.values().filter(|it| it.image == *image);
                let pools = runtimes.map(|it| PoolId {
                    class: node_class(node),
                    runtime: it.name.clone(),
                });
                Some((name, image, pools.collect(), holds))
            })
        });
        self.pools.look(planned, now);
        if now < self.pools.next_decision {
            return;
        }
        self.pools.next_decision = now + PERIOD;
        let stands = self.stands(now);
        let known = self.known_claims();
        let unix_ms = pass.unix_ms;
        self.pools.decide(&stands, &known, Moment { now, unix_ms });
        let sets: BTreeSet<&SetId> = self.sets.keys().collect();
        self.pools.unplaced.retain(|set, _| sets.contains(set));
    }

    /// A placed replica has claimed a node that holds its image, or should.
    pub(crate) fn claim(&mut self, replica: &Replica) {
        let Some(node) = self.nodes.get(&replica.node) else {
            return;
        };
        let id = PoolId {
            class: node_class(node),
            runtime: replica.entity.runtime.clone(),
        };
        let empty = !node.images.contains(&replica.template.image);
        let now = self.now;
        self.pools.placed(&replica.set, id, empty, now);
    }

    /// Replicas of a set that wait for a node with room claim one too. Those that no node could ever
    /// hold are left out: no pool would help them.
    pub(crate) fn claim_missing(&mut self, set: &SetId, runtime: &RuntimeName) {
        let Some(found) = self.sets.get(set) else {
            return;
        };
        let there = u32::try_from(self.counted(found).count()).unwrap_or(u32::MAX);
        let waits = found.blocked.as_ref().is_some_and(|it| !it.for_good);
        let missing = if waits {
            found.desired().saturating_sub(there)
        } else {
            0
        };
        if missing == 0 && !self.pools.unplaced.contains_key(set) {
            return;
        }
        let Some(class) = self.likely_class(runtime) else {
            return;
        };
        let id = PoolId {
            class,
            runtime: runtime.clone(),
        };
        self.pools.without_room(set, id, missing, self.now);
    }

    /// The class of most nodes that may serve a runtime; `None` where there are none.
    fn likely_class(&self, runtime: &RuntimeName) -> Option<HardwareClass> {
        let stands = self.stands(self.now);
        let of_runtime = stands.iter().filter(|(id, _)| id.runtime == *runtime);
        let most = of_runtime.max_by_key(|(_, stand)| stand.nodes)?;
        Some(most.0.class.clone())
    }

    /// Replicas that floors and roll-outs want, that are not placed, and that wait for something else
    /// than room (a start that failed is tried again later).
    fn known_claims(&self) -> BTreeMap<PoolId, u32> {
        let mut known: BTreeMap<PoolId, u32> = BTreeMap::new();
        for (id, set) in &self.sets {
            let Some(entity) = set.entity() else {
                continue;
            };
            let there = u32::try_from(self.counted(set).count()).unwrap_or(u32::MAX);
            let missing = set.desired().saturating_sub(there);
            let claimed = self.pools.unplaced.get(id).copied().unwrap_or(0);
            let hopeless = set.blocked.as_ref().is_some_and(|it| it.for_good);
            let coming = missing.saturating_sub(claimed);
            if coming == 0 || hopeless {
                continue;
            }
            if let Some(class) = self.likely_class(&entity.runtime) {
                let runtime = entity.runtime.clone();
                *known.entry(PoolId { class, runtime }).or_default() += coming;
            }
        }
        known
    }

    /// Each class of nodes with each runtime that it may serve and whose image there is.
    fn stands(&self, now: MonoTime) -> BTreeMap<PoolId, Stand> {
        let lease = self.settings.lease;
        let mut stands: BTreeMap<PoolId, Stand> = BTreeMap::new();
        let there = self.nodes.values().filter(|node| {
            node.agent_contact(lease, now) == Contact::Fresh && node.reported && !node.revoked
        });
        for node in there {
            let class = node_class(node);
            for template in self.settings.templates.values() {
                let known = self.registry.image(&template.image).is_some();
                if !known || !node.may_serve(template) {
                    continue;
                }
                let id = PoolId {
                    class: class.clone(),
                    runtime: template.name.clone(),
                };
                let stand = stands.entry(id).or_default();
                stand.nodes += 1;
                stand.ready += u32::from(node.images.contains(&template.image));
            }
        }
        stands
    }
}

/// What a node is, as far as it decides which replicas it takes.
fn node_class(node: &Node) -> HardwareClass {
    let gpu = node.capacity.gpus.first();
    HardwareClass(gpu.map_or_else(|| "cpu".to_owned(), |gpu| gpu.name.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::ids::{EndpointId, EntityName};

    fn id() -> PoolId {
        PoolId {
            class: HardwareClass("cpu".into()),
            runtime: RuntimeName::parse("probe").expect("valid"),
        }
    }

    fn set(n: u128) -> SetId {
        SetId {
            endpoint: EndpointId::from_bits(n),
            entity: EntityName::parse("iris-1").expect("valid"),
            generation: 1,
        }
    }

    fn at(seconds: u64) -> Moment {
        Moment {
            now: MonoTime::from_secs(seconds),
            unix_ms: seconds * 1000,
        }
    }

    fn stands() -> BTreeMap<PoolId, Stand> {
        BTreeMap::from([(id(), Stand { nodes: 3, ready: 2 })])
    }

    fn only(keeper: &PoolKeeper) -> PoolInfo {
        let mut shown = keeper.shown(&stands());
        assert_eq!(shown.len(), 1);
        shown.remove(0)
    }

    #[test]
    fn a_claim_without_room_is_counted_once_however_often_it_is_looked_at_and_not_when_placed() {
        let mut keeper = PoolKeeper::new(MonoTime::ZERO);
        let now = MonoTime::from_secs(1);
        for _ in 0..5 {
            keeper.without_room(&set(1), id(), 2, now);
        }
        keeper.without_room(&set(1), id(), 3, now);
        keeper.placed(&set(1), id(), false, now);
        keeper.placed(&set(2), id(), false, now);
        let shown = only(&keeper);
        assert_eq!((shown.claims, shown.found_empty), (4, 3));
        // It found room for all, and then lacks one again.
        keeper.without_room(&set(1), id(), 0, now);
        keeper.without_room(&set(1), id(), 1, now);
        assert_eq!(only(&keeper).claims, 5);
    }

    #[test]
    fn a_claim_whose_node_has_to_bring_the_image_in_found_the_pool_empty() {
        let mut keeper = PoolKeeper::new(MonoTime::ZERO);
        keeper.placed(&set(1), id(), true, MonoTime::ZERO);
        keeper.placed(&set(1), id(), false, MonoTime::ZERO);
        let shown = only(&keeper);
        assert_eq!((shown.claims, shown.found_empty), (2, 1));
    }

    #[test]
    fn a_lead_time_runs_from_an_image_being_wanted_on_a_node_to_its_being_there() {
        let mut keeper = PoolKeeper::new(MonoTime::ZERO);
        let node = NodeName::parse("n1").expect("valid");
        let image = ImageRef::parse("stokehold.local/runtime-probe:1").expect("valid");
        let mut look = |seconds, holds| {
            let planned = [(&node, &image, vec![id()], holds)];
            keeper.look(planned.into_iter(), MonoTime::from_secs(seconds));
        };
        look(10, false);
        look(11, false);
        look(52, true);
        // It stays there, which measures nothing.
        look(99, true);
        assert_eq!(only(&keeper).lead_s, Some(42.0));
        // Gone from the plan before it came: nothing to measure either.
        keeper.look(
            [(&node, &image, vec![id()], false)].into_iter(),
            MonoTime::from_secs(100),
        );
        keeper.look(std::iter::empty(), MonoTime::from_secs(101));
        keeper.look(
            [(&node, &image, vec![id()], true)].into_iter(),
            MonoTime::from_secs(500),
        );
        assert_eq!(only(&keeper).lead_s, Some(42.0));
    }

    #[test]
    fn decisions_say_how_many_nodes_should_stand_ready_and_why() {
        let mut keeper = PoolKeeper::new(MonoTime::ZERO);
        for minute in 1..=5 {
            keeper.decide(&stands(), &BTreeMap::new(), at(minute * 60));
        }
        for _ in 0..2 {
            keeper.placed(&set(1), id(), true, MonoTime::from_secs(310));
        }
        keeper.decide(&stands(), &BTreeMap::from([(id(), 1)]), at(360));
        let shown = only(&keeper);
        assert_eq!((shown.wanted, shown.nodes, shown.ready), (3, 3, 2));
        let [quiet, claimed] = &shown.decisions[..] else {
            panic!("two different decisions: {:?}", shown.decisions);
        };
        assert_eq!((quiet.after, quiet.count), (0, 5));
        assert_eq!((claimed.rule.as_str(), claimed.after), ("known-claims", 3));
    }

    #[test]
    fn a_pool_whose_nodes_are_long_gone_is_forgotten() {
        let mut keeper = PoolKeeper::new(MonoTime::ZERO);
        keeper.decide(&stands(), &BTreeMap::new(), at(60));
        keeper.decide(&BTreeMap::new(), &BTreeMap::new(), at(120));
        assert_eq!(keeper.shown(&BTreeMap::new()).len(), 1);
        let later = 120 + FORGOTTEN_AFTER.as_secs();
        keeper.decide(&BTreeMap::new(), &BTreeMap::new(), at(later));
        assert!(keeper.shown(&BTreeMap::new()).is_empty());
    }
}
