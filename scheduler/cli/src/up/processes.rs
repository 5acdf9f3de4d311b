//! Finding and ending processes, by what `/proc` says of them rather than by a number alone: a
//! number may have gone to another process since it was written down.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// After SIGKILL only a process stuck in the kernel stays longer.
const AFTER_KILL: Duration = Duration::from_secs(10);

/// A process and when it started, in clock ticks since the machine did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) start_ticks: u64,
}

impl Process {
    /// The process that has this number now; `None` for none, and for one that has ended and was
    /// not waited for.
    pub(super) fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, start_ticks) = parse_stat(&stat)?;
        (!matches!(state, 'Z' | 'X')).then_some(Self { pid, start_ticks })
    }

    pub(super) fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    pub(super) fn signal(&self, signal: Signal) {
        if self.is_alive() {
            // It may end in between: then there is nothing to do.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// The program's file name and its arguments.
    pub(super) fn command(&self) -> Option<(String, Vec<String>)> {
        let exe = fs::read_link(format!("/proc/{}/exe", self.pid)).ok()?;
        let name = exe.file_name()?.to_string_lossy();
        // An upgrade replaces the file under a running program.
        let name = name.strip_suffix(" (deleted)").unwrap_or(&name).to_owned();
        let line = fs::read(format!("/proc/{}/cmdline", self.pid)).ok()?;
        let arguments = line
            .split(|&b| b == 0)
            .map(|part| String::from_utf8_lossy(part).into_owned())
            .collect();
        Some((name, arguments))
    }
}

/// State and start time. The name before them may hold spaces and brackets.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // The state is field 3 of proc(5), the start time field 22.
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

/// All processes of the program `name` that were given `argument`.
pub(super) fn find(name: &str, argument: &Path) -> Vec<Process> {
    find_by(name, |given| given == argument)
}

/// All processes of the program `name` that were given a path at or under `folder`.
pub(super) fn find_under(name: &str, folder: &Path) -> Vec<Process> {
    find_by(name, |given| given.starts_with(folder))
}

fn find_by(name: &str, wanted: impl Fn(&Path) -> bool) -> Vec<Process> {
    all()
        .filter(|process| {
            process.command().is_some_and(|(program, arguments)| {
                program == name && arguments.iter().any(|given| wanted(Path::new(given)))
            })
        })
        .collect()
}

fn all() -> impl Iterator<Item = Process> {
    let me = std::process::id();
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(move |pid| u32::try_from(*pid) != Ok(me))
        .filter_map(Process::of)
}

/// SIGTERM, `grace`, SIGKILL. Returns those that are there even then.
pub(super) fn stop(processes: &[Process], grace: Duration) -> Vec<Process> {
    for process in processes {
        process.signal(Signal::SIGTERM);
    }
    let stubborn = wait_gone(processes, grace);
    for process in &stubborn {
        process.signal(Signal::SIGKILL);
    }
    wait_gone(&stubborn, AFTER_KILL)
}

/// Returns those that are there at the end.
pub(super) fn wait_gone(processes: &[Process], patience: Duration) -> Vec<Process> {
    let deadline = Instant::now() + patience;
    loop {
        let left: Vec<Process> = processes
            .iter()
            .copied()
            .filter(Process::is_alive)
            .collect();
        if left.is_empty() || Instant::now() >= deadline {
            return left;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2";
        assert_eq!(parse_stat(stat), Some(('S', 98765)));
        assert_eq!(parse_stat("42 (x"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn a_process_is_found_by_program_and_argument_and_another_start_is_another_process() {
        let mut child = std::process::Command::new("sleep")
            .args(["600", "--"])
            .spawn()
            .expect("sleep");
        let process = Process::of(child.id() as i32).expect("it runs");
        let found = find("sleep", Path::new("--"));
        // `sleep` may be a link to a program of many names.
        let named = process.command().expect("a command").0 == "sleep";
        assert!(found.contains(&process) || !named);
        let earlier = Process {
            start_ticks: process.start_ticks.wrapping_sub(1),
            ..process
        };
        assert!(!earlier.is_alive());
        earlier.signal(Signal::SIGKILL);
        assert!(process.is_alive());
        process.signal(Signal::SIGKILL);
        child.wait().expect("waited");
        assert!(!process.is_alive());
    }
}
