//! `~/.config/stokehold/config.toml`: contexts by name, and which is current.
//!
//! A file without `version` is of version 1, the only one so far; a later one is refused as a whole.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Where a cluster is and who one is there. Tokens stay in files of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    /// The scheduler's REST API, `https://host:7443`.
    pub(crate) server: Option<String>,
    /// The gateway for queries, `https://host:8443`.
    pub(crate) gateway: Option<String>,
    /// The CA (PEM) that signed both; nothing else is trusted.
    pub(crate) ca_file: Option<PathBuf>,
    /// A file that holds the bearer token and that only its owner may read.
    pub(crate) token_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ContextFile {
    /// The context that is used where neither `--context` nor its variable names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    /// One table a context, by its name.
    pub(crate) contexts: BTreeMap<String, Context>,
}

const VERSION: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ContextFileError {
    #[error(
        "{} has version {found}, this stokehold ({}) knows {VERSION}: use the version that wrote it, or \
         a later one; or move that file away and set the contexts anew (`stokehold context set`). \
         Nothing was changed",
        path.display(), env!("CARGO_PKG_VERSION")
    )]
    Newer { path: PathBuf, found: u32 },
    #[error("no home folder: set HOME or XDG_CONFIG_HOME")]
    NoHome,
    #[error("read contexts")]
    Read(#[from] daemon::config::ConfigError),
    #[error("write contexts to {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// `$XDG_CONFIG_HOME/stokehold`, or `~/.config/stokehold`.
pub(crate) fn folder() -> Result<PathBuf, ContextFileError> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_CONFIG_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".config")))
        .map(|config| config.join("stokehold"))
        .ok_or(ContextFileError::NoHome)
}

impl ContextFile {
    pub(crate) fn load(folder: &Path) -> Result<Self, ContextFileError> {
        let path = folder.join("config.toml");
        check_version(&path)?;
        Ok(daemon::config::load(&path, false)?)
    }

    pub(crate) fn save(&self, folder: &Path) -> Result<(), ContextFileError> {
        let path = folder.join("config.toml");
        let text = toml::to_string_pretty(self).expect("contexts are tables of texts");
        daemon::files::private_dir(folder, 0o700)
            .and_then(|()| daemon::files::write_atomic(&path, text.as_bytes(), 0o600))
            .map_err(|source| ContextFileError::Write { path, source })
    }
}

/// What else is wrong with the file is told by whoever reads it.
fn check_version(path: &Path) -> Result<(), ContextFileError> {
    #[derive(Deserialize)]
    struct Head {
        version: Option<u32>,
    }
    let text = std::fs::read_to_string(path).unwrap_or_default();
    match toml::from_str::<Head>(&text) {
        Ok(Head {
            version: Some(found),
        }) if found > VERSION => Err(ContextFileError::Newer {
            path: path.to_owned(),
            found,
        }),
        Ok(_) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn example() -> ContextFile {
        let local = Context {
            server: Some("https://127.0.0.1:7443".into()),
            gateway: Some("https://127.0.0.1:8443".into()),
            ca_file: Some("/home/me/.config/stokehold/local/ca.pem".into()),
            token_file: None,
        };
        ContextFile {
            current: Some("local".into()),
            contexts: BTreeMap::from([("local".into(), local)]),
        }
    }

    #[test]
    fn contexts_read_back_as_they_were_written_and_are_private() {
        let home = tempfile::tempdir().expect("folder");
        let folder = home.path().join("stokehold");
        example().save(&folder).expect("write");
        assert_eq!(ContextFile::load(&folder).expect("read"), example());
        let mode =
            |path: &Path| std::fs::metadata(path).expect("stat").permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        assert_eq!(mode(&folder.join("config.toml")), 0o600);
    }

    #[test]
    fn no_file_is_no_contexts() {
        let home = tempfile::tempdir().expect("folder");
        assert_eq!(
            ContextFile::load(home.path()).expect("empty"),
            ContextFile::default()
        );
    }

    #[test]
    fn a_file_of_a_later_version_is_refused_and_left_as_it_is() {
        let home = tempfile::tempdir().expect("folder");
        let path = home.path().join("config.toml");
        let later = "version = 2\n[clusters]\n";
        std::fs::write(&path, later).expect("write");
        let text = ContextFile::load(home.path())
            .expect_err("refused")
            .to_string();
        assert!(
            text.contains("version 2") && text.contains("knows 1"),
            "{text}"
        );
        assert_eq!(std::fs::read_to_string(&path).expect("kept"), later);
    }

    #[test]
    fn a_misspelt_key_is_named() {
        let home = tempfile::tempdir().expect("folder");
        std::fs::write(
            home.path().join("config.toml"),
            "[contexts.a]\nsever = \"x\"\n",
        )
        .expect("write");
        let error = ContextFile::load(home.path()).expect_err("refused");
        assert!(format!("{:#}", anyhow::Error::from(error)).contains("sever"));
    }
}
