//! `scheduler.toml`. Every key has a default; unknown keys are refused.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use daemon::telemetry::LogConfig;
use serde::Deserialize;

/// Where the packaged configuration lies.
pub const DEFAULT_PATH: &str = "/etc/stokehold/scheduler.toml";

/// Browsers refuse certificates that are valid for longer.
const MAX_CERTIFICATE_SECONDS: u64 = 398 * 24 * 3600;

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Store, exports, models and the first admin token. Default: /var/lib/stokehold/scheduler.
    pub data_dir: PathBuf,
    /// The cluster's certificate authority and the scheduler's own certificate. Back this folder up
    /// with `data_dir`: without it every node has to join again. Default:
    /// /etc/stokehold/pki/scheduler.
    pub pki_dir: PathBuf,
    /// TCP, HTTPS: REST API, joining, pushing models. Default: 0.0.0.0:7443.
    pub listen_http: SocketAddr,
    /// UDP, QUIC: agents and gateways. Default: 0.0.0.0:7443.
    pub listen_quic: SocketAddr,
    /// Names under which nodes and people reach this scheduler, `host` or `host:port`: they stand in
    /// join tokens and in its certificate. Default: the host's name. Set it where that name does not
    /// resolve on every node.
    pub advertise: Vec<String>,
    /// `/metrics`, `/healthz` and `/readyz`, plain HTTP. Default: 127.0.0.1:7491; "" turns it off.
    #[serde(deserialize_with = "address_or_empty")]
    pub admin_listen: Option<SocketAddr>,
    /// Folders of runtime templates (`*.toml`); a runtime of a later folder replaces one of the same
    /// name. Default: /usr/share/stokehold/runtimes, /etc/stokehold/runtimes.
    pub runtimes_dirs: Vec<PathBuf>,
    pub tls: TlsConfig,
    pub registry: RegistryConfig,
    pub autoscaler: AutoscalerConfig,
    pub lifecycle: LifecycleConfig,
    pub certificates: CertificatesConfig,
    pub log: LogConfig,
}

/// A certificate of your own for the REST API, where clients should not need the cluster's CA. Nodes
/// go on using the cluster's CA for joining and for QUIC. Both or neither.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// PEM, leaf first.
    pub certificate: Option<PathBuf>,
    /// PEM.
    pub key: Option<PathBuf>,
}

/// How the scheduler asks registries what runtimes' images are. Nodes fetch the images themselves, by
/// what their own agent.toml says. Both files are read whenever a registry is asked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// Mirrors, certificates and plain HTTP for registries: folders with a `hosts.toml`, in containerd's
    /// form. Default: /etc/containerd/certs.d.
    pub hosts_dir: PathBuf,
    /// Credentials for registries, in the form of Docker's config.json; the scheduler's user must be able
    /// to read it. Credential helpers are not run. Default: /etc/stokehold/registry-auth.json.
    pub auth_file: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AutoscalerConfig {
    /// Replicas go down only to the largest number needed within the hold, 20 start-up times long
    /// but at least this. Default: 60. Less saves machines and costs latency in the next burst.
    pub hold_min_seconds: u64,
    /// ... and at most this. Default: 300.
    pub hold_max_seconds: u64,
    /// Without a request for this long, an entity with scale_to_zero_enabled goes to zero replicas.
    /// Default: 600.
    pub scale_to_zero_idle_seconds: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LifecycleConfig {
    /// A node that is silent for longer is lost and its replicas are replaced. Default: 15.
    pub lease_seconds: u64,
    /// A replica being taken away may finish its requests for so long. Default: 30.
    pub drain_deadline_seconds: u64,
    /// A roll-out that is not done after this has failed. Default: 1200.
    pub deploy_deadline_seconds: u64,
}

/// The certificates that the cluster's authority gives out: to agents, gateways and the scheduler
/// itself. Each is renewed by itself after two thirds of its life.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CertificatesConfig {
    /// How long a certificate is valid, in seconds. Default: 604800, seven days; at least 10. A
    /// shorter one is worth less to whoever steals it; a longer one outlasts a longer outage of the
    /// scheduler. A new value counts from each certificate's next renewal.
    pub lifetime_seconds: u64,
}

impl Default for CertificatesConfig {
    fn default() -> Self {
        Self {
            lifetime_seconds: 7 * 24 * 3600,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/stokehold/scheduler".into(),
            pki_dir: "/etc/stokehold/pki/scheduler".into(),
            listen_http: ([0, 0, 0, 0], 7443).into(),
            listen_quic: ([0, 0, 0, 0], 7443).into(),
            advertise: Vec::new(),
            admin_listen: Some(([127, 0, 0, 1], 7491).into()),
            runtimes_dirs: vec![
                "/usr/share/stokehold/runtimes".into(),
                "/etc/stokehold/runtimes".into(),
            ],
            tls: TlsConfig::default(),
            registry: RegistryConfig::default(),
            autoscaler: AutoscalerConfig::default(),
            lifecycle: LifecycleConfig::default(),
            certificates: CertificatesConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            hosts_dir: "/etc/containerd/certs.d".into(),
            auth_file: "/etc/stokehold/registry-auth.json".into(),
        }
    }
}

impl Default for AutoscalerConfig {
    fn default() -> Self {
        Self {
            hold_min_seconds: 60,
            hold_max_seconds: 300,
            scale_to_zero_idle_seconds: 600,
        }
    }
}

impl Default for LifecycleConfig {
    fn default() -> Self {
        Self {
            lease_seconds: 15,
            drain_deadline_seconds: 30,
            deploy_deadline_seconds: 1200,
        }
    }
}

/// A key whose value cannot be worked with.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} {problem}")]
pub struct InvalidConfig {
    pub key: &'static str,
    pub problem: String,
}

impl Config {
    /// Checks what types cannot say.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        let fail = |key, problem: &str| {
            let problem = problem.to_owned();
            Err(InvalidConfig { key, problem })
        };
        if self.tls.certificate.is_some() != self.tls.key.is_some() {
            return fail("tls", "needs both certificate and key, or neither");
        }
        if self.autoscaler.hold_min_seconds > self.autoscaler.hold_max_seconds {
            return fail("autoscaler.hold_min_seconds", "is above hold_max_seconds");
        }
        if self.lifecycle.lease_seconds < 5 {
            return fail(
                "lifecycle.lease_seconds",
                "must be at least 5: a restarted agent needs a few seconds to be back",
            );
        }
        if self.lifecycle.deploy_deadline_seconds < 10 {
            return fail("lifecycle.deploy_deadline_seconds", "must be at least 10");
        }
        if !(10..=MAX_CERTIFICATE_SECONDS).contains(&self.certificates.lifetime_seconds) {
            return fail(
                "certificates.lifetime_seconds",
                "must be 10 to 34387200 (398 days): days in a fleet, seconds in a test",
            );
        }
        if self.advertise.len() > 8 {
            return fail("advertise", "has more than 8 names");
        }
        for name in &self.advertise {
            split_host_port(name).map_err(|problem| InvalidConfig {
                key: "advertise",
                problem,
            })?;
        }
        Ok(())
    }

    pub fn certificate_lifetime(&self) -> Duration {
        Duration::from_secs(self.certificates.lifetime_seconds)
    }

    pub fn lease(&self) -> Duration {
        Duration::from_secs(self.lifecycle.lease_seconds)
    }
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`; an IPv6 address without brackets is a host.
pub fn split_host_port(text: &str) -> Result<(String, Option<u16>), String> {
    let wrong =
        || format!("holds {text:?}: expected a host name or address, with or without :port");
    let port = |digits: &str| digits.parse::<u16>().ok().filter(|port| *port > 0);
    let (host, digits) = if text.parse::<std::net::Ipv6Addr>().is_ok() {
        (text, None)
    } else if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or_else(wrong)?;
        host.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
        match after.strip_prefix(':') {
            Some(digits) => (host, Some(digits)),
            None if after.is_empty() => (host, None),
            None => return Err(wrong()),
        }
    } else {
        match text.split_once(':') {
            Some((host, digits)) => (host, Some(digits)),
            None => (text, None),
        }
    };
    let name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':');
    if host.is_empty() || host.len() > 253 || !host.bytes().all(name) {
        return Err(wrong());
    }
    match digits.map(port) {
        None => Ok((host.to_owned(), None)),
        Some(Some(port)) => Ok((host.to_owned(), Some(port))),
        Some(None) => Err(wrong()),
    }
}

/// `host:port` as it stands in URLs.
pub fn join_host_port(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn address_or_empty<'de, D>(deserializer: D) -> Result<Option<SocketAddr>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        serde::de::Error::custom(format!(
            "{text:?} is not ADDRESS:PORT, such as 127.0.0.1:7491"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_default_and_the_default_is_valid() {
        let empty: Config = toml::from_str("").expect("parses");
        assert_eq!(empty, Config::default());
        assert_eq!(empty.check(), Ok(()));
    }

    #[test]
    fn a_misspelt_key_is_refused_by_name() {
        let error = toml::from_str::<Config>("[lifecycle]\nlease = 3\n").expect_err("unknown");
        assert!(error.to_string().contains("lease"), "{error}");
        let off: Config = toml::from_str("admin_listen = \"\"").expect("parses");
        assert_eq!(off.admin_listen, None);
    }

    #[test]
    fn advertised_names_are_hosts_with_or_without_a_port() {
        let good = [
            ("a", "a", None),
            ("a.b:80", "a.b", Some(80)),
            ("::1", "::1", None),
            ("[::1]:7", "::1", Some(7)),
            ("10.0.0.1:1", "10.0.0.1", Some(1)),
        ];
        for (text, host, port) in good {
            assert_eq!(split_host_port(text), Ok((host.to_owned(), port)));
        }
        for bad in [
            "",
            ":1",
            "a:",
            "a:x",
            "a:0",
            "a b",
            "[::1",
            "https://a",
            "a/b",
        ] {
            assert!(split_host_port(bad).is_err(), "{bad:?} was accepted");
        }
        assert_eq!(join_host_port("::1", 7), "[::1]:7");
    }
}
