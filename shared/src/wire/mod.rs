//! Frames on QUIC: a 4-byte big-endian length, then one protobuf message.
//!
//! Unknown fields are ignored and missing ones have defaults, so daemons of neighbouring versions
//! talk to each other; what a field means never changes, its number is never used again. Each message
//! becomes a checked type on arrival (`TryFrom`), so nothing behind this module sees invalid values.
//!
//! | stream | opened by | carries |
//! | --- | --- | --- |
//! | session (first bidirectional stream) | agent or gateway | [`ClientFrame`]s up, [`ServerFrame`]s down |
//! | request (any later bidirectional stream) | either side | one [`StreamRequest`], one [`StreamReply`], then raw bytes to the end |

mod agent_report;
mod gateway_report;
mod plan;
mod routes;
mod samples;

pub use agent_report::AgentReport as AgentReportMessage;
pub use gateway_report::GatewayReport as GatewayReportMessage;
pub use plan::Plan as PlanMessage;
pub use routes::Routes as RoutesMessage;

use prost::Message;

use crate::digest::Digest;
use crate::ids::{ClusterId, EndpointName, EntityName, Epoch, NodeName, ReplicaId, Revision};
use crate::manifest::ManifestId;

/// The protocol's name in TLS.
pub const ALPN: &[u8] = b"stokehold/1";
/// The protocol versions that this code speaks.
pub const PROTOCOL_MIN: u32 = 1;
pub const PROTOCOL_MAX: u32 = 1;
/// A longer frame ends the connection. Routes of 10,000 endpoints with 10 replicas take 6 MiB.
pub const MAX_FRAME_BYTES: usize = 32 << 20;

/// QUIC application error codes with which a session is closed.
pub mod close {
    /// The daemon stops or restarts: come back.
    pub const GOING_AWAY: u32 = 0;
    /// A frame that breaks the protocol.
    pub const PROTOCOL: u32 = 1;
    /// The node was revoked.
    pub const REVOKED: u32 = 2;
    /// The certificate's role may not do this.
    pub const WRONG_ROLE: u32 = 3;
    /// Another session of the same node and role took over.
    pub const REPLACED: u32 = 4;
    /// The certificate is of another cluster.
    pub const OTHER_CLUSTER: u32 = 5;
    /// No common protocol version.
    pub const VERSION: u32 = 6;
    /// Another machine has a session with this very identity.
    pub const COPIED: u32 = 30;
    /// The node has joined again with another key, which this certificate is not for.
    pub const OTHER_KEY: u32 = 31;
}

/// Bytes that are no valid message: which message, which field, what is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}.{field}: {problem}")]
pub struct WireError {
    pub message: &'static str,
    pub field: &'static str,
    pub problem: String,
}

impl WireError {
    fn new(message: &'static str, field: &'static str, problem: impl ToString) -> Self {
        Self {
            message,
            field,
            problem: problem.to_string(),
        }
    }
}

/// Parses a text field of a message.
fn text<T: std::str::FromStr>(
    message: &'static str,
    field: &'static str,
    value: &str,
) -> Result<T, WireError>
where
    T::Err: std::fmt::Display,
{
    value
        .parse()
        .map_err(|e: T::Err| WireError::new(message, field, e))
}

fn digest(message: &'static str, field: &'static str, bytes: &[u8]) -> Result<Digest, WireError> {
    Digest::from_slice(bytes)
        .ok_or_else(|| WireError::new(message, field, "expected 32 bytes of BLAKE3"))
}

fn required<T>(
    message: &'static str,
    field: &'static str,
    value: Option<T>,
) -> Result<T, WireError> {
    value.ok_or_else(|| WireError::new(message, field, "is missing"))
}

/// Encodes a message as one frame.
pub fn encode_frame(message: &impl Message) -> Vec<u8> {
    let len = message.encoded_len();
    let mut frame = Vec::with_capacity(4 + len);
    frame.extend_from_slice(&(len as u32).to_be_bytes());
    message.encode(&mut frame).expect("a Vec grows as needed");
    frame
}

#[derive(Clone, PartialEq, Message)]
pub struct ClientFrame {
    #[prost(oneof = "ClientBody", tags = "1, 2, 3, 4, 30")]
    pub body: Option<ClientBody>,
}

/// One frame a second: moving it costs nothing worth a box, which prost could not decode into.
#[expect(clippy::large_enum_variant)]
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum ClientBody {
    #[prost(message, tag = "1")]
    Hello(Hello),
    #[prost(message, tag = "2")]
    AgentReport(agent_report::AgentReport),
    #[prost(message, tag = "3")]
    GatewayReport(gateway_report::GatewayReport),
    /// A request waits for a served entity that has no ready replica.
    #[prost(message, tag = "4")]
    Demand(Demand),
    /// Certificate or trusted authorities have changed.
    #[prost(message, tag = "30")]
    Holds(Holds),
}

#[derive(Clone, PartialEq, Message)]
pub struct ServerFrame {
    #[prost(oneof = "ServerBody", tags = "1, 2, 3, 30")]
    pub body: Option<ServerBody>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum ServerBody {
    #[prost(message, tag = "1")]
    Welcome(Welcome),
    #[prost(message, tag = "2")]
    Plan(plan::Plan),
    #[prost(message, tag = "3")]
    Routes(routes::Routes),
    /// Which authorities to trust from now on, and which of them signs.
    #[prost(message, tag = "30")]
    Trust(Trust),
}

/// The first frame of a session. Node and role come from the certificate, not from here.
#[derive(Clone, PartialEq, Message)]
pub struct Hello {
    #[prost(uint32, tag = "1")]
    pub protocol_min: u32,
    #[prost(uint32, tag = "2")]
    pub protocol_max: u32,
    /// The program's version, for people.
    #[prost(string, tag = "3")]
    pub version: String,
    /// The highest epoch that this daemon has seen: a scheduler restored from an old copy of its
    /// state learns from it that it must start above.
    #[prost(uint64, tag = "4")]
    pub highest_epoch: u64,
    /// A gateway's address for other gateways, `host:port`; empty for agents.
    #[prost(string, tag = "5")]
    pub peer_address: String,
    /// A gateway's address for clients, for people.
    #[prost(string, tag = "6")]
    pub client_address: String,
    /// The kernel's boot id: tells a node that comes back from another machine with the same
    /// identity. Empty where it is not known.
    #[prost(string, tag = "30")]
    pub boot: String,
    /// SHA-256 (hex) of each authority that this daemon trusts; none from versions before renewal.
    #[prost(string, repeated, tag = "31")]
    pub authorities: Vec<String>,
}

/// What a node holds, after it has changed: the session's own certificate may be an older one.
#[derive(Clone, PartialEq, Message)]
pub struct Holds {
    /// SHA-256 (hex) of each authority that this daemon trusts.
    #[prost(string, repeated, tag = "1")]
    pub authorities: Vec<String>,
    /// SHA-256 (hex) of the one that signed its certificate.
    #[prost(string, tag = "2")]
    pub issuer: String,
    /// When that certificate expires, in Unix seconds.
    #[prost(int64, tag = "3")]
    pub not_after: i64,
}

/// Sent at a session's begin and when it changes.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Trust {
    /// PEM, the one that signs first.
    #[prost(string, tag = "1")]
    pub authorities_pem: String,
    /// SHA-256 (hex) of the authority that signs now: a node whose certificate is of another one
    /// renews it.
    #[prost(string, tag = "2")]
    pub signer: String,
}

/// The scheduler's answer to [`Hello`]; only after it is a session up (TLS 1.3 lets a client
/// believe so before its certificate was looked at).
#[derive(Clone, PartialEq, Message)]
pub struct Welcome {
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    #[prost(string, tag = "2")]
    pub cluster: String,
    #[prost(uint64, tag = "3")]
    pub epoch: u64,
    #[prost(string, tag = "4")]
    pub version: String,
    #[prost(uint32, tag = "5")]
    pub report_interval_ms: u32,
}

impl Welcome {
    pub fn cluster(&self) -> Result<ClusterId, WireError> {
        text("Welcome", "cluster", &self.cluster)
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct Demand {
    #[prost(string, tag = "1")]
    pub endpoint: String,
    #[prost(string, tag = "2")]
    pub entity: String,
    #[prost(uint32, tag = "3")]
    pub queued: u32,
}

impl Demand {
    pub fn endpoint(&self) -> Result<EndpointName, WireError> {
        text("Demand", "endpoint", &self.endpoint)
    }

    pub fn entity(&self) -> Result<EntityName, WireError> {
        text("Demand", "entity", &self.entity)
    }
}

/// The first frame of a request stream.
#[derive(Clone, PartialEq, Message)]
pub struct StreamRequest {
    #[prost(oneof = "RequestBody", tags = "1, 2, 3")]
    pub body: Option<RequestBody>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum RequestBody {
    /// Agent to scheduler: a chunk's bytes.
    #[prost(message, tag = "1")]
    FetchChunk(FetchChunk),
    /// Agent to scheduler: a manifest's canonical bytes.
    #[prost(message, tag = "2")]
    FetchManifest(FetchManifest),
    /// Scheduler to gateway: a replica's log, JSON lines.
    #[prost(message, tag = "3")]
    ReadLog(ReadLog),
}

#[derive(Clone, PartialEq, Message)]
pub struct FetchChunk {
    #[prost(bytes = "vec", tag = "1")]
    pub digest: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub struct FetchManifest {
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ReadLog {
    #[prost(string, tag = "1")]
    pub replica: String,
    /// At most this many bytes from the end.
    #[prost(uint64, tag = "2")]
    pub tail_bytes: u64,
    /// Go on with what is written later, until the asker stops the stream.
    #[prost(bool, tag = "3")]
    pub follow: bool,
}

impl StreamRequest {
    pub fn fetch_chunk(digest: Digest) -> Self {
        let digest = digest.as_bytes().to_vec();
        Self {
            body: Some(RequestBody::FetchChunk(FetchChunk { digest })),
        }
    }

    pub fn fetch_manifest(id: ManifestId) -> Self {
        let id = id.0.as_bytes().to_vec();
        Self {
            body: Some(RequestBody::FetchManifest(FetchManifest { id })),
        }
    }

    pub fn read_log(replica: &ReplicaId, tail_bytes: u64, follow: bool) -> Self {
        let replica = replica.to_string();
        Self {
            body: Some(RequestBody::ReadLog(ReadLog {
                replica,
                tail_bytes,
                follow,
            })),
        }
    }
}

impl FetchChunk {
    pub fn digest(&self) -> Result<Digest, WireError> {
        digest("FetchChunk", "digest", &self.digest)
    }
}

impl FetchManifest {
    pub fn id(&self) -> Result<ManifestId, WireError> {
        digest("FetchManifest", "id", &self.id).map(ManifestId)
    }
}

impl ReadLog {
    pub fn replica(&self) -> Result<ReplicaId, WireError> {
        text("ReadLog", "replica", &self.replica)
    }
}

/// The answer to a [`StreamRequest`]: with an empty `error` raw bytes follow to the stream's end.
#[derive(Clone, PartialEq, Message)]
pub struct StreamReply {
    /// Empty on success.
    #[prost(string, tag = "1")]
    pub error: String,
    /// Whether what was asked for does not exist.
    #[prost(bool, tag = "2")]
    pub not_found: bool,
    /// Bytes that follow, where known.
    #[prost(uint64, optional, tag = "3")]
    pub size_bytes: Option<u64>,
}

impl Hello {
    pub fn highest_epoch(&self) -> Epoch {
        Epoch(self.highest_epoch)
    }
}

/// The session a frame arrived on, as its certificate says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer {
    pub role: crate::ids::Role,
    pub node: NodeName,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.role, self.node)
    }
}

fn numbers(epoch: Epoch, revision: Revision) -> Numbers {
    Numbers {
        epoch: epoch.0,
        revision: revision.0,
    }
}

/// Epoch and revision together.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Numbers {
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    #[prost(uint64, tag = "2")]
    pub revision: u64,
}

impl From<Numbers> for (Epoch, Revision) {
    fn from(numbers: Numbers) -> Self {
        (Epoch(numbers.epoch), Revision(numbers.revision))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(frame) = ServerFrame::decode(bytes.as_slice()) {
                match frame.body {
                    Some(ServerBody::Plan(plan)) => { let _ = crate::plan::Plan::try_from(plan); }
                    Some(ServerBody::Routes(r)) => { let _ = crate::routes::Routes::try_from(r); }
                    Some(ServerBody::Welcome(w)) => { let _ = w.cluster(); }
                    Some(ServerBody::Trust(_)) => {}
                    None => {}
                }
            }
            if let Ok(ClientFrame { body: Some(ClientBody::AgentReport(report)) }) =
                ClientFrame::decode(bytes.as_slice())
            {
                let _ = crate::report::AgentReport::try_from(report);
            }
        }
    }
}
