//! Where an instance keeps what. Data lies where the user says; sockets and mounts lie in `/run`,
//! because a socket's path must stay under 108 bytes and because a reboot must clear them.

use std::io;
use std::path::{Path, PathBuf};

pub(crate) const DEFAULT_DATA: &str = "/var/lib/stokehold/up";

const RUN_PARENT: &str = "/run/stokehold";

/// What `down` removes of the data folder: nothing that `up` did not make.
const CONTENTS: [&str; 10] = [
    "agent",
    "config",
    "containerd",
    "gateway",
    "logs",
    "models",
    "pki",
    "scheduler",
    "up.json",
    "up.lock",
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) data: PathBuf,
    /// `/run/stokehold/up-ID`.
    pub(super) run: PathBuf,
    /// Eight hex digits of the data folder's path: instances with other folders are others.
    pub(super) id: String,
}

impl Layout {
    pub(super) fn of(data: &Path) -> io::Result<Self> {
        let data = canonical(&std::path::absolute(data)?)?;
        let hash = blake3::hash(data.as_os_str().as_encoded_bytes());
        let id = hex::encode(&hash.as_bytes()[..4]);
        Ok(Self {
            run: Path::new(RUN_PARENT).join(format!("up-{id}")),
            data,
            id,
        })
    }

    /// Whether `up` has taken the data folder: only then is what lies in it under our names ours.
    pub(super) fn is_ours(&self) -> bool {
        self.lock_file().exists() || self.state_file().exists()
    }

    /// Makes the data folder; one that exists keeps its mode and owner, since it may be anything.
    pub(super) fn make_data(&self) -> io::Result<()> {
        if self.data.is_dir() {
            return Ok(());
        }
        daemon::files::private_dir(&self.data, 0o755)
    }

    pub(super) fn state_file(&self) -> PathBuf {
        self.data.join("up.json")
    }

    pub(super) fn lock_file(&self) -> PathBuf {
        self.data.join("up.lock")
    }

    /// Of a daemon or of containerd.
    pub(super) fn config(&self, name: &str) -> PathBuf {
        if name == "containerd" {
            self.data.join("containerd/config.toml")
        } else {
            self.data.join("config").join(format!("{name}.toml"))
        }
    }

    pub(super) fn pki(&self, role: &str) -> PathBuf {
        self.data.join("pki").join(role)
    }

    /// A daemon's own state.
    pub(super) fn own(&self, name: &str) -> PathBuf {
        self.data.join(name)
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.data.join("logs").join(format!("{name}.log"))
    }

    pub(super) fn replica_logs(&self) -> PathBuf {
        self.data.join("logs/replicas")
    }

    pub(super) fn admin_token(&self) -> PathBuf {
        self.own("scheduler").join("admin.token")
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.pki("scheduler").join("ca.pem")
    }

    pub(super) fn containerd_root(&self) -> PathBuf {
        self.data.join("containerd/root")
    }

    pub(super) fn containerd_state(&self) -> PathBuf {
        self.run.join("containerd")
    }

    pub(super) fn containerd_socket(&self) -> PathBuf {
        self.run.join("containerd.sock")
    }

    /// The agent's and the gateway's `run_dir`.
    pub(super) fn replicas(&self) -> PathBuf {
        self.run.join("replicas")
    }

    /// Of all cgroups of this instance's containers.
    pub(super) fn cgroup_parent(&self) -> String {
        format!("/stokehold-up-{}", self.id)
    }

    /// Of replicas' interfaces, and of the nftables tables that guard them. With eight of the fifteen
    /// bytes that an interface's name may have, no two instances share one.
    pub(super) fn bridge(&self) -> String {
        format!("skh-{}", self.id)
    }

    /// A network of its own out of 10.224.0.0/12, chosen by the id: two instances on one machine share
    /// one in 4096 cases, which the agent notices and says.
    pub(super) fn subnet(&self) -> String {
        let number = u32::from_str_radix(&self.id, 16).unwrap_or_default();
        let (second, third) = (224 + (number >> 8) % 16, number % 256);
        format!("10.{second}.{third}.0/24")
    }

    /// A containerd that others use too gets a namespace that is nobody else's.
    pub(super) fn namespace(&self, private: bool) -> String {
        if private {
            "stokehold".to_owned()
        } else {
            format!("stokehold-up-{}", self.id)
        }
    }

    pub(super) fn contents(&self) -> impl Iterator<Item = PathBuf> + '_ {
        CONTENTS.iter().map(|name| self.data.join(name))
    }
}

/// The path without links, also where its end does not exist yet (or any more).
fn canonical(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => Ok(canonical(parent)?.join(name)),
            _ => Err(e),
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_its_data_folder_however_it_is_named() {
        let home = tempfile::tempdir().expect("folder");
        let real = home.path().join("real");
        std::fs::create_dir(&real).expect("folder");
        let link = home.path().join("link");
        std::os::unix::fs::symlink(&real, &link).expect("link");
        let layout = Layout::of(&real.join("up")).expect("layout");
        assert_eq!(layout, Layout::of(&link.join("up")).expect("layout"));
        std::fs::create_dir(real.join("up")).expect("folder");
        assert_eq!(layout, Layout::of(&link.join("up")).expect("layout"));
        let other = Layout::of(&real.join("up2")).expect("layout");
        assert_ne!(layout.run, other.run);
    }

    #[test]
    fn instances_differ_in_bridge_and_subnet() {
        let of = |id: &str| Layout {
            data: "/d".into(),
            run: "/r".into(),
            id: id.to_owned(),
        };
        assert_eq!(of("00000001").bridge(), "skh-00000001");
        assert_eq!(of("00000001").subnet(), "10.224.1.0/24");
        assert_eq!(of("ffffffff").subnet(), "10.239.255.0/24");
    }

    #[test]
    fn a_replicas_socket_fits_whatever_the_data_folder() {
        let deep = Path::new("/tmp")
            .join("x".repeat(200))
            .join("y".repeat(200));
        let layout = Layout::of(&deep).expect("layout");
        let socket = layout.replicas().join("0123456789abcdef/http.sock");
        assert!(socket.as_os_str().len() < 108, "{}", socket.display());
        assert!(layout.containerd_socket().as_os_str().len() < 80);
    }
}
