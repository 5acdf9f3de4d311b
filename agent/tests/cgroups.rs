//! Control group files: `cgroup-v1` was recorded from a group that ran for two seconds under a fifth of a
//! core and did direct I/O; `cgroup-v2` is written in the form of Linux 6.1's documentation, with
//! figures that were seen there, and without `io.pressure`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::cgroup::Cgroups;
use agent::spec::CgroupLayout;
use shared::ids::ReplicaId;

fn tree(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(name)
}

fn id() -> ReplicaId {
    ReplicaId::from_bits(1)
}

fn reason<'a>(absent: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = absent.iter().find(|(n, _)| n == name);
    found.map(|(_, reason)| reason.as_str())
}

#[test]
fn version_1_is_read_and_what_it_cannot_tell_is_absent() {
    let cgroups = Cgroups::detect(&tree("cgroup-v1"), "/stokehold");
    assert_eq!(cgroups.layout(), CgroupLayout::V1 { swap: true });
    let reading = cgroups.read("default", &id());
    let used = reading.cpu_used.expect("cpu");
    assert!(
        used > Duration::from_millis(200) && used < Duration::from_secs(2),
        "{used:?}"
    );
    assert!(
        reading.cpu_periods_throttled.is_some_and(|n| n > 5),
        "{reading:?}"
    );
    assert!(reading.cpu_periods >= reading.cpu_periods_throttled);
    assert!(
        reading.memory_bytes.is_some_and(|bytes| bytes > 1 << 20),
        "{reading:?}"
    );
    assert_eq!(reading.memory_limit_bytes, Some(256 << 20));
    assert_eq!(
        (reading.io_read_bytes, reading.io_written_bytes),
        (None, None)
    );
    assert_eq!(reading.pids, Some(1));
    assert_eq!(reading.pressure_cpu, None);
    for name in [
        "pressure_cpu",
        "pressure_memory",
        "pressure_io",
        "io_read_bytes",
        "io_written_bytes",
    ] {
        let reason = reason(&reading.absent, name).expect("a reason");
        assert!(reason.contains("cgroup v1"), "{reason}");
    }
    assert_eq!(cgroups.ran_out_of_memory("default", &id()), Some(false));
}

#[test]
fn version_2_is_read_and_a_missing_file_is_absent() {
    let cgroups = Cgroups::detect(&tree("cgroup-v2"), "/stokehold");
    assert_eq!(cgroups.layout(), CgroupLayout::V2);
    let reading = cgroups.read("default", &id());
    assert_eq!(reading.cpu_used, Some(Duration::from_micros(4_210_583)));
    assert_eq!(reading.cpu_periods, Some(118));
    assert_eq!(reading.cpu_periods_throttled, Some(59));
    assert_eq!(reading.memory_bytes, Some((41_943_040) - (8_388_608)));
    assert_eq!(reading.memory_limit_bytes, Some(128 << 20));
    assert_eq!(reading.io_read_bytes, Some(1_762_280));
    assert_eq!(reading.io_written_bytes, Some(5_242_880));
    assert_eq!(reading.pids, Some(7));
    assert_eq!(reading.pressure_cpu, Some(0.125));
    assert_eq!(reading.pressure_memory, Some(0.0));
    assert_eq!(reading.pressure_io, None);
    assert!(reason(&reading.absent, "pressure_io").is_some());
    assert_eq!(cgroups.ran_out_of_memory("default", &id()), Some(true));
}

#[test]
fn a_group_that_is_not_there_gives_nothing_but_reasons() {
    for name in ["cgroup-v1", "cgroup-v2"] {
        let cgroups = Cgroups::detect(&tree(name), "/stokehold");
        let gone = ReplicaId::from_bits(9);
        let reading = cgroups.read("default", &gone);
        assert_eq!((reading.cpu_used, reading.memory_bytes), (None, None));
        assert!(reason(&reading.absent, "cpu_cores").is_some());
        assert_eq!(cgroups.ran_out_of_memory("default", &gone), None);
        cgroups.remove("default", &gone).expect("nothing to remove");
    }
}
