//! Which server a command talks to, and as whom.
//!
//! A flag beats its environment variable, which beats the context. A server named by flag or
//! variable takes nothing from the context unless it is the context's own server: a token must
//! never travel to a server that it is not for.

pub(crate) mod authorities;
pub(crate) mod file;
mod token;

use std::path::PathBuf;

use serde::Serialize;

use crate::args::Target;
use crate::exit::Stop;
use file::{Context, ContextFile};
pub(crate) use token::{Token, read_token};

/// What a command uses; `context show --output json` prints exactly these keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Resolved {
    pub(crate) server: Option<String>,
    pub(crate) gateway: Option<String>,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) token_file: Option<PathBuf>,
}

impl Resolved {
    pub(crate) fn server(&self) -> Result<&str, Stop> {
        self.server.as_deref().ok_or_else(|| no_address("server"))
    }

    pub(crate) fn gateway(&self) -> Result<&str, Stop> {
        self.gateway.as_deref().ok_or_else(|| no_address("gateway"))
    }
}

fn no_address(what: &str) -> Stop {
    Stop::Usage(format!(
        "no {what} is known: run `stokehold up` on this machine, or `stokehold context set NAME \
         --{what} https://HOST:PORT ...`, or give --{what}"
    ))
}

pub(crate) fn load(target: &Target) -> anyhow::Result<Resolved> {
    let contexts = match file::folder() {
        Ok(folder) => ContextFile::load(&folder)?,
        // A service without a home says everything by variables.
        Err(file::ContextFileError::NoHome) => ContextFile::default(),
        Err(other) => return Err(other.into()),
    };
    Ok(resolve(target, &contexts)?)
}

/// Pure: the command line (with its environment) and the file decide.
pub(crate) fn resolve(target: &Target, file: &ContextFile) -> Result<Resolved, Stop> {
    let base = match target.context.as_deref().or(file.current.as_deref()) {
        None => Context::default(),
        Some(name) => match (file.contexts.get(name), &target.context) {
            (Some(context), _) => context.clone(),
            // A `current` whose context was edited away harms no command that names all it needs.
            (None, None) => Context::default(),
            (None, Some(_)) => return Err(unknown(name, file)),
        },
    };
    let same = match (&target.server, &base.server) {
        (Some(given), Some(known)) => given.trim_end_matches('/') == known.trim_end_matches('/'),
        (Some(_), None) => false,
        (None, _) => true,
    };
    let base = if same { base } else { Context::default() };
    Ok(Resolved {
        server: target.server.clone().or(base.server),
        gateway: target.gateway.clone().or(base.gateway),
        ca_file: target.ca_file.clone().or(base.ca_file),
        token_file: target.token_file.clone().or(base.token_file),
    })
}

pub(crate) fn unknown(name: &str, file: &ContextFile) -> Stop {
    let names: Vec<&str> = file.contexts.keys().map(String::as_str).collect();
    let known = if names.is_empty() {
        "there are none yet".to_owned()
    } else {
        format!("there are: {}", names.join(", "))
    };
    Stop::NotFound(format!("no context is named {name:?}; {known}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn contexts() -> ContextFile {
        let context = |host: &str| Context {
            server: Some(format!("https://{host}:7443")),
            gateway: Some(format!("https://{host}:8443")),
            ca_file: Some(format!("/{host}/ca.pem").into()),
            token_file: Some(format!("/{host}/token").into()),
        };
        ContextFile {
            current: Some("a".into()),
            contexts: BTreeMap::from([("a".into(), context("a")), ("b".into(), context("b"))]),
        }
    }

    #[test]
    fn the_current_context_is_used_unless_another_is_named() {
        let current = resolve(&Target::default(), &contexts()).expect("resolved");
        assert_eq!(current.server.as_deref(), Some("https://a:7443"));
        let named = Target {
            context: Some("b".into()),
            ..Target::default()
        };
        let named = resolve(&named, &contexts()).expect("resolved");
        assert_eq!(named.token_file, Some("/b/token".into()));
    }

    #[test]
    fn another_server_gets_neither_token_nor_ca_of_the_context() {
        let target = Target {
            server: Some("https://elsewhere:7443".into()),
            ..Target::default()
        };
        let resolved = resolve(&target, &contexts()).expect("resolved");
        assert_eq!(
            resolved,
            Resolved {
                server: target.server,
                ..Resolved::default()
            }
        );
        let same = Target {
            server: Some("https://a:7443/".into()),
            ..Target::default()
        };
        let resolved = resolve(&same, &contexts()).expect("resolved");
        assert_eq!(resolved.token_file, Some("/a/token".into()));
    }

    #[test]
    fn a_context_that_is_not_there_names_those_that_are() {
        let target = Target {
            context: Some("c".into()),
            ..Target::default()
        };
        let error = resolve(&target, &contexts()).expect_err("unknown");
        assert_eq!(
            error.to_string(),
            "no context is named \"c\"; there are: a, b"
        );
    }
}
