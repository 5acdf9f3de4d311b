//! The real program, with pipes where containerd's shim puts them.

#![allow(clippy::unwrap_used)] // helpers of tests, too, may panic

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getegid, geteuid, pipe2};
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_stokehold-logshim");
const PATIENCE: Duration = Duration::from_secs(60);

struct Logger {
    child: Child,
    stdout: Option<File>,
    stderr: Option<File>,
    dir: PathBuf,
}

impl Logger {
    /// Starts it and waits until it says that it is ready.
    fn start(dir: &Path, limits: &[&str]) -> Self {
        let (uid, gid) = user();
        let (uid_text, gid_text) = (uid.to_string(), gid.to_string());
        let mut arguments = vec![
            "dir",
            dir.to_str().unwrap(),
            "uid",
            &uid_text,
            "gid",
            &gid_text,
        ];
        arguments.extend(limits);
        let [(stdout, stdout_in), (stderr, stderr_in), (ready_out, ready)] =
            [(); 3].map(|()| pipe2(OFlag::O_CLOEXEC).unwrap());
        let mut command = Command::new(BINARY);
        command.args(arguments).stdin(Stdio::null());
        let child = with_fds(&mut command, [stdout, stderr, ready])
            .spawn()
            .unwrap();
        drop(command); // and with it our copies of the child's ends
        let mut said = String::new();
        File::from(ready_out).read_to_string(&mut said).unwrap();
        Self {
            child,
            stdout: Some(File::from(stdout_in)),
            stderr: Some(File::from(stderr_in)),
            dir: dir.to_owned(),
        }
    }

    fn print(&mut self, bytes: &[u8]) {
        self.stdout.as_mut().unwrap().write_all(bytes).unwrap();
    }

    fn status(&self, key: &str) -> String {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap();
        line.trim_start_matches(':')
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Ends both pipes and waits for the exit.
    fn finish(mut self) -> Vec<Value> {
        self.stdout = None;
        self.stderr = None;
        assert!(self.child.wait().unwrap().success());
        for age in 0..10 {
            let bytes = fs::read(self.dir.join(file_name(age))).unwrap_or_default();
            assert!(
                bytes.is_empty() || bytes.ends_with(b"\n"),
                "file {age} ends torn"
            );
        }
        self.records()
    }

    /// All records, oldest first. While the logger writes, a file may end in the middle of one.
    fn records(&self) -> Vec<Value> {
        (0..10)
            .rev()
            .flat_map(|age| records_of(&self.dir.join(file_name(age))))
            .collect()
    }
}

fn records_of(file: &Path) -> Vec<Value> {
    let bytes = fs::read(file).unwrap_or_default();
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let whole = lines.filter(|line| line.ends_with(b"\n"));
    whole
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

fn file_name(age: u32) -> String {
    if age == 0 {
        "current.jsonl".to_owned()
    } else {
        format!("current.jsonl.{age}")
    }
}

/// Makes the three descriptors the child's 3, 4 and 5.
fn with_fds(command: &mut Command, fds: [OwnedFd; 3]) -> &mut Command {
    let place = move || {
        let mut high = [0; 3];
        for (copy, fd) in high.iter_mut().zip(&fds) {
            // SAFETY: fcntl and dup2 on descriptors that the closure owns; both are async-signal-safe.
            *copy =
                Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 10) })?;
        }
        for (number, fd) in (3..).zip(high) {
            // SAFETY: as above. The sources are above 9, so that no target overwrites one.
            Errno::result(unsafe { libc::dup2(fd, number) })?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls alone, and allocates nothing.
    unsafe { command.pre_exec(place) }
}

/// Whom the logger becomes: nobody when the tests are root.
fn user() -> (u32, u32) {
    if geteuid().is_root() {
        (65534, 65534)
    } else {
        (geteuid().as_raw(), getegid().as_raw())
    }
}

/// A folder that only that user may write to.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let outer = tempfile::tempdir().unwrap();
    fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let dir = outer.path().join("logs");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    let (uid, gid) = user();
    chown(&dir, Some(uid), Some(gid)).unwrap();
    (outer, dir)
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn texts(records: &[Value], source: &str) -> Vec<String> {
    let of_source = records.iter().filter(|record| record["s"] == source);
    of_source
        .map(|record| record["m"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn both_pipes_are_logged_by_an_unprivileged_process() {
    let (_outer, dir) = folder();
    let mut logger = Logger::start(&dir, &[]);
    let (uid, gid) = user();
    assert_eq!(
        logger.status("Uid"),
        [uid.to_string().as_str(); 4].join(" ")
    );
    assert_eq!(
        logger.status("Gid"),
        [gid.to_string().as_str(); 4].join(" ")
    );
    assert_eq!(logger.status("NoNewPrivs"), "1");
    assert_eq!(logger.status("CapPrm"), "0000000000000000");
    if geteuid().is_root() {
        assert_eq!(logger.status("Groups"), "");
    }

    logger.print(b"one\ntw");
    logger
        .stderr
        .as_mut()
        .unwrap()
        .write_all(b"problem\n")
        .unwrap();
    eventually("the first lines", || logger.records().len() == 2);
    logger.stderr = None;
    logger.print(b"o\nthree");
    let file = dir.join("current.jsonl");
    let records = logger.finish();
    assert_eq!(texts(&records, "stdout"), ["one", "two", "three"]);
    assert_eq!(texts(&records, "stderr"), ["problem"]);
    assert!(
        records
            .iter()
            .all(|record| record["t"].as_str().unwrap().len() == 24)
    );
    let status = fs::metadata(file).unwrap();
    assert_eq!(
        (status.uid(), status.gid(), status.mode() & 0o777),
        (uid, gid, 0o640)
    );
}

#[test]
fn a_termination_signal_does_not_cost_the_last_words() {
    let (_outer, dir) = folder();
    let mut logger = Logger::start(&dir, &[]);
    kill(Pid::from_raw(logger.child.id() as i32), Signal::SIGTERM).unwrap();
    logger.print(b"last words\n");
    assert_eq!(texts(&logger.finish(), "stdout"), ["last words"]);
}

#[test]
fn a_flood_stays_within_its_files_and_memory() {
    let mib: u64 = if cfg!(debug_assertions) { 96 } else { 1024 };
    let (_outer, dir) = folder();
    let mut logger = Logger::start(&dir, &["max-bytes", "1000000", "files", "3"]);
    let line = format!("{}\n", "flood ".repeat(40));
    let block = line.repeat(256);
    let started = Instant::now();
    for _ in 0..mib * 1024 * 1024 / block.len() as u64 {
        logger.print(block.as_bytes());
    }
    // Reading alone would take this and its one long line with no end, too.
    logger.print(&vec![b'x'; 8 << 20]);
    logger.print(b"\nthe end\n");
    let elapsed = started.elapsed();
    eventually("the end", || {
        texts(&logger.records(), "stdout")
            .last()
            .is_some_and(|l| l == "the end")
    });
    let peak_kib: u64 = logger
        .status("VmHWM")
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    println!("{mib} MiB in {elapsed:?}, peak memory {peak_kib} KiB");
    assert!(peak_kib < 8 * 1024, "{peak_kib} KiB");
    let records = logger.finish();
    assert!(records.iter().any(|record| record["partial"] == true));
    let mut files: Vec<_> = fs::read_dir(&dir).unwrap().map(Result::unwrap).collect();
    files.sort_by_key(fs::DirEntry::file_name);
    let names: Vec<_> = files.iter().map(fs::DirEntry::file_name).collect();
    assert_eq!(
        names,
        ["current.jsonl", "current.jsonl.1", "current.jsonl.2"]
    );
    assert!(
        files
            .iter()
            .all(|file| file.metadata().unwrap().len() <= 1_000_000)
    );
}

#[test]
fn garbage_becomes_valid_records() {
    let (_outer, dir) = folder();
    let mut logger = Logger::start(&dir, &["files", "9"]);
    let mut state = 1_u32;
    let garbage: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(1 << 20)
    .collect();
    let lines = garbage.split(|byte| *byte == b'\n').count();
    logger.print(&garbage);
    let records = logger.finish();
    assert_eq!(
        records
            .iter()
            .filter(|record| record["partial"] != true)
            .count(),
        lines
    );
}

#[test]
fn a_full_disk_costs_lines_but_neither_the_replica_nor_what_comes_after() {
    let (_outer, dir) = folder();
    // A mount namespace of this thread and its child: nothing is left mounted whatever happens.
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWNS) {
        eprintln!("SKIPPED: a tmpfs of its own needs root: {errno}");
        return;
    }
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let (uid, gid) = user();
    let options = format!("size=4096k,mode=0700,uid={uid},gid={gid}");
    mount(
        Some("tmpfs"),
        &dir,
        Some("tmpfs"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .unwrap();

    // Twice what the disk holds: two files fill it, and the third one stays empty. This would block if
    // nobody read on; what is on its way when it ends is much less than the removed file.
    let mut logger = Logger::start(&dir, &["max-bytes", "2097152", "files", "9"]);
    let line = format!("{}\n", "x".repeat(999));
    for _ in 0..8000 {
        logger.print(line.as_bytes());
    }
    eventually("a third file", || dir.join("current.jsonl.2").exists());
    let mut records = records_of(&dir.join("current.jsonl.2"));
    fs::remove_file(dir.join("current.jsonl.2")).unwrap();
    let full = |note: &String| note.ends_with(" bytes: No space left on device (os error 28)");
    eventually("owning up", || {
        texts(&logger.records(), "shim").iter().any(full)
    });
    logger.print(b"after\n");
    records.extend(logger.finish());

    let lines = texts(&records, "stdout");
    assert_eq!(lines.last().map(String::as_str), Some("after"));
    // Every line is in a file or owned up to.
    let dropped = |note: &String| note.split(' ').nth(1).unwrap().parse::<usize>().unwrap();
    let notes = texts(&records, "shim");
    assert_eq!(
        lines.len() - 1 + notes.iter().map(dropped).sum::<usize>(),
        8000,
        "{notes:?}"
    );
}

#[test]
fn a_folder_that_is_not_there_does_not_keep_the_pipes_from_being_read() {
    let (outer, _dir) = folder();
    let mut logger = Logger::start(&outer.path().join("gone"), &[]);
    for _ in 0..100 {
        logger.print(&[b'\n'; 10_000]);
    }
    assert!(logger.finish().is_empty());
}

#[test]
fn wrong_arguments_are_explained() {
    for (arguments, want) in [
        (vec!["dir", "/tmp", "uid", "1"], "key \"gid\" is missing"),
        (
            vec!["dir", "/tmp", "uid", "1", "gid", "1"],
            "fd 3 is not open",
        ),
    ] {
        // Pipes of other tests are close-on-exec, so nothing but 0, 1 and 2 is inherited.
        let output = Command::new(BINARY).args(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(
            message.contains(want) && message.contains("usage:"),
            "{message}"
        );
    }
}
