//! Logs go to stderr, one line an event: journald and containers collect it there.

use std::error::Error;
use std::fmt;
use std::io::IsTerminal;

use serde::Deserialize;
use tracing_subscriber::EnvFilter;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug` or `trace`, or directives such as `info,agent=debug`.
    /// Default: info. The environment variable `STOKEHOLD_LOG` wins.
    #[serde(deserialize_with = "level")]
    pub level: String,
    /// `text` or `json` (one object a line). Default: text.
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: LogFormat::Text,
        }
    }
}

/// A bare word that is no level would silently be taken for a module, and nothing be logged.
fn level<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    let levels = ["error", "warn", "info", "debug", "trace", "off"];
    let stray = text
        .split(',')
        .map(str::trim)
        .find(|part| !part.contains('=') && !levels.contains(&part.to_ascii_lowercase().as_str()));
    if stray.is_some() || EnvFilter::try_new(&text).is_err() {
        return Err(serde::de::Error::custom(format!(
            "{text:?} is no level: expected error, warn, info, debug or trace, or directives such as \
             \"info,agent=debug\""
        )));
    }
    Ok(text)
}

/// Starts logging for this process. Later calls do nothing (tests start several daemons).
pub fn init(log: &LogConfig) {
    let wanted = std::env::var("STOKEHOLD_LOG").unwrap_or_else(|_| log.level.clone());
    let filter = EnvFilter::try_new(&wanted);
    let understood = filter.is_ok();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    let installed = match log.format {
        LogFormat::Text => builder.try_init().is_ok(),
        LogFormat::Json => builder.json().flatten_event(true).try_init().is_ok(),
    };
    if installed && !understood {
        tracing::warn!(level = wanted, "log level is not understood, using info");
    }
}

/// An error with its causes, for a log field: `open socket: permission denied`.
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_is_refused_as_it_would_silence_everything() {
        let read = |level: &str| toml::from_str::<LogConfig>(&format!("level = {level:?}"));
        for good in ["info", "warn,agent=debug", "off"] {
            assert_eq!(read(good).expect("valid").level, good);
        }
        for bad in ["warning", "verbose", "", "info,agent=loud"] {
            let error = read(bad).expect_err(bad).to_string();
            assert!(error.contains("info,agent=debug"), "{error}");
        }
    }
}
