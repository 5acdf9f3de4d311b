//! What people ask for: endpoints and their served entities. All of it is checked on arrival.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{EndpointId, EndpointName, EntityName, ModelName, RuntimeName};
use crate::manifest::ManifestId;
use crate::runtime::Resources;

/// How many requests a replica accepts at once until the vertical axis knows better.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scaling {
    pub min_replicas: u32,
    pub max_replicas: u32,
    pub scale_to_zero: bool,
    pub target_concurrency: u32,
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
