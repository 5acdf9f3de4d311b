//! Replicas' folders: where agent, gateway and replica meet (`RUN_DIR/ID/`), and the files beside them
//! that tell the gateway how to reach a replica (`RUN_DIR/ID.json`).
//!
//! A folder is a small tmpfs of the replica's own user and the gateway's group. Only root writes to
//! `run_dir` itself, so its entries cannot be swapped; what lies inside a folder is the replica's, and
//! is never opened here. Every operation may be repeated.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{Gid, Uid, fchown};
use shared::api::local::LocalReplica;
use shared::ids::ReplicaId;

use crate::replica::LocalFiles;

/// Room for a socket, a second one while a server replaces it, and a few files of a runtime's own.
const TMPFS_OPTIONS: &str = "size=64k,nr_inodes=16,mode=0710";

#[derive(Clone, Debug)]
pub struct Folders {
    run_dir: PathBuf,
    gateway_gid: Gid,
}

#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", path.display())]
pub struct FolderError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed<E: Into<io::Error>>(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError {
        operation,
        path,
        source: source.into(),
    }
}

impl Folders {
    /// Makes `run_dir`: readable by the gateway's group, closed to everybody else.
    pub fn open(run_dir: &Path, gateway_gid: Gid) -> Result<Self, FolderError> {
        make_passable(run_dir).map_err(failed("make folder", run_dir))?;
        set_owner(run_dir, Uid::from_raw(0), gateway_gid, 0o750)?;
        Ok(Self {
            run_dir: run_dir.to_owned(),
            gateway_gid,
        })
    }

    pub fn path(&self, replica: &ReplicaId) -> PathBuf {
        self.run_dir.join(replica.as_str())
    }

    fn announcement(&self, replica: &ReplicaId) -> PathBuf {
        self.run_dir.join(LocalReplica::file_name(replica))
    }

    /// Under this name until it is whole.
    fn half_announcement(&self, replica: &ReplicaId) -> PathBuf {
        self.run_dir.join(format!(".{replica}.json.tmp"))
    }

    /// A fresh folder, also where an earlier attempt left one.
    pub fn make(&self, replica: &ReplicaId, uid: u32) -> Result<PathBuf, FolderError> {
        self.remove(replica)?;
        let path = self.path(replica);
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(failed("make folder", &path))?;
        let options = format!("{TMPFS_OPTIONS},uid={uid},gid={}", self.gateway_gid);
        mount(
            Some("tmpfs"),
            &path,
            Some("tmpfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            Some(options.as_str()),
        )
        .map_err(failed("mount a tmpfs on", &path))?;
        Ok(path)
    }

    /// Tells the gateway of a replica whose container runs.
    pub fn announce(&self, replica: &LocalReplica) -> Result<(), FolderError> {
        let path = self.announcement(&replica.replica);
        let temporary = self.half_announcement(&replica.replica);
        let text = serde_json::to_vec_pretty(replica).expect("text keys and whole numbers");
        remove_file(&temporary)?;
        let written = write_for_group(&temporary, &text, self.gateway_gid)
            .and_then(|()| fs::rename(&temporary, &path));
        written.map_err(failed("write", &path))
    }

    /// Takes the announcement back, then the folder.
    pub fn remove(&self, replica: &ReplicaId) -> Result<(), FolderError> {
        remove_file(&self.announcement(replica))?;
        remove_file(&self.half_announcement(replica))?;
        let path = self.path(replica);
        // More than one, if an agent was killed between two attempts.
        while is_mount(&path).map_err(failed("look at", &path))? {
            umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
                .map_err(failed("unmount", &path))?;
        }
        match fs::remove_dir(&path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(failed("remove folder", &path)(e)),
        }
    }

    /// What there is for each replica.
    pub fn list(&self) -> Result<BTreeMap<ReplicaId, LocalFiles>, FolderError> {
        let mut found: BTreeMap<ReplicaId, LocalFiles> = BTreeMap::new();
        let entries = fs::read_dir(&self.run_dir).map_err(failed("list", &self.run_dir))?;
        for entry in entries {
            let name = entry.map_err(failed("list", &self.run_dir))?.file_name();
            match parse_entry(&name) {
                Some(Entry::Folder(id)) => found.entry(id).or_default().folder = true,
                Some(Entry::Announcement(id)) => found.entry(id).or_default().announced = true,
                None => {}
            }
        }
        Ok(found)
    }
}

enum Entry {
    Folder(ReplicaId),
    Announcement(ReplicaId),
}

fn parse_entry(name: &OsString) -> Option<Entry> {
    let name = name.to_str()?;
    match name.strip_suffix(".json") {
        Some(id) => ReplicaId::parse(id).ok().map(Entry::Announcement),
        None => ReplicaId::parse(name).ok().map(Entry::Folder),
    }
}

/// Makes a folder and what is missing above it so that every user may pass through, whatever this
/// process's umask is: a gateway that is not root must come to what lies below.
pub fn make_passable(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent() {
        make_passable(above)?;
    }
    DirBuilder::new().mode(0o755).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

/// Whether another file system lies there than around it.
fn is_mount(path: &Path) -> io::Result<bool> {
    let here = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    let around = fs::symlink_metadata(path.parent().unwrap_or(path))?;
    Ok(here.is_dir() && here.dev() != around.dev())
}

fn remove_file(path: &Path) -> Result<(), FolderError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed("remove", path)(e)),
    }
}

fn write_for_group(path: &Path, bytes: &[u8], group: Gid) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    fchown(&file, None, Some(group))?;
    file.set_permissions(fs::Permissions::from_mode(0o640))
}

/// Sets owner and mode of a folder, refusing to follow a link.
pub fn set_owner(path: &Path, uid: Uid, gid: Gid, mode: u32) -> Result<(), FolderError> {
    let flags = nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW;
    let folder: File = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(failed("open folder", path))?;
    fchown(&folder, Some(uid), Some(gid)).map_err(failed("set the owner of", path))?;
    folder
        .set_permissions(fs::Permissions::from_mode(mode))
        .map_err(failed("set the mode of", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_that_are_no_replicas_are_left_alone() {
        let parse = |name: &str| parse_entry(&OsString::from(name));
        assert!(matches!(parse("0123456789abcdef"), Some(Entry::Folder(_))));
        assert!(matches!(
            parse("0123456789abcdef.json"),
            Some(Entry::Announcement(_))
        ));
        for other in ["gateway.sock", ".0123456789abcdef.json.tmp", "x.json", ""] {
            assert!(parse(other).is_none(), "{other}");
        }
    }

    #[test]
    fn what_an_announcement_that_was_cut_off_left_goes_with_the_replica() {
        let folder = tempfile::tempdir().expect("folder");
        let folders = Folders {
            run_dir: folder.path().to_owned(),
            gateway_gid: nix::unistd::getegid(),
        };
        let id = ReplicaId::from_bits(1);
        fs::write(folder.path().join(format!(".{id}.json.tmp")), "{").expect("written");
        folders.remove(&id).expect("removed");
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 0);
    }

    #[test]
    fn an_ordinary_folder_is_no_mount_and_a_missing_one_neither() {
        let folder = tempfile::tempdir().expect("folder");
        let inner = folder.path().join("x");
        assert!(!is_mount(&inner).expect("missing"));
        fs::create_dir(&inner).expect("made");
        assert!(!is_mount(&inner).expect("ordinary"));
    }
}
