//! What one instance consists of, decided from the command line before anything is started.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context as _;
use shared::ids::NodeName;

use super::UpArgs;
use super::accounts::Accounts;
use super::layout::Layout;
use super::programs::{self, Programs};
use super::settings::Setting;

#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) layout: Layout,
    pub(super) node: NodeName,
    pub(super) ports: Ports,
    pub(super) listen: IpAddr,
    /// The host names and addresses that certificates and join tokens carry; the first is the one
    /// that this machine's own parts use.
    pub(super) names: Vec<String>,
    pub(super) programs: Programs,
    pub(super) runtimes: PathBuf,
    pub(super) accounts: Accounts,
    pub(super) containerd: Containerd,
    pub(super) settings: Vec<Setting>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Containerd {
    Private { program: PathBuf },
    External { socket: PathBuf },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    /// TCP and UDP.
    pub(super) scheduler: u16,
    pub(super) gateway: u16,
    pub(super) peers: u16,
    /// Scheduler's, agent's and gateway's metrics.
    pub(super) metrics: [u16; 3],
}

impl Ports {
    pub(super) fn new(base: Option<u16>) -> Self {
        match base {
            None => Self {
                scheduler: 7443,
                gateway: 8443,
                peers: 8444,
                metrics: [7491, 7492, 7493],
            },
            Some(base) => Self {
                scheduler: base,
                gateway: base + 1,
                peers: base + 2,
                metrics: [base + 3, base + 4, base + 5],
            },
        }
    }
}

impl Plan {
    pub(super) fn new(layout: &Layout, args: &UpArgs) -> anyhow::Result<Self> {
        let containerd = match &args.containerd {
            Some(socket) => Containerd::External {
                socket: std::path::absolute(socket)?,
            },
            None => Containerd::Private {
                program: programs::system("containerd").unwrap_or_else(|| "containerd".into()),
            },
        };
        let node = match &args.node {
            Some(node) => node.clone(),
            None => node_name(&host_name()?),
        };
        Ok(Self {
            layout: layout.clone(),
            names: names(args.listen, &host_name()?),
            node,
            ports: Ports::new(args.port_base),
            listen: args.listen,
            programs: Programs::find()?,
            runtimes: programs::runtimes(args.runtimes.as_deref())?,
            accounts: Accounts::find(),
            containerd,
            settings: args.settings.clone(),
        })
    }

    pub(super) fn is_private(&self) -> bool {
        matches!(self.containerd, Containerd::Private { .. })
    }

    pub(super) fn containerd_socket(&self) -> PathBuf {
        match &self.containerd {
            Containerd::Private { .. } => self.layout.containerd_socket(),
            Containerd::External { socket } => socket.clone(),
        }
    }

    pub(super) fn namespace(&self) -> String {
        self.layout.namespace(self.is_private())
    }

    pub(super) fn server(&self) -> String {
        format!("https://{}", self.local(self.ports.scheduler))
    }

    pub(super) fn gateway(&self) -> String {
        format!("https://{}", self.local(self.ports.gateway))
    }

    pub(super) fn listening(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.listen, port)
    }

    /// How this machine itself reaches what listens on `port`.
    pub(super) fn local(&self, port: u16) -> SocketAddr {
        SocketAddr::new(reachable(self.listen), port)
    }
}

/// Whoever listens on all addresses is reached by loopback.
fn reachable(listen: IpAddr) -> IpAddr {
    match listen {
        // A socket on `::` takes IPv4 too.
        any if any.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        one => one,
    }
}

/// For certificates: the address to listen on, and the host's name where others can come.
fn names(listen: IpAddr, host: &str) -> Vec<String> {
    let mut names = vec![reachable(listen).to_string()];
    if reachable(listen).is_loopback() {
        names.push("localhost".to_owned());
    }
    if !listen.is_loopback() && !host.is_empty() {
        names.push(host.to_owned());
    }
    names
}

fn host_name() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("read the host's name")?;
    Ok(name.to_string_lossy().to_ascii_lowercase())
}

/// The host's name as a node's: what a node may not be called by becomes a dash.
fn node_name(host: &str) -> NodeName {
    let kept: String = host
        .chars()
        .map(|c| {
            if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' {
                c
            } else {
                '-'
            }
        })
        .take(63)
        .collect();
    let labels: Vec<&str> = kept
        .split('.')
        .map(|label| label.trim_matches('-'))
        .filter(|label| !label.is_empty())
        .collect();
    labels
        .join(".")
        .parse()
        .unwrap_or_else(|_| "local".parse().expect("a valid node name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_host_name_gives_a_node_name() {
        for (host, node) in [
            ("gpu7.rack2", "gpu7.rack2"),
            ("my_host", "my-host"),
            ("-.x-.", "x"),
            ("", "local"),
            ("ä", "local"),
        ] {
            assert_eq!(node_name(host).as_str(), node, "{host:?}");
        }
        node_name(&"x".repeat(200));
    }

    #[test]
    fn listening_everywhere_is_reached_by_loopback_and_known_by_the_hosts_name() {
        let any: IpAddr = "0.0.0.0".parse().expect("address");
        assert_eq!(names(any, "n1"), ["127.0.0.1", "localhost", "n1"]);
        let loopback: IpAddr = "127.0.0.1".parse().expect("address");
        assert_eq!(names(loopback, "n1"), ["127.0.0.1", "localhost"]);
        let one: IpAddr = "192.0.2.7".parse().expect("address");
        assert_eq!(names(one, "n1"), ["192.0.2.7", "n1"]);
    }

    #[test]
    fn a_port_base_moves_all_six_ports() {
        let ports = Ports::new(Some(20_000));
        assert_eq!(
            (ports.scheduler, ports.gateway, ports.peers, ports.metrics),
            (20_000, 20_001, 20_002, [20_003, 20_004, 20_005])
        );
        assert_eq!(Ports::new(None).scheduler, 7443);
    }
}
