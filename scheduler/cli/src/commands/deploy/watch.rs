//! Watches a roll-out: what changed becomes a line, and the end an [`Outcome`].
//!
//! The scheduler may restart while we watch; only a silence of [`SILENCE`] ends the wait.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use shared::api::EndpointDescription;
use shared::api::serving::ConfigOutput;
use shared::ids::EndpointName;

use crate::client::{Call, Client};
use crate::commands::endpoint::description_path;
use crate::exit::Stop;
use crate::output::Output;
use crate::output::format::{count, short};

const PERIOD: Duration = Duration::from_millis(400);
/// One that ended between the request and our first look is ours.
const POLLED_S: f64 = 1.0;
const SILENCE: Duration = Duration::from_secs(60);
/// What no node could ever hold is given up after this: a node may be about to join, an image about
/// to be imported.
const HOPELESS: Duration = Duration::from_secs(10);

pub(super) struct Watch<'a> {
    pub(super) client: &'a Client,
    pub(super) endpoint: &'a EndpointName,
    pub(super) config_version: u32,
    pub(super) deadline: Instant,
}

/// How a roll-out ended.
#[derive(Debug)]
pub(super) enum Outcome {
    Ready(Box<EndpointDescription>),
    Failed {
        last: Box<EndpointDescription>,
        reason: String,
    },
    /// It is pending, and will stay so until somebody changes something.
    NoRoom {
        last: Box<EndpointDescription>,
        reason: String,
    },
}

impl Watch<'_> {
    pub(super) async fn run(&self, output: &Output) -> anyhow::Result<Outcome> {
        let progress = output.spinner();
        let mut seen = Seen::default();
        let (begun, mut heard) = (Instant::now(), Instant::now());
        let mut last_status = "nothing was heard of it".to_owned();
        let mut hopeless_since: Option<Instant> = None;
        loop {
            let call = Call::get(description_path(self.endpoint));
            match self.client.call::<EndpointDescription>(call).await {
                Ok(description) => {
                    heard = Instant::now();
                    for line in seen.changes(&description, begun.elapsed().as_secs_f64()) {
                        progress.line(line);
                    }
                    if let Some(outcome) = outcome(&description, self.config_version) {
                        return Ok(outcome);
                    }
                    match stuck(&description) {
                        None => hopeless_since = None,
                        Some(reason) => {
                            let since = *hopeless_since.get_or_insert(heard);
                            if since.elapsed() >= HOPELESS {
                                let last = Box::new(description);
                                return Ok(Outcome::NoRoom { last, reason });
                            }
                        }
                    }
                    last_status = status(&description);
                    progress.status(&last_status);
                }
                Err(error) if error.is_passing() && heard.elapsed() < SILENCE => {
                    progress.status(format!("waiting for the scheduler: {error}"));
                }
                Err(error) => return Err(error.into()),
            }
            if Instant::now() >= self.deadline {
                return Err(Stop::TimedOut(format!(
                    "endpoint {} is not ready yet ({last_status}); the deployment goes on: \
                     stokehold describe {}",
                    self.endpoint, self.endpoint
                ))
                .into());
            }
            tokio::time::sleep(PERIOD).await;
        }
    }
}

/// The end, if this is one. `ours` is the configuration that was asked for.
fn outcome(description: &EndpointDescription, ours: u32) -> Option<Outcome> {
    let endpoint = &description.endpoint;
    let version = |config: &Option<ConfigOutput>| config.as_ref().map(|c| c.config_version);
    let (active, pending) = (version(&endpoint.config), version(&endpoint.pending_config));
    let failed = |reason: String| {
        Some(Outcome::Failed {
            last: Box::new(description.clone()),
            reason,
        })
    };
    if active.max(pending) > Some(ours) {
        let other = active.max(pending).unwrap_or(ours);
        return failed(format!("configuration {other} has replaced it"));
    }
    match endpoint.state.config_update.as_str() {
        "NOT_UPDATING" if active == Some(ours) => {
            Some(Outcome::Ready(Box::new(description.clone())))
        }
        "UPDATE_FAILED" => failed(reason(description)),
        "UPDATE_CANCELED" => failed("the update was cancelled".into()),
        // Also words that this version does not know: the waiting has its own limits.
        _ => None,
    }
}

/// Why nothing of it can be placed however long one waits; `None` while something may happen.
fn stuck(description: &EndpointDescription) -> Option<String> {
    let blocked = description.blocked.iter();
    let reasons: Vec<String> = blocked
        .filter(|blocked| blocked.for_good)
        .map(|blocked| format!("{}: {}", blocked.entity, blocked.reason))
        .collect();
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

/// What the entities that did not come up say, or the replicas where those say nothing.
fn reason(description: &EndpointDescription) -> String {
    let config = description.endpoint.pending_config.as_ref();
    let messages: Vec<String> = config
        .iter()
        .flat_map(|config| &config.served_entities)
        .filter(|entity| entity.state.deployment == "DEPLOYMENT_FAILED")
        .filter(|entity| !entity.state.deployment_state_message.is_empty())
        .map(|entity| format!("{}: {}", entity.name, entity.state.deployment_state_message))
        .collect();
    if !messages.is_empty() {
        return messages.join("; ");
    }
    description
        .replicas
        .iter()
        .rev()
        .find(|replica| replica.state == "failed" && !replica.reason.is_empty())
        .map_or_else(
            || "the scheduler gave no reason".to_owned(),
            |replica| format!("replica {}: {}", short(replica.id.as_str()), replica.reason),
        )
}

/// One line for the spinner.
fn status(description: &EndpointDescription) -> String {
    let living = description.replicas.iter().filter(|replica| !replica.ended);
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    for replica in living {
        *states.entry(&replica.state).or_default() += 1;
    }
    if !states.is_empty() {
        let parts: Vec<String> = states
            .into_iter()
            .map(|(state, n)| format!("{} {state}", count(n, "replica")))
            .collect();
        return parts.join(", ");
    }
    let message = description
        .endpoint
        .pending_config
        .iter()
        .flat_map(|config| &config.served_entities)
        .map(|entity| &entity.state.deployment_state_message)
        .find(|message| !message.is_empty());
    message.map_or_else(|| "no replica is placed yet".to_owned(), Clone::clone)
}

/// What was told already.
#[derive(Default)]
struct Seen {
    entities: BTreeMap<String, String>,
    replicas: BTreeMap<String, (String, String)>,
}

impl Seen {
    /// A line for each thing that is not as it was. What ended before we began to watch, `watched_s`
    /// seconds ago, is an older roll-out's.
    fn changes(&mut self, description: &EndpointDescription, watched_s: f64) -> Vec<String> {
        let mut lines = Vec::new();
        let pending = description.endpoint.pending_config.as_ref();
        for entity in pending.iter().flat_map(|config| &config.served_entities) {
            let message = &entity.state.deployment_state_message;
            let replicas = &description.replicas;
            if message.is_empty() || replicas.iter().any(|r| message.contains(r.id.as_str())) {
                // What it says of a replica, the replica's own line says.
                continue;
            }
            let now = words(message);
            if self.entities.insert(entity.name.clone(), now.clone()) != Some(now) {
                lines.push(format!("{}: {message}", entity.name));
            }
        }
        for replica in &description.replicas {
            let now = (replica.state.clone(), words(&replica.reason));
            let known = self.replicas.insert(replica.id.to_string(), now.clone());
            let older = known.is_none() && replica.ended && replica.since_s > watched_s + POLLED_S;
            if older || known.as_ref() == Some(&now) {
                continue;
            }
            let reason = if replica.reason.is_empty() {
                String::new()
            } else {
                format!(": {}", replica.reason)
            };
            lines.push(format!(
                "{} replica {} on {}: {}{reason}",
                replica.entity,
                short(replica.id.as_str()),
                replica.node,
                replica.state
            ));
        }
        lines
    }
}

/// What of a message is worth a line of its own when it changes: a count-down, or bytes that arrive,
/// is one message, not one for each second.
fn words(message: &str) -> String {
    let counts = |word: &&str| {
        let unit = matches!(word.trim_matches(','), "B" | "KiB" | "MiB" | "GiB" | "TiB");
        !unit && !word.contains(|c: char| c.is_ascii_digit())
    };
    let words: Vec<&str> = message.split(' ').filter(counts).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::fixtures::{config, description, replica};

    fn say(description: &mut EndpointDescription, message: &str) {
        let pending = description.endpoint.pending_config.as_mut();
        let entity = &mut pending.expect("a pending configuration").served_entities[0];
        entity.state.deployment_state_message = message.into();
    }

    #[test]
    fn a_roll_out_is_told_change_by_change() {
        let mut seen = Seen::default();
        let mut told = Vec::new();
        let mut at = description("IN_PROGRESS");
        told.extend(seen.changes(&at, 60.0));
        at.replicas = vec![replica(1, "fetching-model", "1 MiB of 40 MiB")];
        told.extend(seen.changes(&at, 60.0));
        at.replicas = vec![replica(1, "fetching-model", "9 MiB of 40 MiB")];
        told.extend(seen.changes(&at, 60.0));
        at.replicas = vec![replica(1, "failed", "exit 1")];
        told.extend(seen.changes(&at, 60.0));
        for seconds in ["2", "1"] {
            say(&mut at, &format!("the next start is in {seconds} s"));
            told.extend(seen.changes(&at, 60.0));
        }
        at.replicas.push(replica(2, "running", ""));
        say(&mut at, "replica 0000020000000000 is running");
        told.extend(seen.changes(&at, 60.0));
        insta::assert_snapshot!(told.join("\n"));
    }

    #[test]
    fn what_ended_before_is_not_told() {
        let mut at = description("IN_PROGRESS");
        at.replicas = vec![
            replica(1, "failed", "exit 1"),
            replica(2, "failed", "exit 2"),
        ];
        for (replica, since_s) in at.replicas.iter_mut().zip([30.0, 0.5]) {
            (replica.ended, replica.since_s) = (true, since_s);
        }
        let mut seen = Seen::default();
        let told = seen.changes(&at, 0.0).join("\n");
        assert!(
            told.contains("exit 2") && !told.contains("exit 1"),
            "{told}"
        );
    }

    #[test]
    fn it_is_ready_only_when_the_configuration_asked_for_serves() {
        assert!(matches!(
            outcome(&description("NOT_UPDATING"), 1),
            Some(Outcome::Ready(_))
        ));
        assert!(outcome(&description("IN_PROGRESS"), 1).is_none());
        // The scheduler has not taken the update in yet, or lost it: keep waiting.
        assert!(outcome(&description("NOT_UPDATING"), 2).is_none());
    }

    #[test]
    fn what_no_node_could_ever_hold_is_told_from_what_waits_for_room() {
        let mut at = description("IN_PROGRESS");
        assert_eq!(stuck(&at), None);
        let blocked = |for_good| shared::api::Blocked {
            entity: "iris-1".parse().expect("name"),
            reason: "no node has 1 TiB memory".into(),
            for_good,
        };
        at.blocked = vec![blocked(false)];
        assert_eq!(stuck(&at), None);
        at.blocked.push(blocked(true));
        assert_eq!(
            stuck(&at).as_deref(),
            Some("iris-1: no node has 1 TiB memory")
        );
    }

    #[test]
    fn why_a_model_cannot_be_fetched_is_told_once() {
        let mut at = description("IN_PROGRESS");
        let mut seen = Seen::default();
        let mut told = Vec::new();
        for reason in ["", "model x needs 5 GiB more", "model x needs 4 MiB more"] {
            at.replicas = vec![replica(1, "fetching-model", reason)];
            told.extend(seen.changes(&at, 60.0));
        }
        let of_replica: Vec<&String> = told.iter().filter(|l| l.contains("fetching")).collect();
        assert_eq!(of_replica.len(), 2, "{told:?}");
        assert!(of_replica[1].ends_with("fetching-model: model x needs 5 GiB more"));
    }

    #[test]
    fn a_failed_update_gives_the_entitys_reason() {
        match outcome(&description("UPDATE_FAILED"), 1) {
            Some(Outcome::Failed { reason, .. }) => {
                assert_eq!(reason, "iris-1: 3 replicas ended with exit 1");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_newer_configuration_ends_the_wait() {
        let mut newer = description("NOT_UPDATING");
        newer.endpoint.config = Some(config(3, "DEPLOYMENT_READY", ""));
        match outcome(&newer, 2) {
            Some(Outcome::Failed { reason, .. }) => {
                assert_eq!(reason, "configuration 3 has replaced it");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_status_counts_living_replicas_or_says_why_there_are_none() {
        let mut at = description("IN_PROGRESS");
        assert_eq!(status(&at), "no node has 1 GiB memory free");
        at.replicas = vec![
            replica(1, "failed", ""),
            replica(2, "running", ""),
            replica(3, "running", ""),
        ];
        assert_eq!(status(&at), "2 replicas running");
    }
}
