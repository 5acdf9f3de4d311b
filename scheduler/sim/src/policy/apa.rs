//! Our own autoscaler as one policy among the others: the very code that production runs.

use std::time::Duration;

use apa::{Autoscaler, Sample};
use shared::units::MonoTime;

use super::{Orders, Policy};

/// The autoscaler of one served entity.
#[derive(Clone, Debug)]
pub struct Apa {
    policy: apa::Policy,
    /// Made with the first second: its times count from there.
    autoscaler: Option<Autoscaler>,
    horizontal: Option<String>,
    vertical: Option<String>,
}

impl Apa {
    pub fn new(policy: apa::Policy) -> Self {
        Self {
            policy,
            autoscaler: None,
            horizontal: None,
            vertical: None,
        }
    }

    /// What both axes remember; `None` before the first second.
    pub fn autoscaler(&self) -> Option<&Autoscaler> {
        self.autoscaler.as_ref()
    }
}

impl Policy for Apa {
    fn name(&self) -> &str {
        "apa"
    }

    fn second(&mut self, sample: Option<&Sample>, now: MonoTime) -> Orders {
        let policy = &self.policy;
        let autoscaler = self.autoscaler.get_or_insert_with(|| {
            let found = sample.map_or(0, |it| {
                it.replicas_ready.saturating_add(it.replicas_starting)
            });
            let desired = found.max(policy.min_replicas).min(policy.max_replicas);
            let began = now - Duration::from_secs(1);
            Autoscaler::new(policy, desired, began)
        });
        let orders = autoscaler.second(policy, sample.cloned(), now);
        if let Some(decision) = &orders.horizontal {
            self.horizontal = Some(decision.explanation.short());
        }
        if let Some((_, decision)) = orders.vertical.first() {
            self.vertical = Some(decision.explanation.short());
        }
        Orders {
            desired_replicas: orders.desired_replicas,
            target_concurrency: Some(orders.target_concurrency()),
            warm: 0,
            horizontal: self.horizontal.clone(),
            vertical: self.vertical.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_that_are_there_at_the_start_are_wanted_already() {
        let mut policy = Apa::new(apa::Policy::default());
        let sample = Sample {
            replicas_ready: 2,
            replicas_starting: 1,
            ..Sample::default()
        };
        let orders = policy.second(Some(&sample), MonoTime::from_secs(1));
        assert!((1..=3).contains(&orders.desired_replicas));
        assert!(policy.autoscaler().is_some());
    }
}
