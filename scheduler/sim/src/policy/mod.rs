//! What scales in a simulation: our own autoscaler and faithful ports of others.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`apa`](mod@apa) | the autoscaler that production runs |
//! | [`kpa`] | Knative's pod autoscaler: untuned, or with any of its settings |
//! | [`hpa`] | Kubernetes' HorizontalPodAutoscaler, as KServe's raw deployments use it |
//! | [`ray`] | Ray Serve's default policy |
//! | [`warm`] | the warm pool that goes with ours |

pub mod apa;
pub mod hpa;
pub mod kpa;
pub mod ray;
pub mod warm;

use ::apa::Sample;
use shared::units::MonoTime;

/// What a policy wants after a second.
#[derive(Clone, Debug, PartialEq)]
pub struct Orders {
    pub desired_replicas: u32,
    /// What each replica admits at once; `None`: as many as come (the replica's own queue holds them).
    pub target_concurrency: Option<u32>,
    /// Slots that are kept ready for a start in about a second; 0 for policies without a pool.
    pub warm: u32,
    pub horizontal: Option<String>,
    pub vertical: Option<String>,
}

/// Something that decides once a second (or less often, by its own period) from what was measured.
pub trait Policy {
    /// As the table names it: `apa`, `kpa`, `kpa-tuned`, `kpa-best`, `hpa`, `ray`.
    fn name(&self) -> &str;
    /// `None`: nothing was measured in this second. `now` grows by one second a call.
    fn second(&mut self, sample: Option<&Sample>, now: MonoTime) -> Orders;
}

/// Between which numbers of replicas a port of another autoscaler may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub min_replicas: u32,
    /// At least 1.
    pub max_replicas: u32,
    /// With it a minimum of 0 is meant; without it one replica always stays.
    pub scale_to_zero: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            min_replicas: 1,
            max_replicas: 200,
            scale_to_zero: false,
        }
    }
}

impl Limits {
    fn floor(&self) -> u32 {
        let least = u32::from(!self.scale_to_zero);
        self.min_replicas.max(least).min(self.max_replicas)
    }

    fn clamp(&self, replicas: u32) -> u32 {
        replicas.clamp(self.floor(), self.max_replicas)
    }
}

/// `ceil(value)` as a number of replicas. `as` saturates: the maximum binds what is absurd.
fn replicas(value: f64) -> u32 {
    value.ceil().max(0.0) as u32
}
