//! The last line of a deployment: ready with its address, or failed with reason and log.

use std::time::Duration;

use shared::api::{EndpointDescription, LogLine};

use super::watch::Outcome;
use crate::client::{Call, Client};
use crate::commands::endpoint::description_path;
use crate::context::Resolved;
use crate::exit::Stop;
use crate::output::Output;
use crate::output::format::{count, short, took};

/// Enough for a Python traceback.
const LOG_BYTES: u32 = 8 << 10;
const LOG_LINES: usize = 25;
const LOG_PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn tell(
    outcome: Outcome,
    context: &Resolved,
    client: &Client,
    elapsed: Duration,
    output: &Output,
) -> anyhow::Result<()> {
    let (description, failure) = match outcome {
        Outcome::Ready(description) => (description, None),
        Outcome::Failed { last, reason } => (last, Some(reason)),
    };
    if output.is_json() {
        output.json(&description)?;
    }
    match failure {
        None if output.is_json() => Ok(()),
        None => output.line(ready(&description, context.gateway.as_deref(), elapsed)),
        Some(reason) => {
            show_log(&description, client).await;
            anstream::eprintln!("endpoint {} failed: {reason}", description.endpoint.name);
            Err(Stop::Told.into())
        }
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

/// The last lines of the newest replica that failed. A log that cannot be had hides no verdict.
async fn show_log(description: &EndpointDescription, client: &Client) {
    let failed = |r: &&shared::api::ReplicaInfo| r.state == "failed" || r.ended;
    // Several may have failed; the one that has been in that state for the shortest time is newest.
    let newest = description
        .replicas
        .iter()
        .filter(failed)
        .min_by(|a, b| a.since_s.total_cmp(&b.since_s));
    let Some(replica) = newest else { return };
    let call = Call::get(format!("{}/logs", description_path(&replica.endpoint)))
        .query("replica", &replica.id)
        .query("tail_bytes", LOG_BYTES)
        .timeout(Some(LOG_PATIENCE));
    let id = short(replica.id.as_str());
    let lines = match client.bytes(call).await {
        Ok(body) => last_lines(&body),
        Err(error) => {
            anstream::eprintln!("the log of replica {id} cannot be read: {error}");
            return;
        }
    };
    if lines.is_empty() {
        anstream::eprintln!("replica {id} on {} wrote no log", replica.node);
        return;
    }
    anstream::eprintln!("last lines of replica {id} on {}:", replica.node);
    for line in lines {
        anstream::eprintln!("  | {line}");
    }
}

fn last_lines(ndjson: &[u8]) -> Vec<String> {
    let lines: Vec<String> = ndjson
        .split(|&b| b == b'\n')
        .filter_map(|line| serde_json::from_slice::<LogLine>(line).ok())
        .map(|line| line.m)
        .collect();
    let skipped = lines.len().saturating_sub(LOG_LINES);
    lines.into_iter().skip(skipped).collect()
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

    #[test]
    fn only_the_last_lines_of_a_log_are_kept_and_a_torn_one_is_left_out() {
        let mut ndjson = String::new();
        for n in 0..40 {
            ndjson.push_str(&format!(
                "{{\"replica\":\"0000000000000001\",\"t\":\"x\",\"s\":\"stderr\",\"m\":\"line {n}\"}}\n"
            ));
        }
        ndjson.push_str("{\"replica\":");
        let lines = last_lines(ndjson.as_bytes());
        assert_eq!(lines.len(), LOG_LINES);
        assert_eq!(lines.last().map(String::as_str), Some("line 39"));
    }
}
