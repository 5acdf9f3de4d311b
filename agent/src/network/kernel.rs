//! The node's side: the bridge, its ports, and the tables of rules, by `ip` and `nft`.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use super::conflist::Subnet;
use super::program::{self, ProgramError, SYSTEM_FOLDERS, told};
use super::rules;

const LIMIT: Duration = Duration::from_secs(10);
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
const ROUTES: &str = "/proc/net/route";

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error(
        "{program} is not installed, and a replica with an interface needs it: apt-get install {package}"
    )]
    Missing {
        program: &'static str,
        package: &'static str,
    },
    #[error("{what}: {said}")]
    Refused { what: String, said: String },
    #[error(
        "the node does not forward packets, so that no egress is possible: write \
         net.ipv4.ip_forward=1 to /etc/sysctl.d/90-stokehold.conf and run sysctl --system"
    )]
    NotForwarding,
    #[error("read {path}")]
    Read {
        path: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(
        "the subnet {subnet} of replicas is in use on this node ({by}): set network.subnet in \
         agent.toml to another one"
    )]
    SubnetInUse { subnet: Subnet, by: String },
    #[error(transparent)]
    Program(#[from] ProgramError),
}

fn tool(program: &'static str) -> Result<PathBuf, KernelError> {
    let package = match program {
        "nft" => "nftables",
        _ => "iproute2",
    };
    program::find(program, SYSTEM_FOLDERS).ok_or(KernelError::Missing { program, package })
}

/// Whether the programs are there that everything here needs.
pub fn check_tools() -> Result<(), KernelError> {
    ["ip", "nft"]
        .into_iter()
        .try_for_each(|name| tool(name).map(drop))
}

pub fn check_forwarding() -> Result<(), KernelError> {
    let read = fs::read_to_string(FORWARDING);
    let text = read.map_err(|source| KernelError::Read {
        path: FORWARDING,
        source,
    })?;
    match text.trim() {
        "0" => Err(KernelError::NotForwarding),
        _ => Ok(()),
    }
}

async fn ip(arguments: &[&str]) -> Result<Result<(), String>, KernelError> {
    let answer = program::run(&tool("ip")?, arguments, &[], b"", LIMIT).await?;
    Ok(match answer.success {
        true => Ok(()),
        false => Err(told(&answer.stderr)),
    })
}

/// Runs `ip`, which must succeed.
async fn ip_must(arguments: &[&str]) -> Result<(), KernelError> {
    ip(arguments).await?.map_err(|said| KernelError::Refused {
        what: format!("ip {}", arguments.join(" ")),
        said,
    })
}

async fn has_link(name: &str) -> Result<bool, KernelError> {
    Ok(ip(&["link", "show", "dev", name]).await?.is_ok())
}

/// A bridge with the node's address, up. Its MAC is fixed: it would otherwise be that of the port with
/// the lowest, and change under replicas that remember it.
pub async fn make_bridge(name: &str, subnet: Subnet) -> Result<(), KernelError> {
    let routes = fs::read_to_string(ROUTES);
    let routes = routes.map_err(|source| KernelError::Read {
        path: ROUTES,
        source,
    })?;
    if let Some(by) = super::conflist::overlapping(&routes, subnet, name) {
        return Err(KernelError::SubnetInUse { subnet, by });
    }
    if !has_link(name).await? {
        let mac = mac_of(subnet.gateway());
        ip_must(&[
            "link", "add", "name", name, "address", &mac, "type", "bridge",
        ])
        .await?;
    }
    let address = format!("{}/{}", subnet.gateway(), subnet.prefix());
    ip_must(&["address", "replace", &address, "dev", name]).await?;
    let no_ipv6 = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    match fs::write(&no_ipv6, "1") {
        // A kernel without IPv6 has nothing to switch off.
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(KernelError::Refused {
                what: format!("write {no_ipv6}"),
                said: e.to_string(),
            });
        }
        Ok(()) | Err(_) => {}
    }
    ip_must(&["link", "set", name, "up"]).await
}

/// Locally administered, as CNI's own convention has it.
fn mac_of(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("0a:58:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

pub async fn remove_bridge(name: &str) -> Result<(), KernelError> {
    if has_link(name).await? {
        ip_must(&["link", "delete", name]).await?;
    }
    Ok(())
}

/// No frame goes from one isolated port of a bridge to another.
pub async fn isolate(port: &str) -> Result<(), KernelError> {
    ip_must(&[
        "link",
        "set",
        "dev",
        port,
        "type",
        "bridge_slave",
        "isolated",
        "on",
    ])
    .await
}

/// Applies a script as one transaction.
pub async fn apply(script: &str) -> Result<(), KernelError> {
    let nft = tool("nft")?;
    let answer = program::run(&nft, &["-f", "-"], &[], script.as_bytes(), LIMIT).await?;
    match answer.success {
        true => Ok(()),
        false => Err(KernelError::Refused {
            what: "nft refuses the rules of replicas".to_owned(),
            said: told(&answer.stderr),
        }),
    }
}

/// Our tables as the kernel has them; `None` where one is missing.
pub async fn listing(table: &str) -> Result<Option<String>, KernelError> {
    let nft = tool("nft")?;
    let mut all = String::new();
    for family in ["inet", "bridge"] {
        let arguments = ["--stateless", "list", "table", family, table];
        let answer = program::run(&nft, &arguments, &[], b"", LIMIT).await?;
        if !answer.success {
            return Ok(None);
        }
        all += &String::from_utf8_lossy(&answer.stdout);
    }
    Ok(Some(all))
}

pub async fn remove_tables(table: &str) -> Result<(), KernelError> {
    apply(&rules::removal(table)).await
}
