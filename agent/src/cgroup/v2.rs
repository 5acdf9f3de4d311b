//! Version 2: one hierarchy.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::Reading;
use super::parse::{io_stat_sum, limit, number, pressure_some, value_of};

pub(super) fn read(group: &Path) -> Reading {
    let mut reading = Reading::default();
    let file = |name: &str| fs::read_to_string(group.join(name));
    let mut absent = |name: &str, reason: String| {
        reading.absent.push((name.to_owned(), reason));
    };

    match file("cpu.stat") {
        Ok(text) => {
            reading.cpu_used = value_of(&text, "usage_usec").map(Duration::from_micros);
            reading.cpu_periods = value_of(&text, "nr_periods");
            reading.cpu_periods_throttled = value_of(&text, "nr_throttled");
        }
        Err(e) => absent("cpu_cores", e.to_string()),
    }
    match (file("memory.current"), file("memory.stat")) {
        (Ok(usage), Ok(stat)) => {
            let idle = value_of(&stat, "inactive_file").unwrap_or(0);
            reading.memory_bytes = number(&usage).map(|bytes| bytes.saturating_sub(idle));
        }
        (Err(e), _) | (_, Err(e)) => absent("memory_bytes", e.to_string()),
    }
    if let Ok(text) = file("memory.max") {
        reading.memory_limit_bytes = limit(&text);
    }
    match file("io.stat") {
        Ok(text) => {
            reading.io_read_bytes = io_stat_sum(&text, "rbytes");
            reading.io_written_bytes = io_stat_sum(&text, "wbytes");
        }
        Err(e) => {
            absent("io_read_bytes", e.to_string());
            absent("io_written_bytes", e.to_string());
        }
    }
    match file("pids.current") {
        Ok(text) => reading.pids = number(&text).and_then(|n| u32::try_from(n).ok()),
        Err(e) => absent("pids", e.to_string()),
    }
    let mut pressure = |file_name: &str, name: &str| match file(file_name) {
        Ok(text) => pressure_some(&text),
        Err(e) => {
            absent(name, e.to_string());
            None
        }
    };
    let cpu = pressure("cpu.pressure", "pressure_cpu");
    let memory = pressure("memory.pressure", "pressure_memory");
    let io = pressure("io.pressure", "pressure_io");
    reading.pressure_cpu = cpu;
    reading.pressure_memory = memory;
    reading.pressure_io = io;
    reading
}

pub(super) fn out_of_memory_kills(group: &Path) -> Option<u64> {
    value_of(
        &fs::read_to_string(group.join("memory.events")).ok()?,
        "oom_kill",
    )
}
