//! The file beside a replica's folder, by which the agent tells its node's gateway how to reach and
//! probe the replica. The agent owns it; the replica cannot see it.

use core::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::ids::{EndpointName, EntityName, ReplicaId};
use crate::runtime::{HealthProbe, Transport};

pub const LOCAL_REPLICA_VERSION: u32 = 1;

/// `RUN_DIR/REPLICA-ID.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalReplica {
    pub version: u32,
    pub replica: ReplicaId,
    pub endpoint: EndpointName,
    pub entity: EntityName,
    /// The user that the replica runs as, hence the owner of its socket.
    pub uid: u32,
    pub transport: Transport,
    /// Where a replica with `Transport::Tcp` listens, and only of such a one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    pub invocations_path: String,
    pub health: HealthProbe,
}

impl LocalReplica {
    pub fn file_name(replica: &ReplicaId) -> String {
        format!("{replica}.json")
    }
}
