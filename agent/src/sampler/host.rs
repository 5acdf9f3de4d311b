//! The machine: CPU, memory, disks and pressure, from `/proc`.

use std::time::Duration;

use procfs::{
    CpuPressure, CpuTime, Current, CurrentSI, DiskStats, IoPressure, KernelStats, Meminfo,
    MemoryPressure,
};
use shared::report::NodeSample;

const SECTOR_BYTES: u64 = 512;

/// What `/proc` said at one moment. Each part may be missing by itself, with the reason.
#[derive(Clone, Debug, Default)]
pub struct HostReading {
    cpu: Option<CpuCounters>,
    memory_total_bytes: Option<u64>,
    memory_used_bytes: Option<u64>,
    disk: Option<DiskCounters>,
    pressure_cpu: Option<f64>,
    pressure_memory: Option<f64>,
    pressure_io: Option<f64>,
    absent: Vec<(String, String)>,
}

/// Ticks since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CpuCounters {
    total: u64,
    idle: u64,
    io_wait: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DiskCounters {
    read_bytes: u64,
    written_bytes: u64,
}

impl HostReading {
    /// Bytes of memory that the machine has.
    pub fn memory_total_bytes(&self) -> Option<u64> {
        self.memory_total_bytes
    }
}

pub fn read() -> HostReading {
    let mut reading = HostReading::default();
    let mut absent = Vec::new();
    let mut note = |name: &str, error: procfs::ProcError| {
        absent.push((name.to_owned(), error.to_string()));
    };
    match KernelStats::current() {
        Ok(stats) => reading.cpu = Some(cpu_counters(&stats.total)),
        Err(e) => note("cpu", e),
    }
    match Meminfo::current() {
        Ok(memory) => {
            reading.memory_total_bytes = Some(memory.mem_total);
            reading.memory_used_bytes = memory
                .mem_available
                .map(|available| memory.mem_total.saturating_sub(available));
        }
        Err(e) => note("memory_used_bytes", e),
    }
    match DiskStats::current() {
        Ok(stats) => reading.disk = Some(disk_counters(&stats)),
        Err(e) => note("disk_read_bytes", e),
    }
    match CpuPressure::current() {
        Ok(pressure) => reading.pressure_cpu = Some(share(pressure.some.avg10)),
        Err(e) => note("pressure_cpu", e),
    }
    match MemoryPressure::current() {
        Ok(pressure) => reading.pressure_memory = Some(share(pressure.some.avg10)),
        Err(e) => note("pressure_memory", e),
    }
    match IoPressure::current() {
        Ok(pressure) => reading.pressure_io = Some(share(pressure.some.avg10)),
        Err(e) => note("pressure_io", e),
    }
    reading.absent = absent;
    reading
}

fn share(percent: f32) -> f64 {
    f64::from(percent) / 100.0
}

fn cpu_counters(time: &CpuTime) -> CpuCounters {
    let io_wait = time.iowait.unwrap_or(0);
    // `guest` is part of `user` already.
    let busy = [
        Some(time.user),
        Some(time.nice),
        Some(time.system),
        time.irq,
        time.softirq,
        time.steal,
    ];
    let busy: u64 = busy.into_iter().flatten().sum();
    CpuCounters {
        total: busy + time.idle + io_wait,
        idle: time.idle + io_wait,
        io_wait,
    }
}

/// Whole physical disks: a partition's bytes are its disk's, a mapped or looped device's are those of
/// the device below.
fn disk_counters(stats: &DiskStats) -> DiskCounters {
    let whole = |name: &str| {
        let virtual_kinds = ["loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd"];
        !virtual_kinds.iter().any(|kind| name.starts_with(kind)) && !is_partition(name)
    };
    let disks = stats.0.iter().filter(|disk| whole(&disk.name));
    disks.fold(
        DiskCounters {
            read_bytes: 0,
            written_bytes: 0,
        },
        |sum, disk| DiskCounters {
            read_bytes: sum.read_bytes + disk.sectors_read * SECTOR_BYTES,
            written_bytes: sum.written_bytes + disk.sectors_written * SECTOR_BYTES,
        },
    )
}

/// `sda1`, `nvme0n1p1`, `mmcblk0p2` are; `sda`, `nvme0n1`, `vda` are not.
fn is_partition(name: &str) -> bool {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    if stem.len() == name.len() {
        return false;
    }
    let numbered_disks = ["nvme", "mmcblk"];
    if numbered_disks.iter().any(|kind| name.starts_with(kind)) {
        return stem.ends_with('p');
    }
    ["sd", "vd", "xvd", "hd"]
        .iter()
        .any(|kind| name.starts_with(kind))
}

/// One second of the machine, from two readings; the first one gives no rates.
pub fn sample(before: Option<&HostReading>, after: &HostReading, over: Duration) -> NodeSample {
    let cpu_before = before.and_then(|before| before.cpu);
    let cpu = cpu_before.zip(after.cpu).and_then(|(before, after)| {
        let total = after.total.checked_sub(before.total).filter(|&t| t > 0)?;
        let ratio = |part: u64| part.min(total) as f64 / total as f64;
        let idle = after.idle.saturating_sub(before.idle);
        let waiting = after.io_wait.saturating_sub(before.io_wait);
        Some((1.0 - ratio(idle), ratio(waiting)))
    });
    let disks = before.and_then(|before| before.disk).zip(after.disk);
    let disk = |bytes: fn(&DiskCounters) -> u64| {
        let (before, after) = disks?;
        per_second(bytes(&after).checked_sub(bytes(&before))?, over)
    };
    NodeSample {
        cpu: cpu.map(|(busy, _)| busy),
        io_wait: cpu.map(|(_, waiting)| waiting),
        memory_used_bytes: after.memory_used_bytes,
        disk_read_bytes: disk(|d| d.read_bytes),
        disk_written_bytes: disk(|d| d.written_bytes),
        pressure_cpu: after.pressure_cpu,
        pressure_memory: after.pressure_memory,
        pressure_io: after.pressure_io,
        gpus: Vec::new(),
        absent: after.absent.clone(),
    }
}

/// Per-second rates of a counter over a stretch that is not exactly a second.
pub(super) fn per_second(delta: u64, over: Duration) -> Option<u64> {
    let seconds = over.as_secs_f64();
    (seconds > 0.0).then(|| (delta as f64 / seconds).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(total: u64, idle: u64, io_wait: u64, read_bytes: u64) -> HostReading {
        HostReading {
            cpu: Some(CpuCounters {
                total,
                idle,
                io_wait,
            }),
            disk: Some(DiskCounters {
                read_bytes,
                written_bytes: 0,
            }),
            ..HostReading::default()
        }
    }

    #[test]
    fn a_sample_is_the_difference_of_two_readings() {
        let (before, after) = (reading(1000, 900, 50, 10), reading(1200, 1050, 60, 8202));
        let sample = sample(Some(&before), &after, Duration::from_secs(2));
        assert_eq!(sample.cpu, Some(0.25));
        assert_eq!(sample.io_wait, Some(0.05));
        assert_eq!(sample.disk_read_bytes, Some(4096));
        assert_eq!(sample.memory_used_bytes, None);
    }

    #[test]
    fn counters_that_stood_still_or_went_back_give_nothing() {
        let before = reading(1000, 900, 0, 10);
        let second = Duration::from_secs(1);
        assert_eq!(sample(Some(&before), &before, second).cpu, None);
        let rebooted = sample(Some(&before), &reading(1, 1, 0, 1), second);
        assert_eq!((rebooted.cpu, rebooted.disk_read_bytes), (None, None));
        let first = sample(None, &before, Duration::ZERO);
        assert_eq!((first.cpu, first.disk_read_bytes), (None, None));
    }

    #[test]
    fn only_whole_disks_are_counted() {
        for partition in ["sda1", "nvme0n1p1", "mmcblk0p2", "vda15"] {
            assert!(is_partition(partition), "{partition}");
        }
        for disk in ["sda", "nvme0n1", "mmcblk0", "vda"] {
            assert!(!is_partition(disk), "{disk}");
        }
    }

    #[test]
    fn this_machine_can_be_read() {
        let reading = read();
        assert!(reading.cpu.is_some(), "{:?}", reading.absent);
        assert!(reading.memory_total_bytes().expect("meminfo") > 1 << 20);
    }
}
