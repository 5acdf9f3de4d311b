//! A policy that is looked at second by second.

use apa::Sample;
use shared::units::MonoTime;
use sim::policy::{Orders, Policy};

/// What one second saw and came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) target: u32,
    pub(crate) desired: u32,
    /// Of the ready replicas together, as the policy was told; `None`: nothing was measured.
    pub(crate) p95_ms: Option<f64>,
}

pub(crate) struct Watched<P> {
    policy: P,
    pub(crate) seconds: Vec<Seen>,
}

impl<P: Policy> Watched<P> {
    pub(crate) fn new(policy: P) -> Self {
        Self {
            policy,
            seconds: Vec::new(),
        }
    }
}

impl<P: Policy> Policy for Watched<P> {
    fn name(&self) -> &str {
        self.policy.name()
    }

    fn second(&mut self, sample: Option<&Sample>, now: MonoTime) -> Orders {
        let orders = self.policy.second(sample, now);
        let groups = sample.into_iter().flat_map(|it| &it.groups);
        self.seconds.push(Seen {
            target: orders.target_concurrency.unwrap_or(0),
            desired: orders.desired_replicas,
            p95_ms: groups.filter_map(|it| it.p95_ms).reduce(f64::max),
        });
        orders
    }
}
