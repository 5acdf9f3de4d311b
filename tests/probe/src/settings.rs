//! How a probe behaves, as its model's `probe.json` says.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

const FILE: &str = "probe.json";

/// Everything is off by default: a probe with no settings answers at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How long a request sleeps, in milliseconds.
    pub service_ms: u64,
    /// Up to this many requests at once the service time is flat; beyond, it is stretched by concurrency
    /// / knee. 0: always flat.
    pub knee: u32,
    /// How much CPU time a request burns, in milliseconds.
    pub cpu_ms: u64,
    /// Memory taken, and touched, at the start, in MiB.
    pub memory_mib: usize,
    /// Until this time has passed, in milliseconds, every answer but `/stats` is 503.
    pub start_delay_ms: u64,
    /// The program ends with this code instead of listening.
    pub exit_at_start: Option<u8>,
    /// The answer stays 503, as if the start never ended.
    pub never_healthy: bool,
    /// This many requests are answered; the next one ends the probe, with code 1. 0: never.
    pub exit_after_requests: u64,
    /// The program prints this many bytes, in lines, before it listens.
    pub log_bytes_at_start: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("model folder {0}: there is no such folder; name one with --model, or leave it out")]
    NoFolder(PathBuf),
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}: {source}; correct the file or remove it")]
    Syntax {
        path: PathBuf,
        source: serde_json::Error,
    },
}

impl Settings {
    /// A model with no `probe.json` has the default settings.
    pub fn load(model: &Path) -> Result<Self, SettingsError> {
        if !model.is_dir() {
            return Err(SettingsError::NoFolder(model.to_owned()));
        }
        let path = model.join(FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(SettingsError::Read { path, source }),
        };
        serde_json::from_slice(&text).map_err(|source| SettingsError::Syntax { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_without_settings_has_the_defaults_and_a_missing_model_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Settings::load(dir.path()).unwrap(), Settings::default());
        let err = Settings::load(&dir.path().join("none")).unwrap_err();
        assert!(matches!(err, SettingsError::NoFolder(_)));
    }

    #[test]
    fn an_unknown_or_wrong_setting_is_named_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        for (text, want) in [
            (
                "{\"service\": 3}",
                "unknown field `service`, expected one of `service_ms`",
            ),
            (
                "{\"knee\": -1}",
                "invalid value: integer `-1`, expected u32 at line 1 column 11",
            ),
            ("{", "EOF while parsing"),
        ] {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            let err = Settings::load(dir.path()).unwrap_err().to_string();
            assert!(err.contains(want) && err.contains(FILE), "{err}");
        }
    }
}
