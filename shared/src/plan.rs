//! What the scheduler wants of one node: level-triggered and always whole.
//!
//! A node that gets a plan compares all of it with all that it observes. Whatever runs and is not in
//! the plan is stopped gracefully; nothing in a plan is a command.

use std::collections::BTreeMap;

use crate::digest::OciDigest;
use crate::egress::Egress;
use crate::ids::{
    ClusterId, EndpointName, EntityName, Epoch, ImageRef, NodeName, ReplicaId, Revision,
};
use crate::manifest::ManifestId;
use crate::runtime::{HealthProbe, Resources, Transport};

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub cluster: ClusterId,
    pub epoch: Epoch,
    pub revision: Revision,
    pub node: NodeName,
    /// Images to hold unpacked, those of replicas included.
    pub images: Vec<PlannedImage>,
    /// Models to hold in the cache, those of replicas included.
    pub models: Vec<PlannedModel>,
    pub replicas: Vec<PlannedReplica>,
}

/// An image that the scheduler has already taken apart (it is unprivileged; the agent is root and
/// parses nothing of an image): the blobs to put into containerd's content store, and how to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedImage {
    pub reference: ImageRef,
    pub origin: ImageOrigin,
    pub manifest: OciBlob,
    pub config: OciBlob,
    pub layers: Vec<OciLayer>,
    /// From the image's config: `NAME=value`.
    pub environment: Vec<String>,
}

/// Where an image's blobs come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageOrigin {
    /// The OCI layout as it travels: blobs are files `blobs/sha256/HEX` of this manifest.
    Layout(ManifestId),
    /// The registry that the reference names: each node asks it for the digests of the plan, with what
    /// its own files say about mirrors and credentials.
    Registry,
}

impl ImageOrigin {
    pub fn layout(self) -> Option<ManifestId> {
        match self {
            ImageOrigin::Layout(layout) => Some(layout),
            ImageOrigin::Registry => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OciBlob {
    pub media_type: String,
    pub digest: OciDigest,
    pub size_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OciLayer {
    pub blob: OciBlob,
    /// The digest of the layer's uncompressed tar.
    pub diff_id: OciDigest,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedModel {
    pub manifest: ManifestId,
    /// For people: `iris/1`.
    pub label: String,
    pub size_bytes: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct PlannedReplica {
    pub id: ReplicaId,
    pub endpoint: EndpointName,
    pub entity: EntityName,
    /// The config version of the endpoint that first asked for it.
    pub config_version: u32,
    pub image: ImageRef,
    pub model: ManifestId,
    pub container: ContainerSpec,
}

/// A runtime template rendered for one replica.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerSpec {
    pub command: Vec<String>,
    pub environment: BTreeMap<String, String>,
    pub resources: Resources,
    pub shm_bytes: u64,
    pub tmp_bytes: u64,
    pub model_mount: String,
    pub transport: Transport,
    /// Where a replica with `Transport::Tcp` listens.
    pub port: Option<u16>,
    pub egress: Egress,
    pub invocations_path: String,
    pub health: HealthProbe,
    pub stop_signal: String,
    pub stop_grace_seconds: u32,
}

impl ContainerSpec {
    /// Whether loopback is not enough for it.
    pub fn needs_interface(&self) -> bool {
        self.transport == Transport::Tcp || !self.egress.is_none()
    }
}

impl PlannedImage {
    /// The path of a blob inside the layout.
    pub fn blob_path(digest: &OciDigest) -> String {
        format!("blobs/sha256/{}", digest.hex())
    }
}

/// Whether a node may take a plan, given the one that it holds (DESIGN: older epochs, older
/// revisions, the same revision with other contents, another cluster's plans are refused).
pub fn accept(held: Option<&Plan>, offered: &Plan) -> Result<Acceptance, PlanRefusal> {
    let Some(held) = held else {
        return Ok(Acceptance::New);
    };
    if held.cluster != offered.cluster {
        return Err(PlanRefusal::OtherCluster {
            ours: held.cluster.clone(),
            theirs: offered.cluster.clone(),
        });
    }
    if held.node != offered.node {
        return Err(PlanRefusal::OtherNode {
            ours: held.node.clone(),
            theirs: offered.node.clone(),
        });
    }
    let ours = (held.epoch, held.revision);
    let theirs = (offered.epoch, offered.revision);
    if theirs < ours {
        return Err(PlanRefusal::Older { ours, theirs });
    }
    if theirs == ours {
        return if held == offered {
            Ok(Acceptance::Same)
        } else {
            Err(PlanRefusal::SameRevisionOtherContents { at: ours })
        };
    }
    Ok(Acceptance::New)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acceptance {
    New,
    Same,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanRefusal {
    #[error("plan is of cluster {theirs}, this node belongs to {ours}: join it again to move it")]
    OtherCluster { ours: ClusterId, theirs: ClusterId },
    #[error("plan is for node {theirs}, this is {ours}")]
    OtherNode { ours: NodeName, theirs: NodeName },
    #[error("plan of epoch {} revision {} is older than epoch {} revision {}", theirs.0, theirs.1, ours.0, ours.1)]
    Older {
        ours: (Epoch, Revision),
        theirs: (Epoch, Revision),
    },
    #[error("plan of epoch {} revision {} differs from the one already held under these numbers", at.0, at.1)]
    SameRevisionOtherContents { at: (Epoch, Revision) },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(epoch: u64, revision: u64) -> Plan {
        Plan {
            cluster: ClusterId::from_bits(1),
            epoch: Epoch(epoch),
            revision: Revision(revision),
            node: NodeName::parse("n1").expect("valid"),
            images: vec![],
            models: vec![],
            replicas: vec![],
        }
    }

    #[test]
    fn a_newer_epoch_wins_over_a_higher_revision_of_an_older_one() {
        assert_eq!(accept(Some(&plan(1, 9)), &plan(2, 1)), Ok(Acceptance::New));
        assert!(matches!(
            accept(Some(&plan(2, 1)), &plan(1, 9)),
            Err(PlanRefusal::Older { .. })
        ));
    }

    #[test]
    fn the_same_revision_is_taken_only_with_the_same_contents() {
        assert_eq!(accept(Some(&plan(1, 1)), &plan(1, 1)), Ok(Acceptance::Same));
        let mut other = plan(1, 1);
        other.models.push(PlannedModel {
            manifest: ManifestId(crate::digest::Digest::of(b"x")),
            label: "x/1".into(),
            size_bytes: 1,
        });
        assert!(matches!(
            accept(Some(&plan(1, 1)), &other),
            Err(PlanRefusal::SameRevisionOtherContents { .. })
        ));
    }

    #[test]
    fn another_clusters_plan_is_refused() {
        let mut foreign = plan(9, 9);
        foreign.cluster = ClusterId::from_bits(2);
        assert!(matches!(
            accept(Some(&plan(1, 1)), &foreign),
            Err(PlanRefusal::OtherCluster { .. })
        ));
    }
}
