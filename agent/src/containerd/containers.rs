//! Container records. Their labels are the second ledger.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, DeleteContainerRequest, ListContainersRequest,
};
use oci_spec::runtime::Spec;
use prost_types::Any;
use shared::digest::Digest;
use shared::ids::{ClusterId, ReplicaId};

use super::{CallError, Containerd, QUICK, call, unless_gone};
use crate::ledger::{ReplicaRecord, manifest_id};
use crate::replica::Life;

const RUNTIME: &str = "io.containerd.runc.v2";
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

pub const LABEL_INSTANCE: &str = "stokehold.instance";
const LABEL_REPLICA: &str = "stokehold.replica";
const LABEL_CLUSTER: &str = "stokehold.cluster";
const LABEL_ENDPOINT: &str = "stokehold.endpoint";
const LABEL_ENTITY: &str = "stokehold.entity";
const LABEL_CONFIG_VERSION: &str = "stokehold.config-version";
const LABEL_UID: &str = "stokehold.uid";
const LABEL_IMAGE: &str = "stokehold.image";
const LABEL_MODEL: &str = "stokehold.model";
const LABEL_STOP_SIGNAL: &str = "stokehold.stop-signal";
const LABEL_STOP_GRACE: &str = "stokehold.stop-grace";
/// BLAKE3 of the spec's JSON: tells people whether two replicas were made alike.
const LABEL_SPEC: &str = "stokehold.spec";

/// A container to be made.
pub struct NewContainer<'a> {
    pub replica: &'a ReplicaId,
    pub record: &'a ReplicaRecord,
    pub cluster: &'a ClusterId,
    pub instance: &'a str,
    pub spec: &'a Spec,
}

impl Containerd {
    /// All containers of this instance, and the ids of those whose labels are not a replica's.
    pub async fn list_replicas(
        &self,
        instance: &str,
    ) -> Result<(BTreeMap<ReplicaId, ReplicaRecord>, BTreeSet<String>), CallError> {
        // Containers that people make of our images inherit the image's labels, ours among them;
        // replicas have one more. The name is of letters, digits, - and _ only: it needs no escapes.
        let filter =
            format!("labels.\"{LABEL_INSTANCE}\"==\"{instance}\",labels.\"{LABEL_REPLICA}\"");
        let request = self.request(ListContainersRequest {
            filters: vec![filter],
        });
        let answer = call("containers.list", QUICK, self.containers().list(request)).await?;
        let (mut found, mut unreadable) = (BTreeMap::new(), BTreeSet::new());
        for container in answer.containers {
            match read(&container.id, &container.labels) {
                Some((id, record)) => {
                    found.insert(id, record);
                }
                None => {
                    unreadable.insert(container.id);
                }
            }
        }
        Ok((found, unreadable))
    }

    /// The record comes before its snapshot: it is what keeps the snapshot from being collected, and
    /// what tells a later look that something is there.
    pub async fn create_container(&self, new: NewContainer<'_>) -> Result<(), CallError> {
        let spec = serde_json::to_vec(new.spec).expect("a spec has text keys only");
        let mut labels = write(new.replica, new.record);
        labels.insert(LABEL_INSTANCE.to_owned(), new.instance.to_owned());
        labels.insert(LABEL_CLUSTER.to_owned(), new.cluster.to_string());
        labels.insert(LABEL_SPEC.to_owned(), Digest::of(&spec).to_hex());
        let container = Container {
            id: new.replica.to_string(),
            labels,
            image: new.record.image.to_string(),
            runtime: Some(Runtime {
                name: RUNTIME.to_owned(),
                options: None,
            }),
            spec: Some(Any {
                type_url: SPEC_TYPE.to_owned(),
                value: spec,
            }),
            snapshotter: self.snapshotter.clone(),
            snapshot_key: new.replica.to_string(),
            ..Container::default()
        };
        let request = self.request(CreateContainerRequest {
            container: Some(container),
        });
        call(
            "containers.create",
            QUICK,
            self.containers().create(request),
        )
        .await
        .map(|_| ())
    }

    /// Whether there was one does not matter.
    pub async fn delete_container(&self, replica: &ReplicaId) -> Result<(), CallError> {
        let request = self.request(DeleteContainerRequest {
            id: replica.to_string(),
        });
        let mut client = self.containers();
        unless_gone(call("containers.delete", QUICK, client.delete(request)).await)
    }
}

fn write(replica: &ReplicaId, record: &ReplicaRecord) -> HashMap<String, String> {
    let labels = [
        (LABEL_REPLICA, replica.to_string()),
        (LABEL_ENDPOINT, record.endpoint.to_string()),
        (LABEL_ENTITY, record.entity.to_string()),
        (LABEL_CONFIG_VERSION, record.config_version.to_string()),
        (LABEL_UID, record.uid.to_string()),
        (LABEL_IMAGE, record.image.to_string()),
        (LABEL_MODEL, record.model.to_string()),
        (LABEL_STOP_SIGNAL, record.stop_signal.clone()),
        (LABEL_STOP_GRACE, record.stop_grace_seconds.to_string()),
    ];
    labels
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// `None` where a label is missing or wrong, or names another replica than the container.
fn read(id: &str, labels: &HashMap<String, String>) -> Option<(ReplicaId, ReplicaRecord)> {
    let label = |name: &str| labels.get(name).map(String::as_str);
    let replica = ReplicaId::parse(label(LABEL_REPLICA)?).ok()?;
    if replica.as_str() != id {
        return None;
    }
    let record = ReplicaRecord {
        endpoint: label(LABEL_ENDPOINT)?.parse().ok()?,
        entity: label(LABEL_ENTITY)?.parse().ok()?,
        config_version: label(LABEL_CONFIG_VERSION)?.parse().ok()?,
        image: label(LABEL_IMAGE)?.parse().ok()?,
        model: manifest_id(label(LABEL_MODEL)?)?,
        uid: label(LABEL_UID)?.parse().ok()?,
        stop_signal: label(LABEL_STOP_SIGNAL)?.to_owned(),
        stop_grace_seconds: label(LABEL_STOP_GRACE)?.parse().ok()?,
        life: Life::New,
    };
    Some((replica, record))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::planned_replica;

    #[test]
    fn a_record_can_be_rebuilt_from_the_labels_alone() {
        let replica = planned_replica(1);
        let record = ReplicaRecord::new(&replica, 4711);
        let labels = write(&replica.id, &record);
        let (id, read_back) = read(replica.id.as_str(), &labels).expect("complete");
        assert_eq!((id, read_back), (replica.id.clone(), record));
        assert_eq!(read("0000000000000009", &labels), None);
        for name in labels.keys() {
            let mut fewer = labels.clone();
            fewer.remove(name);
            assert_eq!(read(replica.id.as_str(), &fewer), None, "{name}");
        }
    }
}
