//! How a deployment ended: ready with its address, or failed with reason and log.

use std::time::Duration;

use shared::api::EndpointDescription;

use super::watch::Outcome;
use crate::client::Client;
use crate::commands::last_words::last_words;
use crate::context::Resolved;
use crate::exit::{Failure, Stop};
use crate::output::Output;
use crate::output::format::{count, took};

pub(super) async fn tell(
    outcome: Outcome,
    context: &Resolved,
    client: &Client,
    elapsed: Duration,
    output: &Output,
) -> anyhow::Result<()> {
    let (description, failure) = match outcome {
        Outcome::Ready(description) => (description, None),
        Outcome::Failed { last, reason } => {
            let failure = failed(&last, &reason, client).await;
            (last, Some(failure))
        }
        Outcome::NoRoom { last, reason } => {
            let failure = no_room(&last, &reason);
            (last, Some(failure))
        }
    };
    if output.is_json() {
        output.json(&description)?;
    }
    match failure {
        None if output.is_json() => Ok(()),
        None => output.line(ready(&description, context.gateway.as_deref(), elapsed)),
        Some(failure) => Err(Stop::Deployment(Box::new(failure)).into()),
    }
}

async fn failed(last: &EndpointDescription, reason: &str, client: &Client) -> Failure {
    let name = &last.endpoint.name;
    let log = last_words(&last.replicas, client).await;
    let serving = match &last.endpoint.config {
        Some(config) => format!("; configuration {} goes on serving", config.config_version),
        None => String::new(),
    };
    let more = match &log {
        Some(words) => words.more(),
        None => format!("stokehold describe {name}"),
    };
    Failure {
        code: "DEPLOYMENT_FAILED",
        message: format!("endpoint {name} failed: {reason}"),
        hint: format!("{more} shows more; mend it and deploy again{serving}"),
        log,
    }
}

fn no_room(last: &EndpointDescription, reason: &str) -> Failure {
    let name = &last.endpoint.name;
    let serving = match &last.endpoint.config {
        Some(config) => format!(" (configuration {} goes on serving)", config.config_version),
        None => format!(", or take it back with `stokehold delete {name}`"),
    };
    Failure {
        code: "NO_ROOM",
        message: format!("endpoint {name} cannot be placed: {reason}"),
        hint: format!(
            "nothing was started, and it starts by itself once that is mended; or deploy it again \
             with other values{serving}"
        ),
        log: None,
    }
}

fn ready(description: &EndpointDescription, gateway: Option<&str>, elapsed: Duration) -> String {
    let name = &description.endpoint.name;
    let replicas = description
        .replicas
        .iter()
        .filter(|replica| replica.state == "ready")
        .count();
    let gateway = gateway.unwrap_or("https://GATEWAY").trim_end_matches('/');
    format!(
        "endpoint {name} is ready: {gateway}/serving-endpoints/{name}/invocations ({}, {})",
        count(replicas, "replica"),
        took(elapsed)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::fixtures::{description, replica};

    #[test]
    fn the_verdict_names_address_replicas_and_time() {
        let mut at = description("NOT_UPDATING");
        at.replicas = vec![replica(1, "ready", "")];
        assert_eq!(
            ready(
                &at,
                Some("https://127.0.0.1:8443/"),
                Duration::from_millis(3240)
            ),
            "endpoint iris is ready: https://127.0.0.1:8443/serving-endpoints/iris/invocations \
             (1 replica, 3.2 s)"
        );
    }
}
