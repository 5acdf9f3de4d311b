//! The records of endpoints, replicas and gateways as the store keeps them.
//!
//! | key | record |
//! | --- | --- |
//! | `endpoint/NAME` | [`EndpointRecord`] |
//! | `replica/ID` | [`ReplicaRecord`]: where a replica was placed, and all that its plan needs |
//! | `learned/ENDPOINT-ID/ENTITY/GENERATION` | what a set's autoscaler learned (see `learned`) |
//! | `gateway/NODE` | [`GatewayRecord`]: so that routes after a restart still name every gateway |

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shared::ids::{EndpointId, EndpointName, EntityName, NodeName, ReplicaId};
use shared::runtime::RuntimeTemplate;
use shared::spec::{Endpoint, ServedEntity};

use crate::store_op::{Op, RecordTooLarge};

pub(crate) const ENDPOINTS: &str = "endpoint/";
pub(crate) const REPLICAS: &str = "replica/";
pub(crate) const GATEWAYS: &str = "gateway/";
/// The version of these records that this code writes and reads.
pub(crate) const VERSION: u32 = 1;

/// Which config version first asked for a served entity's build (see `set`).
pub(crate) type Generations = BTreeMap<EntityName, u32>;

#[derive(Serialize, Deserialize)]
pub(crate) struct EndpointRecord {
    pub v: u32,
    pub endpoint: Endpoint,
    pub active_generations: Generations,
    pub pending_generations: Generations,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct ReplicaRecord {
    pub v: u32,
    pub endpoint: EndpointName,
    pub endpoint_id: EndpointId,
    pub generation: u32,
    pub node: NodeName,
    pub entity: Arc<ServedEntity>,
    /// As it was when the replica was placed: an edited template changes no running replica.
    pub template: Arc<RuntimeTemplate>,
    pub model_size_bytes: u64,
    /// It has been ready, so routes after a restart go on naming it until its node says otherwise.
    pub was_ready: bool,
    pub draining: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GatewayRecord {
    pub v: u32,
    pub peer_address: String,
    pub client_address: String,
}

impl EndpointRecord {
    pub(crate) fn put(&self) -> Result<Op, RecordTooLarge> {
        Op::put(endpoint_key(&self.endpoint.name), self)
    }
}

impl ReplicaRecord {
    pub(crate) fn put(&self, id: &ReplicaId) -> Result<Op, RecordTooLarge> {
        Op::put(replica_key(id), self)
    }
}

pub(crate) fn endpoint_key(name: &EndpointName) -> String {
    format!("{ENDPOINTS}{name}")
}

pub(crate) fn replica_key(id: &ReplicaId) -> String {
    format!("{REPLICAS}{id}")
}

pub(crate) fn gateway_key(node: &NodeName) -> String {
    format!("{GATEWAYS}{node}")
}
