//! Ends containers through containerd, as long as it answers. What is left when it does not is
//! ended without it (see `down`).

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use containerd_client::services::v1 as api;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::snapshots as snapshots_api;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Code, Request, Status};

/// After SIGTERM.
const GRACE: Duration = Duration::from_secs(10);
const AFTER_KILL: Duration = Duration::from_secs(10);
const TRIES: u32 = 6;
const CONNECT: Duration = Duration::from_secs(3);

/// containerd's number for a task that runs.
const RUNNING: i32 = 2;

const SNAPSHOTTER: &str = "overlayfs";

pub(super) struct Containers {
    channel: Channel,
    namespace: String,
}

/// A thing that is gone already is what was wanted.
fn gone<T>(answer: Result<T, Status>) -> Result<(), Status> {
    match answer {
        Err(status) if status.code() != Code::NotFound => Err(status),
        Ok(_) | Err(_) => Ok(()),
    }
}

impl Containers {
    pub(super) async fn connect(socket: &Path, namespace: &str) -> anyhow::Result<Self> {
        let connecting = containerd_client::connect(socket.to_owned());
        let channel = tokio::time::timeout(CONNECT, connecting)
            .await
            .with_context(|| format!("containerd at {} does not answer", socket.display()))??;
        Ok(Self {
            channel,
            namespace: namespace.to_owned(),
        })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let namespace = self
            .namespace
            .parse()
            .expect("our namespaces are plain ASCII");
        request
            .metadata_mut()
            .insert("containerd-namespace", namespace);
        request.set_timeout(Duration::from_secs(20));
        request
    }

    /// SIGTERM, a grace, SIGKILL; then tasks and containers are deleted.
    pub(super) async fn end_all(&self) -> anyhow::Result<usize> {
        let mut tasks = TasksClient::new(self.channel.clone());
        for (signal, patience) in [(15, GRACE), (9, AFTER_KILL)] {
            let running = self.running().await?;
            if running.is_empty() {
                break;
            }
            for id in &running {
                let kill = api::KillRequest {
                    container_id: id.clone(),
                    signal,
                    all: signal == 9,
                    ..Default::default()
                };
                gone(tasks.kill(self.request(kill)).await)?;
            }
            let deadline = Instant::now() + patience;
            while Instant::now() < deadline && !self.running().await?.is_empty() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        let mut containers = ContainersClient::new(self.channel.clone());
        let list = containers
            .list(self.request(api::ListContainersRequest::default()))
            .await?
            .into_inner()
            .containers;
        for container in &list {
            let id = container.id.clone();
            let delete = api::DeleteTaskRequest {
                container_id: id.clone(),
            };
            gone(tasks.delete(self.request(delete)).await)?;
            let delete = api::DeleteContainerRequest { id };
            gone(containers.delete(self.request(delete)).await)?;
        }
        Ok(list.len())
    }

    async fn running(&self) -> anyhow::Result<Vec<String>> {
        let mut tasks = TasksClient::new(self.channel.clone());
        let list = tasks
            .list(self.request(api::ListTasksRequest::default()))
            .await?
            .into_inner()
            .tasks;
        Ok(list
            .into_iter()
            .filter(|task| task.status == RUNNING)
            .map(|task| task.id)
            .collect())
    }

    /// Everything else in the namespace, and the namespace: for a containerd that stays. Its own
    /// collector works on the same things meanwhile, hence more than one try.
    pub(super) async fn remove_namespace(&self) -> anyhow::Result<()> {
        let mut tries = 0;
        loop {
            match self.empty_namespace().await {
                Ok(()) => return Ok(()),
                Err(error) if tries == TRIES => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            }
            tries += 1;
        }
    }

    async fn empty_namespace(&self) -> anyhow::Result<()> {
        let mut images = ImagesClient::new(self.channel.clone());
        let list = images
            .list(self.request(api::ListImagesRequest::default()))
            .await?
            .into_inner()
            .images;
        for image in list {
            let delete = api::DeleteImageRequest {
                name: image.name,
                sync: false,
                ..Default::default()
            };
            gone(images.delete(self.request(delete)).await)?;
        }
        let mut leases = LeasesClient::new(self.channel.clone());
        let list = leases
            .list(self.request(api::ListRequest::default()))
            .await?
            .into_inner()
            .leases;
        for lease in list {
            let delete = api::DeleteRequest {
                id: lease.id,
                sync: true,
            };
            gone(leases.delete(self.request(delete)).await)?;
        }
        self.remove_snapshots().await?;
        self.remove_content().await?;
        let mut namespaces = NamespacesClient::new(self.channel.clone());
        let delete = api::DeleteNamespaceRequest {
            name: self.namespace.clone(),
        };
        Ok(gone(namespaces.delete(self.request(delete)).await)?)
    }

    /// A snapshot with children cannot be removed: rounds of leaves, until a round removes none.
    async fn remove_snapshots(&self) -> anyhow::Result<()> {
        let mut client = SnapshotsClient::new(self.channel.clone());
        loop {
            let list = snapshots_api::ListSnapshotsRequest {
                snapshotter: SNAPSHOTTER.into(),
                ..Default::default()
            };
            let mut stream = client.list(self.request(list)).await?.into_inner();
            let mut names = Vec::new();
            while let Some(part) = stream.message().await? {
                names.extend(part.info.into_iter().map(|info| info.name));
            }
            let mut removed = false;
            let mut failure = None;
            for key in names {
                let remove = snapshots_api::RemoveSnapshotRequest {
                    snapshotter: SNAPSHOTTER.into(),
                    key,
                };
                match client.remove(self.request(remove)).await {
                    Ok(_) => removed = true,
                    // containerd's own collector was quicker.
                    Err(status) if status.code() == Code::NotFound => removed = true,
                    Err(status) => failure = Some(status),
                }
            }
            match failure {
                None => return Ok(()),
                Some(status) if !removed => return Err(status.into()),
                Some(_) => {}
            }
        }
    }

    async fn remove_content(&self) -> anyhow::Result<()> {
        let mut client = ContentClient::new(self.channel.clone());
        let list = self.request(api::ListContentRequest::default());
        let mut stream = client.list(list).await?.into_inner();
        let mut digests = Vec::new();
        while let Some(part) = stream.message().await? {
            digests.extend(part.info.into_iter().map(|info| info.digest));
        }
        for digest in digests {
            let delete = api::DeleteContentRequest { digest };
            gone(client.delete(self.request(delete)).await)?;
        }
        Ok(())
    }
}
