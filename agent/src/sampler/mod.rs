//! Measures the machine and its replicas each second.
//!
//! A second that was missed stays missed: a tick that comes late is skipped, and rates are of the
//! stretch that really passed.

pub mod gpu;
pub mod host;
pub mod replicas;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use shared::ids::ReplicaId;
use shared::report::{NodeCapacity, NodeSample, ReplicaSample};
use shared::units::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::cgroup::{Cgroups, Reading};
use gpu::GpuProbe;
use host::HostReading;

const EVERY: Duration = Duration::from_secs(1);
/// What a sample waits for GPUs: the rest of it must not come late for them.
const GPU_LIMIT: Duration = Duration::from_millis(400);

/// The last second.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    pub capacity: NodeCapacity,
    pub node: NodeSample,
    pub replicas: BTreeMap<ReplicaId, ReplicaSample>,
}

pub struct Sampler {
    pub cgroups: Cgroups,
    pub instance: String,
    pub memory_reserved: Bytes,
    pub cache_capacity: Bytes,
    pub cache: model::cache::Cache,
    pub gpus: GpuProbe,
    /// Replicas that run.
    pub running: watch::Receiver<Vec<ReplicaId>>,
    pub samples: watch::Sender<Arc<Samples>>,
    /// What the machine has, told once: cores do not come and go.
    pub cpu_millis: u32,
}

impl Sampler {
    pub async fn run(mut self, cancel: CancellationToken) -> anyhow::Result<()> {
        let mut ticker = tokio::time::interval(EVERY);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut before: Option<(HostReading, Instant)> = None;
        let mut groups: BTreeMap<ReplicaId, Reading> = BTreeMap::new();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                _ = ticker.tick() => {}
            }
            let now = Instant::now();
            let reading = host::read();
            let earlier = before.as_ref().map(|(reading, _)| reading);
            let over = before.as_ref().map_or(Duration::ZERO, |(_, at)| now - *at);
            let node = host::sample(earlier, &reading, over);
            let (replicas, read) = self.replicas(&groups, over);
            let memory_bytes = reading.memory_total_bytes().unwrap_or(0);
            let samples = self.with_gpus(node, replicas, memory_bytes).await;
            self.samples.send_replace(Arc::new(samples));
            groups = read;
            before = Some((reading, now));
        }
    }

    fn replicas(
        &self,
        before: &BTreeMap<ReplicaId, Reading>,
        over: Duration,
    ) -> (
        BTreeMap<ReplicaId, ReplicaSample>,
        BTreeMap<ReplicaId, Reading>,
    ) {
        let mut samples = BTreeMap::new();
        let mut readings = BTreeMap::new();
        for id in self.running.borrow().iter() {
            let reading = self.cgroups.read(&self.instance, id);
            let sample = replicas::sample(before.get(id), &reading, over);
            samples.insert(id.clone(), sample);
            readings.insert(id.clone(), reading);
        }
        (samples, readings)
    }

    async fn with_gpus(
        &mut self,
        mut node: NodeSample,
        replicas: BTreeMap<ReplicaId, ReplicaSample>,
        memory_bytes: u64,
    ) -> Samples {
        let gpus = self.gpus.read(GPU_LIMIT).await;
        node.gpus = gpus.samples;
        node.absent.extend(gpus.absent);
        Samples {
            capacity: NodeCapacity {
                cpu_millis: self.cpu_millis,
                memory_bytes: memory_bytes.saturating_sub(self.memory_reserved.get()),
                cache_bytes: self.cache_capacity.get(),
                cache_room_bytes: self.cache.room().map(Bytes::get),
                gpus: gpus.gpus,
                gpus_absent: gpus.none_because,
            },
            node,
            replicas,
        }
    }
}

/// The cores that this machine gives to its processes.
pub fn cpu_millis() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    u32::try_from(cores)
        .unwrap_or(u32::MAX / 1000)
        .saturating_mul(1000)
}
