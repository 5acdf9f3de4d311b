//! A second node on the same machine: own folders, own containerd namespace, own agent and gateway.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cluster::{Cluster, free_ports};
use super::{PATIENCE, eventually};

pub(crate) struct SecondNode {
    pub(crate) name: String,
    base: PathBuf,
    bin: PathBuf,
    agent: Option<Child>,
    gateway: Option<Child>,
    gateway_ids: (u32, u32),
    pub(crate) client_port: u16,
    /// How far its daemons' clocks are off, as faketime takes it.
    clock: Option<&'static str>,
}

/// Where Debian's `faketime` keeps what changes the clocks of the programs that load it.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

impl SecondNode {
    /// Joins with a fresh token and starts both daemons.
    pub(crate) fn join(cluster: &mut Cluster, name: &str) -> Self {
        Self::join_with(cluster, name, None)
    }

    /// The same on a machine whose clock is off: `+1h`, `-1h`.
    pub(crate) fn join_with_clock(cluster: &mut Cluster, name: &str, off: &'static str) -> Self {
        Self::join_with(cluster, name, Some(off))
    }

    fn join_with(cluster: &mut Cluster, name: &str, clock: Option<&'static str>) -> Self {
        let ports = free_ports();
        let base = cluster.base().join(name);
        let logs = base.join("logs");
        std::fs::create_dir_all(&logs).expect("folder");
        cluster.watch_logs(logs);
        let mut node = Self {
            name: name.to_owned(),
            gateway_ids: ids_of(cluster.daemon("gateway").expect("gateway")),
            base,
            bin: cluster.base().join("bin"),
            agent: None,
            gateway: None,
            client_port: ports,
            clock,
        };
        node.configure(cluster, ports);
        let token = cluster.cli_json(&["node", "token"]);
        let token = token["token"].as_str().expect("token").to_owned();
        node.join_as("agent", &token);
        node.join_as("gateway", &token);
        node.start();
        node
    }

    fn path(&self, name: &str) -> String {
        self.base.join(name).display().to_string()
    }

    fn configure(&self, cluster: &Cluster, ports: u16) {
        let (_, mut agent) = cluster.config_of("agent");
        let (_, mut gateway) = cluster.config_of("gateway");
        let set = |table: &mut toml::Table, key: &str, value: String| {
            table.insert(key.to_owned(), toml::Value::String(value));
        };
        for table in [&mut agent, &mut gateway] {
            table.remove("scheduler");
            set(table, "node", self.name.clone());
            set(table, "run_dir", self.path("run"));
            set(table, "log_dir", self.path("replica-logs"));
        }
        set(&mut agent, "pki_dir", self.path("pki-agent"));
        set(&mut agent, "state_dir", self.path("state-agent"));
        set(&mut agent, "cache_dir", self.path("models"));
        set(
            &mut agent,
            "containerd_namespace",
            format!("stokehold-{}", self.name),
        );
        set(
            &mut agent,
            "cgroup_parent",
            format!("/stokehold-{}", self.name),
        );
        set(
            &mut agent,
            "admin_listen",
            format!("127.0.0.1:{}", ports + 2),
        );
        set(&mut gateway, "pki_dir", self.path("pki-gateway"));
        set(&mut gateway, "state_dir", self.path("state-gateway"));
        set(&mut gateway, "listen", format!("127.0.0.1:{ports}"));
        set(
            &mut gateway,
            "peer_listen",
            format!("127.0.0.1:{}", ports + 1),
        );
        set(
            &mut gateway,
            "admin_listen",
            format!("127.0.0.1:{}", ports + 3),
        );
        for (name, table) in [("agent", agent), ("gateway", gateway)] {
            std::fs::write(self.base.join(format!("{name}.toml")), table.to_string())
                .expect("configuration");
        }
        let (uid, gid) = self.gateway_ids;
        for folder in ["pki-gateway", "state-gateway"] {
            let folder = self.base.join(folder);
            std::fs::create_dir_all(&folder).expect("folder");
            std::os::unix::fs::chown(&folder, Some(uid), Some(gid)).expect("owner");
        }
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(&self.base, mode).expect("mode");
    }

    fn program(&self, which: &str) -> Command {
        let mut program = Command::new(self.bin.join(format!("stokehold-{which}")));
        program.args(["--config", &self.path(&format!("{which}.toml"))]);
        program.env("NO_COLOR", "1");
        if let Some(off) = self.clock {
            program.env("LD_PRELOAD", FAKETIME).env("FAKETIME", off);
            program.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        if which == "gateway" {
            let (uid, gid) = self.gateway_ids;
            program.uid(uid).gid(gid);
        }
        program
    }

    fn join_as(&self, which: &str, token: &str) {
        let mut joining = self
            .program(which)
            .args(["join", "--token-file", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("join starts");
        joining
            .stdin
            .take()
            .expect("stdin")
            .write_all(token.as_bytes())
            .expect("token");
        let output = joining.wait_with_output().expect("join ends");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "join as {which}: {said}");
    }

    fn spawn(&self, which: &str) -> Child {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.base.join("logs").join(format!("{which}.log")))
            .expect("log");
        self.program(which)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("daemon starts")
    }

    pub(crate) fn start(&mut self) {
        self.agent = Some(self.spawn("agent"));
        self.gateway = Some(self.spawn("gateway"));
    }

    /// The node falls silent: nothing of it is told to stop.
    pub(crate) fn kill(&mut self) {
        for daemon in [self.agent.take(), self.gateway.take()] {
            let mut daemon = daemon.expect("runs");
            daemon.kill().expect("killed");
            daemon.wait().expect("reaped");
        }
    }

    /// Stops the daemons and whatever replicas they had, so that nothing is left behind.
    pub(crate) fn stop(mut self, cluster: &mut Cluster) {
        // It is silent from here on, which the scheduler may notice before it is taken down itself.
        cluster.announce(&format!(
            "node lost: silent for more than 15 s node={}",
            self.name
        ));
        for daemon in [self.gateway.take(), self.agent.take()]
            .into_iter()
            .flatten()
        {
            stop(daemon);
        }
        let (_, agent) = cluster.config_of("agent");
        let socket = agent["containerd"].as_str().expect("containerd").to_owned();
        let namespace = format!("stokehold-{}", self.name);
        let ctr = |arguments: &[&str]| {
            let mut all = vec!["-a", &socket, "-n", &namespace];
            all.extend(arguments);
            let output = Command::new("ctr").args(all).output().expect("ctr runs");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        for task in ctr(&["task", "ls", "-q"]).split_whitespace() {
            ctr(&["task", "rm", "-f", task]);
        }
        for container in ctr(&["container", "ls", "-q"]).split_whitespace() {
            ctr(&["container", "rm", container]);
        }
        for mount in super::traces::mounts(&self.base) {
            nix::mount::umount2(mount.as_str(), nix::mount::MntFlags::MNT_DETACH)
                .expect("unmounted");
        }
        eventually("the second node's cgroups are empty", || {
            let parent = format!("stokehold-{}", self.name);
            for (_, path) in cgroup_roots(&parent) {
                remove_tree(&path);
            }
            cgroup_roots(&parent).is_empty().then_some(())
        });
    }
}

fn cgroup_roots(parent: &str) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten();
    let of = |controller: PathBuf| {
        let path = controller.join(parent);
        path.is_dir()
            .then(|| (controller.display().to_string(), path))
    };
    let mut found: Vec<_> = entries
        .map(|e| e.path())
        .filter(|p| p.is_dir())
        .filter_map(of)
        .collect();
    found.extend(of(PathBuf::from("/sys/fs/cgroup")));
    found
}

/// cgroups are removed from the leaves up; one that is still busy is tried again by the caller.
fn remove_tree(folder: &std::path::Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(folder);
}

fn stop(mut daemon: Child) {
    kill(Pid::from_raw(daemon.id() as i32), Signal::SIGTERM).expect("signalled");
    let deadline = std::time::Instant::now() + PATIENCE;
    while daemon.try_wait().expect("waited").is_none() {
        if std::time::Instant::now() > deadline {
            daemon.kill().expect("killed");
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// The user and group that a process runs as.
fn ids_of(pid: i32) -> (u32, u32) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let id = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name)).expect("line");
        line.split_whitespace()
            .nth(1)
            .expect("id")
            .parse()
            .expect("number")
    };
    (id("Uid:"), id("Gid:"))
}

impl Drop for SecondNode {
    fn drop(&mut self) {
        for mut daemon in [self.gateway.take(), self.agent.take()]
            .into_iter()
            .flatten()
        {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}
