//! `stokehold deploy`: from a model's version to an endpoint that serves it, or to the reason why not.

mod request;
mod verdict;
mod watch;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use reqwest::Method;
use shared::api::ModelList;
use shared::api::serving::{ConfigInput, CreateEndpoint, Detailed};
use shared::ids::{EndpointName, EntityName, ModelRef, RuntimeName};
use shared::units::Bytes;

use crate::client::{Call, Client};
use crate::commands::endpoint::SERVING;
use crate::context::Resolved;
use crate::exit::Stop;
use crate::output::Output;
use request::{CpuMillis, EnvironmentVariable};

const EXAMPLES: &str = "\
Examples:
  stokehold deploy iris --model iris/1
  stokehold deploy iris --model iris@prod --min-replicas 2 --max-replicas 8 --memory 2GiB
  stokehold deploy churn --model churn/7 --workload-size Small --scale-to-zero --no-wait
  stokehold deploy iris --model iris/1 --env-file iris.env

The configuration is stated as a whole: what is not given has its default, also when the endpoint
exists. It ends in one verdict; the code is 0 for ready, 1 for failed or no room, 124 when --timeout is
over and 130 when interrupted (the deployment then goes on). What no node could ever hold is given up
after 10 s; it stays pending, and starts once a node can.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DeployArgs {
    /// Endpoint to make or to change.
    name: EndpointName,
    /// What it serves: NAME/VERSION or NAME@ALIAS.
    #[arg(long)]
    model: ModelRef,
    /// Runtime, where the choice by the model's own description is not the right one.
    #[arg(long)]
    runtime: Option<RuntimeName>,
    /// Fewest replicas. Default: 1, or 0 with --scale-to-zero.
    #[arg(long, value_name = "N")]
    min_replicas: Option<u32>,
    /// Most replicas. Default: 4, or what --workload-size means.
    #[arg(long, value_name = "N")]
    max_replicas: Option<u32>,
    /// Pins how many requests each replica takes at once. Default: it is learned from what the
    /// replicas do.
    #[arg(long, value_name = "N")]
    target_concurrency: Option<u32>,
    /// What 95 of 100 requests must take at most at the replica, while that is learned: 250ms, 2s.
    /// Default: 1.5 times what they take at low load.
    #[arg(long, value_parser = crate::duration::parse, value_name = "TIME")]
    latency_objective: Option<Duration>,
    /// Memory of each replica: 512MiB, 2GiB. Default: the runtime's.
    #[arg(long, value_name = "BYTES")]
    memory: Option<Bytes>,
    /// Cores of each replica: 2, 0.5 or 500m. Default: the runtime's.
    #[arg(long, value_name = "CORES")]
    cpu: Option<CpuMillis>,
    /// Small, Medium or Large, in place of replicas.
    #[arg(long, value_name = "SIZE")]
    workload_size: Option<String>,
    /// No replicas while nobody asks; the first request waits for one.
    #[arg(long)]
    scale_to_zero: bool,
    /// Variable for the model's process; may be given many times. Others on this machine can see it
    /// while the command runs: what is secret belongs in a file (--env-file).
    #[arg(long = "env", value_name = "KEY=VALUE")]
    environment: Vec<EnvironmentVariable>,
    /// File of variables, one KEY=VALUE a line, # for remarks; --env overrides it.
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// Name of the served entity. Default: the model's name and version.
    #[arg(long, value_name = "NAME")]
    entity: Option<EntityName>,
    /// Return once the scheduler has accepted it.
    #[arg(long)]
    no_wait: bool,
    /// How long to wait for the verdict.
    #[arg(long, default_value = "20m", value_parser = crate::duration::parse, value_name = "TIME")]
    timeout: Duration,
}

pub(crate) async fn run(
    args: DeployArgs,
    context: &Resolved,
    client: &Client,
    output: &Output,
) -> anyhow::Result<()> {
    let started = std::time::Instant::now();
    let from_file = match &args.env_file {
        Some(path) => read_variables(path)?,
        None => Vec::new(),
    };
    let version = resolve_model(&args.model, client).await?;
    let config = request::config(&args, &from_file, version);
    let endpoint = submit(&args.name, config, client).await?;
    let config_version = request::submitted_version(&endpoint);
    output.note(format!(
        "endpoint {} takes configuration {config_version}: {}/{version}",
        args.name,
        args.model.name()
    ));
    if args.no_wait {
        if output.is_json() {
            return output.json(&endpoint);
        }
        return output.line(format!(
            "endpoint {} is being updated: stokehold describe {}",
            args.name, args.name
        ));
    }
    let watch = watch::Watch {
        client,
        endpoint: &args.name,
        config_version,
        deadline: started + args.timeout,
    };
    let outcome = tokio::select! {
        outcome = watch.run(output) => outcome?,
        _ = tokio::signal::ctrl_c() => return Err(Stop::Interrupted(format!(
            "stopped waiting; the deployment goes on: stokehold describe {}", args.name
        )).into()),
    };
    verdict::tell(outcome, context, client, started.elapsed(), output).await
}

/// The version that the reference means now; a version that does not exist is refused here, where
/// the ones that do can be named.
async fn resolve_model(model: &ModelRef, client: &Client) -> anyhow::Result<u32> {
    let path = format!("/api/stokehold/v1/models/{}", model.name());
    let versions: ModelList = client
        .call(Call::get(path))
        .await
        .with_context(|| format!("look up model {model}"))?;
    Ok(request::version_of(model, &versions.models)?)
}

/// Creates the endpoint, or gives the one that exists another configuration.
async fn submit(
    name: &EndpointName,
    config: ConfigInput,
    client: &Client,
) -> anyhow::Result<Detailed> {
    let path = format!("{SERVING}/{name}");
    let exists = match client.call::<Detailed>(Call::get(&path)).await {
        Ok(_) => true,
        Err(error) if error.is_not_found() => false,
        Err(error) => return Err(error.into()),
    };
    let call = if exists {
        Call::new(Method::PUT, format!("{path}/config")).json(&config)
    } else {
        Call::new(Method::POST, SERVING).json(&CreateEndpoint {
            name: name.to_string(),
            config: Some(config),
            ..CreateEndpoint::default()
        })
    };
    let verb = if exists { "update" } else { "create" };
    client
        .call(call)
        .await
        .with_context(|| format!("{verb} endpoint {name}"))
}

/// The server takes 4 KiB of variables; a file much longer is another one.
const MAX_FILE_BYTES: u64 = 64 << 10;

fn read_variables(path: &Path) -> anyhow::Result<Vec<EnvironmentVariable>> {
    let shown = path.display();
    let mut text = String::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text));
    read.with_context(|| format!("read --env-file {shown}"))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        let problem = format!("--env-file {shown} is longer than 64 KiB: is it the right file?");
        return Err(Stop::Usage(problem).into());
    }
    request::variables(&text)
        .map_err(|problem| Stop::Usage(format!("--env-file {shown}: {problem}")).into())
}
