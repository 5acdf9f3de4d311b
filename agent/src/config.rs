//! `agent.toml`. Unknown keys are refused; every key has a default.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use daemon::telemetry::LogConfig;
use nix::unistd::{Gid, Group, Uid, User};
use serde::Deserialize;
use shared::ids::{InvalidName, NodeName};
use shared::units::Bytes;

use crate::network::conflist::Subnet;
use crate::network::result::is_interface;

pub const DEFAULT_PATH: &str = "/etc/stokehold/agent.toml";

/// Longest path of a Unix socket, the closing zero byte left out.
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// What the id of a replica and the socket's name add to `run_dir`.
const SOCKET_SUFFIX: &str = "/0123456789abcdef/http.sock";
/// uids that the kernel and user namespaces treat as ordinary ones.
const MAX_UID: u32 = i32::MAX as u32;

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// This node's name, as the scheduler knows it. Default: the host's name in lower case. It must be
    /// the name under which the node joined.
    pub node: Option<NodeName>,
    /// Where the scheduler listens for QUIC, `host:port`, tried in turn. Default: what the join told,
    /// kept in `pki_dir/scheduler.json`. Set it when the scheduler moved.
    pub scheduler: Option<Vec<String>>,
    /// The folder of this daemon's certificate and key. Default: /etc/stokehold/pki/agent.
    pub pki_dir: PathBuf,
    /// The folder of the ledger: the last plan and what is remembered of replicas.
    /// Default: /var/lib/stokehold/agent.
    pub state_dir: PathBuf,
    /// The folder of the model cache. Put it on the largest and quickest disk.
    /// Default: /var/lib/stokehold/models.
    pub cache_dir: PathBuf,
    /// Bytes that the model cache may use. Eviction starts here; a fetch that cannot fit is refused.
    /// Default: 200GiB. Leave a tenth of the disk for images.
    pub cache_capacity: Bytes,
    /// The folder of replicas' folders, shared with the gateway of this node; its last part is the
    /// instance's name. At most 80 bytes, as socket paths are short. Default: /run/stokehold/default.
    pub run_dir: PathBuf,
    /// The folder of replicas' logs. Default: /var/log/stokehold/replicas.
    pub log_dir: PathBuf,
    /// containerd's socket. Default: /run/containerd/containerd.sock.
    pub containerd: PathBuf,
    /// The namespace in containerd that replicas live in. Change it only on a node without replicas.
    /// Default: stokehold.
    pub containerd_namespace: String,
    /// containerd's snapshotter. Default: overlayfs.
    pub snapshotter: String,
    /// The gateway's group, by name or number: it may enter replicas' folders and read their logs.
    /// Default: stokehold-gateway.
    pub gateway_group: String,
    /// The first user id that replicas run as, one of their own each. The range must belong to nobody
    /// else on this machine. Default: 1990000000.
    pub replica_uid_start: u32,
    /// How many user ids there are for replicas: also a limit of replicas at once. Default: 65536.
    pub replica_uid_count: u32,
    /// The program that writes replicas' logs. Default: /usr/libexec/stokehold/stokehold-logshim.
    pub logshim: PathBuf,
    /// The control group below which replicas' groups lie. Default: /stokehold.
    pub cgroup_parent: String,
    /// Bytes of the machine's memory that replicas may not have: for the system, containerd and
    /// Stokehold itself. Default: 512MiB. Raise it where other programs run.
    pub memory_reserved: Bytes,
    /// NVIDIA's management library. Default: `libnvidia-ml.so.1`, found by the dynamic linker; a node
    /// without it has no GPUs.
    pub nvml_library: Option<PathBuf>,
    /// Where `/metrics`, `/healthz` and `/readyz` are served, without a credential; an empty text
    /// serves them nowhere. Default: 127.0.0.1:7492.
    #[serde(deserialize_with = "listen_address")]
    pub admin_listen: Option<SocketAddr>,
    pub network: NetworkConfig,
    pub registry: RegistryConfig,
    pub log: LogConfig,
}

/// Interfaces of replicas that listen on TCP or may connect to something of themselves. Nothing of it
/// is used before a replica needs it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// The folders of CNI plugins, the first one that has a plugin wins.
    /// Default: /opt/cni/bin, /usr/lib/cni.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// The bridge that replicas' interfaces are on, and the name of the nftables tables that guard them.
    /// At most 15 bytes. Default: stokehold0. Several agents on one machine need a name each.
    pub bridge: String,
    /// The replicas' IPv4 addresses, from /8 to /29; they mean nothing beyond the node.
    /// Default: 10.231.0.0/20. Change it where that network is in use on this node, or is a destination.
    pub subnet: String,
    /// A conflist of your own instead of that bridge, for `bridge` or `ptp` with any address plugin.
    /// Default: none.
    pub conflist: Option<PathBuf>,
    /// The resolvers of replicas whose template says `dns`. Default: those of /etc/resolv.conf, or of
    /// systemd-resolved, that are not on loopback.
    pub resolvers: Option<Vec<IpAddr>>,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            cni_bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            bridge: "stokehold0".into(),
            subnet: "10.231.0.0/20".into(),
            conflist: None,
            resolvers: None,
        }
    }
}

impl NetworkConfig {
    pub fn subnet(&self) -> Result<Subnet, InvalidConfig> {
        self.subnet.parse().map_err(|()| {
            let problem =
                "must be an IPv4 network without host bits, from /8 to /29: 10.231.0.0/20";
            invalid("network.subnet", &self.subnet, problem)
        })
    }

    fn check(&self) -> Result<(), InvalidConfig> {
        self.subnet()?;
        // nft takes no other names for a table.
        let letter = self.bridge.starts_with(|c: char| c.is_ascii_alphabetic());
        if !letter || !is_interface(&self.bridge) {
            let problem = "must be a letter and up to 14 of A-Z a-z 0-9 - _ .";
            return Err(invalid("network.bridge", &self.bridge, problem));
        }
        let folders = self
            .cni_bin_dirs
            .iter()
            .map(|path| ("network.cni_bin_dirs", path));
        let conflist = self.conflist.iter().map(|path| ("network.conflist", path));
        for (key, path) in folders.chain(conflist) {
            if !is_plain_absolute(path) {
                let problem = "must be an absolute path in UTF-8 without `..`";
                return Err(invalid(key, path.display(), problem));
            }
        }
        if let Some(loopback) = self.resolvers.iter().flatten().find(|a| a.is_loopback()) {
            let problem = "is the replica's own loopback: name an address that others can reach";
            return Err(invalid("network.resolvers", loopback, problem));
        }
        Ok(())
    }
}

/// How images come from registries. Both files are read whenever a blob is fetched.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// Mirrors, certificates and plain HTTP for registries: folders with a `hosts.toml`, in containerd's
    /// form. Default: /etc/containerd/certs.d.
    pub hosts_dir: PathBuf,
    /// Credentials for registries, in the form of Docker's config.json. Credential helpers are not run.
    /// Default: /etc/stokehold/registry-auth.json.
    pub auth_file: PathBuf,
    /// The user, by name or number, as which processes talk to registries; never root. Default: nobody.
    /// Give it an account of its own where other programs run as this one.
    pub pull_user: String,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            hosts_dir: "/etc/containerd/certs.d".into(),
            auth_file: "/etc/stokehold/registry-auth.json".into(),
            pull_user: "nobody".into(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: None,
            scheduler: None,
            pki_dir: "/etc/stokehold/pki/agent".into(),
            state_dir: "/var/lib/stokehold/agent".into(),
            cache_dir: "/var/lib/stokehold/models".into(),
            cache_capacity: Bytes::gib(200),
            run_dir: "/run/stokehold/default".into(),
            log_dir: "/var/log/stokehold/replicas".into(),
            containerd: "/run/containerd/containerd.sock".into(),
            containerd_namespace: "stokehold".into(),
            snapshotter: "overlayfs".into(),
            gateway_group: "stokehold-gateway".into(),
            replica_uid_start: 1_990_000_000,
            replica_uid_count: 65_536,
            logshim: "/usr/libexec/stokehold/stokehold-logshim".into(),
            cgroup_parent: "/stokehold".into(),
            memory_reserved: Bytes::mib(512),
            nvml_library: None,
            admin_listen: Some(SocketAddr::from(([127, 0, 0, 1], 7492))),
            network: NetworkConfig::default(),
            registry: RegistryConfig::default(),
            log: LogConfig::default(),
        }
    }
}

fn listen_address<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|_| serde::de::Error::custom("expected an address and a port, 127.0.0.1:7492"))
}

#[derive(Debug, thiserror::Error)]
pub enum InvalidConfig {
    #[error("{key} {value:?} {problem}")]
    Key {
        key: &'static str,
        value: String,
        problem: &'static str,
    },
    #[error("gateway_group {group:?} is no group of this machine: create it, or set its number")]
    NoGroup { group: String },
    #[error("look up group {group:?}")]
    LookUpGroup {
        group: String,
        #[source]
        source: nix::Error,
    },
    #[error("the host's name is no node name: set `node`")]
    NoNodeName,
    #[error(transparent)]
    Instance(#[from] InvalidName),
}

impl Config {
    /// Checks what types cannot say.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        let folders = [
            ("pki_dir", &self.pki_dir),
            ("state_dir", &self.state_dir),
            ("cache_dir", &self.cache_dir),
            ("run_dir", &self.run_dir),
            ("log_dir", &self.log_dir),
            ("containerd", &self.containerd),
            ("logshim", &self.logshim),
            ("registry.hosts_dir", &self.registry.hosts_dir),
            ("registry.auth_file", &self.registry.auth_file),
        ];
        for (key, path) in folders {
            if !is_plain_absolute(path) {
                return Err(invalid(
                    key,
                    path.display(),
                    "must be an absolute path in UTF-8 without `..`",
                ));
            }
        }
        if self.run_dir.as_os_str().len() + SOCKET_SUFFIX.len() > MAX_SOCKET_PATH_BYTES {
            let problem = "is too long: sockets in it must have paths of at most 107 bytes";
            return Err(invalid("run_dir", self.run_dir.display(), problem));
        }
        let cgroup = Path::new(&self.cgroup_parent);
        if !is_plain_absolute(cgroup) || self.cgroup_parent.len() < 2 {
            let problem = "must be an absolute path below / without `..`";
            return Err(invalid("cgroup_parent", &self.cgroup_parent, problem));
        }
        for (key, name) in [
            ("containerd_namespace", &self.containerd_namespace),
            ("snapshotter", &self.snapshotter),
        ] {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
            if name.is_empty() || name.len() > 76 || !name.bytes().all(plain) {
                return Err(invalid(key, name, "must be 1 to 76 of A-Z a-z 0-9 - _"));
            }
        }
        let last = self.replica_uid_start.checked_add(self.replica_uid_count);
        if self.replica_uid_count == 0
            || self.replica_uid_start < 1000
            || last.is_none_or(|last| last > MAX_UID)
        {
            let range = format!("{} + {}", self.replica_uid_start, self.replica_uid_count);
            let problem = "must be a range of user ids from 1000 to 2147483647";
            return Err(invalid(
                "replica_uid_start + replica_uid_count",
                range,
                problem,
            ));
        }
        self.network.check()?;
        self.instance().map(|_| ())
    }

    /// The instance's name: several agents on one machine differ in it.
    pub fn instance(&self) -> Result<String, InvalidConfig> {
        let name = self.run_dir.file_name().and_then(|name| name.to_str());
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        name.filter(|name| !name.is_empty() && name.len() <= 63 && name.bytes().all(plain))
            .map(str::to_owned)
            .ok_or_else(|| {
                let problem = "must end in the instance's name, 1 to 63 of A-Z a-z 0-9 - _";
                invalid("run_dir", self.run_dir.display(), problem)
            })
    }

    pub fn node(&self) -> Result<NodeName, InvalidConfig> {
        self.node
            .clone()
            .or_else(daemon::link::default_node_name)
            .ok_or(InvalidConfig::NoNodeName)
    }

    pub fn gateway_gid(&self) -> Result<Gid, InvalidConfig> {
        let group = self.gateway_group.as_str();
        let gid = group_number(group)?;
        if gid.as_raw() == 0 {
            let problem = "must not be root's: replicas' logs are written under it";
            return Err(invalid("gateway_group", group, problem));
        }
        Ok(gid)
    }
}

impl RegistryConfig {
    /// The ids that processes which talk to registries run under.
    pub fn pull_ids(&self) -> Result<(Uid, Gid), InvalidConfig> {
        let name = self.pull_user.as_str();
        let key = "registry.pull_user";
        let (uid, gid) = match name.parse::<u32>() {
            Ok(number) => (Uid::from_raw(number), Gid::from_raw(number)),
            Err(_) => match User::from_name(name) {
                Ok(Some(user)) => (user.uid, user.gid),
                Ok(None) => {
                    return Err(invalid(
                        key,
                        name,
                        "is no user of this machine: create it, or set a number",
                    ));
                }
                Err(_) => return Err(invalid(key, name, "cannot be looked up")),
            },
        };
        if uid.is_root() || gid.as_raw() == 0 {
            return Err(invalid(key, name, "must not be root, nor of root's group"));
        }
        Ok((uid, gid))
    }
}

fn group_number(group: &str) -> Result<Gid, InvalidConfig> {
    if let Ok(number) = group.parse::<u32>() {
        return Ok(Gid::from_raw(number));
    }
    match Group::from_name(group) {
        Ok(Some(found)) => Ok(found.gid),
        Ok(None) => Err(InvalidConfig::NoGroup {
            group: group.to_owned(),
        }),
        Err(source) => Err(InvalidConfig::LookUpGroup {
            group: group.to_owned(),
            source,
        }),
    }
}

fn is_plain_absolute(path: &Path) -> bool {
    path.is_absolute()
        && path.to_str().is_some_and(|text| !text.contains('\0'))
        && !path
            .components()
            .any(|part| part == std::path::Component::ParentDir)
}

fn invalid(key: &'static str, value: impl ToString, problem: &'static str) -> InvalidConfig {
    InvalidConfig::Key {
        key,
        value: value.to_string(),
        problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Config {
        toml::from_str(text).expect("valid")
    }

    #[test]
    fn an_empty_file_is_the_default_and_the_default_is_valid() {
        assert_eq!(parse(""), Config::default());
        Config::default().check().expect("valid");
        assert_eq!(Config::default().instance().expect("valid"), "default");
    }

    #[test]
    fn an_unknown_key_is_refused() {
        assert!(toml::from_str::<Config>("cache = 1").is_err());
    }

    #[test]
    fn no_admin_listener_is_an_empty_text() {
        assert_eq!(parse("admin_listen = \"\"").admin_listen, None);
        assert!(toml::from_str::<Config>("admin_listen = \"x\"").is_err());
    }

    #[test]
    fn what_would_break_later_is_refused_at_the_start() {
        for bad in [
            "run_dir = \"run\"",
            "run_dir = \"/\"",
            "log_dir = \"/a/../b\"",
            "cgroup_parent = \"/\"",
            "cgroup_parent = \"stokehold\"",
            "snapshotter = \"\"",
            "containerd_namespace = \"a/b\"",
            "replica_uid_start = 0",
            "replica_uid_start = 2147483000",
            "replica_uid_count = 0",
            "network.subnet = \"10.231.0.1/20\"",
            "network.subnet = \"10.231.0.0/30\"",
            "network.bridge = \"0bridge\"",
            "network.bridge = \"averyverylongname\"",
            "network.cni_bin_dirs = [\"cni\"]",
            "network.conflist = \"10-net.conflist\"",
            "network.resolvers = [\"127.0.0.53\"]",
        ] {
            assert!(parse(bad).check().is_err(), "{bad} was accepted");
        }
        let long = format!("run_dir = \"/{}\"", "x".repeat(90));
        assert!(parse(&long).check().is_err());
    }

    #[test]
    fn processes_that_talk_to_registries_run_as_anybody_but_root() {
        let of = |user: &str| parse(&format!("[registry]\npull_user = \"{user}\"")).registry;
        let (uid, gid) = of("4711").pull_ids().expect("number");
        assert_eq!((uid.as_raw(), gid.as_raw()), (4711, 4711));
        assert!(of("nobody").pull_ids().is_ok());
        for bad in ["0", "root", "no-such-user-anywhere"] {
            assert!(of(bad).pull_ids().is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn a_group_is_a_name_or_a_number() {
        let config = parse("gateway_group = \"4711\"");
        assert_eq!(config.gateway_gid().expect("number").as_raw(), 4711);
        for root in ["0", "root"] {
            let config = parse(&format!("gateway_group = \"{root}\""));
            assert!(config.gateway_gid().is_err(), "{root} was accepted");
        }
        let config = parse("gateway_group = \"no-such-group-anywhere\"");
        assert!(matches!(
            config.gateway_gid(),
            Err(InvalidConfig::NoGroup { .. })
        ));
    }
}
