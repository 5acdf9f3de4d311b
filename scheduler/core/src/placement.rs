//! Chooses the node for one replica. Pure: candidates and the need in, a node or every refusal out.
//!
//! Filter, then score. A node must be there, have a gateway and have room; among those that do, the
//! replica goes where fewest of its siblings are, then where its model and image already lie, then
//! where most memory is left; equal nodes go by name.

use std::cmp::Reverse;
use std::fmt::Write as _;

use shared::ids::NodeName;
use shared::units::Bytes;

/// What one replica takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    pub memory_bytes: u64,
    pub cpu_millis: u32,
    pub gpus: u32,
    /// Each GPU must have at least this much.
    pub gpu_memory_bytes: u64,
    pub model_bytes: u64,
}

/// One node as a candidate for one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub node: NodeName,
    pub standing: Standing,
    pub memory_free: u64,
    pub cpu_free: u32,
    /// GPUs with enough memory that no replica has.
    pub gpus_free: u32,
    /// The model cache as a whole: the node evicts for itself.
    pub cache_bytes: u64,
    /// Replicas of the same set that are there or coming.
    pub siblings: u32,
    /// The set's last replica failed here.
    pub failed_here: bool,
    pub has_model: bool,
    pub has_image: bool,
}

/// Whether a node takes replicas at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Ready,
    Revoked,
    /// Its agent has said nothing since the scheduler's start.
    Awaited,
    /// Its agent's session is down, or its lease has passed.
    Silent,
    /// No gateway on it: nobody could probe or reach a replica.
    NoGateway,
}

/// Why a node was passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    Revoked,
    Awaited,
    Silent,
    NoGateway,
    Memory { free: u64 },
    Cpu { free_millis: u32 },
    Gpus { free: u32 },
    Cache { capacity: u64 },
}

/// Every node's refusal. Displays as one sentence that says what is missing where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoRoom {
    pub need: Need,
    pub refusals: Vec<(NodeName, Refusal)>,
}

/// Refusals that a sentence names before it counts the rest.
const NAMED: usize = 5;

pub fn place(need: &Need, candidates: &[Candidate]) -> Result<NodeName, NoRoom> {
    let mut refusals = Vec::new();
    let mut fitting: Vec<&Candidate> = Vec::new();
    for candidate in candidates {
        match refusal(need, candidate) {
            Some(refusal) => refusals.push((candidate.node.clone(), refusal)),
            None => fitting.push(candidate),
        }
    }
    let best = fitting.into_iter().min_by_key(|candidate| {
        (
            candidate.failed_here,
            candidate.siblings,
            !candidate.has_model,
            !candidate.has_image,
            Reverse(candidate.memory_free),
            &candidate.node,
        )
    });
    best.map(|candidate| candidate.node.clone()).ok_or(NoRoom {
        need: *need,
        refusals,
    })
}

fn refusal(need: &Need, candidate: &Candidate) -> Option<Refusal> {
    match candidate.standing {
        Standing::Ready => {}
        Standing::Revoked => return Some(Refusal::Revoked),
        Standing::Awaited => return Some(Refusal::Awaited),
        Standing::Silent => return Some(Refusal::Silent),
        Standing::NoGateway => return Some(Refusal::NoGateway),
    }
    if candidate.gpus_free < need.gpus {
        Some(Refusal::Gpus {
            free: candidate.gpus_free,
        })
    } else if candidate.memory_free < need.memory_bytes {
        Some(Refusal::Memory {
            free: candidate.memory_free,
        })
    } else if candidate.cpu_free < need.cpu_millis {
        Some(Refusal::Cpu {
            free_millis: candidate.cpu_free,
        })
    } else if candidate.cache_bytes < need.model_bytes {
        Some(Refusal::Cache {
            capacity: candidate.cache_bytes,
        })
    } else {
        None
    }
}

impl std::fmt::Display for NoRoom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.refusals.is_empty() {
            return f.write_str("no node has joined: `stokehold node token` says how to add one");
        }
        let need = &self.need;
        let only_memory = self
            .refusals
            .iter()
            .all(|(_, refusal)| matches!(refusal, Refusal::Memory { .. }));
        let mut text = if only_memory {
            format!("no node has {} memory free: ", Bytes(need.memory_bytes))
        } else {
            "no node can take a replica: ".to_owned()
        };
        for (i, (node, refusal)) in self.refusals.iter().take(NAMED).enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            let reason = self.reason(refusal, only_memory);
            write!(text, "{separator}{node} {reason}")?;
        }
        if self.refusals.len() > NAMED {
            write!(text, "; and {} more", self.refusals.len() - NAMED)?;
        }
        f.write_str(&text)
    }
}

impl NoRoom {
    fn reason(&self, refusal: &Refusal, only_memory: bool) -> String {
        let need = &self.need;
        match refusal {
            Refusal::Revoked => "is revoked".into(),
            Refusal::Awaited => "has not reported yet".into(),
            Refusal::Silent => "is silent".into(),
            Refusal::NoGateway => "has no gateway connected".into(),
            Refusal::Memory { free } if only_memory => format!("has {}", Bytes(*free)),
            Refusal::Memory { free } => format!(
                "has {} memory free of {} needed",
                Bytes(*free),
                Bytes(need.memory_bytes)
            ),
            Refusal::Cpu { free_millis } => format!(
                "has {free_millis} cpu_millis free of {} needed",
                need.cpu_millis
            ),
            Refusal::Gpus { free } if need.gpu_memory_bytes > 0 => format!(
                "has {free} GPUs of {} or more free of {} needed",
                Bytes(need.gpu_memory_bytes),
                need.gpus
            ),
            Refusal::Gpus { free } => format!("has {free} GPUs free of {} needed", need.gpus),
            Refusal::Cache { capacity } => format!(
                "has a model cache of {} for a model of {}",
                Bytes(*capacity),
                Bytes(need.model_bytes)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need() -> Need {
        Need {
            memory_bytes: 1 << 30,
            cpu_millis: 1000,
            gpus: 0,
            gpu_memory_bytes: 0,
            model_bytes: 1 << 20,
        }
    }

    fn node(name: &str) -> Candidate {
        Candidate {
            node: NodeName::parse(name).expect("valid"),
            standing: Standing::Ready,
            memory_free: 8 << 30,
            cpu_free: 8000,
            gpus_free: 0,
            cache_bytes: 200 << 30,
            siblings: 0,
            failed_here: false,
            has_model: false,
            has_image: false,
        }
    }

    fn placed(candidates: &[Candidate]) -> String {
        place(&need(), candidates).expect("room").to_string()
    }

    #[test]
    fn spread_wins_over_what_is_there_already_and_that_wins_over_free_memory() {
        let mut candidates = [node("a"), node("b"), node("c")];
        assert_eq!(placed(&candidates), "a", "equal nodes go by name");
        candidates[2].memory_free = 9 << 30;
        assert_eq!(placed(&candidates), "c");
        candidates[1].has_model = true;
        assert_eq!(placed(&candidates), "b");
        candidates[1].siblings = 1;
        assert_eq!(placed(&candidates), "c");
        candidates[2].failed_here = true;
        assert_eq!(placed(&candidates), "a");
    }

    #[test]
    fn a_refusal_says_what_is_missing_where() {
        type Spoil = fn(&mut Candidate);
        let table: [(Spoil, &str); 6] = [
            (
                |n| n.memory_free = 300 << 20,
                "no node has 1 GiB memory free: n1 has 300 MiB",
            ),
            (
                |n| n.cpu_free = 500,
                "no node can take a replica: n1 has 500 cpu_millis free of 1000 needed",
            ),
            (
                |n| n.cache_bytes = 1 << 10,
                "no node can take a replica: n1 has a model cache of 1 KiB for a model of 1 MiB",
            ),
            (
                |n| n.standing = Standing::Silent,
                "no node can take a replica: n1 is silent",
            ),
            (
                |n| n.standing = Standing::NoGateway,
                "no node can take a replica: n1 has no gateway connected",
            ),
            (
                |n| n.standing = Standing::Awaited,
                "no node can take a replica: n1 has not reported yet",
            ),
        ];
        for (spoil, expected) in table {
            let mut candidate = node("n1");
            spoil(&mut candidate);
            let refused = place(&need(), &[candidate]).expect_err("no room");
            assert_eq!(refused.to_string(), expected);
        }
        let nowhere = place(&need(), &[]).expect_err("no node");
        assert!(nowhere.to_string().starts_with("no node has joined"));
    }

    #[test]
    fn gpus_are_counted_whole_and_by_their_memory() {
        let need = Need {
            gpus: 2,
            gpu_memory_bytes: 16 << 30,
            ..need()
        };
        let mut candidate = node("n1");
        candidate.gpus_free = 1;
        let refused = place(&need, &[candidate.clone()]).expect_err("one is not two");
        assert!(refused.to_string().contains("has 1 GPUs of 16 GiB or more"));
        candidate.gpus_free = 2;
        assert!(place(&need, &[candidate]).is_ok());
    }

    #[test]
    fn a_long_list_of_refusals_is_counted() {
        let full: Vec<Candidate> = (0..9)
            .map(|i| Candidate {
                memory_free: 0,
                ..node(&format!("n{i}"))
            })
            .collect();
        let text = place(&need(), &full).expect_err("full").to_string();
        assert!(text.ends_with("n4 has 0 B; and 4 more"), "{text}");
    }
}
