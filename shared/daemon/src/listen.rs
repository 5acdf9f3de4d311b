//! Listening sockets, and who holds a port that is taken.

use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;

use tokio::net::TcpListener;

/// A port that cannot be listened on; `key` is the configuration's.
#[derive(Debug, thiserror::Error)]
#[error("listen on {transport} {address} ({key}){}", advice(source, key, *transport, *address))]
pub struct ListenError {
    pub transport: Transport,
    pub address: SocketAddr,
    pub key: String,
    #[source]
    pub source: io::Error,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
        })
    }
}

pub async fn tcp(address: SocketAddr, key: &str) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address)
        .await
        .map_err(failed(Transport::Tcp, address, key))
}

pub fn udp(address: SocketAddr, key: &str) -> Result<UdpSocket, ListenError> {
    UdpSocket::bind(address).map_err(failed(Transport::Udp, address, key))
}

fn failed(
    transport: Transport,
    address: SocketAddr,
    key: &str,
) -> impl FnOnce(io::Error) -> ListenError {
    let key = key.to_owned();
    move |source| ListenError {
        transport,
        address,
        key,
        source,
    }
}

/// What to do about it, after a colon.
fn advice(source: &io::Error, key: &str, transport: Transport, address: SocketAddr) -> String {
    match source.kind() {
        io::ErrorKind::AddrInUse => format!(
            ": the port is held by {}; stop that, or set `{key}` to another port",
            holder(transport, address.port())
        ),
        io::ErrorKind::PermissionDenied => format!(
            ": ports below 1024 need the capability CAP_NET_BIND_SERVICE; set `{key}` to one above"
        ),
        io::ErrorKind::AddrNotAvailable => format!(
            ": no interface of this machine has that address (`ip address` lists them); correct `{key}`"
        ),
        _ => String::new(),
    }
}

/// Who holds a local port, as well as can be found out: other users' processes are known to root only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    Process {
        name: String,
        pid: u32,
    },
    /// Of the socket its user is known to everybody.
    User {
        uid: u32,
    },
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Process { name, pid } => write!(f, "{name} (process {pid})"),
            Holder::User { uid } => {
                write!(f, "a process of user {uid} (`ss -lntup` as root names it)")
            }
            Holder::Unknown => f.write_str("another process (`ss -lntup` as root names it)"),
        }
    }
}

pub fn holder(transport: Transport, port: u16) -> Holder {
    let tables = match transport {
        Transport::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        Transport::Udp => ["/proc/net/udp", "/proc/net/udp6"],
    };
    let sockets: Vec<Socket> = tables
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .flat_map(|table| sockets(&table, transport, port))
        .collect();
    let Some(first) = sockets.first() else {
        return Holder::Unknown;
    };
    let found = sockets.iter().find_map(|socket| owner(socket.inode));
    match found {
        Some((pid, name)) => Holder::Process { name, pid },
        None => Holder::User { uid: first.uid },
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Socket {
    inode: u64,
    uid: u32,
}

/// Those of a table of `/proc/net` that listen on a port.
fn sockets(table: &str, transport: Transport, port: u16) -> Vec<Socket> {
    const LISTEN: &str = "0A";
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let local = u16::from_str_radix(fields.get(1)?.rsplit_once(':')?.1, 16).ok()?;
        let listens = transport == Transport::Udp || *fields.get(3)? == LISTEN;
        (local == port && listens).then_some(())?;
        Some(Socket {
            uid: fields.get(7)?.parse().ok()?,
            inode: fields.get(9)?.parse().ok()?,
        })
    };
    table.lines().skip(1).filter_map(of_line).collect()
}

/// The process that has a socket open.
fn owner(inode: u64) -> Option<(u32, String)> {
    let wanted = format!("socket:[{inode}]");
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    for process in processes {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let Ok(open) = std::fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let has = |fd: std::fs::DirEntry| {
            std::fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == wanted.as_str())
        };
        if open.flatten().any(has) {
            return Some((pid, name_of(&process.path())));
        }
    }
    None
}

/// The program's name; the kernel's own record is cut after 15 bytes.
fn name_of(process: &Path) -> String {
    let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
    let first = line.split(|b| *b == 0).next().unwrap_or_default();
    let first = String::from_utf8_lossy(first).into_owned();
    let name = first.rsplit('/').next().unwrap_or_default();
    // What another program calls itself goes into our log.
    let plain: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
    if plain.is_empty() {
        "a program without a name".to_owned()
    } else {
        plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_name() -> String {
        name_of(Path::new("/proc/self"))
    }

    #[tokio::test]
    async fn a_port_that_is_taken_names_its_holder_and_the_key() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = taken.local_addr().expect("address");
        let text = tcp(address, "listen").await.expect_err("taken").to_string();
        let me = format!("{} (process {})", own_name(), std::process::id());
        assert_eq!(
            text,
            format!(
                "listen on TCP {address} (listen): the port is held by {me}; stop that, or set `listen` to another port"
            )
        );
        let taken = UdpSocket::bind("127.0.0.1:0").expect("bound");
        let address = taken.local_addr().expect("address");
        let text = udp(address, "listen_quic").expect_err("taken").to_string();
        assert!(text.contains(&me) && text.contains("UDP"), "{text}");
    }

    #[tokio::test]
    async fn an_address_that_is_not_ours_is_told_as_such() {
        let address = "192.0.2.1:7443".parse().expect("address");
        let text = tcp(address, "listen")
            .await
            .expect_err("no such")
            .to_string();
        assert!(text.contains("no interface of this machine"), "{text}");
    }

    #[test]
    fn a_line_of_the_kernels_table_is_read_and_a_strange_one_is_no_socket() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:1D13 00000000:0000 0A 00000000:00000000 00:00000000 00000000   997        0 4711 1 0\n   \
            1: 0100007F:1D13 0100007F:9999 01 00000000:00000000 00:00000000 00000000   997        0 4712 1 0\n   \
            2: garbage\n";
        assert_eq!(
            sockets(table, Transport::Tcp, 7443),
            [Socket {
                inode: 4711,
                uid: 997
            }]
        );
        assert_eq!(sockets(table, Transport::Tcp, 7444), []);
    }
}
