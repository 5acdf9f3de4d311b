//! Control groups of replicas: which hierarchy this machine has, where a replica's group lies, and
//! what its files say. containerd's runtime makes the groups; here they are read, and cleared away.

mod parse;
mod v1;
mod v2;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use shared::ids::ReplicaId;

use crate::spec::{CgroupLayout, cgroups_path};

pub const ROOT: &str = "/sys/fs/cgroup";

#[derive(Clone, Debug)]
pub struct Cgroups {
    /// Where the hierarchies are mounted; another place in tests.
    root: PathBuf,
    parent: String,
    layout: CgroupLayout,
}

/// One reading: counters since the group was made, and what is now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    pub cpu_used: Option<Duration>,
    pub cpu_periods: Option<u64>,
    pub cpu_periods_throttled: Option<u64>,
    /// In use and not to be had back at once: pages of files that were not used lately are left out.
    pub memory_bytes: Option<u64>,
    pub memory_limit_bytes: Option<u64>,
    pub io_read_bytes: Option<u64>,
    pub io_written_bytes: Option<u64>,
    pub pids: Option<u32>,
    pub pressure_cpu: Option<f64>,
    pub pressure_memory: Option<f64>,
    pub pressure_io: Option<f64>,
    /// (name, reason) of what could not be read.
    pub absent: Vec<(String, String)>,
}

impl Cgroups {
    /// Looks which hierarchy there is.
    pub fn detect(root: &Path, parent: &str) -> Self {
        let layout = if root.join("cgroup.controllers").exists() {
            CgroupLayout::V2
        } else {
            CgroupLayout::V1 {
                swap: root.join("memory/memory.memsw.limit_in_bytes").exists(),
            }
        };
        Self {
            root: root.to_owned(),
            parent: parent.to_owned(),
            layout,
        }
    }

    pub fn layout(&self) -> CgroupLayout {
        self.layout
    }

    pub fn parent(&self) -> &str {
        &self.parent
    }

    pub fn read(&self, instance: &str, replica: &ReplicaId) -> Reading {
        let group = self.group(instance, replica);
        match self.layout {
            CgroupLayout::V1 { .. } => v1::read(&self.root, &group),
            CgroupLayout::V2 => v2::read(&self.root.join(group)),
        }
    }

    /// Whether the kernel has killed a process of it for want of memory. The group outlives the
    /// processes until the task is deleted, so that this is known also of what happened while the
    /// agent was away. `None`: there is no such group any more.
    pub fn ran_out_of_memory(&self, instance: &str, replica: &ReplicaId) -> Option<bool> {
        let group = self.group(instance, replica);
        let kills = match self.layout {
            CgroupLayout::V1 { .. } => v1::out_of_memory_kills(&self.root, &group),
            CgroupLayout::V2 => v2::out_of_memory_kills(&self.root.join(group)),
        };
        kills.map(|kills| kills > 0)
    }

    /// Removes what the runtime left; a group with processes in it stays, and is an error.
    pub fn remove(&self, instance: &str, replica: &ReplicaId) -> Result<(), (PathBuf, io::Error)> {
        let group = self.group(instance, replica);
        let folders = match self.layout {
            CgroupLayout::V1 { .. } => v1::hierarchies(&self.root),
            CgroupLayout::V2 => vec![self.root.clone()],
        };
        for folder in folders {
            let path = folder.join(&group);
            match fs::remove_dir(&path) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err((path, e)),
            }
        }
        Ok(())
    }

    fn group(&self, instance: &str, replica: &ReplicaId) -> PathBuf {
        let path = cgroups_path(&self.parent, instance, replica);
        path.strip_prefix("/").map(Path::to_owned).unwrap_or(path)
    }
}
