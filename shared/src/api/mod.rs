//! The JSON of the REST API, and of the files by which agent and gateway of one node meet.

pub mod autoscaler;
mod blocked;
pub mod certificates;
pub mod events;
pub mod images;
pub mod local;
pub mod serving;

pub use blocked::Blocked;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{
    AliasName, ClusterId, EndpointName, EntityName, ImageRef, ModelName, NodeName, ReplicaId, Role,
    TokenId,
};
use crate::manifest::{Description, ManifestId};
use crate::spec::TokenRole;

/// The body of every error answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    pub error_code: String,
    pub message: String,
}

/// `GET /api/stokehold/v1/version`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Version {
    pub version: String,
    pub cluster: ClusterId,
    pub epoch: u64,
}

/// `GET /api/stokehold/v1/whoami`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct WhoAmI {
    pub id: TokenId,
    pub name: String,
    pub role: TokenRole,
}

/// `POST /api/stokehold/v1/join`: authenticated by the token's secret, not by a bearer token.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    pub token_id: TokenId,
    pub secret: String,
    pub role: Role,
    pub node: NodeName,
    /// PKCS#10, PEM.
    pub csr_pem: String,
    /// Host names and addresses that clients will use (gateways).
    #[serde(default)]
    pub names: Vec<String>,
}

impl std::fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "JoinRequest({} of {} by {}, secret hidden)",
            self.role, self.node, self.token_id
        )
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JoinReply {
    pub cluster: ClusterId,
    /// Leaf first.
    pub certificate_pem: String,
    /// Every authority to trust, the one that signs first.
    pub ca_pem: String,
    /// `host:port` of the scheduler's QUIC listener.
    pub scheduler: Vec<String>,
    /// `host:port` of its REST API; empty from versions before renewal.
    #[serde(default)]
    pub rest: Vec<String>,
}

/// `POST /api/stokehold/v1/chunks/missing`: which of these are not in the store yet (hex).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MissingChunks {
    /// At most 4096.
    pub digests: Vec<crate::digest::Digest>,
}

/// `POST /api/stokehold/v1/manifests` answers the id of the manifest that was stored.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ManifestStored {
    pub id: ManifestId,
}

/// `POST /api/stokehold/v1/models/{name}/versions`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterModelVersion {
    pub manifest: ManifestId,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelVersionInfo {
    pub name: ModelName,
    pub version: u32,
    pub manifest: ManifestId,
    pub size_bytes: u64,
    pub description: Description,
    pub created_unix_ms: u64,
    pub aliases: Vec<AliasName>,
}

/// `GET /api/stokehold/v1/models`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ModelList {
    pub models: Vec<ModelVersionInfo>,
}

/// `PUT /api/stokehold/v1/models/{name}/aliases/{alias}`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetAlias {
    pub version: u32,
}

/// `POST /api/stokehold/v1/images`: the manifest is of an OCI layout (`Kind::Image`).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterImage {
    pub reference: ImageRef,
    pub manifest: ManifestId,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ImageInfo {
    pub reference: ImageRef,
    /// The OCI manifest's digest.
    pub digest: String,
    /// Of an imported image; one of a registry has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<ManifestId>,
    pub size_bytes: u64,
    pub layers: u32,
    pub created_unix_ms: u64,
    #[serde(default)]
    pub nodes: images::OnNodes,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ImageList {
    pub images: Vec<ImageInfo>,
    /// Images that runtimes name and that are not there, with the reason.
    #[serde(default)]
    pub missing: Vec<images::MissingImage>,
}

/// What a deletion freed.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Deleted {
    pub freed_bytes: u64,
}

/// `POST /api/stokehold/v1/node-tokens`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateNodeToken {
    /// Each role can be redeemed once, by the same node. Default: agent and gateway.
    #[serde(default)]
    pub roles: Vec<Role>,
    /// Default 900.
    #[serde(default)]
    pub lifetime_seconds: Option<u64>,
    /// For this node alone, which has joined already: its new keys take the place of the old ones.
    #[serde(default)]
    pub replace: Option<NodeName>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodeTokenCreated {
    pub id: TokenId,
    /// The text for `join`; it is shown once.
    pub token: String,
    pub expires_unix: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodeTokenInfo {
    pub id: TokenId,
    pub roles: Vec<Role>,
    /// Roles already redeemed.
    pub redeemed: Vec<Role>,
    pub node: Option<NodeName>,
    pub expires_unix: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodeTokenList {
    pub tokens: Vec<NodeTokenInfo>,
}

/// `POST /api/stokehold/v1/tokens`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    pub name: String,
    pub role: TokenRole,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TokenCreated {
    pub id: TokenId,
    /// Shown once.
    pub token: String,
    pub role: TokenRole,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TokenInfo {
    pub id: TokenId,
    pub name: String,
    pub role: TokenRole,
    pub created_unix_ms: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TokenList {
    pub tokens: Vec<TokenInfo>,
}

/// `GET /api/stokehold/v1/nodes`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodeList {
    pub nodes: Vec<NodeSummary>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodeSummary {
    pub name: NodeName,
    /// `ready`, `silent`, `lost`, `joined` (never seen since the scheduler started) or `revoked`.
    pub state: String,
    pub agent_connected: bool,
    pub gateway_connected: bool,
    /// Seconds since the last report.
    pub last_report_age_s: Option<f64>,
    pub cpu_millis: Option<u32>,
    pub cpu_millis_planned: u32,
    pub memory_bytes: Option<u64>,
    pub memory_bytes_planned: u64,
    /// 0 to 1.
    pub cpu: Option<f64>,
    pub memory_used_bytes: Option<u64>,
    pub gpus: Vec<String>,
    pub gpus_absent: Option<String>,
    pub replicas: u32,
    /// The gateway's address for clients.
    pub gateway: Option<String>,
    /// What is wrong with the node's identity, and how to mend it.
    #[serde(default)]
    pub problem: Option<String>,
}

/// `GET /api/stokehold/v1/nodes/{name}`: what `stokehold node describe` shows.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodeDescription {
    pub node: NodeSummary,
    pub replicas: Vec<ReplicaInfo>,
    /// Its last events, oldest first.
    pub events: Vec<events::EventInfo>,
}

/// `GET /api/stokehold/v1/endpoints/{name}`: what `stokehold describe` shows.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct EndpointDescription {
    pub endpoint: serving::Detailed,
    pub replicas: Vec<ReplicaInfo>,
    /// The autoscaler's last decision for each served entity.
    pub decisions: Vec<DecisionInfo>,
    /// Its last events, oldest first.
    #[serde(default)]
    pub events: Vec<events::EventInfo>,
    /// Served entities whose next replica finds no place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocked: Vec<Blocked>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ReplicaInfo {
    pub id: ReplicaId,
    pub endpoint: EndpointName,
    pub entity: EntityName,
    pub node: NodeName,
    /// `waiting` (its node has said nothing of it yet), or a phase of the agent's, or `ready`, or
    /// `draining`.
    pub state: String,
    pub reason: String,
    /// How long it has been in this state.
    pub since_s: f64,
    pub in_flight: u32,
    pub cpu_cores: Option<f64>,
    pub memory_bytes: Option<u64>,
    pub memory_limit_bytes: Option<u64>,
    /// Ended, kept here so that its log can be found.
    pub ended: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DecisionInfo {
    pub entity: EntityName,
    pub desired_replicas: u32,
    pub ready_replicas: u32,
    /// What most replicas take at once.
    pub target_concurrency: u32,
    /// Where that number comes from.
    #[serde(default)]
    pub target_origin: autoscaler::TargetOrigin,
    /// Active plus queued requests now.
    pub demand: Option<f64>,
    /// The rule that fixed the number of replicas; empty before the first decision.
    pub bound_by: String,
    /// Seconds since the last decision, or since the scheduler began to count before the first.
    pub age_s: f64,
}

/// One line of `GET /api/stokehold/v1/endpoints/{name}/logs`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct LogLine {
    pub replica: ReplicaId,
    /// RFC 3339.
    pub t: String,
    /// `stdout`, `stderr`, or `shim` for the log shim's own remarks.
    pub s: String,
    pub m: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}
