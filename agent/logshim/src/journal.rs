//! The files: `current.jsonl`, and its older siblings `current.jsonl.1` (the youngest) and up.
//!
//! What always holds: no file outgrows `max_bytes`, there are at most `files` of them, and each holds
//! whole records only: a write that the disk cut short is cut back to its last whole record. What could
//! not be written is counted, and a record in the log says so as soon as one can be written again.
//! Files that somebody else removed or emptied are noticed at the next write.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Duration;

use crate::lines::Piece;
use crate::record::{self, Source};

const NAME: &str = "current.jsonl";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) max_bytes: u64,
    pub(crate) files: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 16 << 20,
            files: 4,
        }
    }
}

/// Records that no file holds, and why the last of them doesn't.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    lines: u64,
    bytes: u64,
    cause: String,
}

impl Lost {
    pub(crate) fn is_nothing(&self) -> bool {
        self.lines == 0
    }

    pub(crate) fn add(&mut self, records: &[u8], cause: &dyn fmt::Display) {
        if records.is_empty() {
            return;
        }
        self.lines += records.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.bytes += records.len() as u64;
        self.cause = cause.to_string();
    }

    pub(crate) fn merge(&mut self, other: Self) {
        if !other.is_nothing() {
            self.lines += other.lines;
            self.bytes += other.bytes;
            self.cause = other.cause;
        }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "dropped {} lines, {} bytes: {}",
            self.lines, self.bytes, self.cause
        )
    }
}

pub(crate) struct Journal {
    dir: PathBuf,
    limits: Limits,
    current: Option<File>,
    lost: Lost,
}

impl Journal {
    pub(crate) fn new(dir: PathBuf, limits: Limits) -> Self {
        Self {
            dir,
            limits,
            current: None,
            lost: Lost::default(),
        }
    }

    /// Opens the current file, to learn early that it can't be.
    pub(crate) fn check(&mut self) -> io::Result<()> {
        self.open().map(drop)
    }

    /// Writes the records, after owning up to what was lost before them. Never fails: it counts.
    pub(crate) fn append(&mut self, records: &[u8], now: Duration) {
        if let Err(err) = self.own_up(now) {
            self.lost.add(records, &err);
        } else if let Err((written, err)) = self.write(records) {
            self.lost.add(&records[written..], &err);
        }
    }

    pub(crate) fn own_up(&mut self, now: Duration) -> io::Result<()> {
        if self.lost.is_nothing() {
            return Ok(());
        }
        let (text, mut note) = (self.lost.to_string(), Vec::new());
        record::append(
            &mut note,
            now,
            Source::Shim,
            &Piece {
                bytes: text.as_bytes(),
                partial: false,
            },
        );
        self.write(&note).map_err(|(_, err)| err)?;
        self.lost = Lost::default();
        Ok(())
    }

    pub(crate) fn add_lost(&mut self, lost: Lost) {
        self.lost.merge(lost);
    }

    pub(crate) fn lost(&self) -> &Lost {
        &self.lost
    }

    pub(crate) fn into_lost(self) -> Lost {
        self.lost
    }

    /// The error says how many bytes, whole records, were written before it.
    fn write(&mut self, records: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut done = 0;
        while done < records.len() {
            let size = self.open().map_err(|err| (done, err))?;
            match next_step(&records[done..], size, self.limits.max_bytes) {
                Step::Rotate => self.rotate().map_err(|err| (done, err))?,
                Step::Write(len) => {
                    let result = self.write_at_end(&records[done..done + len], size);
                    result.map_err(|(written, err)| (done + written, err))?;
                    done += len;
                }
            }
        }
        Ok(())
    }

    /// Appends to the current file, which is `size` long, or leaves whole records of it.
    fn write_at_end(&mut self, records: &[u8], size: u64) -> Result<(), (usize, io::Error)> {
        let Some(file) = &mut self.current else {
            return Err((0, io::ErrorKind::NotFound.into()));
        };
        let mut done = 0;
        while done < records.len() {
            let cause = match file.write(&records[done..]) {
                Ok(0) => io::ErrorKind::WriteZero.into(),
                Ok(len) => {
                    done += len;
                    continue;
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                Err(err) => err,
            };
            let whole = whole_records(&records[..done]);
            if whole < done && file.set_len(size + whole as u64).is_err() {
                self.current = None; // to be mended by the next open
            }
            return Err((whole, cause));
        }
        Ok(())
    }

    /// Makes sure that the current file is open, is the one in the folder, and ends with a whole line;
    /// gives its size.
    fn open(&mut self) -> io::Result<u64> {
        if let Some(file) = &self.current {
            let status = file.metadata()?;
            if status.nlink() > 0 {
                return Ok(status.size());
            }
        }
        self.current = None;
        let mut file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o640)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(self.path(0))?;
        let mut size = file.metadata()?.size();
        if let Some(last) = size.checked_sub(1) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, last)?;
            if byte != *b"\n" {
                file.write_all(b"\n")?;
                size += 1;
            }
        }
        self.current = Some(file);
        Ok(size)
    }

    /// Safe to repeat after it failed half-way.
    fn rotate(&mut self) -> io::Result<()> {
        self.current = None;
        if self.limits.files == 1 {
            return File::options()
                .write(true)
                .truncate(true)
                .open(self.path(0))
                .map(drop);
        }
        for age in (1..self.limits.files).rev() {
            match fs::rename(self.path(age - 1), self.path(age)) {
                Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
                _ => {}
            }
        }
        Ok(())
    }

    fn path(&self, age: u32) -> PathBuf {
        match age {
            0 => self.dir.join(NAME),
            age => self.dir.join(format!("{NAME}.{age}")),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// This many bytes fit into the current file.
    Write(usize),
    Rotate,
}

/// As many whole records as the current file still takes; else a new file. A record that no file would
/// take gets one of its own (it can't be: see the least `max-bytes`).
fn next_step(records: &[u8], size: u64, max_bytes: u64) -> Step {
    let room = usize::try_from(max_bytes.saturating_sub(size)).unwrap_or(usize::MAX);
    match whole_records(&records[..records.len().min(room)]) {
        0 if size > 0 => Step::Rotate,
        0 => Step::Write(
            records
                .iter()
                .position(|byte| *byte == b'\n')
                .map_or(records.len(), |at| at + 1),
        ),
        len => Step::Write(len),
    }
}

/// The length of the records of which no byte is missing.
fn whole_records(records: &[u8]) -> usize {
    records
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |newline| newline + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn journal(dir: &tempfile::TempDir, max_bytes: u64, files: u32) -> Journal {
        Journal::new(dir.path().to_owned(), Limits { max_bytes, files })
    }

    fn read(dir: &tempfile::TempDir, name: &str) -> Option<String> {
        fs::read_to_string(dir.path().join(name)).ok()
    }

    #[test]
    fn a_file_takes_whole_records_up_to_its_limit() {
        assert_eq!(next_step(b"aa\nbb\n", 0, 6), Step::Write(6));
        assert_eq!(next_step(b"aa\nbb\n", 0, 5), Step::Write(3));
        assert_eq!(next_step(b"aa\nbb\n", 4, 6), Step::Rotate);
        assert_eq!(next_step(b"aa\n", 9, 6), Step::Rotate);
        assert_eq!(next_step(b"aaaaaaaa\nb\n", 0, 6), Step::Write(9));
    }

    #[test]
    fn the_oldest_file_goes_when_there_are_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = journal(&dir, 4, 3);
        for records in ["1\n2\n", "3\n4\n5\n", "6\n7\n8\n"] {
            journal.append(records.as_bytes(), NOW);
        }
        assert_eq!(read(&dir, "current.jsonl").as_deref(), Some("7\n8\n"));
        assert_eq!(read(&dir, "current.jsonl.1").as_deref(), Some("5\n6\n"));
        assert_eq!(read(&dir, "current.jsonl.2").as_deref(), Some("3\n4\n"));
        assert_eq!(read(&dir, "current.jsonl.3"), None);
        assert!(journal.lost().is_nothing());
    }

    #[test]
    fn a_single_file_starts_anew() {
        let dir = tempfile::tempdir().unwrap();
        journal(&dir, 4, 1).append(b"1\n2\n3\n", NOW);
        assert_eq!(read(&dir, "current.jsonl").as_deref(), Some("3\n"));
    }

    #[test]
    fn a_file_that_another_run_left_torn_is_continued_on_a_new_line() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("current.jsonl"), "torn").unwrap();
        journal(&dir, 100, 2).append(b"1\n", NOW);
        assert_eq!(read(&dir, "current.jsonl").as_deref(), Some("torn\n1\n"));
    }

    #[test]
    fn a_file_that_was_removed_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = journal(&dir, 100, 2);
        journal.append(b"1\n", NOW);
        fs::remove_file(dir.path().join("current.jsonl")).unwrap();
        journal.append(b"2\n", NOW);
        assert_eq!(read(&dir, "current.jsonl").as_deref(), Some("2\n"));
    }

    #[test]
    fn what_could_not_be_written_is_owned_up_to_once_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("later");
        let mut journal = Journal::new(folder.clone(), Limits::default());
        journal.append(b"1\n2\n", NOW);
        journal.append(b"3\n", NOW);
        assert!(!journal.lost().is_nothing());
        fs::create_dir(&folder).unwrap();
        journal.append(b"4\n", NOW);
        let want = "{\"t\":\"1970-01-01T00:00:00.000Z\",\"s\":\"shim\",\"m\":\"dropped 3 lines, 6 bytes: \
                    No such file or directory (os error 2)\"}\n4\n";
        assert_eq!(read(&dir, "later/current.jsonl").as_deref(), Some(want));
        assert!(journal.lost().is_nothing());
    }
}
