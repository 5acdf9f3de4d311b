//! The nodes of a simulated fleet, and the scheduler's own placement on them.

use std::collections::BTreeMap;

use scheduler_core::placement::{Candidate, Need, Share, Standing, place};
use shared::ids::NodeName;

/// How many nodes there are and how many replicas each has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FleetSize {
    pub nodes: u32,
    pub replicas_per_node: u32,
}

impl Default for FleetSize {
    /// More room than any simulation needs.
    fn default() -> Self {
        Self {
            nodes: 16,
            replicas_per_node: 10_000,
        }
    }
}

/// What one replica takes; a node has a whole number of these.
const NEED: Need = Need {
    memory_bytes: 1 << 30,
    cpu_millis: 100,
    gpus: 0,
    gpu_memory_bytes: 0,
    model_bytes: 0,
};

#[derive(Clone, Debug)]
pub(crate) struct Fleet {
    nodes: Vec<Candidate>,
    index: BTreeMap<NodeName, usize>,
    room: u64,
}

impl Fleet {
    pub(crate) fn new(size: FleetSize) -> Self {
        let nodes: Vec<Candidate> = (0..size.nodes).map(|i| node(i, size)).collect();
        let index = nodes.iter().enumerate();
        Self {
            index: index.map(|(i, node)| (node.node.clone(), i)).collect(),
            room: u64::from(size.nodes) * u64::from(size.replicas_per_node),
            nodes,
        }
    }

    /// Finds a node for one more replica; `false`: none has room.
    pub(crate) fn take(&mut self) -> bool {
        // Asking in vain lists every node's refusal; the sum is known without.
        if self.room == 0 {
            return false;
        }
        let Ok(name) = place(&NEED, &self.nodes) else {
            return false;
        };
        let node = &mut self.nodes[self.index[&name]];
        node.siblings += 1;
        node.has_model = true;
        node.has_image = true;
        node.memory.free -= NEED.memory_bytes;
        node.cpu_millis.free -= NEED.cpu_millis;
        self.room -= 1;
        true
    }

    /// Takes replicas away, each from the node that then has most of them.
    pub(crate) fn leave(&mut self, replicas: u32) {
        for _ in 0..replicas {
            let fullest = self.nodes.iter_mut().max_by_key(|node| node.siblings);
            let node = fullest.expect("a replica stands on a node");
            node.siblings -= 1;
            node.memory.free += NEED.memory_bytes;
            node.cpu_millis.free += NEED.cpu_millis;
            self.room += 1;
        }
    }
}

fn node(number: u32, size: FleetSize) -> Candidate {
    let memory = NEED.memory_bytes * u64::from(size.replicas_per_node);
    let cpu_millis = NEED.cpu_millis.saturating_mul(size.replicas_per_node);
    Candidate {
        node: NodeName::parse(&format!("node-{number:06}")).expect("a valid name"),
        standing: Standing::Ready,
        memory: Share {
            free: memory,
            total: memory,
        },
        cpu_millis: Share {
            free: cpu_millis,
            total: cpu_millis,
        },
        gpus: Share::default(),
        cache_bytes: 1 << 40,
        cache_room_bytes: None,
        known: true,
        siblings: 0,
        failed_here: false,
        has_model: false,
        has_image: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_spread_over_the_nodes_until_none_has_room() {
        let mut fleet = Fleet::new(FleetSize {
            nodes: 3,
            replicas_per_node: 2,
        });
        let siblings =
            |fleet: &Fleet| -> Vec<u32> { fleet.nodes.iter().map(|node| node.siblings).collect() };
        assert!((0..3).all(|_| fleet.take()));
        assert_eq!(siblings(&fleet), [1, 1, 1]);
        assert!((0..3).all(|_| fleet.take()));
        assert!(!fleet.take(), "the fleet is full");
        fleet.leave(1);
        assert!(fleet.take());
        assert_eq!(siblings(&fleet), [2, 2, 2]);
    }
}
