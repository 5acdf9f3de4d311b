//! Version 1: one hierarchy per controller.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Reading;
use super::parse::{blkio_sum, number, value_of};

/// A limit of v1 that means "none" is the largest whole number of pages.
const NO_LIMIT: u64 = 1 << 62;

pub(super) fn read(root: &Path, group: &Path) -> Reading {
    let mut reading = Reading::default();
    let file = |controller: &str, name: &str| {
        let path = root.join(controller).join(group).join(name);
        fs::read_to_string(path)
    };
    let mut absent = |name: &str, reason: String| {
        reading.absent.push((name.to_owned(), reason));
    };

    match file("cpuacct", "cpuacct.usage") {
        Ok(text) => reading.cpu_used = number(&text).map(Duration::from_nanos),
        Err(e) => absent("cpu_cores", e.to_string()),
    }
    match file("cpu", "cpu.stat") {
        Ok(text) => {
            reading.cpu_periods = value_of(&text, "nr_periods");
            reading.cpu_periods_throttled = value_of(&text, "nr_throttled");
        }
        Err(e) => absent("throttled", e.to_string()),
    }
    match (
        file("memory", "memory.usage_in_bytes"),
        file("memory", "memory.stat"),
    ) {
        (Ok(usage), Ok(stat)) => {
            let idle = value_of(&stat, "total_inactive_file").unwrap_or(0);
            reading.memory_bytes = number(&usage).map(|bytes| bytes.saturating_sub(idle));
        }
        (Err(e), _) | (_, Err(e)) => absent("memory_bytes", e.to_string()),
    }
    if let Ok(text) = file("memory", "memory.limit_in_bytes") {
        reading.memory_limit_bytes = number(&text).filter(|&limit| limit < NO_LIMIT);
    }
    match file("blkio", "blkio.throttle.io_service_bytes") {
        Ok(text) => {
            reading.io_read_bytes = blkio_sum(&text, "Read");
            if reading.io_read_bytes.is_none() {
                let reason = "cgroup v1 counts no reads of a group without an I/O limit";
                absent("io_read_bytes", reason.into());
            }
        }
        Err(e) => absent("io_read_bytes", e.to_string()),
    }
    absent(
        "io_written_bytes",
        "cgroup v1 does not count a group's buffered writes".into(),
    );
    match file("pids", "pids.current") {
        Ok(text) => reading.pids = number(&text).and_then(|n| u32::try_from(n).ok()),
        Err(e) => absent("pids", e.to_string()),
    }
    for name in ["pressure_cpu", "pressure_memory", "pressure_io"] {
        absent(name, "cgroup v1 has no pressure of a group".into());
    }
    reading
}

pub(super) fn out_of_memory_kills(root: &Path, group: &Path) -> Option<u64> {
    let path = root.join("memory").join(group).join("memory.oom_control");
    value_of(&fs::read_to_string(path).ok()?, "oom_kill")
}

/// Every mounted hierarchy.
pub(super) fn hierarchies(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten();
    entries
        .filter_map(|entry| entry.ok())
        .map(|entry| entry.path())
        .filter(|path| path.join("cgroup.procs").exists())
        .collect()
}
