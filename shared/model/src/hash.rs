//! Hashes a folder's files chunk by chunk, on all cores.
//!
//! What always holds: an entry describes bytes that the file held all at once. Each chunk's read is
//! framed by two looks at the file's identity, size and time of change; a difference to the scan is
//! an error, not a manifest of a file that never existed. Memory is bounded by threads times one
//! buffer, whatever the files' sizes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use shared::digest::{ChunkHasher, ChunkPlace, Digest, file_digest};
use shared::manifest::{FileEntry, chunk_size_bytes};

use crate::scan::{Change, FileStamp, ScannedFile, read_hint};

/// Read at a time: large enough for BLAKE3's wide vectors, small enough for the second-level cache.
const BUFFER_BYTES: usize = 256 << 10;

/// More threads than this wait for the disk, not for the hash.
const MAX_THREADS: usize = 32;

/// Why a folder was not hashed.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    #[error("read {path:?}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path:?} {change} while it was read")]
    Changed { path: PathBuf, change: Change },
}

impl HashError {
    /// How to mend it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Read { source, .. } => read_hint(source),
            Self::Changed { .. } => Some(WAIT_FOR_WRITER),
        }
    }
}

/// How to mend a folder that changes while it is pushed.
pub const WAIT_FOR_WRITER: &str =
    "nothing was registered: wait until whoever writes to the folder is done, and push it again";

/// Hashes `files`, which [`crate::scan::scan`] found in `dir`; the entries are in the same order.
/// `progress` is called on the calling thread with the number of bytes hashed so far.
pub fn hash_tree(
    dir: &Path,
    files: &[ScannedFile],
    progress: &dyn Fn(u64),
) -> Result<Vec<FileEntry>, HashError> {
    let tasks = Tasks::of(files);
    let threads = thread::available_parallelism()
        .map_or(1, usize::from)
        .min(MAX_THREADS)
        .min(tasks.count().max(1));
    let mut chunks: Vec<Vec<Option<Digest>>> =
        files.iter().map(|f| vec![None; chunk_count(f)]).collect();
    let stop = AtomicBool::new(false);
    let mut first_error = None;
    thread::scope(|scope| {
        let (done, results) = mpsc::sync_channel(threads * 2);
        for _ in 0..threads {
            let done = done.clone();
            scope.spawn(|| work(dir, files, &tasks, &stop, done));
        }
        drop(done);
        let mut hashed_bytes = 0;
        for result in results {
            match result {
                Ok(part) => {
                    hashed_bytes += part.len_bytes;
                    chunks[part.task.file][part.task.chunk] = Some(part.digest);
                    progress(hashed_bytes);
                }
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    first_error.get_or_insert(error);
                }
            }
        }
    });
    if let Some(error) = first_error {
        return Err(error);
    }
    check_empty_files(dir, files)?;
    let entries = files.iter().zip(chunks).map(|(file, chunks)| {
        let chunks: Vec<Digest> = chunks
            .into_iter()
            .map(|c| c.expect("without an error every chunk was hashed"))
            .collect();
        FileEntry {
            path: file.path.clone(),
            size_bytes: file.size_bytes,
            executable: file.executable,
            root: file_digest(&chunks).unwrap_or_else(|| Digest::of(b"")),
            chunk_size_bytes: chunk_size_bytes(file.size_bytes),
            chunks,
        }
    });
    Ok(entries.collect())
}

fn chunk_count(file: &ScannedFile) -> usize {
    file.size_bytes.div_ceil(chunk_size_bytes(file.size_bytes)) as usize
}

/// One chunk of one file, by their indices.
#[derive(Clone, Copy)]
struct Task {
    file: usize,
    chunk: usize,
}

struct Hashed {
    task: Task,
    digest: Digest,
    len_bytes: u64,
}

/// Hands out the chunks of all files in order, so that disks read forwards.
struct Tasks {
    /// How many chunks lie before each file.
    before: Vec<usize>,
    count: usize,
    next: AtomicUsize,
}

impl Tasks {
    fn of(files: &[ScannedFile]) -> Self {
        let mut count = 0;
        let mut before = Vec::with_capacity(files.len());
        for file in files {
            before.push(count);
            count += chunk_count(file);
        }
        Self {
            before,
            count,
            next: AtomicUsize::new(0),
        }
    }

    fn count(&self) -> usize {
        self.count
    }

    fn take(&self) -> Option<Task> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        if index >= self.count {
            return None;
        }
        // The last file that starts at or before this chunk: empty files, which have none, start
        // where the next one does and so never come last.
        let file = self.before.partition_point(|&b| b <= index) - 1;
        Some(Task {
            file,
            chunk: index - self.before[file],
        })
    }
}

fn work(
    dir: &Path,
    files: &[ScannedFile],
    tasks: &Tasks,
    stop: &AtomicBool,
    done: mpsc::SyncSender<Result<Hashed, HashError>>,
) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while !stop.load(Ordering::Relaxed) {
        let Some(task) = tasks.take() else { return };
        let result = hash_chunk(dir, &files[task.file], task, &mut buffer);
        if done.send(result).is_err() {
            return;
        }
    }
}

fn hash_chunk(
    dir: &Path,
    scanned: &ScannedFile,
    task: Task,
    buffer: &mut [u8],
) -> Result<Hashed, HashError> {
    let path = dir.join(&scanned.path);
    let read = |source| reading(&path, source);
    let unchanged = |file: &File| {
        let stamp = FileStamp::of(&file.metadata().map_err(read)?);
        match scanned.stamp.change_to(&stamp) {
            Some(change) => Err(HashError::Changed {
                path: path.clone(),
                change,
            }),
            None => Ok(()),
        }
    };
    let file = File::open(&path).map_err(read)?;
    unchanged(&file)?;
    let chunk_size = chunk_size_bytes(scanned.size_bytes);
    let offset_bytes = task.chunk as u64 * chunk_size;
    let len_bytes = chunk_size.min(scanned.size_bytes - offset_bytes);
    let place = if scanned.size_bytes <= chunk_size {
        ChunkPlace::Whole
    } else {
        ChunkPlace::At { offset_bytes }
    };
    let mut hasher = ChunkHasher::new(place);
    let mut at = offset_bytes;
    let end = offset_bytes + len_bytes;
    while at < end {
        let want = buffer.len().min((end - at) as usize);
        match file.read_at(&mut buffer[..want], at) {
            Ok(0) => {
                return Err(HashError::Changed {
                    path: path.clone(),
                    change: Change::Shrank {
                        from: scanned.size_bytes,
                        to: at,
                    },
                });
            }
            Ok(n) => {
                hasher.update(&buffer[..n]);
                at += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(read(e)),
        }
    }
    unchanged(&file)?;
    Ok(Hashed {
        task,
        digest: hasher.finish(),
        len_bytes,
    })
}

/// Empty files have no chunk whose read would notice that they are empty no more.
fn check_empty_files(dir: &Path, files: &[ScannedFile]) -> Result<(), HashError> {
    for file in files.iter().filter(|f| f.size_bytes == 0) {
        let path = dir.join(&file.path);
        let metadata = std::fs::metadata(&path).map_err(|source| reading(&path, source))?;
        if let Some(change) = file.stamp.change_to(&FileStamp::of(&metadata)) {
            return Err(HashError::Changed { path, change });
        }
    }
    Ok(())
}

/// A file that was listed a moment ago and is not there was removed.
fn reading(path: &Path, source: io::Error) -> HashError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => HashError::Changed {
            path,
            change: Change::Removed,
        },
        _ => HashError::Read { path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::{ScanOptions, scan};
    use proptest::prelude::*;
    use shared::units::Bytes;
    use std::cell::RefCell;
    use std::fs;

    fn bytes(len: usize, seed: u8) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let source = blake3::Hasher::new_keyed(&[seed; 32]);
        source.finalize_xof().fill(&mut bytes);
        bytes
    }

    fn listed(dir: &Path) -> Vec<ScannedFile> {
        scan(dir, ScanOptions::default()).expect("scans")
    }

    #[test]
    fn roots_are_the_standard_hashes_and_progress_ends_at_the_sum_of_sizes() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let large = bytes(33 << 20, 1);
        fs::write(dir.path().join("large"), &large).expect("file");
        fs::write(dir.path().join("small"), b"small").expect("file");
        fs::write(dir.path().join("empty"), b"").expect("file");
        fs::write(dir.path().join("zero"), b"").expect("file");
        let seen = RefCell::new(Vec::new());
        let entries = hash_tree(dir.path(), &listed(dir.path()), &|n| {
            seen.borrow_mut().push(n)
        })
        .expect("hashes");
        let roots: Vec<Digest> = entries.iter().map(|e| e.root).collect();
        let expected = [b"".as_slice(), &large, b"small", b""].map(Digest::of);
        assert_eq!(roots, expected);
        assert_eq!(entries[1].chunks.len(), 9);
        assert_eq!(entries[1].chunk_size_bytes, 4 * Bytes::MIB);
        assert_eq!(seen.borrow().last(), Some(&((33 << 20) + 5)));
        assert!(seen.borrow().is_sorted());
    }

    #[test]
    fn a_file_that_changed_since_the_scan_is_named() {
        let dir = tempfile::tempdir().expect("temporary folder");
        fs::write(dir.path().join("a"), b"before").expect("file");
        fs::write(dir.path().join("none"), b"").expect("file");
        let files = listed(dir.path());
        fs::write(dir.path().join("a"), b"after it grew").expect("file");
        let error = hash_tree(dir.path(), &files, &|_| {}).expect_err("refused");
        assert!(matches!(&error, HashError::Changed { path, .. } if path.ends_with("a")));
        let files = listed(dir.path());
        fs::write(dir.path().join("none"), b"x").expect("file");
        let error = hash_tree(dir.path(), &files, &|_| {}).expect_err("refused");
        assert!(matches!(&error, HashError::Changed { path, .. } if path.ends_with("none")));
    }

    #[test]
    fn a_file_that_is_replaced_by_one_of_the_same_size_is_noticed() {
        let dir = tempfile::tempdir().expect("temporary folder");
        fs::write(dir.path().join("a"), b"before").expect("file");
        let files = listed(dir.path());
        fs::write(dir.path().join("new"), b"after!").expect("file");
        fs::rename(dir.path().join("new"), dir.path().join("a")).expect("renamed");
        assert!(matches!(
            hash_tree(dir.path(), &files, &|_| {}),
            Err(HashError::Changed { .. })
        ));
    }

    #[test]
    fn a_file_that_is_gone_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().expect("temporary folder");
        fs::write(dir.path().join("a"), b"x").expect("file");
        let files = listed(dir.path());
        fs::remove_file(dir.path().join("a")).expect("removed");
        let error = hash_tree(dir.path(), &files, &|_| {}).expect_err("refused");
        assert!(error.to_string().contains("/a\" was removed"), "{error}");
    }

    proptest! {
        #[test]
        fn every_chunk_of_every_file_is_handed_out_once_in_order(
            sizes in proptest::collection::vec(0u64..40 << 20, 0..20),
        ) {
            let files: Vec<ScannedFile> = {
                let metadata = fs::metadata("/").expect("root");
                sizes.iter().map(|&size_bytes| ScannedFile {
                    path: "x".into(), size_bytes, executable: false,
                    stamp: FileStamp::of(&metadata),
                }).collect()
            };
            let tasks = Tasks::of(&files);
            let mut taken = Vec::new();
            while let Some(task) = tasks.take() { taken.push((task.file, task.chunk)); }
            let expected: Vec<(usize, usize)> = files.iter().enumerate()
                .flat_map(|(i, f)| (0..chunk_count(f)).map(move |c| (i, c)))
                .collect();
            prop_assert_eq!(taken, expected);
        }
    }
}
