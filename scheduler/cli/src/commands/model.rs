//! `stokehold model`: models and their versions.

use std::path::PathBuf;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde::Serialize;
use shared::api::{Deleted, ModelList, ModelVersionInfo, RegisterModelVersion, SetAlias};
use shared::ids::{AliasName, ModelName, ModelRef};

use crate::client::{Call, Client, LONG_CALL};
use crate::commands::endpoint::confirmed;
use crate::exit::Stop;
use crate::output::Output;
use crate::output::format::{self, bytes};
use crate::output::table::Table;
use crate::push;

const MODELS: &str = "/api/stokehold/v1/models";

#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// Uploads a folder as the next version of a model.
    Push(PushArgs),
    /// Lists models with all their versions.
    #[command(after_help = LIST_EXAMPLES)]
    List,
    /// Shows one model, or one version of it.
    Get(GetArgs),
    /// Deletes a version that no endpoint uses.
    Delete(DeleteArgs),
    /// Makes an alias mean a version.
    Alias(AliasArgs),
}

const PUSH_EXAMPLES: &str = "\
Examples:
  stokehold model push ./iris --name iris
  stokehold model push ./iris --name iris --alias prod
  stokehold model push /models/llama-3 --name llama-3 --output json

Only the bytes that the store does not have travel; a push that was interrupted goes on where it
stopped. The same folder twice is one version.";

const LIST_EXAMPLES: &str = "\
Examples:
  stokehold model list
  stokehold model list --output json
  stokehold model list --context production";

const GET_EXAMPLES: &str = "\
Examples:
  stokehold model get iris
  stokehold model get iris/2
  stokehold model get iris@prod --output json";

const DELETE_EXAMPLES: &str = "\
Examples:
  stokehold model delete iris/1
  stokehold model delete iris/1 --yes
  stokehold model delete iris/1 --yes --output json";

const ALIAS_EXAMPLES: &str = "\
Examples:
  stokehold model alias iris prod 2
  stokehold model alias iris previous 1
  stokehold model alias catalog.schema.iris champion 12";

#[derive(Debug, Args)]
#[command(after_help = PUSH_EXAMPLES)]
pub(crate) struct PushArgs {
    /// The model's folder, as MLflow, Hugging Face or Triton lay it out.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Name under which it is registered.
    #[arg(long)]
    name: ModelName,
    /// Alias that shall mean the new version.
    #[arg(long)]
    alias: Option<AliasName>,
}

#[derive(Debug, Args)]
#[command(after_help = GET_EXAMPLES)]
pub(crate) struct GetArgs {
    /// NAME, NAME/VERSION or NAME@ALIAS.
    model: String,
}

#[derive(Debug, Args)]
#[command(after_help = DELETE_EXAMPLES)]
pub(crate) struct DeleteArgs {
    /// NAME/VERSION.
    model: ModelRef,
    /// Do not ask (without a terminal nothing is asked).
    #[arg(long, short)]
    yes: bool,
}

#[derive(Debug, Args)]
#[command(after_help = ALIAS_EXAMPLES)]
pub(crate) struct AliasArgs {
    name: ModelName,
    alias: AliasName,
    version: u32,
}

pub(crate) async fn run(
    command: ModelCommand,
    client: &Client,
    output: &Output,
) -> anyhow::Result<()> {
    match command {
        ModelCommand::Push(args) => push(args, client, output).await,
        ModelCommand::List => {
            let list: ModelList = client.call(Call::get(MODELS)).await?;
            output.rows(&list, || table(&list.models, SystemTime::now()))
        }
        ModelCommand::Get(args) => get(&args, client, output).await,
        ModelCommand::Delete(args) => delete(&args, client, output).await,
        ModelCommand::Alias(args) => {
            let info = alias(&args.name, &args.alias, args.version, client).await?;
            output.done(
                &info,
                format!("{}@{} is version {}", args.name, args.alias, args.version),
            )
        }
    }
}

/// What `model push --output json` prints: the version, and what had to be moved for it.
#[derive(Debug, Serialize)]
struct Pushed {
    #[serde(flatten)]
    info: ModelVersionInfo,
    uploaded_chunks: usize,
    uploaded_bytes: u64,
}

async fn push(args: PushArgs, client: &Client, output: &Output) -> anyhow::Result<()> {
    let source = push::Source::model(args.folder, output).await?;
    let sent = push::send(&source, client, output).await?;
    let path = format!("{MODELS}/{}/versions", args.name);
    let request = RegisterModelVersion {
        manifest: source.id(),
    };
    let call = Call::new(Method::POST, path)
        .json(&request)
        .timeout(Some(LONG_CALL));
    let mut info: ModelVersionInfo = client.call(call).await?;
    if let Some(name) = args.alias {
        info = alias(&info.name, &name, info.version, client).await?;
    }
    if output.is_json() {
        let (uploaded_chunks, uploaded_bytes) = sent.moved();
        return output.json(&Pushed {
            info,
            uploaded_chunks,
            uploaded_bytes,
        });
    }
    let aliases: String = info.aliases.iter().map(|a| format!(" @{a}")).collect();
    output.line(format!("{}/{}{aliases}: {sent}", info.name, info.version))
}

async fn alias(
    name: &ModelName,
    alias: &AliasName,
    version: u32,
    client: &Client,
) -> anyhow::Result<ModelVersionInfo> {
    let path = format!("{MODELS}/{name}/aliases/{alias}");
    let call = Call::new(Method::PUT, path).json(&SetAlias { version });
    Ok(client.call(call).await?)
}

/// What `get` was asked for.
fn parse_get(text: &str) -> Result<(ModelName, Option<ModelRef>), Stop> {
    let usage = |error: shared::ids::InvalidName| Stop::Usage(error.to_string());
    if text.contains(['/', '@']) {
        let reference: ModelRef = text.parse().map_err(usage)?;
        Ok((reference.name().clone(), Some(reference)))
    } else {
        Ok((text.parse().map_err(usage)?, None))
    }
}

async fn get(args: &GetArgs, client: &Client, output: &Output) -> anyhow::Result<()> {
    let (name, reference) = parse_get(&args.model)?;
    let list: ModelList = client.call(Call::get(format!("{MODELS}/{name}"))).await?;
    let Some(reference) = reference else {
        return output.rows(&list, || table(&list.models, SystemTime::now()));
    };
    let found = list.models.iter().find(|info| match &reference {
        ModelRef::Version { version, .. } => info.version == *version,
        ModelRef::Alias { alias, .. } => info.aliases.contains(alias),
    });
    let info = found.ok_or_else(|| Stop::NotFound(format!("model {reference} does not exist")))?;
    if output.is_json() {
        return output.json(info);
    }
    output.line(detail(info, SystemTime::now()))
}

async fn delete(args: &DeleteArgs, client: &Client, output: &Output) -> anyhow::Result<()> {
    let ModelRef::Version { name, version } = &args.model else {
        return Err(Stop::Usage(format!(
            "{} is an alias: name the version to delete, as in {}/1",
            args.model,
            args.model.name()
        ))
        .into());
    };
    if !args.yes && !confirmed(&format!("delete model {name}/{version}?"))? {
        let kept = Deleted { freed_bytes: 0 };
        return output.done(&kept, "nothing was deleted");
    }
    let call = Call::new(Method::DELETE, format!("{MODELS}/{name}"))
        .query("version", version)
        .timeout(Some(LONG_CALL));
    let deleted: Deleted = client.call(call).await?;
    output.done(
        &deleted,
        format!(
            "model {name}/{version} is deleted, {} freed",
            bytes(Some(deleted.freed_bytes))
        ),
    )
}

fn table(models: &[ModelVersionInfo], now: SystemTime) -> Table {
    let mut table = Table::new(
        [
            "MODEL", "ALIASES", "SIZE", "FLAVORS", "TASK", "MANIFEST", "AGE",
        ],
        "no models: `stokehold model push` uploads one",
    );
    for info in models {
        table.row([
            format!("{}/{}", info.name, info.version).into(),
            joined(&info.aliases).into(),
            bytes(Some(info.size_bytes)).into(),
            flavors(info).into(),
            info.description.task.as_deref().unwrap_or_default().into(),
            info.manifest.0.short().into(),
            format::since_unix_ms(info.created_unix_ms, now).into(),
        ]);
    }
    table
}

fn joined(aliases: &[AliasName]) -> String {
    let names: Vec<&str> = aliases.iter().map(AliasName::as_str).collect();
    names.join(", ")
}

fn flavors(info: &ModelVersionInfo) -> String {
    let names: Vec<&str> = info
        .description
        .flavors
        .keys()
        .map(String::as_str)
        .collect();
    names.join(", ")
}

fn detail(info: &ModelVersionInfo, now: SystemTime) -> String {
    let description = &info.description;
    let mut rows = vec![
        ("model", format!("{}/{}", info.name, info.version)),
        ("aliases", joined(&info.aliases)),
        ("manifest", info.manifest.to_string()),
        ("size", bytes(Some(info.size_bytes))),
        (
            "created",
            format!("{} ago", format::since_unix_ms(info.created_unix_ms, now)),
        ),
    ];
    for (name, version) in &description.flavors {
        rows.push(("flavor", format!("{name} {version}")));
    }
    if let Some(task) = &description.task {
        rows.push(("task", task.clone()));
    }
    if let Some(python) = &description.python_version {
        rows.push(("python", python.clone()));
    }
    for architecture in &description.architectures {
        rows.push(("architecture", architecture.clone()));
    }
    for requirement in &description.requirements {
        rows.push(("requires", requirement.clone()));
    }
    let lines: Vec<String> = rows
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| format!("{key:<13} {}", value.trim_end()))
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::digest::Digest;
    use shared::manifest::{Description, ManifestId};
    use std::collections::BTreeMap;
    use std::time::{Duration, UNIX_EPOCH};

    fn info(version: u32, alias: Option<&str>) -> ModelVersionInfo {
        ModelVersionInfo {
            name: "iris".parse().expect("name"),
            version,
            manifest: ManifestId(Digest::from_bytes([version as u8; 32])),
            size_bytes: 34 << 20,
            description: Description {
                flavors: BTreeMap::from([
                    ("python_function".into(), "3.17.2".into()),
                    ("sklearn".into(), "1.7.2".into()),
                ]),
                requirements: vec!["scikit-learn==1.7.2".into()],
                python_version: Some("3.11.2".into()),
                ..Description::default()
            },
            created_unix_ms: 1_000_000,
            aliases: alias.iter().map(|a| a.parse().expect("alias")).collect(),
        }
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(8000)
    }

    #[test]
    fn models_are_listed_version_by_version() {
        let models = [info(1, None), info(2, Some("prod"))];
        insta::assert_snapshot!(table(&models, now()).render(None, false));
    }

    #[test]
    fn a_version_shows_what_its_files_say() {
        insta::assert_snapshot!(detail(&info(2, Some("prod")), now()));
    }

    #[test]
    fn get_takes_a_name_a_version_or_an_alias() {
        assert!(matches!(parse_get("iris"), Ok((_, None))));
        assert!(matches!(
            parse_get("iris/2"),
            Ok((_, Some(ModelRef::Version { version: 2, .. })))
        ));
        assert!(matches!(
            parse_get("iris@prod"),
            Ok((_, Some(ModelRef::Alias { .. })))
        ));
        assert!(parse_get("iris/x").is_err());
        assert!(parse_get("").is_err());
    }
}
