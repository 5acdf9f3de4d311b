//! Lists the files of a folder that is about to become a model.
//!
//! What always holds: the list is sorted by path and the same for the same folder; nothing is left
//! out silently, hidden files included: what a manifest cannot hold (a socket, a link that leads out,
//! an empty folder) is an error that names it and says how to mend it. Links that stay inside the
//! folder are followed, and what they lead to is listed under the link's name.
//!
//! Not here: reading the files (see `hash`), which notices whatever changes after the scan.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use shared::manifest::{MAX_FILES, ManifestError, check_path};

#[derive(Clone, Copy, Debug)]
pub struct ScanOptions {
    /// More files than this are refused. Default: what a manifest may hold.
    pub max_files: usize,
}

impl Default for ScanOptions {
    fn default() -> Self {
        Self {
            max_files: MAX_FILES,
        }
    }
}

/// A regular file, as it was when it was listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScannedFile {
    /// Relative to the folder, `/` between parts.
    pub path: String,
    pub size_bytes: u64,
    pub executable: bool,
    pub stamp: FileStamp,
}

/// What changes when a file is written to or replaced (within the file system's clock tick).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
}

impl FileStamp {
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// Links that lead to each other.
const ELOOP: i32 = nix::errno::Errno::ELOOP as i32;

/// Why a folder cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error("read {path:?}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path:?} does not exist")]
    Absent { path: PathBuf },
    #[error("{path:?} is not a folder")]
    NotAFolder { path: PathBuf },
    #[error("folder {path:?} holds no files")]
    Empty { path: PathBuf },
    #[error("folder {path:?} is empty, and a model holds only files")]
    EmptyFolder { path: PathBuf },
    #[error("{path:?} is a link to {target:?}, which is outside the folder")]
    LeadsOut { path: PathBuf, target: PathBuf },
    #[error("{path:?} is a link that leads back to itself, without end")]
    Loop { path: PathBuf },
    #[error("{path:?} is a link to {target:?}, which does not exist")]
    Dangling { path: PathBuf, target: PathBuf },
    #[error("{path:?} is a {kind}, not a file")]
    Special { path: PathBuf, kind: &'static str },
    #[error("the name {path:?} is not UTF-8")]
    NotUtf8 { path: PathBuf },
    #[error("the name of {path:?} cannot stand in a manifest")]
    Name {
        path: PathBuf,
        #[source]
        source: ManifestError,
    },
    #[error("folder {path:?} holds more than {limit} files")]
    TooMany { path: PathBuf, limit: usize },
}

impl ScanError {
    /// How to mend it.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Read { source, .. } => return read_hint(source),
            Self::Absent { .. } | Self::NotAFolder { .. } | Self::Empty { .. } => {
                "name the folder that holds the model's files"
            }
            Self::EmptyFolder { .. } => "remove it, or put a file into it",
            Self::LeadsOut { .. } => {
                "copy the model with `cp -rL FROM TO`, so that links become files, and push the copy"
            }
            Self::Loop { .. } => "remove the link",
            Self::Dangling { .. } => "remove the link, or put the file where it leads",
            Self::Special { .. } => "remove it from the folder, or push a copy of the files alone",
            Self::NotUtf8 { .. } | Self::Name { .. } => "rename it",
            Self::TooMany { .. } => {
                "push the model alone, not what lies around it (data sets, .git, environments), or pack the small files into one archive"
            }
        })
    }
}

/// How to mend a file that cannot be read.
pub fn read_hint(source: &io::Error) -> Option<&'static str> {
    (source.kind() == io::ErrorKind::PermissionDenied)
        .then_some("let whoever pushes read it (`chmod -R a+rX FOLDER`), or push as its owner")
}

/// What became of a file since it was listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Grew {
        from: u64,
        to: u64,
    },
    Shrank {
        from: u64,
        to: u64,
    },
    /// Another file has its name.
    Replaced,
    /// Its time of change is another.
    Written,
    Removed,
    /// It was not there.
    Appeared,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Grew { from, to } => write!(f, "grew from {from} to {to} bytes"),
            Self::Shrank { from, to } => write!(f, "shrank from {from} to {to} bytes"),
            Self::Replaced => f.write_str("was replaced by another file"),
            Self::Written => f.write_str("was written to"),
            Self::Removed => f.write_str("was removed"),
            Self::Appeared => f.write_str("appeared"),
        }
    }
}

impl FileStamp {
    /// What happened between two looks at one name.
    pub fn change_to(&self, later: &Self) -> Option<Change> {
        let (from, to) = (self.size_bytes, later.size_bytes);
        if self == later {
            None
        } else if (self.device, self.inode) != (later.device, later.inode) {
            Some(Change::Replaced)
        } else if to > from {
            Some(Change::Grew { from, to })
        } else if to < from {
            Some(Change::Shrank { from, to })
        } else {
            Some(Change::Written)
        }
    }
}

/// The first file that is not as it was, of two scans of one folder.
pub fn changed(before: &[ScannedFile], after: &[ScannedFile]) -> Option<(String, Change)> {
    let mut later = after.iter().peekable();
    for file in before {
        if let Some(new) = later.next_if(|it| it.path < file.path) {
            return Some((new.path.clone(), Change::Appeared));
        }
        let change = match later.next_if(|it| it.path == file.path) {
            Some(same) => file.stamp.change_to(&same.stamp),
            None => Some(Change::Removed),
        };
        if let Some(change) = change {
            return Some((file.path.clone(), change));
        }
    }
    later.next().map(|new| (new.path.clone(), Change::Appeared))
}

/// Lists every file under `dir`.
pub fn scan(dir: &Path, options: ScanOptions) -> Result<Vec<ScannedFile>, ScanError> {
    let root = fs::canonicalize(dir).map_err(|source| {
        let path = dir.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => ScanError::Absent { path },
            _ => ScanError::Read { path, source },
        }
    })?;
    if !root.is_dir() {
        return Err(ScanError::NotAFolder {
            path: dir.to_owned(),
        });
    }
    let mut scan = Scan {
        shown: dir,
        root: &root,
        options,
        files: Vec::new(),
    };
    scan.folder("", &mut vec![root.clone()])?;
    let mut files = scan.files;
    if files.is_empty() {
        return Err(ScanError::Empty {
            path: dir.to_owned(),
        });
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

struct Scan<'a> {
    /// The folder as the user named it, for messages.
    shown: &'a Path,
    /// The same, free of links: what "inside" is measured against.
    root: &'a Path,
    options: ScanOptions,
    files: Vec<ScannedFile>,
}

impl Scan<'_> {
    /// `above` holds the real paths of the folders that the walk is in; `above.last()` is this one.
    fn folder(&mut self, relative: &str, above: &mut Vec<PathBuf>) -> Result<(), ScanError> {
        let here = self.shown.join(relative);
        let read = |source| ScanError::Read {
            path: here.clone(),
            source,
        };
        let mut empty = true;
        for entry in fs::read_dir(&here).map_err(read)? {
            let name = entry.map_err(read)?.file_name();
            empty = false;
            let name = name.to_str().ok_or_else(|| ScanError::NotUtf8 {
                path: here.join(&name),
            })?;
            let path = if relative.is_empty() {
                name.to_owned()
            } else {
                format!("{relative}/{name}")
            };
            check_path(&path).map_err(|source| ScanError::Name {
                path: here.join(name),
                source,
            })?;
            self.entry(path, above)?;
        }
        if empty && !relative.is_empty() {
            return Err(ScanError::EmptyFolder { path: here });
        }
        Ok(())
    }

    fn entry(&mut self, relative: String, above: &mut Vec<PathBuf>) -> Result<(), ScanError> {
        let path = self.shown.join(&relative);
        let read = |source| ScanError::Read {
            path: path.clone(),
            source,
        };
        let mut metadata = fs::symlink_metadata(&path).map_err(read)?;
        if metadata.is_symlink() {
            let target = fs::canonicalize(&path).map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => ScanError::Dangling {
                    path: path.clone(),
                    target: fs::read_link(&path).unwrap_or_default(),
                },
                _ if source.raw_os_error() == Some(ELOOP) => ScanError::Loop { path: path.clone() },
                _ => read(source),
            })?;
            if !target.starts_with(self.root) {
                return Err(ScanError::LeadsOut { path, target });
            }
            if above.contains(&target) {
                return Err(ScanError::Loop { path });
            }
            metadata = fs::metadata(&path).map_err(read)?;
        }
        if metadata.is_dir() {
            let real = fs::canonicalize(&path).map_err(read)?;
            above.push(real);
            self.folder(&relative, above)?;
            above.pop();
            return Ok(());
        }
        if let Some(kind) = special_kind(&metadata) {
            return Err(ScanError::Special { path, kind });
        }
        if self.files.len() >= self.options.max_files {
            return Err(ScanError::TooMany {
                path: self.shown.to_owned(),
                limit: self.options.max_files,
            });
        }
        self.files.push(ScannedFile {
            path: relative,
            size_bytes: metadata.len(),
            executable: metadata.mode() & 0o111 != 0,
            stamp: FileStamp::of(&metadata),
        });
        Ok(())
    }
}

fn special_kind(metadata: &Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    if kind.is_file() {
        None
    } else if kind.is_socket() {
        Some("socket")
    } else if kind.is_fifo() {
        Some("named pipe")
    } else {
        Some("device")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("temporary folder");
        fs::create_dir_all(dir.path().join("b/deep")).expect("folder");
        fs::write(dir.path().join("b/deep/z"), b"zz").expect("file");
        fs::write(dir.path().join("a"), b"a").expect("file");
        fs::write(dir.path().join(".hidden"), b"").expect("file");
        dir
    }

    fn paths(dir: &Path) -> Vec<String> {
        let files = scan(dir, ScanOptions::default()).expect("scans");
        files.into_iter().map(|f| f.path).collect()
    }

    fn refusal(dir: &Path) -> ScanError {
        scan(dir, ScanOptions::default()).expect_err("refused")
    }

    #[test]
    fn files_are_listed_in_order_hidden_ones_too() {
        assert_eq!(paths(folder().path()), [".hidden", "a", "b/deep/z"]);
    }

    #[test]
    fn only_the_execute_bit_is_kept() {
        let dir = folder();
        fs::set_permissions(dir.path().join("a"), fs::Permissions::from_mode(0o700)).expect("mode");
        let files = scan(dir.path(), ScanOptions::default()).expect("scans");
        let flags: Vec<bool> = files.iter().map(|f| f.executable).collect();
        assert_eq!(flags, [false, true, false]);
    }

    #[test]
    fn a_link_that_stays_inside_is_followed_to_a_file_and_to_a_folder() {
        let dir = folder();
        symlink("a", dir.path().join("link")).expect("link");
        symlink("b", dir.path().join("c")).expect("link");
        assert_eq!(
            paths(dir.path()),
            [".hidden", "a", "b/deep/z", "c/deep/z", "link"]
        );
    }

    #[test]
    fn a_link_that_leads_out_is_refused_and_named() {
        let dir = folder();
        symlink("/etc/passwd", dir.path().join("b/out")).expect("link");
        let error = refusal(dir.path());
        assert!(matches!(error, ScanError::LeadsOut { .. }), "{error}");
        assert!(error.to_string().contains("b/out"), "{error}");
    }

    #[test]
    fn a_link_to_a_folder_above_it_and_a_link_to_nothing_are_refused() {
        let dir = folder();
        symlink("..", dir.path().join("b/up")).expect("link");
        assert!(matches!(refusal(dir.path()), ScanError::Loop { .. }));
        fs::remove_file(dir.path().join("b/up")).expect("removed");
        symlink("gone", dir.path().join("b/gone-too")).expect("link");
        assert!(matches!(refusal(dir.path()), ScanError::Dangling { .. }));
    }

    #[test]
    fn links_that_lead_to_each_other_are_a_loop() {
        let dir = folder();
        symlink("two", dir.path().join("one")).expect("link");
        symlink("one", dir.path().join("two")).expect("link");
        assert!(matches!(refusal(dir.path()), ScanError::Loop { .. }));
    }

    #[test]
    fn what_changed_between_two_scans_is_named() {
        let dir = folder();
        let list = || scan(dir.path(), ScanOptions::default()).expect("scans");
        let before = list();
        assert_eq!(changed(&before, &list()), None);
        let found = || changed(&before, &list()).map(|(path, change)| format!("{path} {change}"));
        fs::write(dir.path().join("a"), b"a longer one").expect("file");
        assert_eq!(found().as_deref(), Some("a grew from 1 to 12 bytes"));
        fs::write(dir.path().join("a"), b"").expect("file");
        assert_eq!(found().as_deref(), Some("a shrank from 1 to 0 bytes"));
        fs::write(dir.path().join("new"), b"a").expect("file");
        fs::rename(dir.path().join("new"), dir.path().join("a")).expect("renamed");
        assert_eq!(found().as_deref(), Some("a was replaced by another file"));
        fs::remove_file(dir.path().join("a")).expect("removed");
        assert_eq!(found().as_deref(), Some("a was removed"));
        let before = list();
        for name in ["0", "zz"] {
            fs::write(dir.path().join(name), b"").expect("file");
            let change = changed(&before, &list());
            assert_eq!(change, Some((name.to_owned(), Change::Appeared)));
            fs::remove_file(dir.path().join(name)).expect("removed");
        }
    }

    #[test]
    fn sockets_and_pipes_are_refused() {
        let dir = folder();
        let socket = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("binds");
        assert!(
            refusal(dir.path())
                .to_string()
                .contains("\" is a socket, not a file")
        );
        fs::remove_file(&socket).expect("removed");
        nix::unistd::mkfifo(&dir.path().join("p"), nix::sys::stat::Mode::S_IRUSR).expect("pipe");
        assert!(
            refusal(dir.path())
                .to_string()
                .contains("\" is a named pipe")
        );
    }

    #[test]
    fn a_name_that_is_not_utf8_or_holds_a_newline_is_refused() {
        let dir = folder();
        let bad = dir.path().join(OsStr::from_bytes(b"x\xff"));
        fs::write(&bad, b"").expect("file");
        assert!(matches!(refusal(dir.path()), ScanError::NotUtf8 { .. }));
        fs::remove_file(&bad).expect("removed");
        fs::write(dir.path().join("x\ny"), b"").expect("file");
        assert!(matches!(refusal(dir.path()), ScanError::Name { .. }));
    }

    #[test]
    fn an_empty_folder_is_named_rather_than_dropped() {
        let dir = folder();
        fs::create_dir(dir.path().join("b/none")).expect("folder");
        assert!(matches!(refusal(dir.path()), ScanError::EmptyFolder { .. }));
        let bare = tempfile::tempdir().expect("temporary folder");
        assert!(matches!(refusal(bare.path()), ScanError::Empty { .. }));
    }

    #[test]
    fn more_files_than_allowed_are_refused() {
        let dir = folder();
        assert!(matches!(
            scan(dir.path(), ScanOptions { max_files: 2 }),
            Err(ScanError::TooMany { limit: 2, .. })
        ));
    }
}
