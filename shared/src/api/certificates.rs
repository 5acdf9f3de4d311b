//! Certificates: renewing them, and the authority that signs them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{NodeName, Role};

/// `POST /api/stokehold/v1/renew`: authenticated by the key itself. The request is signed with it,
/// and the certificate, which may have expired, shows that it was this cluster's.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    pub role: Role,
    pub node: NodeName,
    /// PKCS#10, PEM, for the same key as before.
    pub csr_pem: String,
    /// The certificate so far, PEM. The new one is for the same names.
    pub certificate_pem: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RenewReply {
    /// Leaf first.
    pub certificate_pem: String,
    /// Every authority to trust from now on, the one that signs first.
    pub ca_pem: String,
}

/// `GET /api/stokehold/v1/ca`: what `stokehold ca status` shows.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CaStatus {
    /// `steady`; `spreading`: a new authority is trusted, the old one signs until all nodes know the
    /// new one; `replacing`: the new one signs, nodes change their certificates.
    pub phase: String,
    /// How long a certificate is valid.
    pub lifetime_seconds: u64,
    /// The one that signs first.
    pub authorities: Vec<CaAuthority>,
    pub nodes: Vec<CaNode>,
    /// What the phase waits for; empty when there is nothing.
    pub waiting_for: Vec<CaWaiting>,
    /// What to do next, for people.
    pub next: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CaAuthority {
    /// SHA-256 of the certificate.
    pub sha256: String,
    pub signs: bool,
    pub expires_unix: i64,
}

/// The certificate of one role of a node.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CaNode {
    pub node: NodeName,
    pub role: Role,
    /// `None`: not seen since the scheduler records it.
    pub expires_unix: Option<i64>,
    /// SHA-256 of the authority that signed the certificate in use.
    pub authority: Option<String>,
    pub connected: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CaWaiting {
    pub node: NodeName,
    pub role: Role,
    pub reason: String,
}

/// `POST /api/stokehold/v1/ca/finish`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FinishCaRotation {
    /// Also when nodes still depend on the old authority: they must join again.
    #[serde(default)]
    pub force: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CaRotationFinished {
    /// Who must join again.
    pub cut_off: Vec<CaWaiting>,
}

/// `GET /api/stokehold/v1/ca/bundle`: for whoever keeps a copy.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CaBundle {
    pub ca_pem: String,
}

/// The header of every answer that says which authorities are trusted now: [`bundle_id`].
pub const BUNDLE_HEADER: &str = "stokehold-authorities";

/// Tells bundles apart, whatever the order of the authorities in them.
pub fn bundle_id(authorities_sha256: impl IntoIterator<Item = String>) -> String {
    let mut all: Vec<String> = authorities_sha256.into_iter().collect();
    all.sort();
    let short = |hash: &String| hash.chars().take(16).collect::<String>();
    all.iter().map(short).collect::<Vec<_>>().join(",")
}
