//! Opens a cache: takes the lock, clears away what a crash left, and takes stock.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc::O_NOFOLLOW;
use shared::manifest::ManifestId;

use super::disk::ObjectKey;
use super::error::{FileError, OpenError};
use super::table::{Table, ViewRecord};

pub(super) const OBJECTS: &str = "objects";
pub(super) const VIEWS: &str = "views";
pub(super) const TMP: &str = "tmp";
/// Holds the version of the folder's form as text; absent in folders of before there were versions.
const FORMAT_FILE: &str = "format";
const FORMAT: u32 = 1;

pub(super) struct Opened {
    /// Free of links.
    pub(super) folder: PathBuf,
    pub(super) table: Table,
    pub(super) lock: Flock<File>,
}

pub(super) fn open(folder: &Path) -> Result<Opened, OpenError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
        .create(folder)
        .map_err(FileError::of("make folder", folder))?;
    // The folder itself may be a link to a larger disk; nothing in it may.
    let folder = fs::canonicalize(folder).map_err(FileError::of("look at", folder))?;
    check_own(&folder)?;
    let lock = take_lock(&folder)?;
    check_format(&folder)?;
    for name in [OBJECTS, VIEWS, TMP] {
        let path = folder.join(name);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(FileError::of("make folder", &path)(e).into());
            }
            _ => check_own(&path)?,
        }
    }
    clear(&folder.join(TMP))?;
    let (objects, inodes) = objects(&folder.join(OBJECTS))?;
    let views = views(&folder.join(VIEWS), &inodes)?;
    let table = Table {
        objects,
        views,
        pins: None,
    };
    Ok(Opened {
        folder,
        table,
        lock,
    })
}

/// What the file system has for us.
pub(super) fn free_bytes(folder: &Path) -> Result<u64, FileError> {
    let stat = nix::sys::statvfs::statvfs(folder)
        .map_err(io::Error::from)
        .map_err(FileError::of("look at the disk of", folder))?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// A real folder of ours that nobody else may write to.
fn check_own(path: &Path) -> Result<(), OpenError> {
    let metadata = fs::symlink_metadata(path).map_err(FileError::of("look at", path))?;
    let problem = if !metadata.is_dir() {
        "is not a folder"
    } else if metadata.uid() != nix::unistd::geteuid().as_raw() {
        "belongs to another user"
    } else if metadata.mode() & 0o022 != 0 {
        "may be written to by others"
    } else {
        return Ok(());
    };
    Err(OpenError::Unsafe {
        path: path.to_owned(),
        problem,
    })
}

/// Before anything is made, moved or cleared away.
fn check_format(folder: &Path) -> Result<(), OpenError> {
    let path = folder.join(FORMAT_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => {
            let found = text.trim().parse().unwrap_or(u32::MAX);
            if found > FORMAT {
                return Err(OpenError::Newer {
                    path: folder.to_owned(),
                    found,
                    known: FORMAT,
                });
            }
            Ok(())
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // A disk without room for two bytes is found full by whoever needs more.
            let _ = fs::write(&path, format!("{FORMAT}\n"));
            Ok(())
        }
        Err(e) => Err(FileError::of("read", &path)(e).into()),
    }
}

fn take_lock(folder: &Path) -> Result<Flock<File>, OpenError> {
    let path = folder.join("lock");
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(O_NOFOLLOW)
        .open(&path)
        .map_err(FileError::of("open", &path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => OpenError::Busy {
            path: folder.to_owned(),
        },
        errno => FileError::of("lock", &path)(errno.into()).into(),
    })
}

fn clear(tmp: &Path) -> Result<(), FileError> {
    for path in entries(tmp)? {
        let removed = match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&path),
            _ => fs::remove_file(&path),
        };
        removed.map_err(FileError::of("remove", &path))?;
    }
    Ok(())
}

type Objects = std::collections::BTreeMap<ObjectKey, u64>;
type Inodes = HashMap<u64, ObjectKey>;

/// Objects with their sizes, and which inode is whose. Folders without a file are removed.
fn objects(folder: &Path) -> Result<(Objects, Inodes), FileError> {
    let (mut objects, mut inodes) = (Objects::new(), Inodes::new());
    for path in entries(folder)? {
        let Some(key) = name_of(&path).and_then(ObjectKey::parse) else {
            tracing::warn!(path = %path.display(), "not a part of the model cache, left alone");
            continue;
        };
        let data = path.join("data");
        match fs::symlink_metadata(&data) {
            Ok(metadata) => {
                objects.insert(key, metadata.len());
                inodes.insert(metadata.ino(), key);
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                fs::remove_dir_all(&path).map_err(FileError::of("remove", &path))?;
            }
            Err(e) => return Err(FileError::of("look at", &data)(e)),
        }
    }
    Ok((objects, inodes))
}

fn views(
    folder: &Path,
    inodes: &Inodes,
) -> Result<std::collections::BTreeMap<ManifestId, ViewRecord>, FileError> {
    let mut views = std::collections::BTreeMap::new();
    for path in entries(folder)? {
        let Some(id) = name_of(&path).and_then(|name| name.parse::<ManifestId>().ok()) else {
            tracing::warn!(path = %path.display(), "not a part of the model cache, left alone");
            continue;
        };
        let metadata = fs::symlink_metadata(&path).map_err(FileError::of("look at", &path))?;
        let mut record = ViewRecord {
            objects: BTreeSet::new(),
            own_bytes: 0,
            size_bytes: 0,
            last_used: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        };
        walk(&path, &mut |file| {
            record.size_bytes += file.len();
            match inodes.get(&file.ino()) {
                Some(key) => drop(record.objects.insert(*key)),
                None => record.own_bytes += file.len(),
            }
        })?;
        views.insert(id, record);
    }
    Ok(views)
}

fn walk(folder: &Path, visit: &mut dyn FnMut(&Metadata)) -> Result<(), FileError> {
    for path in entries(folder)? {
        let metadata = fs::symlink_metadata(&path).map_err(FileError::of("look at", &path))?;
        if metadata.is_dir() {
            walk(&path, visit)?;
        } else {
            visit(&metadata);
        }
    }
    Ok(())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let listed =
        fs::read_dir(folder).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    listed.map_err(FileError::of("list", folder))
}

fn name_of(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}
