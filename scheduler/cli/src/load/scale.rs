//! What the scheduler says of the endpoint while it is under load: one look a second.

use std::time::Duration;

use serde::Serialize;
use shared::api::EndpointDescription;
use shared::ids::EndpointName;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use crate::client::{Call, Client};
use crate::commands::endpoint::description_path;

const PERIOD: Duration = Duration::from_secs(1);
/// A scheduler that is slower is not waited for: the load does not need it.
const PATIENCE: Duration = Duration::from_secs(3);

/// Sums over the endpoint's served entities. What nobody has measured or decided yet is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Scale {
    /// Since the start of the load (below zero: in its warm-up).
    pub(super) at_s: f64,
    /// Active plus queued requests.
    pub(super) demand: Option<f64>,
    /// Of each replica; the smallest, where entities differ.
    pub(super) target_concurrency: Option<u32>,
    pub(super) desired_replicas: Option<u32>,
    pub(super) ready_replicas: u32,
    /// Ready, coming and going.
    pub(super) replicas: u32,
}

impl Scale {
    pub(super) fn of(description: &EndpointDescription, at_s: f64) -> Self {
        let decisions = &description.decisions;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let living = || description.replicas.iter().filter(|replica| !replica.ended);
        let demands: Option<Vec<f64>> = decisions.iter().map(|one| one.demand).collect();
        let decided = !decisions.is_empty();
        let active = description.endpoint.config.iter();
        let configured = active
            .flat_map(|config| &config.served_entities)
            .filter_map(|entity| entity.stokehold.target_concurrency);
        Self {
            at_s,
            demand: demands.filter(|_| decided).map(|all| all.iter().sum()),
            target_concurrency: decisions
                .iter()
                .map(|one| one.target_concurrency)
                .min()
                .or(configured.min()),
            desired_replicas: decided
                .then(|| decisions.iter().map(|one| one.desired_replicas).sum()),
            ready_replicas: count(living().filter(|one| one.state == "ready").count()),
            replicas: count(living().count()),
        }
    }
}

/// Looks until nobody listens. `None`: the scheduler did not answer.
pub(super) async fn watch(
    client: Client,
    endpoint: EndpointName,
    begun: Instant,
    warm_up: Duration,
    found: mpsc::Sender<Option<Scale>>,
) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let scale = look(&client, &endpoint).await.map(|description| {
            Scale::of(
                &description,
                begun.elapsed().as_secs_f64() - warm_up.as_secs_f64(),
            )
        });
        if found.send(scale).await.is_err() {
            return;
        }
    }
}

async fn look(client: &Client, endpoint: &EndpointName) -> Option<EndpointDescription> {
    let call = Call::get(description_path(endpoint)).timeout(Some(PATIENCE));
    client.call(call).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::fixtures;

    #[test]
    fn a_look_adds_up_entities_and_counts_living_replicas() {
        let mut description = fixtures::description("NOT_UPDATING");
        description.replicas = vec![
            fixtures::replica(1, "ready", ""),
            fixtures::replica(2, "starting", ""),
            fixtures::replica(3, "failed", "exit 1"),
        ];
        let scale = Scale::of(&description, 2.0);
        let expected = Scale {
            at_s: 2.0,
            demand: Some(6.25),
            target_concurrency: Some(4),
            desired_replicas: Some(2),
            ready_replicas: 1,
            replicas: 2,
        };
        assert_eq!(scale, expected);
    }

    #[test]
    fn before_the_first_decision_demand_is_not_known() {
        let mut description = fixtures::description("NOT_UPDATING");
        description.decisions.clear();
        let scale = Scale::of(&description, 0.0);
        assert_eq!((scale.demand, scale.desired_replicas), (None, None));
        assert_eq!(scale.target_concurrency, Some(4));
    }
}
