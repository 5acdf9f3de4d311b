//! What both axes are given: one second of a served entity, as the scheduler saw it.
//!
//! A second in which nothing was measured is no sample at all. A number that the hardware cannot
//! give is `None`, never zero.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Nothing that is counted or measured in a second is larger than this: beyond lies a broken
/// counter.
const ABSURD: f64 = 1e9;

/// What replicas run on, as far as it decides how many requests one takes: `cpu`, `NVIDIA-H100`.
/// Replicas of one entity on different hardware have different knees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HardwareClass(pub String);

impl fmt::Display for HardwareClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One second of a served entity: sums over its replicas and all gateways.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Mean over the second of requests at replicas.
    pub active: f64,
    /// Mean over the second of requests that waited for a replica.
    pub queued: f64,
    /// Requests that came in the second.
    pub arrivals: f64,
    /// Requests that replicas ended in the second.
    pub completions: f64,
    /// Requests that gateways turned away in the second.
    pub rejected: f64,
    /// Replicas that take requests.
    pub replicas_ready: u32,
    /// Replicas that were wanted and do not take requests yet.
    pub replicas_starting: u32,
    /// The ready replicas by hardware class; one that explores is a group of its own.
    pub groups: Vec<Group>,
}

/// One second of the ready replicas of one hardware class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Group {
    pub class: HardwareClass,
    /// The one replica that is let beyond the others' target on purpose.
    pub exploring: bool,
    pub replicas: u32,
    /// Mean over the second of requests at these replicas, all together.
    pub active: f64,
    /// Requests that they ended in the second.
    pub completions: f64,
    /// Time at the replica, the gateway's queue left out, of requests that ended in the second;
    /// `None` when none did.
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
    pub resources: Resources,
}

/// Means over replicas, 0 to 1; `None` where the hardware cannot say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Of the replica's CPU limit (of the node's CPUs where it has none).
    pub cpu: Option<f64>,
    /// Streaming multiprocessors with work.
    pub gpu_sm: Option<f64>,
    /// Tensor cores (FP16, BF16).
    pub gpu_tensor: Option<f64>,
    pub gpu_membw: Option<f64>,
    /// Of the replica's memory limit (of the GPU's memory where that is nearer to its end).
    pub memory: Option<f64>,
    pub io_wait: Option<f64>,
    /// Share of the time in which some task of it waited for CPU, memory or I/O (PSI `some`).
    pub pressure: Option<f64>,
}

impl Sample {
    /// Requests at replicas and requests that wait for one.
    pub fn demand(&self) -> f64 {
        self.active + self.queued
    }

    /// The sample with what cannot be true taken out; `None` where its gauges are no numbers.
    /// A count that is no number counts as none seen.
    pub fn checked(mut self) -> Option<Sample> {
        let gauge = |value: f64| (value.is_finite() && value >= 0.0).then_some(value.min(ABSURD));
        self.active = gauge(self.active)?;
        self.queued = gauge(self.queued)?;
        for count in [
            &mut self.arrivals,
            &mut self.completions,
            &mut self.rejected,
        ] {
            *count = gauge(*count).unwrap_or(0.0);
        }
        self.groups.retain_mut(|group| {
            let (Some(active), Some(completions)) = (gauge(group.active), gauge(group.completions))
            else {
                return false;
            };
            (group.active, group.completions) = (active, completions);
            group.p50_ms = group.p50_ms.and_then(gauge);
            group.p95_ms = group.p95_ms.and_then(gauge);
            group.resources = group.resources.checked();
            group.replicas > 0
        });
        Some(self)
    }
}

impl Resources {
    fn checked(self) -> Resources {
        let ratio = |value: Option<f64>| {
            value
                .filter(|v| v.is_finite() && *v >= 0.0)
                .map(|v| v.min(1.0))
        };
        Resources {
            cpu: ratio(self.cpu),
            gpu_sm: ratio(self.gpu_sm),
            gpu_tensor: ratio(self.gpu_tensor),
            gpu_membw: ratio(self.gpu_membw),
            memory: ratio(self.memory),
            io_wait: ratio(self.io_wait),
            pressure: ratio(self.pressure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_no_sample_and_what_is_absurd_is_cut() {
        let sample = |active| Sample {
            active,
            arrivals: f64::NAN,
            ..Sample::default()
        };
        assert_eq!(sample(f64::NAN).checked(), None);
        assert_eq!(sample(-1.0).checked(), None);
        let cut = sample(1e300).checked().expect("a number");
        assert_eq!((cut.active, cut.arrivals), (ABSURD, 0.0));
    }
}
