//! One second of a replica set, as the axes are given it: traffic from the gateways, and what its
//! ready replicas did by hardware class.
//!
//! What nobody measured is `None`, never zero. A replica without a figure of its own (its gateway is
//! an older one, or has just found it) is taken to be like its siblings.

use std::collections::BTreeMap;

use apa::sample::{Group, HardwareClass, Resources, Sample};
use shared::ids::{NodeName, ReplicaId};
use shared::report::{GpuSample, NodeSample, ReplicaSample};

use crate::axes::Axes;
use crate::node::{Contact, Node};
use crate::replica::Replica;
use crate::traffic::{Quantile, Traffic, gauge, rate};

/// The class of all nodes for an entity without GPUs: a replica's CPU limit makes them alike enough.
const CPU: &str = "cpu";

/// What a replica's node and gateway said of it.
pub(crate) struct Member<'a> {
    pub replica: &'a Replica,
    pub node: &'a Node,
    /// Of the node's GPUs those that replicas were given.
    pub gpus_planned: u32,
    pub agent: Contact,
}

/// What a replica runs on, as far as it decides how many requests it takes; `None` while its node
/// has not said which GPUs it has.
pub(crate) fn class_of(replica: &Replica, node: &Node) -> Option<HardwareClass> {
    if replica.entity.resources.gpus == 0 {
        return Some(HardwareClass(CPU.into()));
    }
    let gpu = node.capacity.gpus.first()?;
    Some(HardwareClass(gpu.name.clone()))
}

/// The sample of a set whose traffic is known.
pub(crate) fn sample(
    traffic: &Traffic,
    starting: u32,
    members: &[Member<'_>],
    axes: &Axes,
) -> Sample {
    let mut groups: BTreeMap<(HardwareClass, bool), Sums> = BTreeMap::new();
    for member in members {
        // Its node has reported since it was placed; after a restart that may still be to come.
        let Some(class) = class_of(member.replica, member.node) else {
            continue;
        };
        let exploring = axes.explores(&class, &member.replica.id);
        groups.entry((class, exploring)).or_default().add(member);
    }
    let ready = u32::try_from(members.len()).unwrap_or(u32::MAX);
    Sample {
        active: traffic.active,
        queued: traffic.queued,
        arrivals: traffic.arrivals,
        completions: traffic.completions,
        rejected: traffic.rejected,
        replicas_ready: ready,
        replicas_starting: starting,
        groups: groups
            .into_iter()
            .map(|((class, exploring), sums)| sums.group(class, exploring, traffic, ready))
            .collect(),
    }
}

/// One group while it is being added up.
#[derive(Default)]
struct Sums {
    replicas: u32,
    /// Those with a load of their own.
    measured: u32,
    active: f64,
    completions: f64,
    p50_ms: Quantile,
    p95_ms: Quantile,
    resources: [Mean; 7],
}

#[derive(Clone, Copy, Default)]
struct Mean {
    sum: f64,
    count: u32,
}

impl Mean {
    fn add(&mut self, value: Option<f64>) {
        if let Some(value) = value.filter(|value| value.is_finite()) {
            self.sum += value;
            self.count += 1;
        }
    }

    fn get(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / f64::from(self.count))
    }
}

impl Sums {
    fn add(&mut self, member: &Member<'_>) {
        self.replicas += 1;
        if let Some(load) = &member.replica.probed.load {
            let completions = rate(load.completions, load.over);
            self.measured += 1;
            self.active += gauge(load.active);
            self.completions += completions;
            self.p50_ms.add(load.p50_ms, completions);
            self.p95_ms.add(load.p95_ms, completions);
        }
        let resources = resources(member);
        for (mean, value) in self.resources.iter_mut().zip([
            resources.cpu,
            resources.gpu_sm,
            resources.gpu_tensor,
            resources.gpu_membw,
            resources.memory,
            resources.io_wait,
            resources.pressure,
        ]) {
            mean.add(value);
        }
    }

    fn group(self, class: HardwareClass, exploring: bool, traffic: &Traffic, ready: u32) -> Group {
        let (active, completions, p50_ms, p95_ms) = if self.measured > 0 {
            let all = f64::from(self.replicas) / f64::from(self.measured);
            (
                self.active * all,
                self.completions * all,
                self.p50_ms.get(),
                self.p95_ms.get(),
            )
        } else {
            // Nobody measures replicas: all of the entity's are taken to be alike.
            let share = f64::from(self.replicas) / f64::from(ready.max(1));
            (
                traffic.active * share,
                traffic.completions * share,
                traffic.p50_ms.get(),
                traffic.p95_ms.get(),
            )
        };
        let [
            cpu,
            gpu_sm,
            gpu_tensor,
            gpu_membw,
            memory,
            io_wait,
            pressure,
        ] = self.resources.map(Mean::get);
        Group {
            class,
            exploring,
            replicas: self.replicas,
            active,
            completions,
            p50_ms,
            p95_ms,
            resources: Resources {
                cpu,
                gpu_sm,
                gpu_tensor,
                gpu_membw,
                memory,
                io_wait,
                pressure,
            },
        }
    }
}

fn resources(member: &Member<'_>) -> Resources {
    if member.agent != Contact::Fresh {
        return Resources::default();
    }
    let limits = &member.replica.entity.resources;
    let node = &member.node.sample;
    let own = member
        .replica
        .seen
        .as_ref()
        .and_then(|seen| seen.sample.as_ref());
    let gpus = (limits.gpus > 0).then(|| Gpus::of(member));
    let gpu = |of: fn(&Gpus) -> Option<f64>| gpus.as_ref().and_then(of);
    Resources {
        cpu: cpu(own, limits.cpu_millis, member.node),
        gpu_sm: gpu(|it| it.sm),
        gpu_tensor: gpu(|it| it.tensor),
        gpu_membw: gpu(|it| it.membw),
        memory: larger(memory(own, limits.memory_bytes), gpu(|it| it.memory)),
        io_wait: node.io_wait,
        pressure: own.and_then(pressure),
    }
}

/// Of the CPU limit. In a period in which the quota was used up the replica had none left, however
/// little it used in the others.
fn cpu(own: Option<&ReplicaSample>, cpu_millis: u32, node: &Node) -> Option<f64> {
    let own = own?;
    let limit = match cpu_millis {
        0 => node.capacity.cpu_millis,
        millis => millis,
    };
    let used = own
        .cpu_cores
        .filter(|_| limit > 0)
        .map(|cores| cores * 1000.0 / f64::from(limit));
    larger(used, own.throttled)
}

fn memory(own: Option<&ReplicaSample>, planned_bytes: u64) -> Option<f64> {
    let own = own?;
    let limit = own.memory_limit_bytes.unwrap_or(planned_bytes);
    let used = own.memory_bytes.filter(|_| limit > 0)?;
    Some(used as f64 / limit as f64)
}

fn pressure(own: &ReplicaSample) -> Option<f64> {
    [
        own.pressure_cpu,
        own.pressure_memory,
        own.pressure_io,
        own.throttled,
    ]
    .into_iter()
    .fold(None, larger)
}

fn larger(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (one, other) => one.or(other),
    }
}

/// A node's cards as its replicas see them. Which replica has which card only its agent knows: the
/// cards that are given out share what all of them do, and one that nobody has does next to nothing.
struct Gpus {
    sm: Option<f64>,
    tensor: Option<f64>,
    membw: Option<f64>,
    memory: Option<f64>,
}

impl Gpus {
    fn of(member: &Member<'_>) -> Self {
        let sample: &NodeSample = &member.node.sample;
        let given = f64::from(member.gpus_planned.max(1));
        let shared = |of: fn(&GpuSample) -> Option<f64>| {
            let known: Vec<f64> = sample.gpus.iter().filter_map(of).collect();
            // A card that says nothing would count as idle.
            (!known.is_empty() && known.len() == sample.gpus.len())
                .then(|| (known.iter().sum::<f64>() / given).min(1.0))
        };
        let fullest = sample.gpus.iter().filter_map(|gpu| {
            let cards = &member.node.capacity.gpus;
            let card = cards.iter().find(|card| card.uuid == gpu.uuid)?;
            let used = gpu.memory_used_bytes.filter(|_| card.memory_bytes > 0)?;
            Some(used as f64 / card.memory_bytes as f64)
        });
        Self {
            sm: shared(|gpu| gpu.sm),
            tensor: shared(|gpu| gpu.tensor),
            membw: shared(|gpu| gpu.dram_bandwidth),
            memory: fullest.reduce(f64::max),
        }
    }
}

/// GPUs that replicas were given, by node.
pub(crate) fn gpus_planned<'a>(
    replicas: impl Iterator<Item = &'a Replica>,
) -> BTreeMap<&'a NodeName, u32> {
    let mut planned = BTreeMap::new();
    for replica in replicas {
        let gpus = replica.entity.resources.gpus;
        if gpus > 0 {
            *planned.entry(&replica.node).or_default() += gpus;
        }
    }
    planned
}

/// The replica that explores for its class from now on: the one that does, as long as it serves, or
/// else the one with the lowest id. A class explores only where another replica serves beside it.
pub(crate) fn explorer(
    class: &HardwareClass,
    now: Option<&ReplicaId>,
    members: &[Member<'_>],
) -> Option<ReplicaId> {
    if members.len() < 2 {
        return None;
    }
    let of_class = || {
        members
            .iter()
            .filter(|member| class_of(member.replica, member.node).as_ref() == Some(class))
            .map(|member| &member.replica.id)
    };
    let stays = now.filter(|id| of_class().any(|it| it == *id));
    stays.or_else(|| of_class().min()).cloned()
}
