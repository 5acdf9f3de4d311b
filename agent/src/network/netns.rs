//! Replicas' network namespaces: each is bound to a file, so that it outlives agent and container.
//!
//! Every operation may be repeated. A file without a namespace on it is what an attempt left that was
//! cut off, or a reboot.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use shared::ids::ReplicaId;

/// What is made from now on in the namespace has no IPv6, unless a plugin switches it on. Loopback is
/// there already, and keeps `::1`.
const NO_IPV6: &str = "/proc/sys/net/ipv6/conf/default/disable_ipv6";

#[derive(Clone, Debug)]
pub struct Namespaces {
    folder: PathBuf,
}

impl Namespaces {
    pub fn open(folder: PathBuf) -> io::Result<Self> {
        daemon::files::private_dir(&folder, 0o700)?;
        Ok(Self { folder })
    }

    pub fn path(&self, id: &ReplicaId) -> PathBuf {
        self.folder.join(id.as_str())
    }

    pub fn exists(&self, id: &ReplicaId) -> bool {
        is_namespace(&self.path(id))
    }

    /// Every replica that has a file here, with a namespace or without.
    pub fn list(&self) -> io::Result<Vec<ReplicaId>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            if let Some(id) = name.to_str().and_then(|name| ReplicaId::parse(name).ok()) {
                found.push(id);
            }
        }
        Ok(found)
    }

    /// A fresh namespace, also where an earlier attempt left one. Waits.
    pub fn make(&self, id: &ReplicaId) -> io::Result<PathBuf> {
        self.remove(id)?;
        let path = self.path(id);
        File::create_new(&path)?;
        let target = path.clone();
        // A thread that has left its namespace is good for nothing else.
        let made = std::thread::Builder::new()
            .name("netns".into())
            .spawn(move || make_here(&target))?
            .join();
        match made {
            Ok(made) => made.map(|()| path),
            Err(_) => Err(io::Error::other(
                "the thread that makes namespaces panicked",
            )),
        }
    }

    pub fn remove(&self, id: &ReplicaId) -> io::Result<()> {
        let path = self.path(id);
        // More than one, if an agent was killed between two attempts.
        while is_namespace(&path) {
            match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => {}
                Err(Errno::EINVAL) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == NSFS_MAGIC)
}

fn make_here(target: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    match fs::write(NO_IPV6, "1") {
        // A kernel without IPv6 has nothing to switch off.
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    let own = Some("/proc/thread-self/ns/net");
    mount(own, target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_outlives_its_maker_and_is_made_and_removed_any_number_of_times() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().expect("folder");
        let namespaces = Namespaces::open(folder.path().join("netns")).expect("folder");
        let id = ReplicaId::from_bits(1);
        namespaces.remove(&id).expect("nothing to do");
        let path = namespaces.make(&id).expect("made");
        assert!(namespaces.exists(&id));
        let (first, own) = (inode(&path), inode(Path::new("/proc/self/ns/net")));
        assert_ne!(first, own);
        namespaces.make(&id).expect("made again");
        assert_eq!(
            namespaces.list().expect("listed"),
            std::slice::from_ref(&id)
        );
        namespaces.remove(&id).expect("removed");
        namespaces.remove(&id).expect("removed again");
        assert!(!namespaces.exists(&id));
        assert_eq!(namespaces.list().expect("listed"), []);
    }

    #[test]
    fn a_file_that_an_attempt_left_is_no_namespace_but_goes_with_the_replica() {
        let folder = tempfile::tempdir().expect("folder");
        let namespaces = Namespaces::open(folder.path().join("netns")).expect("folder");
        let id = ReplicaId::from_bits(1);
        fs::write(namespaces.path(&id), "").expect("written");
        assert!(!namespaces.exists(&id));
        assert_eq!(
            namespaces.list().expect("listed"),
            std::slice::from_ref(&id)
        );
        namespaces.remove(&id).expect("removed");
        assert_eq!(namespaces.list().expect("listed"), []);
    }

    fn inode(path: &Path) -> u64 {
        std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).expect("there"))
    }
}
