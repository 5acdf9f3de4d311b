//! How a request ended.

use std::fmt;
use std::time::Duration;

/// An answer with its status, or the reason why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Outcome {
    Status(u16),
    /// No whole answer within `--timeout`.
    TimedOut,
    /// No connection was made: nobody listens, or TLS failed.
    NotConnected,
    /// The connection ended before the answer did.
    Broken,
    /// The load was ended before an answer came.
    Abandoned,
}

impl Outcome {
    pub(super) fn is_success(self) -> bool {
        matches!(self, Self::Status(status) if (200..300).contains(&status))
    }

    pub(super) fn of_error(error: &reqwest::Error) -> Self {
        if error.is_timeout() {
            Self::TimedOut
        } else if error.is_connect() {
            Self::NotConnected
        } else {
            Self::Broken
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "HTTP {status}"),
            Self::TimedOut => f.write_str("timed out"),
            Self::NotConnected => f.write_str("not connected"),
            Self::Broken => f.write_str("connection broke"),
            Self::Abandoned => f.write_str("abandoned"),
        }
    }
}

/// One request, with its times since the start of the load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) intended: Duration,
    pub(super) sent: Duration,
    pub(super) ended: Duration,
    pub(super) outcome: Outcome,
    /// What an answer or an error that is no success says.
    pub(super) said: Option<String>,
}

/// At most one line, of an error body `{"error_code", "message"}` or of any other text.
pub(super) fn said(body: &[u8]) -> Option<String> {
    let message = serde_json::from_slice::<shared::api::ErrorBody>(body)
        .map(|error| error.message)
        .unwrap_or_else(|_| String::from_utf8_lossy(body).into_owned());
    let line: String = message
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(200)
        .collect();
    let line = line.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answers_of_200_to_299_are_successes() {
        let all = [
            Outcome::Status(200),
            Outcome::Status(204),
            Outcome::Status(301),
            Outcome::Status(503),
            Outcome::TimedOut,
            Outcome::Broken,
        ];
        let good: Vec<bool> = all.iter().map(|outcome| outcome.is_success()).collect();
        assert_eq!(good, [true, true, false, false, false, false]);
    }

    #[test]
    fn an_error_says_its_message_in_one_line_without_control_characters() {
        let body = br#"{"error_code":"X","message":"no replica\nis \u001b[31mready"}"#;
        assert_eq!(said(body).as_deref(), Some("no replica is  [31mready"));
        assert_eq!(said(b"<h1>bad</h1>").as_deref(), Some("<h1>bad</h1>"));
        assert_eq!(said(b" \n"), None);
    }
}
