//! Commands that root runs for a daemon that is not root: joining, mending a store.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};

/// Where root runs this, the process becomes the owner of `folder` for good: what it makes there
/// belongs to the daemon, and nothing that it reads or meets on the network is root's to suffer from.
/// Whoever is not root, and a folder that is root's or not there yet, change nothing.
pub fn become_owner_of(folder: &Path) -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let owner = match std::fs::symlink_metadata(folder) {
        Ok(metadata) if metadata.is_dir() => metadata,
        Ok(_) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    if owner.uid() == 0 {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    Ok(setresuid(uid, uid, uid)?)
}
