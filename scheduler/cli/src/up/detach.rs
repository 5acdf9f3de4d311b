//! `up --detach`: a supervisor in the background, and the wait until it is ready.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::UpArgs;
use super::layout::Layout;
use super::processes::Process;
use super::service::{last_lines, open_log};
use super::state::{Phase, Record};
use super::summary;
use crate::exit::Stop;
use crate::output::Output;

const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Beyond the supervisor's own time: what it needs to clean up after a failure.
const MARGIN: Duration = Duration::from_secs(90);

const LOG_LINES: usize = 30;

pub(super) fn launch(layout: &Layout, args: &UpArgs, output: &Output) -> anyhow::Result<()> {
    let logs = layout.data.join("logs");
    daemon::files::private_dir(&logs, 0o755)
        .with_context(|| format!("make folder {}", logs.display()))?;
    let log = layout.log("up");
    let (out, err) = open_log(&log).with_context(|| format!("open {}", log.display()))?;
    let before = out.metadata()?.len();
    let mut child = Command::new(std::env::current_exe().context("find this program")?)
        .args(arguments(layout, args))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .context("start the supervisor")?;
    // The supervisor leaves the terminal's session as its first act.
    let record = match wait(layout, args, &mut child, output)? {
        Some(record) => record,
        None => {
            for line in last_lines(&log, before, LOG_LINES) {
                anstream::eprintln!("{line}");
            }
            return Err(Stop::Told.into());
        }
    };
    if !record.message.is_empty() {
        output.warn(&record.message);
    }
    summary::show(layout, &record, output)
}

/// `None`: the supervisor has ended.
fn wait(
    layout: &Layout,
    args: &UpArgs,
    child: &mut Child,
    output: &Output,
) -> anyhow::Result<Option<Record>> {
    let process = Process::of(i32::try_from(child.id())?);
    let deadline = Instant::now() + args.timeout + MARGIN;
    let progress = output.spinner();
    let mut said = String::new();
    loop {
        let ended = child.try_wait()?;
        let record = Record::load(layout).filter(|record| Some(record.supervisor) == process);
        if let Some(record) = record {
            if record.phase == Phase::Ready {
                return Ok(Some(record));
            }
            if record.phase == Phase::Starting && record.message != said {
                progress.line(&record.message);
                said = record.message;
            }
        }
        if ended.is_some() {
            return Ok(None);
        }
        if Instant::now() >= deadline {
            return Err(Stop::TimedOut(format!(
                "stokehold is not up yet; see {}",
                layout.log("up").display()
            ))
            .into());
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// The supervisor's command line: the same instance, resolved.
fn arguments(layout: &Layout, args: &UpArgs) -> Vec<std::ffi::OsString> {
    let mut line: Vec<std::ffi::OsString> = vec!["up".into(), "--supervise".into()];
    let mut add = |flag: &str, value: std::ffi::OsString| {
        line.push(flag.into());
        line.push(value);
    };
    add("--data", layout.data.clone().into());
    add("--listen", args.listen.to_string().into());
    add(
        "--timeout",
        format!("{}ms", args.timeout.as_millis()).into(),
    );
    if let Some(node) = &args.node {
        add("--node", node.to_string().into());
    }
    if let Some(port) = args.port_base {
        add("--port-base", port.to_string().into());
    }
    for setting in &args.settings {
        add("--set", setting.to_string().into());
    }
    // It starts in `/`, where a relative path would be another.
    let absolute = |path: &std::path::Path| std::path::absolute(path).unwrap_or(path.to_owned());
    if let Some(socket) = &args.containerd {
        add("--containerd", absolute(socket).into());
    }
    if let Some(runtimes) = &args.runtimes {
        add("--runtimes", absolute(runtimes).into());
    }
    line
}

/// The instance lives: say so, and wait if it is still coming up.
pub(super) fn already_up(
    layout: &Layout,
    mut record: Record,
    args: &UpArgs,
    output: &Output,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + args.timeout;
    while record.phase == Phase::Starting && Instant::now() < deadline {
        std::thread::sleep(LOOK_AGAIN);
        record = match super::state::running(layout)? {
            Some(record) => record,
            None => anyhow::bail!(
                "the other `stokehold up` has ended; see {}",
                layout.log("up").display()
            ),
        };
    }
    if record.phase != Phase::Ready {
        return Err(Stop::TimedOut(format!(
            "another `stokehold up` (process {}) is {:?}",
            record.supervisor.pid, record.phase
        ))
        .into());
    }
    if !args.settings.is_empty() {
        output.warn(
            "--set changes nothing of what is up already: `stokehold down --keep-data` first",
        );
    }
    output.note(format!(
        "it is up already (supervisor: process {})",
        record.supervisor.pid
    ));
    summary::show(layout, &record, output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command as Parsed};
    use clap::Parser as _;

    fn up(line: &[&str]) -> UpArgs {
        let line = ["stokehold", "up"].iter().chain(line);
        match Cli::try_parse_from(line).expect("parsed").command {
            Parsed::Up(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_supervisor_is_given_every_choice_with_absolute_paths() {
        let args = up(&[
            "--detach",
            "--node",
            "n1",
            "--port-base",
            "20000",
            "--listen",
            "0.0.0.0",
            "--containerd",
            "/run/c.sock",
            "--runtimes",
            "/r",
            "--set",
            "scheduler.autoscaler.hold_min_seconds=20",
            "--timeout",
            "30s",
        ]);
        let layout = Layout::of(std::path::Path::new("/x/up")).expect("layout");
        let line = arguments(&layout, &args);
        let text: Vec<&str> = line.iter().filter_map(|part| part.to_str()).collect();
        assert_eq!(
            text.join(" "),
            "up --supervise --data /x/up --listen 0.0.0.0 --timeout 30000ms --node n1 \
             --port-base 20000 --set scheduler.autoscaler.hold_min_seconds=20 --containerd /run/c.sock --runtimes /r"
        );
        let parsed = up(&text[1..]);
        assert!(parsed.supervise && !parsed.detach);
    }

    #[test]
    fn keep_data_and_purge_exclude_each_other() {
        let line = ["stokehold", "down", "--keep-data", "--purge"];
        assert!(Cli::try_parse_from(line).is_err());
    }
}
