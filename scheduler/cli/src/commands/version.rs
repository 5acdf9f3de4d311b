//! `stokehold version`.

use std::time::Duration;

use serde::Serialize;
use shared::api::Version;

use crate::client::{Call, Client};
use crate::context::Resolved;
use crate::output::Output;

pub(crate) const EXAMPLES: &str = "\
Examples:
  stokehold version
  stokehold version --output json
  stokehold version --context production";

/// Short: the program's own version is worth no wait.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Serialize)]
struct Versions {
    client: &'static str,
    server: Option<Version>,
}

/// A server that cannot be reached is said, and is no failure.
pub(crate) async fn run(context: &Resolved, output: &Output) -> anyhow::Result<()> {
    let server = server(context, output).await;
    let client = env!("CARGO_PKG_VERSION");
    if output.is_json() {
        return output.json(&Versions {
            client,
            server: server.ok(),
        });
    }
    output.line(format!("stokehold {client}"))?;
    match server {
        Ok(server) => output.line(format!(
            "server {} (cluster {}, epoch {})",
            server.version, server.cluster, server.epoch
        )),
        Err(error) => {
            output.note(format!("server: {error:#}"));
            Ok(())
        }
    }
}

async fn server(context: &Resolved, output: &Output) -> anyhow::Result<Version> {
    let client = Client::to_server(context, output)?;
    let call = Call::get("/api/stokehold/v1/version").timeout(Some(PATIENCE));
    Ok(client.call(call).await?)
}
