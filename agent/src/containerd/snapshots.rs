//! Snapshots: the file systems of images' layers and of containers.

use std::collections::HashMap;

use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::types::{Descriptor, Mount};

use super::{CallError, Containerd, QUICK, UNPACK, call, unless_gone};
use crate::containerd::content::Lease;

impl Containerd {
    /// Whether a snapshot of that name is there.
    pub async fn has_snapshot(&self, key: &str) -> Result<bool, CallError> {
        let request = self.request(StatSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        });
        match call("snapshots.stat", QUICK, self.snapshots().stat(request)).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A writable snapshot on top of `parent`.
    pub async fn prepare_snapshot(
        &self,
        key: &str,
        parent: &str,
        lease: Option<&Lease>,
    ) -> Result<Vec<Mount>, CallError> {
        let mut request = self.request(PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: HashMap::new(),
        });
        if let Some(lease) = lease {
            lease.cover(&mut request);
        }
        let answer = call(
            "snapshots.prepare",
            QUICK,
            self.snapshots().prepare(request),
        )
        .await?;
        Ok(answer.mounts)
    }

    pub async fn commit_snapshot(
        &self,
        key: &str,
        name: &str,
        lease: &Lease,
    ) -> Result<(), CallError> {
        let mut request = self.request(CommitSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels: HashMap::new(),
        });
        lease.cover(&mut request);
        call("snapshots.commit", QUICK, self.snapshots().commit(request)).await
    }

    /// Whether there was one does not matter.
    pub async fn remove_snapshot(&self, key: &str) -> Result<(), CallError> {
        let request = self.request(RemoveSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        });
        let mut client = self.snapshots();
        unless_gone(call("snapshots.remove", QUICK, client.remove(request)).await)
    }

    /// Unpacks a layer into prepared mounts; the digest of what was in it.
    pub(super) async fn apply_layer(
        &self,
        layer: Descriptor,
        mounts: Vec<Mount>,
        lease: &Lease,
    ) -> Result<String, CallError> {
        let mut request = self.request(ApplyRequest {
            diff: Some(layer),
            mounts,
            ..ApplyRequest::default()
        });
        lease.cover(&mut request);
        let answer = call("diff.apply", UNPACK, self.diff().apply(request)).await?;
        let applied = answer.applied.ok_or(CallError::Incomplete {
            call: "diff.apply",
            missing: "a digest",
        })?;
        Ok(applied.digest)
    }
}
