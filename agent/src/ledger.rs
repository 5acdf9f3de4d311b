//! What this node must remember over a restart: the last accepted plan, and what is known of each
//! replica that containerd does not know. One JSON file, replaced as a whole.
//!
//! The plan is kept as the frame that it came in, since the wire format is the one that daemons of
//! neighbouring versions agree on. A ledger that is lost or broken is rebuilt from containerd's labels,
//! without a plan: then everything goes on as it is until the scheduler sends one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use prost::Message;
use serde::{Deserialize, Serialize};
use shared::digest::Digest;
use shared::ids::{EndpointName, EntityName, Epoch, ImageRef, NodeName, ReplicaId, Revision};
use shared::manifest::ManifestId;
use shared::plan::{Acceptance, Plan, PlanRefusal, PlannedReplica, accept};
use shared::wire::PlanMessage;

use crate::replica::Life;

pub const LEDGER_VERSION: u32 = 1;
const FILE: &str = "ledger.json";
/// A plan is at most a frame; in hexadecimal that is twice as much.
const MAX_LEDGER_BYTES: u64 = 96 << 20;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    plan: Option<Plan>,
    replicas: BTreeMap<ReplicaId, ReplicaRecord>,
    /// Where the search for a free user id goes on, so that one is not used again soon.
    next_uid: u32,
    highest_epoch: Epoch,
}

/// What is remembered of a replica; the same stands in its container's labels, but for `life`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaRecord {
    pub endpoint: EndpointName,
    pub entity: EntityName,
    pub config_version: u32,
    pub image: ImageRef,
    pub model: ManifestId,
    pub uid: u32,
    pub stop_signal: String,
    pub stop_grace_seconds: u32,
    pub life: Life,
}

impl ReplicaRecord {
    pub fn new(replica: &PlannedReplica, uid: u32) -> Self {
        Self {
            endpoint: replica.endpoint.clone(),
            entity: replica.entity.clone(),
            config_version: replica.config_version,
            image: replica.image.clone(),
            model: replica.model,
            uid,
            stop_signal: replica.container.stop_signal.clone(),
            stop_grace_seconds: replica.container.stop_grace_seconds,
            life: Life::New,
        }
    }
}

/// The user ids that replicas may have.
#[derive(Clone, Copy, Debug)]
pub struct UidRange {
    pub start: u32,
    pub count: u32,
}

/// All user ids of the range are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {count} user ids from {start} on are in use: raise replica_uid_count")]
pub struct NoUid {
    start: u32,
    count: u32,
}

impl Ledger {
    pub fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    pub fn replicas(&self) -> &BTreeMap<ReplicaId, ReplicaRecord> {
        &self.replicas
    }

    /// The highest epoch of any plan that was taken.
    pub fn highest_epoch(&self) -> Epoch {
        self.highest_epoch
    }

    /// Takes a plan, or says why not. A plan for another node is refused even where none is held.
    pub fn offer(&mut self, node: &NodeName, offered: Plan) -> Result<Acceptance, PlanRefusal> {
        if offered.node != *node {
            return Err(PlanRefusal::OtherNode {
                ours: node.clone(),
                theirs: offered.node,
            });
        }
        let acceptance = accept(self.plan.as_ref(), &offered)?;
        self.highest_epoch = self.highest_epoch.max(offered.epoch);
        self.plan = Some(offered);
        Ok(acceptance)
    }

    /// The record of a replica that is to be started; its user id stays the same over attempts.
    pub fn admit(&mut self, replica: &PlannedReplica, uids: UidRange) -> Result<u32, NoUid> {
        if let Some(record) = self.replicas.get(&replica.id) {
            return Ok(record.uid);
        }
        let taken: BTreeSet<u32> = self.replicas.values().map(|record| record.uid).collect();
        let offset = self.next_uid.saturating_sub(uids.start) % uids.count;
        let uid = (0..uids.count)
            .map(|i| uids.start + (u64::from(offset) + u64::from(i)) as u32 % uids.count)
            .find(|uid| !taken.contains(uid))
            .ok_or(NoUid {
                start: uids.start,
                count: uids.count,
            })?;
        self.next_uid = uid + 1;
        let record = ReplicaRecord::new(replica, uid);
        self.replicas.insert(replica.id.clone(), record);
        Ok(uid)
    }

    /// Takes over a replica that containerd has and the ledger has not.
    pub fn adopt(&mut self, id: ReplicaId, record: ReplicaRecord) {
        self.replicas.entry(id).or_insert(record);
    }

    /// Whether that changed anything.
    pub fn set_life(&mut self, id: &ReplicaId, life: Life) -> bool {
        match self.replicas.get_mut(id) {
            Some(record) if record.life != life => {
                record.life = life;
                true
            }
            Some(_) | None => false,
        }
    }

    pub fn forget(&mut self, id: &ReplicaId) -> bool {
        self.replicas.remove(id).is_some()
    }

    fn encode(&self) -> Vec<u8> {
        let plan = self.plan.as_ref().map(|plan| SavedPlan {
            epoch: plan.epoch,
            revision: plan.revision,
            frame: hex::encode(PlanMessage::from(plan).encode_to_vec()),
        });
        let file = LedgerFile {
            version: LEDGER_VERSION,
            highest_epoch: self.highest_epoch,
            next_uid: self.next_uid,
            replicas: self.replicas.clone(),
            plan,
        };
        serde_json::to_vec_pretty(&file).expect("a ledger holds only text keys and whole numbers")
    }

    fn decode(bytes: &[u8]) -> Result<Self, BrokenLedger> {
        // First: a later version may have another form.
        let head: Head = serde_json::from_slice(bytes).map_err(BrokenLedger::Json)?;
        if head.version > LEDGER_VERSION {
            return Err(BrokenLedger::Version {
                found: head.version,
            });
        }
        let file: LedgerFile = serde_json::from_slice(bytes).map_err(BrokenLedger::Json)?;
        if file.version != LEDGER_VERSION {
            return Err(BrokenLedger::Version {
                found: file.version,
            });
        }
        let plan = file.plan.map(|saved| saved.decode()).transpose()?;
        Ok(Self {
            plan,
            replicas: file.replicas,
            next_uid: file.next_uid,
            highest_epoch: file.highest_epoch,
        })
    }
}

/// What any version's file says.
#[derive(Deserialize)]
struct Head {
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct LedgerFile {
    version: u32,
    highest_epoch: Epoch,
    next_uid: u32,
    replicas: BTreeMap<ReplicaId, ReplicaRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    plan: Option<SavedPlan>,
}

#[derive(Serialize, Deserialize)]
struct SavedPlan {
    /// For people; the frame has them too.
    epoch: Epoch,
    revision: Revision,
    /// The protobuf message, in hexadecimal.
    frame: String,
}

impl SavedPlan {
    fn decode(&self) -> Result<Plan, BrokenLedger> {
        let bytes = hex::decode(&self.frame).map_err(|e| BrokenLedger::Plan(e.to_string()))?;
        let message =
            PlanMessage::decode(bytes.as_slice()).map_err(|e| BrokenLedger::Plan(e.to_string()))?;
        Plan::try_from(message).map_err(|e| BrokenLedger::Plan(e.to_string()))
    }
}

/// Why a ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BrokenLedger {
    #[error("ledger is not JSON of the expected form")]
    Json(#[source] serde_json::Error),
    #[error("ledger has version {found}, this program knows {LEDGER_VERSION}")]
    Version { found: u32 },
    #[error("ledger's plan is not readable: {0}")]
    Plan(String),
    #[error("ledger of {len} bytes is over the limit of {MAX_LEDGER_BYTES}")]
    TooLarge { len: u64 },
}

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("read the ledger {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the ledger {} has version {found}, this stokehold-agent ({}) knows {LEDGER_VERSION}: install \
         the version that wrote it, or a later one. It is left as it is. To go on with this one, move \
         that file away: replicas are then found again by containerd's labels",
        path.display(), env!("CARGO_PKG_VERSION")
    )]
    Newer { path: PathBuf, found: u32 },
    #[error("write the ledger {} of {len} bytes", path.display())]
    Write {
        path: PathBuf,
        len: usize,
        #[source]
        source: io::Error,
    },
    #[error("move the broken ledger {} aside", path.display())]
    MoveAside {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What was found at the start.
#[derive(Debug)]
pub enum Opened {
    Held(Ledger),
    /// The first start on this node.
    None,
    /// It was moved to `aside`.
    Broken {
        why: BrokenLedger,
        aside: PathBuf,
    },
}

/// The ledger's place on disk.
#[derive(Clone, Debug)]
pub struct LedgerPath(PathBuf);

impl LedgerPath {
    pub fn in_folder(state_dir: &Path) -> Self {
        Self(state_dir.join(FILE))
    }

    pub fn open(&self) -> Result<Opened, LedgerError> {
        let read = |source| LedgerError::Read {
            path: self.0.clone(),
            source,
        };
        let len = match std::fs::metadata(&self.0) {
            Ok(metadata) => metadata.len(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Opened::None),
            Err(e) => return Err(read(e)),
        };
        let decoded = if len > MAX_LEDGER_BYTES {
            Err(BrokenLedger::TooLarge { len })
        } else {
            Ledger::decode(&std::fs::read(&self.0).map_err(read)?)
        };
        match decoded {
            Ok(ledger) => Ok(Opened::Held(ledger)),
            Err(BrokenLedger::Version { found }) if found > LEDGER_VERSION => {
                Err(LedgerError::Newer {
                    path: self.0.clone(),
                    found,
                })
            }
            Err(why) => {
                let aside = self.0.with_extension("json.broken");
                std::fs::rename(&self.0, &aside).map_err(|source| LedgerError::MoveAside {
                    path: self.0.clone(),
                    source,
                })?;
                Ok(Opened::Broken { why, aside })
            }
        }
    }

    /// Once this returns, the ledger survives a power loss.
    pub fn save(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        let bytes = ledger.encode();
        daemon::files::write_atomic(&self.0, &bytes, 0o600).map_err(|source| LedgerError::Write {
            path: self.0.clone(),
            len: bytes.len(),
            source,
        })
    }
}

/// A model's id from a label.
pub fn manifest_id(text: &str) -> Option<ManifestId> {
    text.parse::<Digest>().ok().map(ManifestId)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{plan_with, planned_replica};
    use crate::replica::BootId;

    const UIDS: UidRange = UidRange {
        start: 5000,
        count: 3,
    };

    fn node() -> NodeName {
        NodeName::parse("n1").expect("valid")
    }

    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        let replica = planned_replica(1);
        ledger
            .offer(&node(), plan_with(1, 1, vec![replica.clone()]))
            .expect("taken");
        ledger.admit(&replica, UIDS).expect("a uid is free");
        let boot = BootId("b".into());
        ledger.set_life(&replica.id, Life::Started { boot });
        ledger
    }

    #[test]
    fn a_ledger_reads_back_as_it_was_written() {
        let folder = tempfile::tempdir().expect("folder");
        let path = LedgerPath::in_folder(folder.path());
        assert!(matches!(path.open(), Ok(Opened::None)));
        path.save(&ledger()).expect("written");
        match path.open().expect("read") {
            Opened::Held(read) => assert_eq!(read, ledger()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_broken_ledger_is_moved_aside_and_said() {
        let folder = tempfile::tempdir().expect("folder");
        let path = LedgerPath::in_folder(folder.path());
        for broken in ["", "{\"version\":1", "{\"version\":0}", "[]"] {
            std::fs::write(folder.path().join(FILE), broken).expect("write");
            let Opened::Broken { aside, .. } = path.open().expect("opened") else {
                panic!("{broken:?} was taken");
            };
            assert_eq!(std::fs::read_to_string(aside).expect("kept"), broken);
            assert!(matches!(path.open(), Ok(Opened::None)));
        }
    }

    #[test]
    fn a_ledger_of_a_later_version_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().expect("folder");
        let path = LedgerPath::in_folder(folder.path());
        let later = r#"{"version":9,"plan":"of another form"}"#;
        std::fs::write(folder.path().join(FILE), later).expect("write");
        let error = path.open().expect_err("refused").to_string();
        assert!(
            error.contains("version 9") && error.contains("knows 1"),
            "{error}"
        );
        let kept = std::fs::read_to_string(folder.path().join(FILE)).expect("kept");
        assert_eq!(kept, later);
        assert_eq!(std::fs::read_dir(folder.path()).expect("list").count(), 1);
    }

    #[test]
    fn older_plans_and_other_nodes_plans_are_refused() {
        let mut ledger = ledger();
        assert_eq!(
            ledger.offer(&node(), plan_with(2, 1, vec![])),
            Ok(Acceptance::New)
        );
        assert!(matches!(
            ledger.offer(&node(), plan_with(1, 9, vec![])),
            Err(PlanRefusal::Older { .. })
        ));
        let other = NodeName::parse("n2").expect("valid");
        assert!(matches!(
            Ledger::default().offer(&other, plan_with(1, 1, vec![])),
            Err(PlanRefusal::OtherNode { .. })
        ));
        assert_eq!(ledger.highest_epoch(), Epoch(2));
    }

    #[test]
    fn each_replica_has_its_own_uid_and_a_freed_one_is_used_last() {
        let mut ledger = Ledger::default();
        let uid = |ledger: &mut Ledger, n| ledger.admit(&planned_replica(n), UIDS);
        assert_eq!(uid(&mut ledger, 1), Ok(5000));
        assert_eq!(uid(&mut ledger, 1), Ok(5000));
        assert_eq!(uid(&mut ledger, 2), Ok(5001));
        ledger.forget(&planned_replica(1).id);
        assert_eq!(uid(&mut ledger, 3), Ok(5002));
        assert_eq!(uid(&mut ledger, 4), Ok(5000));
        assert!(uid(&mut ledger, 5).is_err());
    }
}
