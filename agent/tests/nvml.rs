//! The GPU probe against a stand-in for NVIDIA's library (`nvml_standin/standin.rs`), loaded as the
//! real one would be.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use agent::sampler::gpu::{GpuProbe, GpuReading};

const PATIENT: Duration = Duration::from_secs(20);

fn standin(folder: &Path, scenario: &str) -> PathBuf {
    let library = folder.join(format!("libnvidia-ml-{scenario}.so"));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nvml_standin/standin.rs");
    let compiled = Command::new("rustc")
        .args(["--edition", "2024", "--crate-type", "cdylib", "-o"])
        .arg(&library)
        .arg(source)
        .env("SCENARIO", scenario)
        .status()
        .expect("run rustc");
    assert!(compiled.success());
    library
}

fn probe(folder: &tempfile::TempDir, scenario: &str) -> GpuProbe {
    GpuProbe::start(Some(standin(folder.path(), scenario))).expect("start")
}

fn reason<'a>(reading: &'a GpuReading, name: &str) -> Option<&'a str> {
    let found = reading.absent.iter().find(|(n, _)| n == name);
    found.map(|(_, reason)| reason.as_str())
}

#[tokio::test]
async fn figures_come_where_the_hardware_has_them_and_reasons_where_not() {
    let folder = tempfile::tempdir().expect("folder");
    let mut probe = probe(&folder, "hopper");
    let first = probe.read(PATIENT).await;
    assert_eq!(first.none_because, None);
    let uuids: Vec<_> = first.gpus.iter().map(|g| g.uuid.as_str()).collect();
    assert_eq!(uuids, ["GPU-0", "GPU-1"]);
    assert_eq!(first.gpus[0].memory_bytes, 80 << 30);
    assert_eq!(first.samples[0].sm, None);
    assert_eq!(reason(&first, "gpu.0.sm"), Some("the first of two samples"));

    let second = probe.read(PATIENT).await;
    let hopper = &second.samples[0];
    assert_eq!(hopper.busy, Some(0.75));
    assert_eq!(hopper.sm, Some(0.625));
    assert_eq!(hopper.tensor, Some(0.25));
    assert_eq!(hopper.dram_bandwidth, Some(0.4));
    assert_eq!(hopper.fp16, None);
    assert_eq!(hopper.power_milliwatts, Some(321_000));
    assert_eq!(hopper.temperature_celsius, Some(55));

    let older = &second.samples[1];
    assert_eq!((older.busy, older.sm, older.tensor), (None, None, None));
    assert_eq!(older.memory_used_bytes, Some(3 << 30));
    assert!(reason(&second, "gpu.1.busy").is_some());
    let gpm = reason(&second, "gpu.1.sm").expect("a reason");
    assert!(gpm.contains("Hopper"), "{gpm}");
}

#[tokio::test]
async fn a_lost_gpu_does_not_hide_the_others() {
    let folder = tempfile::tempdir().expect("folder");
    let reading = probe(&folder, "lost").read(PATIENT).await;
    assert_eq!(reading.gpus.len(), 1);
    assert!(reason(&reading, "gpu.1").is_some(), "{reading:?}");
}

#[tokio::test]
async fn a_driver_without_gpus_says_so() {
    let folder = tempfile::tempdir().expect("folder");
    let reading = probe(&folder, "none").read(PATIENT).await;
    assert_eq!(
        reading.none_because.as_deref(),
        Some("the driver knows no GPU")
    );
}

#[tokio::test]
async fn a_library_that_hangs_holds_nothing_up_and_is_taken_up_again() {
    let folder = tempfile::tempdir().expect("folder");
    let mut probe = probe(&folder, "hang");
    let first = probe.read(PATIENT).await;
    assert_eq!(first.gpus.len(), 2);
    let hung = probe.read(Duration::from_millis(100)).await;
    // The GPUs are still there; their figures are not.
    assert_eq!((hung.gpus.len(), hung.samples.len()), (2, 0));
    assert!(
        reason(&hung, "gpus").is_some_and(|r| r.contains("has not answered")),
        "{hung:?}"
    );
    let back = probe.read(PATIENT).await;
    assert_eq!(back.samples.len(), 2);
}
