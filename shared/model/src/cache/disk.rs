//! An object's two files, `data` and `have`: what of them to believe, and how to change them so that a
//! crash in between leaves nothing to believe that is not so. The rules are those of `object`.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc::O_NOFOLLOW;
use shared::digest::{Digest, chunk_digest};
use shared::manifest::{ChunkRef, FileEntry};

use super::error::FileError;
use super::have::{Have, sample};

const FILLING_MODE: u32 = 0o600;

/// Which object a file is. Executable files are objects of their own, since links share a mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ObjectKey {
    pub(crate) root: Digest,
    pub(crate) executable: bool,
}

impl ObjectKey {
    pub(crate) fn of(file: &FileEntry) -> Self {
        Self {
            root: file.root,
            executable: file.executable,
        }
    }

    /// The name of the object's folder.
    pub(super) fn folder_name(self) -> String {
        let suffix = if self.executable { ".x" } else { "" };
        format!("{}{suffix}", self.root)
    }

    pub(super) fn parse(folder_name: &str) -> Option<Self> {
        let (hex, executable) = match folder_name.strip_suffix(".x") {
            Some(hex) => (hex, true),
            None => (folder_name, false),
        };
        let root = hex.parse().ok()?;
        Some(Self { root, executable })
    }

    fn final_mode(self) -> u32 {
        if self.executable { 0o555 } else { 0o444 }
    }
}

#[derive(Debug)]
pub(super) struct ObjectFiles {
    pub(super) key: ObjectKey,
    folder: PathBuf,
    /// The file as a manifest describes it; its path is any of those that it has.
    pub(super) entry: FileEntry,
}

/// What was found, or begun.
pub(super) enum Loaded {
    Partial { file: File, have: Have },
    Complete,
}

impl ObjectFiles {
    pub(super) fn new(objects: &Path, entry: FileEntry) -> Self {
        let key = ObjectKey::of(&entry);
        Self {
            key,
            folder: objects.join(key.folder_name()),
            entry,
        }
    }

    pub(super) fn data_path(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn have_path(&self) -> PathBuf {
        self.folder.join("have")
    }

    /// Whether its space has been taken.
    pub(super) fn exist(&self) -> bool {
        fs::symlink_metadata(self.data_path()).is_ok()
    }

    /// Reads what is on disk and decides what of it to believe.
    pub(super) fn load(&self) -> Result<Loaded, FileError> {
        self.prepare_folder()?;
        let have = self.read_have()?;
        let path = self.data_path();
        let data = match fs::symlink_metadata(&path) {
            Ok(data) => Some(data),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(FileError::of("look at", &path)(e)),
        };
        let data = data.filter(|data| data.is_file() && data.len() == self.entry.size_bytes);
        match (data, have) {
            (Some(data), Some(have)) if have.is_complete() => {
                if data.mode() & 0o7777 != self.key.final_mode() {
                    self.make_read_only()?;
                }
                Ok(Loaded::Complete)
            }
            (Some(data), Some(have))
                if data.nlink() == 1 && data.mode() & 0o7777 == FILLING_MODE =>
            {
                self.resume(have)?.map_or_else(|| self.start(), Ok)
            }
            _ => self.start(),
        }
    }

    /// Large files: data, `have`, then the mode, so that a crash in between costs nothing. Small
    /// ones: one sync for data and mode; what a crash may cost is one chunk.
    pub(super) fn make_durable(&self, file: &File, have: &Have) -> Result<(), FileError> {
        let path = self.data_path();
        let large = self.entry.chunks.len() > 1;
        if large {
            file.sync_data().map_err(FileError::of("sync", &path))?;
            self.write_have(have)?;
        }
        file.set_permissions(Permissions::from_mode(self.key.final_mode()))
            .and_then(|()| file.sync_all())
            .map_err(FileError::of("sync", &path))?;
        if !large {
            self.write_have(have)?;
        }
        Ok(())
    }

    /// Replaces `have` in one step. Its own durability matters only for how much is fetched again,
    /// but its contents must be whole when its name is: hence the sync before the rename.
    pub(super) fn write_have(&self, have: &Have) -> Result<(), FileError> {
        let (path, new) = (self.have_path(), self.folder.join("have.new"));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        let mut file = options
            .mode(FILLING_MODE)
            .custom_flags(O_NOFOLLOW)
            .open(&new)
            .map_err(FileError::of("create", &new))?;
        let written = file.write_all(&have.encode());
        let written = written.and_then(|()| match self.entry.chunks.len() {
            // A small file's `have` may be lost or garbled by a power cut: it is fetched again.
            0 | 1 => Ok(()),
            _ => file.sync_data(),
        });
        written.map_err(FileError::of("write", &new))?;
        fs::rename(&new, &path).map_err(FileError::of("rename", &new))
    }

    /// Takes up a half-filled file; `None` if a sample of it is not what `have` says.
    fn resume(&self, have: Have) -> Result<Option<Loaded>, FileError> {
        let path = self.data_path();
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(O_NOFOLLOW);
        let file = options.open(&path).map_err(FileError::of("open", &path))?;
        let chunks: Vec<ChunkRef> = self.entry.chunk_refs().collect();
        for index in sample(&have, random()) {
            let chunk = chunks[index];
            let mut bytes = vec![0; chunk.len_bytes as usize];
            file.read_exact_at(&mut bytes, chunk.offset_bytes)
                .map_err(FileError::of("read", &path))?;
            if chunk_digest(chunk.place, &bytes) != chunk.digest {
                tracing::warn!(path = %path.display(), "cached file is damaged, starting it over");
                return Ok(None);
            }
        }
        Ok(Some(Loaded::Partial { file, have }))
    }

    /// Begins with an empty file of the full size. `have` goes first, durably: it must never vouch
    /// for a file that it does not know.
    fn start(&self) -> Result<Loaded, FileError> {
        let path = self.data_path();
        let had_any = self.clear()?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        let file = options
            .mode(FILLING_MODE)
            .custom_flags(O_NOFOLLOW)
            .open(&path)
            .map_err(FileError::of("create", &path))?;
        if let Err(source) = allocate(&file, self.entry.size_bytes) {
            // A file without its space is of no use, and says that there is some.
            let _ = fs::remove_file(&path);
            return Err(FileError::of("allocate", &path)(source));
        }
        if had_any {
            sync_folder(&self.folder)?;
        }
        let (root, size, count) = self.identity();
        Ok(Loaded::Partial {
            file,
            have: Have::none(root, size, count),
        })
    }

    fn clear(&self) -> Result<bool, FileError> {
        let had_have = remove_if_there(&self.have_path())?;
        if had_have {
            sync_folder(&self.folder)?;
        }
        Ok(remove_if_there(&self.data_path())? || had_have)
    }

    fn identity(&self) -> (Digest, u64, usize) {
        let entry = &self.entry;
        (entry.root, entry.size_bytes, entry.chunks.len())
    }

    fn prepare_folder(&self) -> Result<(), FileError> {
        match DirBuilder::new().mode(0o700).create(&self.folder) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map_err(FileError::of("make folder", &self.folder)),
        }
        let metadata =
            fs::symlink_metadata(&self.folder).map_err(FileError::of("look at", &self.folder))?;
        if metadata.is_dir() {
            return Ok(());
        }
        let source = io::Error::from(io::ErrorKind::NotADirectory);
        Err(FileError::of("use as a folder", &self.folder)(source))
    }

    fn read_have(&self) -> Result<Option<Have>, FileError> {
        let path = self.have_path();
        let mut options = OpenOptions::new();
        let file = match options.read(true).custom_flags(O_NOFOLLOW).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(FileError::of("open", &path)(e)),
        };
        let (root, size, count) = self.identity();
        // One byte more than a right one has tells a longer one.
        let limit = Have::encoded_len(count) as u64 + 1;
        let mut bytes = Vec::new();
        file.take(limit)
            .read_to_end(&mut bytes)
            .map_err(FileError::of("read", &path))?;
        Ok(Have::decode(&bytes, root, size, count))
    }

    fn make_read_only(&self) -> Result<(), FileError> {
        let path = self.data_path();
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(O_NOFOLLOW).open(&path);
        file.and_then(|file| {
            file.set_permissions(Permissions::from_mode(self.key.final_mode()))?;
            file.sync_all()
        })
        .map_err(FileError::of("make read-only", &path))
    }
}

/// Takes the space now, so that a full disk is noticed before the download, not within it.
fn allocate(file: &File, size_bytes: u64) -> io::Result<()> {
    if size_bytes == 0 {
        return Ok(());
    }
    let len = i64::try_from(size_bytes).map_err(|_| io::Error::from(Errno::EFBIG))?;
    match fallocate(file, FallocateFlags::empty(), 0, len) {
        // Some file systems cannot: then a full disk shows while writing.
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => file.set_len(size_bytes),
        other => Ok(other?),
    }
}

fn remove_if_there(path: &Path) -> Result<bool, FileError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(FileError::of("remove", path)(e)),
    }
}

pub(super) fn sync_folder(path: &Path) -> Result<(), FileError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(FileError::of("sync folder", path))
}

/// Which chunks to look at again need not be random to anybody but bad luck.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}
