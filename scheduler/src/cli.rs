//! The command line.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use tokio_util::sync::CancellationToken;

use crate::boot;
use crate::config::{Config, DEFAULT_PATH};

/// Stokehold's scheduler: REST API, sessions of agents and gateways, decisions.
#[derive(Parser)]
#[command(name = "stokehold-scheduler", version)]
struct Arguments {
    /// Configuration file; without it /etc/stokehold/scheduler.toml, or the defaults
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Check the configuration and the runtime templates, then exit
    #[arg(long)]
    check_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Replace the admin token (stop the scheduler first)
    ResetAdminToken,
    /// Make the store anew from an export (stop the scheduler and move the damaged store away first)
    RestoreStore {
        /// A file of the folder `exports` in the data folder
        export: PathBuf,
    },
}

pub(crate) fn run() -> ExitCode {
    daemon::exit::run(|| {
        let arguments = Arguments::parse();
        daemon::tls::install_crypto_provider();
        let named = arguments.config.as_deref();
        let config: Config = daemon::config::load_daemon(named, DEFAULT_PATH, Config::check)?;
        match arguments.command {
            Some(Command::ResetAdminToken) => {
                work_as_owner(&config)?;
                let file = boot::reset_admin_token(&config)?;
                say(&format!("new admin token in {}", file.display()));
                Ok(())
            }
            Some(Command::RestoreStore { export }) => {
                work_as_owner(&config)?;
                boot::restore_store(&config, &export)?;
                say("store restored: start the scheduler");
                Ok(())
            }
            None if arguments.check_config => {
                boot::check(&config)?;
                let path = named.unwrap_or(Path::new(DEFAULT_PATH));
                say(&format!("{}: fine", path.display()));
                Ok(())
            }
            None => serve(config),
        }
    })
}

/// What root makes in the data folder would be closed to the daemon.
fn work_as_owner(config: &Config) -> anyhow::Result<()> {
    daemon::owner::become_owner_of(&config.data_dir)
        .with_context(|| format!("become the owner of {}", config.data_dir.display()))
}

fn serve(config: Config) -> anyhow::Result<()> {
    daemon::telemetry::init(&config.log);
    daemon::exit::block_on("scheduler", async {
        let cancel = CancellationToken::new();
        let mut running = boot::start(config, cancel.clone()).await?;
        running.stop_on_signal(cancel.clone());
        daemon::notify::ready();
        let ended = running.wait().await;
        daemon::notify::stopping();
        Ok(ended?)
    })
}

/// The only words of this program on standard output.
fn say(text: &str) {
    use std::io::Write;
    // Nobody listening is no reason to fail.
    let _ = writeln!(std::io::stdout(), "{text}");
}
