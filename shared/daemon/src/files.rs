//! Files that are either the old or the new one, whatever happens in between.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Replaces a file: temporary file beside it, fsync, rename, fsync of the folder. Once this returns,
/// the new contents survive a power loss.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path
        .parent()
        .ok_or_else(|| invalid("a file's path has a folder"))?;
    let name = path
        .file_name()
        .ok_or_else(|| invalid("a file's path ends in its name"))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = folder.join(temporary);
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    let written = write_synced(&temporary, bytes, mode)
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| File::open(folder)?.sync_all());
    if written.is_err() {
        // The first error is the one to report; a leftover is replaced by the next write.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write_synced(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    // The umask may have taken bits away that others (a gateway's group) need.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes a folder with its parents if it is missing, and sets its mode.
pub fn private_dir(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Makes a private folder and finds out whether files can be written in it; nothing else is left.
pub fn probe_private_dir(path: &Path) -> io::Result<()> {
    let probe = path.join(format!(".probe.{}.tmp", std::process::id()));
    private_dir(path, 0o700)
        .and_then(|()| write_atomic(&probe, b"probe", 0o600))
        .and_then(|()| fs::remove_file(&probe))
        .map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => io::Error::new(
                error.kind(),
                format!("{error}: run this as the user that the daemon runs as, or with sudo"),
            ),
            _ => error,
        })
}

/// Reads a file that holds a key. One that others can read or write is refused: whoever has read it
/// stands for this daemon. The error says how to mend it.
pub fn read_key(path: &Path) -> io::Result<Vec<u8>> {
    let mode = match fs::metadata(path) {
        Ok(metadata) => metadata.permissions().mode() & 0o7777,
        Err(error) => return Err(explained(path, error)),
    };
    if mode & 0o077 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "others can read or change it (mode {mode:04o}): chmod 600 {0}, and join this node \
                 again if somebody may have read it",
                path.display()
            ),
        ));
    }
    fs::read(path).map_err(|error| explained(path, error))
}

/// What is not ours to read, with the user that it should belong to.
pub fn explained(path: &Path, error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return error;
    }
    let uid = nix::unistd::geteuid();
    let user = nix::unistd::User::from_uid(uid).ok().flatten();
    let user = user.map_or_else(|| uid.to_string(), |user| user.name);
    io::Error::new(
        error.kind(),
        format!(
            "{error}: this runs as user {user}, which may not read it; it and its folder must belong to \
             that user: chown -R {user} {}",
            path.parent().unwrap_or(path).display()
        ),
    )
}

fn invalid(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_others_can_read_is_refused_with_its_mending() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("key.pem");
        write_atomic(&path, b"key", 0o640).expect("write");
        let error = read_key(&path).expect_err("refused").to_string();
        assert!(error.contains("mode 0640"), "{error}");
        assert!(
            error.contains(&format!("chmod 600 {}", path.display())),
            "{error}"
        );
        write_atomic(&path, b"key", 0o600).expect("write");
        assert_eq!(read_key(&path).expect("read"), b"key");
    }

    #[test]
    fn a_write_replaces_the_whole_file_with_the_mode_asked_for() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("ledger.json");
        write_atomic(&path, b"one, and longer", 0o600).expect("write");
        write_atomic(&path, b"two", 0o640).expect("write again");
        assert_eq!(fs::read(&path).expect("read"), b"two");
        assert_eq!(
            fs::metadata(&path).expect("stat").permissions().mode() & 0o777,
            0o640
        );
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1);
    }
}
