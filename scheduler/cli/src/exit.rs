//! How the program ends: the error on standard error, the code for scripts.
//!
//! For people: `error: WHAT`, then `hint: HOW TO MEND IT` where one is known. With `--output json` it
//! is one line of JSON, `{"error": {...}}`, and nothing else stands on a standard error that is no
//! terminal: a script parses the last line of it, whatever the command.

use std::process::ExitCode;

use model::describe::DescribeError;
use model::hash::HashError;
use model::scan::ScanError;
use serde::Serialize;
use sim::fit::FitError;
use sim::plant::PlantMistake;
use sim::trace::TraceError;

use crate::client::ClientError;
use crate::commands::last_words::LastWords;
use crate::output::{Output, OutputClosed};
use crate::push;

/// Why a command stopped, where the code is not 1 or there is more to say.
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
    #[error("{}", .0.message)]
    Deployment(Box<Failure>),
    /// The verdict is on the screen already.
    #[error("the operation failed")]
    Told,
}

/// A deployment that came to nothing.
#[derive(Debug)]
pub(crate) struct Failure {
    /// `DEPLOYMENT_FAILED` or `NO_ROOM`.
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) hint: String,
    /// Of the replica that failed last.
    pub(crate) log: Option<LastWords>,
}

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const UNREACHABLE: u8 = 3;
const NOT_FOUND: u8 = 4;
const TIMED_OUT: u8 = 124;
const INTERRUPTED: u8 = 130;

/// An error as `--output json` shows it.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    /// The server's `error_code`, or one of this program's own.
    code: &'a str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    exit_code: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    http_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<&'a LastWords>,
}

#[derive(Serialize)]
struct Line<'a> {
    error: Shown<'a>,
}

impl Shown<'_> {
    fn line(self) -> String {
        serde_json::to_string(&Line { error: self }).expect("an error is a plain record")
    }
}

/// Prints what clap has to say (help and versions are its errors too).
pub(crate) fn of_clap(error: &clap::Error, json: bool) -> ExitCode {
    if json && error.use_stderr() {
        anstream::eprintln!("{}", shown_clap(error).line());
    } else {
        // Nobody is left to tell when even this cannot be written.
        let _ = error.print();
    }
    ExitCode::from(if error.use_stderr() { USAGE } else { 0 })
}

/// Its first paragraph says what is wrong; the rest is usage.
fn shown_clap(error: &clap::Error) -> Shown<'static> {
    let text = error.render().to_string();
    let message = text.split("\n\n").next().unwrap_or_default();
    let message = message.trim().trim_start_matches("error: ");
    Shown {
        code: "USAGE",
        message: message.to_owned(),
        hint: Some("stokehold COMMAND --help shows the arguments".into()),
        exit_code: USAGE,
        http_status: None,
        request_id: None,
        log: None,
    }
}

pub(crate) fn code(result: anyhow::Result<()>, output: &Output) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    if error.chain().any(|cause| cause.is::<OutputClosed>()) {
        // `stokehold list | head -1`: the reader has what it wanted.
        return ExitCode::SUCCESS;
    }
    if !matches!(error.downcast_ref(), Some(Stop::Told)) {
        let line = if output.is_json() {
            shown(&error).line()
        } else {
            text(&error)
        };
        anstream::eprintln!("{line}");
    }
    ExitCode::from(number(&error))
}

fn text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    if let Some(words) = failure(error).and_then(|failure| failure.log.as_ref()) {
        text = format!("{words}\n");
    }
    text.push_str(&format!("error: {error:#}"));
    if let Some(detail) = client(error).and_then(ClientError::detail) {
        text.push_str(&format!("\n  {detail}"));
    }
    if let Some(hint) = hint(error) {
        text.push_str(&format!("\nhint: {hint}"));
    }
    text
}

fn shown(error: &anyhow::Error) -> Shown<'_> {
    let answer = client(error).and_then(ClientError::answer);
    Shown {
        code: word(error),
        message: format!("{error:#}"),
        hint: hint(error),
        exit_code: number(error),
        http_status: answer.map(|answer| answer.status),
        request_id: answer.and_then(|answer| answer.request_id.as_deref()),
        log: failure(error).and_then(|failure| failure.log.as_ref()),
    }
}

fn client(error: &anyhow::Error) -> Option<&ClientError> {
    error.chain().find_map(|cause| cause.downcast_ref())
}

fn failure(error: &anyhow::Error) -> Option<&Failure> {
    match error.chain().find_map(|cause| cause.downcast_ref())? {
        Stop::Deployment(failure) => Some(failure),
        Stop::Usage(_)
        | Stop::NotFound(_)
        | Stop::TimedOut(_)
        | Stop::Interrupted(_)
        | Stop::Told => None,
    }
}

/// How to mend it, where an error knows.
fn hint(error: &anyhow::Error) -> Option<String> {
    if let Some(failure) = failure(error) {
        return Some(failure.hint.clone());
    }
    error.chain().find_map(|cause| {
        let folder = cause.downcast_ref::<ScanError>().and_then(ScanError::hint);
        let bytes = cause.downcast_ref::<HashError>().and_then(HashError::hint);
        let pushed = cause.downcast_ref().map(push::PushError::hint);
        let described = cause.downcast_ref::<DescribeError>();
        let plain = folder.or(bytes).or(pushed).map(str::to_owned);
        plain.or_else(|| described.and_then(DescribeError::hint))
    })
}

/// What kind of failure it is, in a word for programs.
fn word(error: &anyhow::Error) -> &str {
    for cause in error.chain() {
        if let Some(stop) = cause.downcast_ref::<Stop>() {
            return match stop {
                Stop::Usage(_) => "USAGE",
                Stop::NotFound(_) => "RESOURCE_DOES_NOT_EXIST",
                Stop::TimedOut(_) => "TIMED_OUT",
                Stop::Interrupted(_) => "INTERRUPTED",
                Stop::Deployment(failure) => failure.code,
                Stop::Told => "FAILED",
            };
        }
        if let Some(client) = cause.downcast_ref::<ClientError>() {
            return match client.answer() {
                Some(answer) => &answer.code,
                None => "UNREACHABLE",
            };
        }
        if cause.is::<ScanError>()
            || cause.is::<HashError>()
            || cause.is::<DescribeError>()
            || cause.is::<push::PushError>()
        {
            return "INVALID_FOLDER";
        }
        if cause.is::<TraceError>() || cause.is::<PlantMistake>() || cause.is::<FitError>() {
            return "INVALID_FILE";
        }
    }
    "FAILED"
}

fn number(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if let Some(stop) = cause.downcast_ref::<Stop>() {
            return match stop {
                Stop::Usage(_) => USAGE,
                Stop::NotFound(_) => NOT_FOUND,
                Stop::TimedOut(_) => TIMED_OUT,
                Stop::Interrupted(_) => INTERRUPTED,
                Stop::Deployment(_) | Stop::Told => FAILED,
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
    fn for_programs_an_error_is_one_line_of_json() {
        assert_eq!(
            shown(&api(409)).line(),
            r#"{"error":{"code":"SOME_CODE","message":"deploy iris: it did not work","exit_code":1,"http_status":409,"request_id":"r1"}}"#
        );
        let failed = Stop::Deployment(Box::new(Failure {
            code: "NO_ROOM",
            message: "endpoint iris cannot be placed".into(),
            hint: "ask for less".into(),
            log: None,
        }));
        assert_eq!(
            shown(&failed.into()).line(),
            r#"{"error":{"code":"NO_ROOM","message":"endpoint iris cannot be placed","hint":"ask for less","exit_code":1}}"#
        );
        let words: Vec<String> = [
            anyhow::anyhow!("x"),
            Stop::Usage("x".into()).into(),
            Stop::TimedOut("x".into()).into(),
        ]
        .iter()
        .map(|error| word(error).to_owned())
        .collect();
        assert_eq!(words, ["FAILED", "USAGE", "TIMED_OUT"]);
    }

    #[test]
    fn a_wrong_command_line_is_json_too_where_json_was_asked_for() {
        use clap::Parser as _;
        let wrong = crate::args::Cli::try_parse_from(["stokehold", "get", "my iris"]);
        let shown = shown_clap(&wrong.expect_err("refused"));
        let asked =
            "invalid value 'my iris' for '<NAME>': \"my iris\" is not a valid endpoint name";
        assert!(shown.message.starts_with(asked), "{}", shown.message);
        let line = shown.line();
        assert!(!line.contains("\\n"), "{line}");
    }

    #[test]
    fn a_folder_that_cannot_be_pushed_is_told_with_how_to_mend_it() {
        let error = anyhow::Error::from(ScanError::Empty { path: "m".into() }).context("push m");
        assert_eq!(
            text(&error),
            "error: push m: folder \"m\" holds no files\n\
             hint: name the folder that holds the model's files"
        );
        assert_eq!(word(&error), "INVALID_FOLDER");
    }

    #[test]
    fn a_trace_that_is_wrong_is_told_with_its_line() {
        let wrong = sim::trace::parse(
            "t.csv",
            "t_seconds,rps\n0,-1\n".as_bytes(),
            Default::default(),
        );
        let error = anyhow::Error::from(wrong.expect_err("refused"));
        assert!(
            text(&error).starts_with("error: t.csv:2: "),
            "{}",
            text(&error)
        );
        assert_eq!((word(&error), number(&error)), ("INVALID_FILE", 1));
    }

    #[test]
    fn an_answer_of_the_server_is_shown_with_its_code_and_request() {
        assert_eq!(
            text(&api(409)),
            "error: deploy iris: it did not work\n  SOME_CODE (HTTP 409), request r1"
        );
    }
}
