//! One program that the supervisor keeps running.
//!
//! ```text
//! Stopped ──start──► Running ──it ends──► Waiting ──time──► Running
//!    ▲                  └──────stop──────────┴─────stop─────► Stopped
//! ```
//! A child is in a process group of its own, so that Ctrl-C reaches the supervisor alone, and dies
//! neither with the supervisor nor because of it.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::accounts::Account;
use super::processes::Process;
use super::programs;

const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// A program that ran so long has recovered from whatever ended it before.
const RECOVERED: Duration = Duration::from_secs(60);

/// A log is at most twice this: the file, and `.1`, what was in it before.
const MAX_LOG_BYTES: u64 = 32 << 20;

const LOOK_AGAIN: Duration = Duration::from_millis(50);

#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) path: PathBuf,
    pub(super) arguments: Vec<OsString>,
    /// `None`: root.
    pub(super) account: Option<Account>,
    pub(super) log: PathBuf,
    /// Between SIGTERM and SIGKILL.
    pub(super) grace: Duration,
}

impl Program {
    /// The command as this program's user, with nothing of the caller's environment that it does
    /// not need.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command
            .env_clear()
            .env("PATH", programs::path_variable())
            .current_dir("/")
            .stdin(Stdio::null());
        for kept in ["LD_LIBRARY_PATH", "RUST_BACKTRACE", "RUST_LOG"] {
            if let Some(value) = std::env::var_os(kept) {
                command.env(kept, value);
            }
        }
        if let Some(account) = self.account {
            // The standard library drops the supplementary groups along with root.
            command.gid(account.gid).uid(account.uid);
        }
        command
    }
}

pub(super) struct Service {
    program: Program,
    state: State,
    failures: u32,
    /// Where the log stood when the program was last started.
    log_from_bytes: u64,
}

enum State {
    Stopped,
    Running { child: Child, since: Instant },
    Waiting { until: Instant },
}

/// Something to tell.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Happened {
    Nothing,
    Ended { why: String, again_in: Duration },
    Started,
    NotStarted { why: String },
}

impl Service {
    pub(super) fn new(program: Program) -> Self {
        Self {
            program,
            state: State::Stopped,
            failures: 0,
            log_from_bytes: 0,
        }
    }

    pub(super) fn name(&self) -> &'static str {
        self.program.name
    }

    pub(super) fn program(&self) -> &Program {
        &self.program
    }

    pub(super) fn log(&self) -> &Path {
        &self.program.log
    }

    /// What it wrote last since it was last started.
    pub(super) fn last_lines(&self, lines: usize) -> Vec<String> {
        last_lines(&self.program.log, self.log_from_bytes, lines)
    }

    pub(super) fn process(&self) -> Option<Process> {
        match &self.state {
            State::Running { child, .. } => Process::of(i32::try_from(child.id()).ok()?),
            State::Stopped | State::Waiting { .. } => None,
        }
    }

    pub(super) fn start(&mut self) -> io::Result<()> {
        let (out, err) = open_log(&self.program.log)?;
        self.log_from_bytes = out.metadata()?.len();
        let mut command = self.program.command();
        command
            .args(&self.program.arguments)
            .process_group(0)
            .stdout(out)
            .stderr(err);
        self.state = State::Running {
            child: command.spawn()?,
            since: Instant::now(),
        };
        Ok(())
    }

    /// Looks at the child, and starts it again when its time has come.
    pub(super) fn tick(&mut self, now: Instant) -> Happened {
        match &mut self.state {
            State::Stopped => Happened::Nothing,
            State::Running { child, since } => match child.try_wait() {
                Ok(None) => Happened::Nothing,
                Ok(Some(status)) => {
                    let lived = now.saturating_duration_since(*since);
                    self.ended(describe(status), lived, now)
                }
                Err(error) => {
                    let lived = now.saturating_duration_since(*since);
                    self.ended(format!("it cannot be waited for: {error}"), lived, now)
                }
            },
            State::Waiting { until } if now < *until => Happened::Nothing,
            State::Waiting { .. } => match self.start() {
                Ok(()) => Happened::Started,
                Err(error) => {
                    self.failures = self.failures.saturating_add(1);
                    self.state = State::Waiting {
                        until: now + wait(self.failures),
                    };
                    Happened::NotStarted {
                        why: error.to_string(),
                    }
                }
            },
        }
    }

    fn ended(&mut self, why: String, lived: Duration, now: Instant) -> Happened {
        self.failures = if lived >= RECOVERED {
            1
        } else {
            self.failures.saturating_add(1)
        };
        let again_in = wait(self.failures);
        self.state = State::Waiting {
            until: now + again_in,
        };
        Happened::Ended { why, again_in }
    }

    /// SIGTERM, the program's grace, SIGKILL.
    pub(super) fn stop(&mut self) {
        let State::Running { child, .. } = &mut self.state else {
            self.state = State::Stopped;
            return;
        };
        if let Some(process) = i32::try_from(child.id()).ok().and_then(Process::of) {
            process.signal(Signal::SIGTERM);
        }
        let deadline = Instant::now() + self.program.grace;
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(LOOK_AGAIN);
        }
        // Both do nothing to a child that has ended.
        let _ = child.kill();
        let _ = child.wait();
        self.state = State::Stopped;
    }

    /// Keeps the log of a long life small. The program writes on, at the new end.
    pub(super) fn cap_log(&self) -> io::Result<()> {
        let log = &self.program.log;
        if std::fs::metadata(log)?.len() <= MAX_LOG_BYTES {
            return Ok(());
        }
        std::fs::copy(log, older(log))?;
        OpenOptions::new().write(true).open(log)?.set_len(0)
    }
}

/// 0.2 s, doubling to 10 s.
fn wait(failures: u32) -> Duration {
    FIRST_WAIT
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(LONGEST_WAIT)
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(number)) => Signal::try_from(number)
            .map_or_else(|_| format!("signal {number}"), |signal| signal.to_string()),
        (None, None) => status.to_string(),
    }
}

fn older(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// Opened by root for appending: the program itself cannot reach the folder.
pub(super) fn open_log(log: &Path) -> io::Result<(File, File)> {
    match std::fs::metadata(log) {
        Ok(meta) if meta.len() > MAX_LOG_BYTES => std::fs::rename(log, older(log))?,
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Ok(_) | Err(_) => {}
    }
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(log)?;
    Ok((file.try_clone()?, file))
}

/// The last lines of a log from a position on, for an error message.
pub(super) fn last_lines(log: &Path, after_bytes: u64, lines: usize) -> Vec<String> {
    const WINDOW: u64 = 16 << 10;
    let read = || -> io::Result<Vec<u8>> {
        use std::io::{Read as _, Seek as _, SeekFrom};
        let mut file = File::open(log)?;
        let from = file
            .metadata()?
            .len()
            .saturating_sub(WINDOW)
            .max(after_bytes);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(WINDOW).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..]
        .iter()
        .map(|line| (*line).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(folder: &tempfile::TempDir, script: &str) -> Service {
        Service::new(Program {
            name: "script",
            path: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            account: None,
            log: folder.path().join("script.log"),
            grace: Duration::from_secs(5),
        })
    }

    fn eventually(what: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !what() {
            assert!(Instant::now() < deadline, "it did not come about");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn waits_double_from_a_fifth_of_a_second_to_ten_seconds() {
        let waits: Vec<u128> = (1..=8).map(|n| wait(n).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(wait(u32::MAX), LONGEST_WAIT);
    }

    #[test]
    fn a_program_that_ends_is_started_again_after_its_wait() {
        let folder = tempfile::tempdir().expect("folder");
        let mut service = service(&folder, "echo once; exit 7");
        let started = Instant::now();
        service.start().expect("started");
        eventually(|| last_lines(service.log(), 0, 1) == ["once"] && service.process().is_none());
        let ended = service.tick(started);
        assert_eq!(
            ended,
            Happened::Ended {
                why: "exit 7".into(),
                again_in: FIRST_WAIT
            }
        );
        assert_eq!(service.tick(started), Happened::Nothing);
        assert_eq!(service.tick(started + FIRST_WAIT), Happened::Started);
        service.stop();
        assert_eq!(service.tick(started + LONGEST_WAIT), Happened::Nothing);
    }

    #[test]
    fn a_long_life_forgives_earlier_failures() {
        let folder = tempfile::tempdir().expect("folder");
        let mut service = service(&folder, "true");
        let now = Instant::now();
        for _ in 0..5 {
            service.ended("exit 1".into(), Duration::ZERO, now);
        }
        assert_eq!(
            service.ended("exit 1".into(), RECOVERED, now),
            Happened::Ended {
                why: "exit 1".into(),
                again_in: FIRST_WAIT
            }
        );
    }

    #[test]
    fn only_the_last_lines_of_a_log_are_shown() {
        let folder = tempfile::tempdir().expect("folder");
        let log = folder.path().join("x.log");
        assert!(last_lines(&log, 0, 3).is_empty());
        std::fs::write(&log, "a\nb\nc\nd\n").expect("write");
        assert_eq!(last_lines(&log, 0, 2), ["c", "d"]);
        assert_eq!(last_lines(&log, 6, 2), ["d"]);
    }
}
