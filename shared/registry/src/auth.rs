//! Credentials, from a file in the form of Docker's `config.json`. Pure but for reading the file.
//!
//! What always holds: a secret is shown by no `Debug` and no error. Credential helpers (`credsStore`,
//! `credHelpers`) are programs, and are not run: whoever is refused is told so.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::reference::{DOCKER_HUB, DOCKER_HUB_HOST};

/// A page of text for every registry in the world.
const MAX_FILE_BYTES: u64 = 1 << 20;

#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    Password {
        user: String,
        password: String,
    },
    /// For the token service alone.
    IdentityToken(String),
    /// Sent to the registry as it is.
    RegistryToken(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(hidden)")
    }
}

/// A whole file.
#[derive(Clone, Debug, Default)]
pub struct AuthFile {
    by_host: BTreeMap<String, Credentials>,
    helpers: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum AuthFileError {
    #[error("credentials file {} (auth_file) cannot be read by this daemon's user", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("credentials file {} (auth_file) is over the limit of {MAX_FILE_BYTES} bytes", path.display())]
    TooLarge { path: PathBuf },
    /// No source: it could show a piece of the file.
    #[error(
        "credentials file {} (auth_file) is not JSON of the form {{\"auths\": {{\"HOST\": {{\"auth\": ...}}}}}}: line {line}, column {column}",
        path.display()
    )]
    Json {
        path: PathBuf,
        line: usize,
        column: usize,
    },
    #[error("credentials file {} (auth_file): {problem}", path.display())]
    Entry { path: PathBuf, problem: String },
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default, rename = "credsStore")]
    creds_store: Option<String>,
    #[serde(default, rename = "credHelpers")]
    cred_helpers: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

impl AuthFile {
    /// A file that does not exist holds no credentials.
    pub fn read(path: &Path) -> Result<Self, AuthFileError> {
        let failed = |source| AuthFileError::Read {
            path: path.to_owned(),
            source,
        };
        let len = match std::fs::metadata(path) {
            Ok(metadata) => metadata.len(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(failed(e)),
        };
        if len > MAX_FILE_BYTES {
            let path = path.to_owned();
            return Err(AuthFileError::TooLarge { path });
        }
        Self::parse(path, &std::fs::read(path).map_err(failed)?)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, AuthFileError> {
        let file: File = serde_json::from_slice(bytes).map_err(|e| AuthFileError::Json {
            path: path.to_owned(),
            line: e.line(),
            column: e.column(),
        })?;
        let mut by_host = BTreeMap::new();
        for (name, entry) in file.auths {
            let credentials = entry
                .credentials()
                .map_err(|problem| AuthFileError::Entry {
                    path: path.to_owned(),
                    problem: format!("the entry of {name} {problem}"),
                })?;
            // A login by a helper leaves an entry with nothing in it.
            if let Some(credentials) = credentials {
                by_host.insert(host_of(&name), credentials);
            }
        }
        let helpers =
            file.creds_store.is_some() || file.cred_helpers.is_some_and(|map| !map.is_empty());
        Ok(Self { by_host, helpers })
    }

    /// Those of one host, `registry.example:5000`, and of no other.
    pub fn of(&self, host: &str) -> Option<&Credentials> {
        self.by_host.get(&host_of(host))
    }

    /// The file leaves credentials to programs.
    pub fn names_helpers(&self) -> bool {
        self.helpers
    }
}

impl Entry {
    fn credentials(self) -> Result<Option<Credentials>, &'static str> {
        if !self.registrytoken.is_empty() {
            return Ok(Some(Credentials::RegistryToken(self.registrytoken)));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credentials::IdentityToken(self.identitytoken)));
        }
        if !self.auth.is_empty() {
            let bytes = STANDARD
                .decode(self.auth.trim())
                .map_err(|_| "has an `auth` that is not base64")?;
            let text = String::from_utf8(bytes).map_err(|_| "has an `auth` that is not text")?;
            let (user, password) = text
                .split_once(':')
                .ok_or("has an `auth` that is not base64 of USER:PASSWORD")?;
            return Ok(Some(Credentials::Password {
                user: user.to_owned(),
                password: password.trim_end_matches('\0').to_owned(),
            }));
        }
        Ok(
            (!self.username.is_empty()).then_some(Credentials::Password {
                user: self.username,
                password: self.password,
            }),
        )
    }
}

/// `https://index.docker.io/v1/` and `docker.io` mean the same.
fn host_of(name: &str) -> String {
    let name = name.split_once("://").map_or(name, |(_, rest)| rest);
    let host = name.split('/').next().unwrap_or(name).to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | DOCKER_HUB_HOST => DOCKER_HUB.to_owned(),
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<AuthFile, AuthFileError> {
        AuthFile::parse(Path::new("/etc/auth.json"), text.as_bytes())
    }

    fn password(user: &str, password: &str) -> Credentials {
        Credentials::Password {
            user: user.into(),
            password: password.into(),
        }
    }

    #[test]
    fn every_form_of_an_entry_is_understood_and_belongs_to_its_host_alone() {
        let file = parse(
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "dTpwOnc="},
                "Registry.example:5000": {"username": "u", "password": "p"},
                "id.example": {"auth": "dTpw", "identitytoken": "secret"},
                "token.example": {"registrytoken": "secret"},
                "empty.example": {}
            }, "psFormat": "x"}"#,
        )
        .expect("valid");
        assert_eq!(file.of("docker.io"), Some(&password("u", "p:w")));
        assert_eq!(file.of("registry-1.docker.io"), Some(&password("u", "p:w")));
        assert_eq!(file.of("registry.example:5000"), Some(&password("u", "p")));
        assert_eq!(file.of("registry.example"), None);
        assert!(matches!(
            file.of("id.example"),
            Some(Credentials::IdentityToken(_))
        ));
        assert!(matches!(
            file.of("token.example"),
            Some(Credentials::RegistryToken(_))
        ));
        assert_eq!(file.of("empty.example"), None);
        assert!(!file.names_helpers());
        assert!(!format!("{file:?}").contains("secret"));
    }

    #[test]
    fn helpers_are_noticed_and_a_missing_file_is_empty() {
        assert!(
            parse(r#"{"credsStore": "desktop"}"#)
                .expect("valid")
                .names_helpers()
        );
        assert!(
            parse(r#"{"credHelpers": {"a": "b"}}"#)
                .expect("valid")
                .names_helpers()
        );
        let none = AuthFile::read(Path::new("/nonexistent/auth.json")).expect("none");
        assert!(none.by_host.is_empty());
    }

    #[test]
    fn a_wrong_file_is_named_and_its_secrets_are_not() {
        for text in [
            r#"{"auths": {"a.example": {"auth": "c2VjcmV0"}}}"#,
            r#"{"auths": {"a.example": {"auth": "secret!"}}}"#,
            r#"{"auths": {"a.example": {"password": 5, "auth": "secret"}}}"#,
            r#"{"auths": "secret"#,
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains("/etc/auth.json"), "{error}");
            assert!(
                !error.contains("secret") && !error.contains("c2Vj"),
                "{error}"
            );
        }
    }
}
