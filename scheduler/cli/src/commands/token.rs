//! `stokehold token`: who may call.

use std::time::SystemTime;

use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::json;
use shared::api::{CreateToken, TokenCreated, TokenInfo, TokenList};
use shared::ids::TokenId;
use shared::spec::TokenRole;

use crate::client::{Call, Client};
use crate::output::Output;
use crate::output::format;
use crate::output::table::Table;

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Makes a token and prints it, this once.
    Create(CreateArgs),
    /// Lists tokens, without their secrets.
    #[command(after_help = LIST_EXAMPLES)]
    List,
    /// Refuses a token from now on.
    Revoke(RevokeArgs),
}

const CREATE_EXAMPLES: &str = "\
Examples:
  stokehold token create web-shop --role query > web-shop.token
  stokehold token create ci --role manage --output json
  (umask 077; stokehold token create ann --role admin > ~/ann.token)";

const LIST_EXAMPLES: &str = "\
Examples:
  stokehold token list
  stokehold token list --output json
  stokehold token list --context production";

const REVOKE_EXAMPLES: &str = "\
Examples:
  stokehold token revoke 0123456789abcdef
  stokehold token revoke 0123456789abcdef --quiet
  stokehold token revoke 0123456789abcdef --context production";

#[derive(Debug, Args)]
#[command(after_help = CREATE_EXAMPLES)]
pub(crate) struct CreateArgs {
    /// Whose it is, for lists and logs.
    name: String,
    /// What its holder may do.
    #[arg(long, value_enum, default_value_t = RoleArg::Query)]
    role: RoleArg,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RoleArg {
    /// Query endpoints and look at them.
    Query,
    /// Also deploy and delete endpoints, models and images, and read logs.
    Manage,
    /// Also make and revoke tokens and nodes.
    Admin,
}

impl From<RoleArg> for TokenRole {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Query => TokenRole::Query,
            RoleArg::Manage => TokenRole::Manage,
            RoleArg::Admin => TokenRole::Admin,
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = REVOKE_EXAMPLES)]
pub(crate) struct RevokeArgs {
    /// The token's id, as `token list` shows it.
    id: TokenId,
}

const PATH: &str = "/api/stokehold/v1/tokens";

pub(crate) async fn run(
    command: TokenCommand,
    client: &Client,
    output: &Output,
) -> anyhow::Result<()> {
    match command {
        TokenCommand::Create(args) => create(args, client, output).await,
        TokenCommand::List => {
            let list: TokenList = client.call(Call::get(PATH)).await?;
            output.rows(&list, || table(&list.tokens, SystemTime::now()))
        }
        TokenCommand::Revoke(args) => {
            let path = format!("{PATH}/{}", args.id);
            client.done(Call::new(Method::DELETE, path)).await?;
            output.done(
                &json!({"token": args.id, "revoked": true}),
                format!("token {} is revoked", args.id),
            )
        }
    }
}

async fn create(args: CreateArgs, client: &Client, output: &Output) -> anyhow::Result<()> {
    let request = CreateToken {
        name: args.name,
        role: args.role.into(),
    };
    let call = Call::new(Method::POST, PATH).json(&request);
    let created: TokenCreated = client.call(call).await?;
    if output.is_json() {
        return output.json(&created);
    }
    output.line(&created.token)?;
    output.note(format!(
        "token {} of {} is shown this once: keep it in a file that only its owner can read",
        created.id, request.name
    ));
    Ok(())
}

fn table(tokens: &[TokenInfo], now: SystemTime) -> Table {
    let mut table = Table::new(["ID", "NAME", "ROLE", "AGE"], "no tokens");
    for token in tokens {
        table.row([
            token.id.as_str().into(),
            token.name.as_str().into(),
            token.role.as_str().into(),
            format::since_unix_ms(token.created_unix_ms, now).into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn tokens_are_listed_by_what_can_be_shown() {
        let info = |bits, name: &str, role| TokenInfo {
            id: TokenId::from_bits(bits),
            name: name.into(),
            role,
            created_unix_ms: 1_000_000,
        };
        let tokens = [
            info(1, "admin", TokenRole::Admin),
            info(0xabc, "web-shop", TokenRole::Query),
        ];
        let now = UNIX_EPOCH + Duration::from_secs(5000);
        insta::assert_snapshot!(table(&tokens, now).render(None, false));
    }
}
