//! What images leave behind that were not brought in to the end, and that no plan has any more.
//!
//! An image that failed keeps what came of it, for the next attempt. Once it has left the plan nobody makes
//! one: then its lease ends, and containerd collects the rest.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use daemon::telemetry::Chain;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::containerd::Containerd;
use crate::control_loop::NodeView;

/// Twice this passes before anything goes: a plan may come back, and its images with it.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// A task.
pub async fn run(
    containerd: Containerd,
    instance: String,
    view: watch::Receiver<Arc<NodeView>>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let mut seen = BTreeSet::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let unfinished = match containerd.unfinished(&instance).await {
            Ok(unfinished) => unfinished,
            // The look that comes each second says so to everybody.
            Err(error) => {
                debug!(error = %Chain(&error), "leases were not listed");
                continue;
            }
        };
        let now = abandoned(&unfinished, &view.borrow());
        for hex in now.intersection(&seen) {
            match containerd.drop_unfinished(&instance, hex).await {
                Ok(()) => info!(image = %hex, "let go of an image that no plan has any more"),
                Err(error) => debug!(error = %Chain(&error), "a lease did not end"),
            }
        }
        seen = now;
    }
}

/// Those that the plan does not have; none before there is one.
fn abandoned(unfinished: &BTreeSet<String>, view: &NodeView) -> BTreeSet<String> {
    if view.plan.is_none() || !view.looked {
        return BTreeSet::new();
    }
    unfinished
        .difference(&view.planned_images)
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{plan_with, planned_image};
    use crate::ledger::Ledger;
    use shared::ids::NodeName;

    #[test]
    fn only_what_a_plan_that_is_known_does_not_have_is_let_go_of() {
        let planned = planned_image().manifest.digest.hex().to_owned();
        let unfinished = BTreeSet::from([planned, "other".to_owned()]);
        let mut ledger = Ledger::default();
        let mut view = NodeView::unseen(&ledger);
        view.looked = true;
        assert_eq!(abandoned(&unfinished, &view), BTreeSet::new());
        let node = NodeName::parse("n1").expect("valid");
        ledger.offer(&node, plan_with(1, 1, vec![])).expect("taken");
        let mut view = NodeView::unseen(&ledger);
        assert_eq!(abandoned(&unfinished, &view), BTreeSet::new());
        view.looked = true;
        assert_eq!(
            abandoned(&unfinished, &view),
            BTreeSet::from(["other".to_owned()])
        );
    }
}
