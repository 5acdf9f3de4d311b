//! The control groups of an instance's containers: all below one parent of ours, in each hierarchy.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::mounts;
use super::processes::Process;

/// The kernel takes a moment to let an emptied group go.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends a signal to every process in the instance's groups; returns how many there were.
pub(super) fn signal(parent: &str, signal: Signal) -> usize {
    let processes = processes(parent);
    for process in &processes {
        process.signal(signal);
    }
    processes.len()
}

pub(super) fn processes(parent: &str) -> Vec<Process> {
    let mut found = Vec::new();
    for folder in folders(parent) {
        let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        let pids = text.lines().filter_map(|line| line.parse().ok());
        // The same process stands in each hierarchy.
        for process in pids.filter_map(Process::of) {
            if !found.contains(&process) {
                found.push(process);
            }
        }
    }
    found
}

/// Removes the groups, which must be empty by now.
pub(super) fn remove(parent: &str) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut failure = None;
        for folder in folders(parent) {
            match fs::remove_dir(&folder) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    failure = Some(io::Error::new(
                        e.kind(),
                        format!("remove control group {}: {e}", folder.display()),
                    ));
                }
                Ok(()) | Err(_) => {}
            }
        }
        match failure {
            None => return Ok(()),
            Some(error) if Instant::now() >= deadline => return Err(error),
            Some(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Every folder of the instance in every hierarchy, the deepest first.
fn folders(parent: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in mounts::cgroup_roots().unwrap_or_default() {
        descend(&root.join(parent.trim_start_matches('/')), &mut found);
    }
    found
}

fn descend(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            descend(&entry.path(), found);
        }
    }
    found.push(folder.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_children_first() {
        let root = tempfile::tempdir().expect("folder");
        fs::create_dir_all(root.path().join("a/b")).expect("folders");
        let mut found = Vec::new();
        descend(root.path(), &mut found);
        assert_eq!(
            found,
            [
                root.path().join("a/b"),
                root.path().join("a"),
                root.path().to_owned()
            ]
        );
    }

    #[test]
    fn an_instance_without_groups_has_nothing_to_remove() {
        assert!(processes("/stokehold-up-none").is_empty());
        assert!(remove("/stokehold-up-none").is_ok());
    }
}
