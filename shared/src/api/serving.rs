//! The serving-endpoints API in the shapes that existing clients of Databricks Model Serving use.
//!
//! Inputs are lenient where those clients differ (versions as numbers, percentages as texts) and
//! strict where a misspelt field would pass silently (unknown fields of a served entity are refused).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::ids::{EndpointId, EndpointName};

/// `POST /api/2.0/serving-endpoints`. Unknown top-level fields are ignored, as clients send some.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CreateEndpoint {
    pub name: String,
    #[serde(default)]
    pub config: Option<ConfigInput>,
    #[serde(default)]
    pub tags: Option<Vec<TagInput>>,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub route_optimized: Option<bool>,
    #[serde(default)]
    pub rate_limits: Option<Vec<Value>>,
    #[serde(default)]
    pub ai_gateway: Option<Value>,
    #[serde(default)]
    pub email_notifications: Option<Value>,
    #[serde(default)]
    pub telemetry_config: Option<Value>,
    #[serde(default)]
    pub budget_policy_id: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TagInput {
    pub key: String,
    #[serde(default)]
    pub value: Option<String>,
}

/// `PUT /api/2.0/serving-endpoints/{name}/config`, and `config` of a create.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigInput {
    #[serde(default)]
    pub served_entities: Option<Vec<ServedEntityInput>>,
    #[serde(default)]
    pub served_models: Option<Vec<ServedEntityInput>>,
    #[serde(default)]
    pub traffic_config: Option<TrafficInput>,
    #[serde(default)]
    pub auto_capture_config: Option<Value>,
    /// Some clients repeat the endpoint's name here.
    #[serde(default)]
    pub name: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServedEntityInput {
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default)]
    pub entity_name: Option<String>,
    /// `entity_name` in old words; answers carry both, so requests made of answers do too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_name: Option<String>,
    #[serde(default, deserialize_with = "text_or_number")]
    #[schemars(schema_with = "text_or_number_schema")]
    pub entity_version: Option<String>,
    #[serde(
        default,
        deserialize_with = "text_or_number",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "text_or_number_schema")]
    pub model_version: Option<String>,
    #[serde(default)]
    pub workload_size: Option<String>,
    #[serde(default)]
    pub min_provisioned_concurrency: Option<u32>,
    #[serde(default)]
    pub max_provisioned_concurrency: Option<u32>,
    #[serde(default)]
    pub workload_type: Option<String>,
    #[serde(default)]
    pub scale_to_zero_enabled: Option<bool>,
    #[serde(default)]
    pub environment_vars: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub burst_scaling_enabled: Option<bool>,
    #[serde(default)]
    pub instance_profile_arn: Option<Value>,
    #[serde(default)]
    pub external_model: Option<Value>,
    #[serde(default)]
    pub foundation_model: Option<Value>,
    #[serde(default)]
    pub provisioned_model_units: Option<Value>,
    #[serde(default)]
    pub min_provisioned_throughput: Option<Value>,
    #[serde(default)]
    pub max_provisioned_throughput: Option<Value>,
    /// What is ours alone.
    #[serde(default)]
    pub stokehold: Option<StokeholdEntity>,
    /// Parts of answers, without meaning in a request: some clients send back what they got.
    #[serde(default, skip_serializing)]
    pub creator: IgnoredAny,
    #[serde(default, skip_serializing)]
    pub creation_timestamp: IgnoredAny,
    #[serde(default, skip_serializing)]
    pub state: IgnoredAny,
}

/// Accepted whatever it is, and kept nowhere: two inputs that differ in it are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct IgnoredAny;

impl JsonSchema for IgnoredAny {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "IgnoredAny".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"description": "Part of answers; ignored in a request."})
    }
}

impl<'de> Deserialize<'de> for IgnoredAny {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// Our own knobs of a served entity; each has a default that is right for most.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StokeholdEntity {
    /// Overrides the choice by the model's description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Requests that each replica takes at once. Given, it is pinned to this; left out, it is
    /// learned from what the replicas do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_concurrency: Option<u32>,
    /// The p95 of a request's time at the replica that must hold while the target is learned. Left
    /// out: 1.5 times what it is at low load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_objective_ms: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_replicas: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_replicas: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TrafficInput {
    #[serde(default)]
    pub routes: Vec<RouteInput>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RouteInput {
    #[serde(default)]
    pub served_model_name: Option<String>,
    #[serde(default)]
    pub served_entity_name: Option<String>,
    /// A number or a text; the vendor's own examples quote it.
    #[serde(default, deserialize_with = "text_or_number")]
    #[schemars(schema_with = "text_or_number_schema")]
    pub traffic_percentage: Option<String>,
}

fn text_or_number_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": ["string", "number", "null"]})
}

fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a text or a number")]
    enum Form {
        Text(String),
        Integer(i64),
        Real(f64),
    }
    Ok(
        Option::<Form>::deserialize(deserializer)?.map(|form| match form {
            Form::Text(text) => text,
            Form::Integer(number) => number.to_string(),
            Form::Real(number) => number.to_string(),
        }),
    )
}

/// The whole state of one endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Detailed {
    pub name: EndpointName,
    pub id: EndpointId,
    pub creator: String,
    pub creation_timestamp: u64,
    pub last_updated_timestamp: u64,
    pub state: EndpointState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ConfigOutput>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_config: Option<ConfigOutput>,
    pub tags: Vec<TagOutput>,
    pub permission_level: String,
    pub route_optimized: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    pub endpoint_type: String,
}

/// One entry of `GET /api/2.0/serving-endpoints`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Summary {
    pub name: EndpointName,
    pub id: EndpointId,
    pub creator: String,
    pub creation_timestamp: u64,
    pub last_updated_timestamp: u64,
    pub state: EndpointState,
    pub tags: Vec<TagOutput>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<SummaryConfig>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SummaryConfig {
    pub served_entities: Vec<SummaryEntity>,
    pub served_models: Vec<SummaryEntity>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SummaryEntity {
    pub name: String,
    pub entity_name: String,
    pub entity_version: String,
    pub model_name: String,
    pub model_version: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EndpointList {
    pub endpoints: Vec<Summary>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EndpointState {
    /// `READY` or `NOT_READY`.
    pub ready: String,
    /// `IN_PROGRESS`, `NOT_UPDATING`, `UPDATE_FAILED` or `UPDATE_CANCELED`.
    pub config_update: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TagOutput {
    pub key: String,
    pub value: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigOutput {
    pub served_entities: Vec<ServedEntityOutput>,
    /// The same in old words.
    pub served_models: Vec<ServedEntityOutput>,
    pub traffic_config: TrafficOutput,
    pub config_version: u32,
    /// Of a pending config only, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServedEntityOutput {
    pub name: String,
    pub entity_name: String,
    pub entity_version: String,
    pub model_name: String,
    pub model_version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_size: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_provisioned_concurrency: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_provisioned_concurrency: Option<u32>,
    pub workload_type: String,
    pub scale_to_zero_enabled: bool,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment_vars: BTreeMap<String, String>,
    pub creator: String,
    pub creation_timestamp: u64,
    pub state: EntityState,
    pub stokehold: StokeholdEntity,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EntityState {
    /// `DEPLOYMENT_CREATING`, `DEPLOYMENT_READY`, `DEPLOYMENT_RECOVERING`, `DEPLOYMENT_FAILED` or
    /// `DEPLOYMENT_ABORTED`.
    pub deployment: String,
    pub deployment_state_message: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TrafficOutput {
    pub routes: Vec<RouteOutput>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RouteOutput {
    pub served_model_name: String,
    pub served_entity_name: String,
    pub traffic_percentage: u32,
}

/// `GET .../served-models/{name}/logs`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Logs {
    pub logs: String,
}
