//! Builds the fleet from the store at a scheduler's start.

use std::str::FromStr;

use serde::de::DeserializeOwned;
use shared::ids::{EndpointName, NodeName, ReplicaId, Role};
use shared::units::MonoTime;

use crate::core::Core;
use crate::endpoint::Entry;
use crate::learned::{self, Stored};
use crate::node::Node;
use crate::records::{
    ENDPOINTS, EndpointRecord, GATEWAYS, GatewayRecord, REPLICAS, ReplicaRecord, VERSION,
};
use crate::replica::Replica;
use crate::store_op::{Entries, RestoreError, records};

/// A record that says which version of its form it has.
trait Versioned {
    fn version(&self) -> u32;
}

impl Versioned for EndpointRecord {
    fn version(&self) -> u32 {
        self.v
    }
}

impl Versioned for ReplicaRecord {
    fn version(&self) -> u32 {
        self.v
    }
}

impl Versioned for GatewayRecord {
    fn version(&self) -> u32 {
        self.v
    }
}

impl Core {
    pub(crate) fn restore_fleet(
        &mut self,
        entries: &Entries,
        now: MonoTime,
    ) -> Result<(), RestoreError> {
        for (_, record) in read::<EndpointName, EndpointRecord>(entries, ENDPOINTS)? {
            let mut entry = Entry::new(record.endpoint, now);
            entry.active_generations = record.active_generations;
            entry.pending_generations = record.pending_generations;
            self.endpoints.insert(entry.record.name.clone(), entry);
        }
        for joined in self.registry.nodes() {
            let mut node = Node::new(now);
            node.expected = joined.roles.contains(&Role::Agent);
            self.nodes.insert(joined.name.clone(), node);
        }
        for (name, record) in read::<NodeName, GatewayRecord>(entries, GATEWAYS)? {
            let node = self.nodes.entry(name).or_insert_with(|| Node::new(now));
            node.gateway.peer_address = record.peer_address;
            node.gateway.client_address = record.client_address;
        }
        for (id, record) in read::<ReplicaId, ReplicaRecord>(entries, REPLICAS)? {
            let replica = Replica::restore(id, record, now);
            let node = replica.node.clone();
            self.nodes.entry(node).or_insert_with(|| Node::new(now));
            self.insert_replica(replica, now);
        }
        let names: Vec<EndpointName> = self.endpoints.keys().cloned().collect();
        for name in names {
            self.assign_sets(&name);
        }
        self.resume_axes(entries, now);
        self.resume_told(now);
        Ok(())
    }

    /// As many replicas are wanted as were, and what was learned is known: a restart scales nothing by
    /// itself. What a roll-out waits for depended on demand, which is not known yet.
    fn resume_axes(&mut self, entries: &Entries, now: MonoTime) {
        let mut learned = learned::restore(entries);
        for (id, set) in &mut self.sets {
            let members = set.members.iter().filter_map(|id| self.replicas.get(id));
            let there = members.filter(|replica| replica.counts()).count();
            let there = u32::try_from(there).unwrap_or(u32::MAX);
            let kept = learned.remove(&learned::key(id));
            if kept.is_some() {
                set.stored = Stored::read();
            }
            let kept = kept.flatten().unwrap_or_default();
            set.startup = kept.startup;
            set.axes.guess_from(kept.prior);
            set.begin(kept.scaler, there, &self.settings, now);
            if set.active.is_none() && set.pending.is_some() {
                set.needed = there;
            }
        }
        self.unwritten.forgotten.extend(learned.into_keys());
    }
}

fn read<K, R>(entries: &Entries, prefix: &str) -> Result<Vec<(K, R)>, RestoreError>
where
    K: FromStr,
    K::Err: std::fmt::Display,
    R: DeserializeOwned + Versioned,
{
    let mut found = Vec::new();
    for entry in records::<R>(entries, prefix) {
        let (rest, record) = entry?;
        let invalid = |problem: String| RestoreError::Invalid {
            key: format!("{prefix}{rest}"),
            problem,
        };
        if record.version() != VERSION {
            return Err(invalid(format!(
                "has version {}, this program knows {VERSION}: start the program that wrote it, or a later one",
                record.version()
            )));
        }
        let key = rest
            .parse()
            .map_err(|e: K::Err| invalid(format!("has a key that is not valid: {e}")))?;
        found.push((key, record));
    }
    Ok(found)
}
