//! `/etc/stokehold/gateway.toml`. Every key has a default; unknown keys are refused.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use daemon::telemetry::LogConfig;
use serde::{Deserialize, Deserializer};
use shared::ids::NodeName;
use shared::units::Bytes;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// This node's name, as its agent and the scheduler know it. Default: the host's name in lower
    /// case. Used by `join`; afterwards the certificate carries it.
    pub node: Option<NodeName>,
    /// Where the scheduler is, `host:port` (UDP for the session, TCP for its REST API), tried in turn.
    /// Default: what `join` learned.
    pub scheduler: Vec<String>,
    /// Certificate, key and certificate authority. Default: /etc/stokehold/pki/gateway.
    pub pki_dir: PathBuf,
    /// The last routes, from which a gateway serves when it starts without a scheduler.
    /// Default: /var/lib/stokehold/gateway.
    pub state_dir: PathBuf,
    /// Where the agent puts replicas' folders; the same as the agent's. Default: /run/stokehold/default.
    pub run_dir: PathBuf,
    /// Where replicas' logs are; the same as the agent's. Default: /var/log/stokehold/replicas.
    pub log_dir: PathBuf,
    /// For clients, HTTPS. Default: 0.0.0.0:8443.
    pub listen: SocketAddr,
    /// For other gateways, mutual TLS. Default: 0.0.0.0:8444.
    pub peer_listen: SocketAddr,
    /// Host name or address under which other gateways reach this one; set it where the host's own
    /// name does not resolve on the other nodes. Default: the host's name.
    pub advertise: Option<String>,
    /// `/metrics`, `/healthz` and `/readyz`, without a credential; "" for none.
    /// Default: 127.0.0.1:7493.
    #[serde(deserialize_with = "address_or_none")]
    pub admin_listen: Option<SocketAddr>,
    pub tls: TlsFiles,
    pub limits: Limits,
    pub log: LogConfig,
}

/// The certificate that clients see. Default: the one from joining, which clients must be told to
/// trust (its CA is `ca.pem` in `pki_dir`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsFiles {
    /// PEM, the server's certificate first.
    pub certificate: Option<PathBuf>,
    /// PEM.
    pub key: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections of clients; more wait in the kernel's queue. Default: 16384.
    pub max_connections: usize,
    /// Connections of other gateways. Default: 16384.
    pub max_peer_connections: usize,
    /// Seconds for which a request is held while its served entity has no replica; clients' own
    /// patience is 60 seconds and more. Default: 50.
    pub hold_seconds: u32,
    /// Seconds after which a request whose body has stalled is ended. Default: 30.
    pub body_idle_seconds: u32,
    /// Memory for bodies of requests that wait: up to 256 KiB of each are read first. A request that
    /// finds none left is answered 429. Default: 512 MiB.
    pub body_memory: Bytes,
    /// Seconds that requests under way get when the gateway stops. Default: 25.
    pub drain_seconds: u32,
}

impl Default for Config {
    fn default() -> Self {
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        Self {
            node: None,
            scheduler: Vec::new(),
            pki_dir: "/etc/stokehold/pki/gateway".into(),
            state_dir: "/var/lib/stokehold/gateway".into(),
            run_dir: "/run/stokehold/default".into(),
            log_dir: "/var/log/stokehold/replicas".into(),
            listen: any(8443),
            peer_listen: any(8444),
            advertise: None,
            admin_listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 7493))),
            tls: TlsFiles::default(),
            limits: Limits::default(),
            log: LogConfig::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 16_384,
            max_peer_connections: 16_384,
            hold_seconds: 50,
            body_idle_seconds: 30,
            body_memory: Bytes::mib(512),
            drain_seconds: 25,
        }
    }
}

impl Limits {
    pub(crate) fn hold(&self) -> Duration {
        Duration::from_secs(u64::from(self.hold_seconds))
    }

    pub(crate) fn body_idle(&self) -> Duration {
        Duration::from_secs(u64::from(self.body_idle_seconds))
    }

    pub(crate) fn drain(&self) -> Duration {
        Duration::from_secs(u64::from(self.drain_seconds))
    }
}

/// A configuration that reads but cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfig {
    #[error("tls.certificate and tls.key belong together: set both or neither")]
    HalfTls,
    #[error("{key} is {value:?}: expected host:port")]
    Address { key: &'static str, value: String },
    #[error("advertise is {value:?}: expected a host name or an address, without a port")]
    Advertise { value: String },
    #[error("limits.body_memory must be at least 1 MiB")]
    BodyMemory,
    #[error("{key} must be at least 1")]
    Zero { key: &'static str },
}

impl Config {
    pub fn check(&self) -> Result<(), InvalidConfig> {
        if self.tls.certificate.is_some() != self.tls.key.is_some() {
            return Err(InvalidConfig::HalfTls);
        }
        for address in &self.scheduler {
            let port = address
                .rsplit_once(':')
                .map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(1..))) {
                return Err(InvalidConfig::Address {
                    key: "scheduler",
                    value: address.clone(),
                });
            }
        }
        if let Some(host) = &self.advertise {
            let is_address = host.parse::<std::net::IpAddr>().is_ok();
            let is_name = !host.is_empty() && !host.contains([':', '/', ' ']);
            if !is_address && !is_name {
                return Err(InvalidConfig::Advertise {
                    value: host.clone(),
                });
            }
        }
        if self.limits.body_memory < Bytes::mib(1) {
            return Err(InvalidConfig::BodyMemory);
        }
        for (key, value) in [
            ("limits.max_connections", self.limits.max_connections),
            (
                "limits.max_peer_connections",
                self.limits.max_peer_connections,
            ),
            ("limits.hold_seconds", self.limits.hold_seconds as usize),
            (
                "limits.body_idle_seconds",
                self.limits.body_idle_seconds as usize,
            ),
        ] {
            if value == 0 {
                return Err(InvalidConfig::Zero { key });
            }
        }
        Ok(())
    }
}

fn address_or_none<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    let expected = |_| {
        serde::de::Error::custom(format!(
            "{text:?} is not an address: expected IP:PORT, or \"\" for none"
        ))
    };
    text.parse().map(Some).map_err(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), text).expect("write");
        let config: Config = daemon::config::load(file.path(), true).map_err(|e| e.to_string())?;
        config.check().map_err(|e| e.to_string())?;
        Ok(config)
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(parse(""), Ok(Config::default()));
    }

    #[test]
    fn keys_are_read_and_an_empty_admin_address_means_none() {
        let config = parse(
            "scheduler = [\"s1:7443\"]\nadmin_listen = \"\"\nadvertise = \"10.0.0.7\"\n[limits]\nhold_seconds = 3\n",
        )
        .expect("valid");
        assert_eq!(config.admin_listen, None);
        assert_eq!(config.limits.hold(), Duration::from_secs(3));
    }

    #[test]
    fn what_cannot_work_is_refused_by_its_key() {
        for (text, said) in [
            ("listne = \"0.0.0.0:1\"", "listne"),
            ("scheduler = [\"s1\"]", "scheduler"),
            ("advertise = \"host:1\"", "advertise"),
            ("[tls]\nkey = \"k.pem\"", "tls.certificate"),
            ("[limits]\nhold_seconds = 0", "limits.hold_seconds"),
            ("admin_listen = \"here\"", "IP:PORT"),
            ("node = \"UPPER\"", "node name"),
        ] {
            let error = parse(text).expect_err("refused");
            assert!(error.contains(said), "{error}");
        }
    }
}
