//! The folders of replicas' logs: made and removed here, written by the log shim, read by the gateway.
//! Nothing in them is opened here: a replica wrote it.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::unistd::{Gid, Uid};
use shared::ids::ReplicaId;

use crate::folder::{FolderError, make_passable, set_owner};

/// Logs of replicas that are gone stay this long.
const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
/// And of this many of them at most, the last ones.
const KEPT_AT_MOST: usize = 20;

#[derive(Clone, Debug)]
pub struct LogFolders {
    log_dir: PathBuf,
    gateway_gid: Gid,
    shim: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("{operation} {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Folder(#[from] FolderError),
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_owned();
    move |source| LogError::Io {
        operation,
        path,
        source,
    }
}

impl LogFolders {
    pub fn open(log_dir: &Path, gateway_gid: Gid, shim: &Path) -> Result<Self, LogError> {
        make_passable(log_dir).map_err(failed("make folder", log_dir))?;
        Ok(Self {
            log_dir: log_dir.to_owned(),
            gateway_gid,
            shim: shim.to_owned(),
        })
    }

    /// Makes the folder of a replica that is about to start; an earlier attempt's lines are kept,
    /// unless it ran under another user (its record was lost): the shim could not go on with them.
    pub fn make(&self, replica: &ReplicaId, uid: u32) -> Result<(), LogError> {
        let path = self.log_dir.join(replica.as_str());
        let others = |m: &fs::Metadata| m.is_dir() && m.uid() != uid && m.uid() != 0;
        if fs::symlink_metadata(&path).is_ok_and(|m| others(&m)) {
            fs::remove_dir_all(&path).map_err(failed("remove logs in", &path))?;
        }
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failed("make folder", &path)(e)),
        }
        set_owner(&path, Uid::from_raw(uid), self.gateway_gid, 0o750)?;
        Ok(())
    }

    /// The log URI of a replica's task: containerd starts the shim with the query as arguments.
    pub fn uri(&self, replica: &ReplicaId, uid: u32) -> String {
        let folder = self.log_dir.join(replica.as_str());
        format!(
            "binary://{}?dir={}&uid={uid}&gid={}",
            percent_encode(&self.shim),
            percent_encode(&folder),
            self.gateway_gid
        )
    }

    /// Removes old logs of replicas that are gone.
    pub fn clean(&self, live: &BTreeSet<ReplicaId>, now: SystemTime) -> Result<usize, LogError> {
        let mut ended = Vec::new();
        let entries = fs::read_dir(&self.log_dir).map_err(failed("list", &self.log_dir))?;
        for entry in entries {
            let entry = entry.map_err(failed("list", &self.log_dir))?;
            let id = entry.file_name().to_str().and_then(|n| n.parse().ok());
            // The folder's own time of change: it is set when a log file is begun or rotated.
            let metadata = fs::symlink_metadata(entry.path());
            if let (Some(id), Ok(metadata)) = (id, metadata)
                && metadata.is_dir()
                && !live.contains(&id)
            {
                let changed = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                let age = now.duration_since(changed).unwrap_or(Duration::ZERO);
                ended.push((age, id));
            }
        }
        let gone = to_remove(ended);
        let mut failure = None;
        for id in &gone {
            let path = self.log_dir.join(id.as_str());
            // Does not follow links, also where its owner exchanges folders meanwhile.
            if let Err(error) = fs::remove_dir_all(&path) {
                // One that cannot be removed must not keep the others.
                failure.get_or_insert(failed("remove logs in", &path)(error));
            }
        }
        failure.map_or(Ok(gone.len()), Err)
    }
}

fn to_remove(mut ended: Vec<(Duration, ReplicaId)>) -> Vec<ReplicaId> {
    ended.sort();
    ended
        .into_iter()
        .enumerate()
        .filter(|(rank, (age, _))| *rank >= KEPT_AT_MOST || *age > KEPT_FOR)
        .map(|(_, (_, id))| id)
        .collect()
}

/// Everything but the plainest characters, so that no path can end a query's value.
fn percent_encode(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let mut text = String::new();
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_' | b'.') {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_twenty_of_the_last_day_are_kept() {
        let ended =
            |hours: u64, n: u64| (Duration::from_secs(hours * 3600), ReplicaId::from_bits(n));
        assert_eq!(to_remove(vec![ended(1, 1), ended(23, 2)]), vec![]);
        assert_eq!(
            to_remove(vec![ended(1, 1), ended(25, 2)]),
            vec![ReplicaId::from_bits(2)]
        );
        let many: Vec<_> = (0..22).map(|n| ended(n, n)).collect();
        let gone: Vec<_> = to_remove(many);
        assert_eq!(
            gone,
            vec![ReplicaId::from_bits(20), ReplicaId::from_bits(21)]
        );
    }

    #[test]
    fn live_logs_and_other_files_stay() {
        let folder = tempfile::tempdir().expect("folder");
        let gid = nix::unistd::getegid();
        let logs = LogFolders::open(folder.path(), gid, Path::new("/shim")).expect("open");
        let id = ReplicaId::from_bits;
        for n in 1..=2 {
            fs::create_dir(folder.path().join(id(n).as_str())).expect("made");
        }
        fs::write(folder.path().join("note"), "x").expect("written");
        let later = SystemTime::now() + Duration::from_secs(25 * 3600);
        let gone = logs.clean(&BTreeSet::from([id(1)]), later).expect("clean");
        assert_eq!(gone, 1);
        assert!(folder.path().join(id(1).as_str()).exists());
        assert!(!folder.path().join(id(2).as_str()).exists());
        assert!(folder.path().join("note").exists());
    }

    #[test]
    fn lines_of_another_user_make_way_for_the_new_ones() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().expect("folder");
        let gid = nix::unistd::getegid();
        let logs = LogFolders::open(folder.path(), gid, Path::new("/shim")).expect("open");
        let id = ReplicaId::from_bits(1);
        let line = folder.path().join(id.as_str()).join("current.jsonl");
        logs.make(&id, 5000).expect("made");
        fs::write(&line, "x").expect("written");
        logs.make(&id, 5000).expect("made again");
        assert!(line.exists());
        logs.make(&id, 5001).expect("made for another user");
        assert!(!line.exists());
        let owner = fs::metadata(folder.path().join(id.as_str())).expect("there");
        assert_eq!((owner.uid(), owner.mode() & 0o7777), (5001, 0o750));
    }

    #[test]
    fn a_path_cannot_break_out_of_the_uri() {
        assert_eq!(
            percent_encode(Path::new("/a b&uid=0?#%")),
            "/a%20b%26uid%3D0%3F%23%25"
        );
    }
}
