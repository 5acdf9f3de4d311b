//! What is known of the nodes' certificates: who may renew one, who may have a session, and what a
//! rotation of the authority waits for.
//!
//! A name belongs to the key with which it joined. Time is an argument, and so is what a certificate
//! says: the caller has verified it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use shared::api::certificates::{CaNode, CaWaiting};
use shared::ids::{NodeName, Role};

use super::Registry;
use super::nodes::{self, NodeRecord};
use crate::error::ApiError;
use crate::store_op::Op;

/// How long after its end a certificate may be renewed.
const RENEWABLE_FOR_S: u64 = 30 * 24 * 3600;
/// Between two renewals of one certificate, at most; of a short-lived one a hundredth of its life.
const RENEWAL_SPACING_MAX_S: u64 = 10;

/// The last certificate of one role of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRecord {
    /// SHA-256 of the key, hex. Empty until it is known.
    #[serde(default)]
    pub key_hash: String,
    /// When the last one was given out; zero where that is not known.
    #[serde(default)]
    pub issued_unix: u64,
    /// When the last one that was given out expires.
    #[serde(default)]
    pub not_after_unix: i64,
    /// When the last of all earlier ones does: those of another key, or of a longer lifetime.
    #[serde(default)]
    pub earlier_until_unix: i64,
    /// SHA-256 of the authority that signed the one in use, as the node showed it. Empty until then.
    #[serde(default)]
    pub issuer: String,
    /// SHA-256 of each authority that the node trusts, as it said itself.
    #[serde(default)]
    pub trusts: BTreeSet<String>,
}

impl CertificateRecord {
    /// When the last certificate that was ever given out under it expires.
    pub(super) fn until(&self) -> i64 {
        self.not_after_unix.max(self.earlier_until_unix)
    }
}

/// What a session shows of its node's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub key_hash: String,
    pub issuer: String,
    pub not_after_unix: i64,
    pub trusts: BTreeSet<String>,
}

/// A request to renew: the certificate so far was verified, its expiry apart.
#[derive(Clone, Copy, Debug)]
pub struct RenewalAttempt<'a> {
    pub role: Role,
    pub node: &'a NodeName,
    /// SHA-256 of the key in request and certificate, hex.
    pub key_hash: &'a str,
    /// Of the certificate so far.
    pub not_after_unix: i64,
    /// Of the new one.
    pub until_unix: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenewalRefusal {
    #[error("{role} {node} is not a member here: join it with a token from `stokehold node token`")]
    Unknown { role: Role, node: NodeName },
    #[error("node {node} was revoked: its certificates are not renewed")]
    Revoked { node: NodeName },
    #[error(
        "{role} {node} has joined again with another key: this machine holds an older identity. \
         Delete it, and join this machine under another name"
    )]
    OtherKey { role: Role, node: NodeName },
    #[error(
        "the certificate of {role} {node} expired {days} days ago, and renewing is possible for 30: \
         join again with a token from `stokehold node token --replace {node}`"
    )]
    TooLate {
        role: Role,
        node: NodeName,
        days: u64,
    },
    #[error("the certificate of {role} {node} was renewed {ago_s} s ago: wait a few seconds")]
    TooSoon {
        role: Role,
        node: NodeName,
        ago_s: u64,
    },
    #[error("node {node} has more labels than a record may hold")]
    TooLarge { node: NodeName },
}

/// Why a node with a valid certificate gets no session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionRefusal {
    #[error("node {node} was revoked")]
    Revoked { node: NodeName },
    #[error(
        "node {node} has joined again with another key, and this machine holds the older identity: \
         delete its pki folder and join this machine under another name, or, if it is the right \
         one, with a token from `stokehold node token --replace {node}`"
    )]
    OtherKey { node: NodeName },
}

/// How far a rotation of the authority is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotationStage {
    /// The old authority signs until every node trusts the new one.
    Spreading,
    /// The new authority signs until every node has a certificate of it.
    Replacing,
}

impl Registry {
    /// Lets a node have its certificate renewed. It is handed out once the operations are committed.
    pub fn renew(
        &mut self,
        attempt: &RenewalAttempt<'_>,
        now_unix: u64,
    ) -> Result<Vec<Op>, RenewalRefusal> {
        let RenewalAttempt { role, node, .. } = *attempt;
        let name = node.clone();
        let record = self.nodes.get(node).filter(|it| it.roles.contains(&role));
        let Some(record) = record else {
            return Err(RenewalRefusal::Unknown { role, node: name });
        };
        if record.revoked {
            return Err(RenewalRefusal::Revoked { node: name });
        }
        let mut held = record.certificates.get(&role).cloned().unwrap_or_default();
        if !held.key_hash.is_empty() && held.key_hash != attempt.key_hash {
            return Err(RenewalRefusal::OtherKey { role, node: name });
        }
        let ended = held.not_after_unix.max(attempt.not_after_unix);
        let ended = u64::try_from(ended).unwrap_or(0);
        let late_s = now_unix.saturating_sub(ended);
        if late_s > RENEWABLE_FOR_S {
            let days = late_s / 86_400;
            return Err(RenewalRefusal::TooLate {
                role,
                node: name,
                days,
            });
        }
        let life = u64::try_from(attempt.until_unix).unwrap_or(0);
        let life = life.saturating_sub(now_unix);
        let spacing = (life / 100).clamp(1, RENEWAL_SPACING_MAX_S);
        let ago_s = now_unix.saturating_sub(held.issued_unix);
        if ago_s < spacing && held.issued_unix <= now_unix {
            return Err(RenewalRefusal::TooSoon {
                role,
                node: name,
                ago_s,
            });
        }
        held.earlier_until_unix = held.until().max(attempt.not_after_unix);
        held.key_hash = attempt.key_hash.to_owned();
        held.issued_unix = now_unix;
        held.not_after_unix = attempt.until_unix;
        let mut renewed = record.clone();
        renewed.certificates.insert(role, held);
        let put = nodes::put(&renewed);
        let put = put.map_err(|_| RenewalRefusal::TooLarge { node: name.clone() })?;
        self.nodes.insert(name, renewed);
        Ok(vec![put])
    }

    /// Whether the holder of this key may have a session as this node.
    pub fn admit(&self, node: &NodeName, role: Role, key_hash: &str) -> Result<(), SessionRefusal> {
        let Some(record) = self.nodes.get(node) else {
            return Ok(());
        };
        if record.revoked {
            return Err(SessionRefusal::Revoked { node: node.clone() });
        }
        let held = record.certificates.get(&role);
        match held.map(|held| held.key_hash.as_str()) {
            None | Some("") => Ok(()),
            Some(known) if known == key_hash => Ok(()),
            Some(_) => Err(SessionRefusal::OtherKey { node: node.clone() }),
        }
    }

    /// Remembers what a session has shown; nothing is written when it is known.
    pub fn learn(&mut self, node: &NodeName, role: Role, shown: Shown) -> Vec<Op> {
        let Some(record) = self.nodes.get(node) else {
            return Vec::new();
        };
        let before = record.certificates.get(&role);
        let mut held = before.cloned().unwrap_or_default();
        if held.key_hash.is_empty() {
            held.key_hash = shown.key_hash;
        }
        held.not_after_unix = held.not_after_unix.max(shown.not_after_unix);
        held.issuer = shown.issuer;
        held.trusts = shown.trusts;
        if before == Some(&held) {
            return Vec::new();
        }
        let mut learnt = record.clone();
        learnt.certificates.insert(role, held);
        // A record that does not fit stays as it is: nothing depends on what would be new in it but
        // a rotation, which then waits for this node.
        let Ok(put) = nodes::put(&learnt) else {
            return Vec::new();
        };
        self.nodes.insert(node.clone(), learnt);
        vec![put]
    }

    /// Every role of every node that is not revoked. Who is connected is the caller's to say.
    pub fn certificates(&self) -> Vec<CaNode> {
        let live = self.nodes.values().filter(|node| !node.revoked);
        let roles = live.flat_map(|node| node.roles.iter().map(move |role| (node, *role)));
        roles
            .map(|(node, role)| {
                let held = node.certificates.get(&role);
                CaNode {
                    node: node.name.clone(),
                    role,
                    expires_unix: held.map(|it| it.not_after_unix).filter(|it| *it > 0),
                    authority: held.map(|it| it.issuer.clone()).filter(|it| !it.is_empty()),
                    connected: false,
                }
            })
            .collect()
    }

    /// Which nodes keep a rotation to the authority `new` from going on.
    pub fn waiting_for(&self, stage: RotationStage, new: &str) -> Vec<CaWaiting> {
        let live = self.nodes.values().filter(|node| !node.revoked);
        let roles = live.flat_map(|node| node.roles.iter().map(move |role| (node, *role)));
        roles
            .filter_map(|(node, role)| {
                let reason = lacks(node.certificates.get(&role), stage, new)?;
                Some(CaWaiting {
                    node: node.name.clone(),
                    role,
                    reason: reason.to_owned(),
                })
            })
            .collect()
    }

    /// Forgets a revoked node whose certificates have all expired: its name is free again.
    pub fn remove_node(&mut self, name: &NodeName, now_unix: u64) -> Result<Vec<Op>, ApiError> {
        let record = self.nodes.get(name).ok_or_else(|| {
            ApiError::not_found(format!("node {name} does not exist: it never joined"))
        })?;
        if !record.revoked {
            return Err(ApiError::conflict(format!(
                "node {name} is a member: send it away first with `stokehold node revoke {name}`"
            )));
        }
        if let Some(until) = valid_until(record, now_unix) {
            return Err(ApiError::conflict(format!(
                "the certificates of node {name} are valid until {until} (Unix time) and only its \
                 record keeps them refused: remove it after that"
            )));
        }
        self.nodes.remove(name);
        Ok(vec![nodes::delete(name)])
    }
}

/// Until when a certificate of the node may be valid; `None`: all have expired.
pub(super) fn valid_until(node: &NodeRecord, now_unix: u64) -> Option<i64> {
    let now = i64::try_from(now_unix).unwrap_or(i64::MAX);
    let ends = node.roles.iter().map(|role| {
        let held = node.certificates.get(role);
        // What is not known may be one from before renewal, of five years.
        held.map_or(i64::MAX, CertificateRecord::until)
    });
    ends.max().filter(|until| *until >= now)
}

fn lacks(
    held: Option<&CertificateRecord>,
    stage: RotationStage,
    new: &str,
) -> Option<&'static str> {
    let Some(held) = held.filter(|held| !held.issuer.is_empty()) else {
        return Some("has not connected since it joined, or since the scheduler records this");
    };
    match stage {
        RotationStage::Spreading if held.trusts.contains(new) => None,
        RotationStage::Spreading if held.trusts.is_empty() => {
            Some("is of a version that cannot take a new authority over: upgrade it")
        }
        RotationStage::Spreading => Some("does not trust the new authority yet"),
        RotationStage::Replacing if held.issuer == new => None,
        RotationStage::Replacing => Some("uses a certificate of the old authority"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store_op::Entries;
    use std::collections::BTreeMap;

    const DAY: u64 = 86_400;
    const WEEK: u64 = 7 * DAY;

    fn n1() -> NodeName {
        NodeName::parse("n1").expect("valid")
    }

    /// A registry in which agent n1 joined at 0 with key `k`, for a week.
    fn joined() -> Registry {
        let mut registry = Registry::default();
        let certificate = CertificateRecord {
            key_hash: "k".into(),
            issued_unix: 0,
            not_after_unix: i64::try_from(WEEK).expect("small"),
            ..CertificateRecord::default()
        };
        let node = NodeRecord {
            name: n1(),
            joined_unix_ms: 0,
            roles: BTreeSet::from([Role::Agent]),
            revoked: false,
            labels: BTreeMap::new(),
            certificates: BTreeMap::from([(Role::Agent, certificate)]),
        };
        registry.nodes.insert(n1(), node);
        registry
    }

    fn attempt<'a>(node: &'a NodeName, key_hash: &'a str, now: u64) -> RenewalAttempt<'a> {
        RenewalAttempt {
            role: Role::Agent,
            node,
            key_hash,
            not_after_unix: i64::try_from(WEEK).expect("small"),
            until_unix: i64::try_from(now + WEEK).expect("small"),
        }
    }

    #[test]
    fn the_same_key_is_renewed_until_thirty_days_after_the_end_and_no_longer() {
        for (now, fits) in [(5 * DAY, true), (37 * DAY, true), (37 * DAY + 1, false)] {
            let (mut registry, n1) = (joined(), n1());
            let renewed = registry.renew(&attempt(&n1, "k", now), now);
            assert_eq!(renewed.is_ok(), fits, "at {now}: {renewed:?}");
        }
        let (mut registry, n1) = (joined(), n1());
        let late = registry.renew(&attempt(&n1, "k", 40 * DAY), 40 * DAY);
        let text = late.expect_err("too late").to_string();
        assert!(
            text.contains("33 days ago") && text.contains("--replace n1"),
            "{text}"
        );
    }

    #[test]
    fn a_renewal_counts_from_the_last_one_given_out_and_survives_a_restart() {
        let (mut registry, n1) = (joined(), n1());
        let ops = registry.renew(&attempt(&n1, "k", 6 * DAY), 6 * DAY);
        let mut entries = Entries::new();
        for op in ops.expect("renews") {
            match op {
                Op::Put { key, value } => entries.insert(key, value),
                Op::Delete { key } => entries.remove(&key),
            };
        }
        let mut registry = Registry::restore(&entries).expect("restores");
        let held = &registry.node(&n1).expect("known").certificates[&Role::Agent];
        assert_eq!(held.not_after_unix, i64::try_from(13 * DAY).expect("small"));
        // Measured by the certificate that it shows it would be too late: that answer was lost.
        let renewed = registry.renew(&attempt(&n1, "k", 40 * DAY), 40 * DAY);
        assert!(renewed.is_ok(), "{renewed:?}");
    }

    #[test]
    fn another_key_a_revoked_node_a_stranger_and_haste_are_refused() {
        let (mut registry, n1) = (joined(), n1());
        let other = registry.renew(&attempt(&n1, "x", DAY), DAY);
        assert!(matches!(other, Err(RenewalRefusal::OtherKey { .. })));
        let mut wrong_role = attempt(&n1, "k", DAY);
        wrong_role.role = Role::Gateway;
        let stranger = registry.renew(&wrong_role, DAY);
        assert!(matches!(stranger, Err(RenewalRefusal::Unknown { .. })));
        registry
            .renew(&attempt(&n1, "k", DAY), DAY)
            .expect("renews");
        let haste = registry.renew(&attempt(&n1, "k", DAY + 9), DAY + 9);
        assert!(matches!(haste, Err(RenewalRefusal::TooSoon { .. })));
        registry
            .renew(&attempt(&n1, "k", DAY + 10), DAY + 10)
            .expect("renews");
        registry.revoke(&n1).expect("revokes");
        let revoked = registry.renew(&attempt(&n1, "k", 2 * DAY), 2 * DAY);
        assert!(matches!(revoked, Err(RenewalRefusal::Revoked { .. })));
    }

    #[test]
    fn a_record_from_before_renewal_learns_its_key_from_a_session_once() {
        let (mut registry, n1) = (joined(), n1());
        let record = registry.nodes.get_mut(&n1).expect("known");
        record.certificates.clear();
        assert_eq!(registry.admit(&n1, Role::Agent, "k"), Ok(()));
        let shown = Shown {
            key_hash: "k".into(),
            issuer: "old".into(),
            not_after_unix: 99,
            trusts: BTreeSet::from(["old".to_owned()]),
        };
        assert_eq!(registry.learn(&n1, Role::Agent, shown.clone()).len(), 1);
        assert_eq!(registry.learn(&n1, Role::Agent, shown), []);
        assert_eq!(registry.admit(&n1, Role::Agent, "k"), Ok(()));
        let other = registry.admit(&n1, Role::Agent, "x");
        assert_eq!(other, Err(SessionRefusal::OtherKey { node: n1 }));
    }

    #[test]
    fn a_rotation_waits_for_trust_first_and_for_certificates_then_but_not_for_the_revoked() {
        let (mut registry, n1) = (joined(), n1());
        let waits = |registry: &Registry, stage| !registry.waiting_for(stage, "new").is_empty();
        assert!(waits(&registry, RotationStage::Spreading), "never seen");
        let mut shown = Shown {
            key_hash: "k".into(),
            issuer: "old".into(),
            not_after_unix: 99,
            trusts: BTreeSet::from(["old".to_owned()]),
        };
        registry.learn(&n1, Role::Agent, shown.clone());
        assert!(waits(&registry, RotationStage::Spreading));
        shown.trusts.insert("new".into());
        registry.learn(&n1, Role::Agent, shown.clone());
        assert!(!waits(&registry, RotationStage::Spreading));
        assert!(waits(&registry, RotationStage::Replacing));
        shown.issuer = "new".into();
        registry.learn(&n1, Role::Agent, shown.clone());
        assert!(!waits(&registry, RotationStage::Replacing));
        shown.issuer = "old".into();
        registry.learn(&n1, Role::Agent, shown);
        registry.revoke(&n1).expect("revokes");
        assert!(!waits(&registry, RotationStage::Replacing));
    }

    #[test]
    fn a_name_is_free_again_when_the_last_certificate_of_the_revoked_node_has_expired() {
        let (mut registry, n1) = (joined(), n1());
        assert_eq!(
            registry.remove_node(&n1, DAY).expect_err("a member").status,
            409
        );
        registry.revoke(&n1).expect("revokes");
        assert_eq!(
            registry.remove_node(&n1, DAY).expect_err("valid").status,
            409
        );
        registry.remove_node(&n1, WEEK + 1).expect("removes");
        assert!(registry.node(&n1).is_none());
    }
}
