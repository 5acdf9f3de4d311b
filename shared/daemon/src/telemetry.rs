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
