//! The agent: makes a node match its plan.
//!
//! It brings images and models to the node, makes, watches and stops replica containers through
//! containerd, and samples the machine each second. It owns no fleet policy, and being root it never
//! reads a byte that a replica wrote: not its socket, not its logs, not an image's metadata.
//!
//! ```text
//!  scheduler -> session --plans--> control_loop --work--> executor -> steps -> containerd, folders
//!      ^           ^                |  ^      \-decides by reconcile, replica (pure)
//!      |           |---NodeView-----/  |-- look <- containerd (events are hints to look)
//!      \--reports--|---Samples----- sampler <- /proc, control groups, NVML
//! ```
//!
//! | module | what it does |
//! | --- | --- |
//! | [`config`] | `agent.toml` |
//! | [`ledger`] | what is remembered over a restart |
//! | [`world`] | what is remembered until then |
//! | [`replica`], [`reconcile`] | decide, in pure code |
//! | [`spec`], [`environment`] | a planned replica as an OCI runtime spec, in pure code |
//! | [`control_loop`] | look, decide, remember, act |
//! | [`look`], [`containerd`] | what there is; the calls to containerd, each with a time-out |
//! | [`executor`], [`steps`] | carry out what was decided, bounded |
//! | [`folder`], [`logs`], [`cgroup`] | replicas' folders, log folders and control groups |
//! | [`network`] | interfaces and rules of replicas that need more than loopback |
//! | [`pull`] | blobs from registries, by processes without rights |
//! | [`leftovers`] | lets go of images that were not brought in to the end |
//! | [`models`] | the model cache, filled over the session |
//! | [`sampler`] | measures machine, replicas and GPUs |
//! | [`session`] | talks to the scheduler |
//! | [`start`] | puts all of it together |
//! | [`removal`] | takes all replicas away, when the machine is to be a node no longer |

pub mod cgroup;
pub mod config;
pub mod containerd;
pub mod control_loop;
pub mod environment;
pub mod executor;
pub mod folder;
pub mod ledger;
pub mod leftovers;
pub mod logs;
pub mod look;
pub mod metrics;
pub mod models;
pub mod network;
pub mod pull;
pub mod reconcile;
pub mod removal;
pub mod replica;
pub mod sampler;
pub mod session;
pub mod spec;
pub mod start;
pub mod steps;
pub mod world;

#[cfg(test)]
mod fixtures;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use shared::ids::{NodeName, Role};

use config::Config;

/// Runs models on this machine as the scheduler plans it.
#[derive(Debug, Parser)]
#[command(name = "stokehold-agent", version)]
struct Cli {
    /// The configuration file; without it /etc/stokehold/agent.toml, if that is there.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Checks the configuration and exits.
    #[arg(long)]
    check_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes this machine a node of a cluster, with a one-time token.
    Join(Join),
    /// Stops and removes every replica of this machine, when it is to be a node no longer. Stop the
    /// agent first, or it brings them up again.
    RemoveReplicas,
    /// Writes a blob of a registry to standard output; the agent starts this itself.
    #[command(hide = true)]
    FetchBlob(Box<pull::child::FetchBlob>),
}

#[derive(Debug, Args)]
struct Join {
    /// The file that holds the token, `-` for standard input. Never an argument: every user of the
    /// machine can see those.
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// The node's name; without it `node` of the configuration, or the host's name.
    #[arg(long)]
    node: Option<NodeName>,
}

pub fn cli() -> ExitCode {
    daemon::tls::install_crypto_provider();
    let cli = Cli::parse();
    if let Some(Command::FetchBlob(arguments)) = &cli.command {
        return pull::child::run(arguments);
    }
    daemon::exit::run(|| {
        let named = cli.config.as_deref();
        let config: Config =
            daemon::config::load_daemon(named, config::DEFAULT_PATH, Config::check)?;
        if cli.check_config {
            return writeln!(std::io::stdout(), "configuration is valid").context("say so");
        }
        match cli.command {
            Some(Command::Join(arguments)) => {
                daemon::exit::block_on("agent", join(&config, arguments))
            }
            Some(Command::RemoveReplicas) => {
                let removed = daemon::exit::block_on("agent", removal::run(&config))?;
                writeln!(std::io::stdout(), "removed {removed} replicas").context("say so")
            }
            Some(Command::FetchBlob(_)) => unreachable!("it was run above"),
            None => {
                daemon::telemetry::init(&config.log);
                daemon::exit::block_on("agent", start::run(config))
            }
        }
    })
}

async fn join(config: &Config, arguments: Join) -> anyhow::Result<()> {
    let token = daemon::join::read_token(Some(&arguments.token_file))?;
    let node = match arguments.node {
        Some(node) => node,
        None => config.node()?,
    };
    daemon::join::join(&token, Role::Agent, &node, &[], &config.pki_dir).await?;
    println_joined(&node, &config.pki_dir);
    Ok(())
}

#[allow(clippy::print_stdout)] // What a person who runs `join` waits for.
fn println_joined(node: &NodeName, pki_dir: &Path) {
    println!(
        "joined as node {node}; the identity is in {}\nnext: systemctl start stokehold-agent",
        pki_dir.display()
    );
}
