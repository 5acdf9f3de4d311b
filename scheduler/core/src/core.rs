//! The core: all of the scheduler's state in memory, and the door to it.
//!
//! An event first changes what was observed; then a pass (see `settle`) compares all that is wanted
//! with all that was observed, and publishes what follows. Nothing else changes the fleet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand::Rng;
use shared::api::serving::{ConfigInput, CreateEndpoint, Detailed, Summary};
use shared::api::{EndpointDescription, NodeDescription, NodeSummary};
use shared::ids::{EndpointName, Epoch, ImageRef, ModelName, NodeName, ReplicaId};
use shared::manifest::ManifestId;
use shared::plan::{ImageOrigin, Plan};
use shared::routes::Routes;
use shared::units::MonoTime;

use crate::describe::state_name;
use crate::endpoint::Entry;
use crate::error::ApiError;
use crate::event::{Ctx, Effects, Event};
use crate::events::{Draft, Log};
use crate::node::Node;
use crate::pool::PoolKeeper;
use crate::registry::Registry;
use crate::replica::Replica;
use crate::scaling::Decided;
use crate::set::{ReplicaSet, SetId};
use crate::settings::Settings;
use crate::store_op::{Entries, RestoreError};

pub struct Core {
    pub registry: Registry,
    pub(crate) settings: Settings,
    pub(crate) epoch: Epoch,
    /// The time of the last event, for ages in answers.
    pub(crate) now: MonoTime,
    pub(crate) nodes: BTreeMap<NodeName, Node>,
    pub(crate) endpoints: BTreeMap<EndpointName, Entry>,
    pub(crate) sets: BTreeMap<SetId, ReplicaSet>,
    pub(crate) replicas: BTreeMap<ReplicaId, Replica>,
    /// Why registries do not give images that runtimes name; of those that were asked.
    pub(crate) image_problems: BTreeMap<ImageRef, String>,
    /// When this process began to listen.
    pub(crate) started: MonoTime,
    /// Decisions so far, by axis and rule.
    pub(crate) decided: Decided,
    pub(crate) pools: PoolKeeper,
    pub(crate) unwritten: Unwritten,
    pub(crate) log: Log,
    pub(crate) plans: BTreeMap<NodeName, Plan>,
    pub(crate) routes: Arc<Routes>,
}

/// Records that differ from the store's until the pass writes them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unwritten {
    pub endpoints: BTreeSet<EndpointName>,
    pub replicas: BTreeSet<ReplicaId>,
    pub gateways: BTreeSet<NodeName>,
    /// Keys of what was learned of sets that are no more.
    pub forgotten: BTreeSet<String>,
}

/// One handling of one event: its time, its chance, and what it brings about.
pub(crate) struct Pass<'a> {
    pub now: MonoTime,
    pub unix_ms: u64,
    pub rng: &'a mut dyn Rng,
    pub effects: Effects,
    /// What happened, in its order.
    pub drafts: Vec<Draft>,
}

/// How many there are of what, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    pub endpoints: usize,
    /// Those that have not ended, by their state.
    pub replicas: BTreeMap<&'static str, usize>,
    /// The autoscaler's decisions since the start, by axis (`horizontal`, `vertical`) and rule.
    pub decisions: BTreeMap<&'static str, BTreeMap<String, u64>>,
}

impl<'a> Pass<'a> {
    fn new<R: Rng>(ctx: &'a mut Ctx<'_, R>) -> Self {
        Self {
            now: ctx.now,
            unix_ms: ctx.unix_ms,
            rng: ctx.rng,
            effects: Effects::default(),
            drafts: Vec::new(),
        }
    }

    pub(crate) fn tell(&mut self, draft: Draft) {
        self.drafts.push(draft);
    }
}

impl Core {
    /// What a store holds, at a scheduler's start. Nothing moves because of it: replicas are
    /// expected where they were, and routes go on naming those that were ready.
    pub fn restore(
        entries: &Entries,
        settings: Settings,
        epoch: Epoch,
        now: MonoTime,
    ) -> Result<Core, RestoreError> {
        let registry = Registry::restore(entries)?;
        let routes = Arc::new(Routes {
            cluster: settings.cluster.clone(),
            epoch,
            revision: shared::ids::Revision(0),
            endpoints: Vec::new(),
            tokens: Vec::new(),
            gateways: Vec::new(),
            revoked_nodes: Vec::new(),
        });
        let mut core = Core {
            registry,
            settings,
            epoch,
            now,
            nodes: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            sets: BTreeMap::new(),
            replicas: BTreeMap::new(),
            image_problems: BTreeMap::new(),
            started: now,
            decided: Decided::new(),
            pools: PoolKeeper::new(now),
            unwritten: Unwritten::default(),
            log: Log::restore(entries),
            plans: BTreeMap::new(),
            routes,
        };
        core.restore_fleet(entries, now)?;
        core.publish_routes(now);
        Ok(core)
    }

    /// Takes an event in and looks at what follows. `writes` of the effects are to be committed
    /// before the rest is used.
    pub fn handle<R: Rng>(&mut self, event: Event, ctx: &mut Ctx<'_, R>) -> Effects {
        let (mut effects, pass_due) = self.take_in(event, ctx);
        if pass_due {
            effects.merge(self.pass(ctx));
        }
        effects
    }

    /// Takes an event in, and says whether a pass is due. Events that come together may share one.
    pub fn take_in<R: Rng>(&mut self, event: Event, ctx: &mut Ctx<'_, R>) -> (Effects, bool) {
        let mut pass = self.begin(ctx);
        let pass_due = self.observe(event, &mut pass);
        self.remember(&mut pass);
        (pass.effects, pass_due)
    }

    /// Compares all that is wanted with all that was observed. Due after an event that said so, and
    /// after the registry changed: tokens, images and revocations reach plans and routes.
    pub fn pass<R: Rng>(&mut self, ctx: &mut Ctx<'_, R>) -> Effects {
        let mut pass = self.begin(ctx);
        self.settle(&mut pass);
        pass.effects
    }

    /// Tells of something that was done to what is only recorded (see `registry`).
    pub fn tell(&mut self, draft: Draft, unix_ms: u64) {
        self.log.record(draft, unix_ms);
    }

    /// What happened, as far as it may be shown.
    pub fn events(&self) -> &Log {
        &self.log
    }

    /// Moves what a pass has to tell into the log.
    pub(crate) fn remember(&mut self, pass: &mut Pass<'_>) {
        for draft in pass.drafts.drain(..) {
            self.log.record(draft, pass.unix_ms);
        }
    }

    fn begin<'a, R: Rng>(&mut self, ctx: &'a mut Ctx<'_, R>) -> Pass<'a> {
        self.now = ctx.now;
        Pass::new(ctx)
    }

    pub fn create_endpoint<R: Rng>(
        &mut self,
        input: CreateEndpoint,
        creator: &str,
        ctx: &mut Ctx<'_, R>,
    ) -> Result<(Detailed, Effects), ApiError> {
        let mut pass = self.begin(ctx);
        let name = self.insert_endpoint(input, creator, &mut pass)?;
        self.settle(&mut pass);
        Ok((self.get_endpoint(name.as_str())?, pass.effects))
    }

    pub fn update_config<R: Rng>(
        &mut self,
        name: &str,
        input: ConfigInput,
        ctx: &mut Ctx<'_, R>,
    ) -> Result<(Detailed, Effects), ApiError> {
        let mut pass = self.begin(ctx);
        let name = self.existing(name)?.record.name.clone();
        self.replace_config(&name, input, &mut pass)?;
        self.settle(&mut pass);
        Ok((self.get_endpoint(name.as_str())?, pass.effects))
    }

    pub fn delete_endpoint<R: Rng>(
        &mut self,
        name: &str,
        ctx: &mut Ctx<'_, R>,
    ) -> Result<Effects, ApiError> {
        let mut pass = self.begin(ctx);
        let name = self.existing(name)?.record.name.clone();
        self.remove_endpoint(&name, &mut pass);
        self.settle(&mut pass);
        Ok(pass.effects)
    }

    pub fn get_endpoint(&self, name: &str) -> Result<Detailed, ApiError> {
        Ok(self.detailed(self.existing(name)?))
    }

    pub fn list_endpoints(&self) -> Vec<Summary> {
        self.endpoints.values().map(|e| self.summary(e)).collect()
    }

    pub fn describe(&self, name: &str) -> Result<EndpointDescription, ApiError> {
        Ok(self.description(self.existing(name)?))
    }

    pub fn census(&self) -> Census {
        let mut replicas = BTreeMap::new();
        for replica in self.replicas.values() {
            *replicas.entry(state_name(replica)).or_default() += 1;
        }
        Census {
            endpoints: self.endpoints.len(),
            replicas,
            decisions: self.decided.clone(),
        }
    }

    pub fn nodes(&self) -> Vec<NodeSummary> {
        self.node_summaries()
    }

    pub fn describe_node(&self, name: &NodeName) -> Result<NodeDescription, ApiError> {
        self.node_description(name)
    }

    /// Something is wrong with a node's identity: `stokehold node list` and `node describe` show it.
    pub fn note_problem(&mut self, node: &NodeName, problem: String, now: MonoTime) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.problem = Some((now, problem));
        }
    }

    /// Forgets a node; see [`Registry::remove_node`].
    pub fn remove_node<R: Rng>(
        &mut self,
        name: &NodeName,
        ctx: &mut Ctx<'_, R>,
    ) -> Result<Effects, ApiError> {
        if self
            .nodes
            .get(name)
            .is_some_and(|node| !node.replicas.is_empty())
        {
            return Err(ApiError::conflict(format!(
                "replicas on node {name} have not been given up yet: try again in a minute"
            )));
        }
        let writes = self.registry.remove_node(name, ctx.unix_ms / 1000)?;
        if self.nodes.remove(name).is_some() {
            self.unwritten.gateways.insert(name.clone());
        }
        let mut effects = Effects {
            writes,
            ..Effects::default()
        };
        effects.merge(self.pass(ctx));
        Ok(effects)
    }

    /// Where an endpoint's replicas are, those that ended lately too, newest first. Without
    /// `entity` those of all its entities.
    pub fn replica_location(
        &self,
        endpoint: &str,
        entity: Option<&str>,
    ) -> Result<Vec<(ReplicaId, NodeName)>, ApiError> {
        self.locations(self.existing(endpoint)?, entity)
    }

    /// `None` while nothing may change on the node: it has not reported since the scheduler's
    /// start and may still do so, or it is revoked.
    pub fn plan_for(&self, node: &NodeName) -> Option<Plan> {
        self.plans.get(node).cloned()
    }

    pub fn routes(&self) -> Arc<Routes> {
        self.routes.clone()
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What uses which model version (`endpoint iris`), for refusing its deletion.
    pub fn models_in_use(&self) -> BTreeMap<(ModelName, u32), String> {
        let configured = self.endpoints.values().flat_map(|entry| {
            let active = entry.record.active.iter();
            let pending = entry.record.pending.iter().map(|pending| &pending.config);
            let entities = active.chain(pending).flat_map(|config| &config.entities);
            entities.map(|entity| (entity, format!("endpoint {}", entry.record.name)))
        });
        let running = self.replicas.values().map(|replica| {
            let user = format!("a replica of endpoint {}", replica.endpoint);
            (replica.entity.as_ref(), user)
        });
        running
            .chain(configured)
            .map(|(entity, user)| ((entity.model.clone(), entity.model_version), user))
            .collect()
    }

    /// What uses which image, for refusing its deletion.
    pub fn images_in_use(&self) -> BTreeMap<ImageRef, String> {
        let running = self.replicas.values().map(|replica| {
            let user = format!("a replica of endpoint {}", replica.endpoint);
            (replica.template.image.clone(), user)
        });
        // An entity at zero replicas needs its image too, and at once when a request wakes it.
        let configured = self.sets.values().filter_map(|set| {
            let template = self.settings.templates.get(&set.entity()?.runtime)?;
            let user = format!("endpoint {}", set.endpoint);
            Some((template.image.clone(), user))
        });
        // One that a registry gave would be asked for again at once.
        let pulled = |image: &ImageRef| {
            let known = self.registry.image(image);
            known.is_some_and(|image| image.origin == ImageOrigin::Registry)
        };
        let templates = self.settings.templates.values();
        let named = templates.filter(|template| pulled(&template.image));
        let named = named.map(|template| {
            let user = format!("the template of runtime {}", template.name);
            (template.image.clone(), user)
        });
        named.chain(running).chain(configured).collect()
    }

    /// Manifests that the chunk store must keep: the registry's, and those of replicas.
    pub fn live_manifests(&self) -> BTreeSet<ManifestId> {
        let running = self.replicas.values().map(|r| r.entity.manifest);
        running.chain(self.registry.live_manifests()).collect()
    }

    /// The endpoint of this name; a text that is no name is unknown too.
    pub(crate) fn existing(&self, name: &str) -> Result<&Entry, ApiError> {
        EndpointName::parse(name)
            .ok()
            .and_then(|name| self.endpoints.get(&name))
            .ok_or_else(|| {
                let shown: String = name.chars().take(80).collect();
                ApiError::not_found(format!("endpoint {shown:?} does not exist"))
            })
    }
}
