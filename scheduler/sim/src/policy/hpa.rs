//! Kubernetes' HorizontalPodAutoscaler with its defaults, as KServe's raw deployments use it.
//!
//! Source: kubernetes, `pkg/controller/podautoscaler/{horizontal,replica_calculator}.go`, API
//! `autoscaling/v2` of 1.34, flags of `kube-controller-manager`; KServe 0.15 for the metric (CPU at
//! 80 % of what a replica may use).
//!
//! Every 15 s: `ratio = mean use of ready replicas / 80 %`. Within 10 % of 1 nothing changes. Above,
//! replicas that are starting count as ones that use nothing, which damps; then
//! `ceil(ratio * replicas)`. Up at most by `max(100 %, 4)` in 15 s; down to the largest recommendation
//! of the last 300 s.
//!
//! A replica on a GPU is measured by the busier of its multiprocessors and memory bandwidth, which an
//! operator of one would choose as a custom metric. Where the hardware says nothing of either, by
//! requests at the replica against its concurrency.

use std::collections::VecDeque;

use apa::{Resources, Sample};
use shared::units::MonoTime;

use super::{Limits, Orders, Policy, replicas};

/// `--horizontal-pod-autoscaler-sync-period`, and metrics-server's resolution: what a sync sees is
/// the mean of so long.
const SYNC_S: u64 = 15;
/// `--horizontal-pod-autoscaler-tolerance`.
const TOLERANCE: f64 = 0.1;
/// `behavior.scaleDown.stabilizationWindowSeconds`.
const DOWN_STABILIZATION_S: u64 = 300;
/// `behavior.scaleUp.policies`: the larger of 100 % and 4 pods in 15 s.
const UP_FACTOR: u32 = 2;
const UP_PODS: u32 = 4;
/// KServe's `targetUtilizationPercentage`.
const TARGET: f64 = 0.8;

#[derive(Clone, Debug)]
pub struct Hpa {
    limits: Limits,
    /// Requests at once that are a replica's full use, where its hardware says nothing.
    concurrency: u32,
    desired: u32,
    /// Uses of the ready replicas since the last sync.
    uses: Vec<f64>,
    recommended: VecDeque<(u64, u32)>,
    next_sync: Option<u64>,
    why: Option<String>,
}

impl Hpa {
    /// `concurrency`: requests at once at which a replica is full, for hardware that says nothing.
    pub fn new(concurrency: u32, limits: Limits) -> Self {
        Self {
            limits,
            concurrency: concurrency.max(1),
            desired: limits.floor().max(1),
            uses: Vec::new(),
            recommended: VecDeque::new(),
            next_sync: None,
            why: None,
        }
    }

    fn sync(&mut self, ready: u32, now_s: u64) {
        let uses = std::mem::take(&mut self.uses);
        if uses.is_empty() || ready == 0 {
            // A metric that is missing stops the autoscaler: no recommendation at all.
            return;
        }
        let used = uses.iter().sum::<f64>() / uses.len() as f64;
        let recommended = self.recommend(used, ready);
        self.recommended.push_back((now_s, recommended));
        while (self.recommended.front()).is_some_and(|(at, _)| at + DOWN_STABILIZATION_S < now_s) {
            self.recommended.pop_front();
        }
        let held = self.recommended.iter().map(|(_, it)| *it).max();
        let held = held.unwrap_or(recommended).min(self.desired);
        let most = (self.desired * UP_FACTOR).max(self.desired + UP_PODS);
        let before = self.desired;
        self.desired = recommended.max(held).min(most);
        self.desired = self
            .desired
            .clamp(self.limits.floor().max(1), self.limits.max_replicas.max(1));
        self.why = Some(format!(
            "{}: {:.0} % used of the {:.0} % aimed at, {recommended} recommended",
            match self.desired.cmp(&before) {
                std::cmp::Ordering::Greater => "up",
                std::cmp::Ordering::Equal => "keep",
                std::cmp::Ordering::Less => "down",
            },
            used * 100.0,
            TARGET * 100.0,
        ));
    }

    fn recommend(&self, used: f64, ready: u32) -> u32 {
        let near = |ratio: f64| (ratio - 1.0).abs() <= TOLERANCE;
        let (now, measured) = (self.desired, f64::from(ready));
        let ratio = used / TARGET;
        if near(ratio) {
            return now;
        }
        if ratio < 1.0 || ready >= now {
            return replicas(ratio * measured);
        }
        // Those that start count as idle ones; what would turn the direction changes nothing.
        let all = f64::from(now);
        let damped = ratio * measured / all;
        if near(damped) || damped < 1.0 {
            return now;
        }
        replicas(damped * all)
    }

    fn used(&self, sample: &Sample) -> Option<f64> {
        let mut sum = 0.0;
        let mut count = 0;
        for group in &sample.groups {
            let full = f64::from(group.replicas) * f64::from(self.concurrency);
            let used = busiest(&group.resources).unwrap_or(group.active / full);
            sum += used * f64::from(group.replicas);
            count += group.replicas;
        }
        (count > 0).then(|| sum / f64::from(count))
    }
}

fn busiest(resources: &Resources) -> Option<f64> {
    let gpu = [resources.gpu_sm, resources.gpu_membw];
    let gpu = gpu.into_iter().flatten().reduce(f64::max);
    gpu.or(resources.cpu)
}

impl Policy for Hpa {
    fn name(&self) -> &str {
        "hpa"
    }

    fn second(&mut self, sample: Option<&Sample>, now: MonoTime) -> Orders {
        let now_s = now.since_origin().as_secs();
        if let Some(sample) = sample {
            self.uses.extend(self.used(sample));
            let due = *self.next_sync.get_or_insert(now_s + SYNC_S);
            if now_s >= due {
                self.next_sync = Some(now_s + SYNC_S);
                self.sync(sample.replicas_ready, now_s);
            }
        }
        Orders {
            desired_replicas: self.desired,
            target_concurrency: None,
            warm: 0,
            horizontal: self.why.clone(),
            vertical: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use apa::Group;

    use super::*;

    fn sample(replicas: u32, cpu: Option<f64>, active: f64) -> Sample {
        let resources = Resources {
            cpu,
            ..Resources::default()
        };
        Sample {
            replicas_ready: replicas,
            groups: vec![Group {
                replicas,
                active,
                resources,
                ..Group::default()
            }],
            ..Sample::default()
        }
    }

    /// Desired replicas after each sync, where what is wanted is ready at once.
    fn syncs(hpa: &mut Hpa, from_s: u64, seconds: u64, cpu: f64) -> Vec<u32> {
        let mut desired = Vec::new();
        for at_s in from_s..from_s + seconds {
            let sample = sample(hpa.desired, Some(cpu), 0.0);
            let orders = hpa.second(Some(&sample), MonoTime::from_secs(at_s));
            if at_s > 0 && at_s % SYNC_S == 0 {
                desired.push(orders.desired_replicas);
            }
        }
        desired
    }

    #[test]
    fn full_replicas_are_a_quarter_too_few_and_the_dead_band_changes_nothing() {
        let mut hpa = Hpa::new(10, Limits::default());
        hpa.desired = 8;
        assert_eq!(syncs(&mut hpa, 0, 16, 1.0), [10]);
        assert_eq!(syncs(&mut hpa, 16, 15, 0.87), [10]);
        assert_eq!(syncs(&mut hpa, 31, 15, 0.9), [12]);
    }

    #[test]
    fn a_scale_up_is_four_pods_or_twice_as_many_in_a_sync() {
        // Use that is measured by requests may lie far above all that a replica can take.
        let mut hpa = Hpa::new(1, Limits::default());
        let mut desired = Vec::new();
        for at_s in 0..=45 {
            let sample = sample(hpa.desired, None, 200.0);
            let orders = hpa.second(Some(&sample), MonoTime::from_secs(at_s));
            if at_s > 0 && at_s % SYNC_S == 0 {
                desired.push(orders.desired_replicas);
            }
        }
        assert_eq!(desired, [5, 10, 20]);
    }

    #[test]
    fn replicas_that_start_count_as_idle_ones() {
        let hpa = |desired| Hpa {
            desired,
            ..Hpa::new(10, Limits::default())
        };
        assert_eq!(hpa(5).recommend(1.0, 4), 5);
        assert_eq!(hpa(10).recommend(1.0, 4), 10);
        assert_eq!(hpa(4).recommend(1.0, 4), 5);
    }

    #[test]
    fn a_scale_down_waits_for_the_largest_recommendation_of_five_minutes() {
        let mut hpa = Hpa::new(10, Limits::default());
        hpa.desired = 10;
        assert_eq!(syncs(&mut hpa, 0, 16, 0.8), [10]);
        let idle = syncs(&mut hpa, 16, 315, 0.04);
        assert_eq!(idle[..20], [10; 20]);
        assert_eq!(idle[20], 1);
    }

    #[test]
    fn without_a_metric_nothing_is_decided() {
        let mut hpa = Hpa::new(10, Limits::default());
        hpa.desired = 10;
        for at_s in 0..400 {
            let orders = hpa.second(Some(&sample(0, None, 0.0)), MonoTime::from_secs(at_s));
            assert_eq!(orders.desired_replicas, 10);
        }
    }
}
