//! Copies of all records as JSON lines: readable without this program, and what a damaged store is
//! restored from (`stokehold-scheduler restore-store FILE`).
//!
//! The first line is a head, each other line one record:
//! ```text
//! {"v":1,"revision":12,"epoch":3,"records":2}
//! {"key":"node/n1","value":{"v":1,...}}
//! {"key":"...","base64":"..."}             a value that is not JSON
//! ```
//! A file is named by its revision, written atomically, and the five newest are kept.

use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use shared::ids::{Epoch, Revision};

use super::Snapshot;

const VERSION: u32 = 1;
const KEPT: usize = 5;
const EXTENSION: &str = "jsonl";

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("read or write {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("write {}, which takes {len} bytes", path.display())]
    Write {
        path: PathBuf,
        len: usize,
        #[source]
        source: io::Error,
    },
    #[error(
        "{} has version {found}, this stokehold-scheduler ({}) knows {VERSION}: take an older file of \
         that folder, or install the version that wrote it",
        path.display(), env!("CARGO_PKG_VERSION")
    )]
    Newer { path: PathBuf, found: u32 },
    #[error("{} line {line}: {problem}", path.display())]
    Line {
        path: PathBuf,
        line: usize,
        problem: String,
    },
}

/// What the head of any version says.
#[derive(Deserialize)]
struct Version {
    v: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    v: u32,
    revision: Revision,
    epoch: Epoch,
    records: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

/// Writes a copy and forgets the oldest ones.
pub(super) fn write(folder: &Path, snapshot: &Snapshot) -> Result<PathBuf, ExportError> {
    let path = folder.join(format!("{:020}.{EXTENSION}", snapshot.revision.0));
    let io = |source| ExportError::Io {
        path: path.clone(),
        source,
    };
    daemon::files::private_dir(folder, 0o700).map_err(io)?;
    let bytes = encode(snapshot);
    daemon::files::write_atomic(&path, &bytes, 0o600).map_err(|source| ExportError::Write {
        path: path.clone(),
        len: bytes.len(),
        source,
    })?;
    let mut kept = list(folder)?;
    while kept.len() > KEPT {
        let (_, oldest) = kept.remove(0);
        std::fs::remove_file(&oldest).map_err(|source| ExportError::Io {
            path: oldest,
            source,
        })?;
    }
    Ok(path)
}

/// The newest copy's revision and file.
pub(super) fn newest(folder: &Path) -> Result<Option<(Revision, PathBuf)>, ExportError> {
    Ok(list(folder)?.pop())
}

/// Reads a copy; a line that is missing or not understood is an error, not a smaller copy.
pub fn read(path: &Path) -> Result<Snapshot, ExportError> {
    let text = std::fs::read_to_string(path).map_err(|source| ExportError::Io {
        path: path.to_owned(),
        source,
    })?;
    let wrong = |line: usize, problem: String| ExportError::Line {
        path: path.to_owned(),
        line,
        problem,
    };
    let mut lines = text.lines().zip(1..);
    let (first, _) = lines
        .next()
        .ok_or_else(|| wrong(1, "the file is empty".into()))?;
    // First: a later version may have another form.
    let version: Version = serde_json::from_str(first).map_err(|e| wrong(1, e.to_string()))?;
    if version.v != VERSION {
        return Err(ExportError::Newer {
            path: path.to_owned(),
            found: version.v,
        });
    }
    let head: Head = serde_json::from_str(first).map_err(|e| wrong(1, e.to_string()))?;
    let mut snapshot = Snapshot {
        revision: head.revision,
        epoch: head.epoch,
        ..Snapshot::default()
    };
    for (text, number) in lines {
        let line: Line = serde_json::from_str(text).map_err(|e| wrong(number, e.to_string()))?;
        let value = match (line.value, line.base64) {
            (Some(value), None) => serde_json::to_vec(&value).map_err(|e| e.to_string()),
            (None, Some(text)) => STANDARD.decode(text).map_err(|e| e.to_string()),
            _ => Err("expected either value or base64".into()),
        };
        let value = value.map_err(|problem| wrong(number, problem))?;
        snapshot.entries.insert(line.key, value);
    }
    if snapshot.entries.len() != head.records {
        return Err(wrong(
            1,
            format!(
                "{} records are announced, {} are there",
                head.records,
                snapshot.entries.len()
            ),
        ));
    }
    Ok(snapshot)
}

fn encode(snapshot: &Snapshot) -> Vec<u8> {
    let head = Head {
        v: VERSION,
        revision: snapshot.revision,
        epoch: snapshot.epoch,
        records: snapshot.entries.len(),
    };
    let mut bytes = serde_json::to_vec(&head).expect("numbers serialise");
    for (key, value) in &snapshot.entries {
        let json = serde_json::from_slice(value).ok();
        let line = Line {
            key: key.clone(),
            base64: json.is_none().then(|| STANDARD.encode(value)),
            value: json,
        };
        bytes.push(b'\n');
        bytes.extend(serde_json::to_vec(&line).expect("parsed JSON serialises"));
    }
    bytes.push(b'\n');
    bytes
}

/// All copies, oldest first.
fn list(folder: &Path) -> Result<Vec<(Revision, PathBuf)>, ExportError> {
    let io = |source| ExportError::Io {
        path: folder.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(io)?.path();
        let revision = path
            .extension()
            .filter(|extension| *extension == EXTENSION)
            .and_then(|_| path.file_stem()?.to_str()?.parse().ok());
        if let Some(revision) = revision {
            found.push((Revision(revision), path));
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(revision: u64) -> Snapshot {
        Snapshot {
            revision: Revision(revision),
            epoch: Epoch(3),
            entries: [
                ("a/1".to_owned(), br#"{"v":1,"x":0.1}"#.to_vec()),
                ("b".to_owned(), vec![0xff, 0]),
            ]
            .into(),
        }
    }

    #[test]
    fn a_copy_is_read_as_it_was_and_only_five_are_kept() {
        let folder = tempfile::tempdir().expect("folder");
        for revision in 1..=7 {
            write(folder.path(), &snapshot(revision)).expect("writes");
        }
        let kept = list(folder.path()).expect("lists");
        assert_eq!(kept.len(), KEPT);
        let (revision, path) = newest(folder.path()).expect("lists").expect("some");
        assert_eq!(revision, Revision(7));
        assert_eq!(read(&path).expect("reads"), snapshot(7));
    }

    #[test]
    fn a_copy_that_misses_a_line_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let path = write(folder.path(), &snapshot(1)).expect("writes");
        let text = std::fs::read_to_string(&path).expect("reads");
        let cut: Vec<&str> = text.lines().take(2).collect();
        std::fs::write(&path, cut.join("\n")).expect("writes");
        let error = read(&path).expect_err("one line is missing").to_string();
        assert!(
            error.contains("2 records are announced, 1 are there"),
            "{error}"
        );
    }
}
