//! One simulated node: an agent that does what its plan says, and a gateway that probes and counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use scheduler_core::Event;
use shared::ids::{Epoch, NodeName, ReplicaId, Revision, ServedEntityId};
use shared::manifest::ManifestId;
use shared::plan::{Acceptance, Plan, PlannedReplica, accept};
use shared::report::{
    AgentReport, EntityTraffic, GatewayReport, Gpu, Health, HoldState, ImageStatus, ModelStatus,
    NodeCapacity, NodeSample, ReplicaExit, ReplicaHealth, ReplicaLoad, ReplicaPhase, ReplicaSample,
    ReplicaStatus,
};
use shared::routes::Routes;
use shared::units::MonoTime;

use super::Behaviour;

pub(crate) struct SimNode {
    pub(crate) name: NodeName,
    /// The machine is up.
    pub(crate) running: bool,
    /// The machine reaches the scheduler.
    pub(crate) reachable: bool,
    pub(crate) gateway_running: bool,
    pub(crate) agent_connected: bool,
    pub(crate) gateway_connected: bool,
    pub(crate) agent_refused: bool,
    pub(crate) gateway_refused: bool,
    /// Connected and reporting, yet it takes no routes.
    pub(crate) gateway_hangs: bool,
    pub(crate) capacity: NodeCapacity,
    pub(crate) plan: Option<Plan>,
    pub(crate) containers: BTreeMap<ReplicaId, Container>,
    pub(crate) routes: Option<Arc<Routes>>,
    /// Its gateway measures what each replica does, as older ones do not.
    pub(crate) gateway_measures: bool,
    /// Requests at once beyond which a replica only answers later.
    pub(crate) knee: f64,
    /// Probes of these fail.
    pub(crate) sick: Vec<ReplicaId>,
    /// Replicas that were stopped while requests were in them.
    pub(crate) cut: Vec<ReplicaId>,
    was_agent: bool,
    was_gateway: bool,
}

pub(crate) struct Container {
    pub(crate) planned: PlannedReplica,
    pub(crate) phase: ReplicaPhase,
    pub(crate) since: MonoTime,
    pub(crate) exit: Option<(i32, bool)>,
    pub(crate) healthy: bool,
    pub(crate) in_flight: u32,
    /// Requests at once that it works on.
    pub(crate) share: f64,
}

impl SimNode {
    pub(crate) fn new(name: NodeName) -> Self {
        Self {
            name,
            running: true,
            reachable: true,
            gateway_running: true,
            agent_connected: false,
            gateway_connected: false,
            agent_refused: false,
            gateway_refused: false,
            gateway_hangs: false,
            capacity: NodeCapacity {
                cpu_millis: 16_000,
                memory_bytes: 16 << 30,
                cache_bytes: 100 << 30,
                cache_room_bytes: None,
                gpus: Vec::<Gpu>::new(),
                gpus_absent: None,
            },
            plan: None,
            containers: BTreeMap::new(),
            routes: None,
            gateway_measures: true,
            knee: 1e6,
            sick: Vec::new(),
            cut: Vec::new(),
            was_agent: false,
            was_gateway: false,
        }
    }

    /// The machine dies, with everything on it.
    pub(crate) fn crash(&mut self) {
        self.running = false;
        self.containers.clear();
    }

    pub(crate) fn take_plan(&mut self, plan: Plan) {
        match accept(self.plan.as_ref(), &plan) {
            Ok(Acceptance::New) => self.plan = Some(plan),
            Ok(Acceptance::Same) => {}
            Err(refusal) => panic!("{}: {refusal}", self.name),
        }
    }

    pub(crate) fn take_routes(&mut self, routes: &Arc<Routes>) {
        if self.gateway_hangs {
            return;
        }
        let held = self.routes.as_ref();
        let numbers = |routes: &Routes| (routes.epoch, routes.revision);
        if let Some(held) = held {
            assert!(
                numbers(held) <= numbers(routes),
                "{}: routes went back",
                self.name
            );
            if numbers(held) == numbers(routes) {
                assert_eq!(**held, **routes, "same revision, other contents");
            }
        }
        self.routes = Some(routes.clone());
    }

    /// Makes the machine match its plan.
    pub(crate) fn reconcile(
        &mut self,
        behaviours: &BTreeMap<ManifestId, Behaviour>,
        now: MonoTime,
    ) {
        let Some(plan) = &self.plan else {
            return;
        };
        for planned in &plan.replicas {
            self.containers
                .entry(planned.id.clone())
                .or_insert_with(|| Container {
                    planned: planned.clone(),
                    phase: ReplicaPhase::Pending,
                    since: now,
                    exit: None,
                    healthy: false,
                    in_flight: 0,
                    share: 0.0,
                });
        }
        let wanted = |id: &ReplicaId| plan.replicas.iter().any(|it| it.id == *id);
        let gone: Vec<ReplicaId> = self
            .containers
            .keys()
            .filter(|id| !wanted(id))
            .cloned()
            .collect();
        for id in gone {
            let container = self.containers.get_mut(&id).expect("just listed");
            if container.in_flight > 0 {
                self.cut.push(id.clone());
            }
            // A second of stopping, then gone.
            if container.phase == ReplicaPhase::Stopping || container.exit.is_some() {
                self.containers.remove(&id);
            } else {
                container.phase = ReplicaPhase::Stopping;
                container.healthy = false;
            }
        }
        for container in self.containers.values_mut() {
            container.advance(behaviours, now);
        }
    }

    /// Sessions that came up or went down since the last step.
    pub(crate) fn session_events(&mut self) -> (Option<Event>, Option<Event>) {
        let node = self.name.clone();
        self.agent_connected = self.running && self.reachable && !self.agent_refused;
        self.gateway_connected =
            self.running && self.gateway_running && self.reachable && !self.gateway_refused;
        let agent = match (self.was_agent, self.agent_connected) {
            (false, true) => Some(Event::AgentUp { node: node.clone() }),
            (true, false) => Some(Event::AgentDown { node: node.clone() }),
            _ => None,
        };
        let gateway = match (self.was_gateway, self.gateway_connected) {
            (false, true) => Some(Event::GatewayUp {
                peer_address: format!("{node}:8444"),
                client_address: format!("{node}:8443"),
                node,
            }),
            (true, false) => Some(Event::GatewayDown { node }),
            _ => None,
        };
        self.was_agent = self.agent_connected;
        self.was_gateway = self.gateway_connected;
        (agent, gateway)
    }

    /// After the scheduler's restart, sessions come up anew.
    pub(crate) fn forget_sessions(&mut self) {
        self.agent_connected = false;
        self.gateway_connected = false;
        self.was_agent = false;
        self.was_gateway = false;
    }

    pub(crate) fn agent_report(&self, now: MonoTime) -> AgentReport {
        let replicas = self.containers.iter().map(|(id, container)| ReplicaStatus {
            id: id.clone(),
            endpoint: container.planned.endpoint.clone(),
            entity: container.planned.entity.clone(),
            phase: container.phase,
            reason: String::new(),
            since: now.saturating_since(container.since),
            exit: container.exit.map(|(code, out_of_memory)| ReplicaExit {
                code,
                out_of_memory,
            }),
            sample: Some(ReplicaSample {
                cpu_cores: Some(container.share / self.knee),
                memory_bytes: Some(256 << 20),
                memory_limit_bytes: Some(1 << 30),
                ..ReplicaSample::default()
            }),
        });
        let plan = self.plan.as_ref();
        let images = plan.into_iter().flat_map(|plan| &plan.images);
        let models = plan.into_iter().flat_map(|plan| &plan.models);
        AgentReport {
            plan: plan.map(|plan| (plan.epoch, plan.revision)),
            capacity: self.capacity.clone(),
            replicas: replicas.collect(),
            images: images
                .map(|image| ImageStatus {
                    reference: image.reference.clone(),
                    state: HoldState::Ready,
                })
                .collect(),
            models: models
                .map(|model| ModelStatus {
                    manifest: model.manifest,
                    state: HoldState::Ready,
                })
                .collect(),
            sample: NodeSample::default(),
        }
    }

    /// `entry`: clients come in through this gateway, so it counts their demand.
    pub(crate) fn gateway_report(
        &mut self,
        load: &BTreeMap<ServedEntityId, f64>,
        entry: bool,
    ) -> GatewayReport {
        let sick = self.sick.clone();
        let offered = self.offered(load);
        let (knee, measures) = (self.knee, self.gateway_measures);
        let replicas = self
            .containers
            .iter_mut()
            .filter(|(_, container)| container.phase == ReplicaPhase::Running)
            .map(|(id, container)| {
                let offered = offered.iter().find(|it| it.replicas.contains(id));
                container.share = offered.map_or(0.0, Offered::share);
                container.in_flight = u32::from(container.share > 0.0);
                ReplicaHealth {
                    id: id.clone(),
                    health: match (container.healthy, sick.contains(id)) {
                        (true, false) => Health::Healthy,
                        (true, true) => Health::Unhealthy,
                        (false, _) => Health::Starting,
                    },
                    detail: String::new(),
                    in_flight: container.in_flight,
                    load: measures.then(|| replica_load(container.share, knee)),
                }
            })
            .collect();
        let traffic = offered.iter().filter(|_| entry).map(|offered| {
            let each = replica_load(offered.share(), knee);
            let completions = each.completions * offered.replicas.len() as u64;
            EntityTraffic {
                id: offered.id.clone(),
                over: each.over,
                arrivals: completions,
                completions,
                rejected: 0,
                failed: 0,
                active: offered.active(),
                queued: offered.load - offered.active(),
                p50_ms: each.p50_ms,
                p95_ms: each.p95_ms,
                p99_ms: None,
            }
        });
        GatewayReport {
            routes: self.routes.as_ref().map(|it| (it.epoch, it.revision)),
            replicas,
            traffic: traffic.collect(),
        }
    }

    /// The load of each entity, and the replicas that this gateway's routes send it to.
    fn offered(&self, load: &BTreeMap<ServedEntityId, f64>) -> Vec<Offered> {
        let routes = self.routes.iter().flat_map(|routes| &routes.endpoints);
        let entities = routes.flat_map(|endpoint| {
            let name = &endpoint.name;
            endpoint.entities.iter().map(move |entity| (name, entity))
        });
        let routed = |id: &ServedEntityId| {
            let mut entities = entities.clone();
            entities.find(|(name, it)| **name == id.endpoint && it.name == id.entity)
        };
        load.iter()
            .map(|(id, load)| {
                let entity = routed(id).map(|(_, entity)| entity);
                let replicas = entity.iter().flat_map(|entity| &entity.replicas);
                let serving: Vec<_> = replicas.filter(|it| !it.draining).collect();
                Offered {
                    id: id.clone(),
                    load: *load,
                    capacity: serving
                        .iter()
                        .filter_map(|it| Some(entity?.limit_of(it)))
                        .sum(),
                    replicas: serving.iter().map(|it| it.id.clone()).collect(),
                }
            })
            .collect()
    }

    pub(crate) fn acked(&self) -> Option<(Epoch, Revision)> {
        self.routes.as_ref().map(|it| (it.epoch, it.revision))
    }
}

/// Requests at once of one entity, by clients that each wait for their answer.
struct Offered {
    id: ServedEntityId,
    load: f64,
    replicas: Vec<ReplicaId>,
    /// What its replicas take at once, all together.
    capacity: u32,
}

impl Offered {
    fn active(&self) -> f64 {
        self.load.min(f64::from(self.capacity))
    }

    /// Requests at each replica.
    fn share(&self) -> f64 {
        self.active() / self.replicas.len().max(1) as f64
    }
}

/// 100 ms a request up to the knee, and later in proportion beyond it.
fn replica_load(share: f64, knee: f64) -> ReplicaLoad {
    let service_ms = 100.0 * (share / knee).max(1.0);
    let completions = (share * 1000.0 / service_ms).round() as u64;
    let known = (completions > 0).then_some(service_ms);
    ReplicaLoad {
        over: Duration::from_secs(1),
        active: share,
        completions,
        p50_ms: known,
        p95_ms: known.map(|ms| ms * 1.2),
    }
}

impl Container {
    fn advance(&mut self, behaviours: &BTreeMap<ManifestId, Behaviour>, now: MonoTime) {
        let behaviour = behaviours
            .get(&self.planned.model)
            .copied()
            .unwrap_or(Behaviour::starts_in(1));
        match self.phase {
            ReplicaPhase::Pending if now > self.since => {
                self.phase = ReplicaPhase::Running;
                self.since = now;
            }
            ReplicaPhase::Running => {
                let up = now.saturating_since(self.since).as_secs() >= behaviour.startup_s;
                match behaviour.exit {
                    Some(exit) if up => {
                        self.phase = ReplicaPhase::Failed;
                        self.exit = Some(exit);
                        self.healthy = false;
                    }
                    _ => self.healthy = up && !behaviour.never_healthy,
                }
            }
            _ => {}
        }
    }
}
