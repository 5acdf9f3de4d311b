//! What must be there before anything is started; every missing thing is named with its mending.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use daemon::listen::{Transport, holder};

use super::accounts::Account;
use super::plan::{Containerd, Plan};
use super::{mounts, programs};

/// All that is wrong, for one message.
pub(super) fn check(plan: &Plan) -> Vec<String> {
    let mut missing = Vec::new();
    match &plan.containerd {
        Containerd::Private { .. } => {
            need_program(&mut missing, "containerd", "containerd");
            need_program(&mut missing, "containerd-shim-runc-v2", "containerd");
        }
        Containerd::External { socket } => {
            if let Err(error) = std::os::unix::net::UnixStream::connect(socket) {
                missing.push(format!(
                    "no containerd answers at {}: {error}",
                    socket.display()
                ));
            }
        }
    }
    need_program(&mut missing, "runc", "runc");
    kernel(&mut missing);
    reachable(&mut missing, plan);
    ports(&mut missing, plan);
    missing
}

fn need_program(missing: &mut Vec<String>, name: &str, package: &str) {
    if programs::system(name).is_none() {
        missing.push(format!(
            "{name} is not installed: apt-get install {package}"
        ));
    }
}

fn kernel(missing: &mut Vec<String>) {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let overlay = known
        .lines()
        .any(|line| line.split_whitespace().last() == Some("overlay"));
    if !overlay {
        missing.push("the kernel does not offer overlayfs: modprobe overlay".to_owned());
    }
    if !has_memory_controller() {
        missing.push(
            "no memory control group is mounted, so replicas could not be limited: mount cgroup2 at \
             /sys/fs/cgroup, or boot without cgroup_disable=memory"
                .to_owned(),
        );
    }
}

/// Of version 1 the hierarchy's mount point, of version 2 the list of controllers.
fn has_memory_controller() -> bool {
    mounts::cgroup_roots()
        .unwrap_or_default()
        .iter()
        .any(|root| {
            root.join("memory.limit_in_bytes").exists()
                || std::fs::read_to_string(root.join("cgroup.controllers"))
                    .is_ok_and(|list| list.split_whitespace().any(|name| name == "memory"))
        })
}

/// Scheduler and gateway run as users of their own: they must get to their folders and programs.
fn reachable(missing: &mut Vec<String>, plan: &Plan) {
    let inside = plan.layout.own("scheduler");
    let wanted = [
        (plan.accounts.scheduler, inside.as_path()),
        (plan.accounts.scheduler, plan.programs.scheduler.as_path()),
        (plan.accounts.scheduler, plan.runtimes.as_path()),
        (plan.accounts.gateway, plan.programs.gateway.as_path()),
    ];
    let mut closed: Vec<&Path> = wanted
        .into_iter()
        .filter_map(|(account, path)| closed_ancestor(path, account))
        .collect();
    closed.sort();
    closed.dedup();
    for folder in closed {
        missing.push(format!(
            "{0} is closed to the users that scheduler and gateway run as: chmod o+x {0}, or use \
             another folder",
            folder.display()
        ));
    }
}

/// The first folder above `path` that `account` may not pass.
fn closed_ancestor(path: &Path, account: Account) -> Option<&Path> {
    let above: Vec<&Path> = path.ancestors().skip(1).collect();
    above.into_iter().rev().find(|folder| {
        std::fs::metadata(folder).is_ok_and(|meta| {
            let bit = if meta.uid() == account.uid {
                0o100
            } else if meta.gid() == account.gid {
                0o010
            } else {
                0o001
            };
            meta.mode() & bit == 0
        })
    })
}

fn ports(missing: &mut Vec<String>, plan: &Plan) {
    let ports = &plan.ports;
    let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let tcp = [
        plan.listening(ports.scheduler),
        plan.listening(ports.gateway),
        plan.listening(ports.peers),
        local(ports.metrics[0]),
        local(ports.metrics[1]),
        local(ports.metrics[2]),
    ];
    for address in tcp {
        let bound = TcpListener::bind(address).map(drop);
        note_port(missing, Transport::Tcp, address, bound);
    }
    let quic = plan.listening(ports.scheduler);
    let bound = UdpSocket::bind(quic).map(drop);
    note_port(missing, Transport::Udp, quic, bound);
}

fn note_port(
    missing: &mut Vec<String>,
    kind: Transport,
    address: SocketAddr,
    bound: io::Result<()>,
) {
    if let Err(error) = bound {
        missing.push(match error.kind() {
            io::ErrorKind::AddrInUse => format!(
                "{kind} {address} is held by {}: stop that, or choose other ports with --port-base",
                holder(kind, address.port())
            ),
            io::ErrorKind::AddrNotAvailable => format!(
                "cannot listen on {kind} {address}: no interface of this machine has that address; \
                 give another with --listen"
            ),
            _ => format!("cannot listen on {kind} {address}: {error}"),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_first_closed_folder_on_the_way_is_named() {
        let home = tempfile::tempdir().expect("folder");
        let inner = home.path().join("a/b");
        std::fs::create_dir_all(&inner).expect("folders");
        let open = |path: &Path, mode| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(path, mode).expect("mode");
        };
        open(home.path(), 0o755);
        let stranger = Account {
            uid: 1_989_999_001,
            gid: 1_989_999_001,
        };
        assert_eq!(closed_ancestor(&inner, stranger), None);
        open(&home.path().join("a"), 0o750);
        assert_eq!(
            closed_ancestor(&inner, stranger),
            Some(home.path().join("a").as_path())
        );
    }

    #[test]
    fn a_port_that_is_taken_is_named_with_the_way_out() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = taken.local_addr().expect("address");
        let mut missing = Vec::new();
        let bound = TcpListener::bind(address).map(drop);
        note_port(&mut missing, Transport::Tcp, address, bound);
        let said = missing.concat();
        let me = format!("(process {})", std::process::id());
        assert!(
            said.starts_with(&format!("TCP {address} is held by ")) && said.contains(&me),
            "{said}"
        );
        assert!(
            said.ends_with("choose other ports with --port-base"),
            "{said}"
        );
    }
}
