//! The users that scheduler and gateway run as: the packages' when they are installed, else numbers
//! of their own. A number needs no entry in `/etc/passwd`, and these are far from any that is given
//! out to people, containers or systemd's dynamic users.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use nix::unistd::User;

/// Just below the range that replicas get their users from.
const SCHEDULER_ID: u32 = 1_989_999_001;
const GATEWAY_ID: u32 = 1_989_999_002;

const REPLICA_UID_START: u32 = 1_990_000_000;
pub(super) const REPLICA_UIDS: u32 = 65_536;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Accounts {
    pub(super) scheduler: Account,
    pub(super) gateway: Account,
}

impl Accounts {
    pub(super) fn find() -> Self {
        Self {
            scheduler: account("stokehold-scheduler", SCHEDULER_ID),
            gateway: account("stokehold-gateway", GATEWAY_ID),
        }
    }
}

fn account(name: &str, number: u32) -> Account {
    match User::from_name(name) {
        Ok(Some(user)) => Account {
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
        },
        Ok(None) | Err(_) => Account {
            uid: number,
            gid: number,
        },
    }
}

/// Each instance has replica users of its own: two agents that gave out the same one would let
/// their replicas reach each other. The first range is left to an installed agent.
pub(super) fn replica_uid_start(instance: &str) -> u32 {
    let number = u32::from_str_radix(instance, 16).unwrap_or(0);
    REPLICA_UID_START + (1 + number % 2000) * REPLICA_UIDS
}

/// Makes a folder (its parent is there), owned by `owner` or by root, with this mode.
pub(super) fn folder(path: &Path, owner: Option<Account>, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        Ok(()) | Err(_) => {}
    }
    if !std::fs::symlink_metadata(path)?.is_dir() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "it is there and no folder",
        ));
    }
    let owned = owner.unwrap_or(Account { uid: 0, gid: 0 });
    if owner.is_some_and(|owner| std::fs::metadata(path).is_ok_and(|m| m.uid() != owner.uid)) {
        // New, or from before the packages' users were there: what is in it goes along.
        hand_over(path, owned)?;
    }
    std::os::unix::fs::lchown(path, Some(owned.uid), Some(owned.gid))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// Gives everything below a folder to `owner`, following no link. Nobody else can enter the folder.
fn hand_over(folder: &Path, owner: Account) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            hand_over(&entry.path(), owner)?;
        }
        std::os::unix::fs::lchown(entry.path(), Some(owner.uid), Some(owner.gid))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_get_ranges_that_do_not_overlap_and_fit_a_uid() {
        let starts = [
            replica_uid_start("00000000"),
            replica_uid_start("00000001"),
            replica_uid_start("ffffffff"),
        ];
        for start in starts {
            assert!(start >= REPLICA_UID_START + REPLICA_UIDS);
            assert!(
                start
                    .checked_add(REPLICA_UIDS)
                    .is_some_and(|end| end < i32::MAX as u32)
            );
        }
        assert_eq!(starts[1] - starts[0], REPLICA_UIDS);
    }
}
