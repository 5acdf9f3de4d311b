//! Tokens as text. Their secrets are random; they are kept as SHA-256 hashes and never logged.
//!
//! * A **bearer token** `shk_ID_SECRET` is what people and clients send to REST API and gateways.
//! * A **join token** `shkjoin1.BASE64URL(JSON)` is what a node needs to join: where the scheduler
//!   is, the hash of the CA that it must present, an id and a one-time secret.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::ids::TokenId;

/// SHA-256 of a token's text. The secrets have 256 random bits, so no salt or stretching is needed.
pub fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// A bearer token's text and id.
#[derive(Clone, PartialEq, Eq)]
pub struct BearerToken {
    pub id: TokenId,
    text: String,
}

impl BearerToken {
    pub fn new(id: TokenId, secret: [u8; 32]) -> Self {
        let text = format!("shk_{id}_{}", URL_SAFE_NO_PAD.encode(secret));
        Self { id, text }
    }

    /// The text to hand to its owner; do not log it.
    pub fn expose(&self) -> &str {
        &self.text
    }

    pub fn hash(&self) -> [u8; 32] {
        hash(&self.text)
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BearerToken({}, secret hidden)", self.id)
    }
}

const JOIN_PREFIX: &str = "shkjoin1.";

/// What a node must know to join.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinToken {
    /// `host:port` of the scheduler's REST API, the first that answers is used.
    pub addresses: Vec<String>,
    /// SHA-256 of the CA certificate's DER, hex.
    pub ca_sha256: String,
    pub id: TokenId,
    /// Hex.
    pub secret: String,
    /// Unix time in seconds, for messages: the scheduler's own clock decides.
    pub expires: u64,
}

/// A text that is no join token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a join token: expected the whole text printed by `stokehold node token`, starting with {JOIN_PREFIX:?}"
)]
pub struct InvalidJoinToken;

impl JoinToken {
    pub fn encode(&self) -> String {
        let json = serde_json::to_vec(self).expect("plain fields always serialise");
        format!("{JOIN_PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }

    pub fn decode(text: &str) -> Result<Self, InvalidJoinToken> {
        let body = text
            .trim()
            .strip_prefix(JOIN_PREFIX)
            .ok_or(InvalidJoinToken)?;
        let json = URL_SAFE_NO_PAD.decode(body).map_err(|_| InvalidJoinToken)?;
        let token: Self = serde_json::from_slice(&json).map_err(|_| InvalidJoinToken)?;
        if token.addresses.is_empty() || token.ca_sha256.len() != 64 {
            return Err(InvalidJoinToken);
        }
        Ok(token)
    }

    /// SHA-256 of the secret, as the scheduler keeps it.
    pub fn secret_hash(&self) -> [u8; 32] {
        hash(&self.secret)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}, secret hidden)", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_token_survives_a_line_end_and_hides_its_secret() {
        let token = JoinToken {
            addresses: vec!["node1:7443".into()],
            ca_sha256: "a".repeat(64),
            id: TokenId::from_bits(7),
            secret: "0123".into(),
            expires: 5,
        };
        assert_eq!(
            JoinToken::decode(&format!("{}\n", token.encode())),
            Ok(token.clone())
        );
        assert!(!format!("{token:?}").contains("0123"));
        for bad in ["", "shkjoin1.", "shkjoin1.!!", "shk_1_2", "shkjoin1.e30"] {
            assert_eq!(
                JoinToken::decode(bad),
                Err(InvalidJoinToken),
                "{bad:?} was accepted"
            );
        }
    }
}
