//! How the program ends: the error on standard error, the code for scripts.

use std::process::ExitCode;

use crate::client::ClientError;
use crate::output::OutputClosed;

/// Why a command stopped, where the code is not 1.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stop {
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    TimedOut(String),
    #[error("{0}")]
    Interrupted(String),
    /// The verdict is on the screen already.
    #[error("the operation failed")]
    Told,
}

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const UNREACHABLE: u8 = 3;
const NOT_FOUND: u8 = 4;
const TIMED_OUT: u8 = 124;
const INTERRUPTED: u8 = 130;

/// Prints what clap has to say (help and versions are its errors too).
pub(crate) fn of_clap(error: &clap::Error) -> ExitCode {
    // Nobody is left to tell when even this cannot be written.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { USAGE } else { 0 })
}

pub(crate) fn code(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    if error.chain().any(|cause| cause.is::<OutputClosed>()) {
        // `stokehold list | head -1`: the reader has what it wanted.
        return ExitCode::SUCCESS;
    }
    if !matches!(error.downcast_ref(), Some(Stop::Told)) {
        anstream::eprintln!("{}", text(&error));
    }
    ExitCode::from(number(&error))
}

fn text(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error:#}");
    let detail = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<ClientError>())
        .and_then(ClientError::detail);
    if let Some(detail) = detail {
        text.push_str(&format!("\n  {detail}"));
    }
    text
}

fn number(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if let Some(stop) = cause.downcast_ref::<Stop>() {
            return match stop {
                Stop::Usage(_) => USAGE,
                Stop::NotFound(_) => NOT_FOUND,
                Stop::TimedOut(_) => TIMED_OUT,
                Stop::Interrupted(_) => INTERRUPTED,
                Stop::Told => FAILED,
            };
        }
        if let Some(client) = cause.downcast_ref::<ClientError>() {
            return if client.is_unreachable() {
                UNREACHABLE
            } else if client.is_not_found() {
                NOT_FOUND
            } else {
                FAILED
            };
        }
    }
    FAILED
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::ApiFailure;

    fn api(status: u16) -> anyhow::Error {
        anyhow::Error::from(ClientError::Api(ApiFailure {
            status,
            code: "SOME_CODE".into(),
            message: "it did not work".into(),
            request_id: Some("r1".into()),
        }))
        .context("deploy iris")
    }

    #[test]
    fn each_kind_of_failure_has_its_code_whatever_context_it_got() {
        let codes: Vec<u8> = [
            anyhow::anyhow!("x"),
            Stop::Usage("x".into()).into(),
            api(401),
            api(403),
            api(404),
            api(409),
            Stop::TimedOut("x".into()).into(),
        ]
        .iter()
        .map(number)
        .collect();
        assert_eq!(codes, [1, 2, 3, 3, 4, 1, 124]);
    }

    #[test]
    fn an_answer_of_the_server_is_shown_with_its_code_and_request() {
        assert_eq!(
            text(&api(409)),
            "error: deploy iris: it did not work\n  SOME_CODE (HTTP 409), request r1"
        );
    }
}
