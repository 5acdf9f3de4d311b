//! Seconds of one class's replicas, gathered into settled stretches that the curve can learn from.
//!
//! A stretch is long enough for several requests to pass from end to end, and does not begin before
//! what came before it has left the replicas. Its values are trimmed: a gauge that is ten times too
//! high in one second of twenty moves nothing.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::units::MonoTime;

use crate::curve::Block;
use crate::sample::{Group, Resources};

/// A stretch lasts this many service times, within these bounds.
const SERVICES: f64 = 3.0;
const SERVICES_CLIMBING: f64 = 1.5;
const LEAST: Duration = Duration::from_secs(10);
/// While the target is climbed to, steps are quick.
const LEAST_CLIMBING: Duration = Duration::from_secs(5);
const MOST: Duration = Duration::from_secs(60);
/// Requests that must end in a stretch.
const COMPLETIONS: f64 = 20.0;
/// In the longest stretch fewer do.
const COMPLETIONS_LONGEST: f64 = 5.0;
/// After a change, what was begun before it must have ended.
const SETTLE_SERVICES: f64 = 1.5;
const SETTLE_LEAST: Duration = Duration::from_secs(2);
/// Concurrency within a stretch lies within this share of its median (between its fifths).
const SETTLED: f64 = 0.6;
/// Of the values of a stretch, on each side.
const TRIMMED: f64 = 0.15;

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Second {
    active: f32,
    completions: f32,
    p50_ms: Option<f32>,
    p95_ms: Option<f32>,
    resources: Resources,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Collector {
    seconds: Vec<Second>,
    #[serde(with = "crate::mono_millis")]
    began: MonoTime,
}

impl Collector {
    /// Begins anew once what runs now has ended.
    pub(crate) fn restart(&mut self, service_s: f64, now: MonoTime) {
        self.seconds.clear();
        let settle = Duration::from_secs_f64((SETTLE_SERVICES * service_s).min(MOST.as_secs_f64()));
        self.began = now + settle.max(SETTLE_LEAST);
    }

    /// Takes a second; gives a stretch where one is complete. `service_s` is what a request is
    /// known to take.
    pub(crate) fn add(
        &mut self,
        group: &Group,
        service_s: f64,
        climbing: bool,
        now: MonoTime,
    ) -> Option<Block> {
        if now <= self.began {
            return None;
        }
        let replicas = f64::from(group.replicas.max(1));
        self.seconds.push(Second {
            active: (group.active / replicas) as f32,
            completions: (group.completions / replicas) as f32,
            p50_ms: group.p50_ms.map(|ms| ms as f32),
            p95_ms: group.p95_ms.map(|ms| ms as f32),
            resources: group.resources,
        });
        let lasted = now.saturating_since(self.began);
        let (least, services) = if climbing {
            (LEAST_CLIMBING, SERVICES_CLIMBING)
        } else {
            (LEAST, SERVICES)
        };
        let wanted = Duration::from_secs_f64((services * service_s).min(MOST.as_secs_f64()))
            .clamp(least, MOST);
        let completions: f64 = self
            .seconds
            .iter()
            .map(|s| f64::from(s.completions) * replicas)
            .sum();
        let enough = lasted >= wanted && completions >= COMPLETIONS;
        if !enough && lasted < MOST {
            return None;
        }
        let block = (completions >= COMPLETIONS_LONGEST)
            .then(|| self.block(completions))
            .flatten();
        self.seconds.clear();
        self.began = now;
        block
    }

    fn block(&self, completions: f64) -> Option<Block> {
        // A stretch of which most is missing says little.
        if self.seconds.len() < 3 {
            return None;
        }
        let mut active = self.values(|s| Some(f64::from(s.active)));
        active.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| active[((active.len() - 1) as f64 * share).round() as usize];
        if at(0.8) - at(0.2) > SETTLED * at(0.5) + 0.5 {
            return None;
        }
        let concurrency = trimmed(&active)?;
        // The median of what ended: Little's law lies while load rises or falls.
        let service_s = self.middle(|s| s.p50_ms)?;
        let resource =
            |read: fn(&Resources) -> Option<f64>| trimmed_of(self.values(|s| read(&s.resources)));
        (concurrency > 0.0 && service_s > 0.0).then(|| Block {
            concurrency,
            service_s,
            p95_s: self.middle(|s| s.p95_ms),
            completions,
            resources: Resources {
                cpu: resource(|r| r.cpu),
                gpu_sm: resource(|r| r.gpu_sm),
                gpu_tensor: resource(|r| r.gpu_tensor),
                gpu_membw: resource(|r| r.gpu_membw),
                memory: resource(|r| r.memory),
                io_wait: resource(|r| r.io_wait),
                pressure: resource(|r| r.pressure),
            },
        })
    }

    fn values(&self, read: impl Fn(&Second) -> Option<f64>) -> Vec<f64> {
        self.seconds.iter().filter_map(read).collect()
    }

    /// The median in seconds of what was measured in milliseconds.
    fn middle(&self, read: impl Fn(&Second) -> Option<f32>) -> Option<f64> {
        let mut values = self.values(|s| read(s).map(f64::from));
        values.sort_unstable_by(f64::total_cmp);
        values.get(values.len() / 2).map(|ms| ms / 1000.0)
    }
}

fn trimmed_of(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    trimmed(&values)
}

/// The mean of sorted values without the outermost.
fn trimmed(sorted: &[f64]) -> Option<f64> {
    let cut = (sorted.len() as f64 * TRIMMED).ceil() as usize;
    let kept = if sorted.len() > 2 * cut {
        &sorted[cut..sorted.len() - cut]
    } else {
        sorted
    };
    (!kept.is_empty()).then(|| kept.iter().sum::<f64>() / kept.len() as f64)
}
