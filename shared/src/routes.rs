//! What the scheduler tells gateways: where requests may go, who may send them.

use crate::ids::{
    ClusterId, EndpointId, EndpointName, EntityName, Epoch, NodeName, ReplicaId, Revision, TokenId,
};
use crate::spec::TokenRole;

#[derive(Clone, Debug, PartialEq)]
pub struct Routes {
    pub cluster: ClusterId,
    pub epoch: Epoch,
    pub revision: Revision,
    pub endpoints: Vec<EndpointRoute>,
    pub tokens: Vec<TokenGrant>,
    /// Where each node's gateway listens for other gateways.
    pub gateways: Vec<GatewayAddress>,
    /// Nodes whose certificates are no longer accepted.
    pub revoked_nodes: Vec<NodeName>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct EndpointRoute {
    pub name: EndpointName,
    pub id: EndpointId,
    pub entities: Vec<EntityRoute>,
    pub limits: EndpointLimits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointLimits {
    /// From the request's arrival to the end of its answer's head.
    pub request_timeout_ms: u32,
    /// Requests that may wait in one gateway for one served entity.
    pub queue_capacity: u32,
    pub max_body_bytes: u64,
}

impl Default for EndpointLimits {
    fn default() -> Self {
        Self {
            request_timeout_ms: 120_000,
            queue_capacity: 4_000,
            max_body_bytes: 16 << 20,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct EntityRoute {
    pub name: EntityName,
    /// Share of the endpoint's traffic; an entity of 0 is reached by its own route only.
    pub percent: u32,
    /// Requests that each replica accepts at once, unless its own route says otherwise.
    pub target_concurrency: u32,
    /// The path on the replica that takes invocations.
    pub invocations_path: String,
    pub replicas: Vec<ReplicaRoute>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRoute {
    pub id: ReplicaId,
    pub node: NodeName,
    /// Its own gateway still admits what other gateways, with older routes, send; nobody picks it.
    pub draining: bool,
    /// Requests that it accepts at once, where that is not what the served entity says: its hardware
    /// is of another class, or it explores what lies beyond.
    pub target_concurrency: Option<u32>,
}

impl EntityRoute {
    /// Requests that `replica`, one of its own, accepts at once.
    pub fn limit_of(&self, replica: &ReplicaRoute) -> u32 {
        replica
            .target_concurrency
            .unwrap_or(self.target_concurrency)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenGrant {
    pub id: TokenId,
    /// SHA-256 of the token's text.
    pub hash: [u8; 32],
    pub role: TokenRole,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayAddress {
    pub node: NodeName,
    /// `host:port` for other gateways.
    pub address: String,
}
