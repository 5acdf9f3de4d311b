//! What people ask for: endpoints and their served entities. All of it is checked on arrival.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{EndpointId, EndpointName, EntityName, ModelName, RuntimeName};
use crate::manifest::ManifestId;
use crate::runtime::Resources;

/// What a replica is thought to take at once where nothing else says it: the unit in which the
/// vendor counts provisioned concurrency.
pub const DEFAULT_TARGET_CONCURRENCY: u32 = 4;

/// An endpoint as it is kept in the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    pub id: EndpointId,
    pub name: EndpointName,
    /// Name of the token that made it.
    pub creator: String,
    pub created_unix_ms: u64,
    pub updated_unix_ms: u64,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub tags: Vec<Tag>,
    /// What serves now.
    pub active: Option<EndpointConfig>,
    /// What is being rolled out, or what failed to.
    pub pending: Option<PendingConfig>,
    /// The last version given out, failed ones included.
    pub last_config_version: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    pub key: String,
    #[serde(default)]
    pub value: String,
}

/// One version of what an endpoint serves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndpointConfig {
    pub version: u32,
    /// 1 to 10.
    pub entities: Vec<ServedEntity>,
    /// Percent of traffic by entity; sums to 100.
    pub traffic: Vec<TrafficShare>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficShare {
    pub entity: EntityName,
    pub percent: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PendingConfig {
    pub config: EndpointConfig,
    pub started_unix_ms: u64,
    /// `Some` when the roll-out failed: why, per entity.
    pub failure: Option<RolloutFailure>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutFailure {
    /// The entity at fault; siblings were aborted because of it.
    pub entity: EntityName,
    pub message: String,
}

/// One model version inside an endpoint. Two that are equal in all fields share their replicas
/// across config versions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServedEntity {
    pub name: EntityName,
    pub model: ModelName,
    pub model_version: u32,
    /// What the model's version meant when the entity was made: a version never changes.
    pub manifest: ManifestId,
    pub runtime: RuntimeName,
    pub resources: Resources,
    pub environment: BTreeMap<String, String>,
    pub scaling: Scaling,
    /// How sizing was given, to be answered in the same words.
    pub sizing: Sizing,
    pub workload_type: String,
}

/// The bounds within which the axes move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "ScalingRecord", into = "ScalingRecord")]
pub struct Scaling {
    pub min_replicas: u32,
    pub max_replicas: u32,
    pub scale_to_zero: bool,
    /// Capacity, in requests at once, that is kept whatever the demand.
    pub provisioned_concurrency: u32,
    /// How many requests each replica takes at once, where that is fixed; `None`: it is learned.
    pub pinned_target: Option<u32>,
    /// The p95 of a request's time at the replica that must hold; `None`: by what low load takes.
    pub latency_objective_ms: Option<u32>,
}

/// As it lies in the store. Before targets were learned every record had a number and none said
/// `pinned`; such a number was given, or was [`DEFAULT_TARGET_CONCURRENCY`] because nothing was.
#[derive(Serialize, Deserialize)]
struct ScalingRecord {
    min_replicas: u32,
    max_replicas: u32,
    scale_to_zero: bool,
    target_concurrency: u32,
    #[serde(default)]
    pinned: Option<bool>,
    #[serde(default)]
    provisioned_concurrency: u32,
    #[serde(default)]
    latency_objective_ms: Option<u32>,
}

impl From<ScalingRecord> for Scaling {
    fn from(record: ScalingRecord) -> Self {
        let target = record.target_concurrency;
        let pinned = record
            .pinned
            .unwrap_or(target != DEFAULT_TARGET_CONCURRENCY);
        Self {
            min_replicas: record.min_replicas,
            max_replicas: record.max_replicas,
            scale_to_zero: record.scale_to_zero,
            provisioned_concurrency: record.provisioned_concurrency,
            pinned_target: pinned.then_some(target.max(1)),
            latency_objective_ms: record.latency_objective_ms,
        }
    }
}

impl From<Scaling> for ScalingRecord {
    fn from(scaling: Scaling) -> Self {
        Self {
            min_replicas: scaling.min_replicas,
            max_replicas: scaling.max_replicas,
            scale_to_zero: scaling.scale_to_zero,
            target_concurrency: scaling.pinned_target.unwrap_or(DEFAULT_TARGET_CONCURRENCY),
            pinned: Some(scaling.pinned_target.is_some()),
            provisioned_concurrency: scaling.provisioned_concurrency,
            latency_objective_ms: scaling.latency_objective_ms,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sizing {
    /// `Small`, `Medium` or `Large`.
    WorkloadSize(String),
    Concurrency {
        min: u32,
        max: u32,
    },
    /// Nothing was said.
    Unstated,
}

/// The role of a bearer token. Each may do all that the ones before it may.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum TokenRole {
    /// Call endpoints, see their state.
    Query,
    /// Make, change and delete endpoints, models and images.
    Manage,
    /// Tokens and nodes too.
    Admin,
}

impl TokenRole {
    pub fn as_str(self) -> &'static str {
        match self {
            TokenRole::Query => "query",
            TokenRole::Manage => "manage",
            TokenRole::Admin => "admin",
        }
    }
}

impl std::str::FromStr for TokenRole {
    type Err = crate::ids::InvalidName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "query" => Ok(TokenRole::Query),
            "manage" => Ok(TokenRole::Manage),
            "admin" => Ok(TokenRole::Admin),
            _ => Err(crate::ids::InvalidName::by_rule(
                "token role",
                text,
                "query, manage or admin",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Scaling {
        serde_json::from_str(text).expect("a record")
    }

    #[test]
    fn a_target_of_an_old_record_is_pinned_unless_it_was_the_default() {
        let old = |target: u32| {
            read(&format!(
                r#"{{"min_replicas":1,"max_replicas":4,"scale_to_zero":false,"target_concurrency":{target}}}"#
            ))
        };
        assert_eq!(old(DEFAULT_TARGET_CONCURRENCY).pinned_target, None);
        assert_eq!(old(10).pinned_target, Some(10));
    }

    #[test]
    fn a_target_that_was_pinned_to_the_default_stays_pinned() {
        for pinned_target in [None, Some(DEFAULT_TARGET_CONCURRENCY), Some(9)] {
            let scaling = Scaling {
                max_replicas: 3,
                pinned_target,
                provisioned_concurrency: 8,
                latency_objective_ms: Some(250),
                ..Scaling::default()
            };
            let written = serde_json::to_string(&scaling).expect("JSON");
            assert_eq!(read(&written), scaling);
        }
    }
}
