//! The steps that change one replica. Each may be repeated, and clears first whatever an earlier,
//! broken attempt left. Nothing is decided here.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use shared::api::local::{LOCAL_REPLICA_VERSION, LocalReplica};
use shared::ids::{ClusterId, ReplicaId};
use shared::plan::{PlannedImage, PlannedReplica};
use shared::runtime::Transport;

use crate::cgroup::Cgroups;
use crate::containerd::containers::NewContainer;
use crate::containerd::images::chain_ids;
use crate::containerd::{CallError, Containerd};
use crate::folder::{FolderError, Folders};
use crate::ledger::ReplicaRecord;
use crate::logs::{LogError, LogFolders};
use crate::network::{NetworkError, Networks};
use crate::pull::Puller;
use crate::replica::ContainerState;
use crate::spec::{self, SpecContext, SpecError};

/// How long a killed task may take to be gone within one step; the next pass tries again.
const DEATH_WAIT: Duration = Duration::from_secs(10);

/// Everything that steps work with.
pub struct Steps {
    pub containerd: Containerd,
    pub folders: Folders,
    pub logs: LogFolders,
    pub cgroups: Cgroups,
    pub networks: Arc<Networks>,
    pub instance: String,
    /// See [`open_files`].
    pub open_files: u64,
    pub puller: Puller,
}

/// How many files a replica may have open. containerd cannot give more than it was given itself where
/// it may not raise limits (in a container); it is taken to have been given what this daemon was.
pub fn open_files() -> u64 {
    use nix::sys::resource::{Resource, getrlimit};
    let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(spec::OPEN_FILES, |(_, hard)| hard);
    hard.min(spec::OPEN_FILES)
}

/// What a start needs to know.
#[derive(Clone, Debug)]
pub struct StartOrder {
    pub replica: PlannedReplica,
    pub image: PlannedImage,
    pub cluster: ClusterId,
    /// The model's published view in the cache.
    pub model_dir: PathBuf,
    pub uid: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("remove control group {}", path.display())]
    Cgroup {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{signal:?} is not a signal that a replica is stopped with")]
    Signal { signal: String },
    #[error("it has not ended {DEATH_WAIT:?} after SIGKILL")]
    StillAlive,
    #[error("a task of its is in a state that containerd does not know")]
    StateUnknown,
    #[error("the work of this step was cut off: {0}")]
    CutOff(String),
}

impl StepError {
    /// The step may or may not have had its effect: look before acting.
    pub fn outcome_unknown(&self) -> bool {
        match self {
            StepError::Call(error) => error.outcome_unknown(),
            StepError::StateUnknown | StepError::CutOff(_) => true,
            StepError::Folder(_)
            | StepError::Log(_)
            | StepError::Network(_)
            | StepError::Spec(_)
            | StepError::Cgroup { .. }
            | StepError::Signal { .. }
            | StepError::StillAlive => false,
        }
    }
}

impl Steps {
    /// Makes a replica run, and tells the gateway of it.
    pub async fn start(self: &Arc<Self>, order: &StartOrder) -> Result<(), StepError> {
        let id = &order.replica.id;
        match self.containerd.task_state(id).await? {
            // An earlier start had its effect after all.
            ContainerState::Running => {
                return self.announce(order.replica.clone(), order.uid).await;
            }
            ContainerState::Unknown => return Err(StepError::StateUnknown),
            ContainerState::Absent
            | ContainerState::NoTask
            | ContainerState::Created
            | ContainerState::Exited(_) => self.clear_container(id).await?,
        }
        let folder = self.make_folders(id.clone(), order.uid).await?;
        let attached = match order.replica.container.needs_interface() {
            true => Some(self.networks.attach(&order.replica).await?),
            false => None,
        };
        let context = SpecContext {
            model_dir: order.model_dir.clone(),
            folder,
            uid: order.uid,
            cgroups: self.cgroups.layout(),
            cgroup_parent: self.cgroups.parent().to_owned(),
            instance: self.instance.clone(),
            netns: attached.as_ref().map(|attached| attached.netns.clone()),
            resolv_conf: attached.and_then(|attached| attached.resolv_conf),
            open_files: self.open_files,
        };
        let spec = spec::render(&order.replica, &order.image, &context)?;
        let record = ReplicaRecord::new(&order.replica, order.uid);
        self.containerd
            .create_container(NewContainer {
                replica: id,
                record: &record,
                cluster: &order.cluster,
                instance: &self.instance,
                spec: &spec,
            })
            .await?;
        let parent = chain_ids(&order.image).pop().unwrap_or_default();
        let rootfs = self
            .containerd
            .prepare_snapshot(id.as_str(), &parent, None)
            .await?;
        let log = self.logs.uri(id, order.uid);
        self.containerd.create_task(id, rootfs, &log).await?;
        self.containerd.start_task(id).await?;
        self.announce(order.replica.clone(), order.uid).await
    }

    /// Tells the gateway of a replica that runs.
    pub async fn announce(
        self: &Arc<Self>,
        replica: PlannedReplica,
        uid: u32,
    ) -> Result<(), StepError> {
        let address = match replica.container.transport {
            Transport::Unix => None,
            Transport::Tcp => Some(self.networks.address(&replica.id)?),
        };
        let local = LocalReplica {
            version: LOCAL_REPLICA_VERSION,
            replica: replica.id,
            endpoint: replica.endpoint,
            entity: replica.entity,
            uid,
            transport: replica.container.transport,
            address,
            invocations_path: replica.container.invocations_path,
            health: replica.container.health,
        };
        let steps = Arc::clone(self);
        blocking(move || Ok(steps.folders.announce(&local)?)).await
    }

    /// Asks a replica to stop.
    pub async fn signal(&self, id: &ReplicaId, signal: &str) -> Result<(), StepError> {
        let signal = stop_signal(signal).ok_or_else(|| StepError::Signal {
            signal: signal.chars().take(20).collect(),
        })?;
        Ok(self.containerd.kill_task(id, signal, false).await?)
    }

    /// Ends all its processes.
    pub async fn kill(&self, id: &ReplicaId) -> Result<(), StepError> {
        self.containerd.kill_task(id, Signal::SIGKILL, true).await?;
        if self.containerd.wait_task(id, DEATH_WAIT).await? {
            Ok(())
        } else {
            Err(StepError::StillAlive)
        }
    }

    /// Clears everything that there is of a replica but its logs. Its container's record goes last: as
    /// long as it is there, a later pass knows that there is something to clear.
    pub async fn remove(self: &Arc<Self>, id: &ReplicaId) -> Result<(), StepError> {
        let (steps, replica) = (Arc::clone(self), id.clone());
        // The announcement first: the gateway must not look for a replica that goes away.
        blocking(move || Ok(steps.folders.remove(&replica)?)).await?;
        self.clear_container(id).await
    }

    /// Its control group goes as well: a new attempt must not inherit what an old one's counted.
    async fn clear_container(self: &Arc<Self>, id: &ReplicaId) -> Result<(), StepError> {
        match self.containerd.task_state(id).await? {
            ContainerState::Absent | ContainerState::NoTask => {}
            ContainerState::Unknown => return Err(StepError::StateUnknown),
            ContainerState::Exited(_) => self.containerd.delete_task(id).await?,
            ContainerState::Created | ContainerState::Running => {
                self.kill(id).await?;
                self.containerd.delete_task(id).await?;
            }
        }
        self.networks.detach(id).await?;
        self.containerd.remove_snapshot(id.as_str()).await?;
        let (steps, replica) = (Arc::clone(self), id.clone());
        blocking(move || {
            steps
                .cgroups
                .remove(&steps.instance, &replica)
                .map_err(|(path, source)| StepError::Cgroup { path, source })
        })
        .await?;
        Ok(self.containerd.delete_container(id).await?)
    }

    async fn make_folders(self: &Arc<Self>, id: ReplicaId, uid: u32) -> Result<PathBuf, StepError> {
        let steps = Arc::clone(self);
        blocking(move || {
            let folder = steps.folders.make(&id, uid)?;
            steps.logs.make(&id, uid)?;
            Ok(folder)
        })
        .await
    }
}

/// Runs file system work where it may wait.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StepError> + Send + 'static,
) -> Result<T, StepError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|ended| Err(StepError::CutOff(ended.to_string())))
}

fn stop_signal(name: &str) -> Option<Signal> {
    match name {
        "SIGTERM" => Some(Signal::SIGTERM),
        "SIGINT" => Some(Signal::SIGINT),
        "SIGQUIT" => Some(Signal::SIGQUIT),
        "SIGHUP" => Some(Signal::SIGHUP),
        _ => None,
    }
}
