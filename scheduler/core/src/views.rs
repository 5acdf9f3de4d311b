//! Endpoints in the words of the serving-endpoints API.

use shared::api::serving::{
    ConfigOutput, Detailed, EndpointState, EntityState, RouteOutput, ServedEntityOutput,
    StokeholdEntity, Summary, SummaryConfig, SummaryEntity, TagOutput, TrafficOutput,
};
use shared::spec::{EndpointConfig, PendingConfig, ServedEntity, Sizing};
use shared::units::MonoTime;

use crate::core::Core;
use crate::describe::{state_name, state_reason};
use crate::endpoint::Entry;
use crate::replica::Replica;
use crate::rollout::cut;
use crate::set::ReplicaSet;

const MAX_MESSAGE_BYTES: usize = 500;

impl Core {
    pub(crate) fn detailed(&self, entry: &Entry) -> Detailed {
        let record = &entry.record;
        let active = record.active.as_ref().map(|config| {
            let state = |entity: &ServedEntity| self.active_state(entry, entity);
            config_output(entry, config, record.updated_unix_ms, state)
        });
        let pending = record.pending.as_ref().map(|pending| ConfigOutput {
            start_time: Some(pending.started_unix_ms),
            ..config_output(entry, &pending.config, pending.started_unix_ms, |entity| {
                self.pending_state(entry, pending, entity)
            })
        });
        Detailed {
            name: record.name.clone(),
            id: record.id.clone(),
            creator: record.creator.clone(),
            creation_timestamp: record.created_unix_ms,
            last_updated_timestamp: record.updated_unix_ms,
            state: self.endpoint_state(entry),
            config: active,
            pending_config: pending,
            tags: tags(entry),
            permission_level: "CAN_MANAGE".into(),
            route_optimized: false,
            description: record.description.clone(),
            endpoint_type: "CUSTOM_MODEL".into(),
        }
    }

    pub(crate) fn summary(&self, entry: &Entry) -> Summary {
        let record = &entry.record;
        let pending = record.pending.as_ref().map(|pending| &pending.config);
        let config = record.active.as_ref().or(pending).map(|config| {
            let entities: Vec<SummaryEntity> = config.entities.iter().map(summary_entity).collect();
            SummaryConfig {
                served_models: entities.clone(),
                served_entities: entities,
            }
        });
        Summary {
            name: record.name.clone(),
            id: record.id.clone(),
            creator: record.creator.clone(),
            creation_timestamp: record.created_unix_ms,
            last_updated_timestamp: record.updated_unix_ms,
            state: self.endpoint_state(entry),
            tags: tags(entry),
            description: record.description.clone(),
            config,
        }
    }

    fn endpoint_state(&self, entry: &Entry) -> EndpointState {
        let ready = entry.record.active.as_ref().is_some_and(|config| {
            let mut entities = config.entities.iter();
            entities.all(|entity| self.active_state(entry, entity).deployment == READY)
        });
        let failed = entry.record.pending.is_some() && entry.rolling().is_none();
        let config_update = if entry.in_progress() {
            "IN_PROGRESS"
        } else if failed {
            "UPDATE_FAILED"
        } else {
            "NOT_UPDATING"
        };
        EndpointState {
            ready: if ready { "READY" } else { "NOT_READY" }.into(),
            config_update: config_update.into(),
        }
    }

    /// An entity of the config that serves. Zero replicas are ready where zero are wanted.
    fn active_state(&self, entry: &Entry, entity: &ServedEntity) -> EntityState {
        let set = entry.active_set(&entity.name);
        let Some(set) = set.and_then(|id| self.sets.get(&id)) else {
            return entity_state(RECOVERING, "");
        };
        let desired = set.desired();
        let ready = self.ready_members(set);
        if ready >= desired {
            let at_zero = desired == 0 && ready == 0;
            entity_state(READY, if at_zero { "Scaled to zero" } else { "" })
        } else if ready > 0 {
            entity_state(READY, &self.waits_for(set, desired, self.now))
        } else if set.waking && set.backoff.failures == 0 {
            entity_state(READY, "Scaling from zero")
        } else {
            entity_state(RECOVERING, &self.waits_for(set, desired, self.now))
        }
    }

    fn pending_state(
        &self,
        entry: &Entry,
        pending: &PendingConfig,
        entity: &ServedEntity,
    ) -> EntityState {
        if let Some(failure) = &pending.failure {
            return if failure.entity == entity.name {
                entity_state("DEPLOYMENT_FAILED", &failure.message)
            } else {
                let why = format!("stopped because {} failed", failure.entity);
                entity_state("DEPLOYMENT_ABORTED", &why)
            };
        }
        let set = entry.pending_set(&entity.name);
        match set.and_then(|id| self.sets.get(&id)) {
            Some(set) if self.ready_members(set) >= set.needed => entity_state(READY, ""),
            Some(set) => entity_state(CREATING, &self.waits_for(set, set.needed, self.now)),
            None => entity_state(CREATING, ""),
        }
    }

    /// What a set that lacks ready replicas waits for, for people.
    pub(crate) fn waits_for(&self, set: &ReplicaSet, wanted: u32, now: MonoTime) -> String {
        let ready = self.ready_members(set);
        let mut text = String::new();
        if wanted > 1 {
            text = format!("{ready} of {wanted} replicas ready: ");
        }
        let coming: Option<&Replica> = self.counted(set).find(|replica| !replica.serves());
        text += &match (&set.blocked, &set.backoff.last, coming) {
            (Some(blocked), ..) => blocked.reason.clone(),
            (None, Some((node, why)), None) => {
                let pause = set.backoff.retry_at.map(|at| at.saturating_since(now));
                let seconds = pause.map_or(0.0, |pause| pause.as_secs_f64()).ceil();
                format!("the last start failed on {node}: {why}; the next in {seconds} s")
            }
            (None, failed, Some(replica)) => {
                let (word, reason) = (state_name(replica), state_reason(replica));
                let colon = if reason.is_empty() { "" } else { ": " };
                let after = match failed {
                    Some((node, why)) => format!("; the last start failed on {node}: {why}"),
                    None => String::new(),
                };
                let (id, node) = (&replica.id, &replica.node);
                format!("replica {id} on {node} is {word}{colon}{reason}{after}")
            }
            (None, None, None) => "a replica is about to be placed".into(),
        };
        cut(&text, MAX_MESSAGE_BYTES)
    }
}

const CREATING: &str = "DEPLOYMENT_CREATING";
const READY: &str = "DEPLOYMENT_READY";
const RECOVERING: &str = "DEPLOYMENT_RECOVERING";

fn entity_state(deployment: &str, message: &str) -> EntityState {
    EntityState {
        deployment: deployment.into(),
        deployment_state_message: message.into(),
    }
}

fn tags(entry: &Entry) -> Vec<TagOutput> {
    let tags = entry.record.tags.iter();
    tags.map(|tag| TagOutput {
        key: tag.key.clone(),
        value: tag.value.clone(),
    })
    .collect()
}

fn summary_entity(entity: &ServedEntity) -> SummaryEntity {
    let (model, version) = (entity.model.to_string(), entity.model_version.to_string());
    SummaryEntity {
        name: entity.name.to_string(),
        entity_name: model.clone(),
        entity_version: version.clone(),
        model_name: model,
        model_version: version,
    }
}

fn config_output(
    entry: &Entry,
    config: &EndpointConfig,
    made_unix_ms: u64,
    state: impl Fn(&ServedEntity) -> EntityState,
) -> ConfigOutput {
    let creator = &entry.record.creator;
    let entities: Vec<ServedEntityOutput> = config
        .entities
        .iter()
        .map(|entity| entity_output(entity, creator, made_unix_ms, state(entity)))
        .collect();
    let routes = config.traffic.iter().map(|share| RouteOutput {
        served_model_name: share.entity.to_string(),
        served_entity_name: share.entity.to_string(),
        traffic_percentage: share.percent,
    });
    ConfigOutput {
        served_models: entities.clone(),
        served_entities: entities,
        traffic_config: TrafficOutput {
            routes: routes.collect(),
        },
        config_version: config.version,
        start_time: None,
    }
}

fn entity_output(
    entity: &ServedEntity,
    creator: &str,
    made_unix_ms: u64,
    state: EntityState,
) -> ServedEntityOutput {
    let (size, bounds) = match &entity.sizing {
        Sizing::WorkloadSize(size) => (Some(size.clone()), None),
        Sizing::Concurrency { min, max } => (None, Some((*min, *max))),
        Sizing::Unstated => (None, None),
    };
    let (model, version) = (entity.model.to_string(), entity.model_version.to_string());
    ServedEntityOutput {
        name: entity.name.to_string(),
        entity_name: model.clone(),
        entity_version: version.clone(),
        model_name: model,
        model_version: version,
        workload_size: size,
        min_provisioned_concurrency: bounds.map(|(min, _)| min),
        max_provisioned_concurrency: bounds.map(|(_, max)| max),
        workload_type: entity.workload_type.clone(),
        scale_to_zero_enabled: entity.scaling.scale_to_zero,
        environment_vars: entity.environment.clone(),
        creator: creator.into(),
        creation_timestamp: made_unix_ms,
        state,
        stokehold: StokeholdEntity {
            runtime: Some(entity.runtime.to_string()),
            target_concurrency: entity.scaling.pinned_target,
            latency_objective_ms: entity.scaling.latency_objective_ms,
            min_replicas: Some(entity.scaling.min_replicas),
            max_replicas: Some(entity.scaling.max_replicas),
            memory_bytes: Some(entity.resources.memory_bytes),
            cpu_millis: Some(entity.resources.cpu_millis),
        },
    }
}
