//! Chooses the node for one replica. Pure: candidates and the need in, a node or every refusal out.
//!
//! Filter, then score. A node must be there, have a gateway and have room; among those that do, the
//! replica goes where fewest of its siblings are, then where its model and image already lie, then
//! where most memory is left; equal nodes go by name.
//!
//! Where no node has room now, it also says whether one could ever have: whoever waits is told at once
//! that waiting is in vain, and what to change.

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
    pub memory: Share<u64>,
    pub cpu_millis: Share<u32>,
    /// GPUs with enough memory.
    pub gpus: Share<u32>,
    /// The model cache as a whole: the node evicts for itself.
    pub cache_bytes: u64,
    /// What of it the disk could hold now, everything in it that is not needed evicted; `None` where
    /// the node does not say.
    pub cache_room_bytes: Option<u64>,
    /// It has said how large it is since the scheduler's start.
    pub known: bool,
    /// Replicas of the same set that are there or coming.
    pub siblings: u32,
    /// The set's last replica failed here.
    pub failed_here: bool,
    pub has_model: bool,
    pub has_image: bool,
}

/// What a node has of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share<T> {
    /// Not taken by replicas.
    pub free: T,
    pub total: T,
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
    Memory(Share<u64>),
    CpuMillis(Share<u32>),
    Gpus(Share<u32>),
    Cache { capacity: u64 },
    Disk { room: u64 },
}

/// Every node's refusal. Displays as one sentence that says what is missing where, and what to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoRoom {
    pub need: Need,
    pub refusals: Vec<(NodeName, Refusal)>,
    /// No node could hold it even if all other replicas left.
    pub for_good: bool,
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
            Reverse(candidate.memory.free),
            &candidate.node,
        )
    });
    best.map(|candidate| candidate.node.clone()).ok_or(NoRoom {
        need: *need,
        refusals,
        for_good: !candidates.iter().any(|node| could_hold(need, node)),
    })
}

/// Whether it would have room if it were there and empty. Of a node that has not said how large it is,
/// everything may be hoped.
fn could_hold(need: &Need, candidate: &Candidate) -> bool {
    let large_enough = candidate.gpus.total >= need.gpus
        && candidate.memory.total >= need.memory_bytes
        && candidate.cpu_millis.total >= need.cpu_millis
        && model_refusal(need, candidate).is_none();
    candidate.standing != Standing::Revoked && (!candidate.known || large_enough)
}

fn model_refusal(need: &Need, candidate: &Candidate) -> Option<Refusal> {
    let room = candidate.cache_room_bytes.unwrap_or(u64::MAX);
    if candidate.cache_bytes < need.model_bytes {
        Some(Refusal::Cache {
            capacity: candidate.cache_bytes,
        })
    } else if room < need.model_bytes && !candidate.has_model {
        Some(Refusal::Disk { room })
    } else {
        None
    }
}

fn refusal(need: &Need, candidate: &Candidate) -> Option<Refusal> {
    match candidate.standing {
        Standing::Ready => {}
        Standing::Revoked => return Some(Refusal::Revoked),
        Standing::Awaited => return Some(Refusal::Awaited),
        Standing::Silent => return Some(Refusal::Silent),
        Standing::NoGateway => return Some(Refusal::NoGateway),
    }
    if candidate.gpus.free < need.gpus {
        Some(Refusal::Gpus(candidate.gpus))
    } else if candidate.memory.free < need.memory_bytes {
        Some(Refusal::Memory(candidate.memory))
    } else if candidate.cpu_millis.free < need.cpu_millis {
        Some(Refusal::CpuMillis(candidate.cpu_millis))
    } else {
        model_refusal(need, candidate)
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
            .all(|(_, refusal)| matches!(refusal, Refusal::Memory(_)));
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
        f.write_str(&text)?;
        match self.advice() {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
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
            Refusal::Memory(Share { free, total }) if only_memory => {
                format!("has {} of {}", Bytes(*free), Bytes(*total))
            }
            Refusal::Memory(Share { free, total }) => format!(
                "has {} memory free of {}, {} needed",
                Bytes(*free),
                Bytes(*total),
                Bytes(need.memory_bytes)
            ),
            Refusal::CpuMillis(Share { free, total }) => format!(
                "has {free} cpu_millis free of {total}, {} needed",
                need.cpu_millis
            ),
            Refusal::Gpus(Share { free, total }) if need.gpu_memory_bytes > 0 => format!(
                "has {free} GPUs with {} or more free of {total}, {} needed",
                Bytes(need.gpu_memory_bytes),
                need.gpus
            ),
            Refusal::Gpus(Share { free, total }) => {
                format!("has {free} GPUs free of {total}, {} needed", need.gpus)
            }
            Refusal::Cache { capacity } => format!(
                "has a model cache of {} for a model of {}",
                Bytes(*capacity),
                Bytes(need.model_bytes)
            ),
            Refusal::Disk { room } => format!(
                "has room for {} on the disk of its model cache for a model of {}",
                Bytes(*room),
                Bytes(need.model_bytes)
            ),
        }
    }

    /// What would make room, most of it by those who asked.
    fn advice(&self) -> Option<String> {
        let any = |wanted: fn(&Refusal) -> bool| self.refusals.iter().any(|(_, it)| wanted(it));
        let mut advice = Vec::new();
        if any(|it| matches!(it, Refusal::Memory(_))) {
            advice.push("ask for less with --memory (stokehold.memory_bytes)");
        }
        if any(|it| matches!(it, Refusal::CpuMillis(_))) {
            advice.push("ask for less with --cpu (stokehold.cpu_millis)");
        }
        if any(|it| matches!(it, Refusal::Cache { .. })) {
            advice.push("raise cache_capacity in a node's agent.toml");
        }
        if any(|it| matches!(it, Refusal::Disk { .. })) {
            advice.push("free some on a node's disk, or move cache_dir in its agent.toml");
        }
        let larger = any(|it| {
            matches!(
                it,
                Refusal::Memory(_) | Refusal::CpuMillis(_) | Refusal::Gpus(_)
            )
        });
        if larger && self.for_good {
            advice.push("add a larger node");
        } else if larger {
            advice.push("wait until other replicas leave");
        }
        (!advice.is_empty()).then(|| advice.join(", or "))
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

    fn whole<T: Copy>(total: T) -> Share<T> {
        Share { free: total, total }
    }

    fn node(name: &str) -> Candidate {
        Candidate {
            node: NodeName::parse(name).expect("valid"),
            standing: Standing::Ready,
            memory: whole(8 << 30),
            cpu_millis: whole(8000),
            gpus: whole(0),
            cache_bytes: 200 << 30,
            cache_room_bytes: Some(100 << 30),
            known: true,
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
        candidates[2].memory.free = 9 << 30;
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
        let table: [(Spoil, &str); 7] = [
            (
                |n| n.memory.free = 300 << 20,
                "no node has 1 GiB memory free: n1 has 300 MiB of 8 GiB; ask for less with --memory \
                 (stokehold.memory_bytes), or wait until other replicas leave",
            ),
            (
                |n| n.cpu_millis = whole(500),
                "no node can take a replica: n1 has 500 cpu_millis free of 500, 1000 needed; ask for \
                 less with --cpu (stokehold.cpu_millis), or add a larger node",
            ),
            (
                |n| n.cache_bytes = 1 << 10,
                "no node can take a replica: n1 has a model cache of 1 KiB for a model of 1 MiB; \
                 raise cache_capacity in a node's agent.toml",
            ),
            (
                |n| n.cache_room_bytes = Some(1 << 10),
                "no node can take a replica: n1 has room for 1 KiB on the disk of its model cache \
                 for a model of 1 MiB; free some on a node's disk, or move cache_dir in its agent.toml",
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
    fn waiting_is_in_vain_only_where_no_node_could_hold_it_even_when_empty() {
        let in_vain = |nodes: &[Candidate]| place(&need(), nodes).expect_err("no room").for_good;
        let with = |spoil: fn(&mut Candidate)| {
            let mut candidate = node("n1");
            spoil(&mut candidate);
            candidate
        };
        assert!(in_vain(&[]), "a node has to join first");
        assert!(in_vain(&[with(|n| n.memory = whole(1 << 20))]));
        assert!(in_vain(&[with(|n| n.cache_bytes = 0)]));
        assert!(in_vain(&[with(|n| n.cache_room_bytes = Some(0))]));
        assert!(in_vain(&[with(|n| n.standing = Standing::Revoked)]));
        // Others may leave, and who is silent may come back.
        let full = with(|n| n.memory.free = 0);
        assert!(!in_vain(std::slice::from_ref(&full)));
        assert!(!in_vain(&[with(|n| n.standing = Standing::Silent)]));
        assert!(!in_vain(&[with(|n| n.cpu_millis = whole(1)), full]));
        // A node that has not said how large it is may be large enough.
        let unseen = with(|n| {
            n.standing = Standing::Awaited;
            n.memory = whole(0);
            n.known = false;
        });
        assert!(!in_vain(&[unseen]));
        // What is there already needs no room.
        let there = with(|n| {
            n.cache_room_bytes = Some(0);
            n.has_model = true;
        });
        assert!(place(&need(), &[there]).is_ok());
    }

    #[test]
    fn gpus_are_counted_whole_and_by_their_memory() {
        let need = Need {
            gpus: 2,
            gpu_memory_bytes: 16 << 30,
            ..need()
        };
        let mut candidate = node("n1");
        candidate.gpus = whole(1);
        let refused = place(&need, &[candidate.clone()]).expect_err("one is not two");
        assert!(
            refused
                .to_string()
                .contains("has 1 GPUs with 16 GiB or more")
        );
        candidate.gpus = whole(2);
        assert!(place(&need, &[candidate]).is_ok());
    }

    #[test]
    fn a_long_list_of_refusals_is_counted() {
        let full: Vec<Candidate> = (0..9)
            .map(|i| Candidate {
                memory: Share::default(),
                ..node(&format!("n{i}"))
            })
            .collect();
        let text = place(&need(), &full).expect_err("full").to_string();
        assert!(
            text.contains("n4 has 0 B of 0 B; and 4 more; ask"),
            "{text}"
        );
    }
}
