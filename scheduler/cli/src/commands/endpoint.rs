//! `stokehold list`, `get`, `describe`, `delete`: endpoints.

use std::time::SystemTime;

use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};
use shared::api::autoscaler::TargetOrigin;
use shared::api::serving::{
    ConfigOutput, Detailed, EndpointList, EndpointState, ServedEntityOutput, Summary,
};
use shared::api::{DecisionInfo, EndpointDescription, ReplicaInfo};
use shared::ids::EndpointName;

use crate::client::{Call, Client};
use crate::commands::events;
use crate::commands::last_words::last_words;
use crate::output::Output;
use crate::output::format::{self, UNKNOWN, short};
use crate::output::table::{Field, Table, Tone};

pub(crate) const SERVING: &str = "/api/2.0/serving-endpoints";

pub(crate) const LIST_EXAMPLES: &str = "\
Examples:
  stokehold list
  stokehold list --output json
  stokehold list --context production";

const GET_EXAMPLES: &str = "\
Examples:
  stokehold get iris
  stokehold get iris --output json
  stokehold get iris --context production";

const DESCRIBE_EXAMPLES: &str = "\
Examples:
  stokehold describe iris
  stokehold describe iris --output json
  stokehold describe iris --no-color > iris.txt";

const DELETE_EXAMPLES: &str = "\
Examples:
  stokehold delete iris
  stokehold delete iris --yes
  stokehold delete iris --yes --quiet";

#[derive(Debug, Args)]
#[command(after_help = GET_EXAMPLES)]
pub(crate) struct GetArgs {
    name: EndpointName,
}

#[derive(Debug, Args)]
#[command(after_help = DESCRIBE_EXAMPLES)]
pub(crate) struct DescribeArgs {
    name: EndpointName,
}

#[derive(Debug, Args)]
#[command(after_help = DELETE_EXAMPLES)]
pub(crate) struct DeleteArgs {
    name: EndpointName,
    /// Do not ask (without a terminal nothing is asked).
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn list(client: &Client, output: &Output) -> anyhow::Result<()> {
    let list: EndpointList = client.call(Call::get(SERVING)).await?;
    output.rows(&list, || list_table(&list.endpoints, SystemTime::now()))
}

pub(crate) async fn get(args: &GetArgs, client: &Client, output: &Output) -> anyhow::Result<()> {
    let path = format!("{SERVING}/{}", args.name);
    if output.is_json() {
        // As the server gave it: fields that this program does not know are kept.
        return output.json(&client.call::<Value>(Call::get(path)).await?);
    }
    let endpoint: Detailed = client.call(Call::get(path)).await?;
    output.line(summary(&endpoint, SystemTime::now()))?;
    show_configs(&endpoint, output)
}

pub(crate) async fn describe(
    args: &DescribeArgs,
    client: &Client,
    output: &Output,
) -> anyhow::Result<()> {
    let call = Call::get(description_path(&args.name));
    if output.is_json() {
        return output.json(&client.call::<Value>(call).await?);
    }
    let description: EndpointDescription = client.call(call).await?;
    output.line(summary(&description.endpoint, SystemTime::now()))?;
    show_configs(&description.endpoint, output)?;
    output.line("\nreplicas")?;
    output.table(&replica_table(&description.replicas))?;
    if troubled(&description.endpoint.state)
        && let Some(words) = last_words(&description.replicas, client).await
    {
        output.line(format!("\n{words}"))?;
    }
    output.line("\nautoscaler")?;
    output.table(&decision_table(&description.decisions))?;
    output.line("\nevents")?;
    output.table(&events::table(&description.events, SystemTime::now()))
}

/// Whether what its replicas wrote before they failed helps to understand an endpoint.
fn troubled(state: &EndpointState) -> bool {
    state.ready != "READY" || state.config_update == "UPDATE_FAILED"
}

pub(crate) async fn delete(
    args: &DeleteArgs,
    client: &Client,
    output: &Output,
) -> anyhow::Result<()> {
    if !args.yes && !confirmed(&format!("delete endpoint {}?", args.name))? {
        let kept = json!({"endpoint": args.name, "deleted": false});
        return output.done(&kept, "nothing was deleted");
    }
    let path = format!("{SERVING}/{}", args.name);
    client.done(Call::new(Method::DELETE, path)).await?;
    output.done(
        &json!({"endpoint": args.name, "deleted": true}),
        format!("endpoint {} is deleted", args.name),
    )
}

/// Asks on a terminal. A script that comes this far means it.
pub(crate) fn confirmed(question: &str) -> std::io::Result<bool> {
    use std::io::IsTerminal as _;
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(true);
    }
    anstream::eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

pub(crate) fn description_path(name: &EndpointName) -> String {
    format!("/api/stokehold/v1/endpoints/{name}")
}

fn list_table(endpoints: &[Summary], now: SystemTime) -> Table {
    let mut table = Table::new(
        ["NAME", "STATE", "UPDATE", "MODELS", "AGE"],
        "no endpoints: `stokehold deploy` makes one",
    );
    for endpoint in endpoints {
        let models: Vec<String> = endpoint
            .config
            .iter()
            .flat_map(|config| &config.served_entities)
            .map(|entity| format!("{}/{}", entity.entity_name, entity.entity_version))
            .collect();
        table.row([
            endpoint.name.as_str().into(),
            ready(&endpoint.state),
            update(&endpoint.state),
            models.join(", ").into(),
            format::since_unix_ms(endpoint.creation_timestamp, now).into(),
        ]);
    }
    table
}

fn ready(state: &EndpointState) -> Field {
    match state.ready.as_str() {
        "READY" => Field::toned("ready", Tone::Good),
        "NOT_READY" if state.config_update == "IN_PROGRESS" => {
            Field::toned("starting", Tone::Waiting)
        }
        "NOT_READY" => Field::toned("not ready", Tone::Bad),
        other => other.into(),
    }
}

fn update(state: &EndpointState) -> Field {
    match state.config_update.as_str() {
        "NOT_UPDATING" => "".into(),
        "IN_PROGRESS" => Field::toned("in progress", Tone::Waiting),
        "UPDATE_FAILED" => Field::toned("failed", Tone::Bad),
        "UPDATE_CANCELED" => Field::toned("cancelled", Tone::Bad),
        other => other.into(),
    }
}

fn summary(endpoint: &Detailed, now: SystemTime) -> String {
    let mut lines = vec![
        ("name", endpoint.name.to_string()),
        ("id", endpoint.id.to_string()),
        (
            "state",
            format!("{}, {}", endpoint.state.ready, endpoint.state.config_update),
        ),
        ("creator", endpoint.creator.clone()),
        (
            "created",
            format!(
                "{} ago",
                format::since_unix_ms(endpoint.creation_timestamp, now)
            ),
        ),
        (
            "updated",
            format!(
                "{} ago",
                format::since_unix_ms(endpoint.last_updated_timestamp, now)
            ),
        ),
    ];
    if let Some(description) = &endpoint.description {
        lines.push(("description", description.clone()));
    }
    for tag in &endpoint.tags {
        lines.push(("tag", format!("{}={}", tag.key, tag.value)));
    }
    let lines: Vec<String> = lines
        .into_iter()
        .map(|(key, value)| format!("{key:<12} {value}"))
        .collect();
    lines.join("\n")
}

fn show_configs(endpoint: &Detailed, output: &Output) -> anyhow::Result<()> {
    if let Some(config) = &endpoint.config {
        output.line(format!("\nconfiguration {}", config.config_version))?;
        output.table(&entity_table(config))?;
    }
    if let Some(config) = &endpoint.pending_config {
        output.line(format!(
            "\nconfiguration {}, pending",
            config.config_version
        ))?;
        output.table(&entity_table(config))?;
    }
    Ok(())
}

fn entity_table(config: &ConfigOutput) -> Table {
    let mut table = Table::new(
        [
            "ENTITY", "MODEL", "RUNTIME", "TRAFFIC", "REPLICAS", "TARGET", "STATE", "MESSAGE",
        ],
        "no served entities",
    );
    for entity in &config.served_entities {
        let traffic = config
            .traffic_config
            .routes
            .iter()
            .find(|route| route.served_entity_name == entity.name)
            .map(|route| format!("{} %", route.traffic_percentage));
        table.row([
            entity.name.as_str().into(),
            format!("{}/{}", entity.entity_name, entity.entity_version).into(),
            entity
                .stokehold
                .runtime
                .as_deref()
                .unwrap_or_default()
                .into(),
            traffic.unwrap_or_default().into(),
            bounds(entity).into(),
            target(entity).into(),
            deployment(&entity.state.deployment),
            entity.state.deployment_state_message.as_str().into(),
        ]);
    }
    table
}

fn bounds(entity: &ServedEntityOutput) -> String {
    let min = optional(entity.stokehold.min_replicas);
    let max = optional(entity.stokehold.max_replicas);
    format!("{min}..{max}")
}

/// What its config says: nothing, where it is learned.
fn target(entity: &ServedEntityOutput) -> String {
    let pinned = entity.stokehold.target_concurrency;
    pinned.map_or_else(|| "learned".into(), |target| target.to_string())
}

fn optional(number: Option<u32>) -> String {
    number.map_or_else(|| UNKNOWN.into(), |n| n.to_string())
}

fn deployment(state: &str) -> Field {
    let (word, tone) = match state {
        "DEPLOYMENT_CREATING" => ("creating", Tone::Waiting),
        "DEPLOYMENT_READY" => ("ready", Tone::Good),
        "DEPLOYMENT_RECOVERING" => ("recovering", Tone::Waiting),
        "DEPLOYMENT_FAILED" => ("failed", Tone::Bad),
        "DEPLOYMENT_ABORTED" => ("aborted", Tone::Bad),
        other => (other, Tone::Plain),
    };
    Field::toned(word, tone)
}

pub(crate) fn replica_table(replicas: &[ReplicaInfo]) -> Table {
    let mut table = Table::new(
        [
            "REPLICA",
            "ENTITY",
            "NODE",
            "STATE",
            "SINCE",
            "IN FLIGHT",
            "CPU",
            "MEMORY",
            "REASON",
        ],
        "none",
    );
    for replica in replicas {
        let cpu = replica
            .cpu_cores
            .map_or_else(|| UNKNOWN.into(), |cores| format!("{cores:.2}"));
        let memory = format!(
            "{}/{}",
            format::bytes(replica.memory_bytes),
            format::bytes(replica.memory_limit_bytes)
        );
        table.row([
            short(replica.id.as_str()).into(),
            replica.entity.as_str().into(),
            replica.node.as_str().into(),
            Field::toned(&replica.state, replica_tone(replica)),
            format::seconds(replica.since_s).into(),
            replica.in_flight.into(),
            cpu.into(),
            memory.into(),
            replica.reason.as_str().into(),
        ]);
    }
    table
}

fn replica_tone(replica: &ReplicaInfo) -> Tone {
    match replica.state.as_str() {
        "ready" => Tone::Good,
        "failed" | "unknown" => Tone::Bad,
        "stopped" => Tone::Plain,
        _ if replica.ended => Tone::Plain,
        _ => Tone::Waiting,
    }
}

fn decision_table(decisions: &[DecisionInfo]) -> Table {
    let mut table = Table::new(
        [
            "ENTITY", "DESIRED", "READY", "TARGET", "IS", "DEMAND", "BOUND BY", "AGE",
        ],
        "no decision yet",
    );
    for decision in decisions {
        let demand = decision
            .demand
            .map_or_else(|| UNKNOWN.into(), |demand| format!("{demand:.1}"));
        table.row([
            decision.entity.as_str().into(),
            decision.desired_replicas.into(),
            decision.ready_replicas.into(),
            decision.target_concurrency.into(),
            origin(decision.target_origin),
            demand.into(),
            decision.bound_by.as_str().into(),
            format::seconds(decision.age_s).into(),
        ]);
    }
    table
}

/// How sure a target is.
pub(crate) fn origin(origin: TargetOrigin) -> Field {
    let tone = match origin {
        TargetOrigin::Guess => Tone::Waiting,
        TargetOrigin::Pinned => Tone::Plain,
        TargetOrigin::Learned => Tone::Good,
    };
    Field::toned(origin.as_str(), tone)
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
