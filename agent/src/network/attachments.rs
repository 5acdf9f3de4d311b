//! Which replicas have an interface, and how it was made: one file each, so that it can be undone after
//! a restart of the agent or of the machine.
//!
//! A record is written before anything is made, and again with what came of it: what was cut off in
//! between has one, and is undone by it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::egress::Egress;
use shared::ids::ReplicaId;

use super::conflist::Conflist;
use super::result::Link;

const VERSION: u32 = 1;
/// A conflist and a result.
const MAX_RECORD_BYTES: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    version: u32,
    pub replica: ReplicaId,
    pub conflist: Conflist,
    pub port: Option<u16>,
    pub egress: Egress,
    pub resolvers: Vec<IpAddr>,
    /// What ADD answered; `None` until then.
    pub made: Option<Made>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Made {
    pub result: Value,
    pub link: Link,
}

impl Attachment {
    pub fn intended(
        replica: ReplicaId,
        conflist: Conflist,
        port: Option<u16>,
        egress: Egress,
        resolvers: Vec<IpAddr>,
    ) -> Self {
        Self {
            version: VERSION,
            replica,
            conflist,
            port,
            egress,
            resolvers,
            made: None,
        }
    }

    /// Where it listens for its gateway.
    pub fn address(&self) -> Option<SocketAddr> {
        let link = &self.made.as_ref()?.link;
        Some(SocketAddr::new(*link.addresses.first()?, self.port?))
    }
}

/// All records: on disk, and in memory as they are there.
pub struct Attachments {
    folder: PathBuf,
    all: Mutex<BTreeMap<ReplicaId, Attachment>>,
}

/// A record that cannot be read was taken away; why, by file.
pub type Broken = Vec<(PathBuf, String)>;

impl Attachments {
    pub fn open(folder: &Path) -> io::Result<(Self, Broken)> {
        daemon::files::private_dir(folder, 0o700)?;
        let mut all = BTreeMap::new();
        let mut broken = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(id) = name
                .and_then(|name| name.strip_suffix(".json"))
                .and_then(|id| ReplicaId::parse(id).ok())
            else {
                continue;
            };
            match read(&path, &id) {
                Ok(attachment) => {
                    all.insert(id, attachment);
                }
                Err(why) => {
                    fs::remove_file(&path)?;
                    broken.push((path, why));
                }
            }
        }
        let folder = folder.to_owned();
        let all = Mutex::new(all);
        Ok((Self { folder, all }, broken))
    }

    fn path(&self, id: &ReplicaId) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, BTreeMap<ReplicaId, Attachment>> {
        // A map is whole between any two operations.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, id: &ReplicaId) -> Option<Attachment> {
        self.locked().get(id).cloned()
    }

    pub fn all(&self) -> Vec<Attachment> {
        self.locked().values().cloned().collect()
    }

    pub fn ids(&self) -> Vec<ReplicaId> {
        self.locked().keys().cloned().collect()
    }

    /// Waits for the disk.
    pub fn save(&self, attachment: Attachment) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(&attachment)?;
        daemon::files::write_atomic(&self.path(&attachment.replica), &text, 0o600)?;
        self.locked().insert(attachment.replica.clone(), attachment);
        Ok(())
    }

    pub fn remove(&self, id: &ReplicaId) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Ok(()) | Err(_) => {}
        }
        self.locked().remove(id);
        Ok(())
    }
}

fn read(path: &Path, id: &ReplicaId) -> Result<Attachment, String> {
    let mut text = Vec::new();
    let file = fs::File::open(path).map_err(|e| e.to_string())?;
    let read = file.take(MAX_RECORD_BYTES).read_to_end(&mut text);
    read.map_err(|e| e.to_string())?;
    let attachment: Attachment = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    if attachment.version != VERSION {
        return Err(format!("it has version {}", attachment.version));
    }
    if attachment.replica != *id {
        return Err(format!("it is of replica {}", attachment.replica));
    }
    Ok(attachment)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        let subnet = "10.231.0.0/20".parse().expect("valid");
        Attachment::intended(
            ReplicaId::from_bits(1),
            Conflist::own("b0", subnet, Path::new("/leases"), false),
            Some(8080),
            Egress::parse(&["10.0.0.0/8:443"]).expect("valid"),
            Vec::new(),
        )
    }

    #[test]
    fn what_was_intended_and_what_was_made_survive_a_restart() {
        let folder = tempfile::tempdir().expect("folder");
        let open = || Attachments::open(folder.path()).expect("opens").0;
        let (first, id) = (open(), ReplicaId::from_bits(1));
        first.save(attachment()).expect("saved");
        assert_eq!(open().get(&id), Some(attachment()));
        assert_eq!(open().get(&id).expect("there").address(), None);
        let mut made = attachment();
        made.made = Some(Made {
            result: serde_json::json!({"ips": []}),
            link: Link {
                addresses: vec!["10.231.0.2".parse().expect("address")],
                ..Link::default()
            },
        });
        first.save(made.clone()).expect("saved");
        assert_eq!(open().all(), [made.clone()]);
        assert_eq!(
            made.address(),
            Some("10.231.0.2:8080".parse().expect("address"))
        );
        first.remove(&id).expect("removed");
        first.remove(&id).expect("removed again");
        assert!(open().ids().is_empty());
    }

    #[test]
    fn a_record_that_is_broken_is_taken_away_and_told_of() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("0000000000000001.json");
        fs::write(&path, "{\"version\":1").expect("written");
        fs::write(folder.path().join("notes.txt"), "x").expect("written");
        let (attachments, broken) = Attachments::open(folder.path()).expect("opens");
        assert!(attachments.ids().is_empty());
        assert_eq!(broken.len(), 1);
        assert!(!path.exists());
    }
}
