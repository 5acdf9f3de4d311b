//! What the core is configured with. All of it is fixed for the life of a process.

use std::collections::BTreeMap;
use std::time::Duration;

use shared::ids::{ClusterId, RuntimeName};
use shared::routes::EndpointLimits;
use shared::runtime::RuntimeTemplate;

#[derive(Clone, Debug)]
pub struct Settings {
    pub cluster: ClusterId,
    pub templates: BTreeMap<RuntimeName, RuntimeTemplate>,
    /// A node that has been silent for longer is lost, and its replicas are replaced.
    pub lease: Duration,
    /// A draining replica is stopped after this even if requests are still in it.
    pub drain_deadline: Duration,
    /// A roll-out that is not done after this has failed.
    pub deploy_deadline: Duration,
    /// Bounds of the hold before a scale-down (see `apa`).
    pub hold_min: Duration,
    pub hold_max: Duration,
    /// Without a request for this long, an entity that may goes to zero replicas.
    pub scale_to_zero_idle: Duration,
    /// Starts that may fail in one roll-out before it is given up.
    pub max_start_failures: u32,
    /// What the vendor's hardware classes mean here.
    pub workload_types: BTreeMap<String, WorkloadType>,
    pub limits: EndpointLimits,
}

/// What a replica of a hardware class gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkloadType {
    pub gpus: u32,
    /// Each GPU must have at least this much.
    pub gpu_memory_bytes: u64,
    /// Times the runtime's own CPU and memory.
    pub share: u32,
}

impl Settings {
    /// The defaults of `scheduler.toml`.
    pub fn new(cluster: ClusterId, templates: BTreeMap<RuntimeName, RuntimeTemplate>) -> Self {
        Self {
            cluster,
            templates,
            lease: Duration::from_secs(15),
            drain_deadline: Duration::from_secs(30),
            deploy_deadline: Duration::from_secs(1200),
            hold_min: Duration::from_secs(60),
            hold_max: Duration::from_secs(300),
            scale_to_zero_idle: Duration::from_secs(600),
            max_start_failures: 3,
            workload_types: default_workload_types(),
            limits: EndpointLimits::default(),
        }
    }
}

/// The vendor's classes. CPU classes are multiples of what the runtime's template gives; GPU
/// classes name a number of GPUs and the memory of the cards behind the vendor's names.
fn default_workload_types() -> BTreeMap<String, WorkloadType> {
    let cpu = |share| WorkloadType {
        share,
        ..WorkloadType::default()
    };
    // Cards sold as 16, 24 or 80 GB report a little less than that many GiB.
    let gpu = |gpus, memory_gib: u64| WorkloadType {
        gpus,
        gpu_memory_bytes: (memory_gib << 30) / 10 * 9,
        share: 1,
    };
    [
        ("CPU", cpu(1)),
        ("CPU_MEDIUM", cpu(2)),
        ("CPU_LARGE", cpu(4)),
        ("GPU_SMALL", gpu(1, 16)),
        ("GPU_MEDIUM", gpu(1, 24)),
        ("MULTIGPU_MEDIUM", gpu(4, 24)),
        ("GPU_LARGE", gpu(1, 80)),
        ("GPU_XLARGE", gpu(1, 80)),
        ("GPU_XLARGE_8", gpu(8, 80)),
    ]
    .into_iter()
    .map(|(name, class)| (name.to_owned(), class))
    .collect()
}
