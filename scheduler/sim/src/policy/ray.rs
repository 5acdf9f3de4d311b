//! Ray Serve's default autoscaling, restated from its rule.
//!
//! Source: ray-project/ray, `python/ray/serve/autoscaling_policy.py` and the defaults of
//! `AutoscalingConfig` as of Ray 2.5x (2026).
//!
//! `desired = ceil(requests / target_ongoing_requests)`, from requests at replicas and in handles'
//! queues, pushed every 10 s as the mean of a look-back of 30 s. A decision that lasts for more than
//! the up delay of 30 s (the down delay of 600 s) without a break is carried out; one in the other
//! direction, or none, starts the count again. With no replica running, a waiting request brings one
//! at once.

use std::collections::VecDeque;

use apa::Sample;
use shared::units::MonoTime;

use super::{Limits, Orders, Policy, replicas};

/// `target_ongoing_requests`.
const TARGET: f64 = 2.0;
/// `max_ongoing_requests`: what a replica takes at once.
const MAX_ONGOING: u32 = 5;
/// `metrics_interval_s`.
const PUSH_S: u64 = 10;
/// `look_back_period_s`.
const LOOK_BACK_S: u64 = 30;
/// `upscale_delay_s`.
const UP_DELAY_S: u64 = 30;
/// `downscale_delay_s`.
const DOWN_DELAY_S: u64 = 600;

#[derive(Clone, Debug)]
pub struct Ray {
    limits: Limits,
    desired: u32,
    /// Second and demand, oldest first.
    seen: VecDeque<(u64, f64)>,
    next_push: Option<u64>,
    /// The mean that the controller knows.
    pushed: Option<f64>,
    pending: Pending,
    why: Option<String>,
}

/// Which way the decisions have gone without a break, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    None,
    Up { since: u64 },
    Down { since: u64 },
}

impl Ray {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            desired: limits.floor(),
            seen: VecDeque::new(),
            next_push: None,
            pushed: None,
            pending: Pending::None,
            why: None,
        }
    }

    fn push(&mut self, demand: f64, now_s: u64) {
        self.seen.push_back((now_s, demand));
        while (self.seen.front()).is_some_and(|(at, _)| at + LOOK_BACK_S <= now_s) {
            self.seen.pop_front();
        }
        if now_s < *self.next_push.get_or_insert(now_s + PUSH_S) {
            return;
        }
        self.next_push = Some(now_s + PUSH_S);
        let sum: f64 = self.seen.iter().map(|(_, demand)| demand).sum();
        self.pushed = Some(sum / self.seen.len() as f64);
    }

    fn decide(&mut self, running: u32, waiting: bool, now_s: u64) {
        if running == 0 {
            if waiting {
                self.desired = self.desired.max(1).min(self.limits.max_replicas);
            }
            return;
        }
        let Some(requests) = self.pushed else { return };
        let mut wanted = self.limits.clamp(replicas(requests / TARGET));
        // To zero only from one.
        if self.desired > 1 {
            wanted = wanted.max(1);
        }
        let (pending, ripe) = if wanted > self.desired {
            let since = match self.pending {
                Pending::Up { since } => since,
                Pending::None | Pending::Down { .. } => now_s,
            };
            (Pending::Up { since }, now_s - since >= UP_DELAY_S)
        } else if wanted < self.desired {
            let since = match self.pending {
                Pending::Down { since } => since,
                Pending::None | Pending::Up { .. } => now_s,
            };
            (Pending::Down { since }, now_s - since >= DOWN_DELAY_S)
        } else {
            (Pending::None, false)
        };
        self.pending = if ripe { Pending::None } else { pending };
        if ripe {
            let way = if wanted > self.desired { "up" } else { "down" };
            self.why = Some(format!(
                "{way}: {requests:.1} requests in 30 s, {TARGET:.0} a replica"
            ));
            self.desired = wanted;
        }
    }
}

impl Policy for Ray {
    fn name(&self) -> &str {
        "ray"
    }

    fn second(&mut self, sample: Option<&Sample>, now: MonoTime) -> Orders {
        let now_s = now.since_origin().as_secs();
        if let Some(sample) = sample {
            self.push(sample.demand(), now_s);
            self.decide(sample.replicas_ready, sample.demand() > 0.0, now_s);
        }
        Orders {
            desired_replicas: self.desired,
            target_concurrency: Some(MAX_ONGOING),
            warm: 0,
            horizontal: self.why.clone(),
            vertical: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(ray: &mut Ray, from_s: u64, seconds: u64, demand: f64, running: u32) -> Vec<u32> {
        let sample = Sample {
            active: demand,
            replicas_ready: running,
            ..Sample::default()
        };
        let seconds = from_s..from_s + seconds;
        let orders = seconds.map(|at_s| ray.second(Some(&sample), MonoTime::from_secs(at_s)));
        orders.map(|orders| orders.desired_replicas).collect()
    }

    #[test]
    fn a_step_is_met_forty_seconds_later() {
        let mut ray = Ray::new(Limits::default());
        let desired = run(&mut ray, 0, 60, 20.0, 1);
        let first = desired.iter().position(|replicas| *replicas == 10);
        assert_eq!(first, Some(40));
    }

    #[test]
    fn a_scale_down_needs_ten_minutes_without_a_break() {
        let mut ray = Ray::new(Limits::default());
        ray.desired = 10;
        let quiet = run(&mut ray, 0, 500, 2.0, 10);
        assert_eq!(quiet.last(), Some(&10));
        // Long enough at the old demand for the mean to say so once.
        run(&mut ray, 500, 40, 20.0, 10);
        let quiet = run(&mut ray, 540, 600, 2.0, 10);
        assert_eq!(quiet.last(), Some(&10));
        assert_eq!(run(&mut ray, 1140, 60, 2.0, 10).last(), Some(&1));
    }

    #[test]
    fn at_zero_a_request_brings_one_replica_at_once() {
        let mut ray = Ray::new(Limits {
            min_replicas: 0,
            scale_to_zero: true,
            ..Limits::default()
        });
        assert_eq!(run(&mut ray, 0, 1, 0.0, 0), [0]);
        assert_eq!(run(&mut ray, 1, 1, 7.0, 0), [1]);
    }
}
