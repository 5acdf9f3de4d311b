//! `stokehold node`: the machines.

use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};
use shared::api::{CreateNodeToken, NodeDescription, NodeList, NodeSummary, NodeTokenCreated};
use shared::ids::{NodeName, Role};

use crate::client::{Call, Client};
use crate::commands::endpoint::replica_table;
use crate::commands::events;
use crate::output::format::{self, UNKNOWN};
use crate::output::table::{Field, Table, Tone};
use crate::output::{Output, format::bytes};

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Lists nodes with what they have and what is planned on them.
    #[command(after_help = LIST_EXAMPLES)]
    List,
    /// Shows a node with its replicas and its last events.
    Describe(DescribeArgs),
    /// Makes a one-time token with which a machine joins.
    Token(TokenArgs),
    /// Refuses a node from now on; its replicas are replaced elsewhere.
    Revoke(RevokeArgs),
    /// Forgets a revoked node once its certificates have expired; its name is free again.
    Remove(RemoveArgs),
}

const LIST_EXAMPLES: &str = "\
Examples:
  stokehold node list
  stokehold node list --output json
  stokehold node list --context production";

const DESCRIBE_EXAMPLES: &str = "\
Examples:
  stokehold node describe node2
  stokehold node describe gpu7.rack2 --output json
  stokehold node describe node2 --context production";

const TOKEN_EXAMPLES: &str = "\
Examples:
  stokehold node token                                  # an agent and a gateway, for 15 minutes
  stokehold node token --role gateway --lifetime 1h     # a front door without replicas
  stokehold node token --replace node2                  # node2 was installed anew
  stokehold node token | ssh node2 sudo stokehold-agent join --token-file -";

const REVOKE_EXAMPLES: &str = "\
Examples:
  stokehold node revoke node2
  stokehold node revoke gpu7.rack2
  stokehold node revoke node2 --context production";

#[derive(Debug, Args)]
#[command(after_help = TOKEN_EXAMPLES)]
pub(crate) struct TokenArgs {
    /// What the machine may become: agent or gateway; may be given twice. Default: both.
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<Role>,
    /// How long the token can be used: 15m, 1h.
    #[arg(long, default_value = "15m", value_parser = crate::duration::parse, value_name = "TIME")]
    lifetime: Duration,
    /// For this node alone, which has joined before: its new keys take the place of the old ones.
    #[arg(long, value_name = "NODE")]
    replace: Option<NodeName>,
}

const REMOVE_EXAMPLES: &str = "\
Examples:
  stokehold node remove node2
  stokehold node remove gpu7.rack2
  stokehold node remove node2 --context production";

#[derive(Debug, Args)]
#[command(after_help = REMOVE_EXAMPLES)]
pub(crate) struct RemoveArgs {
    name: NodeName,
}

#[derive(Debug, Args)]
#[command(after_help = DESCRIBE_EXAMPLES)]
pub(crate) struct DescribeArgs {
    name: NodeName,
}

#[derive(Debug, Args)]
#[command(after_help = REVOKE_EXAMPLES)]
pub(crate) struct RevokeArgs {
    name: NodeName,
}

pub(crate) async fn run(
    command: NodeCommand,
    client: &Client,
    output: &Output,
) -> anyhow::Result<()> {
    match command {
        NodeCommand::List => {
            let list: NodeList = client.call(Call::get("/api/stokehold/v1/nodes")).await?;
            output.rows(&list, || table(&list.nodes))?;
            warn_of_problems(&list.nodes, output);
            Ok(())
        }
        NodeCommand::Remove(args) => {
            let path = format!("/api/stokehold/v1/nodes/{}", args.name);
            client.done(Call::new(Method::DELETE, path)).await?;
            output.done(
                &json!({"node": args.name, "removed": true}),
                format!("node {} is removed", args.name),
            )
        }
        NodeCommand::Describe(args) => describe(&args, client, output).await,
        NodeCommand::Token(args) => token(args, client, output).await,
        NodeCommand::Revoke(args) => {
            let path = format!("/api/stokehold/v1/nodes/{}/revoke", args.name);
            client.done(Call::new(Method::POST, path)).await?;
            output.done(
                &json!({"node": args.name, "revoked": true}),
                format!("node {} is revoked", args.name),
            )
        }
    }
}

async fn describe(args: &DescribeArgs, client: &Client, output: &Output) -> anyhow::Result<()> {
    let call = Call::get(format!("/api/stokehold/v1/nodes/{}", args.name));
    if output.is_json() {
        return output.json(&client.call::<Value>(call).await?);
    }
    let description: NodeDescription = client.call(call).await?;
    let node = std::slice::from_ref(&description.node);
    output.table(&table(node))?;
    warn_of_problems(node, output);
    if let Some(reason) = &description.node.gpus_absent {
        output.line(format!("\nno GPUs: {reason}"))?;
    }
    output.line("\nreplicas")?;
    output.table(&replica_table(&description.replicas))?;
    output.line("\nevents")?;
    output.table(&events::table(&description.events, SystemTime::now()))
}

/// A refused machine is not in the table: the one with its name is.
fn warn_of_problems(nodes: &[NodeSummary], output: &Output) {
    for node in nodes {
        if let Some(problem) = &node.problem {
            output.warn(format!("node {}: {problem}", node.name));
        }
    }
}

async fn token(args: TokenArgs, client: &Client, output: &Output) -> anyhow::Result<()> {
    let created = create_token(client, args.roles, args.lifetime, args.replace).await?;
    if output.is_json() {
        return output.json(&created);
    }
    output.line(&created.token)?;
    output.note(format!(
        "token {} is valid once, {}; on the new machine:\n  \
         sudo stokehold-agent join --token-file -    # and the same with stokehold-gateway",
        created.id,
        format::until_unix(created.expires_unix, SystemTime::now()).replace("in ", "for ")
    ));
    Ok(())
}

pub(crate) async fn create_token(
    client: &Client,
    roles: Vec<Role>,
    lifetime: Duration,
    replace: Option<NodeName>,
) -> anyhow::Result<NodeTokenCreated> {
    let roles = if roles.is_empty() {
        vec![Role::Agent, Role::Gateway]
    } else {
        roles
    };
    let request = CreateNodeToken {
        roles,
        lifetime_seconds: Some(lifetime.as_secs().max(1)),
        replace,
    };
    let call = Call::new(Method::POST, "/api/stokehold/v1/node-tokens").json(&request);
    Ok(client.call(call).await?)
}

fn table(nodes: &[NodeSummary]) -> Table {
    let mut table = Table::new(
        [
            "NAME", "STATE", "AGENT", "GATEWAY", "SEEN", "CPU", "MEMORY", "GPUS", "REPLICAS",
            "ADDRESS",
        ],
        "no nodes: `stokehold node token` makes the token with which one joins",
    );
    for node in nodes {
        table.row([
            node.name.as_str().into(),
            Field::toned(&node.state, tone(&node.state)),
            connected(node.agent_connected),
            connected(node.gateway_connected),
            seen(node.last_report_age_s).into(),
            cpu(node).into(),
            memory(node).into(),
            gpus(node).into(),
            node.replicas.into(),
            node.gateway.as_deref().unwrap_or_default().into(),
        ]);
    }
    table
}

fn tone(state: &str) -> Tone {
    match state {
        "ready" => Tone::Good,
        "silent" | "joined" => Tone::Waiting,
        "lost" | "revoked" => Tone::Bad,
        _ => Tone::Plain,
    }
}

fn connected(connected: bool) -> Field {
    if connected {
        Field::toned("up", Tone::Good)
    } else {
        Field::toned("down", Tone::Bad)
    }
}

fn seen(age_s: Option<f64>) -> String {
    age_s.map_or_else(
        || UNKNOWN.into(),
        |age| format!("{} ago", format::seconds(age)),
    )
}

/// Planned of all, and what is used now.
fn cpu(node: &NodeSummary) -> String {
    let all = node
        .cpu_millis
        .map_or_else(|| UNKNOWN.into(), format::cores);
    let planned = format::cores(node.cpu_millis_planned);
    match node.cpu {
        Some(_) => format!("{planned}/{all} ({})", format::percent(node.cpu)),
        None => format!("{planned}/{all}"),
    }
}

fn memory(node: &NodeSummary) -> String {
    let planned = bytes(Some(node.memory_bytes_planned));
    format!("{planned}/{}", bytes(node.memory_bytes))
}

fn gpus(node: &NodeSummary) -> String {
    if node.gpus.is_empty() {
        return "0".into();
    }
    let mut names: Vec<&str> = node.gpus.iter().map(String::as_str).collect();
    names.dedup();
    format!("{} x {}", node.gpus.len(), names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_show_plans_use_and_who_is_connected() {
        let ready = NodeSummary {
            name: "n1".parse().expect("name"),
            state: "ready".into(),
            agent_connected: true,
            gateway_connected: true,
            last_report_age_s: Some(0.7),
            cpu_millis: Some(8000),
            cpu_millis_planned: 1500,
            memory_bytes: Some(32 << 30),
            memory_bytes_planned: 3 << 30,
            cpu: Some(0.42),
            memory_used_bytes: Some(9 << 30),
            gpus: vec!["NVIDIA H100".into(), "NVIDIA H100".into()],
            gpus_absent: None,
            replicas: 3,
            gateway: Some("n1:8443".into()),
            problem: None,
        };
        let joined = NodeSummary {
            name: "n2".parse().expect("name"),
            state: "joined".into(),
            agent_connected: false,
            gateway_connected: false,
            last_report_age_s: None,
            cpu_millis: None,
            cpu_millis_planned: 0,
            memory_bytes: None,
            memory_bytes_planned: 0,
            cpu: None,
            memory_used_bytes: None,
            gpus: vec![],
            gpus_absent: Some("no driver".into()),
            replicas: 0,
            gateway: None,
            problem: None,
        };
        insta::assert_snapshot!(table(&[ready, joined]).render(None, false));
    }
}
