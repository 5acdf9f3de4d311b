//! `stokehold up` and `down`: a whole Stokehold on one machine.
//!
//! ```text
//! up ──► supervisor ──► containerd (private, unless --containerd)
//!          │              └─ shims ─ replicas: not its children; they outlive everything but `down`
//!          ├──► stokehold-scheduler   (its own user)
//!          ├──► stokehold-gateway     (its own user)
//!          └──► stokehold-agent       (root)
//! ```
//!
//! What always holds: the daemons are the packaged ones, configured by files and joined by a token
//! as on any other machine. Killing any process here loses no replica: the supervisor starts a
//! daemon again, and `up` after a killed supervisor replaces the daemons and adopts the replicas.
//! After `down` no process, mount, cgroup or socket of this instance is left, whatever state it was
//! in before.

mod accounts;
mod cgroups;
mod configs;
mod containers;
mod detach;
mod down;
mod handover;
mod join;
mod layout;
mod mounts;
mod networks;
mod plan;
mod prerequisites;
mod processes;
mod programs;
mod service;
mod settings;
mod start;
mod state;
mod summary;
mod supervise;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use shared::ids::NodeName;

use crate::exit::Stop;
use crate::output::Output;
use layout::Layout;
use settings::Setting;

/// The context that `up` makes and `down` takes away.
pub(crate) const CONTEXT: &str = "local";

const UP_EXAMPLES: &str = "\
Examples:
  sudo stokehold up --detach
  sudo stokehold up --data /srv/stokehold --node gpu1 --listen 0.0.0.0
  sudo stokehold up --detach --data /tmp/second --port-base 17443
  sudo stokehold up --detach --set scheduler.autoscaler.hold_min_seconds=20

Without --detach it runs until Ctrl-C, which stops everything and keeps the data. All ports listen on
127.0.0.1 unless --listen says otherwise: scheduler 7443 (TCP and UDP), gateway 8443 and 8444, metrics
7491 to 7493. The context `local` is made for the user who called sudo.";

const DOWN_EXAMPLES: &str = "\
Examples:
  sudo stokehold down
  sudo stokehold down --keep-data          # models and endpoints are there at the next `up`
  sudo stokehold down --data /tmp/second

Takes away everything that `up` made: daemons, containers, mounts, cgroups, models, state and the
context `local`. It may be called at any time, also after a crash, and twice.";

#[derive(Clone, Debug, Args)]
#[command(after_help = UP_EXAMPLES)]
pub(crate) struct UpArgs {
    /// Folder for models, state and logs.
    #[arg(long, value_name = "DIR", default_value = layout::DEFAULT_DATA, env = "STOKEHOLD_DATA")]
    data: PathBuf,
    /// Return once everything is ready.
    #[arg(long)]
    detach: bool,
    /// This machine's name in the cluster. Default: its host name.
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,
    /// Use this containerd, in a namespace of its own, instead of starting one.
    #[arg(long, value_name = "SOCKET")]
    containerd: Option<PathBuf>,
    /// Address to listen on.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    listen: IpAddr,
    /// First of six consecutive ports (scheduler, gateway, gateways among themselves, three of
    /// metrics), so that several instances fit on one machine.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..65_530))]
    #[arg(env = "STOKEHOLD_PORT_BASE")]
    port_base: Option<u16>,
    /// Folder of runtime templates. Default: ../share/stokehold/runtimes beside this program, then
    /// /usr/share/stokehold/runtimes.
    #[arg(long, value_name = "DIR", env = "STOKEHOLD_RUNTIMES_DIR")]
    runtimes: Option<PathBuf>,
    /// A key of a daemon's configuration file, such as scheduler.autoscaler.hold_min_seconds=20 or
    /// agent.memory_reserved=2GiB; may be given many times, and holds until the next `up`.
    #[arg(long = "set", value_name = "DAEMON.KEY=VALUE")]
    settings: Vec<Setting>,
    /// How long starting may take.
    #[arg(long, default_value = "2m", value_parser = crate::duration::parse, value_name = "TIME")]
    timeout: Duration,
    /// The background half of --detach.
    #[arg(long, hide = true)]
    supervise: bool,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = DOWN_EXAMPLES)]
pub(crate) struct DownArgs {
    /// The folder given to `up`.
    #[arg(long, value_name = "DIR", default_value = layout::DEFAULT_DATA, env = "STOKEHOLD_DATA")]
    data: PathBuf,
    /// Keep models, state and logs for the next `up`.
    #[arg(long, conflicts_with = "purge")]
    keep_data: bool,
    /// Remove all data too (this is the default).
    #[arg(long)]
    purge: bool,
}

pub(crate) fn up(args: UpArgs, output: &Output) -> anyhow::Result<()> {
    require_root("up")?;
    let layout = Layout::of(&args.data)?;
    state::Record::check_version(&layout)?;
    if let Some(record) = state::running(&layout)? {
        return detach::already_up(&layout, record, &args, output);
    }
    if !args.supervise {
        // Of a first start that cannot be, nothing is left: no folder is made before this.
        if !layout.is_ours() {
            supervise::require(&plan::Plan::new(&layout, &args)?)?;
        }
        state::claim(&layout)?;
    }
    if args.detach && !args.supervise {
        return detach::launch(&layout, &args, output);
    }
    let runtime = crate::commands::runtime()?;
    runtime.block_on(supervise::run(&layout, &args, output))
}

pub(crate) fn down(args: &DownArgs, output: &Output) -> anyhow::Result<()> {
    require_root("down")?;
    let layout = Layout::of(&args.data)?;
    state::Record::check_version(&layout)?;
    let runtime = crate::commands::runtime()?;
    runtime.block_on(down::run(&layout, args.keep_data, output))
}

fn require_root(verb: &str) -> Result<(), Stop> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let arguments: Vec<String> = std::env::args().skip(1).map(|arg| quoted(&arg)).collect();
    Err(Stop::Usage(format!(
        "`{verb}` makes containers, which needs root:\n  sudo stokehold {}",
        arguments.join(" ")
    )))
}

/// As a shell reads it back.
fn quoted(argument: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:=@,+%".contains(&b);
    if !argument.is_empty() && argument.bytes().all(plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_for_sudo_can_be_pasted() {
        assert_eq!(quoted("--data=/srv/a"), "--data=/srv/a");
        assert_eq!(quoted("it's here"), r"'it'\''s here'");
        assert_eq!(quoted(""), "''");
    }
}
