//! Looks at everything that this node has: containers, tasks, images, replicas' folders.
//!
//! A look either sees all of it or fails: half a view must not pass for the whole.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::try_join_all;
use shared::ids::{ImageRef, ReplicaId};
use shared::plan::PlannedImage;

use crate::containerd::images::KnownImage;
use crate::containerd::{CallError, Containerd};
use crate::folder::FolderError;
use crate::ledger::ReplicaRecord;
use crate::network::NetworkError;
use crate::replica::{ContainerState, LocalFiles};
use crate::steps::Steps;

/// The whole look; below the watchdog's period, which a hanging containerd must not reach.
const LIMIT: Duration = Duration::from_secs(12);

#[derive(Clone, Debug, Default)]
pub struct Look {
    pub containers: BTreeMap<ReplicaId, (ReplicaRecord, ContainerState)>,
    pub local: BTreeMap<ReplicaId, LocalFiles>,
    /// Planned images that are in containerd as planned, unpacked.
    pub images_ready: BTreeSet<ImageRef>,
    /// Images that this instance brought in.
    pub images_ours: BTreeSet<ImageRef>,
    /// Containers with this instance's label whose other labels are not a replica's.
    pub unreadable: BTreeSet<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum LookError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error("looking at containerd took longer than {LIMIT:?}")]
    TimedOut,
}

pub async fn look(steps: &Steps, planned: &[PlannedImage]) -> Result<Look, LookError> {
    let work = async {
        let containers = containers(&steps.containerd, &steps.instance);
        let images = images(&steps.containerd, &steps.instance, planned);
        let ((containers, unreadable), (images_ready, images_ours)) =
            tokio::try_join!(containers, images)?;
        Ok::<_, LookError>(Look {
            containers,
            local: local(steps)?,
            images_ready,
            images_ours,
            unreadable,
        })
    };
    tokio::time::timeout(LIMIT, work)
        .await
        .map_err(|_| LookError::TimedOut)?
}

/// Folders of a few entries, in memory.
fn local(steps: &Steps) -> Result<BTreeMap<ReplicaId, LocalFiles>, LookError> {
    let mut found = steps.folders.list()?;
    for id in steps.networks.list()? {
        found.entry(id).or_default().network = true;
    }
    Ok(found)
}

type Containers = BTreeMap<ReplicaId, (ReplicaRecord, ContainerState)>;

async fn containers(
    containerd: &Containerd,
    instance: &str,
) -> Result<(Containers, BTreeSet<String>), CallError> {
    // Records first: a container that is made in between has a record without a task, at worst.
    let (records, unreadable) = containerd.list_replicas(instance).await?;
    let mut tasks = containerd.list_tasks().await?;
    let states = records.into_iter().map(|(id, record)| {
        let listed = tasks.remove(id.as_str());
        async move {
            let state = match listed {
                Some(state) => state,
                None => unlisted(containerd, &id).await?,
            };
            Ok::<_, CallError>((id, (record, state)))
        }
    });
    let states = try_join_all(states).await?.into_iter().collect();
    Ok((states, unreadable))
}

/// The list leaves out what does not answer; only a clear "there is none" counts as none.
async fn unlisted(containerd: &Containerd, id: &ReplicaId) -> Result<ContainerState, CallError> {
    match containerd.task_state(id).await {
        Ok(state) => Ok(state),
        Err(error) if error.outcome_unknown() => Ok(ContainerState::Unknown),
        Err(error) => Err(error),
    }
}

async fn images(
    containerd: &Containerd,
    instance: &str,
    planned: &[PlannedImage],
) -> Result<(BTreeSet<ImageRef>, BTreeSet<ImageRef>), CallError> {
    let known = containerd.list_images(instance).await?;
    let mut ready = BTreeSet::new();
    for image in planned {
        let there = known
            .get(image.reference.as_str())
            .is_some_and(|known| known.target == image.manifest.digest.as_str());
        if there && containerd.is_unpacked(image).await? {
            ready.insert(image.reference.clone());
        }
    }
    let ours = known
        .iter()
        .filter(|(_, image): &(&String, &KnownImage)| image.ours)
        .filter_map(|(name, _)| name.parse().ok())
        .collect();
    Ok((ready, ours))
}
