//! Join tokens: each lets one node join, once for each of its roles, for a short time.
//!
//! ```text
//! issued --redeem(first role, node N)--> bound to N --redeem(other role, node N)--> used up
//!    \______________________________________\________________ time ________________> expired
//! ```
//! The same certificate request may be sent again within the token's life: the answer to the first
//! may have been lost.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use shared::api::NodeTokenInfo;
use shared::ids::{NodeName, Role, TokenId};
use shared::token::{self, JoinToken};

use super::certificates::{CertificateRecord, valid_until};
use super::record::{self, to_hex};
use super::{Registry, Secret, nodes};
use crate::error::ApiError;
use crate::store_op::{Entries, Op, RestoreError};

const PREFIX: &str = "joinToken/";
const DEFAULT_LIFETIME_S: u64 = 900;
const MAX_LIFETIME_S: u64 = 7 * 24 * 3600;
/// How long an expired token is kept, so that a late node hears "expired" rather than "unknown".
const KEEP_EXPIRED_S: u64 = 24 * 3600;
/// Of the expired tokens at most this many are deleted with one new token: a commit has a limit.
const PRUNED_AT_ONCE: usize = 32;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinTokenRecord {
    pub id: TokenId,
    pub roles: BTreeSet<Role>,
    /// SHA-256 of the secret, hex.
    pub secret_hash: String,
    pub expires_unix: u64,
    /// The node that redeemed a role first; the others are for it alone.
    pub node: Option<NodeName>,
    /// Hash of the certificate request's public key by role.
    pub redeemed: BTreeMap<Role, String>,
    /// The node's new keys take the place of those with which it joined before.
    pub replace: bool,
}

/// What a new join token is to say.
#[derive(Clone, Debug)]
pub struct NewJoinToken {
    /// Empty: agent and gateway.
    pub roles: Vec<Role>,
    pub lifetime_s: Option<u64>,
    /// `host:port` of the scheduler's REST API.
    pub addresses: Vec<String>,
    /// SHA-256 of the CA certificate's DER, hex.
    pub ca_sha256: String,
    /// For this node alone, which has joined before.
    pub replace: Option<NodeName>,
}

/// A node's attempt to use a join token.
#[derive(Clone, Copy)]
pub struct Redemption<'a> {
    pub id: &'a TokenId,
    pub secret: &'a str,
    pub role: Role,
    pub node: &'a NodeName,
    /// Hash of the public key in the certificate request, hex.
    pub key_hash: &'a str,
    /// When the certificate expires that is handed out, in Unix seconds.
    pub until_unix: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinRefusal {
    #[error("join token {id} is unknown: make a new one with `stokehold node token`")]
    Unknown { id: TokenId },
    #[error("join token {id} has expired: make a new one with `stokehold node token`")]
    Expired { id: TokenId },
    #[error("join token {id} has another secret: use the whole text as it was printed")]
    WrongSecret { id: TokenId },
    #[error(
        "join token {id} does not admit the role {role}: make one for it with `stokehold node token`"
    )]
    WrongRole { id: TokenId, role: Role },
    #[error(
        "join token {id} was used by node {by}: make one for {node} with `stokehold node token`"
    )]
    WrongNode {
        id: TokenId,
        by: NodeName,
        node: NodeName,
    },
    #[error(
        "join token {id} was already used for the role {role}: make a new one with `stokehold node token`"
    )]
    Used { id: TokenId, role: Role },
    #[error(
        "node {node} was revoked: join it under another name, or, once its last certificate has \
         expired, with a token from `stokehold node token --replace {node}`"
    )]
    Revoked { node: NodeName },
    #[error(
        "there is a node {node} already, whose {role} has another key: give this machine another \
         name (`--node NAME`). If it is that node, installed anew, join it with a token from \
         `stokehold node token --replace {node}`; if that node is gone for good, send it away with \
         `stokehold node revoke {node}`"
    )]
    Taken { role: Role, node: NodeName },
    #[error("node {node} has more labels than a record may hold")]
    TooLarge { node: NodeName },
}

#[derive(Serialize, Deserialize)]
struct StoredJoinToken {
    roles: BTreeSet<Role>,
    secret_hash: String,
    expires_unix: u64,
    node: Option<NodeName>,
    redeemed: BTreeMap<Role, String>,
    #[serde(default)]
    replace: bool,
}

impl JoinTokenRecord {
    pub fn info(&self) -> NodeTokenInfo {
        NodeTokenInfo {
            id: self.id.clone(),
            roles: self.roles.iter().copied().collect(),
            redeemed: self.redeemed.keys().copied().collect(),
            node: self.node.clone(),
            expires_unix: self.expires_unix,
        }
    }

    fn put(&self) -> Result<Op, crate::store_op::RecordTooLarge> {
        let stored = StoredJoinToken {
            roles: self.roles.clone(),
            secret_hash: self.secret_hash.clone(),
            expires_unix: self.expires_unix,
            node: self.node.clone(),
            redeemed: self.redeemed.clone(),
            replace: self.replace,
        };
        record::put(key(&self.id), &stored)
    }
}

impl Registry {
    pub(super) fn restore_join_tokens(&mut self, entries: &Entries) -> Result<(), RestoreError> {
        for (id, stored) in record::restore::<TokenId, StoredJoinToken>(entries, PREFIX)? {
            let restored = JoinTokenRecord {
                id: id.clone(),
                roles: stored.roles,
                secret_hash: stored.secret_hash,
                expires_unix: stored.expires_unix,
                node: stored.node,
                redeemed: stored.redeemed,
                replace: stored.replace,
            };
            self.join_tokens.insert(id, restored);
        }
        Ok(())
    }

    pub fn join_tokens(&self) -> impl Iterator<Item = &JoinTokenRecord> {
        self.join_tokens.values()
    }

    /// A new token; those that expired long ago are forgotten with it.
    pub fn create_join_token(
        &mut self,
        new: NewJoinToken,
        secret: &Secret,
        now_unix: u64,
    ) -> Result<(JoinToken, Vec<Op>), ApiError> {
        let mut roles: BTreeSet<Role> = new.roles.into_iter().collect();
        if roles.is_empty() {
            roles = BTreeSet::from([Role::Agent, Role::Gateway]);
        }
        if roles.contains(&Role::Scheduler) {
            return Err(ApiError::invalid(
                "roles must be `agent` or `gateway`: a scheduler does not join",
            ));
        }
        let lifetime_s = new.lifetime_s.unwrap_or(DEFAULT_LIFETIME_S);
        if !(1..=MAX_LIFETIME_S).contains(&lifetime_s) {
            return Err(ApiError::invalid(format!(
                "lifetime_seconds must be 1 to {MAX_LIFETIME_S}, not {lifetime_s}"
            )));
        }
        if let Some(name) = &new.replace
            && self.node(name).is_none()
        {
            return Err(ApiError::not_found(format!(
                "node {name} does not exist, so it needs no replacement: an ordinary token will do"
            )));
        }
        let token = JoinToken {
            addresses: new.addresses,
            ca_sha256: new.ca_sha256,
            id: secret.id.clone(),
            secret: to_hex(&secret.bytes),
            expires: now_unix.saturating_add(lifetime_s),
        };
        let issued = JoinTokenRecord {
            id: token.id.clone(),
            roles,
            secret_hash: to_hex(&token.secret_hash()),
            expires_unix: token.expires,
            replace: new.replace.is_some(),
            node: new.replace,
            redeemed: BTreeMap::new(),
        };
        let mut ops = vec![issued.put()?];
        ops.extend(self.forget_expired(now_unix));
        self.join_tokens.insert(issued.id.clone(), issued);
        Ok((token, ops))
    }

    pub fn delete_join_token(&mut self, id: &TokenId) -> Result<Vec<Op>, ApiError> {
        let known = self.join_tokens.remove(id);
        known.ok_or_else(|| ApiError::not_found(format!("join token {id} does not exist")))?;
        Ok(vec![Op::Delete { key: key(id) }])
    }

    /// Lets a node have one role. The caller signs its certificate only once the operations are
    /// committed.
    pub fn redeem(
        &mut self,
        attempt: &Redemption<'_>,
        now_unix: u64,
    ) -> Result<Vec<Op>, JoinRefusal> {
        let Redemption { role, node, .. } = *attempt;
        let id = attempt.id.clone();
        let token = self.join_tokens.get(attempt.id);
        let token = token.ok_or(JoinRefusal::Unknown { id: id.clone() })?;
        // The secret first: who does not have it learns nothing of the token's state. The hash of
        // 256 random bits tells nothing through the time that its comparison takes.
        if to_hex(&token::hash(attempt.secret)) != token.secret_hash {
            return Err(JoinRefusal::WrongSecret { id });
        }
        if now_unix >= token.expires_unix {
            return Err(JoinRefusal::Expired { id });
        }
        if !token.roles.contains(&role) {
            return Err(JoinRefusal::WrongRole { id, role });
        }
        if let Some(by) = token.node.clone().filter(|by| by != node) {
            let node = node.clone();
            return Err(JoinRefusal::WrongNode { id, by, node });
        }
        let revoked = self.node(node).filter(|record| record.revoked);
        let valid = revoked.and_then(|record| valid_until(record, now_unix));
        if revoked.is_some() && (valid.is_some() || !token.replace) {
            return Err(JoinRefusal::Revoked { node: node.clone() });
        }
        if let Some(redeemed) = token.redeemed.get(&role) {
            return if redeemed == attempt.key_hash {
                Ok(Vec::new())
            } else {
                Err(JoinRefusal::Used { id, role })
            };
        }
        if !token.replace && self.holds_other_key(node, role, attempt.key_hash) {
            let node = node.clone();
            return Err(JoinRefusal::Taken { role, node });
        }
        let mut token = token.clone();
        token.node = Some(node.clone());
        token.redeemed.insert(role, attempt.key_hash.to_owned());
        let mut joined = self.with_role(node, role, now_unix);
        if revoked.is_some() {
            // Only the roles that join now are those of the machine that takes the name.
            joined.roles = BTreeSet::from([role]);
            joined.certificates.clear();
            joined.revoked = false;
        }
        let earlier = joined.certificates.get(&role).map(CertificateRecord::until);
        let certificate = CertificateRecord {
            earlier_until_unix: earlier.unwrap_or(0),
            key_hash: attempt.key_hash.to_owned(),
            issued_unix: now_unix,
            not_after_unix: attempt.until_unix,
            ..CertificateRecord::default()
        };
        joined.certificates.insert(role, certificate);
        let too_large = |_| JoinRefusal::TooLarge { node: node.clone() };
        let ops = vec![
            token.put().map_err(too_large)?,
            nodes::put(&joined).map_err(too_large)?,
        ];
        self.join_tokens.insert(id, token);
        self.nodes.insert(node.clone(), joined);
        Ok(ops)
    }

    /// Whether the name is in use for this role, by another key or by one that is not known.
    fn holds_other_key(&self, node: &NodeName, role: Role, key_hash: &str) -> bool {
        self.node(node).is_some_and(|record| {
            let held = record.certificates.get(&role);
            record.roles.contains(&role) && held.is_none_or(|held| held.key_hash != key_hash)
        })
    }

    fn forget_expired(&mut self, now_unix: u64) -> Vec<Op> {
        let long_ago = now_unix.saturating_sub(KEEP_EXPIRED_S);
        let expired: Vec<TokenId> = self
            .join_tokens
            .values()
            .filter(|token| token.expires_unix < long_ago)
            .map(|token| token.id.clone())
            .take(PRUNED_AT_ONCE)
            .collect();
        let forget = |id: TokenId| {
            self.join_tokens.remove(&id);
            Op::Delete { key: key(&id) }
        };
        expired.into_iter().map(forget).collect()
    }
}

fn key(id: &TokenId) -> String {
    format!("{PREFIX}{id}")
}
