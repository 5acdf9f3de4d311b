//! Writes what a replica prints into size-capped files, and never holds the replica up.
//!
//! containerd's shim starts this as root, as the `binary://` logger of a task: fd 3 is the pipe of the
//! replica's stdout, fd 4 of its stderr, and closing fd 5 says "ready". A logger that stops reading blocks
//! the replica once a pipe is full, and one that dies lets it write into a broken pipe; containerd
//! notices neither. Hence what always holds here:
//!
//! * Both pipes are read until their end, whatever happens to the disk. A disk that refuses, or does
//!   not answer, costs lines, which are counted and owned up to in the log once it works again.
//! * Memory is bounded: one piece of a line per pipe, and a few batches between reading and writing.
//! * Nothing the replica wrote is read before root is given up for good.
//! * Every line of the files is one whole JSON object (see [`record`]).
//!
//! Two threads: this one reads ([`drain`]), the other one writes ([`journal`]), because a write to a
//! disk that hangs can't be polled. Not here: making and removing the folder (the agent's), reading logs.
#![deny(unsafe_code)]

mod args;
mod drain;
mod inherited;
mod journal;
mod lines;
mod privileges;
mod record;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use args::Args;
use inherited::Pipes;
use journal::Journal;

const USAGE: &str = "\
usage: stokehold-logshim dir FOLDER uid UID gid GID [max-bytes BYTES] [files COUNT]

containerd starts this program; nobody else needs to. As the log URI of a task:
  binary:///usr/libexec/stokehold/stokehold-logshim?dir=FOLDER&uid=UID&gid=GID

  dir        absolute path of the folder to write current.jsonl and its older siblings to
  uid, gid   whom to run as; that user must be able to write to the folder
  max-bytes  size at which a file is rotated (16777216)
  files      how many files to keep, the current one included (4)
";

pub fn cli() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match arguments.first().and_then(|first| first.to_str()) {
        Some("--help" | "-h") => return print(USAGE),
        Some("--version" | "-V") => {
            return print(concat!(
                "stokehold-logshim ",
                env!("CARGO_PKG_VERSION"),
                "\n"
            ));
        }
        _ => {}
    }
    let args = match Args::parse(&arguments) {
        Ok(args) => args,
        Err(err) => {
            complain(&format!("{err}\n\n{USAGE}"));
            return ExitCode::from(2);
        }
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(StartError::NotALogger(fd)) => {
            complain(&format!(
                "fd {fd} is not open: let containerd start this program, as a binary:// logger\n\n{USAGE}"
            ));
            ExitCode::from(2)
        }
        Err(StartError::Privileges(step, errno)) => {
            complain(&format!(
                "{step} for uid {} gid {}: {errno}",
                args.uid, args.gid
            ));
            ExitCode::FAILURE
        }
    }
}

/// What keeps the logger from starting. Once it has started, nothing stops it but the pipes' end.
enum StartError {
    NotALogger(i32),
    Privileges(&'static str, nix::Error),
}

fn run(args: &Args) -> Result<(), StartError> {
    let Pipes {
        stdout,
        stderr,
        ready,
    } = inherited::take().map_err(StartError::NotALogger)?;
    privileges::drop_to(args.uid, args.gid)
        .map_err(|(step, errno)| StartError::Privileges(step, errno))?;

    let mut journal = Journal::new(args.dir.clone(), args.limits);
    // Not fatal, see above: the folder may come, and until then lines are dropped.
    if let Err(err) = journal.check() {
        complain(&format!(
            "{}: {err}: lines are dropped until it can be written",
            args.dir.display()
        ));
    }
    drop(ready);

    if let Some(lost) = drain::run(stdout, stderr, journal) {
        complain(&format!("{}: {lost}", args.dir.display()));
    }
    Ok(())
}

/// Tells whoever started us, as far as they listen: containerd gives us /dev/null.
fn complain(message: &str) {
    let _ = writeln!(
        std::io::stderr(),
        "stokehold-logshim: {}",
        message.trim_end()
    );
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
