//! Free space on a disk, and what to say when there is too little.

use std::io;
use std::path::{Path, PathBuf};

use shared::units::Bytes;

/// Too little is free on a disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no room in {}: {needed} are needed, {free} are free; free some on that disk, or put `{key}` on a larger one",
    path.display()
)]
pub struct NoRoom {
    pub path: PathBuf,
    pub needed: Bytes,
    pub free: Bytes,
    /// The configuration's.
    pub key: &'static str,
}

/// What a process without privileges can still write to the disk that a path is on.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let disk = nix::sys::statvfs::statvfs(path)?;
    Ok(disk.blocks_available().saturating_mul(disk.fragment_size()))
}

/// Whether so much is free. A disk that cannot be asked passes for one with room: the write tells.
pub fn check(path: &Path, needed: Bytes, key: &'static str) -> Result<(), NoRoom> {
    match free_bytes(path) {
        Ok(free) if free < needed.get() => Err(NoRoom {
            path: path.to_owned(),
            needed,
            free: Bytes(free),
            key,
        }),
        Ok(_) | Err(_) => Ok(()),
    }
}

pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_room_names_the_folder_the_need_and_the_key() {
        let folder = tempfile::tempdir().expect("folder");
        check(folder.path(), Bytes(1), "data_dir").expect("a byte is free");
        let refused =
            check(folder.path(), Bytes(u64::MAX), "data_dir").expect_err("no disk has it");
        let text = refused.to_string();
        assert!(
            text.contains(&folder.path().display().to_string()),
            "{text}"
        );
        assert!(
            text.contains("`data_dir`") && text.contains("are needed"),
            "{text}"
        );
        check(Path::new("/nonexistent"), Bytes(1), "data_dir").expect("not known to be full");
    }
}
