//! Nodes that have joined, and those whose certificates are no longer accepted.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use shared::ids::{NodeName, Role};

use super::Registry;
use super::certificates::CertificateRecord;
use super::record;
use crate::error::ApiError;
use crate::store_op::{Entries, Op, RestoreError};

const PREFIX: &str = "node/";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    pub name: NodeName,
    pub joined_unix_ms: u64,
    /// The roles that it holds certificates for.
    pub roles: BTreeSet<Role>,
    /// The name is not given out again before the last of its certificates has expired: they would be
    /// accepted with it.
    pub revoked: bool,
    pub labels: BTreeMap<String, String>,
    /// The last certificate of each role, as far as it is known.
    pub certificates: BTreeMap<Role, CertificateRecord>,
}

#[derive(Serialize, Deserialize)]
struct StoredNode {
    joined_unix_ms: u64,
    roles: BTreeSet<Role>,
    #[serde(default)]
    revoked: bool,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    certificates: BTreeMap<Role, CertificateRecord>,
}

impl Registry {
    pub(super) fn restore_nodes(&mut self, entries: &Entries) -> Result<(), RestoreError> {
        for (name, stored) in record::restore::<NodeName, StoredNode>(entries, PREFIX)? {
            let restored = NodeRecord {
                name: name.clone(),
                joined_unix_ms: stored.joined_unix_ms,
                roles: stored.roles,
                revoked: stored.revoked,
                labels: stored.labels,
                certificates: stored.certificates,
            };
            self.nodes.insert(name, restored);
        }
        Ok(())
    }

    pub fn nodes(&self) -> impl Iterator<Item = &NodeRecord> {
        self.nodes.values()
    }

    pub fn node(&self, name: &NodeName) -> Option<&NodeRecord> {
        self.nodes.get(name)
    }

    pub fn is_revoked(&self, name: &NodeName) -> bool {
        self.nodes.get(name).is_some_and(|node| node.revoked)
    }

    /// From now on none of the node's certificates is accepted.
    pub fn revoke(&mut self, name: &NodeName) -> Result<Vec<Op>, ApiError> {
        let node = self.nodes.get_mut(name).ok_or_else(|| {
            ApiError::not_found(format!("node {name} does not exist: it never joined"))
        })?;
        if node.revoked {
            return Ok(Vec::new());
        }
        let revoked = NodeRecord {
            revoked: true,
            ..node.clone()
        };
        let put = put(&revoked)?;
        *node = revoked;
        Ok(vec![put])
    }

    /// The node's record once it holds this role too.
    pub(super) fn with_role(&self, name: &NodeName, role: Role, now_unix: u64) -> NodeRecord {
        let mut node = self.nodes.get(name).cloned().unwrap_or_else(|| NodeRecord {
            name: name.clone(),
            joined_unix_ms: now_unix.saturating_mul(1000),
            roles: BTreeSet::new(),
            revoked: false,
            labels: BTreeMap::new(),
            certificates: BTreeMap::new(),
        });
        node.roles.insert(role);
        node
    }
}

pub(super) fn put(node: &NodeRecord) -> Result<Op, crate::store_op::RecordTooLarge> {
    let stored = StoredNode {
        joined_unix_ms: node.joined_unix_ms,
        roles: node.roles.clone(),
        revoked: node.revoked,
        labels: node.labels.clone(),
        certificates: node.certificates.clone(),
    };
    record::put(key(&node.name), &stored)
}

pub(super) fn delete(name: &NodeName) -> Op {
    Op::Delete { key: key(name) }
}

fn key(name: &NodeName) -> String {
    format!("{PREFIX}{name}")
}
