//! A booted Debian in `systemd-nspawn`: systemd as its first process, a network of its own with
//! loopback only, containers of its own inside.
//!
//! How it is started is what works where containers run in a container, also with cgroup v1: no
//! registration with a systemd of the host (there may be none), all capabilities and the system calls
//! that runc needs. With cgroup v1 the hierarchies are the host's, mounted read-only: they are made
//! writable inside, and the agent's groups lie below a parent of this test's own, so that nothing else
//! on the machine is touched.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const BOOT: Duration = Duration::from_secs(120);
const POWER_OFF: Duration = Duration::from_secs(60);
/// One step inside; the machine may be loaded.
const STEP: Duration = Duration::from_secs(180);

pub(crate) const CGROUPS: &str = "/sys/fs/cgroup";

pub(crate) struct Machine {
    nspawn: Child,
    /// systemd inside, as the host numbers it.
    leader: Pid,
}

impl Machine {
    /// Boots the root as host `name`.
    pub(crate) fn boot(root: &Path, name: &str) -> Self {
        let file = |path: &str, text: &str| {
            std::fs::write(root.join(path), text).expect("file in the root");
        };
        file("etc/hostname", &format!("{name}\n"));
        file(
            "etc/hosts",
            &format!("127.0.0.1 localhost\n127.0.1.1 {name}\n"),
        );
        // A journal in memory: nothing is left on disk, and nothing waits for it.
        std::fs::create_dir_all(root.join("etc/systemd/journald.conf.d")).expect("folder");
        file(
            "etc/systemd/journald.conf.d/test.conf",
            "[Journal]\nStorage=volatile\nRateLimitBurst=0\n",
        );
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let mut command = Command::new("systemd-nspawn");
        command
            .arg("--directory")
            .arg(root)
            .args(["--quiet", "--register=no", "--keep-unit", "--boot"])
            .args(["--private-network", "--console=read-only"])
            .arg(format!("--machine=stokehold-test-{}", std::process::id()))
            .arg(format!("--hostname={name}"))
            .args([
                "--capability=all",
                "--system-call-filter=add_key keyctl bpf",
            ])
            .env(
                "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY",
                if unified { "1" } else { "0" },
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // It must not outlive a test that is killed.
        // SAFETY: prctl is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from)
            });
        }
        let mut nspawn = command.spawn().expect("systemd-nspawn is installed");
        let Some(leader) = leader(&mut nspawn) else {
            let _ = nspawn.kill();
            let _ = nspawn.wait();
            panic!("systemd-nspawn started no systemd in {}", root.display());
        };
        let machine = Self { nspawn, leader };
        machine.within(
            BOOT,
            "until systemctl is-system-running | grep -qE 'running|degraded'; do sleep 0.2; done",
        );
        if !unified {
            machine.run("for h in /sys/fs/cgroup/*/; do mount -o remount,bind,rw \"$h\"; done");
        }
        machine
    }

    /// Runs a script inside, as root; it must succeed. Returns what it printed.
    pub(crate) fn run(&self, script: &str) -> String {
        self.within(STEP, script)
    }

    pub(crate) fn within(&self, limit: Duration, script: &str) -> String {
        let output = self.output(limit, script);
        assert!(
            output.status.success(),
            "in the machine: {script}\n{}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The same, whatever comes of it.
    pub(crate) fn output(&self, limit: Duration, script: &str) -> Output {
        self.command(limit, script).output().expect("nsenter runs")
    }

    /// A script that runs beside the test.
    pub(crate) fn spawn(&self, limit: Duration, script: &str) -> Child {
        let mut command = self.command(limit, script);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("nsenter runs")
    }

    fn command(&self, limit: Duration, script: &str) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=5", &limit.as_secs().to_string()])
            .args(["nsenter", "--target", &self.leader.to_string()])
            .args([
                "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd",
            ])
            .args([
                "env",
                "-i",
                "HOME=/root",
                "LANG=C.UTF-8",
                "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            ])
            .args(["bash", "-euo", "pipefail", "-c", script])
            .stdin(Stdio::null());
        command
    }

    /// Waits until a script succeeds.
    pub(crate) fn eventually(&self, what: &str, script: &str) -> String {
        let deadline = Instant::now() + STEP;
        loop {
            let output = self.output(Duration::from_secs(30), script);
            if output.status.success() {
                return String::from_utf8_lossy(&output.stdout).trim().to_owned();
            }
            assert!(
                Instant::now() < deadline,
                "not within {STEP:?}: {what}: {script}"
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    pub(crate) fn journal(&self) -> String {
        let output = self.output(
            Duration::from_secs(30),
            "journalctl --no-pager --quiet --output=cat --unit 'stokehold-*' --lines=200; \
             echo; journalctl --no-pager --quiet --lines=40; ctr -n stokehold task list",
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn power_off(&mut self) {
        // To systemd this signal is "power off".
        let leader = self.leader.to_string();
        let _ = Command::new("kill")
            .args(["-s", "RTMIN+4", &leader])
            .status();
        let deadline = Instant::now() + POWER_OFF;
        while Instant::now() < deadline {
            if matches!(self.nspawn.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        // All its processes are in one PID namespace, and end with the first.
        let _ = kill(self.leader, Signal::SIGKILL);
        let _ = self.nspawn.kill();
        let _ = self.nspawn.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the machine's journal:\n{}", self.journal());
        }
        self.power_off();
        for group in groups_of_nspawn() {
            clear_group(&group);
        }
    }
}

/// What nspawn makes of the group that it was started in, and leaves there.
fn groups_of_nspawn() -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut found = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let hierarchies: &[&str] = match controllers {
            "" => &["unified", "."],
            "name=systemd" => &["systemd"],
            _ => continue,
        };
        for hierarchy in hierarchies {
            let own = Path::new(CGROUPS).join(hierarchy).join(&path[1..]);
            found.extend(["payload", "supervisor"].map(|name| own.join(name)));
        }
    }
    found
}

/// Removes a control group with those below it, as far as nobody is in them.
pub(crate) fn clear_group(group: &Path) {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            clear_group(&entry.path());
        }
    }
    // One that is in use is not empty, and stays.
    let _ = std::fs::remove_dir(group);
}

/// The first process inside: the child of nspawn that has become systemd.
fn leader(nspawn: &mut Child) -> Option<Pid> {
    let parent = nspawn.id().to_string();
    let deadline = Instant::now() + BOOT;
    while Instant::now() < deadline && matches!(nspawn.try_wait(), Ok(None)) {
        let found = Command::new("pgrep")
            .args(["--parent", &parent, "--exact", "systemd"])
            .output()
            .expect("pgrep is installed");
        let found = String::from_utf8_lossy(&found.stdout).trim().parse();
        if let Ok(pid) = found {
            return Some(Pid::from_raw(pid));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    None
}
