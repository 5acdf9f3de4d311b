//! `stokehold context`: which servers this program knows.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use crate::args::Target;
use crate::context::file::{self, Context, ContextFile};
use crate::context::{Resolved, load, resolve, unknown};
use crate::exit::Stop;
use crate::output::Output;
use crate::output::table::Table;

#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// Shows what commands would use now.
    Show(ShowArgs),
    /// Lists contexts; the current one is marked.
    #[command(after_help = LIST_EXAMPLES)]
    List,
    /// Makes a context current.
    Use(UseArgs),
    /// Makes or changes a context; what is not given stays.
    Set(SetArgs),
    /// Deletes a context; its files stay.
    Delete(DeleteArgs),
    /// Writes a context with the CA and token that come on standard input (`up` calls this as the
    /// user who called it, so that root writes nothing into that user's home).
    #[command(hide = true)]
    Adopt(AdoptArgs),
    /// Undoes `adopt`, if the context still means that server.
    #[command(hide = true)]
    Forget(ForgetArgs),
}

const LIST_EXAMPLES: &str = "\
Examples:
  stokehold context list
  stokehold context list --output json
  stokehold context list --quiet";

const SHOW_EXAMPLES: &str = "\
Examples:
  stokehold context show
  stokehold context show production
  stokehold context show --output json   # server, gateway, ca_file, token_file";

const USE_EXAMPLES: &str = "\
Examples:
  stokehold context use local
  stokehold context use production
  STOKEHOLD_CONTEXT=production stokehold list   # for one command only";

const SET_EXAMPLES: &str = "\
Examples:
  stokehold context set production --server https://sched1:7443 --gateway https://serve:8443 \\
      --ca-file ~/prod-ca.pem --token-file ~/prod.token
  stokehold context set production --gateway https://other:8443
  stokehold context set production --ca-file /etc/ssl/certs/ca-certificates.crt";

const DELETE_EXAMPLES: &str = "\
Examples:
  stokehold context delete production
  stokehold context delete local
  stokehold context delete old --quiet";

#[derive(Debug, Args)]
#[command(after_help = SHOW_EXAMPLES)]
pub(crate) struct ShowArgs {
    /// Another context than the one in use.
    name: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = USE_EXAMPLES)]
pub(crate) struct UseArgs {
    name: String,
}

/// The values are the flags --server, --gateway, --ca-file and --token-file.
#[derive(Debug, Args)]
#[command(after_help = SET_EXAMPLES)]
pub(crate) struct SetArgs {
    name: String,
}

#[derive(Debug, Args)]
#[command(after_help = DELETE_EXAMPLES)]
pub(crate) struct DeleteArgs {
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct AdoptArgs {
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct ForgetArgs {
    name: String,
    /// The server that the context must still mean.
    expected: String,
}

pub(crate) fn run(command: ContextCommand, target: &Target, output: &Output) -> anyhow::Result<()> {
    match command {
        ContextCommand::Show(args) => show(args, target, output),
        ContextCommand::List => list(output),
        ContextCommand::Use(args) => {
            change(|contexts| {
                if !contexts.contexts.contains_key(&args.name) {
                    return Err(unknown(&args.name, contexts).into());
                }
                contexts.current = Some(args.name.clone());
                Ok(())
            })?;
            output.done(
                &json!({"context": args.name, "current": true}),
                format!("context {} is current", args.name),
            )
        }
        ContextCommand::Set(args) => set(&args.name, target, output),
        ContextCommand::Delete(args) => {
            change(|contexts| delete(&args.name, contexts))?;
            output.done(
                &json!({"context": args.name, "deleted": true}),
                format!("context {} is deleted", args.name),
            )
        }
        ContextCommand::Adopt(args) => {
            let text = std::io::read_to_string(std::io::stdin())?;
            adopt(&args.name, &serde_json::from_str(&text)?)
        }
        ContextCommand::Forget(args) => forget(&args.name, &args.expected),
    }
}

fn change(edit: impl FnOnce(&mut ContextFile) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let folder = file::folder()?;
    let mut contexts = ContextFile::load(&folder)?;
    edit(&mut contexts)?;
    Ok(contexts.save(&folder)?)
}

fn show(args: ShowArgs, target: &Target, output: &Output) -> anyhow::Result<()> {
    let target = match args.name {
        Some(name) => Target {
            context: Some(name),
            ..Target::default()
        },
        None => target.clone(),
    };
    let resolved = load(&target)?;
    if output.is_json() {
        return output.json(&resolved);
    }
    output.line(shown(&resolved))
}

fn shown(resolved: &Resolved) -> String {
    let path = |path: &Option<PathBuf>| path.as_ref().map(|p| p.display().to_string());
    let rows = [
        ("server", resolved.server.clone()),
        ("gateway", resolved.gateway.clone()),
        ("ca_file", path(&resolved.ca_file)),
        ("token_file", path(&resolved.token_file)),
    ];
    let lines: Vec<String> = rows
        .into_iter()
        .map(|(key, value)| format!("{key:<11} {}", value.as_deref().unwrap_or("-")))
        .collect();
    lines.join("\n")
}

fn list(output: &Output) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct Listed<'a> {
        name: &'a str,
        current: bool,
        server: Option<&'a str>,
        gateway: Option<&'a str>,
    }
    let contexts = ContextFile::load(&file::folder()?)?;
    let listed: Vec<Listed<'_>> = contexts
        .contexts
        .iter()
        .map(|(name, context)| Listed {
            name,
            current: contexts.current.as_deref() == Some(name),
            server: context.server.as_deref(),
            gateway: context.gateway.as_deref(),
        })
        .collect();
    output.rows(&listed, || {
        let mut table = Table::new(
            ["NAME", "CURRENT", "SERVER", "GATEWAY"],
            "no contexts: `stokehold up` makes one, and so does `stokehold context set`",
        );
        for context in &listed {
            table.row([
                context.name.into(),
                if context.current { "yes" } else { "" }.into(),
                context.server.unwrap_or_default().into(),
                context.gateway.unwrap_or_default().into(),
            ]);
        }
        table
    })
}

/// The flags, not the environment's or the current context's values for them, are what is stored:
/// clap has already merged the environment in, so `set` takes both alike and says what it stored.
fn set(name: &str, target: &Target, output: &Output) -> anyhow::Result<()> {
    check_name(name)?;
    let absolute = |path: &Option<PathBuf>| -> anyhow::Result<Option<PathBuf>> {
        // A relative path would mean another file in another folder.
        path.as_ref()
            .map(|path| Ok(std::path::absolute(path)?))
            .transpose()
    };
    let (ca_file, token_file) = (absolute(&target.ca_file)?, absolute(&target.token_file)?);
    change(|contexts| {
        let context = contexts.contexts.entry(name.to_owned()).or_default();
        let old = std::mem::take(context);
        *context = Context {
            server: target.server.clone().or(old.server),
            gateway: target.gateway.clone().or(old.gateway),
            ca_file: ca_file.or(old.ca_file),
            token_file: token_file.or(old.token_file),
        };
        contexts.current.get_or_insert_with(|| name.to_owned());
        Ok(())
    })?;
    let named = Target {
        context: Some(name.to_owned()),
        ..Target::default()
    };
    let stored = resolve(&named, &ContextFile::load(&file::folder()?)?)?;
    output.done(&stored, format!("context {name}:\n{}", shown(&stored)))
}

fn delete(name: &str, contexts: &mut ContextFile) -> anyhow::Result<()> {
    if contexts.contexts.remove(name).is_none() {
        return Err(unknown(name, contexts).into());
    }
    if contexts.current.as_deref() == Some(name) {
        contexts.current = None;
    }
    Ok(())
}

/// A context's name becomes a folder's.
fn check_name(name: &str) -> Result<(), Stop> {
    let valid = (1..=63).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if valid {
        Ok(())
    } else {
        Err(Stop::Usage(format!(
            "{name:?} is not a valid context name: expected 1 to 63 of A-Z a-z 0-9 _ -"
        )))
    }
}

/// What `up` hands over.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct Adopted {
    pub(crate) server: String,
    pub(crate) gateway: String,
    pub(crate) ca_pem: String,
    pub(crate) token: String,
}

pub(crate) fn adopt(name: &str, adopted: &Adopted) -> anyhow::Result<()> {
    check_name(name)?;
    let own = file::folder()?.join(name);
    daemon::files::private_dir(&own, 0o700)?;
    let (ca_file, token_file) = (own.join("ca.pem"), own.join("token"));
    daemon::files::write_atomic(&ca_file, adopted.ca_pem.as_bytes(), 0o600)?;
    daemon::files::write_atomic(&token_file, adopted.token.as_bytes(), 0o600)?;
    change(|contexts| {
        let context = Context {
            server: Some(adopted.server.clone()),
            gateway: Some(adopted.gateway.clone()),
            ca_file: Some(ca_file),
            token_file: Some(token_file),
        };
        contexts.contexts.insert(name.to_owned(), context);
        contexts.current = Some(name.to_owned());
        Ok(())
    })
}

pub(crate) fn forget(name: &str, expected: &str) -> anyhow::Result<()> {
    check_name(name)?;
    let folder = file::folder()?;
    let mut contexts = ContextFile::load(&folder)?;
    let ours = contexts
        .contexts
        .get(name)
        .is_some_and(|context| context.server.as_deref() == Some(expected));
    if !ours {
        return Ok(());
    }
    let own = folder.join(name);
    for file in ["ca.pem", "token"] {
        match std::fs::remove_file(own.join(file)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
            Ok(()) | Err(_) => {}
        }
    }
    // The folder stays if the user keeps something else in it.
    let _ = std::fs::remove_dir(&own);
    delete(name, &mut contexts)?;
    if contexts == ContextFile::default() {
        // `up` made the file, so it goes with the last context.
        std::fs::remove_file(folder.join("config.toml"))?;
        let _ = std::fs::remove_dir(&folder);
        return Ok(());
    }
    Ok(contexts.save(&folder)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_of_show_has_exactly_four_keys() {
        let json = serde_json::to_value(Resolved::default()).expect("json");
        let keys: Vec<&String> = json.as_object().expect("object").keys().collect();
        assert_eq!(keys, ["ca_file", "gateway", "server", "token_file"]);
    }

    #[test]
    fn deleting_the_current_context_leaves_none_current() {
        let mut contexts = ContextFile {
            current: Some("a".into()),
            ..ContextFile::default()
        };
        contexts.contexts.insert("a".into(), Context::default());
        delete("a", &mut contexts).expect("deleted");
        assert_eq!(contexts, ContextFile::default());
        assert!(delete("a", &mut contexts).is_err());
    }

    #[test]
    fn a_context_name_cannot_leave_its_folder() {
        for bad in ["", "..", "a/b", "a b", "."] {
            assert!(check_name(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
