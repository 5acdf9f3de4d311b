//! A cluster of one machine, started by `stokehold up` and taken down by `stokehold down`.

use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::programs::{images, install};
use super::{eventually, traces};

/// Systems start one after the other: two cores carry one at a time.
static ALONE: Mutex<()> = Mutex::new(());

pub(crate) struct Cluster {
    base: tempfile::TempDir,
    port_base: u16,
    settings: Vec<String>,
    announced: Vec<String>,
    extra_logs: Vec<PathBuf>,
    finished: bool,
    pub(crate) runtime: tokio::runtime::Runtime,
    _alone: MutexGuard<'static, ()>,
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }
}

impl Cluster {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// With settings of the daemons (`up --set`).
    pub(crate) fn start_with(settings: &[&str]) -> Self {
        Self::start_from(settings, &[])
    }

    /// With runtime templates beside the shipped ones: `(file, contents)`.
    pub(crate) fn start_with_templates(templates: &[(&str, String)]) -> Self {
        Self::start_from(&[], templates)
    }

    fn start_from(settings: &[&str], templates: &[(&str, String)]) -> Self {
        let alone = alone();
        assert!(
            nix::unistd::geteuid().is_root(),
            "the end-to-end tests need root, for containers"
        );
        let base = tempfile::Builder::new()
            .prefix("shk")
            .tempdir()
            .expect("folder");
        let cluster = Self {
            port_base: free_ports(),
            base,
            settings: settings.iter().map(|text| (*text).to_owned()).collect(),
            announced: Vec::new(),
            extra_logs: Vec::new(),
            finished: false,
            runtime: tokio::runtime::Runtime::new().expect("runtime"),
            _alone: alone,
        };
        std::fs::create_dir_all(cluster.home()).expect("home");
        install(cluster.base());
        for (file, text) in templates {
            let folder = cluster.base().join("share/stokehold/runtimes");
            std::fs::write(folder.join(file), text).expect("template");
        }
        cluster.up();
        cluster
    }

    pub(crate) fn up(&self) {
        let ports = self.port_base.to_string();
        let data = self.data().display().to_string();
        let mut arguments = vec![
            "up",
            "--data",
            &data,
            "--detach",
            "--port-base",
            &ports,
            "--node",
            "n1",
        ];
        for setting in &self.settings {
            arguments.extend(["--set", setting]);
        }
        self.cli(&arguments);
    }

    pub(crate) fn base(&self) -> &Path {
        self.base.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.base.path().join("data")
    }

    /// One of the programs under test.
    pub(crate) fn command(&self, program: &str) -> Command {
        Command::new(self.base().join("bin").join(program))
    }

    fn home(&self) -> PathBuf {
        self.base.path().join("home")
    }

    /// Runs `stokehold`, whatever comes of it.
    pub(crate) fn try_cli(&self, arguments: &[&str]) -> Output {
        self.cli_command(arguments)
            .output()
            .expect("stokehold runs")
    }

    /// `stokehold` as this cluster's user runs it, for a test that waits for it itself.
    pub(crate) fn cli_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command("stokehold");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("STOKEHOLD_") || name == "SUDO_USER" {
                command.env_remove(name);
            }
        }
        command
            .args(arguments)
            .env("HOME", self.home())
            .env_remove("XDG_CONFIG_HOME")
            .env("NO_COLOR", "1");
        command
    }

    /// Runs `stokehold`, which must succeed, and returns what it printed.
    pub(crate) fn cli(&self, arguments: &[&str]) -> String {
        let output = self.try_cli(arguments);
        assert!(
            output.status.success(),
            "stokehold {} ended with {}\nstdout: {}\nstderr: {}\n{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.log_tails(),
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    pub(crate) fn cli_json(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.extend(["--output", "json"]);
        let text = self.cli(&all);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// The last lines of every daemon's log, for a failed test's report.
    pub(crate) fn log_tails(&self) -> String {
        let mut text = String::new();
        for folder in self.log_folders() {
            for path in std::fs::read_dir(folder)
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.path())
            {
                let Ok(log) = std::fs::read(&path) else {
                    continue;
                };
                let log = String::from_utf8_lossy(&log);
                let lines: Vec<_> = log.lines().collect();
                let tail = &lines[lines.len().saturating_sub(25)..];
                text += &format!("--- {}\n{}\n", path.display(), tail.join("\n"));
            }
        }
        text
    }

    fn log_folders(&self) -> Vec<PathBuf> {
        let mut folders = vec![self.data().join("logs")];
        folders.extend(self.extra_logs.iter().cloned());
        folders
    }

    pub(crate) fn watch_logs(&mut self, folder: PathBuf) {
        self.extra_logs.push(folder);
    }

    /// A warning or error that this test provokes on purpose.
    pub(crate) fn announce(&mut self, text: &str) {
        self.announced.push(text.to_owned());
    }

    pub(crate) fn context(&self) -> Value {
        self.cli_json(&["context", "show"])
    }

    pub(crate) fn token(&self) -> String {
        let context = self.context();
        let path = context["token_file"].as_str().expect("token_file");
        std::fs::read_to_string(path)
            .expect("token")
            .trim()
            .to_owned()
    }

    pub(crate) fn client(&self) -> reqwest::Client {
        // An error means that an earlier test installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let context = self.context();
        let ca = std::fs::read(context["ca_file"].as_str().expect("ca_file")).expect("ca");
        reqwest::Client::builder()
            .tls_certs_only(reqwest::Certificate::from_pem_bundle(&ca).expect("certificates"))
            .timeout(Duration::from_secs(60))
            .no_proxy()
            .build()
            .expect("client")
    }

    pub(crate) fn gateway(&self) -> String {
        self.context()["gateway"]
            .as_str()
            .expect("gateway")
            .to_owned()
    }

    pub(crate) fn invocations(&self, endpoint: &str) -> String {
        format!(
            "{}/serving-endpoints/{endpoint}/invocations",
            self.gateway()
        )
    }

    /// Sends one request with the admin's token.
    pub(crate) fn post(&self, url: &str, body: &Value) -> Answer {
        let request = self.client().post(url).bearer_auth(self.token()).json(body);
        self.runtime.block_on(send(request)).expect("an answer")
    }

    pub(crate) fn get(&self, url: &str) -> Answer {
        let request = self.client().get(url).bearer_auth(self.token());
        self.runtime.block_on(send(request)).expect("an answer")
    }

    pub(crate) fn query(&self, endpoint: &str, body: &Value) -> Answer {
        self.post(&self.invocations(endpoint), body)
    }

    /// A model for the probe runtime: `settings` as its `probe.json`, `version` as its `VERSION`.
    pub(crate) fn probe_model(&self, name: &str, version: &str, settings: &Value) -> PathBuf {
        let folder = self.base().join(format!("model-{name}-{version}"));
        std::fs::create_dir_all(&folder).expect("folder");
        std::fs::write(folder.join("probe.json"), settings.to_string()).expect("settings");
        std::fs::write(folder.join("VERSION"), version).expect("version");
        folder
    }

    pub(crate) fn import_probe_image(&self) {
        let archive = images("runtime-probe").display().to_string();
        self.cli(&["image", "import", &archive]);
    }

    /// Pushes a probe model; returns its reference (`name/N`).
    pub(crate) fn push_probe(&self, name: &str, version: &str, settings: &Value) -> String {
        let folder = self
            .probe_model(name, version, settings)
            .display()
            .to_string();
        let pushed = self.cli_json(&["model", "push", &folder, "--name", name]);
        format!("{name}/{}", pushed["version"])
    }

    /// Image, model and endpoint in one: `deploy` waits until it serves.
    pub(crate) fn deploy_probe(&self, endpoint: &str, settings: &Value, extra: &[&str]) {
        self.import_probe_image();
        let model = self.push_probe(endpoint, "1", settings);
        let mut arguments = vec!["deploy", endpoint, "--model", &model, "--runtime", "probe"];
        arguments.extend(extra);
        self.cli(&arguments);
    }

    pub(crate) fn describe(&self, endpoint: &str) -> Value {
        let url = format!("{}/api/stokehold/v1/endpoints/{endpoint}", self.gateway());
        self.get(&url).json()
    }

    /// Ids of the replicas that have not ended.
    pub(crate) fn replicas(&self, endpoint: &str) -> Vec<String> {
        let described = self.describe(endpoint);
        let all = described["replicas"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let living = all.iter().filter(|r| r["ended"] != json!(true));
        living
            .map(|r| r["id"].as_str().expect("id").to_owned())
            .collect()
    }

    /// The pid of a daemon of this cluster; `which` is `agent`, `gateway` or `scheduler`.
    pub(crate) fn daemon(&self, which: &str) -> Option<i32> {
        let program = format!("/stokehold-{which} ");
        let found = traces::processes(&self.data().display().to_string());
        found
            .into_iter()
            .find(|(_, line)| line.contains(&program))
            .map(|(pid, _)| pid)
    }

    /// The configuration file that a daemon was started with.
    pub(crate) fn config_of(&self, which: &str) -> (PathBuf, toml::Table) {
        let pid = self.daemon(which).expect("the daemon runs");
        let raw = std::fs::read(format!("/proc/{pid}/cmdline")).expect("command line");
        let words: Vec<_> = raw
            .split(|b| *b == 0)
            .map(String::from_utf8_lossy)
            .collect();
        let at = words
            .iter()
            .position(|w| w == "--config")
            .expect("--config");
        let path = PathBuf::from(words[at + 1].as_ref());
        let text = std::fs::read_to_string(&path).expect("configuration");
        (path, text.parse().expect("TOML"))
    }

    /// Kills a daemon with SIGKILL and waits until its supervisor has started it again.
    pub(crate) fn kill_and_wait(&self, which: &str) {
        let before = self.daemon(which).expect("the daemon runs");
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(before),
            nix::sys::signal::SIGKILL,
        )
        .expect("killed");
        eventually(&format!("{which} is started again"), || {
            self.daemon(which).filter(|pid| *pid != before)
        });
    }

    /// Takes everything down as a user does, and looks for what is left.
    pub(crate) fn finish(mut self) {
        self.finished = true;
        let data = self.data().display().to_string();
        let replicas = replica_ids(&self.data());
        let mut bad = Vec::new();
        for folder in self.log_folders() {
            bad.extend(traces::unannounced(&folder, &self.announced));
        }
        let run = self.run_folder();
        let network_namespaces = traces::network_namespaces();
        self.cli(&["down", "--data", &data]);
        assert!(bad.is_empty(), "unannounced warnings:\n{}", bad.join("\n"));
        let base = self.base().to_owned();
        let processes = traces::processes(&base.display().to_string());
        assert!(processes.is_empty(), "processes are left: {processes:?}");
        // Shims name the socket of their containerd.
        let shims = traces::processes(&run.display().to_string());
        assert!(shims.is_empty(), "processes are left: {shims:?}");
        for folder in [&base, &run] {
            let mounts = traces::mounts(folder);
            assert!(mounts.is_empty(), "mounts are left: {mounts:?}");
        }
        assert!(!run.exists(), "{} is left", run.display());
        let left = traces::network_namespaces();
        assert!(
            left.is_subset(&network_namespaces),
            "network namespaces are left: {left:?}"
        );
        let cgroups = traces::cgroups(&replicas);
        assert!(cgroups.is_empty(), "cgroups are left: {cgroups:?}");
        assert!(!self.data().exists(), "{data} is left");
    }
}

impl Cluster {
    /// Where the sockets and the replicas' folders of this cluster are.
    fn run_folder(&self) -> PathBuf {
        let text = std::fs::read_to_string(self.data().join("config/agent.toml"));
        let agent: toml::Table = text.expect("configuration").parse().expect("TOML");
        let run_dir = Path::new(agent["run_dir"].as_str().expect("run_dir")).to_owned();
        run_dir.parent().expect("a parent").to_owned()
    }
}

/// Held by the one test whose system runs. A test that failed must not fail the others.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first of ten ports that nobody listens on. Other test runs may look at the same time, so each
/// starts elsewhere.
pub(crate) fn free_ports() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 14_000 + (std::process::id() % 150) as u16 * 100;
    (0..200)
        .map(|_| start + NEXT.fetch_add(10, Ordering::Relaxed) % 16_000)
        .find(|&base| {
            (base..base + 10).all(|port| {
                TcpListener::bind(("127.0.0.1", port)).is_ok()
                    && UdpSocket::bind(("127.0.0.1", port)).is_ok()
            })
        })
        .expect("ten free ports in a row")
}

/// Every replica that ever ran: each has a folder of logs.
fn replica_ids(data: &Path) -> Vec<String> {
    fn walk(folder: &Path, depth: u32, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if shared::ids::ReplicaId::parse(&name).is_ok() {
                found.push(name);
            } else if depth > 0 && entry.file_type().is_ok_and(|t| t.is_dir()) {
                walk(&entry.path(), depth - 1, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(data, 2, &mut found);
    found
}

pub(crate) async fn send(request: reqwest::RequestBuilder) -> reqwest::Result<Answer> {
    let response = request.send().await?;
    let status = response.status().as_u16();
    let headers = response.headers().clone();
    let body = response.bytes().await?.to_vec();
    Ok(Answer {
        status,
        headers,
        body,
    })
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // The test failed: show what the daemons said, and leave nothing running.
        eprintln!("{}", self.log_tails());
        let data = self.data().display().to_string();
        let output = self.try_cli(&["down", "--data", &data]);
        if !output.status.success() {
            eprintln!("down: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
