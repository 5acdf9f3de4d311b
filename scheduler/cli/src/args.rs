//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands::{
    ca, context, deploy, endpoint, events, explain, image, logs, model, node, query, replay,
    simulate, token,
};
use crate::{load, up};

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    the operation failed, or the server refused it
  2    the command line is wrong
  3    the server cannot be reached, or does not accept the token
  4    what was named does not exist
  124  the time to wait is over; the operation itself goes on
  130  interrupted while waiting; the operation itself goes on

With --output json an error is one line of JSON, the last on standard error:
{\"error\": {\"code\", \"message\", \"hint\", \"exit_code\", ...}}

Examples:
  sudo stokehold up --detach
  stokehold model push ./iris --name iris --alias prod
  stokehold deploy iris --model iris@prod";

/// Serves machine-learning models on plain Linux machines.
#[derive(Debug, Parser)]
#[command(name = "stokehold", version, after_help = EXIT_CODES, max_term_width = 100)]
#[command(
    disable_help_subcommand = false,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(flatten)]
    pub(crate) shown: Shown,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which server, and as whom. Flags beat environment variables, which beat the context.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct Target {
    /// Context to use instead of the current one.
    #[arg(long, global = true, value_name = "NAME", env = "STOKEHOLD_CONTEXT")]
    pub(crate) context: Option<String>,
    /// Scheduler's address, https://HOST:7443.
    #[arg(long, global = true, value_name = "URL", env = "STOKEHOLD_SERVER")]
    pub(crate) server: Option<String>,
    /// Gateway's address, https://HOST:8443.
    #[arg(long, global = true, value_name = "URL", env = "STOKEHOLD_GATEWAY")]
    pub(crate) gateway: Option<String>,
    /// CA that signed both (PEM); nothing else is trusted.
    #[arg(long, global = true, value_name = "FILE", env = "STOKEHOLD_CA_FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// File that holds the token. A token itself is never an argument.
    #[arg(long, global = true, value_name = "FILE", env = "STOKEHOLD_TOKEN_FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct Shown {
    /// How results are shown.
    #[arg(
        long,
        short,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    pub(crate) output: OutputFormat,
    /// Only results and errors.
    #[arg(long, global = true)]
    pub(crate) quiet: bool,
    /// No colours (so does the variable NO_COLOR).
    #[arg(long, global = true)]
    pub(crate) no_color: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    #[default]
    Table,
    Json,
}

/// Whether a command line that could not be parsed asks for JSON: its error is to be JSON, too.
pub(crate) fn asks_for_json(line: impl IntoIterator<Item = std::ffi::OsString>) -> bool {
    let mut words = line.into_iter().peekable();
    while let Some(word) = words.next() {
        let word = word.to_string_lossy();
        let value = match &*word {
            "--" => return false,
            "-o" | "--output" => words.peek().map(|next| next.to_string_lossy().into_owned()),
            word => ["--output=", "-o=", "-o"]
                .iter()
                .find_map(|flag| word.strip_prefix(flag))
                .map(str::to_owned),
        };
        if value.as_deref() == Some("json") {
            return true;
        }
    }
    false
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs a whole Stokehold on this machine.
    Up(up::UpArgs),
    /// Takes away what `up` started, and its data.
    Down(up::DownArgs),
    /// Makes an endpoint, or gives it another configuration, and waits until it serves.
    Deploy(deploy::DeployArgs),
    /// Lists endpoints.
    #[command(after_help = endpoint::LIST_EXAMPLES)]
    List,
    /// Shows an endpoint's state and configuration.
    Get(endpoint::GetArgs),
    /// Shows an endpoint with its replicas, the autoscaler's decisions and its last events.
    Describe(endpoint::DescribeArgs),
    /// Shows why an endpoint has as many replicas as it has, and what each of them takes.
    Explain(explain::ExplainArgs),
    /// Sends a request to an endpoint.
    Query(query::QueryArgs),
    /// Sends requests at a given rate, and shows latencies and how the endpoint scales.
    Load(load::LoadArgs),
    /// Shows what each autoscaler would have done with given traffic, in virtual time.
    Simulate(simulate::SimulateArgs),
    /// Runs what was recorded of an endpoint through the simulator with other autoscalers.
    Replay(replay::ReplayArgs),
    /// Shows what happened, to what, and why.
    Events(events::EventsArgs),
    /// Shows what an endpoint's replicas wrote.
    Logs(logs::LogsArgs),
    /// Deletes an endpoint.
    Delete(endpoint::DeleteArgs),
    /// Models: push, list, get, delete, alias.
    #[command(subcommand)]
    Model(model::ModelCommand),
    /// Runtimes' images: import, list, delete.
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Nodes: list, describe, token, revoke, remove.
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Tokens of people and programs: create, list, revoke.
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// The authority that signs the cluster's certificates: status, rotate, finish.
    #[command(subcommand)]
    Ca(ca::CaCommand),
    /// Which servers this program knows.
    #[command(subcommand)]
    Context(context::ContextCommand),
    /// Shows the versions of this program and of the server.
    #[command(after_help = crate::commands::version::EXAMPLES)]
    Version,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_at_least_three_examples() {
        fn check(command: &clap::Command, path: &str) {
            if command.get_name() == "help" || command.is_hide_set() {
                return;
            }
            let leaf = command.get_subcommands().next().is_none();
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            let examples = help
                .lines()
                .filter(|line| {
                    line.trim_start().starts_with("stokehold ") || line.contains(" stokehold ")
                })
                .count();
            assert!(!leaf || examples >= 3, "{path} has {examples} examples");
            for sub in command.get_subcommands() {
                check(sub, &format!("{path} {}", sub.get_name()));
            }
        }
        check(&Cli::command(), "stokehold");
    }

    #[test]
    fn global_flags_may_stand_after_the_command() {
        let cli = Cli::try_parse_from(["stokehold", "list", "-o", "json", "--context", "a"])
            .expect("parsed");
        assert_eq!(cli.shown.output, OutputFormat::Json);
        assert_eq!(cli.target.context.as_deref(), Some("a"));
    }

    #[test]
    fn a_line_that_asks_for_json_is_known_before_it_is_parsed() {
        let asks = |line: &str| asks_for_json(line.split(' ').map(Into::into));
        for line in [
            "stokehold get -o json 1",
            "stokehold -ojson",
            "stokehold --output=json x",
            "stokehold x --output json",
        ] {
            assert!(asks(line), "{line}");
        }
        for line in [
            "stokehold get json",
            "stokehold -o table json",
            "stokehold query iris -- -o json",
        ] {
            assert!(!asks(line), "{line}");
        }
    }

    #[test]
    fn no_command_is_named_ls_or_rm() {
        for bad in ["ls", "rm"] {
            assert!(Cli::try_parse_from(["stokehold", bad]).is_err());
        }
    }
}
