//! A cluster in memory: agents and gateways as plain functions around a real core, one step a
//! second. Each step checks what must always hold, so a scenario only says what is its own.

#![allow(dead_code)] // Each test file uses its own part of it.

mod chance;
pub(crate) mod fixtures;
mod invariants;
mod node;

use std::collections::BTreeMap;
use std::sync::Arc;

use scheduler_core::store_op::{Entries, Op};
use scheduler_core::{ApiError, Core, Ctx, Effects, Event, Note, Settings};
use shared::api::serving::{ConfigInput, CreateEndpoint, Detailed};
use shared::ids::{Epoch, ModelName, NodeName, Role, ServedEntityId};
use shared::manifest::{Description, ManifestId};
use shared::routes::{EndpointRoute, Routes};
use shared::units::MonoTime;

use chance::Chance;
pub(crate) use node::SimNode;

/// How a model behaves when a replica loads it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Behaviour {
    /// From container to healthy.
    pub(crate) startup_s: u64,
    /// It ends like this instead of becoming healthy.
    pub(crate) exit: Option<(i32, bool)>,
    pub(crate) never_healthy: bool,
}

impl Behaviour {
    pub(crate) fn starts_in(startup_s: u64) -> Self {
        Self {
            startup_s,
            exit: None,
            never_healthy: false,
        }
    }
}

pub(crate) struct Sim {
    pub(crate) core: Core,
    pub(crate) settings: Settings,
    pub(crate) epoch: Epoch,
    pub(crate) now: MonoTime,
    pub(crate) entries: Entries,
    pub(crate) nodes: BTreeMap<NodeName, SimNode>,
    pub(crate) behaviours: BTreeMap<ManifestId, Behaviour>,
    /// Requests at once, offered to each entity.
    pub(crate) load: BTreeMap<ServedEntityId, f64>,
    pub(crate) notes: Vec<Note>,
    pub(crate) routes: Arc<Routes>,
    /// Endpoints that must have a ready replica in every gateway's routes from now on.
    pub(crate) must_serve: Vec<String>,
    pub(crate) closed: Vec<String>,
    /// Machines die and networks part: requests may be lost with them.
    pub(crate) may_cut: bool,
    rng: Chance,
}

impl Sim {
    pub(crate) fn new() -> Self {
        Self::with(fixtures::settings())
    }

    pub(crate) fn with(settings: Settings) -> Self {
        let now = MonoTime::from_secs(1000);
        let epoch = Epoch(1);
        let core = Core::restore(&Entries::new(), settings.clone(), epoch, now).expect("empty");
        let routes = core.routes();
        let mut sim = Self {
            core,
            settings,
            epoch,
            now,
            entries: Entries::new(),
            nodes: BTreeMap::new(),
            behaviours: BTreeMap::new(),
            load: BTreeMap::new(),
            notes: Vec::new(),
            routes,
            must_serve: Vec::new(),
            closed: Vec::new(),
            may_cut: false,
            rng: Chance(7),
        };
        sim.import_image();
        sim
    }

    pub(crate) fn import_image(&mut self) {
        let ops = self
            .core
            .registry
            .register_image(fixtures::image(), 1)
            .expect("valid");
        self.write(ops);
        self.registry_changed();
    }

    pub(crate) fn registry_changed(&mut self) {
        let mut ctx = ctx(self.now, &mut self.rng);
        let effects = self.core.pass(&mut ctx);
        self.apply(effects);
    }

    /// A node joins; its agent and its gateway are connected from the next step on.
    pub(crate) fn add_node(&mut self, name: &str) {
        let name = NodeName::parse(name).expect("valid");
        let ops = fixtures::join(&mut self.core.registry, &name);
        self.write(ops);
        self.registry_changed();
        let node = SimNode::new(name.clone());
        self.nodes.insert(name, node);
    }

    pub(crate) fn node(&mut self, name: &str) -> &mut SimNode {
        let name = NodeName::parse(name).expect("valid");
        self.nodes.get_mut(&name).expect("known node")
    }

    /// Registers the next version of a model that behaves like this.
    pub(crate) fn push_model(&mut self, name: &str, behaviour: Behaviour) -> u32 {
        self.push_described(name, behaviour, fixtures::mlflow_description())
    }

    pub(crate) fn push_described(
        &mut self,
        name: &str,
        behaviour: Behaviour,
        description: Description,
    ) -> u32 {
        let name = ModelName::parse(name).expect("valid");
        let next = self.core.registry.versions_of(&name).count() + 1;
        let contents = fixtures::contents(&format!("{name}/{next}"), description);
        self.behaviours.insert(contents.manifest, behaviour);
        let (version, ops) = self
            .core
            .registry
            .register_model_version(&name, contents, 1)
            .expect("valid");
        self.write(ops);
        version
    }

    pub(crate) fn create(&mut self, input: CreateEndpoint) -> Result<Detailed, ApiError> {
        let mut ctx = ctx(self.now, &mut self.rng);
        let (detailed, effects) = self.core.create_endpoint(input, "tests", &mut ctx)?;
        self.apply(effects);
        Ok(detailed)
    }

    pub(crate) fn update(&mut self, name: &str, input: ConfigInput) -> Result<Detailed, ApiError> {
        let mut ctx = ctx(self.now, &mut self.rng);
        let (detailed, effects) = self.core.update_config(name, input, &mut ctx)?;
        self.apply(effects);
        Ok(detailed)
    }

    pub(crate) fn delete(&mut self, name: &str) -> Result<(), ApiError> {
        let mut ctx = ctx(self.now, &mut self.rng);
        let effects = self.core.delete_endpoint(name, &mut ctx)?;
        self.apply(effects);
        Ok(())
    }

    pub(crate) fn get(&self, name: &str) -> Detailed {
        self.core.get_endpoint(name).expect("exists")
    }

    pub(crate) fn send(&mut self, event: Event) {
        let mut ctx = ctx(self.now, &mut self.rng);
        let effects = self.core.handle(event, &mut ctx);
        self.apply(effects);
    }

    /// One second: nodes act and report, the core ticks, and what must hold is checked.
    pub(crate) fn step(&mut self) {
        self.now = self.now + std::time::Duration::from_secs(1);
        let names: Vec<NodeName> = self.nodes.keys().cloned().collect();
        for name in names {
            self.step_node(&name);
        }
        self.send(Event::Tick);
        self.check();
    }

    pub(crate) fn steps(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.step();
        }
    }

    /// Steps until it holds, which must be within `seconds`; how long it took.
    pub(crate) fn until(
        &mut self,
        what: &str,
        seconds: u64,
        holds: impl Fn(&mut Self) -> bool,
    ) -> u64 {
        for second in 0..=seconds {
            if holds(self) {
                return second;
            }
            self.step();
        }
        let notes: Vec<&str> = self.notes.iter().map(|note| note.text.as_str()).collect();
        panic!("not within {seconds} s: {what}; notes: {notes:#?}");
    }

    /// Kills the scheduler and starts it again from what was committed; sessions come back later.
    pub(crate) fn restart_scheduler(&mut self) {
        self.epoch = Epoch(self.epoch.0 + 1);
        let settings = self.settings.clone();
        self.core = Core::restore(&self.entries, settings, self.epoch, self.now).expect("readable");
        self.routes = self.core.routes();
        for node in self.nodes.values_mut() {
            node.forget_sessions();
        }
    }

    pub(crate) fn route(&self, endpoint: &str) -> Option<EndpointRoute> {
        let mut endpoints = self.routes.endpoints.iter();
        endpoints.find(|it| it.name.as_str() == endpoint).cloned()
    }

    /// Replicas that requests are sent to now.
    pub(crate) fn serving(&self, endpoint: &str) -> usize {
        let route = self.route(endpoint);
        let entities = route.iter().flat_map(|route| &route.entities);
        entities
            .flat_map(|entity| &entity.replicas)
            .filter(|replica| !replica.draining)
            .count()
    }

    /// Containers of an endpoint that exist anywhere.
    pub(crate) fn containers(&self, endpoint: &str) -> usize {
        let containers = self
            .nodes
            .values()
            .flat_map(|node| node.containers.values());
        containers
            .filter(|it| it.planned.endpoint.as_str() == endpoint)
            .count()
    }

    pub(crate) fn update_state(&self, endpoint: &str) -> String {
        self.get(endpoint).state.config_update
    }

    pub(crate) fn set_load(&mut self, endpoint: &str, entity: &str, load: f64) {
        let id = ServedEntityId {
            endpoint: shared::ids::EndpointName::parse(endpoint).expect("valid"),
            entity: shared::ids::EntityName::parse(entity).expect("valid"),
        };
        self.load.insert(id, load);
    }

    pub(crate) fn noted(&self, text: &str) -> bool {
        self.notes.iter().any(|note| note.text.contains(text))
    }

    fn step_node(&mut self, name: &NodeName) {
        let now = self.now;
        let node = self.nodes.get_mut(name).expect("known node");
        if node.running {
            node.reconcile(&self.behaviours, now);
        }
        let (agent_event, gateway_event) = node.session_events();
        for event in agent_event.into_iter().chain(gateway_event) {
            self.send(event);
        }
        let load = self.load.clone();
        let node = self.nodes.get_mut(name).expect("known node");
        if node.agent_connected {
            let report = node.agent_report(now);
            self.send(Event::AgentReport {
                node: name.clone(),
                report,
            });
        }
        let node = self.nodes.get_mut(name).expect("known node");
        if node.gateway_connected {
            let first = name == self.first_gateway();
            let node = self.nodes.get_mut(name).expect("known node");
            let report = node.gateway_report(&load, first);
            self.send(Event::GatewayReport {
                node: name.clone(),
                report,
            });
        }
    }

    /// The gateway that all clients of the simulation use, as long as it is connected.
    fn first_gateway(&self) -> &NodeName {
        let mut connected = self.nodes.iter().filter(|(_, node)| node.gateway_connected);
        connected.next().map(|(name, _)| name).expect("one is")
    }

    fn apply(&mut self, effects: Effects) {
        assert!(
            effects.writes.iter().all(|op| op.key().len() <= 256),
            "a key is too long"
        );
        self.write(effects.writes);
        for plan in effects.plans {
            let node = self.nodes.get_mut(&plan.node).expect("plans are for nodes");
            if node.agent_connected {
                node.take_plan(plan);
            }
        }
        if let Some(routes) = effects.routes {
            self.routes = routes;
        }
        for (peer, _, _) in effects.close {
            self.closed.push(peer.to_string());
            let node = self.nodes.get_mut(&peer.node).expect("known node");
            match peer.role {
                Role::Agent => node.agent_refused = true,
                _ => node.gateway_refused = true,
            }
        }
        for node in self.nodes.values_mut() {
            if node.gateway_connected {
                node.take_routes(&self.routes);
            }
        }
        self.notes.extend(effects.notes);
    }

    pub(crate) fn write(&mut self, ops: Vec<Op>) {
        for op in ops {
            match op {
                Op::Put { key, value } => {
                    self.entries.insert(key, value);
                }
                Op::Delete { key } => {
                    self.entries.remove(&key);
                }
            }
        }
    }
}

fn ctx(now: MonoTime, rng: &mut Chance) -> Ctx<'_, Chance> {
    Ctx {
        now,
        unix_ms: 1_700_000_000_000 + now.as_millis(),
        rng,
    }
}
