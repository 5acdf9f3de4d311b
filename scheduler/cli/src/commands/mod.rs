//! The commands: each parses, calls the server and shows. One file for each noun.

pub(crate) mod ca;
pub(crate) mod context;
pub(crate) mod deploy;
pub(crate) mod endpoint;
pub(crate) mod events;
pub(crate) mod explain;
#[cfg(test)]
pub(crate) mod fixtures;
pub(crate) mod image;
pub(crate) mod last_words;
pub(crate) mod logs;
pub(crate) mod model;
pub(crate) mod node;
pub(crate) mod query;
pub(crate) mod replay;
pub(crate) mod simulate;
pub(crate) mod token;
pub(crate) mod version;

use crate::args::{Cli, Command};
use crate::client::Client;
use crate::context::{Resolved, authorities};
use crate::output::Output;
use crate::{load, up};

pub(crate) fn run(args: Cli, output: &Output) -> anyhow::Result<()> {
    let target = args.target;
    // These need no server, or make one.
    let command = match args.command {
        Command::Context(command) => return context::run(command, &target, output),
        Command::Up(up) => return up::up(up, output),
        Command::Down(down) => return up::down(&down, output),
        Command::Simulate(args) => return simulate::run(&args, output),
        other => other,
    };
    let context = crate::context::load(&target)?;
    runtime()?.block_on(talk(command, &context, output))
}

async fn talk(command: Command, context: &Resolved, output: &Output) -> anyhow::Result<()> {
    let used = std::cell::OnceCell::new();
    let server = || {
        let client = Client::to_server(context, output)?;
        // One command talks to one server.
        let _ = used.set(client.clone());
        anyhow::Ok(client)
    };
    let answered = match command {
        Command::Deploy(args) => deploy::run(args, context, &server()?, output).await,
        Command::List => endpoint::list(&server()?, output).await,
        Command::Get(args) => endpoint::get(&args, &server()?, output).await,
        Command::Describe(args) => endpoint::describe(&args, &server()?, output).await,
        Command::Replay(args) => replay::run(&args, &server()?, output).await,
        Command::Explain(args) => explain::run(&args, &server()?, output).await,
        Command::Delete(args) => endpoint::delete(&args, &server()?, output).await,
        Command::Logs(args) => logs::run(&args, &server()?, output).await,
        Command::Events(args) => events::run(&args, &server()?, output).await,
        Command::Query(args) => {
            query::run(args, &Client::to_gateway(context, output)?, output).await
        }
        Command::Load(args) => load::run(args, context, output).await,
        Command::Model(command) => model::run(command, &server()?, output).await,
        Command::Image(command) => image::run(command, &server()?, output).await,
        Command::Node(command) => node::run(command, &server()?, output).await,
        Command::Token(command) => token::run(command, &server()?, output).await,
        Command::Ca(command) => ca::run(command, &server()?, output).await,
        Command::Version => version::run(context, output).await,
        Command::Context(_) | Command::Up(_) | Command::Down(_) | Command::Simulate(_) => {
            unreachable!("run() has answered these")
        }
    };
    if let Some(client) = used.get() {
        authorities::keep_up(client, context, output).await;
    }
    answered
}

/// Two workers: one reads and hashes while the other talks.
pub(crate) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
}
