//! What a system leaves on a machine: processes, mounts, cgroups, and lines in its logs.

use std::path::{Path, PathBuf};

/// Processes whose command line mentions `needle`: `(pid, command line)`.
pub(crate) fn processes(needle: &str) -> Vec<(i32, String)> {
    let own = std::process::id() as i32;
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<i32>().ok())
        else {
            continue;
        };
        // A process may end between the listing and the reading.
        let Ok(raw) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&raw)
            .replace('\0', " ")
            .trim()
            .to_owned();
        if pid != own && line.contains(needle) {
            found.push((pid, line));
        }
    }
    found
}

/// Mount points below or of `folder`.
pub(crate) fn mounts(folder: &Path) -> Vec<String> {
    let needle = folder.display().to_string();
    let table = std::fs::read_to_string("/proc/self/mounts").expect("mount table");
    let points = table.lines().filter_map(|line| line.split(' ').nth(1));
    points
        .filter(|point| point.contains(&needle))
        .map(str::to_owned)
        .collect()
}

/// Named network namespaces.
pub(crate) fn network_namespaces() -> std::collections::BTreeSet<std::ffi::OsString> {
    let entries = std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten();
    entries.map(|entry| entry.file_name()).collect()
}

/// cgroups whose path ends in one of these replica ids.
pub(crate) fn cgroups(replicas: &[String]) -> Vec<PathBuf> {
    fn walk(folder: &Path, depth: u32, replicas: &[String], found: &mut Vec<PathBuf>) {
        let Ok(entries) = std::fs::read_dir(folder) else {
            return;
        };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|t| t.is_dir()) {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            if replicas.iter().any(|id| name.contains(id.as_str())) {
                found.push(entry.path());
            }
            if depth > 0 {
                walk(&entry.path(), depth - 1, replicas, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), 5, replicas, &mut found);
    found
}

/// Lines of level WARN or ERROR in the logs of a folder that no announced text explains.
pub(crate) fn unannounced(logs: &Path, announced: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(logs) else {
        return found;
    };
    for path in entries.flatten().map(|e| e.path()).filter(|p| p.is_file()) {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        // containerd's own log is its own business.
        if name.starts_with("containerd") {
            continue;
        }
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()).into_owned();
        for line in text.lines() {
            let bad =
                line.contains(" WARN ") || line.contains(" ERROR ") || line.contains("panicked");
            if bad && !announced.iter().any(|known| line.contains(known.as_str())) {
                found.push(format!("{name}: {line}"));
            }
        }
    }
    found
}
