//! What the user sees: results on standard output, everything else on standard error.
//!
//! Tables, colours and moving progress are for terminals. Into a pipe go plain lines, or JSON when
//! it was asked for; `--quiet` leaves results and errors. A program that asked for JSON finds JSON
//! lines on standard error, too, and no remarks.

pub(crate) mod chart;
pub(crate) mod format;
pub(crate) mod progress;
pub(crate) mod table;

use std::io::{self, IsTerminal as _, Write};

use serde::Serialize;

use crate::args::{OutputFormat, Shown};
use progress::Progress;
use table::Table;

/// The reader of standard output has gone away.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub(crate) struct OutputClosed;

pub(crate) struct Output {
    format: OutputFormat,
    quiet: bool,
    /// Of standard output.
    colour: bool,
    /// Of standard output, when it is a terminal.
    width: Option<u16>,
    /// Whether standard error is a terminal.
    lively: bool,
}

impl Output {
    pub(crate) fn new(shown: &Shown) -> Self {
        let plain = shown.no_color || std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        if plain {
            anstream::ColorChoice::Never.write_global();
        }
        let lively = io::stderr().is_terminal();
        let read_by_program = shown.output == OutputFormat::Json && !lively;
        Self {
            format: shown.output,
            quiet: shown.quiet || read_by_program,
            colour: !plain && io::stdout().is_terminal(),
            width: table::terminal_width(),
            lively,
        }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.format == OutputFormat::Json
    }

    /// Whether progress moves in place.
    pub(crate) fn is_lively(&self) -> bool {
        self.lively
    }

    /// One line of the result.
    pub(crate) fn line(&self, text: impl AsRef<str>) -> anyhow::Result<()> {
        write_stdout(text.as_ref().as_bytes(), true)
    }

    /// Bytes of the result as they are.
    pub(crate) fn raw(&self, bytes: &[u8]) -> anyhow::Result<()> {
        write_stdout(bytes, false)
    }

    /// The result as JSON.
    pub(crate) fn json(&self, value: &impl Serialize) -> anyhow::Result<()> {
        self.line(serde_json::to_string_pretty(value)?)
    }

    /// Something was done, which JSON says as a result and a person reads as a remark.
    pub(crate) fn done(&self, value: &impl Serialize, text: impl AsRef<str>) -> anyhow::Result<()> {
        if self.is_json() {
            return self.json(value);
        }
        self.note(text);
        Ok(())
    }

    /// The result: JSON as the server gave it, or a table.
    pub(crate) fn rows(
        &self,
        value: &impl Serialize,
        table: impl FnOnce() -> Table,
    ) -> anyhow::Result<()> {
        if self.is_json() {
            return self.json(value);
        }
        self.table(&table())
    }

    pub(crate) fn table(&self, table: &Table) -> anyhow::Result<()> {
        if table.is_empty() {
            // Standard output stays empty, so that a script counts no rows.
            self.note(table.when_empty());
            return Ok(());
        }
        self.line(table.render(self.width, self.colour))
    }

    /// A remark; not part of the result.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        if !self.quiet {
            anstream::eprintln!("{}", text.as_ref());
        }
    }

    pub(crate) fn warn(&self, text: impl AsRef<str>) {
        let text = text.as_ref();
        if self.is_json() {
            let line = serde_json::json!({"warning": {"message": text}});
            anstream::eprintln!("{line}");
        } else {
            anstream::eprintln!("warning: {text}");
        }
    }

    /// Progress in bytes; `total` may be unknown.
    pub(crate) fn bytes_progress(&self, what: &str, total: Option<u64>) -> Progress {
        Progress::bytes(what, total, self.lively && !self.quiet, self.quiet)
    }

    /// Progress of so many things.
    pub(crate) fn count_progress(&self, what: &str, total: u64) -> Progress {
        Progress::count(what, total, self.lively && !self.quiet, self.quiet)
    }

    /// Progress in words.
    pub(crate) fn spinner(&self) -> Progress {
        Progress::words(self.lively && !self.quiet, self.quiet)
    }
}

fn write_stdout(bytes: &[u8], newline: bool) -> anyhow::Result<()> {
    let mut stdout = anstream::stdout().lock();
    let written = stdout
        .write_all(bytes)
        .and_then(|()| {
            if newline {
                stdout.write_all(b"\n")
            } else {
                Ok(())
            }
        })
        .and_then(|()| stdout.flush());
    match written {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        Err(e) => Err(anyhow::Error::new(e).context("write to standard output")),
        Ok(()) => Ok(()),
    }
}
