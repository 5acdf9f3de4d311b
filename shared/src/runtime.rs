//! Runtime templates: how a served entity of a runtime becomes a container.
//!
//! A template is a TOML file in `/usr/share/stokehold/runtimes` or `/etc/stokehold/runtimes` (which
//! wins). The scheduler reads it and renders it into each replica of a plan; agents know no runtimes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::egress::Egress;
use crate::ids::{ImageRef, RuntimeName};

/// Where the replica's folder is mounted in its container.
pub const REPLICA_FOLDER: &str = "/run/stokehold";
/// The socket in the replica's folder.
pub const REPLICA_SOCKET: &str = "http.sock";

/// Lower ones need a privilege that a replica has not.
const FIRST_PORT: u16 = 1024;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeTemplate {
    /// What `--runtime` and the scheduler call it.
    pub name: RuntimeName,
    /// The image of its replicas, imported with `stokehold image import`.
    pub image: ImageRef,
    /// The program and its arguments: a list, no shell is involved.
    pub command: Vec<String>,
    /// What is spoken on the replica's socket.
    #[serde(default)]
    pub protocol: Protocol,
    /// How the gateway reaches the replica.
    #[serde(default)]
    pub transport: Transport,
    /// For `transport = "tcp"`, and only for that: where the replica listens, on 0.0.0.0.
    #[serde(default)]
    pub port: Option<u16>,
    /// Where a replica may connect to of itself: `"none"`, or a list of addresses.
    #[serde(default)]
    pub egress: Egress,
    /// Where the model is mounted, read-only.
    #[serde(default = "default_model_mount")]
    pub model_mount: String,
    /// Where requests go on the replica.
    #[serde(default = "default_invocations_path")]
    pub invocations_path: String,
    /// What asks a replica to end. Change it for a server that ends well on another one.
    #[serde(default = "default_stop_signal")]
    pub stop_signal: String,
    /// Between the stop signal and SIGKILL. Raise it where requests take longer.
    #[serde(default = "default_stop_grace")]
    pub stop_grace_seconds: u32,
    /// Size of `/dev/shm`.
    #[serde(default = "default_shm")]
    pub shm_bytes: u64,
    /// Size of the tmpfs on `/tmp`.
    #[serde(default = "default_tmp")]
    pub tmp_bytes: u64,
    /// Variables of the process; a served entity's own win.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    pub health: HealthProbe,
    /// What a replica gets when its served entity names nothing else.
    pub resources: Resources,
}

/// What is spoken on the replica's socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// A Unix socket in the replica's folder: no network interface but loopback is needed.
    #[default]
    Unix,
    /// A TCP port on an interface made by CNI.
    Tcp,
}

/// How a gateway finds out whether a replica is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthProbe {
    /// Asked with GET; an answer with status 200 is healthy.
    pub path: String,
    /// Between probes until the first success.
    #[serde(default = "default_interval")]
    pub interval_ms: u32,
    /// Between probes after it.
    #[serde(default = "default_period")]
    pub period_ms: u32,
    /// A probe without an answer after this has failed.
    #[serde(default = "default_timeout")]
    pub timeout_ms: u32,
    /// This many failures in a row make a healthy replica unhealthy.
    #[serde(default = "default_failures")]
    pub failures: u32,
    /// A replica that is not healthy this long after its start has failed. Raise it for large models.
    #[serde(default = "default_start_deadline")]
    pub start_deadline_seconds: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// The container's memory limit; also what placement counts.
    pub memory_bytes: u64,
    /// Thousandths of a core: the container's CPU quota; also what placement counts.
    pub cpu_millis: u32,
    /// Processes and threads.
    #[serde(default = "default_pids")]
    pub pids: u32,
    /// Whole GPUs.
    #[serde(default)]
    pub gpus: u32,
}

fn default_model_mount() -> String {
    "/model".into()
}

fn default_invocations_path() -> String {
    "/invocations".into()
}

fn default_stop_signal() -> String {
    "SIGTERM".into()
}

fn default_stop_grace() -> u32 {
    20
}

fn default_shm() -> u64 {
    64 << 20
}

fn default_tmp() -> u64 {
    256 << 20
}

fn default_interval() -> u32 {
    250
}

fn default_period() -> u32 {
    2000
}

fn default_timeout() -> u32 {
    2000
}

fn default_failures() -> u32 {
    3
}

fn default_start_deadline() -> u32 {
    300
}

fn default_pids() -> u32 {
    512
}

/// What is wrong with a template: a sentence that names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("runtime template {name}: {problem}")]
pub struct InvalidTemplate {
    pub name: String,
    pub problem: String,
}

impl RuntimeTemplate {
    /// Checks what types cannot say.
    pub fn check(&self) -> Result<(), InvalidTemplate> {
        let fail = |problem: &str| {
            Err(InvalidTemplate {
                name: self.name.to_string(),
                problem: problem.to_owned(),
            })
        };
        let absolute = |path: &str| path.starts_with('/') && !path.split('/').any(|p| p == "..");
        if self.command.is_empty() || self.command.iter().any(|arg| arg.contains('\0')) {
            return fail("command must name a program, and hold no zero byte");
        }
        match (self.transport, self.port) {
            (Transport::Unix, None) => {}
            (Transport::Unix, Some(_)) => {
                return fail("port is only for transport = \"tcp\": remove it, or set that");
            }
            (Transport::Tcp, None) => {
                return fail(
                    "transport \"tcp\" needs a port, on which the replica listens on 0.0.0.0: \
                     set port = 8080",
                );
            }
            (Transport::Tcp, Some(port)) if port < FIRST_PORT => {
                return fail("port must be at least 1024: a replica may not listen on lower ones");
            }
            (Transport::Tcp, Some(_)) => {}
        }
        if !absolute(&self.model_mount) || self.model_mount.len() < 2 {
            return fail("model_mount must be an absolute path below / without `..`");
        }
        if !absolute(&self.invocations_path) || !absolute(&self.health.path) {
            return fail("invocations_path and health.path must start with / and hold no `..`");
        }
        if self.health.interval_ms < 50 || self.health.period_ms < 50 || self.health.timeout_ms < 50
        {
            return fail("health intervals and time-outs must be at least 50 ms");
        }
        if self.health.failures == 0 || self.health.start_deadline_seconds == 0 {
            return fail("health.failures and health.start_deadline_seconds must be at least 1");
        }
        if !matches!(
            self.stop_signal.as_str(),
            "SIGTERM" | "SIGINT" | "SIGQUIT" | "SIGHUP"
        ) {
            return fail("stop_signal must be SIGTERM, SIGINT, SIGQUIT or SIGHUP");
        }
        if self
            .environment
            .keys()
            .any(|k| k.is_empty() || k.contains(['=', '\0']))
        {
            return fail("environment names must not be empty nor hold `=` or a zero byte");
        }
        if let Some(problem) = self.resources.problem() {
            return fail(problem);
        }
        Ok(())
    }
}

impl Resources {
    /// What is wrong with these limits, if anything.
    pub fn problem(&self) -> Option<&'static str> {
        if self.memory_bytes < 16 << 20 {
            Some("memory_bytes must be at least 16 MiB")
        } else if self.cpu_millis < 10 {
            Some("cpu_millis must be at least 10 (a hundredth of a core)")
        } else if self.pids < 4 {
            Some("pids must be at least 4")
        } else {
            None
        }
    }
}
