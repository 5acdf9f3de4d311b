//! Reads a replica's log from its end, and what is written later. Blocking; no async here.
//!
//! The folder belongs to the replica's user, so nothing in it is trusted: names are opened within the
//! folder without following links, and only regular files are read. The logger renames
//! `current.jsonl` to `.1` (and so on up) when it is full; what was not read of it yet is read first.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use shared::ids::ReplicaId;

/// The most that is read from the end.
pub(crate) const MAX_TAIL_BYTES: u64 = 8 << 20;
/// The most that one look for more returns.
const MAX_MORE_BYTES: u64 = 1 << 20;
/// The logger keeps four files.
const NAMES: [&str; 4] = [
    "current.jsonl",
    "current.jsonl.1",
    "current.jsonl.2",
    "current.jsonl.3",
];

#[derive(Debug)]
pub(crate) struct LogTail {
    folder: OwnedFd,
    /// What was read last; `None` before there was a file.
    at: Option<Position>,
}

#[derive(Debug)]
struct Position {
    file: File,
    inode: u64,
    offset: u64,
}

impl LogTail {
    /// `None` when the replica has no log here.
    pub(crate) fn open(log_dir: &Path, replica: &ReplicaId) -> io::Result<Option<Self>> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match open(&log_dir.join(replica.as_str()), flags, Mode::empty()) {
            Ok(folder) => Ok(Some(Self { folder, at: None })),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// At most `bytes` from the end, beginning with a whole line.
    pub(crate) fn tail(&mut self, bytes: u64) -> io::Result<Vec<u8>> {
        let wanted = bytes.min(MAX_TAIL_BYTES);
        let mut files = Vec::new();
        let mut total = 0;
        for name in NAMES {
            if total >= wanted && !files.is_empty() {
                break;
            }
            let Some((file, inode)) = self.file(name)? else {
                break;
            };
            let len = file.metadata()?.len();
            total = len.saturating_add(total);
            files.push((file, inode, len));
        }
        let skip = total.saturating_sub(wanted);
        let mut text = Vec::with_capacity(usize::try_from(total - skip).unwrap_or(0));
        // The oldest comes first, and only it can be cut.
        let mut offset = skip;
        for (file, inode, len) in files.into_iter().rev() {
            read_at(&file, offset, len, &mut text)?;
            offset = 0;
            self.at = Some(Position {
                file,
                inode,
                offset: len,
            });
        }
        if skip > 0 {
            let begin = text
                .iter()
                .position(|b| *b == b'\n')
                .map_or(text.len(), |i| i + 1);
            text.drain(..begin);
        }
        Ok(text)
    }

    /// What was written since; empty when nothing was.
    pub(crate) fn more(&mut self) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        if let Some(at) = &mut self.at {
            at.read_on(&mut text)?;
            if !text.is_empty() {
                return Ok(text);
            }
        }
        // Nothing in the file that was read last: has the logger gone on to a newer one?
        if let Some(next) = self.next_file()? {
            let at = self.at.insert(next);
            at.read_on(&mut text)?;
        }
        Ok(text)
    }

    /// The oldest file that is newer than the one read last.
    fn next_file(&self) -> io::Result<Option<Position>> {
        let read = self.at.as_ref().map(|at| at.inode);
        let mut newer = None;
        for name in NAMES {
            let Some((file, inode)) = self.file(name)? else {
                break;
            };
            if Some(inode) == read {
                return Ok(newer);
            }
            newer = Some(Position {
                file,
                inode,
                offset: 0,
            });
        }
        // The one read last is gone altogether: what is there now is all newer.
        Ok(newer)
    }

    fn file(&self, name: &str) -> io::Result<Option<(File, u64)>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(self.folder.as_fd(), name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            // Between two renames there is none of that name for a moment.
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::ELOOP) => return Err(not_a_file(name)),
            Err(e) => return Err(e.into()),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(not_a_file(name));
        }
        Ok(Some((file, metadata.ino())))
    }
}

impl Position {
    fn read_on(&mut self, text: &mut Vec<u8>) -> io::Result<()> {
        let len = self.file.metadata()?.len();
        if len < self.offset {
            // Somebody emptied it.
            self.offset = 0;
        }
        let end = len.min(self.offset + MAX_MORE_BYTES);
        read_at(&self.file, self.offset, end, text)?;
        self.offset = end;
        Ok(())
    }
}

fn read_at(file: &File, begin: u64, end: u64, text: &mut Vec<u8>) -> io::Result<()> {
    let len = usize::try_from(end.saturating_sub(begin)).map_err(io::Error::other)?;
    let start = text.len();
    text.resize(start + len, 0);
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut text[start + filled..], begin + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    text.truncate(start + filled);
    Ok(())
}

fn not_a_file(name: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{name} is not a regular file"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::path::PathBuf;

    struct Fixture {
        log_dir: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            let log_dir = tempfile::tempdir().expect("folder");
            let fixture = Self { log_dir };
            std::fs::create_dir(fixture.folder()).expect("folder");
            fixture
        }

        fn folder(&self) -> PathBuf {
            self.log_dir.path().join(id().as_str())
        }

        fn append(&self, name: &str, text: &str) {
            std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(self.folder().join(name))
                .and_then(|mut file| file.write_all(text.as_bytes()))
                .expect("write");
        }

        fn rename(&self, from: &str, to: &str) {
            std::fs::rename(self.folder().join(from), self.folder().join(to)).expect("rename");
        }

        fn open(&self) -> LogTail {
            LogTail::open(self.log_dir.path(), &id())
                .expect("readable")
                .expect("there")
        }
    }

    fn id() -> ReplicaId {
        ReplicaId::from_bits(1)
    }

    fn text(bytes: io::Result<Vec<u8>>) -> String {
        String::from_utf8(bytes.expect("readable")).expect("text")
    }

    #[test]
    fn a_tail_begins_with_a_whole_line_and_reaches_into_older_files() {
        let fixture = Fixture::new();
        fixture.append("current.jsonl.1", "old one\nold two\n");
        fixture.append("current.jsonl", "new\n");
        assert_eq!(text(fixture.open().tail(14)), "old two\nnew\n");
        assert_eq!(text(fixture.open().tail(1_000)), "old one\nold two\nnew\n");
        assert_eq!(text(fixture.open().tail(0)), "");
    }

    #[test]
    fn what_is_written_later_follows_across_a_rotation() {
        let fixture = Fixture::new();
        fixture.append("current.jsonl", "one\n");
        let mut tail = fixture.open();
        assert_eq!(text(tail.tail(100)), "one\n");
        assert_eq!(text(tail.more()), "");
        fixture.append("current.jsonl", "two\n");
        fixture.rename("current.jsonl", "current.jsonl.1");
        fixture.append("current.jsonl", "three\n");
        assert_eq!(text(tail.more()), "two\n");
        assert_eq!(text(tail.more()), "three\n");
        assert_eq!(text(tail.more()), "");
    }

    #[test]
    fn two_rotations_between_two_looks_lose_nothing() {
        let fixture = Fixture::new();
        fixture.append("current.jsonl", "one\n");
        let mut tail = fixture.open();
        tail.tail(100).expect("readable");
        fixture.rename("current.jsonl", "current.jsonl.2");
        fixture.append("current.jsonl.1", "two\n");
        fixture.append("current.jsonl", "three\n");
        assert_eq!(text(tail.more()), "two\n");
        assert_eq!(text(tail.more()), "three\n");
    }

    #[test]
    fn an_emptied_file_is_read_from_its_beginning() {
        let fixture = Fixture::new();
        fixture.append("current.jsonl", "a long line\n");
        let mut tail = fixture.open();
        tail.tail(100).expect("readable");
        std::fs::write(fixture.folder().join("current.jsonl"), "x\n").expect("write");
        assert_eq!(text(tail.more()), "x\n");
    }

    #[test]
    fn a_link_in_a_logs_place_is_not_followed() {
        let fixture = Fixture::new();
        std::os::unix::fs::symlink("/etc/passwd", fixture.folder().join("current.jsonl"))
            .expect("link");
        assert!(fixture.open().tail(100).is_err());
    }

    #[test]
    fn a_replica_without_a_log_folder_has_no_log_and_one_without_a_file_an_empty_one() {
        let fixture = Fixture::new();
        let other = LogTail::open(fixture.log_dir.path(), &ReplicaId::from_bits(2));
        assert!(other.expect("readable").is_none());
        let mut tail = fixture.open();
        assert_eq!(text(tail.tail(100)), "");
        fixture.append("current.jsonl", "first\n");
        assert_eq!(text(tail.more()), "first\n");
    }
}
