//! One whole Stokehold on this machine, for one test: own folders, own ports, own containerd.
//!
//! What always holds: whatever a test did, [`Cluster::finish`] takes the system down as a user would,
//! and fails the test if a process, mount or cgroup of it is left, or if a daemon logged a warning
//! or an error that the test did not announce.

mod cluster;
mod load;
mod node;
mod programs;
mod registry;
mod traces;

pub(crate) use cluster::{Answer, Cluster, alone, free_ports};
pub(crate) use load::Load;
pub(crate) use node::SecondNode;
pub(crate) use programs::{images, install};
pub(crate) use registry::{Registry, free_port};

use std::path::Path;
use std::time::{Duration, Instant};

/// Whole systems share two cores: what takes a second alone may take many.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `check` says `Some`; panics with `what` when patience ends.
pub(crate) fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Processes that work with or in `folder`.
pub(crate) fn processes_of(folder: &Path) -> Vec<(i32, String)> {
    traces::processes(&folder.display().to_string())
}
