//! A containerd of the test's own, and everything that must be gone afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

pub(crate) struct PrivateContainerd {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) cgroup_parent: String,
    child: Option<Child>,
}

impl PrivateContainerd {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("stokehold-agent-")
            .tempdir()?;
        let at = |name: &str| folder.path().join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\noom_score = 0\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.snapshotter.v1.btrfs\", \
             \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.zfs\", \
             \"io.containerd.snapshotter.v1.aufs\"]\n\
             [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = {:?}\n",
            at("root"),
            at("state"),
            at("c.sock"),
            at("c.sock.ttrpc"),
            at("opt"),
        );
        fs::write(folder.path().join("config.toml"), config)?;
        // Tests of one process run at the same time.
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let cgroup_parent = format!("/stokehold-test-{}-{number}", std::process::id());
        let mut started = Self {
            folder,
            cgroup_parent,
            child: None,
        };
        started.run()?;
        Ok(started)
    }

    /// Starts it (again).
    pub(crate) fn run(&mut self) -> anyhow::Result<()> {
        let log = fs::File::create(self.path("containerd.log"))?;
        let child = Command::new("containerd")
            .arg("--config")
            .arg(self.path("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("start containerd")?;
        self.child = Some(child);
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            if begun.elapsed() > Duration::from_secs(60) {
                let log = fs::read_to_string(self.path("containerd.log"))?;
                bail!("containerd does not come up:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("c.sock")
    }

    pub(crate) fn ctr(&self, arguments: &[&str]) -> String {
        let output = Command::new("ctr")
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", "stokehold"])
            .args(arguments)
            .output();
        output.map_or_else(
            |e| e.to_string(),
            |output| String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    }

    /// Mounts of the host that lie below the test's folder, containerd's own left out.
    pub(crate) fn mounts_below(&self, name: &str) -> Vec<String> {
        mounts_below(&self.path(name))
    }

    /// Processes of the host whose command line names the test's folder.
    pub(crate) fn shims(&self) -> Vec<u32> {
        let needle = self.socket().display().to_string();
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        processes
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                line.contains("containerd-shim") && line.contains(&needle)
            })
            .collect()
    }

    /// Control groups of replicas that are there.
    pub(crate) fn replica_cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for hierarchy in hierarchies() {
            let instance = hierarchy
                .join(self.cgroup_parent.trim_start_matches('/'))
                .join("test");
            let groups = fs::read_dir(instance).into_iter().flatten().flatten();
            found.extend(groups.map(|e| e.path()).filter(|path| path.is_dir()));
        }
        found
    }
}

fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn mounts_below(folder: &Path) -> Vec<String> {
    let prefix = folder.display().to_string();
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|target| target.starts_with(&prefix))
        .map(str::to_owned)
        .collect()
}

impl Drop for PrivateContainerd {
    /// Also after a test that failed: nothing of it may stay on the machine.
    fn drop(&mut self) {
        if self.child.is_none() {
            let _ = self.run();
        }
        for id in self.ctr(&["tasks", "ls", "-q"]).split_whitespace() {
            self.ctr(&["tasks", "kill", "-a", "-s", "SIGKILL", id]);
        }
        let begun = Instant::now();
        loop {
            let tasks = self.ctr(&["tasks", "ls", "-q"]);
            for id in tasks.split_whitespace() {
                self.ctr(&["tasks", "rm", "-f", id]);
            }
            if tasks.trim().is_empty() || begun.elapsed() > Duration::from_secs(10) {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        for id in self.ctr(&["containers", "ls", "-q"]).split_whitespace() {
            self.ctr(&["containers", "rm", id]);
        }
        for pid in self.shims() {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX));
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        if let Some(child) = &self.child {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
        let mut mounts = mounts_below(self.folder.path());
        mounts.reverse();
        for target in mounts {
            let flags = nix::mount::MntFlags::MNT_DETACH;
            let _ = nix::mount::umount2(target.as_str(), flags);
        }
        for hierarchy in hierarchies() {
            let parent = hierarchy.join(self.cgroup_parent.trim_start_matches('/'));
            let groups = fs::read_dir(parent.join("test"))
                .into_iter()
                .flatten()
                .flatten();
            for group in groups {
                let _ = fs::remove_dir(group.path());
            }
            let _ = fs::remove_dir(parent.join("test"));
            let _ = fs::remove_dir(parent);
        }
    }
}
