//! `stokehold ca`: the authority that signs the cluster's certificates.

use std::time::SystemTime;

use clap::{Args, Subcommand};
use reqwest::Method;
use shared::api::certificates::{CaNode, CaRotationFinished, CaStatus, FinishCaRotation};

use crate::client::{Call, Client};
use crate::output::Output;
use crate::output::format::{self, UNKNOWN};
use crate::output::table::{Field, Table, Tone};

#[derive(Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Shows the authority, a rotation under way, and each node's certificate.
    #[command(after_help = STATUS_EXAMPLES)]
    Status,
    /// Makes a new authority beside the old one; nothing is interrupted.
    #[command(after_help = ROTATE_EXAMPLES)]
    Rotate,
    /// Drops the old authority, once nothing depends on it.
    Finish(FinishArgs),
}

const STATUS_EXAMPLES: &str = "\
Examples:
  stokehold ca status
  stokehold ca status --output json
  stokehold ca status --context production";

const ROTATE_EXAMPLES: &str = "\
Examples:
  stokehold ca rotate
  stokehold ca status                          # whom it waits for
  stokehold ca finish                          # when it waits for nobody";

const FINISH_EXAMPLES: &str = "\
Examples:
  stokehold ca finish
  stokehold ca finish --output json
  stokehold ca finish --force                  # who is cut off must join again";

#[derive(Debug, Args)]
#[command(after_help = FINISH_EXAMPLES)]
pub(crate) struct FinishArgs {
    /// Also when nodes still depend on the old authority: they are cut off and must join again.
    #[arg(long)]
    force: bool,
}

pub(crate) async fn run(
    command: CaCommand,
    client: &Client,
    output: &Output,
) -> anyhow::Result<()> {
    match command {
        CaCommand::Status => {
            let status: CaStatus = client.call(Call::get("/api/stokehold/v1/ca")).await?;
            show(&status, output)
        }
        CaCommand::Rotate => {
            let call = Call::new(Method::POST, "/api/stokehold/v1/ca/rotate");
            let status: CaStatus = client.call(call).await?;
            if output.is_json() {
                return output.json(&status);
            }
            output.note(
                "a new authority was made; `stokehold ca status` shows how far the nodes are, and \
                 `stokehold ca finish` ends it",
            );
            Ok(())
        }
        CaCommand::Finish(args) => {
            let request = FinishCaRotation { force: args.force };
            let call = Call::new(Method::POST, "/api/stokehold/v1/ca/finish").json(&request);
            let finished: CaRotationFinished = client.call(call).await?;
            if output.is_json() {
                return output.json(&finished);
            }
            output.note("the old authority is trusted no longer");
            for it in &finished.cut_off {
                output.note(format!(
                    "cut off: {} of node {}; join it again with `stokehold node token --replace {}`",
                    it.role, it.node, it.node
                ));
            }
            Ok(())
        }
    }
}

fn show(status: &CaStatus, output: &Output) -> anyhow::Result<()> {
    if output.is_json() {
        return output.json(status);
    }
    output.line(summary(status))?;
    output.table(&table(status, SystemTime::now()))?;
    for it in &status.waiting_for {
        output.line(format!(
            "waits for {} of node {}: {}",
            it.role, it.node, it.reason
        ))?;
    }
    output.line(format!("next: {}", status.next))
}

fn summary(status: &CaStatus) -> String {
    let mut text = format!("phase: {}\n", status.phase);
    for authority in &status.authorities {
        let signs = if authority.signs { "signs" } else { "trusted" };
        let until = daemon::identity::moment(authority.expires_unix);
        let id = short(&authority.sha256);
        text += &format!("authority {id}: {signs}, valid until {until}\n");
    }
    text.trim_end().to_owned()
}

fn table(status: &CaStatus, now: SystemTime) -> Table {
    let mut table = Table::new(
        ["NODE", "ROLE", "AUTHORITY", "EXPIRES", "CONNECTED"],
        "no nodes have joined",
    );
    for node in &status.nodes {
        table.row([
            node.node.as_str().into(),
            node.role.as_str().into(),
            node.authority.as_deref().map_or(UNKNOWN, short).into(),
            expires(node, now),
            if node.connected { "yes" } else { "no" }.into(),
        ]);
    }
    table
}

fn expires(node: &CaNode, now: SystemTime) -> Field {
    let Some(expires) = node.expires_unix.and_then(|at| u64::try_from(at).ok()) else {
        return UNKNOWN.into();
    };
    let left = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |now| now.as_secs());
    let tone = if expires > left {
        Tone::Plain
    } else {
        Tone::Bad
    };
    Field::toned(format::until_unix(expires, now), tone)
}

fn short(sha256: &str) -> &str {
    sha256.get(..16).unwrap_or(sha256)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::api::certificates::CaAuthority;
    use std::time::Duration;

    #[test]
    fn a_rotation_shows_both_authorities_and_each_nodes_certificate() {
        let authority = |digit: &str, signs| CaAuthority {
            sha256: digit.repeat(64),
            signs,
            expires_unix: 86_400,
        };
        let node = |name: &str, authority: Option<&str>, expires_unix| CaNode {
            node: name.parse().expect("valid"),
            role: shared::ids::Role::Agent,
            expires_unix,
            authority: authority.map(|digit| digit.repeat(64)),
            connected: authority.is_some(),
        };
        let status = CaStatus {
            phase: "replacing".into(),
            lifetime_seconds: 604_800,
            authorities: vec![authority("b", true), authority("a", false)],
            nodes: vec![
                node("n1", Some("b"), Some(7 * 86_400)),
                node("n2", None, None),
            ],
            waiting_for: Vec::new(),
            next: String::new(),
        };
        let shown = summary(&status);
        assert!(
            shown.contains("authority bbbbbbbbbbbbbbbb: signs, valid until 1970-01-02T00:00:00Z"),
            "{shown}"
        );
        assert!(
            shown.contains("authority aaaaaaaaaaaaaaaa: trusted"),
            "{shown}"
        );
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(60);
        let rows = table(&status, now).render(None, false);
        assert!(rows.contains("bbbbbbbbbbbbbbbb"), "{rows}");
        let unknown = rows.lines().find(|line| line.contains("n2"));
        assert!(unknown.is_some_and(|line| line.contains(UNKNOWN)), "{rows}");
    }
}
